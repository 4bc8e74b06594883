//! What has been checked, to code: a schema, two conversions and a `main`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Expr, ExprLit, ExprUnary, Generics, Lit, Path, RangeLimits, Type, UnOp, parse_quote};

use crate::attr::Attrs;
use crate::configs;
use crate::parse::{Function, Input, InputShape, Key, Parameter, Recipe, Variant, recipe_name};
use crate::types::{self, Shape};

pub(crate) fn input(input: &Input) -> TokenStream {
    match &input.shape {
        InputShape::Struct(keys) => struct_impl(&input.ident, &input.generics, &input.docs, keys, &input.attrs),
        InputShape::Enum(variants) => {
            let is_component = input.attrs.component.is_some() || variants.iter().any(|v| v.payload.is_some());
            match is_component {
                true => component_impl(input, variants),
                false => choice_impl(input, variants),
            }
        }
        InputShape::Other => TokenStream::new(),
    }
}

/// The place of what was written, for code that was not.
fn at(written: &impl Spanned) -> Span {
    Span::call_site().located_at(written.span())
}

/// The bound `T: Config` for every type parameter.
fn bounded(generics: &Generics, krate: &TokenStream) -> Generics {
    let mut generics = generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(#krate::Config));
    }
    generics
}

fn struct_impl(ident: &Ident, generics: &Generics, docs: &str, keys: &[Key], attrs: &Attrs) -> TokenStream {
    let krate = attrs.krate();
    let is_generic = !generics.params.is_empty();
    let generics = bounded(generics, &krate);
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let name = ident.to_string();
    let key_consts = keys.iter().map(|key| key_const(key, &krate));
    let ignored = attrs.ignored.iter().map(|(key, why)| {
        let key = key.to_string();
        quote!(#krate::schema::Ignored { name: #key, why: #why })
    });
    // At the place of the type, so that a type without `Config` is one message.
    let from = keys.iter().map(|key| {
        let Key { ident, ty, name, .. } = key;
        let from = quote_spanned!(at(ty)=> <#ty as #krate::Config>::from_value);
        quote!(#ident: #from(__value.get(#name)?)?)
    });
    let to = keys.iter().map(|key| {
        let Key { ident, ty, name, .. } = key;
        let to = quote_spanned!(at(ty)=> <#ty as #krate::Config>::to_value);
        quote!((#name, #to(&self.#ident)))
    });
    let flat = keys.iter().filter(|key| key.attrs.flatten.is_some()).map(|key| &key.name);
    let assertions = (!is_generic).then(|| assertions(ident, keys, &krate));
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::Config for #ident #ty_generics #where_clause {
            const SCHEMA: #krate::Schema = #krate::Schema::Struct(&#krate::schema::Struct {
                name: #name,
                doc: #docs,
                keys: &[#(#key_consts),*],
                ignored: &[#(#ignored),*],
            });
            fn from_value(__value: &#krate::Value) -> ::core::result::Result<Self, #krate::Mismatch> {
                ::core::result::Result::Ok(Self { #(#from),* })
            }
            fn to_value(&self) -> #krate::Value {
                #krate::Value::from_fields([#(#to),*])
                    #(.flat(#flat))*
            }
        }
        #assertions
    }
}

/// Each key's words against each other, at the place of its attributes: what
/// the tokens do not show (a type behind an alias, a constant) is known here.
fn assertions(ident: &Ident, keys: &[Key], krate: &TokenStream) -> TokenStream {
    let mut all = TokenStream::new();
    for (index, key) in keys.iter().enumerate() {
        let attrs = &key.attrs;
        let span = match (&attrs.default, &attrs.range, &attrs.one_of) {
            (Some(default), ..) => default.value.as_ref().map_or(default.word.span(), |value| value.span()),
            (None, Some(range), _) => range.span(),
            (None, None, Some(one_of)) => one_of.span(),
            (None, None, None) => match attrs.flatten.as_ref().or(attrs.one_or_many.as_ref()) {
                Some(word) => word.span(),
                None => continue,
            },
        };
        all.extend(quote_spanned! {Span::call_site().located_at(span)=>
            const _: () = <#ident as #krate::Config>::SCHEMA.assert_key(#index);
        });
    }
    all
}

fn key_const(key: &Key, krate: &TokenStream) -> TokenStream {
    let Key { name, docs, ty, attrs, .. } = key;
    let schema = quote_spanned!(at(ty)=> <#ty as #krate::Config>::SCHEMA);
    let mut tokens = quote!(#krate::schema::Key::new(#name, #docs, #schema));
    if !attrs.aliases.is_empty() {
        let aliases = &attrs.aliases;
        tokens.extend(quote!(.aliases(&[#(#aliases),*])));
    }
    if let Some(default) = &attrs.default {
        let default = match &default.value {
            None => quote!(#krate::schema::Const::OfType),
            Some(value) => constant(value, ty, krate),
        };
        tokens.extend(quote!(.default(#default)));
    }
    if let Some(Expr::Range(range)) = &attrs.range {
        let bound = |bound: &Option<Box<Expr>>| match bound {
            Some(bound) => {
                let bound = constant(bound, ty, krate);
                quote!(::core::option::Option::Some(#bound))
            }
            None => quote!(::core::option::Option::None),
        };
        let (min, max) = (bound(&range.start), bound(&range.end));
        let inclusive = matches!(range.limits, RangeLimits::Closed(_));
        tokens.extend(quote! {
            .range(#krate::schema::Range { min: #min, max: #max, inclusive: #inclusive })
        });
    }
    if let Some(Expr::Array(values)) = &attrs.one_of {
        let values = values.elems.iter().map(|value| constant(value, ty, krate));
        tokens.extend(quote!(.one_of(&[#(#values),*])));
    }
    for (present, call) in [
        (&attrs.required, quote!(.required())),
        (&attrs.one_or_many, quote!(.one_or_many())),
        (&attrs.flatten, quote!(.flatten())),
        (&attrs.may_change, quote!(.may_change())),
    ] {
        if present.is_some() {
            tokens.extend(call);
        }
    }
    tokens
}

/// A default, bound or choice as a `Const`.
fn constant(value: &Expr, ty: &Type, krate: &TokenStream) -> TokenStream {
    let variant = |name: &str| Ident::new(name, value.span());
    match value {
        Expr::Lit(ExprLit { lit, .. }) => match lit {
            Lit::Bool(lit) => quote!(#krate::schema::Const::Bool(#lit)),
            Lit::Int(lit) => quote!(#krate::schema::Const::Int(#lit as i128)),
            Lit::Float(lit) => quote!(#krate::schema::Const::Float(#lit as f64)),
            lit => quote!(#krate::schema::Const::Text(#lit)),
        },
        Expr::Unary(ExprUnary { op: UnOp::Neg(minus), expr, .. }) => match &**expr {
            Expr::Lit(ExprLit { lit: Lit::Int(lit), .. }) => quote!(#krate::schema::Const::Int(#minus #lit as i128)),
            Expr::Lit(ExprLit { lit: Lit::Float(lit), .. }) => quote!(#krate::schema::Const::Float(#minus #lit as f64)),
            _ => typed(value, ty, krate),
        },
        Expr::Array(array) => {
            let items = array.elems.iter().map(|item| constant(item, ty, krate));
            quote!(#krate::schema::Const::List(&[#(#items),*]))
        }
        Expr::Path(path) if path.path.is_ident("None") => {
            let null = variant("Null");
            quote!(#krate::schema::Const::#null)
        }
        Expr::Call(call) if matches!(&*call.func, Expr::Path(path) if path.path.is_ident("Some")) => {
            match call.args.first() {
                Some(inner) if call.args.len() == 1 => constant(inner, ty, krate),
                _ => typed(value, ty, krate),
            }
        }
        Expr::Group(group) => constant(&group.expr, ty, krate),
        Expr::Paren(paren) => constant(&paren.expr, ty, krate),
        value => typed(value, ty, krate),
    }
}

/// A constant expression of a type that is plain to see.
fn typed(value: &Expr, ty: &Type, krate: &TokenStream) -> TokenStream {
    let ty = types::single(ty);
    match types::shape(ty) {
        Shape::Bool => quote!(#krate::schema::Const::Bool(#value)),
        Shape::Int => {
            quote!(#krate::schema::Const::Int({ let __value: #ty = #value; __value as i128 }))
        }
        Shape::Float => {
            quote!(#krate::schema::Const::Float({ let __value: #ty = #value; __value as f64 }))
        }
        Shape::Text => quote!(#krate::schema::Const::Text(#value)),
        // Refused by `check`.
        Shape::Other => quote!(#krate::schema::Const::Null),
    }
}

fn choice_impl(input: &Input, variants: &[Variant]) -> TokenStream {
    let krate = input.attrs.krate();
    let ident = &input.ident;
    let generics = bounded(&input.generics, &krate);
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let (name, docs) = (ident.to_string(), &input.docs);
    let default = default_variant(variants);
    let idents: Vec<_> = variants.iter().map(|variant| &variant.ident).collect();
    let names: Vec<_> = variants.iter().filter_map(|variant| variant.attrs.name.as_ref()).collect();
    let choices = variants.iter().map(|variant| {
        let Variant { docs, attrs, .. } = variant;
        let (name, aliases) = (&attrs.name, &attrs.aliases);
        quote!(#krate::schema::Choice { name: #name, aliases: &[#(#aliases),*], doc: #docs })
    });
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::Config for #ident #ty_generics #where_clause {
            const SCHEMA: #krate::Schema = #krate::Schema::Choice(&#krate::schema::Choices {
                name: #name,
                doc: #docs,
                choices: &[#(#choices),*],
                default: #default,
            });
            fn from_value(__value: &#krate::Value) -> ::core::result::Result<Self, #krate::Mismatch> {
                match __value.text()? {
                    #(#names => ::core::result::Result::Ok(Self::#idents),)*
                    __other => ::core::result::Result::Err(__value.refuse(__other)),
                }
            }
            fn to_value(&self) -> #krate::Value {
                #krate::Value::from_text(match self { #(Self::#idents => #names),* })
            }
        }
    }
}

fn component_impl(input: &Input, variants: &[Variant]) -> TokenStream {
    let krate = input.attrs.krate();
    let ident = &input.ident;
    let is_generic = !input.generics.params.is_empty();
    let generics = bounded(&input.generics, &krate);
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let (name, docs) = (ident.to_string(), &input.docs);
    let default = default_variant(variants);
    let mut schemas = Vec::new();
    let mut from = Vec::new();
    let mut to = Vec::new();
    let mut assertions = TokenStream::new();
    for (index, variant) in variants.iter().enumerate() {
        let Variant { ident: variant_ident, docs, attrs, payload } = variant;
        let (name, aliases) = (&attrs.name, &attrs.aliases);
        let fields = match payload {
            Some(ty) => {
                from.push(quote!((#name, __fields) => #krate::Config::from_value(__fields).map(Self::#variant_ident)));
                to.push(quote!(Self::#variant_ident(__fields) => (#name, #krate::Config::to_value(__fields))));
                if !is_generic {
                    assertions.extend(quote_spanned! {at(ty)=>
                        const _: () = <#ident as #krate::Config>::SCHEMA.assert_variant(#index);
                    });
                }
                let schema = quote_spanned!(at(ty)=> <#ty as #krate::Config>::SCHEMA);
                quote!(::core::option::Option::Some(&#schema))
            }
            None => {
                from.push(quote!((#name, _) => ::core::result::Result::Ok(Self::#variant_ident)));
                to.push(quote!(Self::#variant_ident => (#name, #krate::Value::from_fields([]))));
                quote!(::core::option::Option::None)
            }
        };
        schemas.push(quote! {
            #krate::schema::Variant { name: #name, aliases: &[#(#aliases),*], doc: #docs, fields: #fields }
        });
    }
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::Config for #ident #ty_generics #where_clause {
            const SCHEMA: #krate::Schema = #krate::Schema::Component(&#krate::schema::Component {
                name: #name,
                doc: #docs,
                variants: &[#(#schemas),*],
                default: #default,
            });
            fn from_value(__value: &#krate::Value) -> ::core::result::Result<Self, #krate::Mismatch> {
                match __value.component()? {
                    #(#from,)*
                    (__other, _) => ::core::result::Result::Err(__value.refuse(__other)),
                }
            }
            fn to_value(&self) -> #krate::Value {
                let (__name, __fields) = match self { #(#to),* };
                #krate::Value::from_component(__name, __fields)
            }
        }
        #assertions
    }
}

fn default_variant(variants: &[Variant]) -> TokenStream {
    match variants.iter().position(|variant| variant.attrs.default.is_some()) {
        Some(index) => quote!(::core::option::Option::Some(#index)),
        None => quote!(::core::option::Option::None),
    }
}

/// The function as it was written, without what only the macro understands.
pub(crate) fn function(recipe: &Recipe) -> TokenStream {
    let Function { attrs, vis, sig, body } = &recipe.function;
    // A mistake, see `check`: there is no such attribute but ours.
    let attrs = attrs.iter().filter(|attr| !attr.path().is_ident("config"));
    let mut sig = sig.clone();
    if sig.ident == "main" {
        // A mistake, see `check`: the name is taken by ours.
        sig.ident = Ident::new("__main", sig.ident.span());
    }
    quote! {
        // A config is handed over whole, key by key.
        #[allow(clippy::needless_pass_by_value, clippy::too_many_arguments)]
        #(#attrs)*
        #vis #sig #body
    }
}

/// The struct that the parameters stand for.
pub(crate) fn config_struct(recipe: &Recipe) -> TokenStream {
    let ident = recipe.config_ident();
    let vis = &recipe.function.vis;
    let docs = match recipe.docs.as_str() {
        "" => format!("The config of `{}`.", recipe.function.sig.ident),
        docs => docs.to_owned(),
    };
    let fields = recipe.keys.iter().map(|key| {
        let Key { ident, ty, docs, .. } = key;
        quote!(#[doc = #docs] pub #ident: #ty)
    });
    quote! {
        #[doc = #docs]
        #vis struct #ident { #(#fields),* }
    }
}

pub(crate) fn recipe(recipe: &Recipe) -> TokenStream {
    let krate = recipe.args.krate();
    let function = function(recipe);
    let function_ident = &recipe.function.sig.ident;
    let (config, made) = match &recipe.config {
        Some(ty) => (quote!(#ty), TokenStream::new()),
        None => {
            let ident = recipe.config_ident();
            let made = config_struct(recipe);
            let implementation = struct_impl(&ident, &Generics::default(), &recipe.docs, &recipe.keys, &recipe.args);
            (quote!(#ident), quote!(#made #implementation))
        }
    };
    let arguments = recipe.parameters.iter().map(|parameter| match parameter {
        Parameter::Key(index) => {
            let ident = &recipe.keys[*index].ident;
            quote!(__config.#ident)
        }
        Parameter::Config => quote!(__config),
        Parameter::Resolved => quote!(__run.resolved),
    });
    let (name, docs) = (recipe_name(recipe), &recipe.docs);
    let configs = configs::embed(&recipe.args.configs);
    let schema = quote!(<#config as #krate::Config>::SCHEMA);
    let checks = configs::checks(&recipe.args.configs, &schema, &krate);
    let has_preflight = recipe.args.preflight.is_some();
    let preflight = recipe.args.preflight.as_ref().map(|ty| preflight(ty, &recipe.args.core()));
    quote! {
        #function
        #made
        #checks
        // A package that has no feature of this name is right as well.
        #[allow(dead_code, unexpected_cfgs)]
        fn main() -> ::std::process::ExitCode {
            use #krate::cli as __cli;
            #[cfg(feature = "mpi")]
            ::tune_mpi::register();
            const __RECIPE: __cli::Recipe = __cli::Recipe {
                name: #name,
                doc: #docs,
                version: ::core::env!("CARGO_PKG_VERSION"),
                configs: #configs,
                preflight: #has_preflight,
            };
            __cli::signals::handle();
            __cli::heaps::share();
            let __color = __cli::stderr_color();
            let (__run, __purpose) = match __cli::start::<#config>(&__RECIPE, ::std::env::args_os(), __color) {
                __cli::Start::Run(__run, __purpose) => (*__run, __purpose),
                __cli::Start::Show(__text) => return __cli::show(&__text),
                __cli::Start::Fail(__text) => {
                    __cli::complain(&__text);
                    return ::std::process::ExitCode::from(__cli::USAGE);
                }
            };
            __cli::complain(&__cli::warnings(&__run.warnings, __color));
            #preflight
            let __config = __run.config;
            match #function_ident(#(#arguments),*) {
                ::core::result::Result::Ok(_) => ::std::process::ExitCode::SUCCESS,
                ::core::result::Result::Err(__error) => {
                    let __error: ::std::boxed::Box<dyn ::std::error::Error> = ::core::convert::Into::into(__error);
                    __cli::ended(&*__error)
                }
            }
        }
    }
}

/// The answer to `--check` and `--plan`, where one of them was asked.
fn preflight(ty: &Path, core: &TokenStream) -> TokenStream {
    // At the place of the type, so that one that is no recipe, or one of another config, is one message there.
    let answer = quote_spanned! {at(ty)=>
        #core::preflight::answer::<#ty, _>(&__run.config, __purpose, &mut __out, __cli::stdout_color())
    };
    quote! {
        if __purpose != __cli::Purpose::Run {
            #core::hub::watch(#core::metrics::Downloads::stderr());
            let mut __out = #core::config::output::Stdout;
            return match #answer {
                true => ::std::process::ExitCode::SUCCESS,
                false => ::std::process::ExitCode::FAILURE,
            };
        }
    }
}

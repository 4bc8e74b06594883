//! Tokens to what they say.

use proc_macro2::{Ident, Span, TokenStream};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{
    Attribute, Data, DeriveInput, Fields, FnArg, Generics, LitStr, Pat, ReturnType, Signature, Type, Visibility,
};

use crate::attr::{self, Attrs, Errors, Metas, On};

/// A type that derives `Config`.
pub(crate) struct Input {
    pub(crate) ident: Ident,
    pub(crate) generics: Generics,
    pub(crate) docs: String,
    pub(crate) attrs: Attrs,
    pub(crate) shape: InputShape,
}

pub(crate) enum InputShape {
    Struct(Vec<Key>),
    Enum(Vec<Variant>),
    /// Reported.
    Other,
}

/// A key: a field or a parameter.
pub(crate) struct Key {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    pub(crate) docs: String,
    pub(crate) attrs: Attrs,
    /// The name, as it is written in a config.
    pub(crate) name: String,
    pub(crate) name_span: Span,
}

pub(crate) struct Variant {
    pub(crate) ident: Ident,
    pub(crate) docs: String,
    pub(crate) attrs: Attrs,
    pub(crate) payload: Option<Type>,
}

/// A function under `#[recipe]`.
pub(crate) struct Recipe {
    pub(crate) args: Attrs,
    /// Of the function, `#[config]`s on parameters and their docs removed.
    pub(crate) function: Function,
    pub(crate) docs: String,
    pub(crate) keys: Vec<Key>,
    /// What is passed to the function, in its order.
    pub(crate) parameters: Vec<Parameter>,
    /// The type of the one parameter of the struct form.
    pub(crate) config: Option<Type>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Parameter {
    /// The key of this index.
    Key(usize),
    /// The whole config.
    Config,
    /// The resolved config.
    Resolved,
}

/// A function whose body is taken as it is.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: TokenStream,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        Ok(Self {
            attrs: input.call(Attribute::parse_outer)?,
            vis: input.parse()?,
            sig: input.parse()?,
            body: input.parse()?,
        })
    }
}

impl Recipe {
    /// The struct that is made of the parameters: `LoraConfig` of `lora`.
    pub(crate) fn config_ident(&self) -> Ident {
        let name = self.function.sig.ident.unraw().to_string();
        let camel: String = name
            .split('_')
            .map(|word| {
                let mut letters = word.chars();
                letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
            })
            .collect();
        Ident::new(&format!("{camel}Config"), self.function.sig.ident.span())
    }

    /// Whether the function returns something that looks like a `Result`.
    pub(crate) fn returns_result(&self) -> bool {
        match &self.function.sig.output {
            ReturnType::Type(_, ty) => match &**ty {
                Type::Path(path) => {
                    let last = path.path.segments.last();
                    last.is_some_and(|last| last.ident.to_string().ends_with("Result"))
                }
                _ => false,
            },
            ReturnType::Default => false,
        }
    }
}

pub(crate) fn derive(item: TokenStream) -> syn::Result<(Input, Errors)> {
    let input: DeriveInput = syn::parse2(item)?;
    let mut errors = Errors::default();
    let shape = match input.data {
        Data::Struct(data) => match data.fields {
            Fields::Named(fields) => InputShape::Struct(
                fields
                    .named
                    .into_iter()
                    .filter_map(|field| key(field.ident?, field.ty, &field.attrs, On::Field, &mut errors))
                    .collect(),
            ),
            Fields::Unit => InputShape::Struct(Vec::new()),
            Fields::Unnamed(fields) => {
                errors.at(&fields, "a config has named fields: they are its keys");
                InputShape::Other
            }
        },
        Data::Enum(data) => InputShape::Enum(
            data.variants
                .into_iter()
                .map(|variant| {
                    let payload = match variant.fields {
                        Fields::Unit => None,
                        Fields::Unnamed(mut fields) if fields.unnamed.len() == 1 => {
                            fields.unnamed.pop().map(|field| field.ty)
                        }
                        fields => {
                            let message = "a component holds one struct that derives `Config`";
                            errors.at(&fields, message);
                            None
                        }
                    };
                    Variant {
                        docs: attr::docs(&variant.attrs),
                        attrs: attr::read(&variant.attrs, On::Variant, &mut errors),
                        ident: variant.ident,
                        payload,
                    }
                })
                .collect(),
        ),
        Data::Union(data) => {
            errors.at(&data.union_token, "a config is a struct or an enum");
            InputShape::Other
        }
    };
    let input = Input {
        docs: attr::docs(&input.attrs),
        attrs: attr::read(&input.attrs, On::Type, &mut errors),
        ident: input.ident,
        generics: input.generics,
        shape,
    };
    Ok((input, errors))
}

fn key(ident: Ident, ty: Type, attrs: &[Attribute], on: On, errors: &mut Errors) -> Option<Key> {
    let docs = attr::docs(attrs);
    let attrs = attr::read(attrs, on, errors);
    let (name, name_span) = match &attrs.name {
        Some(name) => (name.value(), name.span()),
        None => (ident.unraw().to_string(), ident.span()),
    };
    Some(Key { ident, ty, docs, attrs, name, name_span })
}

/// The recipe, where the item is a function.
pub(crate) fn recipe(args: TokenStream, item: TokenStream) -> (Option<Recipe>, Errors) {
    let mut errors = Errors::default();
    let mut function: Function = match syn::parse2(item) {
        Ok(function) => function,
        Err(_) => {
            let message = "`#[recipe]` is for a function: its parameters are the keys of the config";
            errors.push(syn::Error::new(Span::call_site(), message));
            return (None, errors);
        }
    };
    let mut read = Attrs::default();
    match syn::parse2::<Metas>(args) {
        Ok(metas) => read.take(metas, On::Recipe, &mut errors),
        Err(error) => errors.push(error),
    }
    let mut keys = Vec::new();
    let mut parameters = Vec::new();
    // The parameters that are no keys by their looks.
    let mut bare = Vec::new();
    for argument in std::mem::take(&mut function.sig.inputs) {
        let FnArg::Typed(mut argument) = argument else {
            if let FnArg::Receiver(mut receiver) = argument {
                receiver.attrs.clear();
                errors.at(&receiver.self_token, "a recipe is a function of its own, without `self`");
                function.sig.inputs.push(FnArg::Receiver(receiver));
            }
            continue;
        };
        let attrs = std::mem::take(&mut argument.attrs);
        // What concerns neither us nor the reader stays: `#[allow]`, `#[cfg]`.
        argument.attrs = attrs
            .iter()
            .filter(|attr| !attr.path().is_ident("config") && !attr.path().is_ident("doc"))
            .cloned()
            .collect();
        let ident = match &*argument.pat {
            Pat::Ident(pat) if pat.by_ref.is_none() && pat.subpat.is_none() => Ok(pat.ident.clone()),
            pat => Err(syn::Error::new_spanned(pat, "a key needs a name: write `name: Type`")),
        };
        let ty = (*argument.ty).clone();
        let same = ident.as_ref().is_ok_and(|ident| keys.iter().any(|key: &Key| key.ident == *ident));
        if !same {
            function.sig.inputs.push(FnArg::Typed(argument));
        }
        let ident = match ident {
            Ok(ident) if same => {
                // Without it: rustc would say so, too.
                errors.at(&ident, format!("there is another key `{}`", ident.unraw()));
                continue;
            }
            Ok(ident) => ident,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        // Neither could stand in the struct that stands in.
        let message = match &ty {
            Type::ImplTrait(_) => Some("a key needs a type that derives `Config`"),
            Type::Reference(_) => Some(attr::OWNED),
            _ => None,
        };
        if let Some(message) = message {
            errors.at(&ty, message);
            continue;
        }
        let Some(key) = key(ident, ty, &attrs, On::Parameter, &mut errors) else {
            continue;
        };
        if let Some(word) = &key.attrs.resolved {
            if parameters.contains(&Parameter::Resolved) {
                errors.at(word, "one parameter with `resolved` is enough");
            }
            parameters.push(Parameter::Resolved);
            continue;
        }
        if key.docs.is_empty() && !key.attrs.present {
            bare.push(keys.len());
        }
        parameters.push(Parameter::Key(keys.len()));
        keys.push(key);
    }
    let mut config = None;
    if keys.len() == 1
        && bare.len() == 1
        && crate::types::shape(crate::types::single(&keys[0].ty)) == crate::types::Shape::Other
    {
        config = keys.pop().map(|key| key.ty);
        for parameter in &mut parameters {
            if matches!(parameter, Parameter::Key(_)) {
                *parameter = Parameter::Config;
            }
        }
    }
    let docs = attr::docs(&function.attrs);
    let recipe = Recipe { args: read, function, docs, keys, parameters, config };
    (Some(recipe), errors)
}

/// The name of a recipe in messages.
pub(crate) fn recipe_name(recipe: &Recipe) -> String {
    let name = recipe.args.name.as_ref().map(LitStr::value);
    name.unwrap_or_else(|| recipe.function.sig.ident.unraw().to_string())
}

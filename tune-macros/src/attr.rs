//! The grammar of `#[config(...)]` and `#[recipe(...)]`.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Expr, ExprLit, Lit, LitStr, Path, Token, parenthesized};

/// Mistakes, each at its place, to be shown together.
#[derive(Default)]
pub(crate) struct Errors {
    errors: Vec<syn::Error>,
    /// Names of attributes that there are not, and where.
    unknown: Vec<(On, Ident)>,
}

impl Errors {
    pub(crate) fn at(&mut self, place: &impl ToTokens, message: impl std::fmt::Display) {
        self.errors.push(syn::Error::new_spanned(place, message));
    }

    pub(crate) fn span(&mut self, span: Span, message: impl std::fmt::Display) {
        self.errors.push(syn::Error::new(span, message));
    }

    pub(crate) fn push(&mut self, error: syn::Error) {
        self.errors.push(error);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The errors, for rustc; and for rust-analyzer what a name could be completed to that is being written.
    pub(crate) fn into_tokens(self, krate: &TokenStream) -> TokenStream {
        let errors = self.errors.iter().map(syn::Error::to_compile_error);
        let unknown = self.unknown.iter().map(|(on, name)| {
            let module = Ident::new(on.module(), Span::call_site());
            quote! {
                #[allow(unexpected_cfgs)]
                const _: () = {
                    #[cfg(rust_analyzer)]
                    fn __complete() {
                        #krate::attributes::#module::#name;
                    }
                };
            }
        });
        // First, where the length of no message moves it.
        unknown.chain(errors).collect()
    }
}

/// One `name`, `name = value` or `name(...)`.
pub(crate) struct Meta {
    pub(crate) name: Ident,
    pub(crate) argument: Argument,
}

pub(crate) enum Argument {
    None,
    Value(Expr),
    List(TokenStream),
}

impl Parse for Meta {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if input.peek(LitStr) {
            let text: LitStr = input.parse()?;
            let message = format!("what is {:?}? Each argument has a name, such as `configs = [...]`", text.value());
            return Err(syn::Error::new_spanned(&text, message));
        }
        let name = input.call(Ident::parse_any)?;
        let argument = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            if input.is_empty() || input.peek(Token![,]) {
                return Err(syn::Error::new_spanned(&name, format!("`{name} =` without a value")));
            }
            Argument::Value(input.parse()?)
        } else if input.peek(syn::token::Paren) {
            let list;
            parenthesized!(list in input);
            Argument::List(list.parse()?)
        } else {
            Argument::None
        };
        Ok(Self { name, argument })
    }
}

/// Several of them, with commas between.
pub(crate) struct Metas(pub(crate) Vec<Meta>);

impl Parse for Metas {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let list = input.parse_terminated(Meta::parse, Token![,])?;
        Ok(Self(list.into_iter().collect()))
    }
}

/// What `#[config(...)]` says, wherever it stands.
#[derive(Default)]
pub(crate) struct Attrs {
    pub(crate) present: bool,
    pub(crate) default: Option<Default_>,
    pub(crate) range: Option<Expr>,
    pub(crate) one_of: Option<Expr>,
    pub(crate) aliases: Vec<LitStr>,
    pub(crate) name: Option<LitStr>,
    pub(crate) required: Option<Ident>,
    pub(crate) one_or_many: Option<Ident>,
    pub(crate) flatten: Option<Ident>,
    pub(crate) may_change: Option<Ident>,
    pub(crate) resolved: Option<Ident>,
    pub(crate) component: Option<Ident>,
    pub(crate) ignored: Vec<(Ident, LitStr)>,
    pub(crate) krate: Option<Path>,
    /// Of `#[recipe]` only.
    pub(crate) configs: Vec<LitStr>,
    /// Of `#[recipe]` only: the type that implements `Recipe`.
    pub(crate) preflight: Option<Path>,
}

/// `default` or `default = value`.
pub(crate) struct Default_ {
    pub(crate) word: Ident,
    pub(crate) value: Option<Expr>,
}

/// What the attributes belong to, and so which ones there are.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum On {
    Field,
    Parameter,
    Variant,
    Type,
    Recipe,
}

impl On {
    /// The module of `attributes` that documents them.
    fn module(self) -> &'static str {
        match self {
            On::Field => "key",
            On::Parameter => "parameter",
            On::Variant => "variant",
            On::Type => "type_",
            On::Recipe => "recipe",
        }
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            On::Field => FIELD,
            On::Parameter => PARAMETER,
            On::Variant => &["name", "alias", "default"],
            On::Type => &["ignored", "component", "crate"],
            On::Recipe => &["configs", "preflight", "name", "ignored", "crate"],
        }
    }
}

const PARAMETER: &[&str] = &[
    "default",
    "range",
    "one_of",
    "required",
    "alias",
    "name",
    "one_or_many",
    "flatten",
    "may_change",
    // Of a parameter only; the others are a field's, too.
    "resolved",
];
const FIELD: &[&str] = PARAMETER.split_at(PARAMETER.len() - 1).0;

/// Reads the `#[config]`s among `attrs`.
pub(crate) fn read(attrs: &[Attribute], on: On, errors: &mut Errors) -> Attrs {
    let mut read = Attrs::default();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("config")) {
        read.present = true;
        match attr.parse_args::<Metas>() {
            Ok(metas) => read.take(metas, on, errors),
            Err(error) => errors.push(error),
        }
    }
    read
}

impl Attrs {
    pub(crate) fn take(&mut self, metas: Metas, on: On, errors: &mut Errors) {
        let mut seen: Vec<String> = Vec::new();
        for Meta { name, argument } in metas.0 {
            let word = name.to_string();
            if !on.names().contains(&word.as_str()) {
                errors.at(&name, unknown(&word, on));
                errors.unknown.push((on, name));
                continue;
            }
            let repeated = seen.contains(&word) || self.has(&word);
            if repeated && !matches!(word.as_str(), "alias" | "ignored") {
                errors.at(&name, format!("`{word}` is said twice"));
                continue;
            }
            seen.push(word.clone());
            if let Err(error) = self.set(&word, name, argument) {
                errors.push(error);
            }
        }
    }

    fn has(&self, word: &str) -> bool {
        match word {
            "default" => self.default.is_some(),
            "range" => self.range.is_some(),
            "one_of" => self.one_of.is_some(),
            "name" => self.name.is_some(),
            "required" => self.required.is_some(),
            "one_or_many" => self.one_or_many.is_some(),
            "flatten" => self.flatten.is_some(),
            "may_change" => self.may_change.is_some(),
            "resolved" => self.resolved.is_some(),
            "component" => self.component.is_some(),
            "preflight" => self.preflight.is_some(),
            "crate" => self.krate.is_some(),
            _ => false,
        }
    }

    fn set(&mut self, word: &str, name: Ident, argument: Argument) -> syn::Result<()> {
        match (word, argument) {
            ("default", Argument::None) => {
                self.default = Some(Default_ { word: name, value: None });
            }
            ("default", Argument::Value(value)) => {
                self.default = Some(Default_ { word: name, value: Some(value) });
            }
            ("range", Argument::Value(value)) => self.range = Some(value),
            ("one_of", Argument::Value(value)) => self.one_of = Some(value),
            ("name", Argument::Value(value)) => self.name = Some(string(&value)?),
            ("alias", Argument::Value(value)) => self.aliases.extend(strings(&value)?),
            ("configs", Argument::Value(value)) => self.configs = strings(&value)?,
            ("preflight", Argument::Value(value)) => self.preflight = Some(recipe_type(&value)?),
            ("required", Argument::None) => self.required = Some(name),
            ("one_or_many", Argument::None) => self.one_or_many = Some(name),
            ("flatten", Argument::None) => self.flatten = Some(name),
            ("may_change", Argument::None) => self.may_change = Some(name),
            ("resolved", Argument::None) => self.resolved = Some(name),
            ("component", Argument::None) => self.component = Some(name),
            ("crate", Argument::Value(Expr::Path(path))) => self.krate = Some(path.path),
            ("ignored", Argument::List(list)) => {
                let Metas(keys) = syn::parse2(list)?;
                for key in keys {
                    match key.argument {
                        Argument::Value(why) => self.ignored.push((key.name, string(&why)?)),
                        _ => {
                            let message = format!("say why the key has no effect: `{} = \"...\"`", key.name);
                            return Err(syn::Error::new_spanned(&key.name, message));
                        }
                    }
                }
            }
            _ => return Err(syn::Error::new_spanned(&name, usage(word))),
        }
        Ok(())
    }

    /// Where the generated code finds `Recipe` and what is done with one: the crate that [`Attrs::krate`] is in.
    pub(crate) fn core(&self) -> TokenStream {
        let parent = self.krate.as_ref().and_then(|path| {
            let mut path = path.clone();
            path.segments.pop();
            path.segments.pop_punct();
            (!path.segments.is_empty()).then_some(path)
        });
        match parent {
            Some(path) => generated(path.to_token_stream()),
            None => quote!(::tune_core),
        }
    }

    /// Where the generated code finds `Config`.
    pub(crate) fn krate(&self) -> TokenStream {
        match &self.krate {
            // As if the macro had written it: lints for people do not apply.
            Some(path) => generated(path.to_token_stream()),
            None => quote!(::tune_core::config),
        }
    }
}

/// The same tokens with the spans of generated code.
fn generated(tokens: TokenStream) -> TokenStream {
    let respan = |mut token: TokenTree| {
        token.set_span(Span::call_site());
        token
    };
    tokens.into_iter().map(respan).collect()
}

/// What is said of a reference.
pub(crate) const OWNED: &str = "a config owns its values: write `String`, `PathBuf` or `Vec<T>`";

fn usage(word: &str) -> String {
    let form = match word {
        "default" => "`default` or `default = value`",
        "range" => "`range = 1..` or `range = 0.0..=1.0`",
        "one_of" => "`one_of = [\"a\", \"b\"]`",
        "name" => "`name = \"...\"`",
        "alias" => "`alias = \"...\"`",
        "configs" => "`configs = [\"../configs/lora/tiny.yaml\"]`",
        "preflight" => "`preflight = Type`, with the type that implements `Recipe`",
        "crate" => "`crate = path`",
        "ignored" => "`ignored(key = \"why\", ...)`",
        word => return format!("`{word}` takes no value"),
    };
    format!("this is written {form}")
}

fn unknown(word: &str, on: On) -> String {
    let place = match on {
        On::Field | On::Parameter => "a key",
        On::Variant => "a variant",
        On::Type => "a type",
        On::Recipe => "a recipe",
    };
    let near = match word {
        "rename" => Some("name"),
        "min" | "max" | "bounds" => on.names().iter().copied().find(|name| *name == "range"),
        _ => tune_yaml::nearest(word, on.names().iter().copied()),
    };
    match near {
        Some(near) => format!("unknown attribute `{word}` of {place}: did you mean `{near}`?"),
        None => {
            let names: Vec<_> = on.names().iter().map(|name| format!("`{name}`")).collect();
            format!("unknown attribute `{word}` of {place}: there are {}", names.join(", "))
        }
    }
}

fn string(value: &Expr) -> syn::Result<LitStr> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(text.clone()),
        other => Err(syn::Error::new_spanned(other, "expected a string literal")),
    }
}

/// The name of a type, as an expression is read.
fn recipe_type(value: &Expr) -> syn::Result<Path> {
    match value {
        Expr::Path(path) if path.qself.is_none() => Ok(path.path.clone()),
        other => Err(syn::Error::new_spanned(other, usage("preflight"))),
    }
}

/// A string, or a list of them.
fn strings(value: &Expr) -> syn::Result<Vec<LitStr>> {
    match value {
        Expr::Array(array) => array.elems.iter().map(string).collect(),
        other => Ok(vec![string(other)?]),
    }
}

/// The text of the doc comments.
pub(crate) fn docs(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        if let syn::Meta::NameValue(pair) = &attr.meta
            && let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &pair.value
        {
            let text = text.value();
            lines.extend(text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end().to_owned()));
            if text.is_empty() {
                lines.push(String::new());
            }
        }
    }
    lines.join("\n").trim().to_owned()
}

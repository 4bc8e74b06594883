//! The configs that a recipe ships with: read here, checked against the
//! schema by the compiler, see `tune_config::embedded`.

use std::path::{Path, PathBuf};

use proc_macro2::{Literal, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::LitStr;
use tune_yaml::{Error, Kind, Node, Number, Place, Referred, Scalar, SourceId, Text, Value};

use crate::attr::Errors;

/// As many as `tune_config::embedded` shows.
const SHOWN: usize = 8;

/// The file that a literal names, relative to the package. A package may build a file that is elsewhere: its
/// configs are beside it.
fn path(written: &LitStr) -> Option<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")?;
    let in_package = PathBuf::from(package).join(written.value());
    if in_package.is_file() {
        return Some(in_package);
    }
    let source = written.span().unwrap().local_file().and_then(|file| file.canonicalize().ok());
    let beside = source.and_then(|file| Some(file.parent()?.join(written.value())));
    Some(beside.filter(|path| path.is_file()).unwrap_or(in_package))
}

/// The path of a file as the compiler writes those of its own: from where it
/// runs, if the file is below.
fn shown(file: &Path) -> String {
    let whole = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).ok();
    let below = here.and_then(|here| whole.strip_prefix(here).map(Path::to_owned).ok());
    below.unwrap_or(whole).display().to_string()
}

/// The text of a file, or why there is none.
fn read(written: &LitStr, path: &Path) -> Result<String, String> {
    if !path.is_file() {
        let written = written.value();
        return Err(format!(
            "there is no file `{written}`: the path is relative to the folder of the package's Cargo.toml, or of this file"
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", shown(path)))?;
    String::from_utf8(bytes).map_err(|_| format!("{} is not text (UTF-8)", shown(path)))
}

/// The files must be there, and text.
pub(crate) fn check(configs: &[LitStr], errors: &mut Errors) {
    let mut seen = Vec::new();
    for config in configs {
        if seen.contains(&config.value()) {
            errors.at(config, "this config is listed twice");
        }
        seen.push(config.value());
        if let Some(Err(message)) = path(config).map(|path| read(config, &path)) {
            errors.at(config, message);
        }
    }
}

/// Each config as a pair of its path and its text.
pub(crate) fn embed(configs: &[LitStr]) -> TokenStream {
    let pairs = configs.iter().filter_map(|config| {
        let absolute = path(config)?.display().to_string();
        Some(quote!((#config, ::core::include_str!(#absolute))))
    });
    quote!(&[#(#pairs),*])
}

/// What makes each config fail to compile that does not fit `schema`.
pub(crate) fn checks(configs: &[LitStr], schema: &TokenStream, krate: &TokenStream) -> TokenStream {
    configs.iter().filter_map(|config| Some(one(config, &path(config)?, schema, krate))).collect()
}

fn one(config: &LitStr, path: &Path, schema: &TokenStream, krate: &TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let name = shown(path);
    // Reported by `check`, if there is none.
    let text = read(config, path).unwrap_or_default();
    let (root, aliases) = match tune_yaml::parse_noting(&text, SourceId(0)) {
        Ok(parsed) => parsed,
        Err(error) => {
            errors.at(config, show(&error, &name, &text));
            return errors.into_tokens(krate);
        }
    };
    let referred = tune_yaml::referred(&root, &aliases);
    let (root, mistakes) = tune_yaml::interpolate(root);
    for mistake in mistakes.iter().take(SHOWN) {
        errors.at(config, show(mistake, &name, &text));
    }
    let errors = errors.into_tokens(krate);
    let mut items = Vec::new();
    flatten(&mut items, &root, ("", root.span), 0, &referred);
    let absolute = path.display().to_string();
    let at = Span::call_site().located_at(config.span());
    let refusals = (0..SHOWN).map(|index| quote_spanned!(at=> const _: () = __FILE.refuse(&__FOUND, #index);));
    quote! {
        #errors
        // A config is as long as it is.
        #[allow(long_running_const_eval)]
        const _: () = {
            use #krate::embedded::*;
            const __FILE: Embedded =
                Embedded { name: #name, text: ::core::include_str!(#absolute), items: &[#(#items),*] };
            const __FOUND: Findings<SHOWN> = __FILE.check(&#schema);
            #(#refusals)*
        };
    }
}

/// The value as `item`s of the embedded config.
fn flatten(
    items: &mut Vec<TokenStream>,
    node: &Node,
    (key, key_span): (&str, tune_yaml::Span),
    parent: usize,
    referred: &Referred,
) {
    let at = items.len();
    items.push(TokenStream::new());
    let written = match &node.value {
        Value::Scalar(written) => scalar(written),
        Value::List(list) => {
            list.iter().for_each(|item| flatten(items, item, ("", item.span), at, referred));
            quote!(Written::List)
        }
        Value::Map(entries) => {
            for entry in entries {
                flatten(items, &entry.value, (&entry.key, entry.key_span), at, referred);
            }
            quote!(Written::Map)
        }
        Value::Reported => quote!(Written::Reported),
    };
    let number = Literal::usize_unsuffixed;
    let bytes = [key_span.start, key_span.end, node.span.start, node.span.end].map(number);
    let parent_is_root = parent == 0;
    let (parent, end) = (number(parent), number(items.len()));
    let item = quote!(item(#key, [#(#bytes),*], #parent, #end, #written));
    let by = referred.get(key).filter(|_| at > 0 && parent_is_root);
    items[at] = match by {
        Some(by) => quote!(referred(&[#(#by),*], #item)),
        None => item,
    };
}

fn scalar(scalar: &Scalar) -> TokenStream {
    let Scalar { text, quoted } = scalar;
    match scalar.kind() {
        Kind::Null => quote!(null(#text)),
        Kind::Bool(value) => quote!(truth(#text, #value)),
        Kind::Int(value) => {
            let value = Literal::i128_unsuffixed(value);
            quote!(int(#text, #value))
        }
        Kind::Float(value) => {
            let value = float(value);
            quote!(float(#text, #value))
        }
        Kind::Text => {
            let number = match scalar.plain_number() {
                None => quote!(::core::option::Option::None),
                Some(Number::Int(value)) => {
                    let value = Literal::i128_unsuffixed(value);
                    quote!(::core::option::Option::Some(Number::Int(#value)))
                }
                Some(Number::Float(value)) => {
                    let value = float(value);
                    quote!(::core::option::Option::Some(Number::Float(#value)))
                }
            };
            quote!(text(#text, #quoted, #number))
        }
    }
}

fn float(value: f64) -> TokenStream {
    match value.is_finite() {
        // `Literal` takes no negative ones from every caller.
        true if value.is_sign_positive() => {
            let value = Literal::f64_unsuffixed(value);
            quote!(#value)
        }
        _ => {
            let bits = value.to_bits();
            quote!(f64::from_bits(#bits))
        }
    }
}

/// What the reader says about a text, with the lines that it is about.
fn show(error: &Error, name: &str, text: &str) -> String {
    let mut shown = Text::<8192>::new();
    shown.push(&error.message);
    let mut places = vec![Place::new(error.span, &error.label)];
    places.extend(error.labels.iter().map(|(span, label)| Place::new(*span, label)));
    let margin = shown.snippet(name, text, &places);
    shown.remark(margin, "help", error.help.as_deref().unwrap_or_default());
    shown.remark(margin, "note", &format!("config error {}", error.code));
    shown.as_str().to_owned()
}

//! From the files of one recipe to those of another.

use std::collections::BTreeSet;
use std::ops::Range;

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::{Attribute, Item, ItemFn, Meta};

use super::name::Name;
use crate::Result;

/// The recipe's source: the annotated function and the types named after it get the new
/// name, the command lines in comments too, and `tiny.yaml` is the only config.
///
/// # Errors
/// A source that does not parse or has no `#[recipe] fn <from>`; a new name that the source
/// uses for something else.
pub(super) fn recipe(source: &str, from: &Name, to: &Name) -> Result<String> {
    let tokens: TokenStream = source.parse().map_err(|e| located(&syn::Error::from(e)))?;
    let file: syn::File = syn::parse2(tokens.clone()).map_err(|e| located(&e))?;
    let Some((function, attribute)) = annotated(&file) else {
        return Err("no function here has #[recipe]".into());
    };
    if function.sig.ident != from.snake {
        return Err(format!("#[recipe] is on `{}`, and not on `{}`", function.sig.ident, from.snake).into());
    }

    let renamed = types(&file, function, from);
    let new_name = |old: &String| old.replacen(&from.camel, &to.camel, 1);
    let used = identifiers(tokens);
    if let Some(taken) = renamed.iter().map(new_name).chain([to.snake.clone()]).find(|n| used.contains(n)) {
        return Err(format!("`{taken}` is used here for something else; choose another name").into());
    }

    let mut text = source.to_owned();
    let mut edits = vec![(function.sig.ident.span(), to.snake.clone())];
    edits.extend(configs(attribute).map(|span| (span, format!("[\"../configs/{}/tiny.yaml\"]", to.snake))));
    apply(&mut text, edits);
    for old in &renamed {
        text = replace_word(&text, old, &new_name(old));
    }
    Ok(commands(&text, from, to))
}

/// The config: another output directory, and the command lines in comments.
pub(super) fn config(yaml: &str, from: &Name, to: &Name) -> String {
    let rename = |line: &str| -> Option<String> {
        let rest = line.strip_prefix("output_dir:")?;
        let (value, comment) = rest.split_at(rest.find(" #").unwrap_or(rest.trim_end().len()));
        // `out/lora_tiny` is named after the recipe as much as `out/lora`.
        let renamed = value.split(['/', '_', '-', '.', '"', '\'']).any(|part| part.trim() == from.snake);
        let value = if renamed { value.replacen(&from.snake, &to.snake, 1) } else { format!(" out/{}", to.snake) };
        Some(format!("output_dir:{value}{comment}"))
    };
    let lines = yaml.split_inclusive('\n').map(|line| rename(line).unwrap_or_else(|| line.to_owned()));
    commands(&lines.collect::<String>(), from, to)
}

/// The manifest of the recipes, with an entry for the test.
///
/// # Errors
/// A test of that name is there already.
pub(super) fn manifest(toml: &str, to: &Name) -> Result<String> {
    let entry = format!("[[test]]\nname = \"{0}\"\npath = \"../tests/{0}.rs\"\n", to.snake);
    let name = format!("name = \"{}\"", to.snake);
    if toml.lines().any(|line| line.trim() == name) {
        return Err(format!("an entry has the name `{}` already", to.snake).into());
    }
    let lines: Vec<&str> = toml.split_inclusive('\n').collect();
    let is_header = |line: &&str| line.starts_with('[');
    // After the last test, before the lints, else at the end.
    let at = match lines.iter().rposition(|line| line.trim_end() == "[[test]]") {
        Some(last) => lines[last + 1..].iter().position(is_header).map(|n| last + 1 + n),
        None => lines.iter().position(|line| line.trim_end() == "[lints]"),
    };
    let (before, after) = lines.split_at(at.unwrap_or(lines.len()));
    let before = before.concat();
    let after = after.concat();
    let gap = if after.is_empty() { "" } else { "\n" };
    Ok(format!("{}\n\n{entry}{gap}{after}", before.trim_end()))
}

/// The list of what `tune` brings along, with the recipe and its config in their place.
///
/// # Errors
/// There is no such list.
pub(super) fn shipped(source: &str, to: &Name) -> Result<String> {
    let mut lines: Vec<&str> = source.split_inclusive('\n').collect();
    let begin =
        lines.iter().position(|line| line.trim_end().ends_with("= shipped! {")).ok_or("has no list of recipes")?;
    let entry = format!("    {}: tiny;\n", to.snake);
    let after = |line: &&str| line.trim_end() == "};" || **line > *entry;
    let at = lines[begin + 1..].iter().position(after).ok_or("the list of recipes has no end")?;
    lines.insert(begin + 1 + at, &entry);
    Ok(lines.concat())
}

/// A test that runs the recipe's binary on its config, shortened by those of torchtune's
/// keys that the recipe has.
pub(super) fn test(source: &str, to: &Name) -> String {
    let name = &to.snake;
    let used = source.parse().map(identifiers).unwrap_or_default();
    // Of its own, or in the group of keys that it flattens.
    let has = |key: &str, group: &str| used.contains(key) || used.contains(group);
    let short: String = [("epochs", "1"), ("max_steps_per_epoch", "2")]
        .iter()
        .filter(|(key, _)| has(key, "StepKeys"))
        .map(|(key, value)| format!(", \"{key}={value}\""))
        .collect();
    let (setup, argument) = if has("output_dir", "RunKeys") {
        (
            format!(
                "    let output_dir = Path::new(env!(\"CARGO_TARGET_TMPDIR\")).join(\"{name}\");\n    \
                 let _ = std::fs::remove_dir_all(&output_dir);\n"
            ),
            "\n        .arg(format!(\"output_dir={}\", output_dir.display()))",
        )
    } else {
        (String::new(), "")
    };
    let imports = if setup.is_empty() { "" } else { "use std::path::Path;\n" };
    format!(
        r#"//! `{name}` runs on its shipped config.

{imports}use std::process::Command;

#[test]
fn runs_on_the_tiny_config() {{
{setup}    let output = Command::new(env!("CARGO_BIN_EXE_{name}"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["--config", "configs/{name}/tiny.yaml"{short}]){argument}
        .output()
        .unwrap();
    assert!(output.status.success(), "{{}}", String::from_utf8_lossy(&output.stderr));
}}
"#
    )
}

/// The function with `#[recipe]`, and that attribute.
fn annotated(file: &syn::File) -> Option<(&ItemFn, &Attribute)> {
    file.items.iter().find_map(|item| {
        let Item::Fn(function) = item else { return None };
        let is_recipe = |a: &&Attribute| a.path().segments.last().is_some_and(|s| s.ident == "recipe");
        Some((function, function.attrs.iter().find(is_recipe)?))
    })
}

/// Where the list of configs in `#[recipe(configs = [...])]` is.
fn configs(attribute: &Attribute) -> Option<Span> {
    let Meta::List(list) = &attribute.meta else { return None };
    let mut tokens = list.tokens.clone().into_iter();
    tokens.find(|t| matches!(t, TokenTree::Ident(i) if i == "configs"))?;
    match tokens.nth(1) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => Some(group.span()),
        _ => None,
    }
}

/// The types that bear the recipe's name: those defined here, and the config that the
/// macro makes of the function's parameters.
fn types(file: &syn::File, function: &ItemFn, from: &Name) -> BTreeSet<String> {
    let defined = file.items.iter().filter_map(|item| match item {
        Item::Struct(i) => Some(i.ident.to_string()),
        Item::Enum(i) => Some(i.ident.to_string()),
        Item::Trait(i) => Some(i.ident.to_string()),
        Item::Type(i) => Some(i.ident.to_string()),
        _ => None,
    });
    let named_after = |name: &String| {
        let rest = name.strip_prefix(&from.camel);
        rest.is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let mut names: BTreeSet<String> = defined.filter(named_after).collect();
    let inputs = &function.sig.inputs;
    let plain = |input: &syn::FnArg| matches!(input, syn::FnArg::Typed(t) if t.attrs.is_empty());
    let struct_form = inputs.len() == 1 && inputs.iter().all(plain);
    if !struct_form {
        names.insert(format!("{}Config", from.camel));
    }
    names
}

/// Every identifier in the source.
fn identifiers(tokens: TokenStream) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut streams = vec![tokens];
    while let Some(stream) = streams.pop() {
        for token in stream {
            match token {
                TokenTree::Ident(ident) => drop(found.insert(ident.to_string())),
                TokenTree::Group(group) => streams.push(group.stream()),
                _ => {}
            }
        }
    }
    found
}

fn apply(text: &mut String, edits: Vec<(Span, String)>) {
    let mut edits: Vec<(Range<usize>, String)> = edits.into_iter().map(|(s, t)| (s.byte_range(), t)).collect();
    // From the end, so that the ranges before stay right.
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    for (range, replacement) in edits {
        text.replace_range(range, &replacement);
    }
}

/// The schema or reference of its config: the same keys, under another title where there is one.
pub(super) fn schema(json: &str, from: &Name, to: &Name) -> String {
    json.replacen(&format!("\"title\": \"{}\"", from.snake), &format!("\"title\": \"{}\"", to.snake), 1)
}

/// Command lines that run the recipe on its config.
fn commands(text: &str, from: &Name, to: &Name) -> String {
    let text = replace_word(text, &format!("--bin {}", from.snake), &format!("--bin {}", to.snake));
    let config = |name: &Name| format!("configs/{}/tiny.yaml", name.snake);
    replace_word(&text, &config(from), &config(to))
}

/// Replaces `word` where no letter, digit or `_` touches it.
fn replace_word(text: &str, word: &str, with: &str) -> String {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        // What precedes may have been consumed already.
        let touched =
            before.chars().next_back().or(result.chars().next_back()).is_some_and(joins) || after.starts_with(joins);
        result.push_str(before);
        result.push_str(if touched { word } else { with });
        rest = after;
    }
    result + rest
}

fn located(error: &syn::Error) -> String {
    let start = error.span().start();
    format!("line {}, column {}: {error}", start.line, start.column + 1)
}

//! The keys of a schema for `--help`.

use std::fmt::Write;

use tune_yaml::Text;

use crate::schema::{Key, Schema, Struct, Variant};
use crate::words;

impl Key {
    /// Type, default and bounds in a few words: `integer = 2, in 1..`.
    pub(crate) fn describe(&self) -> String {
        let mut text = Text::<1024>::new();
        words::key(self, &mut text);
        text.as_str().to_owned()
    }
}

/// The keys of `fields`, one after the other, with what is in them.
pub(crate) fn keys(fields: &Struct, indent: usize, out: &mut String) {
    for key in fields.all_keys() {
        let _ = writeln!(out, "{:indent$}{}: {}", "", key.name, key.describe());
        if !key.aliases.is_empty() {
            let names: Vec<_> = key.aliases.iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(out, "{:indent$}    also {}", "", names.join(" or "));
        }
        doc(key.doc, indent + 4, out);
        inner(&key.schema, indent + 4, out);
    }
    if !fields.ignored.is_empty() {
        let names: Vec<_> = fields.ignored.iter().map(|ignored| ignored.name).collect();
        let _ = writeln!(out, "{:indent$}(accepted without effect: {})", "", names.join(", "));
    }
}

/// What can be written within a value.
fn inner(schema: &Schema, indent: usize, out: &mut String) {
    match schema {
        Schema::Optional(inside) | Schema::List(inside) | Schema::Array(inside, _) | Schema::Map(inside) => {
            inner(inside, indent, out);
        }
        Schema::Struct(fields) => keys(fields, indent, out),
        Schema::Choice(choices) if choices.choices.iter().any(|choice| !choice.doc.is_empty()) => {
            for choice in choices.choices {
                let _ = writeln!(out, "{:indent$}- {}: {}", "", choice.name, summary(choice.doc));
            }
        }
        Schema::Component(component) => {
            for variant in component.variants {
                let _ = writeln!(out, "{:indent$}- {}: {}", "", variant.name, summary(variant_doc(variant)));
                if let Some(fields) = variant.fields() {
                    keys(fields, indent + 4, out);
                }
            }
        }
        _ => {}
    }
}

/// What a component is: the variant says it, or else its struct.
fn variant_doc(variant: &Variant) -> &'static str {
    match variant.fields() {
        Some(fields) if variant.doc.is_empty() => fields.doc,
        _ => variant.doc,
    }
}

fn doc(text: &str, indent: usize, out: &mut String) {
    for line in text.lines() {
        let _ = writeln!(out, "{}", format!("{:indent$}{line}", "").trim_end());
    }
}

/// The first sentence or paragraph, on one line.
fn summary(text: &str) -> String {
    let paragraph: Vec<_> = text.lines().take_while(|line| !line.trim().is_empty()).collect();
    paragraph.join(" ")
}

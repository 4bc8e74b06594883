//! The keys of a schema for `--help`.

use std::fmt::Write;

use crate::schema::{Const, Key, Schema, Struct, Variant};
use crate::words::{or, quoted};

impl Key {
    /// Type, default and bounds in a few words: `integer = 2, in 1..`.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.schema.word(self.one_of);
        match self.when_absent() {
            None => text += ", required",
            Some(Const::OfType) => {
                if let Some(default) = self.schema.own_default() {
                    let _ = write!(text, " = {default}");
                }
            }
            Some(default) => {
                let _ = write!(text, " = {default}");
            }
        }
        if let Some(range) = &self.range {
            let _ = write!(text, ", in {range}");
        }
        text
    }
}

impl Schema {
    /// The type in a word or two; `one_of` are the values that a single one may have.
    fn word(&self, one_of: &[Const]) -> String {
        match self {
            Schema::Optional(inner) => format!("{} or null", inner.word(one_of)),
            Schema::List(inner) => format!("list of {}", inner.word(one_of)),
            Schema::Array(inner, length) => format!("list of {length}: {}", inner.word(one_of)),
            Schema::Map(inner) => format!("map of {}", inner.word(one_of)),
            _ if !one_of.is_empty() => {
                let values: Vec<_> = one_of.iter().map(Const::to_string).collect();
                values.join(" | ")
            }
            Schema::Choice(choices) => {
                let names: Vec<_> = choices.choices.iter().map(|choice| choice.name).collect();
                names.join(" | ")
            }
            Schema::Bool => "bool".to_owned(),
            Schema::Int { .. } => "integer".to_owned(),
            Schema::Float { .. } => "number".to_owned(),
            Schema::Text => "text".to_owned(),
            Schema::Path => "path".to_owned(),
            Schema::Struct(_) => "keys".to_owned(),
            Schema::Component(_) => "component".to_owned(),
            Schema::Broken => "?".to_owned(),
        }
    }

    fn own_default(&self) -> Option<String> {
        match self {
            Schema::Optional(_) => Some("null".to_owned()),
            Schema::List(_) => Some("[]".to_owned()),
            Schema::Map(_) => Some("{}".to_owned()),
            Schema::Choice(choices) => choices.default.map(|at| choices.choices[at].name.to_owned()),
            Schema::Component(component) => component.default.map(|at| component.variants[at].name.to_owned()),
            _ => None,
        }
    }
}

/// The keys of `fields`, one after the other, with what is in them.
pub(crate) fn keys(fields: &Struct, indent: usize, out: &mut String) {
    for key in fields.all_keys() {
        let _ = writeln!(out, "{:indent$}{}: {}", "", key.name, key.describe());
        if !key.aliases.is_empty() {
            let names: Vec<_> = key.aliases.iter().copied().map(quoted).collect();
            let _ = writeln!(out, "{:indent$}    also {}", "", or(&names));
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

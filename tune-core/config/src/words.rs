//! Values and types in words, for messages. All of it `const`: the compiler
//! says it in the same words as a program that runs.

use tune_yaml::{Kind, Text};

use crate::schema::{Const, Key, Range, Schema};
use crate::tree::{Tree, Written};

/// What stands before the word `at` of `count`: a, b `last` c.
pub(crate) const fn between(at: usize, count: usize, last: &'static str) -> &'static str {
    match at {
        0 => "",
        _ if at + 1 == count => last,
        _ => ", ",
    }
}

/// Adds what is to be written for a type, with its article.
pub(crate) const fn noun<const N: usize>(schema: &Schema, out: &mut Text<N>) {
    match schema {
        Schema::Bool => out.push("`true` or `false`"),
        Schema::Int { min: 0, .. } => out.push("a whole number from 0"),
        Schema::Int { .. } => out.push("a whole number"),
        Schema::Float { .. } => out.push("a number"),
        Schema::Text => out.push("text"),
        Schema::Path => out.push("a path"),
        Schema::Choice(choices) => {
            let mut at = 0;
            while at < choices.choices.len() {
                out.push(between(at, choices.choices.len(), " or "));
                out.name(choices.choices[at].name);
                at += 1;
            }
        }
        Schema::Optional(inner) => {
            noun(inner, out);
            out.push(" or null");
        }
        Schema::List(_) => out.push("a list"),
        Schema::Array(_, length) => {
            out.push("a list of ");
            out.int(*length as i128);
        }
        Schema::Map(_) | Schema::Struct(_) => out.push("a mapping"),
        Schema::Component(component) => {
            out.push("a component: ");
            let mut at = 0;
            while at < component.variants.len() {
                out.push(between(at, component.variants.len(), " or "));
                out.name(component.variants[at].name);
                at += 1;
            }
        }
        Schema::Broken => out.push("something"),
    }
}

/// Adds what was written at `at`.
pub(crate) const fn found<const N: usize>(tree: Tree<'_>, at: usize, out: &mut Text<N>) {
    match &tree.item(at).written {
        Written::List => {
            out.push("a list of ");
            out.int(tree.count(at) as i128);
        }
        Written::Map => out.push("a mapping"),
        Written::Reported => out.push("a mistake"),
        Written::Scalar(scalar) => match scalar.kind {
            Kind::Null if scalar.text.is_empty() => out.push("nothing"),
            Kind::Null => out.push("null"),
            Kind::Bool(value) => out.push(if value { "`true`" } else { "`false`" }),
            Kind::Int(_) | Kind::Float(_) => out.push_all(&["the number `", scalar.text, "`"]),
            Kind::Text => {
                out.push("the text \"");
                out.short(scalar.text);
                out.push("\"");
            }
        },
    }
}

/// Adds a constant as it would be written.
pub(crate) const fn constant<const N: usize>(value: &Const, out: &mut Text<N>) {
    match value {
        Const::Null => out.push("null"),
        Const::Bool(value) => out.push(if *value { "true" } else { "false" }),
        Const::Int(value) => out.int(*value),
        Const::Float(value) => out.float(*value),
        Const::Text(value) => crate::plain::text(value, out),
        Const::List(items) => {
            out.push("[");
            let mut at = 0;
            while at < items.len() {
                out.push(between(at, items.len(), ", "));
                constant(&items[at], out);
                at += 1;
            }
            out.push("]");
        }
        Const::OfType => out.push("the type's own"),
    }
}

/// Adds the bounds of a number.
pub(crate) const fn range<const N: usize>(range: &Range, out: &mut Text<N>) {
    if let Some(min) = &range.min {
        constant(min, out);
    }
    out.push(if range.inclusive { "..=" } else { ".." });
    if let Some(max) = &range.max {
        constant(max, out);
    }
}

/// Adds type, default and bounds in a few words: `integer = 2, in 1..`.
pub(crate) const fn key<const N: usize>(key: &Key, out: &mut Text<N>) {
    word(&key.schema, key.one_of, out);
    match key.when_absent() {
        None => out.push(", required"),
        Some(Const::OfType) => own_default(&key.schema, out),
        Some(default) => {
            out.push(" = ");
            constant(&default, out);
        }
    }
    if let Some(bounds) = &key.range {
        out.push(", in ");
        range(bounds, out);
    }
}

/// Adds the type in a word or two; `one_of` are the values that a single one may have.
const fn word<const N: usize>(schema: &Schema, one_of: &[Const], out: &mut Text<N>) {
    match schema {
        Schema::Optional(inner) => {
            word(inner, one_of, out);
            out.push(" or null");
        }
        Schema::List(inner) => {
            out.push("list of ");
            word(inner, one_of, out);
        }
        Schema::Array(inner, length) => {
            out.push("list of ");
            out.int(*length as i128);
            out.push(": ");
            word(inner, one_of, out);
        }
        Schema::Map(inner) => {
            out.push("map of ");
            word(inner, one_of, out);
        }
        _ if !one_of.is_empty() => {
            let mut at = 0;
            while at < one_of.len() {
                out.push(if at > 0 { " | " } else { "" });
                constant(&one_of[at], out);
                at += 1;
            }
        }
        Schema::Choice(choices) => {
            let mut at = 0;
            while at < choices.choices.len() {
                out.push(if at > 0 { " | " } else { "" });
                out.push(choices.choices[at].name);
                at += 1;
            }
        }
        Schema::Bool => out.push("bool"),
        Schema::Int { .. } => out.push("integer"),
        Schema::Float { .. } => out.push("number"),
        Schema::Text => out.push("text"),
        Schema::Path => out.push("path"),
        Schema::Struct(_) => out.push("keys"),
        Schema::Component(_) => out.push("component"),
        Schema::Broken => out.push("?"),
    }
}

const fn own_default<const N: usize>(schema: &Schema, out: &mut Text<N>) {
    match schema {
        Schema::Optional(_) => out.push(" = null"),
        Schema::List(_) => out.push(" = []"),
        Schema::Map(_) => out.push(" = {}"),
        Schema::Choice(choices) => {
            if let Some(default) = choices.default {
                out.push_all(&[" = ", choices.choices[default].name]);
            }
        }
        Schema::Component(component) => {
            if let Some(default) = component.default {
                out.push_all(&[" = ", component.variants[default].name]);
            }
        }
        _ => {}
    }
}

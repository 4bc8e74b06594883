//! The keys of a schema for `--help`, with what a config makes of them.

use std::fmt::Write;

use tune_yaml::Text;

use crate::emit;
use crate::report::Sources;
use crate::schema::{Component, Key, Schema, Struct, Variant};
use crate::value::{Data, Origin, Value};
use crate::words;

/// The keys of `schema`, one after the other, with what is in them. Of a
/// component, the keys of what `value` chooses; of values that are written, where.
pub(crate) fn keys(schema: &Schema, value: Option<&Value>, sources: &Sources) -> String {
    let mut help = Help { sources, out: String::new() };
    help.inner(schema, value, "", 2);
    help.out
}

struct Help<'a> {
    sources: &'a Sources,
    out: String,
}

impl Help<'_> {
    fn line(&mut self, indent: usize, text: &str) {
        let _ = writeln!(self.out, "{}", format!("{:indent$}{text}", "").trim_end());
    }

    fn fields(&mut self, fields: &Struct, value: Option<&Value>, path: &str, indent: usize) {
        for key in fields.all_keys() {
            let value = value.and_then(|value| field(value, key.name));
            let may_change = if key.may_change { "; may change on resume" } else { "" };
            self.line(indent, &format!("{}: {}{may_change}", key.name, describe(key)));
            let within = indent + 4;
            if !key.aliases.is_empty() {
                let names: Vec<_> = key.aliases.iter().map(|name| format!("`{name}`")).collect();
                self.line(within, &format!("also {}", names.join(" or ")));
            }
            key.doc.lines().for_each(|line| self.line(within, line));
            if let Some(value) = value {
                self.set(value, within);
            }
            let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            self.inner(&key.schema, value, &path, within);
        }
        let ignored = fields.all_ignored();
        if !ignored.is_empty() {
            let names: Vec<_> = ignored.iter().map(|ignored| ignored.name).collect();
            self.line(indent, &format!("(accepted without effect: {})", names.join(", ")));
        }
    }

    /// What a value is, where somebody has written it; defaults are at the key.
    fn set(&mut self, value: &Value, indent: usize) {
        let Origin::Written(_) = value.origin else { return };
        let shown = match &value.data {
            Data::Component(name, _) => name.to_string(),
            _ if emit::is_inline(value) => emit::inline(value),
            _ => return,
        };
        let origin = self.sources.origin(value.origin);
        self.line(indent, &format!("=> {shown}  ({origin})"));
    }

    /// What can be written within a value.
    fn inner(&mut self, schema: &Schema, value: Option<&Value>, path: &str, indent: usize) {
        match schema {
            Schema::Optional(inside) => self.inner(inside, value, path, indent),
            Schema::List(inside) | Schema::Array(inside, _) => match value.map(|value| &value.data) {
                Some(Data::List(items)) if inside.has_keys() && !items.is_empty() => {
                    for (index, item) in items.iter().enumerate() {
                        let path = format!("{path}.{index}");
                        self.line(indent, &format!("{path}:"));
                        self.set(item, indent + 4);
                        self.inner(inside, Some(item), &path, indent + 4);
                    }
                }
                _ => self.inner(inside, None, &format!("{path}.0"), indent),
            },
            Schema::Map(inside) => self.inner(inside, None, &format!("{path}.NAME"), indent),
            Schema::Struct(fields) => self.fields(fields, value, path, indent),
            Schema::Choice(choices) if choices.choices.iter().any(|choice| !choice.doc.is_empty()) => {
                for choice in choices.choices {
                    self.line(indent, &format!("- {}: {}", choice.name, summary(choice.doc)));
                }
            }
            Schema::Component(component) => self.component(component, value, path, indent),
            _ => {}
        }
    }

    fn component(&mut self, component: &Component, value: Option<&Value>, path: &str, indent: usize) {
        let chosen = match value.map(|value| &value.data) {
            Some(Data::Component(name, fields)) => Some((name.as_ref(), &**fields)),
            _ => None,
        };
        let mut others = false;
        for variant in component.variants {
            let is_chosen = chosen.is_some_and(|(name, _)| name == variant.name);
            let mark = if is_chosen { " (chosen)" } else { "" };
            self.line(indent, &format!("- {}{mark}: {}", variant.name, summary(variant_doc(variant))));
            let Some(fields) = variant.fields() else { continue };
            match chosen {
                Some((_, value)) if is_chosen => self.fields(fields, Some(value), path, indent + 4),
                Some(_) => others = true,
                None => self.fields(fields, None, path, indent + 4),
            }
        }
        if others {
            self.line(indent, &format!("(for the keys of another one: {path}=NAME --help)"));
        }
    }
}

/// Type, default and bounds in a few words: `integer = 2, in 1..`.
fn describe(key: &Key) -> String {
    let mut text = Text::<1024>::new();
    words::key(key, &mut text);
    text.as_str().to_owned()
}

/// A field, those of flattened structs included.
fn field<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    value.fields().ok()?.iter().find_map(|here| match here.flat {
        true => field(&here.value, name),
        false => (here.name == name).then_some(&here.value),
    })
}

impl Schema {
    /// Whether there are keys to set in it.
    fn has_keys(&self) -> bool {
        match self {
            Schema::Struct(_) | Schema::Component(_) => true,
            Schema::Optional(inner) => inner.has_keys(),
            _ => false,
        }
    }
}

/// What a component is: the variant says it, or else its struct.
pub(crate) fn variant_doc(variant: &Variant) -> &'static str {
    match variant.fields() {
        Some(fields) if variant.doc.is_empty() => fields.doc,
        _ => variant.doc,
    }
}

/// The first sentence or paragraph, on one line.
pub(crate) fn summary(text: &str) -> String {
    let paragraph: Vec<_> = text.lines().take_while(|line| !line.trim().is_empty()).collect();
    paragraph.join(" ")
}

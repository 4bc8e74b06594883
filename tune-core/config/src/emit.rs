//! A checked value as YAML that reads back as the same value.
//!
//! Written here and not by a serializer, because what must be quoted is a
//! matter of our own reader (`None`, `${}`), and because the origins of the
//! values go into the comments.

use std::fmt::Write;

use tune_yaml::{Kind, Node, Value as Tree};

use crate::plain::is_plain;
use crate::report::Sources;
use crate::schema::COMPONENT;
use crate::value::{Data, Field, Value};

/// `value` as a document; with `origins`, each value's origin as a comment.
pub(crate) fn yaml(value: &Value, origins: Option<&Sources>) -> String {
    let mut out = String::new();
    let emitter = Emitter { origins };
    match &value.data {
        Data::Fields(_) | Data::Component(..) => emitter.entries(value, 0, &mut out),
        Data::List(items) if !items.is_empty() => emitter.items(items, 0, &mut out),
        _ => {
            out += &inline(value);
            out.push('\n');
        }
    }
    if out.is_empty() {
        out += "{}\n";
    }
    out
}

struct Emitter<'a> {
    origins: Option<&'a Sources>,
}

impl Emitter<'_> {
    /// The entries of a mapping or component, each on its line.
    fn entries(&self, value: &Value, indent: usize, out: &mut String) {
        match &value.data {
            Data::Component(name, fields) => {
                let _ = write!(out, "{:indent$}{COMPONENT}: {}", "", text(name));
                self.comment(value, out);
                self.entries(fields, indent, out);
            }
            Data::Fields(fields) => fields.iter().for_each(|field| self.field(field, indent, out)),
            _ => {}
        }
    }

    fn field(&self, field: &Field, indent: usize, out: &mut String) {
        if field.flat {
            return self.entries(&field.value, indent, out);
        }
        let _ = write!(out, "{:indent$}{}:", "", key(&field.name));
        if is_inline(&field.value) {
            let _ = write!(out, " {}", inline(&field.value));
            return self.comment(&field.value, out);
        }
        out.push('\n');
        match &field.value.data {
            Data::List(items) => self.items(items, indent + 2, out),
            _ => self.entries(&field.value, indent + 2, out),
        }
    }

    fn items(&self, items: &[Value], indent: usize, out: &mut String) {
        for item in items {
            let start = out.len();
            match &item.data {
                _ if is_inline(item) => {
                    let _ = write!(out, "{:indent$}- {}", "", inline(item));
                    self.comment(item, out);
                    continue;
                }
                Data::List(inner) => self.items(inner, indent + 2, out),
                _ => self.entries(item, indent + 2, out),
            }
            // The first line of the item carries its dash.
            out.replace_range(start + indent..start + indent + 1, "-");
        }
    }

    fn comment(&self, value: &Value, out: &mut String) {
        if let Some(sources) = self.origins {
            let _ = write!(out, "  # {}", sources.origin(value.origin));
        }
        out.push('\n');
    }
}

/// Whether a value stands on the line of its key.
pub(crate) fn is_inline(value: &Value) -> bool {
    match &value.data {
        Data::List(items) => {
            let scalar = |item: &Value| !matches!(item.data, Data::List(_) | Data::Fields(_) | Data::Component(..));
            items.iter().all(scalar) && items.iter().map(|item| inline(item).len() + 2).sum::<usize>() <= 80
        }
        Data::Fields(fields) => fields.iter().all(|field| field.flat && is_inline(&field.value)),
        Data::Component(..) => false,
        _ => true,
    }
}

pub(crate) fn inline(value: &Value) -> String {
    match &value.data {
        Data::Null => "null".to_owned(),
        Data::Bool(value) => value.to_string(),
        Data::Int(value) => value.to_string(),
        Data::Float(value) => float(*value),
        Data::Text(value) => text(value),
        Data::List(items) => {
            let items: Vec<_> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Data::Fields(_) | Data::Component(..) => "{}".to_owned(),
    }
}

/// What was read, as YAML on one line.
pub(crate) fn inline_node(node: &Node) -> String {
    match &node.value {
        Tree::Scalar(scalar) => match scalar.kind() {
            Kind::Null => "null".to_owned(),
            Kind::Bool(value) => value.to_string(),
            Kind::Int(_) | Kind::Float(_) => scalar.text.clone(),
            Kind::Text => inline(&Value::from_text(&scalar.text)),
        },
        Tree::List(items) => format!("[{}]", items.iter().map(inline_node).collect::<Vec<_>>().join(", ")),
        Tree::Map(entries) => {
            let entries: Vec<_> =
                entries.iter().map(|entry| format!("{}: {}", key(&entry.key), inline_node(&entry.value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Tree::Reported => "null".to_owned(),
    }
}

/// The shortest number that reads back as `value`, in a form that YAML 1.1
/// readers take for a number too.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => {
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
    }
}

/// A key; the reader looks for no references in it.
pub(crate) fn key(name: &str) -> String {
    if is_plain(name) { name.to_owned() } else { quoted(name) }
}

/// `text` without quotes where it cannot be taken for anything else.
fn text(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { quoted(&tune_yaml::escape_references(text)) }
}

/// Text whose `${}` are references.
pub(crate) fn reference_or_text(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            '\n' => quoted += "\\n",
            '\t' => quoted += "\\t",
            '\r' => quoted += "\\r",
            // What YAML does not allow as it is, or takes for a line break.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

//! How a value of another type would be written right.

use tune_yaml::{Kind, Text};

use crate::schema::Schema;
use crate::tree::{Tree, Written};

/// Adds how to write what was probably meant by a value of another type.
pub(super) const fn instead<const N: usize>(schema: &Schema, tree: Tree<'_>, at: usize, out: &mut Text<N>) {
    let Some(scalar) = tree.scalar(at) else {
        // A single value in brackets.
        if !matches!(schema, Schema::Array(..) | Schema::List(_) | Schema::Map(_) | Schema::Struct(_))
            && matches!(tree.item(at).written, Written::List)
            && tree.count(at) == 1
            && let Some(only) = tree.text(at + 1)
        {
            out.push("write `");
            out.short(only);
            out.push("`");
        }
        return;
    };
    match (schema, scalar.kind) {
        (Schema::List(_), Kind::Text | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_)) => {
            out.push("write `[");
            out.short(scalar.text);
            out.push("]`");
        }
        (Schema::Bool, Kind::Text) => {
            let text = scalar.text;
            if text.eq_ignore_ascii_case("yes") || text.eq_ignore_ascii_case("on") || text.eq_ignore_ascii_case("true")
            {
                out.push("write `true`");
            }
            if text.eq_ignore_ascii_case("no") || text.eq_ignore_ascii_case("off") || text.eq_ignore_ascii_case("false")
            {
                out.push("write `false`");
            }
        }
        (Schema::Bool, Kind::Int(0)) => out.push("write `false`"),
        (Schema::Bool, Kind::Int(1)) => out.push("write `true`"),
        (Schema::Path, Kind::Null) if crate::schema::same(scalar.text, "~") => {
            out.push("`~` alone is nothing to YAML: for the home folder write `~/`");
        }
        (Schema::Text | Schema::Path, Kind::Bool(_) | Kind::Int(_) | Kind::Float(_)) => {
            out.push_all(&["for text, write it in quotes: \"", scalar.text, "\""]);
        }
        (Schema::Int { .. }, Kind::Float(float)) if float.abs() < 1e15 && (float as i64) as f64 == float => {
            out.push("write `");
            out.int(float as i128);
            out.push("`");
        }
        (Schema::Int { .. } | Schema::Float { .. }, Kind::Text) if scalar.quoted && scalar.number.is_some() => {
            out.push("write it without quotes");
        }
        (Schema::Int { .. } | Schema::Float { .. }, Kind::Text) => {
            if let Some(number) = before_comma(scalar.text) {
                out.push_all(&["write `", number, "`"]);
            }
        }
        _ => {}
    }
}

/// The number of `3,`: a comma that is left over from another format.
const fn before_comma(text: &str) -> Option<&str> {
    let [number @ .., b','] = text.as_bytes() else {
        return None;
    };
    let (mut at, mut digits) = (0, 0);
    while at < number.len() {
        if !matches!(number[at], b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E' | b'_') {
            return None;
        }
        digits += number[at].is_ascii_digit() as usize;
        at += 1;
    }
    if digits > 0 { Some(text.split_at(number.len()).0) } else { None }
}

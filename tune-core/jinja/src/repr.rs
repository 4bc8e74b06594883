//! `str()` and `repr()`.

use std::fmt::Write;

use crate::budget;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::object::Object;
use crate::unicode;
use crate::value::{Str, Value};

/// The longest integer that Python writes.
const MAX_DIGITS: usize = 4300;

/// `str(value)`.
pub(crate) fn to_str(value: &Value) -> Result<Str> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        _ => {
            let mut out = String::new();
            write_str(&mut out, value)?;
            Ok(out.into())
        }
    }
}

/// Writes `str(value)`.
pub(crate) fn write_str(out: &mut String, value: &Value) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => {
            budget::reserve(text.len())?;
            out.push_str(text);
            Ok(())
        }
        _ => write(out, value, 0),
    }
}

/// `repr(value)`.
pub(crate) fn repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write(&mut out, value, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, depth: usize) -> Result<()> {
    budget::check_depth(depth)?;
    budget::spend(1)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Big(_) => out.push_str(&integer(value)?),
        Value::Float(x) => out.push_str(&float(*x)),
        Value::Str(text) => {
            // What was written so far counts, too.
            budget::reserve(out.len() + text.len())?;
            if text.safe {
                out.push_str("Markup(");
                quoted(out, text);
                out.push(')');
            } else {
                quoted(out, text);
            }
        }
        Value::List(items) => sequence(out, items, ('[', ']'), depth)?,
        Value::Tuple(items) if items.len() == 1 => {
            out.push('(');
            write(out, &items[0], depth + 1)?;
            out.push_str(",)");
        }
        Value::Tuple(items) => sequence(out, items, ('(', ')'), depth)?,
        Value::Dict(dict) => entries(out, dict.entries.iter(), depth)?,
        Value::Object(object) => write_object(out, object, value, depth)?,
    }
    Ok(())
}

fn sequence(out: &mut String, items: &[Value], (open, close): (char, char), depth: usize) -> Result<()> {
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write(out, item, depth + 1)?;
    }
    out.push(close);
    Ok(())
}

fn entries<'a>(out: &mut String, entries: impl Iterator<Item = (&'a Key, &'a Value)>, depth: usize) -> Result<()> {
    out.push('{');
    for (i, (key, value)) in entries.enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write(out, &key.0, depth + 1)?;
        out.push_str(": ");
        write(out, value, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

fn write_object(out: &mut String, object: &Object, value: &Value, depth: usize) -> Result<()> {
    match object {
        Object::Namespace(namespace) => {
            out.push_str("<Namespace ");
            entries(out, namespace.0.borrow().iter(), depth)?;
            out.push('>');
        }
        Object::Loop(state) => {
            let _ = write!(out, "<LoopContext {}/{}>", state.index.get() + 1, state.items.len());
        }
        Object::Macro { definition, .. } => match &definition.name {
            Some((_, name)) => {
                out.push_str("<Macro ");
                quoted(out, name);
                out.push('>');
            }
            None => out.push_str("<Macro anonymous>"),
        },
        Object::Range { start, stop, step, .. } => {
            let _ = write!(out, "range({start}, {stop}");
            if *step != 1 {
                let _ = write!(out, ", {step}");
            }
            out.push(')');
        }
        Object::View(..) => {
            out.push_str(value.type_name());
            out.push('(');
            sequence(out, &value.items()?, ('[', ']'), depth)?;
            out.push(')');
        }
        Object::Blocks => out.push_str("<TemplateReference None>"),
        _ => {
            return Err(Error::runtime(format!(
                "a {} is printed with its address in memory, which is never the same",
                value.type_name()
            )));
        }
    }
    Ok(())
}

/// An integer's digits.
pub(crate) fn integer(value: &Value) -> Result<String> {
    match value {
        Value::Big(i) => {
            // More than that cannot fit.
            if i.bits() > 14_300 {
                return Err(too_many_digits());
            }
            let digits = i.to_string();
            if digits.trim_start_matches('-').len() > MAX_DIGITS {
                return Err(too_many_digits());
            }
            Ok(digits)
        }
        Value::Int(i) => Ok(i.to_string()),
        Value::Bool(b) => Ok(u8::from(*b).to_string()),
        _ => Err(Error::runtime(format!("{} is not an integer", value.type_name()))),
    }
}

fn too_many_digits() -> Error {
    Error::runtime(format!("Exceeds the limit ({MAX_DIGITS} digits) for integer string conversion"))
}

/// Quotes text as Python does: single quotes unless they need an escape that double ones do not.
pub(crate) fn quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let code = c as u32;
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if unicode::is_printable(c) => out.push(c),
            _ => {
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `repr(x)` of a float.
pub(crate) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".to_owned() } else { "-inf".to_owned() };
    }
    // Rust and Python agree on the shortest digits, and differ in when an exponent is used.
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (x, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
        ] {
            assert_eq!(float(x), text);
        }
    }
}

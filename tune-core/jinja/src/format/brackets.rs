//! `text.format(…)`.

use super::formatted;
use super::parts::ascii;
use crate::arguments::Args;
use crate::budget;
use crate::error::{Error, Result};
use crate::interpret::Interpreter;
use crate::repr::{repr, to_str};
use crate::value::{Str, Value};

/// `format.format(…)`.
pub(crate) fn brackets(run: &mut Interpreter<'_>, format: &str, args: &Args) -> Result<Value> {
    let mut next = Some(0);
    render(run, format, args, &mut next, 2).map(Value::from)
}

fn render(
    run: &mut Interpreter<'_>,
    format: &str,
    args: &Args,
    next: &mut Option<usize>,
    depth: i32,
) -> Result<String> {
    if depth < 0 {
        return Err(Error::runtime("Max string recursion exceeded"));
    }
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let (bracket, after) = rest[at..].split_at(1);
        if after.starts_with(bracket) {
            out.push_str(bracket);
            rest = &after[1..];
            continue;
        }
        if bracket == "}" {
            return Err(Error::runtime("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = after.char_indices().find(|&(_, c)| {
            open += i32::from(c == '{') - i32::from(c == '}');
            open == 0
        });
        let Some((end, _)) = end else {
            return Err(Error::runtime("expected '}' before end of string"));
        };
        let field = &after[..end];
        rest = &after[end + 1..];
        // A colon or exclamation mark within `[…]` belongs to the name.
        let mut within = false;
        let name_end = field
            .char_indices()
            .find(|&(_, c)| {
                within = (within || c == '[') && c != ']';
                !within && (c == ':' || c == '!')
            })
            .map_or(field.len(), |(at, _)| at);
        let (name, tail) = field.split_at(name_end);
        let (conversion, spec) = match tail.strip_prefix('!') {
            Some(tail) => {
                let mut chars = tail.chars();
                let conversion = chars.next();
                let spec = chars.as_str();
                if !spec.is_empty() && !spec.starts_with(':') {
                    return Err(Error::runtime("expected ':' after conversion specifier"));
                }
                (conversion, spec.strip_prefix(':').unwrap_or(""))
            }
            None => (None, tail.strip_prefix(':').unwrap_or("")),
        };
        let value = lookup(run, name, args, next)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::Str(to_str(&value)?),
            Some('r') => Value::from(repr(&value)?),
            Some('a') => Value::from(ascii(&repr(&value)?)),
            Some(c) => return Err(Error::runtime(format!("Unknown conversion specifier {c}"))),
        };
        let spec = render(run, spec, args, next, depth - 1)?;
        let text = formatted(&value, &spec)?;
        budget::reserve(out.len() + text.len())?;
        out.push_str(&text);
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup(run: &mut Interpreter<'_>, name: &str, args: &Args, next: &mut Option<usize>) -> Result<Value> {
    let first_end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut rest) = name.split_at(first_end);
    let mut value = if first.is_empty() || first.bytes().all(|b| b.is_ascii_digit()) {
        let at = if first.is_empty() {
            let at = next.ok_or_else(|| {
                Error::runtime("cannot switch from manual field specification to automatic field numbering")
            })?;
            *next = Some(at + 1);
            at
        } else {
            if next.is_some_and(|n| n > 0) {
                return Err(Error::runtime(
                    "cannot switch from automatic field numbering to manual field specification",
                ));
            }
            *next = None;
            first.parse().unwrap_or(usize::MAX)
        };
        args.positional
            .get(at)
            .cloned()
            .ok_or_else(|| Error::runtime(format!("Replacement index {at} out of range for positional args tuple")))?
    } else {
        let named = args.named.iter().find(|(other, _)| other.as_str() == first);
        named.map(|(_, value)| value.clone()).ok_or_else(|| Error::runtime(format!("'{first}'")))?
    };
    while !rest.is_empty() {
        if let Some(attribute) = rest.strip_prefix('.') {
            let end = attribute.find(['.', '[']).unwrap_or(attribute.len());
            value = run.attribute(&value, &Str::from(&attribute[..end]))?;
            rest = &attribute[end..];
        } else {
            let inner = rest.strip_prefix('[').unwrap_or(rest);
            let end = inner.find(']').ok_or_else(|| Error::runtime("Missing ']' in format string"))?;
            let key = &inner[..end];
            let key = match key.parse::<i64>() {
                Ok(i) if key.bytes().all(|b| b.is_ascii_digit()) => Value::Int(i),
                _ => Value::from(key),
            };
            value = run.item(&value, &key)?;
            rest = &inner[end + 1..];
        }
    }
    Ok(value)
}

//! `json.dumps`, and integers that JSON's own numbers cannot hold.

use std::fmt::Write;

use num_bigint::BigInt;

use crate::arguments::{Args, integer, is_true};
use crate::budget;
use crate::error::{Error, Result};
use crate::key;
use crate::repr::{self, to_str};
use crate::value::Value;

/// In front of the digits of an integer that is text only because `serde_json` would round it. Unicode keeps this
/// code point for a program's own use and for no text at all.
const WHOLE: char = '\u{fdd2}';

/// The integer that a text of [`parse`] stands for.
pub(crate) fn whole_number(text: &str) -> Option<BigInt> {
    text.strip_prefix(WHOLE)?.parse().ok()
}

/// Parses JSON as `serde_json` does, but keeps integers beyond 64 bits whole for templates: they become a text that
/// only templates read as a number.
///
/// # Errors
/// What is no JSON.
pub fn parse(text: &str) -> serde_json::Result<serde_json::Value> {
    match mark_large_integers(text) {
        // Only what is JSON before is JSON after; the mistake is told of the text that was given.
        Some(marked) => serde_json::from_str::<serde::de::IgnoredAny>(text).and_then(|_| serde_json::from_str(&marked)),
        None => serde_json::from_str(text),
    }
}

/// Parses a record as [`parse`] does. Its own columns are no values of templates: integers there are numbers.
///
/// # Errors
/// What is no JSON.
pub fn parse_record(text: &[u8]) -> serde_json::Result<serde_json::Value> {
    let Ok(text) = std::str::from_utf8(text) else {
        return serde_json::from_slice(text);
    };
    let mut record = parse(text)?;
    for column in record.as_object_mut().into_iter().flat_map(|columns| columns.values_mut()) {
        let whole = column.as_str().and_then(whole_number).and_then(|number| num_traits::ToPrimitive::to_f64(&number));
        if let Some(number) = whole {
            *column = number.into();
        }
    }
    Ok(record)
}

/// The text with its large integers in quotes, if there are any.
fn mark_large_integers(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut marked = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += 1 + usize::from(bytes[at] == b'\\');
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let start = at;
                at += 1;
                while at < bytes.len() && matches!(bytes[at], b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') {
                    at += 1;
                }
                let number = &text[start..at];
                let digits = number.strip_prefix('-').unwrap_or(number);
                let is_integer = digits.bytes().all(|b| b.is_ascii_digit());
                if is_integer && digits.len() >= 19 && number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
                {
                    marked.push_str(&text[copied..start]);
                    let _ = write!(marked, "\"{WHOLE}{number}\"");
                    copied = at;
                }
            }
            _ => at += 1,
        }
    }
    (copied > 0).then(|| marked + &text[copied..])
}

/// The filter `tojson`, with the options that `transformers` lets a template pass.
pub(crate) fn tojson(value: &Value, args: Args) -> Result<Value> {
    let [ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent.as_ref().filter(|v| !v.is_none()) {
        None => None,
        Some(Value::Str(text)) => Some(text.as_str().to_owned()),
        Some(width) => {
            let width = usize::try_from(integer(Some(width), 0)?).unwrap_or(0);
            budget::reserve(width)?;
            Some(" ".repeat(width))
        }
    };
    let (item, key) = match separators.filter(|v| !v.is_none()) {
        Some(pair) => {
            let pair = pair.items()?;
            let [item, key] = pair.as_slice() else {
                return Err(Error::runtime("`separators` takes two texts"));
            };
            (to_str(item)?.to_string(), to_str(key)?.to_string())
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let (ascii, sort_keys) = (is_true(ascii.as_ref()), is_true(sort_keys.as_ref()));
    let mut out = String::new();
    Style { ascii, indent, item, key, sort_keys }.write(&mut out, value, 0)?;
    Ok(out.into())
}

struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<()> {
        budget::check_depth(depth)?;
        budget::spend(1)?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(_) | Value::Big(_) => out.push_str(&repr::integer(value)?),
            Value::Float(x) => out.push_str(&float(*x)),
            Value::Str(text) => self.write_str(out, text)?,
            Value::Dict(dict) => {
                let mut entries: Vec<(&Value, &Value)> = dict.entries.iter().map(|(k, v)| (&k.0, v)).collect();
                if self.sort_keys {
                    let order = (0..entries.len()).map(|i| (entries[i].0.clone(), Value::from(i))).collect();
                    let order = key::sort(order, false)?;
                    let index = |i: &Value| integer(Some(i), 0).map(|i| entries[i as usize]);
                    entries = order.iter().map(index).collect::<Result<_>>()?;
                }
                let empty = entries.is_empty();
                out.push('{');
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.break_before(out, i, depth + 1)?;
                    self.write_key(out, key)?;
                    out.push_str(&self.key);
                    self.write(out, value, depth + 1)?;
                }
                self.close(out, '}', empty, depth)?;
            }
            Value::List(items) | Value::Tuple(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.break_before(out, i, depth + 1)?;
                    self.write(out, item, depth + 1)?;
                }
                self.close(out, ']', items.is_empty(), depth)?;
            }
            _ => {
                return Err(Error::runtime(format!("Object of type {} is not JSON serializable", value.type_name())));
            }
        }
        Ok(())
    }

    fn write_key(&self, out: &mut String, key: &Value) -> Result<()> {
        match key {
            Value::Str(text) => self.write_str(out, text),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => {
                let mut text = String::new();
                self.write(&mut text, key, 0)?;
                self.write_str(out, &text)
            }
            _ => Err(Error::runtime(format!("keys must be str, int, float, bool or None, not {}", key.type_name()))),
        }
    }

    fn break_before(&self, out: &mut String, index: usize, depth: usize) -> Result<()> {
        if index > 0 {
            out.push_str(&self.item);
        }
        self.new_line(out, depth)
    }

    fn close(&self, out: &mut String, bracket: char, empty: bool, depth: usize) -> Result<()> {
        if !empty {
            self.new_line(out, depth)?;
        }
        out.push(bracket);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) -> Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        budget::reserve(out.len().saturating_add(indent.len().saturating_mul(depth)))?;
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
        Ok(())
    }

    fn write_str(&self, out: &mut String, text: &str) -> Result<()> {
        budget::spend_bytes(text.len())?;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
        Ok(())
    }
}

fn float(x: f64) -> String {
    match (x.is_nan(), x.is_infinite()) {
        (true, _) => "NaN".to_owned(),
        (_, true) => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ => repr::float(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_64_bits_stay_whole() {
        let text = r#"{"a": [123456789012345678901234567890, -9223372036854775809, 18446744073709551615, 1e30], "b": "99999999999999999999 \" 1"}"#;
        let json = parse(text).unwrap();
        assert_eq!(whole_number(json["a"][0].as_str().unwrap()), "123456789012345678901234567890".parse().ok());
        assert_eq!(whole_number(json["a"][1].as_str().unwrap()), "-9223372036854775809".parse().ok());
        assert_eq!(json["a"][2], u64::MAX);
        assert_eq!(json["a"][3], 1e30);
        assert_eq!(json["b"], "99999999999999999999 \" 1");
        assert!(parse(r#"{"a": 99999999999999999999-}"#).is_err());
        let record = parse_record(br#"{"a": 99999999999999999999, "b": [99999999999999999999]}"#).unwrap();
        assert_eq!(record["a"], 1e20);
        assert!(whole_number(record["b"][0].as_str().unwrap()).is_some());
    }
}

//! The parts of Python that chat templates lean on: how values print, `json.dumps`
//! and the string methods whose idea of white space is Python's.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

/// Deeper nesting than this is refused instead of overflowing the stack.
const MAX_DEPTH: usize = 64;

/// A JSON object as a template sees it.
pub(super) fn object(map: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), from_json(v))))
}

/// A JSON value as a template sees it.
pub(super) fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(map) => object(map),
    }
}

/// `str(value)`, or what Jinja prints for it: nothing where the value is undefined.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.to_string()),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, value, 0)?;
            Ok(out)
        }
    }
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value, false),
        ValueKind::String => write_str_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut len = 0;
            for item in value.try_iter()? {
                if len > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &item, depth + 1)?;
                len += 1;
            }
            if value.is_tuple() && len == 1 {
                out.push(',');
            }
            out.push(close);
        }
        _ => write!(out, "{value}").map_err(|_| too_deep())?,
    }
    Ok(())
}

fn write_str_repr(out: &mut String, text: &str) {
    // Python prefers single quotes and changes its mind only to avoid escaping.
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Integers as they are; floats as Python's `repr` has them.
fn write_number(out: &mut String, value: &Value, json: bool) {
    if value.is_integer() {
        let _ = write!(out, "{value}");
        return;
    }
    let x = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    out.push_str(&match (x.is_nan(), x.is_infinite(), json) {
        (true, _, true) => "NaN".to_owned(),
        (true, _, false) => "nan".to_owned(),
        (_, true, json) => {
            let word = if json { "Infinity" } else { "inf" };
            format!("{}{word}", if x < 0.0 { "-" } else { "" })
        }
        _ => float_repr(x),
    });
}

fn float_repr(x: f64) -> String {
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

/// `json.dumps`, with the options that `transformers` lets a template pass.
#[allow(clippy::needless_pass_by_value, reason = "minijinja hands arguments over by value")]
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut positional = args.0.into_iter();
    let mut option = |name: &str| -> Result<Option<Value>, Error> {
        match positional.next() {
            Some(value) => Ok(Some(value)),
            None => kwargs.get::<Option<Value>>(name),
        }
    };
    let ensure_ascii = option("ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = match option("indent")?.filter(|v| !v.is_none()) {
        None => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(v)?.min(64)),
        }),
    };
    let separators = option("separators")?.filter(|v| !v.is_none());
    let sort_keys = option("sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;

    let (item, key) = match separators {
        Some(pair) => (str(&pair.get_item(&Value::from(0))?)?, str(&pair.get_item(&Value::from(1))?)?),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle { ensure_ascii, indent, item, key, sort_keys };
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl JsonStyle {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(out, value, true),
            ValueKind::String => self.write_str(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let empty = keys.is_empty();
                out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.break_before(out, i, depth + 1);
                    match key.kind() {
                        ValueKind::String => {
                            self.write_str(out, key.as_str().unwrap_or_default());
                        }
                        _ => {
                            let mut text = String::new();
                            self.write(&mut text, key, depth + 1)?;
                            self.write_str(out, &text);
                        }
                    }
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(key)?, depth + 1)?;
                }
                self.close(out, '}', empty, depth);
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let mut empty = true;
                out.push('[');
                for (i, item) in value.try_iter()?.enumerate() {
                    empty = false;
                    self.break_before(out, i, depth + 1);
                    self.write(out, &item, depth + 1)?;
                }
                self.close(out, ']', empty, depth);
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("a value of type {kind} cannot be written as JSON"),
                ));
            }
        }
        Ok(())
    }

    fn break_before(&self, out: &mut String, index: usize, depth: usize) {
        if index > 0 {
            out.push_str(&self.item);
        }
        self.new_line(out, depth);
    }

    fn close(&self, out: &mut String, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.new_line(out, depth);
        }
        out.push(bracket);
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn write_str(&self, out: &mut String, text: &str) {
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
                c if (c as u32) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    Ok(())
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value is nested more than {MAX_DEPTH} deep"))
}

/// What `str.strip()` strips: Unicode's white space and, unlike Rust, the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's methods: the few that differ from `minijinja_contrib`'s, then those.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let (start, end) = match name {
            "strip" => (true, true),
            "lstrip" => (true, false),
            "rstrip" => (false, true),
            _ => (false, false),
        };
        if start || end {
            let (chars,): (Option<String>,) = from_args(args)?;
            return Ok(Value::from(strip(text, chars.as_deref(), start, end)));
        }
        if name == "split" && args.is_empty() {
            return Ok(text.split(is_space).filter(|part| !part.is_empty()).map(Value::from).collect());
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// The `trim` filter.
pub(super) fn trim(value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    Ok(Value::from(strip(&str(value)?, chars, true, true)))
}

fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let strips = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => is_space(c),
    };
    let text = if start { text.trim_start_matches(strips) } else { text };
    if end { text.trim_end_matches(strips) } else { text }
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
            assert_eq!(float_repr(x), text);
        }
    }

    #[test]
    fn values_print_as_in_python() {
        let value = from_json(&serde_json::json!({
            "a": [1, 2.0, true, null, "it's", "say \"it's\"\n\u{7f}é"], "b": {}
        }));
        assert_eq!(str(&value).unwrap(), r#"{'a': [1, 2.0, True, None, "it's", 'say "it\'s"\n\x7fé'], 'b': {}}"#);
    }
}

//! What values of other formats are in JSON.

use serde_json::{Number, Value};

use crate::data::stand_in::stand_in;

pub(super) fn text(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| stand_in("bytes that are not UTF-8"), Value::from)
}

pub(super) fn number(value: f64) -> Value {
    let what = if value.is_nan() { "not a number (NaN)" } else { "an infinite number" };
    Number::from_f64(value).map_or_else(|| stand_in(what), Value::Number)
}

/// A map's key as JSON has it.
pub(super) fn key_text(key: Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text),
        Value::Number(_) | Value::Bool(_) => Some(key.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

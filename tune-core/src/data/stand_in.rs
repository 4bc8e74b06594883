//! Values that JSON has no form for, such as dates. Something stands for them in a record: a column that nobody reads
//! may hold them, and one that is read is an error which says what they are.

use serde_json::Value;

use super::beside;
use super::config::ChatDataset;
use super::conversation::keys;
use super::records::Record;
use crate::tokenizer::Names;
use crate::{Error, Result};

/// The key of an object that stands for a value.
const KEY: &str = "\u{0}no JSON";

/// What stands for a value that is `what`, for example "a date".
pub(super) fn stand_in(what: &str) -> Value {
    Value::Object([(KEY.to_owned(), Value::from(what))].into_iter().collect())
}

/// What a value is that something stands for.
pub(super) fn what(value: &Value) -> Option<&str> {
    value.as_object()?.get(KEY)?.as_str()
}

/// What the first value is, in `value` or at any depth of it, that something stands for.
pub(super) fn within(value: &Value) -> Option<&str> {
    match value {
        Value::Array(items) => items.iter().find_map(within),
        Value::Object(fields) => what(value).or_else(|| fields.values().find_map(within)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// Whether `value` can be given to a template.
pub(super) fn is_json(value: &Value) -> bool {
    within(value).is_none()
}

/// Makes sure that a template, which mentions `names`, is given no such value. The role and the text of a message are
/// looked at where they are read.
///
/// # Errors
/// The message and its key, or the column, that holds one.
pub(super) fn check(record: &Record, config: &ChatDataset, names: &Names) -> Result<()> {
    let column = &config.conversation_column;
    let turns = record.columns.get(column).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (role, text) = keys(config);
    for (i, turn) in turns.iter().enumerate() {
        let number = i + 1;
        let Some(fields) = turn.as_object() else { continue };
        if let Some(what) = what(turn) {
            return Err(record.origin.error(format_args!("message {number}: must be an object, not {what}")));
        }
        let mut read = fields.iter().filter(|(key, _)| *key != role && *key != text && names.contains(key));
        if let Some((key, what)) = read.find_map(|(key, value)| Some((key, within(value)?))) {
            return Err(unreadable(record, &format!("message {number}: `{key}`"), what));
        }
    }
    let beside = beside::COLUMNS.into_iter().filter(|name| *name != column);
    match beside.filter_map(|name| Some((name, within(record.columns.get(name)?)?))).next() {
        Some((name, what)) => Err(unreadable(record, &format!("column `{name}`"), what)),
        None => Ok(()),
    }
}

fn unreadable(record: &Record, place: &str, what: &str) -> Error {
    record.origin.error(format_args!(
        "{place}, which the chat template reads, is or holds {what}: only text, numbers, booleans, lists and mappings \
         can be given to it"
    ))
}

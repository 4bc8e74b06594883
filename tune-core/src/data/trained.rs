//! Which of a record's messages are trained, where the record says so itself.

use serde_json::Value;

use super::records::kind_of;
use crate::tokenizer::{Message, listed};

/// The keys with which tools say it: OpenAI and Axolotl, then Axolotl, verl, ms-swift.
pub(super) const KEYS: [&str; 6] = ["weight", "train", "training", "trainable", "loss", "loss_mask"];

/// Whether a message is to be trained, if it says so.
///
/// # Errors
/// A value that is neither yes nor no, and two keys that contradict each other.
pub(super) fn of_message(message: &Message) -> Result<Option<bool>, String> {
    let mut said: Option<(&str, bool)> = None;
    for key in KEYS {
        let Some(value) = message.get(key).filter(|value| !value.is_null()) else { continue };
        let trained = yes_or_no(value).ok_or_else(|| {
            format!(
                "`{key}` must be true or false, 1 or 0, not {}: an answer is trained or not, and nothing in between",
                shown(value)
            )
        })?;
        match said {
            Some((other, before)) if before != trained => {
                return Err(format!("`{other}` and `{key}` contradict each other"));
            }
            _ => said = Some((key, trained)),
        }
    }
    Ok(said.map(|(_, trained)| trained))
}

/// What a record says beside its messages.
#[derive(Debug, Default, PartialEq)]
pub(super) struct OfRecord {
    /// Whether anything of it is trained.
    pub(super) all: Option<bool>,
    /// Whether each of its messages is trained.
    pub(super) each: Option<Vec<bool>>,
}

impl OfRecord {
    /// Whether message `i` (from 0) is trained, as far as the record says.
    pub(super) fn of(&self, i: usize) -> Option<bool> {
        self.each.as_ref().and_then(|each| each.get(i).copied()).or(self.all)
    }
}

/// What the columns of a record, besides `its_own` that hold other things, say about a conversation of `messages`
/// messages.
///
/// # Errors
/// Columns that contradict each other: two that say otherwise, or one that leaves the whole record out beside a list that
/// trains some of it.
pub(super) fn of_record(columns: &Message, its_own: &[&str], messages: usize) -> Result<OfRecord, String> {
    let mut found = OfRecord::default();
    let mut names: Vec<&str> = Vec::new();
    for key in KEYS.into_iter().filter(|key| !its_own.contains(key)) {
        let Some(value) = columns.get(key).filter(|value| decides(key, value, messages)) else { continue };
        names.push(key);
        let before = (found.all, found.each.clone());
        match value {
            Value::Array(each) => found.each = each.iter().map(yes_or_no).collect(),
            one => found.all = column_says(one),
        }
        let differs = before.0.is_some_and(|all| found.all != Some(all))
            || before.1.is_some_and(|each| found.each.as_ref() != Some(&each));
        let trains_what_is_left_out = found.all == Some(false) && found.each.iter().flatten().any(|trained| *trained);
        if differs || trains_what_is_left_out {
            return Err(format!("the columns {} contradict each other", listed(names)));
        }
    }
    Ok(found)
}

/// Whether a column's value decides what is trained: true or false, 1 or 0, or as many of them as there are
/// messages. A column of the same name may hold something else, such as a loss that was measured or a record's weight
/// among others.
pub(super) fn decides(key: &str, value: &Value, messages: usize) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::Number(_) | Value::String(_) => key != "loss" && column_says(value).is_some(),
        Value::Array(each) => each.len() == messages && messages > 0 && each.iter().all(|v| yes_or_no(v).is_some()),
        _ => false,
    }
}

/// What a value says, if it says yes or no.
pub(super) fn yes_or_no(value: &Value) -> Option<bool> {
    match (value, value.as_f64()) {
        (Value::Bool(said), _) => Some(*said),
        (_, Some(1.0)) => Some(true),
        (_, Some(0.0)) => Some(false),
        _ => None,
    }
}

/// What a column says, which may be text in a file whose columns all are.
fn column_says(value: &Value) -> Option<bool> {
    match value.as_str() {
        Some("true" | "True" | "1" | "1.0") => Some(true),
        Some("false" | "False" | "0" | "0.0") => Some(false),
        Some(_) => None,
        None => yes_or_no(value),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        other => kind_of(other).to_owned(),
    }
}

//! What a message says: a text, or a list of parts.

use serde_json::Value;

use crate::tokenizer::{Form, Message};

/// A message with a role and a text, in the form that a chat template takes.
pub(super) fn message(role: &str, text: impl Into<String>, form: Form) -> Message {
    let mut message = Message::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), form.content(text));
    message
}

/// Refuses what is no text among the parts of a content: `[{"type": "text", "text": "..."}]`.
pub(super) fn check_parts(parts: &[Value], key: &str) -> Result<(), String> {
    for (i, part) in parts.iter().enumerate() {
        let number = i + 1;
        match (part, part["type"].as_str(), part["text"].as_str()) {
            (Value::String(_), ..) | (_, Some("text") | None, Some(_)) => {}
            (_, Some("text"), None) => {
                return Err(format!("part {number} of `{key}` has no string `text`"));
            }
            (_, Some(other), _) => {
                return Err(format!("part {number} of `{key}` is of type `{other}`; only text can be trained on"));
            }
            _ => {
                return Err(format!("part {number} of `{key}` must be {{\"type\": \"text\", \"text\": ...}}"));
            }
        }
    }
    Ok(())
}

fn text_of_part(part: &Value) -> &str {
    part.as_str().or_else(|| part["text"].as_str()).unwrap_or_default()
}

/// A message's texts: its content, or those of its parts.
pub(super) fn texts_of(message: &Message) -> Vec<&str> {
    match message.get("content") {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(parts)) => parts.iter().map(text_of_part).collect(),
        _ => Vec::new(),
    }
}

/// The texts of all parts, one behind the other.
pub(super) fn join(parts: &[Value]) -> String {
    parts.iter().map(text_of_part).collect()
}

//! Conversations in the two forms in which they are published, made into one.

use serde_json::Value;

use super::config::{ChatDataset, ConversationStyle};
use super::records::{Record, kind_of};
use crate::tokenizer::{Message, listed};
use crate::{Error, Result};

/// Roles of the OpenAI form, passed to the chat template as they are.
const OPENAI_ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Names of the ShareGPT form, and the role that each means.
const SHAREGPT_ROLES: [(&str, &str); 7] = [
    ("system", "system"),
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("tool", "tool"),
];

/// A message with a role and a text.
pub(super) fn message(role: &str, content: impl Into<String>) -> Message {
    let mut message = Message::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), Value::String(content.into()));
    message
}

/// Whether the model is to learn to say this.
pub(super) fn is_answer(message: &Message) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// A message's text; empty where it has none.
pub(super) fn text_of(message: &Message) -> &str {
    message.get("content").and_then(Value::as_str).unwrap_or_default()
}

/// The conversation of a record.
pub(super) fn conversation(record: &Record, config: &ChatDataset) -> Result<Vec<Message>> {
    let origin = &record.origin;
    let turns = match column(record, &config.conversation_column)? {
        Value::Array(turns) => turns,
        other => {
            return Err(origin.error(format_args!(
                "column `{}` must be a list of messages, not {}",
                config.conversation_column,
                kind_of(other)
            )));
        }
    };
    if turns.is_empty() {
        return Err(origin.error("the conversation is empty"));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    for (i, turn) in turns.iter().enumerate() {
        let wrong = |what: String| origin.error(format_args!("message {}: {what}", i + 1));
        let turn = turn.as_object().ok_or_else(|| wrong(format!("must be an object, not {}", kind_of(turn))))?;
        messages.push(turn_message(turn, config).map_err(wrong)?);
    }
    if let Some(prompt) = &config.new_system_prompt {
        set_system_prompt(&mut messages, prompt);
    }
    Ok(messages)
}

/// Puts a system message first, in place of one that is there.
pub(super) fn set_system_prompt(messages: &mut Vec<Message>, prompt: &str) {
    let system = message("system", prompt);
    match messages.first_mut() {
        Some(first) if first.get("role").and_then(Value::as_str) == Some("system") => {
            *first = system;
        }
        _ => messages.insert(0, system),
    }
}

fn turn_message(turn: &Message, config: &ChatDataset) -> Result<Message, String> {
    let (role_key, content_key) = match config.conversation_style {
        ConversationStyle::Openai => ("role", "content"),
        ConversationStyle::Sharegpt => ("from", "value"),
    };
    let role_key = config.role_key.as_deref().unwrap_or(role_key);
    let content_key = config.content_key.as_deref().unwrap_or(content_key);

    let role = match turn.get(role_key) {
        Some(Value::String(role)) => role.as_str(),
        Some(other) => {
            return Err(format!("`{role_key}` must be a string, not {}", kind_of(other)));
        }
        None => {
            let other_style = match config.conversation_style {
                ConversationStyle::Openai => turn.contains_key("from").then_some("sharegpt"),
                ConversationStyle::Sharegpt => turn.contains_key("role").then_some("openai"),
            };
            let hint = other_style.map_or_else(String::new, |style| format!("; is it `conversation_style: {style}`?"));
            return Err(format!("has no `{role_key}` (it has: {}){hint}", listed(turn.keys())));
        }
    };
    let role = match config.conversation_style {
        ConversationStyle::Openai => OPENAI_ROLES.contains(&role).then_some(role),
        ConversationStyle::Sharegpt => SHAREGPT_ROLES.iter().find(|(name, _)| *name == role).map(|&(_, role)| role),
    }
    .ok_or_else(|| {
        let known: Vec<&str> = match config.conversation_style {
            ConversationStyle::Openai => OPENAI_ROLES.to_vec(),
            ConversationStyle::Sharegpt => SHAREGPT_ROLES.iter().map(|r| r.0).collect(),
        };
        format!("unknown role `{role}`; known are {}", listed(known))
    })?;

    let mut message = Message::new();
    message.insert("role".into(), role.into());
    let content = match turn.get(content_key) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => Some(join_parts(parts, content_key)?),
        // An assistant that calls a tool may say nothing.
        None | Some(Value::Null) if turn.get("tool_calls").is_some_and(|c| !c.is_null()) => None,
        Some(other) => {
            return Err(format!("`{content_key}` must be a string or a list of text parts, not {}", kind_of(other)));
        }
        None => {
            return Err(format!("has no `{content_key}` (it has: {})", listed(turn.keys())));
        }
    };
    message.insert("content".into(), content.map_or(Value::Null, Value::String));
    // What else a message carries (`tool_calls`, `name`, `reasoning_content`) is the template's to use.
    for (key, value) in turn {
        if key != role_key && key != content_key && !value.is_null() && !message.contains_key(key) {
            message.insert(key.clone(), value.clone());
        }
    }
    Ok(message)
}

/// The text of a content that is given in parts: `[{"type": "text", "text": "..."}]`.
fn join_parts(parts: &[Value], key: &str) -> Result<String, String> {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let number = i + 1;
        match (part, part["type"].as_str(), part["text"].as_str()) {
            (Value::String(part), ..) => text.push_str(part),
            (_, Some("text") | None, Some(part)) => text.push_str(part),
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
    Ok(text)
}

/// A column of a record, or an error that says which there are.
pub(super) fn column<'a>(record: &'a Record, name: &str) -> Result<&'a Value> {
    record.columns.get(name).ok_or_else(|| missing_column(record, name))
}

/// A column that must be a string.
pub(super) fn text_column<'a>(record: &'a Record, name: &str) -> Result<&'a str> {
    match column(record, name)? {
        Value::String(text) => Ok(text),
        other => Err(record.origin.error(format_args!("column `{name}` must be a string, not {}", kind_of(other)))),
    }
}

fn missing_column(record: &Record, name: &str) -> Error {
    let nearest = record
        .columns
        .keys()
        .map(|key| (strsim::jaro_winkler(key, name), key))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = nearest.map_or_else(String::new, |(_, key)| format!("; did you mean `{key}`?"));
    record.origin.error(format_args!("no column `{name}` (the columns are: {}){hint}", listed(record.columns.keys())))
}

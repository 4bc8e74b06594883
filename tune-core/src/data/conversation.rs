//! Conversations in the two forms in which they are published, made into one.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::config::{ChatDataset, ConversationStyle};
use super::content::{check_parts, join, message};
use super::records::{Record, kind_of};
use super::stand_in;
use super::trained;
use crate::tokenizer::{Conversation, Forms, Message, listed};
use crate::{Error, Result};

/// Roles of the OpenAI form, passed to the chat template as they are.
const OPENAI_ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Names of the ShareGPT form, and the role that each means.
const SHAREGPT_ROLES: [(&str, &str); 9] = [
    ("system", "system"),
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("tool", "tool"),
    (FUNCTION_CALL, "assistant"),
    ("observation", "tool"),
];

/// The name of who calls a tool; what it says is the call, as JSON text.
const FUNCTION_CALL: &str = "function_call";

/// The column with the system prompt of a ShareGPT conversation.
pub(super) const SYSTEM_COLUMN: &str = "system";

/// A conversation to learn from.
#[derive(Debug, Default)]
pub(super) struct Chat {
    /// What the template renders.
    pub(super) conversation: Conversation,
    /// The assistant's messages that are context and not learnt, because the record says so.
    pub(super) left_out: BTreeSet<usize>,
}

impl From<Vec<Message>> for Chat {
    fn from(messages: Vec<Message>) -> Self {
        Self { conversation: Conversation::new(messages), left_out: BTreeSet::new() }
    }
}

/// Whether the model is to learn to say this.
pub(super) fn is_answer(message: &Message) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// The conversation of a record.
pub(super) fn conversation(record: &Record, config: &ChatDataset, forms: &Forms) -> Result<Chat> {
    let origin = &record.origin;
    let turns = turns(record, config)?;
    if turns.is_empty() {
        return Err(origin.error("the conversation is empty"));
    }
    let mut messages = Vec::with_capacity(turns.len() + 1);
    let mut marks = Vec::with_capacity(turns.len() + 1);
    for (i, turn) in turns.iter().enumerate() {
        let wrong = |what: String| origin.error(format_args!("message {}: {what}", i + 1));
        let turn = turn.as_object().ok_or_else(|| wrong(format!("must be an object, not {}", kind_of(turn))))?;
        marks.push(trained::of_message(turn).map_err(wrong)?);
        messages.push(turn_message(turn, config, forms).map_err(wrong)?);
    }
    let of_record = trained::of_record(&record.columns, &[&config.conversation_column], turns.len())
        .map_err(|what| origin.error(what))?;
    let left_out = (0..messages.len()).filter(|&i| {
        let trained = marks[i].unwrap_or(true) && of_record.of(i).unwrap_or(true);
        !trained && is_answer(&messages[i])
    });
    let mut left_out: BTreeSet<usize> = left_out.collect();
    let added = match (&config.new_system_prompt, system_column(record, config)?) {
        (Some(prompt), _) => set_system_prompt(&mut messages, prompt, forms),
        (None, Some(prompt)) if !begins_with_system(&messages) => set_system_prompt(&mut messages, prompt, forms),
        _ => 0,
    };
    left_out = left_out.into_iter().map(|turn| turn + added).collect();
    Ok(Chat { conversation: Conversation::new(messages), left_out })
}

/// Whether the column [`SYSTEM_COLUMN`] is used, of a record with these messages.
pub(super) fn uses_system_column(record: &Record, config: &ChatDataset) -> bool {
    let (role_key, _) = keys(config);
    let first = record.columns.get(&config.conversation_column).and_then(|turns| turns.get(0));
    let has_its_own = first.and_then(|turn| turn.get(role_key)).is_some_and(|role| role == "system");
    config.conversation_style == ConversationStyle::Sharegpt && (config.new_system_prompt.is_some() || !has_its_own)
}

/// The system prompt that a ShareGPT record has in a column of its own.
fn system_column<'a>(record: &'a Record, config: &ChatDataset) -> Result<Option<&'a str>> {
    match record.columns.get(SYSTEM_COLUMN) {
        Some(Value::String(prompt)) if config.conversation_style == ConversationStyle::Sharegpt => {
            Ok(Some(prompt.as_str()).filter(|prompt| !prompt.trim().is_empty()))
        }
        Some(Value::Null) | None => Ok(None),
        Some(other) if config.conversation_style == ConversationStyle::Sharegpt => {
            Err(record.origin.error(format_args!("column `{SYSTEM_COLUMN}` must be a string, not {}", kind_of(other))))
        }
        Some(_) => Ok(None),
    }
}

pub(super) fn begins_with_system(messages: &[Message]) -> bool {
    messages.first().and_then(|first| first.get("role")).and_then(Value::as_str) == Some("system")
}

fn turns<'a>(record: &'a Record, config: &ChatDataset) -> Result<&'a [Value]> {
    let name = &config.conversation_column;
    match record.columns.get(name) {
        Some(Value::Array(turns)) => Ok(turns),
        Some(other) => {
            let what = kind_of(other);
            Err(record
                .origin
                .error(format_args!("column `{name}` must be a list of messages or JSON text of one, not {what}")))
        }
        None => Err(missing_conversation(record, config)),
    }
}

/// No column of the name that holds conversations, with what to set where another one does.
fn missing_conversation(record: &Record, config: &ChatDataset) -> Error {
    let style = |turn: &Value| {
        let styles = [("from", "value", ConversationStyle::Sharegpt), ("role", "content", ConversationStyle::Openai)];
        styles.into_iter().find(|(role, text, _)| turn.get(role).is_some() && turn.get(text).is_some())
    };
    let other = record.columns.iter().find_map(|(name, turns)| Some((name, style(turns.as_array()?.first()?)?.2)));
    let Some((name, style)) = other else {
        return missing_column(record, &config.conversation_column, kind_for(record));
    };
    if name == "prompt" && record.columns.get("completion").is_some_and(Value::is_array) {
        let join = "jq -c '{messages: (.prompt + .completion)}'";
        return record.origin.error(format_args!(
            "no column `{}`: `prompt` and `completion` are two parts of a conversation; join them (`{join}`), and set \
             `masking_strategy: last`, which trains the last answer alone",
            config.conversation_column
        ));
    }
    let style = match style {
        _ if style == config.conversation_style => "",
        ConversationStyle::Sharegpt => " and `conversation_style: sharegpt`",
        ConversationStyle::Openai => " and `conversation_style: openai`",
    };
    record.origin.error(format_args!(
        "no column `{}`, and `{name}` holds a conversation: set `conversation_column: {name}`{style}",
        config.conversation_column
    ))
}

/// The kind of dataset that reads records without a conversation, by the names of their columns.
fn kind_for(record: &Record) -> &'static str {
    let has = |names: &[&str]| names.iter().any(|name| matches!(record.columns.get(*name), Some(Value::String(_))));
    if has(&["instruction"]) && has(&["output"]) {
        "; `_component_: alpaca` reads such records"
    } else if has(&["prompt", "question", "input", "instruction"])
        && has(&["completion", "response", "answer", "output"])
    {
        "; `_component_: instruct` reads questions and answers, from the columns that its `column_map` names"
    } else if has(&["text"]) {
        "; `_component_: text` reads documents"
    } else {
        ""
    }
}

/// Puts a system message first, in place of one that is there. Returns by how much the others move.
pub(super) fn set_system_prompt(messages: &mut Vec<Message>, prompt: &str, forms: &Forms) -> usize {
    let system = message("system", prompt, forms.choose("system"));
    match messages.first_mut() {
        Some(first) if first.get("role").and_then(Value::as_str) == Some("system") => {
            *first = system;
            0
        }
        _ => {
            messages.insert(0, system);
            1
        }
    }
}

/// Whether a role is the assistant's.
pub(super) fn means_assistant(role: &Value, config: &ChatDataset) -> bool {
    match config.conversation_style {
        ConversationStyle::Openai => role == "assistant",
        ConversationStyle::Sharegpt => SHAREGPT_ROLES.iter().any(|(name, means)| role == name && *means == "assistant"),
    }
}

/// The keys of a message's role and its text.
pub(super) fn keys(config: &ChatDataset) -> (&str, &str) {
    let (role_key, content_key) = match config.conversation_style {
        ConversationStyle::Openai => ("role", "content"),
        ConversationStyle::Sharegpt => ("from", "value"),
    };
    (config.role_key.as_deref().unwrap_or(role_key), config.content_key.as_deref().unwrap_or(content_key))
}

fn turn_message(turn: &Message, config: &ChatDataset, forms: &Forms) -> Result<Message, String> {
    let (role_key, content_key) = keys(config);
    let role = role(turn, role_key, config)?;
    let calls = calls(turn, config)?;
    let content = match calls {
        Some(_) => None,
        None => content(turn, content_key, role, config, forms)?,
    };
    // What else a message carries (`tool_calls`, `name`, `reasoning_content`) is the template's to use, in the
    // file's order.
    let mut message = Message::new();
    for (key, value) in turn {
        if key == role_key {
            message.insert("role".into(), role.into());
        } else if key == content_key {
            let said = content.iter().map(|content| ("content", content));
            let called = calls.iter().map(|calls| ("tool_calls", calls));
            message.extend(said.chain(called).map(|(key, value)| (key.to_owned(), value.clone())));
        } else if key != "role" && key != "content" && stand_in::is_json(value) {
            message.insert(key.clone(), value.clone());
        }
    }
    Ok(message)
}

fn role<'a>(turn: &'a Message, role_key: &str, config: &ChatDataset) -> Result<&'a str, String> {
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
    match config.conversation_style {
        ConversationStyle::Openai => OPENAI_ROLES.contains(&role).then_some(role),
        ConversationStyle::Sharegpt => SHAREGPT_ROLES.iter().find(|(name, _)| *name == role).map(|&(_, role)| role),
    }
    .ok_or_else(|| {
        let known: Vec<&str> = match config.conversation_style {
            ConversationStyle::Openai => OPENAI_ROLES.to_vec(),
            ConversationStyle::Sharegpt => SHAREGPT_ROLES.iter().map(|r| r.0).collect(),
        };
        format!("unknown role `{role}`; known are {}", listed(known))
    })
}

/// The calls of a ShareGPT turn that is nothing but calls: `{"name": "...", "arguments": {...}}`, or a list of these.
fn calls(turn: &Message, config: &ChatDataset) -> Result<Option<Value>, String> {
    let (role_key, content_key) = keys(config);
    let is_call = turn.get(role_key).is_some_and(|role| role == FUNCTION_CALL);
    if !is_call || config.conversation_style != ConversationStyle::Sharegpt {
        return Ok(None);
    }
    let wrong = || {
        format!(
            "`{content_key}` of a `{FUNCTION_CALL}` must be JSON text of a call: {{\"name\": \"...\", \"arguments\": \
             {{...}}}}"
        )
    };
    let text = turn.get(content_key).and_then(Value::as_str).ok_or_else(wrong)?;
    let calls = match serde_json::from_str(text) {
        Ok(Value::Array(calls)) if !calls.is_empty() => calls,
        Ok(call @ Value::Object(_)) => vec![call],
        _ => return Err(wrong()),
    };
    if !calls.iter().all(|call| call["name"].is_string()) {
        return Err(wrong());
    }
    let calls = calls.into_iter().map(|function| json!({"type": "function", "function": function}));
    Ok(Some(calls.collect()))
}

fn content(
    turn: &Message,
    key: &str,
    role: &str,
    config: &ChatDataset,
    forms: &Forms,
) -> Result<Option<Value>, String> {
    let calls = ["tool_calls", "function_call"].iter().any(|key| turn.get(*key).is_some_and(|call| !call.is_null()));
    match turn.get(key) {
        // ShareGPT's form has texts alone; which form they take here is this program's choice.
        Some(Value::String(text)) if config.conversation_style == ConversationStyle::Sharegpt => {
            Ok(Some(forms.choose(role).content(text)))
        }
        Some(Value::String(text)) => Ok(Some(text.clone().into())),
        Some(Value::Array(parts)) => {
            check_parts(parts, key)?;
            Ok(Some(if forms.only_text(role) { join(parts).into() } else { parts.clone().into() }))
        }
        // An assistant that calls a tool may say nothing.
        None | Some(Value::Null) if calls => Ok(None),
        Some(other) => Err(format!("`{key}` must be a string or a list of text parts, not {}", kind_of(other))),
        None => Err(format!("has no `{key}` (it has: {})", listed(turn.keys()))),
    }
}

/// A column of a record, or an error that says which there are.
pub(super) fn column<'a>(record: &'a Record, name: &str) -> Result<&'a Value> {
    record.columns.get(name).ok_or_else(|| missing_column(record, name, ""))
}

/// A column that must be a string.
pub(super) fn text_column<'a>(record: &'a Record, name: &str) -> Result<&'a str> {
    match column(record, name)? {
        Value::String(text) => Ok(text),
        other => Err(record.origin.error(format_args!("column `{name}` must be a string, not {}", kind_of(other)))),
    }
}

/// No column of this name, with the nearest one and what else there is to say.
pub(super) fn missing_column(record: &Record, name: &str, advice: &str) -> Error {
    let nearest = record
        .columns
        .keys()
        .map(|key| (strsim::jaro_winkler(key, name), key))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = nearest.map_or_else(String::new, |(_, key)| format!("; did you mean `{key}`?"));
    let columns = listed(record.columns.keys());
    record.origin.error(format_args!("no column `{name}` (the columns are: {columns}){hint}{advice}"))
}

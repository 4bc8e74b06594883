//! What a dataset's records hold and its samples do not.

use serde_json::Value;

use super::config::{ChatDataset, DatasetConfig, Masking};
use super::conversation::{self, SYSTEM_COLUMN};
use super::format::{Form, Formatter};
use super::records::Record;
use super::unused::{Held, Key, holds_something};
use super::{alpaca, beside, trained};
use crate::Result;
use crate::tokenizer::Conversation;

impl Formatter<'_> {
    /// Notes the columns of record `i` that are not used; the config names those in `named`.
    pub(super) fn note_columns(&self, i: usize, record: &Record, named: &[&str], held: &mut Held) {
        let messages = self.turns(record).map_or(0, Vec::len);
        for (name, value) in &record.columns {
            let decides = trained::KEYS.contains(&name.as_str()) && trained::decides(name, value, messages);
            if holds_something(value) && !named.contains(&name.as_str()) && !decides && !self.reads(record, name) {
                held.column(i, name);
            }
        }
        if let (DatasetConfig::Chat(_), Some(_)) = (self.config, self.turns(record)) {
            beside::unread_arguments(record, &self.names).iter().for_each(|name| held.column(i, name));
        }
    }

    /// Notes the keys of record `i`'s messages.
    pub(super) fn note_messages(&self, i: usize, record: &Record, held: &mut Held) {
        if let (DatasetConfig::Chat(config), Some(turns)) = (self.config, self.turns(record)) {
            turns.iter().for_each(|turn| self.note_keys(i, turn, config, held));
        }
    }

    /// The messages of a conversation.
    fn turns<'r>(&self, record: &'r Record) -> Option<&'r Vec<Value>> {
        match self.config {
            DatasetConfig::Chat(config) => record.columns.get(&config.conversation_column)?.as_array(),
            _ => None,
        }
    }

    fn reads(&self, record: &Record, column: &str) -> bool {
        match self.config {
            DatasetConfig::Chat(config) => {
                beside::is_read(column, &self.names)
                    || column == SYSTEM_COLUMN && conversation::uses_system_column(record, config)
            }
            DatasetConfig::Alpaca(_) => [alpaca::SYSTEM, alpaca::HISTORY].contains(&column),
            DatasetConfig::Instruct(_) | DatasetConfig::Text(_) => false,
        }
    }

    fn note_keys(&self, i: usize, turn: &Value, config: &ChatDataset, held: &mut Held) {
        if arguments(turn).any(Value::is_string) {
            held.argument_texts.add(i);
        }
        let (role_key, content_key) = conversation::keys(config);
        let is_answer = turn.get(role_key).is_some_and(|role| conversation::means_assistant(role, config));
        for (key, value) in turn.as_object().into_iter().flatten() {
            if key == content_key {
                let parts = value.as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
                let others = parts.filter(|(key, value)| *key != "type" && *key != "text" && holds_something(value));
                others.for_each(|(key, _)| held.key(i, Key::Part(key.clone())));
            }
            if key == content_key || key == role_key || !holds_something(value) {
                continue;
            }
            if !trained::KEYS.contains(&key.as_str()) {
                held.key(i, Key::Message(key.clone()));
            } else if !is_answer && trained::yes_or_no(value) != Some(self.masking == Masking::All) {
                held.key(i, Key::Mark(key.clone()));
            }
        }
    }

    /// Takes away the keys that the chat template reads: those without which it renders another text. `read` reads a record.
    pub(super) fn keep_unused(&self, held: &mut Held, read: impl Fn(usize) -> Result<Record>) {
        held.keys.retain(|key, times| {
            matches!(key, Key::Mark(_))
                || !times.first.iter().any(|&i| read(i).is_ok_and(|record| self.renders(&record, key)))
        });
        let mut first = held.argument_texts.first.iter();
        held.quoted |= first.any(|&i| read(i).is_ok_and(|record| self.quotes_arguments(&record)));
    }

    /// Whether the template writes arguments of calls that are JSON text as a text in quotes.
    fn quotes_arguments(&self, record: &Record) -> bool {
        let (Ok(Form::Conversation(chat)), Some(template)) = (self.form(record), self.template()) else { return false };
        let Ok(text) = template.render(&chat.conversation, false) else { return false };
        let mut messages = chat.conversation.messages.into_iter().map(Value::Object);
        messages.any(|message| {
            let texts = arguments(&message).filter(|arguments| arguments.is_string());
            texts.map(Value::to_string).any(|quoted| text.contains(&quoted))
        })
    }

    /// Whether the template renders another text of a record where a key is missing.
    fn renders(&self, record: &Record, key: &Key) -> bool {
        let (Ok(Form::Conversation(chat)), Some(template)) = (self.form(record), self.template()) else { return true };
        let without = without(chat.conversation.clone(), key);
        match (template.render(&chat.conversation, false), template.render(&without, false)) {
            (Ok(with), Ok(without)) => with != without,
            _ => true,
        }
    }
}

/// The arguments of a message's calls.
fn arguments(turn: &Value) -> impl Iterator<Item = &Value> {
    let calls = turn.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    calls.filter_map(|call| call.get("function").unwrap_or(call).get("arguments"))
}

fn without(mut conversation: Conversation, key: &Key) -> Conversation {
    for message in &mut conversation.messages {
        match key {
            Key::Message(key) | Key::Mark(key) => drop(message.shift_remove(key)),
            Key::Part(key) => {
                let parts = message.get_mut("content").and_then(Value::as_array_mut).into_iter().flatten();
                parts.filter_map(Value::as_object_mut).for_each(|part| drop(part.shift_remove(key)));
            }
        }
    }
    conversation
}

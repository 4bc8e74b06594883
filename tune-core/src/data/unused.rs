//! Columns of records and keys of messages that are there and that nobody reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::words::count;

/// How many records with a key are looked at to find out whether the chat template reads it.
const LOOKED_AT: usize = 16;

/// What the records of a dataset hold besides what it is made for, each with how often it is there.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Columns that are not used.
    pub(super) columns: BTreeMap<String, Times>,
    /// Keys of messages.
    pub(super) keys: BTreeMap<Key, Times>,
    /// Messages with calls whose arguments are JSON text.
    pub(super) argument_texts: Times,
    /// Whether the template writes such text in quotes.
    pub(super) quoted: bool,
}

/// A key in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// Of a message.
    Message(String),
    /// Of a part of a message's content.
    Part(String),
    /// Of a message, which says to train what is not trained or the other way round.
    Mark(String),
}

/// How often something is there, and the first records that have it.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) count: usize,
    pub(super) first: BTreeSet<usize>,
}

impl Times {
    pub(super) fn add(&mut self, record: usize) {
        self.count += 1;
        self.first.insert(record);
        if self.first.len() > LOOKED_AT {
            self.first.pop_last();
        }
    }

    fn and(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        while self.first.len() > LOOKED_AT {
            self.first.pop_last();
        }
    }
}

impl Held {
    /// A record has a column that nobody reads.
    pub(super) fn column(&mut self, record: usize, name: &str) {
        match self.columns.get_mut(name) {
            Some(times) => times.add(record),
            None => self.columns.entry(name.to_owned()).or_default().add(record),
        }
    }

    /// A message has a key.
    pub(super) fn key(&mut self, record: usize, key: Key) {
        self.keys.entry(key).or_default().add(record);
    }

    /// What both have seen.
    pub(super) fn and(mut self, other: Self) -> Self {
        other.columns.into_iter().for_each(|(name, times)| self.columns.entry(name).or_default().and(times));
        other.keys.into_iter().for_each(|(key, times)| self.keys.entry(key).or_default().and(times));
        self.argument_texts.and(other.argument_texts);
        self
    }

    /// What there is to say of dataset `name`, whose template reads what it reads of a conversation.
    pub(super) fn warnings(&self, name: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        let columns = self.columns.iter().map(|(column, times)| format!("`{column}` (in {})", records(times.count)));
        let columns: Vec<String> = columns.collect();
        if !columns.is_empty() {
            let unread: Vec<&str> = ["tools", "functions", "documents"]
                .into_iter()
                .filter(|column| self.columns.contains_key(*column))
                .collect();
            let template = match unread.is_empty() {
                true => String::new(),
                false => format!(". The chat template reads no {}", unread.join(" and no ")),
            };
            warnings.push(format!("{name}: columns that are not used: {}{template}", columns.join(", ")));
        }
        let keys = self.keys.iter().map(|(key, Times { count, .. })| match key {
            Key::Message(key) => format!("`{key}` (in {})", messages(*count)),
            Key::Part(key) => format!("`{key}` of parts of a content (in {count} of them)"),
            Key::Mark(key) => format!("`{key}` (in {} that are not the assistant's)", messages(*count)),
        });
        let keys: Vec<String> = keys.collect();
        if !keys.is_empty() {
            warnings.push(format!("{name}: keys of messages that are not used: {}", keys.join(", ")));
        }
        if self.quoted {
            warnings.push(format!(
                "{name}: in {} the arguments of calls are JSON text, and the chat template writes them as a text in \
                 quotes: give them as objects",
                messages(self.argument_texts.count)
            ));
        }
        warnings
    }
}

/// Whether there is anything in a value to be used.
pub(super) fn holds_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

fn records(n: usize) -> String {
    count(n, "record")
}

fn messages(n: usize) -> String {
    count(n, "message")
}

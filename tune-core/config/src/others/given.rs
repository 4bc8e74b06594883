//! What is written in a file of another tool.

use tune_yaml::{Entry, Kind, Node, Number, Value};

/// A mapping of the file; keys that are null count as not written.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) root: &'a Node,
}

impl<'a> Given<'a> {
    /// The entry at a path such as `training.batch_size`.
    pub(super) fn entry(self, path: &str) -> Option<&'a Entry> {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let entry = self.root.get(first).filter(|entry| !entry.value.is_null())?;
        match rest {
            Some(rest) => Given { root: &entry.value }.entry(rest),
            None => Some(entry),
        }
    }

    /// Whether it is written.
    pub(super) fn has(self, path: &str) -> bool {
        self.entry(path).is_some()
    }

    /// Whether it is written, and neither false, zero nor empty.
    pub(super) fn is_on(self, path: &str) -> bool {
        self.entry(path).is_some_and(|entry| match &entry.value.value {
            Value::Scalar(scalar) => match scalar.kind() {
                Kind::Null | Kind::Bool(false) | Kind::Int(0) => false,
                Kind::Float(number) => number != 0.0,
                Kind::Bool(true) | Kind::Int(_) => true,
                Kind::Text => !scalar.text.is_empty() && !matches!(scalar.text.as_str(), "no" | "none" | "off"),
            },
            Value::List(items) => !items.is_empty(),
            Value::Map(entries) => !entries.is_empty(),
            Value::Reported => false,
        })
    }

    /// Whether it is written as false or zero.
    pub(super) fn is_off(self, path: &str) -> bool {
        self.has(path) && !self.is_on(path)
    }

    /// The text of a scalar.
    pub(super) fn text(self, path: &str) -> Option<&'a str> {
        self.entry(path)?.value.as_str()
    }

    /// A number, in quotes or not.
    pub(super) fn number(self, path: &str) -> Option<f64> {
        number(&self.entry(path)?.value)
    }

    /// A whole number.
    pub(super) fn whole(self, path: &str) -> Option<i128> {
        let number = self.number(path)?;
        (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i128)
    }

    /// The texts of a list, or of a scalar.
    pub(super) fn texts(self, path: &str) -> Vec<&'a str> {
        self.entry(path).map(|entry| texts(&entry.value)).unwrap_or_default()
    }

    /// The items of a list; of anything else that one.
    pub(super) fn items(self, path: &str) -> Vec<&'a Node> {
        match self.entry(path).map(|entry| &entry.value) {
            Some(Node { value: Value::List(items), .. }) => items.iter().collect(),
            Some(node) => vec![node],
            None => Vec::new(),
        }
    }
}

/// The number that a scalar stands for, in quotes or not.
pub(super) fn number(node: &Node) -> Option<f64> {
    let Value::Scalar(scalar) = &node.value else { return None };
    match scalar.plain_number()? {
        Number::Int(int) => Some(int as f64),
        Number::Float(float) => Some(float),
    }
}

/// The texts of a list, or of a scalar.
pub(super) fn texts(node: &Node) -> Vec<&str> {
    match &node.value {
        Value::List(items) => items.iter().filter_map(Node::as_str).collect(),
        _ => node.as_str().into_iter().collect(),
    }
}

/// Folders that people keep data and results in; no organization is meant.
const FOLDERS: [&str; 9] = ["checkpoints", "data", "models", "out", "output", "outputs", "results", "runs", "saves"];

/// `org/name`, where there is no such folder, is on the Hugging Face hub.
pub(super) fn on_the_hub(name: &str) -> String {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '~'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match name.split_once('/') {
        Some((org, rest))
            if plain(org) && plain(rest) && !FOLDERS.contains(&org) && !std::path::Path::new(name).exists() =>
        {
            format!("hf://{name}")
        }
        _ => name.to_owned(),
    }
}

/// The same at a revision, where it is on the hub.
pub(super) fn at_revision(name: &str, revision: Option<&str>) -> String {
    let place = on_the_hub(name);
    match revision.filter(|revision| *revision != "main" && !revision.is_empty()) {
        Some(revision) if place.starts_with("hf://") && !place.contains('@') => {
            format!("{place}@{}", revision.replace('/', "%2F"))
        }
        _ => place,
    }
}

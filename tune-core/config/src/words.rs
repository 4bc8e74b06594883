//! Values and types in words, for messages.

use tune_yaml::{Kind, Node, Value as Tree};

use crate::schema::Schema;

impl Schema {
    /// What is to be written, with its article.
    pub(crate) fn noun(&self) -> String {
        match self {
            Schema::Bool => "`true` or `false`".to_owned(),
            Schema::Int { min: 0, .. } => "a whole number from 0".to_owned(),
            Schema::Int { .. } => "a whole number".to_owned(),
            Schema::Float { .. } => "a number".to_owned(),
            Schema::Text => "text".to_owned(),
            Schema::Path => "a path".to_owned(),
            Schema::Choice(choices) => {
                or(&choices.choices.iter().map(|choice| quoted(choice.name)).collect::<Vec<_>>())
            }
            Schema::Optional(inner) => format!("{} or null", inner.noun()),
            Schema::List(_) => "a list".to_owned(),
            Schema::Array(_, length) => format!("a list of {length}"),
            Schema::Map(_) | Schema::Struct(_) => "a mapping".to_owned(),
            Schema::Component(_) => "a component".to_owned(),
            Schema::Broken => "something".to_owned(),
        }
    }
}

/// What was written, in words.
pub(crate) fn found(node: &Node) -> String {
    match &node.value {
        Tree::List(items) => format!("a list of {}", items.len()),
        Tree::Map(_) => "a mapping".to_owned(),
        Tree::Reported => "a mistake".to_owned(),
        Tree::Scalar(scalar) => match scalar.kind() {
            Kind::Null if scalar.text.is_empty() => "nothing".to_owned(),
            Kind::Null => "null".to_owned(),
            Kind::Bool(value) => format!("`{value}`"),
            Kind::Int(_) | Kind::Float(_) => format!("the number `{}`", scalar.text),
            Kind::Text => format!("the text \"{}\"", short(&scalar.text)),
        },
    }
}

/// The first words of what may be a whole file.
pub(crate) fn short(text: &str) -> String {
    let text = text.trim();
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None if line.len() < text.len() => format!("{line}..."),
        None => line.to_owned(),
    }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("`{name}`")
}

/// `a`, `b`, `c`.
pub(crate) fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.map(quoted).collect::<Vec<_>>().join(", ")
}

fn joined(words: &[String], last: &str) -> String {
    match words {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [words @ .., end] => format!("{} {last} {end}", words.join(", ")),
    }
}

/// a, b or c.
pub(crate) fn or(words: &[String]) -> String {
    joined(words, "or")
}

/// a, b and c.
pub(crate) fn and(words: &[String]) -> String {
    joined(words, "and")
}

//! Overrides put into a text, so that its order, its comments and its references stay.

use tune_yaml::{Entry, Node, SourceId, Span, Value};

use super::edits::{self, Edit};
use super::one_line;
use crate::emit;
use crate::overrides::{self, CommandLine};
use crate::schema::Schema;

/// The text, and what is typed after it.
const TEXT: SourceId = SourceId(0);
const LINE: SourceId = SourceId(1);

/// The text with each override in its place; `None` where one has none. Whether it means the same is another question.
pub(super) fn put(schema: &Schema, text: &str, overrides: &[String]) -> Option<String> {
    overrides.iter().try_fold(text.to_owned(), |text, written| one(schema, &text, written))
}

fn one(schema: &Schema, text: &str, written: &str) -> Option<String> {
    let text = edits::ended(text);
    let before = tune_yaml::parse(&text, TEXT).ok()?;
    let line = CommandLine::new("", &[written.to_owned()]);
    let with = overrides::parse(written, &line, line.overrides.first()?.clone(), LINE).ok()?;
    let mut after = before.clone();
    overrides::apply(schema, &mut after, &with).ok()?;
    let mut changed = Changed { text: &text, edits: Vec::new() };
    changed.node(&before, &after)?;
    Some(edits::put(&text, changed.edits))
}

/// What an override made of a tree, as edits of its text.
struct Changed<'a> {
    text: &'a str,
    edits: Vec<Edit>,
}

impl Changed<'_> {
    fn node(&mut self, before: &Node, after: &Node) -> Option<()> {
        if before == after {
            return Some(());
        }
        match (&before.value, &after.value) {
            (Value::Map(old), Value::Map(new)) if !old.is_empty() && is_within(before.span, self.text) => {
                self.entries(before, old, new)
            }
            (Value::List(old), Value::List(new)) if old.len() == new.len() && before.span == after.span => {
                old.iter().zip(new).try_for_each(|(old, new)| self.node(old, new))
            }
            _ => self.replaced(before, after),
        }
    }

    fn entries(&mut self, map: &Node, old: &[Entry], new: &[Entry]) -> Option<()> {
        for entry in old {
            match new.iter().find(|other| other.key == entry.key) {
                Some(other) => self.node(&entry.value, &other.value)?,
                None => {
                    let comment = format!("`{}` is gone: an override removed it", one_line(&entry.key));
                    self.edits.push(edits::removed(self.text, entry, comment));
                }
            }
        }
        let added = new.iter().filter(|entry| !old.iter().any(|other| other.key == entry.key));
        added
            .map(|entry| format!("{}: {}", emit::key(&entry.key), flow(&entry.value)))
            .try_for_each(|line| self.add(map, &line))
    }

    /// A line below the others of its mapping, or an entry before its closing brace.
    fn add(&mut self, map: &Node, line: &str) -> Option<()> {
        let written = self.text.get(map.span.start..map.span.end)?;
        if let Some(inner) = written.strip_prefix('{') {
            let at = map.span.start + 1 + inner.trim_end().strip_suffix('}')?.trim_end().trim_end_matches(',').len();
            self.edits.push(Edit { range: at..at, new: format!(", {line}"), comment: "set by an override".to_owned() });
            return Some(());
        }
        let column = map.span.start - edits::line_start(self.text, map.span.start);
        let end = edits::end_of(self.text, map);
        let next = end + edits::line_length(&self.text[end..]) + 1;
        let new = format!("{:column$}{line}  # set by an override\n", "");
        self.edits.push(Edit { range: next..next, new, comment: String::new() });
        Some(())
    }

    /// Another value where a single one or one in brackets was.
    fn replaced(&mut self, before: &Node, after: &Node) -> Option<()> {
        let range = before.span.start..before.span.end;
        let written = self.text.get(range.clone()).filter(|written| !written.is_empty())?;
        if !matches!(before.value, Value::Scalar(_)) && !written.starts_with(['[', '{']) {
            return None;
        }
        self.edits.push(Edit { range, new: flow(after), comment: format!("was {}", one_line(written)) });
        Some(())
    }
}

/// Whether a mapping was written here: one of an alias was written elsewhere.
fn is_within(span: Span, text: &str) -> bool {
    text.get(span.start..span.end).is_some_and(|written| !written.starts_with('*'))
}

/// A value on one line.
fn flow(node: &Node) -> String {
    match &node.value {
        Value::Scalar(scalar) if scalar.quoted => emit::reference_or_text(&scalar.text),
        Value::Scalar(scalar) if scalar.text.is_empty() => "null".to_owned(),
        Value::Scalar(scalar) => scalar.text.clone(),
        Value::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let entries: Vec<_> =
                entries.iter().map(|entry| format!("{}: {}", emit::key(&entry.key), flow(&entry.value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Reported => "null".to_owned(),
    }
}

//! Changes put into a text, each with a comment.

use std::ops::Range;

use tune_yaml::{Entry, Node, Value};

use super::told;
use crate::schema::COMPONENT;
use crate::torchtune::{Change, What};

/// A piece of the text that another one takes the place of.
pub(super) struct Edit {
    pub(super) range: Range<usize>,
    pub(super) new: String,
    pub(super) comment: String,
}

/// The text with all changes in it.
pub(super) fn apply(text: &str, changes: &[Change], root: &Node) -> String {
    let text = ended(text);
    let edits = changes.iter().map(|change| edit(&text, change));
    put(&text, edits.chain(emptied(&text, changes, root)).collect())
}

/// The text with a line break at its end.
pub(super) fn ended(text: &str) -> String {
    if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// The text with the edits in it.
pub(super) fn put(text: &str, edits: Vec<Edit>) -> String {
    let mut text = text.to_owned();
    let mut edits: Vec<_> = edits.into_iter().flat_map(|edit| placed(&text, edit)).collect();
    // From the end, so that places stay what they are.
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let mut untouched = text.len();
    for (mut range, new) in edits.into_iter().rev() {
        if new.is_empty() {
            // Its end has gone already, with a neighbour.
            range.end = range.end.min(untouched.max(range.start));
        }
        // Else it is a name within a component that is written anew.
        if range.end <= untouched {
            untouched = range.start;
            text.replace_range(range, &new);
        }
    }
    text
}

/// An edit with its comment: behind it where nothing else is on the line, or on a line above.
fn placed(text: &str, edit: Edit) -> Vec<(Range<usize>, String)> {
    let Edit { range, new, comment } = edit;
    let behind = &text[range.end..];
    let is_last = behind[..line_length(behind)].trim().is_empty();
    if comment.is_empty() {
        return vec![(range, new)];
    }
    if is_last && !new.is_empty() {
        return vec![(range, format!("{new}  # {comment}"))];
    }
    let start = line_start(text, range.start);
    let indent = text[start..].len() - text[start..].trim_start_matches(' ').len();
    vec![(start..start, format!("{:indent$}# {comment}\n", "")), (range, new)]
}

fn edit(text: &str, change: &Change) -> Edit {
    let comment = told(change, text);
    let span = change.span.start..change.span.end;
    match &change.what {
        What::Replaced(new) => Edit { range: span, new: new.clone(), comment },
        What::Removed(entry) => removed(text, entry, comment),
        What::Added { keys, component } => {
            let braces: String = keys.iter().map(|(key, value)| format!(", {key}: {value}")).collect();
            match component {
                Some(name) => Edit { range: span, new: format!("{{{COMPONENT}: {name}{braces}}}"), comment },
                None => added(text, span, keys, braces, &comment),
            }
        }
    }
}

/// Keys on lines of their own below that of the component, or behind it in braces; at the end of the text where they
/// belong to no component.
fn added(text: &str, span: Range<usize>, keys: &[(String, String)], braces: String, comment: &str) -> Edit {
    let lines = |column: usize| -> String {
        keys.iter().map(|(key, value)| format!("{:column$}{key}: {value}  # {comment}\n", "")).collect()
    };
    let at = if span.is_empty() { text.len() } else { span.end };
    if span.is_empty() {
        return Edit { range: at..at, new: lines(0), comment: String::new() };
    }
    let line = &text[line_start(text, at)..at];
    match line.find(COMPONENT) {
        Some(column) if !line.contains('{') => {
            let next = (at + line_length(&text[at..]) + 1).min(text.len());
            Edit { range: next..next, new: lines(column), comment: String::new() }
        }
        _ => Edit { range: at..at, new: braces, comment: comment.to_owned() },
    }
}

/// Braces for each section whose keys all go: what is left of it are comments.
fn emptied(text: &str, changes: &[Change], root: &Node) -> Vec<Edit> {
    let gone: Vec<usize> = changes
        .iter()
        .filter(|change| matches!(change.what, What::Removed(_)))
        .map(|change| change.span.start)
        .collect();
    let mut edits = Vec::new();
    sections(root, &mut |section| {
        let Value::Map(entries) = &section.value.value else { return };
        let is_block = !text[section.value.span.start.min(text.len())..].starts_with('{');
        let goes = |entry: &Entry| gone.contains(&entry.key_span.start);
        if is_block && !entries.is_empty() && entries.iter().all(goes) && !goes(section) {
            let key = section.key_span.end.min(text.len());
            if let Some(colon) = text[key..].find(':') {
                let at = key + colon + 1;
                edits.push(Edit { range: at..at, new: " {}".to_owned(), comment: String::new() });
            }
        }
    });
    edits
}

/// Calls `of` with every entry of every mapping.
fn sections(node: &Node, of: &mut dyn FnMut(&Entry)) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                of(entry);
                sections(&entry.value, of);
            }
        }
        Value::List(items) => items.iter().for_each(|item| sections(item, of)),
        Value::Scalar(_) | Value::Reported => {}
    }
}

/// An entry with its lines, or out of the braces that it stands in.
pub(super) fn removed(text: &str, entry: &Entry, comment: String) -> Edit {
    let (key, end) = (entry.key_span.start, end_of(text, &entry.value).max(entry.key_span.end));
    let start = line_start(text, key);
    let behind = &text[end..];
    let rest = behind[..line_length(behind)].trim();
    // `key:` without a value.
    let rest = if entry.value.is_null() { rest.trim_start_matches(':').trim_start() } else { rest };
    if text[start..key].trim().is_empty() && (rest.is_empty() || rest.starts_with('#')) {
        let line_end = end + line_length(behind);
        let new = format!("{}# {comment}", &text[start..key]);
        return Edit { range: start..line_end, new, comment: String::new() };
    }
    // In braces it goes with the comma behind it, or before it; in a list of mappings the first key makes room for the next.
    let next = behind.trim_start().strip_prefix(',').unwrap_or(behind).trim_start();
    let before = text[..key].trim_end();
    let key = match before.strip_suffix(',') {
        Some(before) if next.starts_with('}') => before.len(),
        _ => key,
    };
    Edit { range: key..text.len() - next.len(), new: String::new(), comment }
}

/// Where a value ends in the text; a block's own end may be behind the comments that follow it.
pub(super) fn end_of(text: &str, node: &Node) -> usize {
    let is_flow = text[node.span.start.min(text.len())..].starts_with(['[', '{']);
    let last = match &node.value {
        Value::List(items) if !is_flow => items.last(),
        Value::Map(entries) if !is_flow => entries.last().map(|entry| &entry.value),
        _ => None,
    };
    let end = last.map_or(node.span.end, |last| end_of(text, last)).min(text.len());
    text[..end].trim_end().len().max(node.span.start.min(end))
}

/// Where the line of a place begins.
pub(super) fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// The length of the first line.
pub(super) fn line_length(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

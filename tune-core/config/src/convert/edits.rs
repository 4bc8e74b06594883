//! Changes put into a text, each with a comment.

use std::ops::Range;

use tune_yaml::{Entry, Node, Value};

use super::told;
use crate::torchtune::{Change, What};

/// A piece of the text that another one takes the place of.
struct Edit {
    range: Range<usize>,
    new: String,
    /// To stand behind the line or above it.
    comment: String,
}

/// The text with all changes in it.
pub(super) fn apply(text: &str, changes: &[Change]) -> String {
    let mut edits: Vec<Edit> = changes.iter().filter_map(|change| edit(text, change)).collect();
    // From the end, so that places stay what they are; of two at one place the later one first.
    edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut out = text.to_owned();
    if !out.ends_with('\n') {
        out.push('\n');
    }
    let mut upper = out.len();
    for edit in edits.iter().rev() {
        // What lies within a piece that goes has gone with it.
        if edit.range.end > upper || out.get(edit.range.clone()).is_none() {
            continue;
        }
        upper = edit.range.start;
        let behind = &out[edit.range.end..];
        let alone = behind[..line_length(behind)].trim().is_empty() && !edit.new.ends_with('\n');
        let comment = match edit.comment.as_str() {
            "" => String::new(),
            comment if alone => format!("  # {comment}"),
            comment => {
                let start = line_start(&out, edit.range.start);
                let line = &out[start..];
                let indent = line.len() - line.trim_start_matches(' ').len();
                let above = format!("{:indent$}# {comment}\n", "");
                out.replace_range(edit.range.clone(), &edit.new);
                out.insert_str(start, &above);
                upper = start;
                continue;
            }
        };
        out.replace_range(edit.range.clone(), &format!("{}{comment}", edit.new));
    }
    out
}

fn edit(text: &str, change: &Change) -> Option<Edit> {
    let comment = told(change, text);
    let span = change.span.start..change.span.end;
    match &change.what {
        What::Replaced(new) => Some(Edit { range: span, new: new.clone(), comment }),
        What::Removed(entry) => Some(removed(text, entry, comment)),
        What::Added { key, value, component } => Some(match component {
            // A component without keys becomes a mapping. Its own change of name lies within.
            Some(name) => Edit { range: span, new: format!("{{_component_: {name}, {key}: {value}}}"), comment },
            // One that nobody wrote a place for stands at the end.
            None if text.get(span.clone()).is_none_or(str::is_empty) => {
                Edit { range: text.len()..text.len(), new: format!("{key}: {value}"), comment }
            }
            None => added(text, span.end, key, value, comment),
        }),
    }
}

/// A key on a line of its own below that of the component, or behind it in braces.
fn added(text: &str, at: usize, key: &str, value: &str, comment: String) -> Edit {
    let start = line_start(text, at);
    let line = &text[start..at];
    if let (Some(column), false) = (line.find(crate::schema::COMPONENT), line.contains('{')) {
        let end = at + line_length(&text[at..]);
        return Edit {
            range: end..end,
            new: format!("\n{:column$}{key}: {value}  # {comment}", ""),
            comment: String::new(),
        };
    }
    Edit { range: at..at, new: format!(", {key}: {value}"), comment }
}

/// An entry with its lines, or out of the braces that it stands in.
fn removed(text: &str, entry: &Entry, comment: String) -> Edit {
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
    let trimmed = behind.trim_start();
    if trimmed.starts_with(',') {
        let next = trimmed[1..].trim_start();
        return Edit { range: key..text.len() - next.len(), new: String::new(), comment };
    }
    // The last one goes with the comma before it; in a list of mappings the first one makes room for the next.
    let before = text[..key].trim_end();
    match before.strip_suffix(',') {
        Some(before) => Edit { range: before.len()..end, new: String::new(), comment },
        None if before.ends_with('-') => Edit { range: key..text.len() - trimmed.len(), new: String::new(), comment },
        None => Edit { range: key..end, new: String::new(), comment },
    }
}

/// Where a value ends; a block's own end may lie behind the comments that follow it.
fn end_of(text: &str, node: &Node) -> usize {
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
fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// The length of the first line.
fn line_length(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

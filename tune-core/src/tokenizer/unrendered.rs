//! What a conversation says and its chat template leaves out.

use serde_json::Value;

use super::form::{Form, Forms};
use super::names::Names;
use super::{ChatTemplate, Conversation};
use crate::{Error, Result};

/// Something that a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// The message, from 0.
    message: usize,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Its content, a text.
    Content,
    /// A part of its content, from 0.
    Part(usize),
    /// A call of a tool, from 0.
    Call(usize),
    /// A call in the form that came before `tool_calls`.
    FunctionCall,
}

impl What {
    fn is_call(self) -> bool {
        matches!(self, Self::Call(_) | Self::FunctionCall)
    }
}

/// Where a mark is put into a text.
#[derive(Clone, Copy)]
enum Side {
    Begin,
    End,
}

/// Refuses a conversation with a message of which nothing is in what the template renders. Returns the messages
/// whose calls are there and whose text is not: some templates mean it so.
///
/// Each text is given a number of its own, and that is looked for in what is rendered: a template may trim a text, cut
/// out reasoning or move the rest into another turn, but something of it must be there.
///
/// # Errors
/// The message that is left out, and what the template refuses.
pub(crate) fn check(template: &ChatTemplate, conversation: &Conversation, prompt: bool) -> Result<Vec<usize>> {
    let found = find(template, conversation, prompt)?;
    let mut beside_calls = Vec::new();
    for message in found.chunk_by(|(a, _), (b, _)| a.message == b.message) {
        let calls = message.iter().filter(|(place, _)| place.what.is_call());
        let a_call_is_rendered = calls.clone().any(|(_, rendered)| *rendered);
        let mut texts = message.iter().filter(|(place, _)| !place.what.is_call());
        match (texts.clone().find(|(_, rendered)| !rendered), a_call_is_rendered) {
            (Some((place, _)), true) => beside_calls.push(place.message),
            (Some((place, _)), false) => return Err(left_out(template, conversation, *place)),
            // A template that knows no tools may still render the text beside the call.
            (None, false) if texts.next().is_none() => {
                if let Some((call, _)) = calls.clone().next() {
                    return Err(left_out(template, conversation, *call));
                }
            }
            _ => {}
        }
    }
    Ok(beside_calls)
}

/// All that a conversation says, and whether it is in what the template renders.
fn find(template: &ChatTemplate, conversation: &Conversation, prompt: bool) -> Result<Vec<(Place, bool)>> {
    let mut places = Vec::new();
    let mut marked = conversation.clone();
    each_text(&mut marked, |place, text| {
        put(text, &mark(places.len()), Side::End);
        places.push(place);
    });
    let mut rendered = vec![false; places.len()];
    look_for_marks(template, &marked, prompt, conversation, &mut rendered)?;
    if rendered.contains(&false) {
        // Some templates take a text's beginning.
        let mut marked = conversation.clone();
        let mut numbers = 0..;
        each_text(&mut marked, |_, text| put(text, &mark(numbers.next().unwrap_or_default()), Side::Begin));
        look_for_marks(template, &marked, prompt, conversation, &mut rendered)?;
    }
    Ok(places.into_iter().zip(rendered).collect())
}

/// Notes which marks are in what is rendered of `marked`.
fn look_for_marks(
    template: &ChatTemplate,
    marked: &Conversation,
    prompt: bool,
    conversation: &Conversation,
    found: &mut [bool],
) -> Result<()> {
    if let Ok(text) = template.render(marked, prompt) {
        for (at, _) in text.match_indices(MARK) {
            let number = text[at + MARK.len()..].get(..DIGITS).and_then(|digits| digits.parse::<usize>().ok());
            if let Some(found) = number.and_then(|i| found.get_mut(i)) {
                *found = true;
            }
        }
        return Ok(());
    }
    // The template looks closely at its texts: they are looked for as they are.
    let text = template.render(conversation, prompt)?;
    let mut found = found.iter_mut();
    each_text(&mut conversation.clone(), |_, plain| {
        if let Some(found) = found.next() {
            *found |= text.contains(plain.trim());
        }
    });
    Ok(())
}

/// Visits what is said in a conversation, in order, where it is not empty.
fn each_text(conversation: &mut Conversation, mut visit: impl FnMut(Place, &mut String)) {
    for (message, turn) in conversation.messages.iter_mut().enumerate() {
        let mut visit = |what: What, value: Option<&mut Value>| {
            if let Some(Value::String(text)) = value
                && !text.trim().is_empty()
            {
                visit(Place { message, what }, text);
            }
        };
        match turn.get_mut("content") {
            Some(Value::Array(parts)) => {
                for (i, part) in parts.iter_mut().enumerate() {
                    let text = if part.is_string() { Some(part) } else { part.get_mut("text") };
                    visit(What::Part(i), text);
                }
            }
            content => visit(What::Content, content),
        }
        for (i, call) in turn.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let function = if call.get("function").is_some() { call.get_mut("function") } else { Some(call) };
            visit(What::Call(i), function.and_then(|function| function.get_mut("name")));
        }
        visit(What::FunctionCall, turn.get_mut("function_call").and_then(|call| call.get_mut("name")));
    }
}

/// A text's mark is this and the number of the text. No filter that a template may apply changes digits.
const MARK: &str = "5180397264";
const DIGITS: usize = 8;

fn mark(i: usize) -> String {
    format!("{MARK}{i:0DIGITS$}")
}

fn put(text: &mut String, mark: &str, side: Side) {
    let at = match side {
        Side::Begin => text.len() - text.trim_start().len(),
        Side::End => text.trim_end().len(),
    };
    text.insert_str(at, mark);
}

fn left_out(template: &ChatTemplate, conversation: &Conversation, place: Place) -> Error {
    let number = place.message + 1;
    let role = conversation.messages[place.message].get("role").and_then(Value::as_str).unwrap_or_default();
    let (what, advice) = match place.what {
        What::Content => {
            let wants_parts = Forms::of(template).choose(role) == Form::Parts;
            let advice =
                "; the template takes a list of parts: `\"content\": [{\"type\": \"text\", \"text\": \"...\"}]`";
            ("its content".to_owned(), if wants_parts { advice } else { "" })
        }
        What::Part(i) => (format!("part {} of its content", i + 1), ""),
        What::Call(_) => ("its `tool_calls`".to_owned(), ""),
        What::FunctionCall => {
            let advice = "; the template takes `\"tool_calls\": [{\"type\": \"function\", \"function\": {...}}]`";
            ("its `function_call`".to_owned(), if Names::of(template).contains("tool_calls") { advice } else { "" })
        }
    };
    Error::setup(format!(
        "message {number} (`{role}`): nothing of {what} is in what the chat template renders of this conversation{advice}"
    ))
}

#[cfg(test)]
#[path = "unrendered_tests.rs"]
mod tests;

//! Text cut where the model meets it: prompt with header | answer with stop token | what follows.
//!
//! The pieces are tokenized as one text, see [`super::encoder`].

use std::ops::Range;

use super::config::Masking;
use super::content::texts_of;
use super::conversation::{Chat, is_answer};
use crate::tokenizer::{ChatTemplate, Message, Prepared, Tokenizer};
use crate::{Error, Result};

/// A stretch of a sample, all of it trained or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) content: Content,
    pub(super) trained: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    Token(u32),
}

impl Piece {
    pub(super) fn text(text: impl Into<String>, trained: bool) -> Self {
        Self { content: Content::Text(text.into()), trained }
    }

    pub(super) fn token(id: u32, trained: bool) -> Self {
        Self { content: Content::Token(id), trained }
    }
}

/// What ends the trained part of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// A stop token of the tokenizer.
    Stop,
    /// A special token at which generation does not stop by itself.
    Other(u32),
    /// Nothing: the model does not learn where an answer ends.
    Nothing,
}

/// How the trained answers of a conversation end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    /// What closes the last.
    pub(super) last: Closing,
    /// Whether one before it has no stop token that is trained.
    pub(super) open_before: bool,
}

impl From<Closing> for Ends {
    fn from(last: Closing) -> Self {
        Self { last, open_before: false }
    }
}

/// What takes a sample's pieces, one after the other.
pub(super) trait Sink {
    /// Takes the next piece.
    fn push(&mut self, piece: Piece) -> Result<()>;

    /// Whether nothing that follows will be used.
    fn is_full(&self) -> bool;
}

/// Cuts a conversation into pieces. Where the sink is full, the rest is not looked at: to find an
/// answer by its prefix is to render all that stands before it.
///
/// The answers are where the template's `{% generation %}` marks say, else where rendering the
/// conversation up to each of them tells.
pub(super) fn of_conversation(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    chat: &Chat,
    masking: Masking,
    sink: &mut impl Sink,
) -> Result<Ends> {
    let conversation = &chat.conversation;
    let messages = &conversation.messages;
    let mut turns: Vec<usize> = (0..messages.len()).filter(|&i| is_answer(&messages[i])).collect();
    if masking == Masking::Last {
        turns.drain(..turns.len().saturating_sub(1));
    }
    if turns.is_empty() {
        if masking != Masking::All {
            return Err(Error::setup("the conversation has no assistant's message to learn"));
        }
        let text = template.render(conversation, false)?;
        let closing = closing_of(&text, tokenizer);
        sink.push(Piece::text(text, true))?;
        return Ok(closing.into());
    }
    if turns.iter().all(|turn| chat.left_out.contains(turn)) {
        // As a sample whose answers are cut off.
        sink.push(Piece::text(template.render(conversation, false)?, false))?;
        return Ok(Closing::Stop.into());
    }
    let conversation = Prepared::new(conversation)?;
    let rest_trained = masking == Masking::All;
    let text;
    let answers: Box<dyn Iterator<Item = Result<Answer>> + '_> = if template.marks_generation() {
        let (marked, answers) = marked_answers(template, tokenizer, chat, &conversation, masking)?;
        text = marked;
        Box::new(answers.into_iter().map(Ok))
    } else {
        text = template.render_first(messages.len(), &conversation, false)?;
        // An answer that is left out need not be found where all that is around it is left out, too.
        turns.retain(|turn| rest_trained || !chat.left_out.contains(turn));
        let search = Search { template, tokenizer, messages, conversation: &conversation, masking, text: &text };
        Box::new(turns.iter().map(move |&turn| {
            let (range, closing) = search.answer(turn)?;
            Ok(Answer { range, closing, is_open: closing != Closing::Stop, trained: !chat.left_out.contains(&turn) })
        }))
    };

    let mut position = 0;
    let mut ends = Ends::from(Closing::Stop);
    let mut last_is_open = false;
    for answer in answers {
        let Answer { range, closing, is_open, trained } = answer?;
        if range.start < position {
            return Err(Error::setup("the chat template renders the assistant's messages into each other"));
        }
        if trained {
            ends = Ends { last: closing, open_before: ends.open_before || last_is_open };
            last_is_open = is_open;
        }
        sink.push(Piece::text(&text[position..range.start], rest_trained))?;
        position = range.end;
        sink.push(Piece::text(&text[range], trained))?;
        if sink.is_full() {
            return Ok(ends);
        }
    }
    sink.push(Piece::text(&text[position..], rest_trained))?;
    Ok(ends)
}

/// Where an answer stands in the text with its stop token.
struct Answer {
    range: Range<usize>,
    closing: Closing,
    /// Whether an answer ends here, and no stop token is trained with it.
    is_open: bool,
    /// False where the record leaves it out.
    trained: bool,
}

fn marked_answers(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    chat: &Chat,
    conversation: &Prepared,
    masking: Masking,
) -> Result<(String, Vec<Answer>)> {
    let messages = &chat.conversation.messages;
    let rendered = template.render_first_marked(messages.len(), conversation)?;
    let (text, mut ranges) = (rendered.text, rendered.generated);
    // An answer may have several marked parts: all those that its turn adds.
    let parts = ranges.len();
    let parts_before = |turn: usize| -> Result<usize> {
        Ok(template.render_first_marked(turn, conversation)?.generated.len().min(parts))
    };
    let mut trained = vec![true; parts];
    for &turn in &chat.left_out {
        let before = parts_before(turn)?;
        trained[before..parts_before(turn + 1)?.max(before)].fill(false);
    }
    if masking == Masking::Last {
        let last = parts_before(messages.iter().rposition(is_answer).unwrap_or_default())?;
        ranges.drain(..last);
        trained.drain(..last);
    }
    let answers = ranges.into_iter().zip(trained).filter(|(range, _)| !range.is_empty());
    let answers: Vec<Answer> = answers
        .map(|(range, trained)| {
            let closing = closing_of(&text[range.clone()], tokenizer);
            // A part of an answer may have others behind it: it ends where a stop token follows.
            let next = tokenizer.leading_special(text[range.end..].trim_start());
            let is_open = masking != Masking::All
                && closing != Closing::Stop
                && next.is_some_and(|(id, _)| tokenizer.stop_tokens().contains(&id));
            Answer { range, closing, is_open, trained }
        })
        .collect();
    if !answers.iter().any(|answer| answer.trained) {
        return Err(Error::setup(
            "the chat template's `{% generation %}` marks leave no token of this conversation to learn",
        ));
    }
    Ok((text, answers))
}

/// What a stretch of text ends with.
fn closing_of(text: &str, tokenizer: &Tokenizer) -> Closing {
    match tokenizer.special_at_end(text.trim_end()) {
        Some(id) if tokenizer.stop_tokens().contains(&id) => Closing::Stop,
        Some(id) => Closing::Other(id),
        None => Closing::Nothing,
    }
}

/// Finds answers by rendering what stands before them.
struct Search<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    messages: &'a [Message],
    conversation: &'a Prepared,
    masking: Masking,
    /// The whole conversation.
    text: &'a str,
}

impl Search<'_> {
    /// Where in the text the answer `turn` stands with its stop token.
    fn answer(&self, turn: usize) -> Result<(Range<usize>, Closing)> {
        let Self { template, tokenizer, messages, conversation, text, .. } = *self;
        let number = turn + 1;
        let prompt = template
            .render_first(turn, conversation, true)
            .map_err(|e| Error::setup(format!("{e} (rendering the prompt of message {number})")))?;
        let start = prompt.len();
        if !text.starts_with(&prompt) {
            let what = format!("the prompt that the model answers with message {number}");
            return Err(self.not_a_prefix(turn, &prompt, &what));
        }
        let until = if turn + 1 == messages.len() {
            text.to_owned()
        } else {
            template.render_first(turn + 1, conversation, false)?
        };
        let not_a_prefix = || self.not_a_prefix(turn, &until, &format!("the conversation up to message {number}"));
        // A template may close a conversation with more than a turn (`<|endoftext|>`). That is no
        // matter, as long as the answer and its stop token stand in what the two have in common.
        let common = common_prefix(&until, text);
        let Some(span) = text.get(start..common).filter(|s| !s.is_empty()) else { return Err(not_a_prefix()) };
        let content_end = end_of_texts(span, &texts_of(&messages[turn]));
        let stop = match content_end {
            Some(from) => tokenizer.first_stop(&span[from..]).map(|stop| from + stop.start..from + stop.end),
            // The template rewrites the content: the turn is closed by the last stop token in it.
            None => tokenizer.last_stop(span),
        };
        if let Some(stop) = stop {
            return Ok((start..start + stop.end, Closing::Stop));
        }
        let is_prefix = common == until.len();
        let Some(content_end) = content_end.or(is_prefix.then_some(span.len())) else { return Err(not_a_prefix()) };
        let rest = &span[content_end..];
        let gap = rest.len() - rest.trim_start().len();
        match tokenizer.leading_special(&rest[gap..]) {
            Some((id, len)) => Ok((start..start + content_end + gap + len, Closing::Other(id))),
            // The answer ends otherwise where more follows: trained like this, it would not end at all.
            None if tokenizer.first_stop(&until[common..]).is_some() => Err(not_a_prefix()),
            None => Ok((start..start + content_end, Closing::Nothing)),
        }
    }

    /// The answer `turn` cannot be found, with what would help.
    fn not_a_prefix(&self, turn: usize, part: &str, what: &str) -> Error {
        let at = common_prefix(part, self.text);
        let shown = |text: &str| text[at..].chars().take(40).collect::<String>();
        let last =
            self.messages.iter().rposition(is_answer).filter(|&last| last != turn && self.masking != Masking::Last);
        let advice = match last.is_some_and(|last| self.answer(last).is_ok()) {
            true => "Set `masking_strategy: last`, or use",
            false => "Use",
        };
        Error::setup(format!(
            "the chat template cannot be trained with: {what} is not how the whole conversation begins (after {at} \
             bytes it has {:?}, and the whole has {:?}). {advice} a chat template with {{% generation %}} marks",
            shown(part),
            shown(self.text),
        ))
    }
}

/// Where in a span the last of a message's texts ends, if all are there, one behind the other.
fn end_of_texts(span: &str, texts: &[&str]) -> Option<usize> {
    texts.iter().try_fold(0, |end, text| {
        [text, text.trim()].iter().find_map(|text| span[end..].find(*text).map(|at| end + at + text.len()))
    })
}

fn common_prefix(a: &str, b: &str) -> usize {
    let mut n = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(n) || !b.is_char_boundary(n) {
        n -= 1;
    }
    n
}

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod tests;

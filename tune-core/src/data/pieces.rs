//! Text cut where the model meets it: prompt with header | answer with stop token | what follows.
//!
//! A tokenizer may join the end of one piece with the beginning of the next, a token that no
//! prompt ever ends in. So each piece is tokenized on its own, as it is at inference.

use std::ops::Range;

use super::batch::{IGNORE, Sample};
use super::config::Masking;
use super::conversation::{is_answer, text_of};
use crate::tokenizer::{ChatTemplate, Conversation, Message, Prepared, Tokenizer};
use crate::{Error, Result};

/// A stretch of a sample that is tokenized on its own.
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
    conversation: &Conversation,
    masking: Masking,
    sink: &mut impl Sink,
) -> Result<Closing> {
    let messages = &conversation.messages;
    let mut turns: Vec<usize> = (0..messages.len()).filter(|&i| is_answer(&messages[i])).collect();
    if masking == Masking::Last {
        turns.drain(..turns.len().saturating_sub(1));
    }
    if turns.is_empty() {
        if masking != Masking::All {
            return Err(Error::setup("the conversation has no assistant's message to learn"));
        }
        sink.push(Piece::text(template.render(conversation, false)?, true))?;
        return Ok(Closing::Nothing);
    }
    let conversation = Prepared::new(conversation)?;
    let text;
    let answers: Box<dyn Iterator<Item = Result<(Range<usize>, Closing)>> + '_> = if template.marks_generation() {
        let (marked, answers, closing) = marked_answers(template, tokenizer, messages, &conversation, masking)?;
        text = marked;
        Box::new(answers.into_iter().map(move |answer| Ok((answer, closing))))
    } else {
        text = template.render_first(messages.len(), &conversation, false)?;
        let find = |&turn: &usize| answer_by_prefix(template, tokenizer, messages, &conversation, turn, &text);
        Box::new(turns.iter().map(find))
    };

    let rest_trained = masking == Masking::All;
    let mut position = 0;
    let mut closing = Closing::Stop;
    for answer in answers {
        let (answer, end) = answer?;
        if answer.start < position {
            return Err(Error::setup("the chat template renders the assistant's messages into each other"));
        }
        closing = end;
        sink.push(Piece::text(&text[position..answer.start], rest_trained))?;
        position = answer.end;
        sink.push(Piece::text(&text[answer], true))?;
        if sink.is_full() {
            return Ok(closing);
        }
    }
    sink.push(Piece::text(&text[position..], rest_trained))?;
    Ok(closing)
}

type Answers = (String, Vec<Range<usize>>, Closing);

fn marked_answers(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    conversation: &Prepared,
    masking: Masking,
) -> Result<Answers> {
    let rendered = template.render_first_marked(messages.len(), conversation)?;
    let (text, mut answers) = (rendered.text, rendered.generated);
    if masking == Masking::Last {
        // An answer may have several marked parts: all those that the last turn adds.
        let last = messages.iter().rposition(is_answer).unwrap_or_default();
        let before = template.render_first_marked(last, conversation)?.generated.len();
        answers.drain(..before.min(answers.len()));
    }
    answers.retain(|a| !a.is_empty());
    let Some(last) = answers.last() else {
        return Err(Error::setup(
            "the chat template's `{% generation %}` marks leave no token of this conversation to learn",
        ));
    };
    let end = text[last.clone()].trim_end();
    let closing = match tokenizer.special_at_end(end) {
        Some(id) if tokenizer.stop_tokens().contains(&id) => Closing::Stop,
        Some(id) => Closing::Other(id),
        None => Closing::Nothing,
    };
    Ok((text, answers, closing))
}

/// Where in `text`, the whole conversation, the answer `turn` stands with its stop token.
fn answer_by_prefix(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    conversation: &Prepared,
    turn: usize,
    text: &str,
) -> Result<(Range<usize>, Closing)> {
    let number = turn + 1;
    let prompt = template
        .render_first(turn, conversation, true)
        .map_err(|e| Error::setup(format!("{e} (rendering the prompt of message {number})")))?;
    let start = prompt.len();
    if !text.starts_with(&prompt) {
        return Err(not_a_prefix(&prompt, text, &format!("the prompt that the model answers with message {number}")));
    }
    let until = if turn + 1 == messages.len() {
        text.to_owned()
    } else {
        template.render_first(turn + 1, conversation, false)?
    };
    // A template may close a conversation with more than a turn (`<|endoftext|>`). That is no
    // matter, as long as the answer and its stop token stand in what the two have in common.
    let common = common_prefix(&until, text);
    let Some(span) = text.get(start..common).filter(|s| !s.is_empty()) else {
        return Err(not_a_prefix(&until, text, &format!("the conversation up to message {number}")));
    };
    let content = text_of(&messages[turn]);
    let content_end = [content, content.trim()].iter().find_map(|c| span.find(c).map(|at| at + c.len()));
    let stop = match content_end {
        Some(from) => tokenizer.first_stop(&span[from..]).map(|stop| from + stop.start..from + stop.end),
        // The template rewrites the content: the turn is closed by the last stop token in it.
        None => tokenizer.last_stop(span),
    };
    if let Some(stop) = stop {
        return Ok((start..start + stop.end, Closing::Stop));
    }
    let is_prefix = common == until.len();
    let Some(content_end) = content_end.or(is_prefix.then_some(span.len())) else {
        return Err(not_a_prefix(&until, text, &format!("the conversation up to message {number}")));
    };
    let rest = &span[content_end..];
    let gap = rest.len() - rest.trim_start().len();
    match tokenizer.leading_special(&rest[gap..]) {
        Some((id, len)) => Ok((start..start + content_end + gap + len, Closing::Other(id))),
        None => Ok((start..start + content_end, Closing::Nothing)),
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    let mut n = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(n) || !b.is_char_boundary(n) {
        n -= 1;
    }
    n
}

fn not_a_prefix(part: &str, whole: &str, what: &str) -> Error {
    let at = common_prefix(part, whole);
    let shown = |text: &str| text[at..].chars().take(40).collect::<String>();
    Error::setup(format!(
        "the chat template cannot be trained with: {what} is not how the whole conversation begins (after {at} bytes \
         it has {:?}, and the whole has {:?}). Set `masking_strategy: last`, or use a chat template with \
         {{% generation %}} marks",
        shown(part),
        shown(whole),
    ))
}

/// A tokenized sample and what was lost on the way.
pub(super) struct Encoded {
    pub(super) sample: Sample,
    /// Tokens that were cut off: all of them from a [`Encoder::counting`] one, else those that were looked at.
    pub(super) cut: usize,
    /// Whether a stop token is among the trained ones.
    pub(super) stops: bool,
}

/// Tokenizes pieces, cuts them from the right, and shifts the targets.
pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    limit: usize,
    ids: Vec<u32>,
    trained: Vec<bool>,
    /// Whether a text has begun, which the next one continues.
    begun: bool,
    /// Whether what will be cut off is looked at.
    counting: bool,
}

impl<'a> Encoder<'a> {
    /// For a sample of at most `max_seq_len` tokens.
    pub(super) fn new(tokenizer: &'a Tokenizer, max_seq_len: Option<usize>) -> Self {
        let limit = max_seq_len.unwrap_or(usize::MAX);
        Self { tokenizer, limit, ids: Vec::new(), trained: Vec::new(), begun: false, counting: false }
    }

    /// The same, which takes all pieces to count what it cuts off.
    pub(super) fn counting(self) -> Self {
        Self { counting: true, ..self }
    }

    /// The sample of the pieces so far.
    pub(super) fn finish(self, origin: String) -> Encoded {
        let Self { tokenizer, limit, mut ids, trained, .. } = self;
        let cut = ids.len().saturating_sub(limit);
        ids.truncate(limit);
        let targets: Vec<u32> = (1..=ids.len())
            .map(|next| match ids.get(next) {
                Some(&id) if trained[next] => id,
                _ => IGNORE,
            })
            .collect();
        let stops = targets.iter().any(|target| tokenizer.stop_tokens().contains(target));
        Encoded { sample: Sample { input_ids: ids, targets, origin }, cut, stops }
    }
}

impl Sink for Encoder<'_> {
    fn push(&mut self, piece: Piece) -> Result<()> {
        match &piece.content {
            Content::Token(id) => self.ids.push(*id),
            Content::Text(text) if text.is_empty() => {}
            Content::Text(text) if self.begun => self.ids.extend(self.tokenizer.encode_continuation(text)?),
            Content::Text(text) => {
                self.ids.extend(self.tokenizer.encode(text)?);
                self.begun = true;
            }
        }
        self.trained.resize(self.ids.len(), piece.trained);
        Ok(())
    }

    fn is_full(&self) -> bool {
        !self.counting && self.ids.len() > self.limit
    }
}

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod tests;

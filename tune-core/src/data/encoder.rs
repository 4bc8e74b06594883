//! From pieces of text to a sample.
//!
//! A tokenizer may join the end of one piece with the beginning of the next, a token that no prompt ever ends in: there
//! the two are tokenized apart, as they are at inference. Everywhere else the tokens are those of the whole text, which is
//! how the model meets a conversation's history.

use super::batch::{IGNORE, Sample};
use super::pieces::{Content, Piece, Sink};
use crate::Result;
use crate::tokenizer::Tokenizer;

/// Tokens that are counted of what is cut off; of a longer sample it is known that there are more.
const COUNTED: usize = 1 << 20;
/// Tokens more than a sample may have, after which its text is long enough.
const SPARE: usize = 64;
/// Bytes of text before it is looked at whether it is long enough.
const LOOK_AT: usize = 1 << 14;

/// A tokenized sample and what was lost on the way.
pub(super) struct Encoded {
    pub(super) sample: Sample,
    /// Tokens that were cut off: all of them from a [`Encoder::counting`] one, else those that were looked at.
    pub(super) cut: usize,
    /// Whether so many were cut off that they were not counted to the end.
    pub(super) more_cut: bool,
    /// Whether a stop token is among the trained ones.
    pub(super) stops: bool,
    /// Whether the last stop token that is trained is not among what was cut off.
    pub(super) ends: bool,
}

/// Tokenizes pieces, cuts them from the right, and shifts the targets.
pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    limit: usize,
    /// The text of all pieces.
    text: String,
    parts: Vec<Part>,
    /// Whether what will be cut off is looked at.
    counting: bool,
    /// The length of the text at which it is looked whether it is long enough, and whether it is.
    look_at: usize,
    full: bool,
}

/// A piece without its text.
#[derive(Debug, Clone, Copy)]
struct Part {
    content: PartContent,
    trained: bool,
}

#[derive(Debug, Clone, Copy)]
enum PartContent {
    /// The text up to here.
    UpTo(usize),
    Token(u32),
}

impl<'a> Encoder<'a> {
    /// For a sample of at most `max_seq_len` tokens.
    pub(super) fn new(tokenizer: &'a Tokenizer, max_seq_len: Option<usize>) -> Self {
        let limit = max_seq_len.unwrap_or(usize::MAX);
        let look_at = LOOK_AT.max(limit);
        Self { tokenizer, limit, text: String::new(), parts: Vec::new(), counting: false, look_at, full: false }
    }

    /// The same, which takes all pieces to count what it cuts off.
    pub(super) fn counting(self) -> Self {
        Self { counting: true, ..self }
    }

    /// The sample of the pieces so far.
    ///
    /// # Errors
    /// A text that the tokenizer has no tokens for, a token that the model has no embedding for.
    pub(super) fn finish(self, origin: String) -> Result<Encoded> {
        let wanted = match self.counting {
            true => self.limit.saturating_add(COUNTED),
            false => self.limit.saturating_add(1),
        };
        let (mut ids, trained, complete) = self.ids(wanted)?;
        let cut = ids.len().saturating_sub(self.limit);
        let is_stop = |i: &usize| trained[*i] && self.tokenizer.stop_tokens().contains(&ids[*i]);
        let last_stop = (0..ids.len()).rev().find(is_stop);
        let ends = last_stop.is_some_and(|i| i < self.limit && (complete || cut == 0));
        ids.truncate(self.limit);
        self.tokenizer.check_ids(&ids)?;
        let targets: Vec<u32> = (1..=ids.len())
            .map(|next| match ids.get(next) {
                Some(&id) if trained[next] => id,
                _ => IGNORE,
            })
            .collect();
        let stops = targets.iter().any(|target| self.tokenizer.stop_tokens().contains(target));
        let more_cut = cut > 0 && !complete;
        Ok(Encoded { sample: Sample { input_ids: ids, targets, origin, label: None }, cut, more_cut, stops, ends })
    }

    /// Makes text of a token that stands between two texts, so that what follows is tokenized as behind that token.
    fn write_last_token(&mut self) {
        if let Some(Part { content, .. }) = self.parts.last_mut()
            && let PartContent::Token(id) = *content
            && !self.text.is_empty()
            && let Some(token) = self.tokenizer.written(id)
        {
            self.text += token;
            *content = PartContent::UpTo(self.text.len());
        }
    }

    /// At least the first `wanted` ids, which of them are trained, and whether these are all.
    fn ids(&self, wanted: usize) -> Result<(Vec<u32>, Vec<bool>, bool)> {
        let ends = self.parts.iter().filter_map(|part| match part.content {
            PartContent::UpTo(end) => Some(end),
            PartContent::Token(_) => None,
        });
        let mut borders: Vec<usize> = ends.collect();
        borders.pop();
        let pieces = self.tokenizer.pieces(&self.text, &borders, wanted)?;
        let mut counts = pieces.borders.into_iter().chain([pieces.ids.len()]);

        let mut ids = Vec::with_capacity(pieces.ids.len() + self.parts.len());
        let mut trained = Vec::with_capacity(ids.capacity());
        let mut done = 0;
        for part in &self.parts {
            match part.content {
                PartContent::Token(_) if done == pieces.ids.len() && !pieces.complete => break,
                PartContent::Token(id) => ids.push(id),
                PartContent::UpTo(_) => {
                    let count = counts.next().unwrap_or(done);
                    ids.extend(&pieces.ids[done..count]);
                    done = count;
                }
            }
            trained.resize(ids.len(), part.trained);
        }
        Ok((ids, trained, pieces.complete))
    }
}

impl Sink for Encoder<'_> {
    fn push(&mut self, piece: Piece) -> Result<()> {
        let content = match &piece.content {
            Content::Token(id) => PartContent::Token(*id),
            Content::Text(text) if text.is_empty() => return Ok(()),
            Content::Text(text) => {
                self.write_last_token();
                self.text += text;
                PartContent::UpTo(self.text.len())
            }
        };
        let part = Part { content, trained: piece.trained };
        match self.parts.last_mut() {
            // Between two pieces of history there is no border.
            Some(last @ Part { content: PartContent::UpTo(_), trained: false })
                if !part.trained && matches!(part.content, PartContent::UpTo(_)) =>
            {
                *last = part;
            }
            _ => self.parts.push(part),
        }
        if !self.counting && self.text.len() >= self.look_at {
            self.look_at = self.text.len().saturating_mul(2);
            let enough = self.limit.saturating_add(SPARE);
            let known = self.tokenizer.tokens(&self.text, enough)?;
            // What is near the end of the text may become other tokens when more is put behind it.
            let settled = known.tokens.iter().take_while(|token| token.end + LOOK_AT / 4 <= self.text.len());
            self.full = settled.count() >= enough;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.full
    }
}

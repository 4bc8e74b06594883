//! The tokens of a whole text, parted where its pieces meet.
//!
//! Most tokenizers split a text at its special tokens first, and what stands between two of them is encoded by itself.
//! So only there is anything encoded again where an ordinary token spans a border: what stands before the border, as a
//! prompt that ends there, and what follows, as its continuation.

use std::ops::Range;

use tokenizers::AddedToken;

use super::Tokenizer;
use super::encode::{Token, Tokens};
use crate::Result;

/// The ids of a text in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// The ids of all of them.
    pub(crate) ids: Vec<u32>,
    /// For each border the number of ids before it.
    pub(crate) borders: Vec<usize>,
    /// Whether these are all ids of the text.
    pub(crate) complete: bool,
}

/// Where a token is, seen from a border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Before,
    Behind,
    Across,
}

impl Tokenizer {
    /// The ids of a text, at least the first `wanted`, and which of them stand before each of `borders`, places in the
    /// text in ascending order.
    ///
    /// They are those of the whole text. An added token that takes white space along stands where its own text is. Only
    /// where another token spans a border are the two sides encoded apart.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn pieces(&self, text: &str, borders: &[usize], wanted: usize) -> Result<Pieces> {
        let mut ask = wanted;
        loop {
            let pieces = self.at_least(text, borders, ask)?;
            // Encoded apart, the sides of a border may have fewer tokens than together.
            if pieces.complete || pieces.ids.len() >= wanted {
                return Ok(pieces);
            }
            ask = ask.saturating_mul(2);
        }
    }

    fn at_least(&self, text: &str, borders: &[usize], wanted: usize) -> Result<Pieces> {
        let mut all = self.tokens(text, wanted)?;
        if !all.tokens.is_sorted_by(|a, b| a.start <= b.start && a.end <= b.end) {
            return self.one_by_one(text, borders);
        }
        let mut counts = Vec::with_capacity(borders.len());
        let (mut begin, mut from) = (0, 0);
        for &border in borders {
            let side = |token: &Token| self.side(text, token, border);
            let before = all.tokens[from..].iter().take_while(|token| side(token) == Side::Before).count();
            let mut at = from + before;
            if all.tokens.get(at).is_some_and(|token| side(token) == Side::Across) {
                at = self.part(text, &mut all, at, begin..border, wanted)?;
                begin = border;
            }
            from = at;
            counts.push(at);
        }
        let ids = all.tokens.iter().map(|token| token.id).collect();
        Ok(Pieces { ids, borders: counts, complete: all.complete })
    }

    /// Each piece by itself, where a normalizer lost count of where in the text its tokens are.
    fn one_by_one(&self, text: &str, borders: &[usize]) -> Result<Pieces> {
        let mut pieces = Pieces { complete: true, ..Pieces::default() };
        let mut begin = 0;
        for &end in borders.iter().chain([&text.len()]) {
            let tokens = match begin {
                0 => self.tokens(&text[..end], usize::MAX)?,
                _ => self.continuation(text, begin..end, usize::MAX)?,
            };
            pieces.ids.extend(tokens.tokens.iter().map(|token| token.id));
            pieces.borders.push(pieces.ids.len());
            begin = end;
        }
        pieces.borders.pop();
        Ok(pieces)
    }

    /// Encodes the two sides of a border apart, in the section of the text that the token `across` is in. `piece` is
    /// what stands between the border and the last one at which this was done. Returns the number of tokens before the
    /// border.
    fn part(&self, text: &str, all: &mut Tokens, across: usize, piece: Range<usize>, wanted: usize) -> Result<usize> {
        let border = piece.end;
        let added = |token: &Token| self.splits_first(token.id) && token.start >= piece.start;
        let opening = all.tokens[..across].iter().rposition(added);
        let closing = all.tokens[across..].iter().position(|token| token.start >= border && added(token));
        let closing = closing.map(|n| across + n);

        let first = opening.unwrap_or_else(|| all.tokens.partition_point(|token| token.start < piece.start));
        let before = match opening {
            // With the token in front, as what follows it is encoded as what follows it.
            Some(opening) => self.from(text, all.tokens[opening].start..border, usize::MAX)?,
            None if piece.start == 0 => self.from(text, 0..border, usize::MAX)?,
            None => self.continuation(text, piece.clone(), usize::MAX)?,
        };
        let until = closing.map_or(text.len(), |closing| all.tokens[closing].start);
        let left = wanted.saturating_sub(first + before.tokens.len());
        let behind = self.continuation(text, border..until, if closing.is_some() { usize::MAX } else { left })?;

        let at = first + before.tokens.len();
        let last = closing.unwrap_or(all.tokens.len());
        if closing.is_none() {
            all.complete = behind.complete;
        }
        all.tokens.splice(first..last, before.tokens.into_iter().chain(behind.tokens));
        Ok(at)
    }

    /// The tokens of a part of a text, encoded alone.
    fn from(&self, text: &str, part: Range<usize>, wanted: usize) -> Result<Tokens> {
        let begin = part.start;
        let mut all = self.tokens(&text[part], wanted)?;
        for token in &mut all.tokens {
            token.start += begin;
            token.end += begin;
        }
        Ok(all)
    }

    fn side(&self, text: &str, token: &Token, border: usize) -> Side {
        let own = match self.added.get(&token.id) {
            Some(added) if token.start < border && border < token.end => own_text(added, text, token),
            _ => token.start..token.end,
        };
        match own {
            own if own.start >= border => Side::Behind,
            own if own.end <= border => Side::Before,
            _ => Side::Across,
        }
    }

    /// How a token is written in a text that is split at it.
    pub(crate) fn written(&self, id: u32) -> Option<&str> {
        self.added.get(&id).filter(|added| !added.normalized).map(|added| added.content.as_str())
    }

    /// Whether the text is split at a token before anything else is done to it.
    fn splits_first(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|added| !added.normalized)
    }
}

/// The part of an added token's bytes that is not white space that it took along.
fn own_text(added: &AddedToken, text: &str, token: &Token) -> Range<usize> {
    let span = &text[token.start..token.end];
    if let Some(at) = span.find(&added.content) {
        return token.start + at..token.start + at + added.content.len();
    }
    // Found in a normalized text, where it may be written in another way.
    let begin = if added.lstrip { span.len() - span.trim_start().len() } else { 0 };
    let end = if added.rstrip { span.trim_end().len() } else { span.len() };
    token.start + begin..token.start + end.max(begin)
}

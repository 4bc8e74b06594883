//! Text to tokens that know where in the text they are.
//!
//! A long text is encoded window by window: the `tokenizers` crate takes some hundred bytes of memory for each byte of
//! text, and often only the first tokens are wanted. Windows overlap and are joined where both have the same tokens.

use std::ops::Range;

use super::Tokenizer;
use crate::{Error, Result};

/// A token and the bytes of the text that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The first tokens of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<Token>,
    /// Whether these are all.
    pub(crate) complete: bool,
}

/// Bytes of text that are encoded at a time.
const WINDOW: usize = 1 << 17;
/// Bytes at the end of a window whose tokens may depend on what follows.
const UNSETTLED: usize = 1 << 12;
/// Windows are joined where this many tokens in a row are the same in both.
const SAME: usize = 16;

/// Texts in front of a text that continues another. The first is taken that is not joined with it.
const ANCHORS: [&str; 5] = ["\n", ".", "x", "0", "-"];
/// Bytes at the beginning of a text that tell whether an anchor is joined with it.
const HEAD: usize = 64;

impl Tokenizer {
    /// The ids of a text, without any special token in front or behind. Special tokens that are
    /// written out in the text become their ids.
    ///
    /// # Errors
    /// Where the tokenizer has no token for a part of the text and no unknown token either.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() <= WINDOW {
            return self.encode_with(text, false);
        }
        Ok(self.tokens(text, usize::MAX)?.tokens.iter().map(|token| token.id).collect())
    }

    /// The ids of a text that continues another: as [`Tokenizer::encode`], without the space that
    /// SentencePiece tokenizers put in front of a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.continuation(text, 0..text.len(), usize::MAX)?.tokens.iter().map(|token| token.id).collect())
    }

    pub(super) fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(|e| failed(text, &*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text; of a long one at least the first `wanted`, as they are in the whole.
    pub(crate) fn tokens(&self, text: &str, wanted: usize) -> Result<Tokens> {
        self.windows(text, wanted, WINDOW)
    }

    fn windows(&self, text: &str, wanted: usize, window: usize) -> Result<Tokens> {
        let unsettled = UNSETTLED.min(window / 8);
        let mut tokens: Vec<Token> = Vec::new();
        let mut begin = 0_usize;
        loop {
            let end = text.floor_char_boundary(begin.saturating_add(window));
            let new = self.window(text, begin..end)?;
            let overlap = begin..text.floor_char_boundary(begin + 2 * unsettled);
            if !join(&mut tokens, &new, &overlap) {
                // The same text in other tokens: what continues a token that is kept is encoded as a continuation.
                let kept = tokens.partition_point(|token| token.end <= begin + unsettled);
                tokens.truncate(kept);
                let from = tokens.last().map_or(0, |token| token.end);
                tokens.extend(self.continued(text, from..end)?);
            }
            if end == text.len() {
                return Ok(Tokens { tokens, complete: true });
            }
            let settled = tokens.partition_point(|token| token.end <= end - unsettled);
            if settled >= wanted {
                tokens.truncate(settled);
                return Ok(Tokens { tokens, complete: false });
            }
            begin = text.floor_char_boundary(end - 2 * unsettled);
        }
    }

    /// The tokens of a part of a text, encoded alone.
    fn window(&self, text: &str, part: Range<usize>) -> Result<Vec<Token>> {
        let begin = part.start;
        let text = &text[part];
        let encoding = self.inner.encode(text, false).map_err(|e| failed(text, &*e))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, end))| Token { id, start: begin + start, end: begin + end }).collect())
    }

    /// The tokens of a part of a text that continues what stands before it: at least the first `wanted`.
    pub(crate) fn continuation(&self, text: &str, part: Range<usize>, wanted: usize) -> Result<Tokens> {
        let Some(anchor) = self.anchor(text, &part)? else {
            let tokens = self.tokens(&text[part.clone()], wanted)?;
            return Ok(shifted(tokens, 0, part.start));
        };
        let anchored = format!("{anchor}{}", &text[part.clone()]);
        Ok(shifted(self.tokens(&anchored, wanted.saturating_add(SAME))?, anchor.len(), part.start))
    }

    /// The same for a part that fits into a window.
    fn continued(&self, text: &str, part: Range<usize>) -> Result<Vec<Token>> {
        let anchor = self.anchor(text, &part)?.unwrap_or_default();
        let anchored = format!("{anchor}{}", &text[part.clone()]);
        let tokens = Tokens { tokens: self.window(&anchored, 0..anchored.len())?, complete: true };
        Ok(shifted(tokens, anchor.len(), part.start).tokens)
    }

    /// What to put in front of a part of a text so that it is encoded as a continuation; `None` where the tokenizer
    /// treats the beginning of a text as it treats its middle.
    fn anchor(&self, text: &str, part: &Range<usize>) -> Result<Option<String>> {
        let head = &text[part.start..text.floor_char_boundary(part.end.min(part.start + HEAD))];
        if !self.beginning_differs || head.is_empty() {
            return Ok(None);
        }
        let before = text[..part.start].chars().next_back();
        let in_a_word = before.is_some_and(char::is_alphanumeric) && head.starts_with(char::is_alphanumeric);
        // WordPiece writes the middle of a word in other tokens than its beginning.
        let own = before.filter(|_| in_a_word).map(String::from);
        let anchors = own.into_iter().chain(ANCHORS.iter().map(|&anchor| anchor.to_owned()));
        let (words, others): (Vec<_>, Vec<_>) = anchors.partition(|anchor| anchor.starts_with(char::is_alphanumeric));
        let anchors = if in_a_word { [words, others].concat() } else { [others, words].concat() };
        for anchor in anchors {
            let tokens = self.window(&format!("{anchor}{head}"), 0..anchor.len() + head.len())?;
            if tokens.iter().all(|token| token.end <= anchor.len() || token.start >= anchor.len()) {
                return Ok(Some(anchor));
            }
        }
        Ok(None)
    }

    /// Whether a text's beginning is encoded otherwise than the same text after another: with a space before it, or as
    /// the beginning of a word.
    pub(super) fn treats_beginnings_apart(&self) -> Result<bool> {
        let alone = self.encode_with("a", false)?;
        for anchor in ANCHORS {
            let tokens = self.window(&format!("{anchor}a"), 0..anchor.len() + 1)?;
            let first = tokens.partition_point(|token| token.start < anchor.len());
            if tokens[..first].iter().all(|token| token.end <= anchor.len())
                && !tokens[first..].iter().map(|token| token.id).eq(alone.iter().copied())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn failed(text: &str, error: &dyn std::fmt::Display) -> Error {
    Error::setup(format!("the tokenizer fails on {text:.60?}: {error}"))
}

/// Without the tokens of the first `anchor` bytes, and with the rest at `begin`.
fn shifted(mut all: Tokens, anchor: usize, begin: usize) -> Tokens {
    all.tokens.retain(|token| token.start >= anchor);
    for token in &mut all.tokens {
        token.start += begin;
        token.end += begin;
        token.start -= anchor;
        token.end -= anchor;
    }
    all
}

/// Puts a window's tokens behind those of the windows before it, in the middle of where both are the same. Says whether
/// there is such a place in `overlap`.
fn join(tokens: &mut Vec<Token>, new: &[Token], overlap: &Range<usize>) -> bool {
    if tokens.is_empty() {
        tokens.extend(new);
        return true;
    }
    let quarter = overlap.len() / 4;
    let middle = overlap.start + quarter..overlap.end - quarter;
    let old_begin = tokens.partition_point(|token| token.start < middle.start);
    let mut same = 0;
    let mut i = old_begin;
    let mut j = new.partition_point(|token| token.start < middle.start);
    while let (Some(old), Some(candidate)) = (tokens.get(i), new.get(j)) {
        if old.start >= middle.end {
            break;
        }
        if old == candidate {
            same += 1;
            i += 1;
            j += 1;
            if same == SAME {
                tokens.truncate(i);
                tokens.extend(&new[j..]);
                return true;
            }
            continue;
        }
        same = 0;
        if (old.start, old.end) <= (candidate.start, candidate.end) {
            i += 1;
        } else {
            j += 1;
        }
    }
    false
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;

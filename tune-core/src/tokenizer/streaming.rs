//! The text of tokens as they come.

use super::Tokenizer;
use crate::Result;

/// Turns tokens into text one by one; a character that comes in several tokens is given when it is whole.
#[derive(Debug, Clone, Default)]
pub struct Streaming {
    ids: Vec<u32>,
    /// From here on, tokens are decoded together: what stands before them decides about a space at their beginning.
    start: usize,
    /// Up to here, their text has been given.
    given: usize,
}

impl Streaming {
    /// The text that a token completes, which may be none.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.new_text(tokenizer)?;
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.start = self.given;
        self.given = self.ids.len();
        Ok(text)
    }

    /// What is left at the end: the bytes of a character that was not completed.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub fn rest(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = self.new_text(tokenizer)?;
        self.given = self.ids.len();
        Ok(text)
    }

    fn new_text(&self, tokenizer: &Tokenizer) -> Result<String> {
        let before = tokenizer.decode(&self.ids[self.start..self.given], true)?;
        let all = tokenizer.decode(&self.ids[self.start..], true)?;
        Ok(all.strip_prefix(before.as_str()).unwrap_or(&all).to_owned())
    }
}

//! Tokens that a run adds to the tokenizer of the model that it starts from.

use tokenizers::AddedToken;

use super::{TOKENIZER, Tokenizer, TokenizerFiles};
use crate::{Error, Result};

/// What became of tokens that were to be added, with their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTokens {
    /// Those that are new.
    pub added: Vec<(String, u32)>,
    /// Those that the tokenizer has had before.
    pub known: Vec<(String, u32)>,
}

impl NewTokens {
    /// What there is to say, for a model that has this many embeddings without them.
    #[must_use]
    pub fn lines(&self, rows: usize) -> Vec<String> {
        let with_ids = |tokens: &[(String, u32)]| {
            tokens.iter().map(|(token, id)| format!("`{token}` ({id})")).collect::<Vec<_>>().join(", ")
        };
        let mut lines = Vec::new();
        if !self.added.is_empty() {
            let beyond = self.added.iter().filter(|(_, id)| *id as usize >= rows).count();
            let grown = match beyond {
                0 => format!("the model's {rows} embeddings have rows for them, which are taken as they are"),
                1 => format!("embedding table and output layer get a row, the mean of the {rows} there are"),
                _ => {
                    format!("embedding table and output layer get {beyond} rows, each the mean of the {rows} there are")
                }
            };
            lines.push(format!("new tokens: {}; {grown}", with_ids(&self.added)));
        }
        if !self.known.is_empty() {
            lines.push(format!(
                "model.new_tokens: the tokenizer has {} already, and keeps it as it is",
                with_ids(&self.known)
            ));
        }
        lines
    }
}

impl TokenizerFiles {
    /// Adds tokens to `tokenizer.json`, behind all that are there. A text is cut around them wherever they stand in it. Decoding
    /// does not skip them.
    ///
    /// # Errors
    /// A token that is empty or named twice; a tokenizer that cannot be read.
    pub fn add(&mut self, new: &[String]) -> Result<NewTokens> {
        let mut found = NewTokens::default();
        if new.is_empty() {
            return Ok(found);
        }
        for (i, token) in new.iter().enumerate() {
            if token.is_empty() {
                return Err(Error::setup("model.new_tokens: a token is empty"));
            }
            if new[..i].contains(token) {
                return Err(Error::setup(format!("model.new_tokens: `{token}` is named twice")));
            }
        }
        let (mut inner, ..) = Tokenizer::vocabulary(self)?;
        let failed = |e: tokenizers::Error| Error::file(TOKENIZER, e.to_string());
        for token in new {
            if let Some(id) = inner.token_to_id(token) {
                found.known.push((token.clone(), id));
                continue;
            }
            // As it stands in the text, before that is normalized.
            inner.add_tokens([AddedToken::from(token.clone(), false).normalized(false)]).map_err(failed)?;
            let id = inner.token_to_id(token);
            let id = id.ok_or_else(|| Error::setup(format!("model.new_tokens: `{token}` cannot be added")))?;
            found.added.push((token.clone(), id));
        }
        if !found.added.is_empty() {
            self.files.insert(TOKENIZER.to_owned(), inner.to_string(true).map_err(failed)?.into_bytes());
        }
        Ok(found)
    }
}

//! What the model takes that a tokenizer is used with.

use serde_json::Value;

use super::Tokenizer;
use crate::{Error, Result};

/// Bounds of a model; those that are not known are far away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the embedding table: ids are below it.
    pub embeddings: usize,
    /// The longest sequence.
    pub positions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { embeddings: usize::MAX, positions: usize::MAX }
    }
}

impl Limits {
    /// Those of a model with this `config.json`.
    pub fn of_config(config: &Value) -> Self {
        let size = |key: &str| config[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        Self { embeddings: size("vocab_size"), positions: size("max_position_embeddings") }
    }
}

impl Tokenizer {
    /// The same tokenizer for a model with these limits. Samples and prompts beyond them are refused.
    pub fn for_model(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Refuses ids for which the model has no embedding.
    ///
    /// # Errors
    /// The first of them is named.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let Limits { embeddings, .. } = self.limits;
        let Some(&id) = ids.iter().find(|&&id| id as usize >= embeddings) else { return Ok(()) };
        Err(Error::setup(format!(
            "the token `{}` has id {id}, and the model has {embeddings} embeddings (ids 0 to {}): take the tokenizer that \
             belongs to the model, or a model whose embeddings were made larger when the token was added \
             (`resize_token_embeddings` in Python's transformers)",
            self.token(id).unwrap_or_default(),
            embeddings.saturating_sub(1)
        )))
    }

    /// Refuses a prompt that the model cannot answer.
    ///
    /// # Errors
    /// One that is empty, has a token that the model does not know, or leaves no room for an answer.
    pub(crate) fn check_prompt(&self, ids: &[u32]) -> Result<()> {
        self.check_ids(ids)?;
        if ids.is_empty() {
            return Err(Error::setup("the prompt is empty: there is nothing to continue"));
        }
        let Limits { positions, .. } = self.limits;
        if ids.len() >= positions {
            return Err(Error::setup(format!(
                "the prompt has {} tokens; the model reads at most {positions}, answer included",
                ids.len()
            )));
        }
        Ok(())
    }
}

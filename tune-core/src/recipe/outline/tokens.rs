//! The tokenizer, and what tokens the run adds or trains the rows of.

use super::{Outline, Trained};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::state::TrainingState;
use crate::models::ModelSpec;
use crate::tokenizer::{Limits, Tokenizer, TokenizerFiles};

impl Outline {
    /// The tokens that the run adds to the tokenizer.
    fn new_tokens(&self) -> &[String] {
        match &self.trained {
            Trained::Adapters { lora, .. } => &lora.new_tokens,
            Trained::Weights => &[],
        }
    }

    /// Looks up the ids of the tokens whose rows are trained and that the config names by their texts.
    ///
    /// # Errors
    /// A text that is no single token; a tokenizer that cannot be read.
    pub(crate) fn look_up_tokens(&mut self) -> Result<()> {
        let found = match &self.trained {
            Trained::Adapters { lora, .. } if lora.names_tokens() => {
                let (tokenizer, _) = self.tokenizer(&self.open_base()?, None)?;
                (**lora).clone().with_tokens_looked_up(&tokenizer)?
            }
            _ => return Ok(()),
        };
        if let Trained::Adapters { lora, .. } = &mut self.trained {
            **lora = found;
        }
        Ok(())
    }

    /// The shape with what adapters below bring along and embeddings for the run's new tokens, and what there is to say of these.
    ///
    /// # Errors
    /// As [`TokenizerFiles::add`](crate::tokenizer::TokenizerFiles::add).
    pub(crate) fn grown(&self, base: &Checkpoint, shape: ModelSpec) -> Result<(ModelSpec, Vec<String>)> {
        let shape = self.below()?.map_or(shape, |below| below.spec());
        if self.new_tokens().is_empty() {
            return Ok((shape, Vec::new()));
        }
        let (tokenizer, _, found) = self.data.tokenizer.open_adding(base, self.last_below(), self.new_tokens())?;
        let lines = found.lines(shape.vocab_size);
        let rows = if found.added.is_empty() { 0 } else { tokenizer.vocab_size() };
        Ok((ModelSpec { vocab_size: shape.vocab_size.max(rows), ..shape }, lines))
    }

    /// The tokenizer for the base model, and the files to carry into what is saved. A chat template that writes the date
    /// goes on with the day on which the run began, where it goes on from `state`.
    ///
    /// # Errors
    /// As [`TokenizerConfig::open`](crate::tokenizer::TokenizerConfig::open).
    pub fn tokenizer(&self, base: &Checkpoint, state: Option<&TrainingState>) -> Result<(Tokenizer, TokenizerFiles)> {
        let (tokenizer, files, _) = self.data.tokenizer.open_adding(base, self.last_below(), self.new_tokens())?;
        let tokenizer = match self.base_adapters() {
            [] => tokenizer,
            _ => {
                let (shape, _) = self.grown(base, ModelSpec::of(base)?)?;
                tokenizer.for_model(Limits { embeddings: shape.vocab_size, ..Limits::of_config(base.config()) })
            }
        };
        match state.and_then(|state| state.now) {
            Some(now) => Ok((tokenizer.at(now), files)),
            None => Ok((tokenizer, files)),
        }
    }
}

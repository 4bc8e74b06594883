//! Adapters that the run's own stand on, merged into the base.

use std::path::{Path, PathBuf};

use super::{Outline, Trained};
use crate::checkpoint::merge::{Merged, Part};
use crate::checkpoint::peft;
use crate::{Error, Result};

impl Outline {
    /// The base with the adapters that the run stands on, if it stands on any.
    ///
    /// # Errors
    /// As [`Merged::open`].
    pub(crate) fn below(&self) -> Result<Option<Merged>> {
        let parts: Vec<Part> = self.base_adapters().iter().map(|dir| Part { dir: dir.clone(), weight: 1.0 }).collect();
        let is_dora = |dir: &PathBuf| peft::read_config(dir).map(|config| config.use_dora);
        let trains_dora = matches!(&self.trained, Trained::Adapters { lora, .. } if lora.dora);
        if !parts.is_empty()
            && (trains_dora || self.base_adapters().iter().map(is_dora).collect::<Result<Vec<_>>>()?.contains(&true))
        {
            return Err(Error::setup(
                "model.base_adapters: DoRA sets the lengths of rows, and neither stands on other adapters nor has others stand on it: \
                 merge the adapters first (`tune merge`), and start from the merged model",
            ));
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let below = Merged::open(self.run.checkpointer.open()?, &parts)?;
        if below.spec().tie_word_embeddings != below.spec_of_base().tie_word_embeddings {
            return Err(Error::setup(
                "model.base_adapters change the output layer of a model in which it is the embedding table, and make two of them: \
                 merge the adapters first (`tune merge`), and start from the merged model",
            ));
        }
        Ok(Some(below))
    }

    pub(super) fn base_adapters(&self) -> &[PathBuf] {
        match &self.trained {
            Trained::Adapters { lora, .. } => &lora.base_adapters,
            Trained::Weights => &[],
        }
    }

    /// The adapter whose tokenizer the run has: the last that it stands on.
    pub(super) fn last_below(&self) -> Option<&Path> {
        self.base_adapters().last().map(PathBuf::as_path)
    }
}

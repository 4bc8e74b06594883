//! What a checkpoint holds for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use crate::Result;
use crate::checkpoint::{self, Checkpoint};
use crate::models::{Decoder, LoraOptions};
use crate::peft;
use crate::tokenizer::{StopTokens, TokenizerFiles};

/// The results of a run as a checkpoint has them: a model, an adapter, or an adapter with the merged model beside it.
#[derive(Debug, Clone)]
pub struct Weights {
    adapter: Option<(LoraOptions, BTreeMap<String, Tensor>)>,
    /// By Hugging Face's names, and whether the output layer is tied to the embedding.
    model: Option<(BTreeMap<String, Tensor>, bool)>,
}

/// What goes with the weights, from the model that training began with.
pub(super) struct Beside<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) tokenizer: &'a TokenizerFiles,
    /// What the trained model ends its answers with.
    pub(super) stop: &'a StopTokens,
    /// The largest size of a weight file, in bytes.
    pub(super) shard: u64,
}

impl Weights {
    /// The weights of the model itself.
    ///
    /// # Errors
    /// Where an adapter in it cannot be merged.
    pub fn model(model: &Decoder) -> Result<Self> {
        Ok(Self { adapter: None, model: Some(model.merged_weights()?) })
    }

    /// The model's adapters alone.
    ///
    /// # Errors
    /// Where they cannot be read from the device.
    pub fn adapter(options: &LoraOptions, model: &Decoder) -> Result<Self> {
        Ok(Self { adapter: Some((options.clone(), peft::adapter_weights(model)?)), model: None })
    }

    /// The same, with the merged model in the folder `merged` beside the adapter.
    ///
    /// # Errors
    /// As [`Weights::model`].
    pub fn with_merged(self, model: &Decoder) -> Result<Self> {
        Ok(Self { model: Some(model.merged_weights()?), ..self })
    }

    /// The bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        let adapter = self.adapter.iter().flat_map(|(_, weights)| weights.values());
        let model = self.model.iter().flat_map(|(weights, _)| weights.values());
        adapter.chain(model).map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum()
    }

    /// Writes them as Hugging Face's and PEFT's libraries read them.
    pub(super) fn write(&self, dir: &Path, beside: &Beside<'_>) -> Result<()> {
        let Beside { base, tokenizer, stop, shard } = beside;
        let mut folder = dir.to_path_buf();
        if let Some((options, weights)) = &self.adapter {
            checkpoint::peft::write(dir, &options.adapter_config(base)?, weights, tokenizer)?;
            folder.push(MERGED);
        }
        let Some((weights, tied)) = &self.model else { return Ok(()) };
        let (mut config, generation) = stop.export(base.config(), base.generation_config().as_ref());
        config["tie_word_embeddings"] = (*tied).into();
        checkpoint::hf::write(&folder, &config, weights.clone(), tokenizer, Some(&generation), *shard)
    }
}

/// The folder of the merged model in an adapter's.
pub(super) const MERGED: &str = "merged";

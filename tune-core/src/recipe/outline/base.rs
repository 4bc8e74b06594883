//! The model that training starts from.

use super::{Outline, Trained};
use crate::checkpoint::Checkpoint;
use crate::models::{Decoder, FreshWeights, InBlocks, ModelSpec};
use crate::{Error, Result};

impl Outline {
    /// The base model's files and its shape. No weight is read.
    ///
    /// # Errors
    /// Files that are missing or broken, a family that is not supported, another model than the one that is asked for,
    /// weights that are not those of the model's shape.
    pub fn base(&self) -> Result<(Checkpoint, ModelSpec)> {
        let base = self.open_base()?;
        let shape = self.shape(&base)?;
        self.check_weights(&base, &shape)?;
        let (shape, _) = self.grown(&base, shape)?;
        Ok((base, shape))
    }

    /// The base model's files; of a model that begins with fresh weights, those without weights.
    ///
    /// # Errors
    /// As [`CheckpointConfig::open`](crate::checkpoint::CheckpointConfig::open).
    pub(crate) fn open_base(&self) -> Result<Checkpoint> {
        match self.fresh {
            Some(_) => self.run.checkpointer.open_without_weights(),
            None => self.run.checkpointer.open(),
        }
    }

    /// Checks that the base model has all weights of its shape, or that fresh ones can be drawn.
    ///
    /// # Errors
    /// As [`Decoder::load`] and [`FreshWeights::new`].
    pub(crate) fn check_weights(&self, base: &Checkpoint, shape: &ModelSpec) -> Result<()> {
        match &self.fresh {
            Some(init) => FreshWeights::new(shape, base.config(), init, 0).map(drop),
            None => Decoder::skeleton(shape.clone(), base).map(drop),
        }
    }

    /// What is said of a model that begins with fresh weights.
    pub(crate) fn said_of_fresh(&self) -> Option<&'static str> {
        let there = || self.run.checkpointer.open().is_ok_and(|there| there.names().next().is_some());
        self.fresh.map(|_| match there() {
            true => "with fresh weights (those that are there are not read)",
            false => "with fresh weights",
        })
    }

    /// The shape of a model that is opened.
    pub(crate) fn shape(&self, base: &Checkpoint) -> Result<ModelSpec> {
        let shape = ModelSpec::of(base)?;
        if let Some(architecture) = self.architecture {
            architecture.check(&shape, base.path())?;
        }
        Ok(match &self.head {
            Some(head) => shape.with_scores(head.labels().len()),
            None => shape,
        })
    }

    /// Which weights of the base model are held in blocks.
    ///
    /// # Errors
    /// A matrix that cannot be quantized, and what cannot be done with weights in blocks: start adapters from them, or merge.
    pub fn in_blocks(&self, base: &Checkpoint, shape: &ModelSpec) -> Result<InBlocks> {
        let Trained::Adapters { merged, ref lora } = self.trained else { return Ok(InBlocks::default()) };
        let nf4 = self.quantization.nf4;
        let in_blocks = InBlocks::of(base, shape, self.run.dtype.training_dtype()?, self.quantization)?;
        let in_blocks = in_blocks.without(&shape.weights_of(&lora.save)?);
        if lora.start.takes_of_weight() {
            for (name, _) in lora.of_model(shape)? {
                if let Some(format) = in_blocks.format(&format!("{name}.weight")) {
                    return Err(Error::setup(format!(
                        "model.init_lora_weights={} changes the weights that adapters are on, and `{name}` is held quantized \
                         ({format}): set {}, or model.init_lora_weights=kaiming",
                        lora.start.name(),
                        if nf4 { "model.quantize_base=false" } else { "model.keep_quantized=false" },
                    )));
                }
            }
        }
        if !lora.base_adapters.is_empty() && !in_blocks.is_empty() {
            return Err(Error::setup(format!(
                "model.base_adapters are merged into weights, and the base is held quantized ({}): set {} to hold it in dtype",
                in_blocks.describe(),
                if nf4 { "model.quantize_base=false" } else { "model.keep_quantized=false" },
            )));
        }
        if merged && !in_blocks.is_empty() {
            return Err(Error::setup(format!(
                "adapters are not merged into a base that is held quantized ({}): set save_adapter_weights_only=true, or \
                 {} to hold it in dtype",
                in_blocks.describe(),
                if nf4 { "model.quantize_base=false" } else { "model.keep_quantized=false" },
            )));
        }
        Ok(in_blocks)
    }
}

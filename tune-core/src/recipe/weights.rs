//! What a checkpoint holds for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::background::copies;
use crate::Result;
use crate::checkpoint::{self, Checkpoint};
use crate::models::{Decoder, Head, LoraOptions, ModelSpec, Parameter, Piece, TABLE, Trainable, set_vocab_size};
use crate::peft;
use crate::tokenizer::{StopTokens, TokenizerFiles};

/// The results of a run as a checkpoint has them: a model, an adapter, or an adapter with the merged model beside it. Where several
/// processes train together, each makes them at the same time.
#[derive(Debug)]
pub struct Weights<'m> {
    form: Form,
    /// The model's, by Hugging Face's names, to be made as they are written.
    model: Vec<Piece<'m>>,
    trainable: &'m Trainable,
}

/// What of a checkpoint is not made piece by piece, and how the rest is written.
#[derive(Debug, Clone)]
pub(super) struct Form {
    adapter: Option<(LoraOptions, BTreeMap<String, Tensor>)>,
    /// Where there is a model: whether its output layer is tied to the embedding.
    tied: Option<bool>,
}

/// What goes with the weights, from the model that training began with.
pub(super) struct Beside<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) tokenizer: &'a TokenizerFiles,
    /// What the trained model ends its answers with.
    pub(super) stop: &'a StopTokens,
    /// Its shape.
    pub(super) shape: &'a ModelSpec,
    /// The head that scores sequences, if it has one, and the token that fills rows up.
    pub(super) head: Option<(&'a Head, Option<u32>)>,
    /// The largest size of a weight file, in bytes.
    pub(super) shard: u64,
}

impl<'m> Weights<'m> {
    /// The weights of the model itself.
    ///
    /// # Errors
    /// Where an adapter in it cannot be merged.
    pub fn model(model: &'m Decoder) -> Result<Self> {
        let (pieces, tied) = model.pieces()?;
        Ok(Self { form: Form { adapter: None, tied: Some(tied) }, model: pieces, trainable: model.trainable() })
    }

    /// The model's adapters alone.
    ///
    /// # Errors
    /// Where they cannot be read from the device.
    pub fn adapter(options: &LoraOptions, model: &'m Decoder) -> Result<Self> {
        let adapter = Some((options.clone(), peft::adapter_weights(model)?));
        Ok(Self { form: Form { adapter, tied: None }, model: Vec::new(), trainable: model.trainable() })
    }

    /// The same, with the merged model in the folder `merged` beside the adapter.
    ///
    /// # Errors
    /// As [`Weights::model`].
    pub fn with_merged(self, model: &'m Decoder) -> Result<Self> {
        let (pieces, tied) = model.pieces()?;
        Ok(Self { form: Form { tied: Some(tied), ..self.form }, model: pieces, ..self })
    }

    /// The bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        let adapter = self.form.adapter.iter().flat_map(|(_, weights)| weights.values());
        let adapter: u64 = adapter.map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum();
        adapter + self.model.iter().map(Piece::bytes).sum::<u64>()
    }

    /// What is made as it is written: the model's weights, and behind them the state that an optimizer has here.
    pub(super) fn pieces(&self, optimizer: BTreeMap<String, Tensor>) -> Result<Vec<Piece<'_>>> {
        let mut pieces: Vec<Piece<'_>> = self.model.iter().map(Piece::again).collect();
        for (name, here) in optimizer {
            let parameter = name.rsplit_once('.').and_then(|(parameter, _)| self.trainable.get(parameter));
            let parameter = parameter.filter(|parameter| parameter.var().dims() == here.dims());
            let shape = parameter.map_or_else(|| here.dims().to_vec(), Parameter::dims);
            let dtype = here.dtype();
            let make = move || parameter.map_or_else(|| Ok(here.clone()), |parameter| parameter.whole(&here));
            pieces.push(Piece::new(name, dtype, shape, make));
        }
        Ok(pieces)
    }

    /// How they are written, and how many pieces the model has.
    pub(super) fn form(&self) -> (&Form, usize) {
        (&self.form, self.model.len())
    }
}

impl Form {
    /// The same with a copy of the adapter, which stays as it is.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub(super) fn copied(&self) -> Result<Self> {
        let adapter = match &self.adapter {
            Some((options, weights)) => Some((options.clone(), copies(weights)?)),
            None => None,
        };
        Ok(Self { adapter, tied: self.tied })
    }

    /// Writes them as Hugging Face's and PEFT's libraries read them; `model` is the pieces of the model.
    pub(super) fn write(&self, dir: &Path, model: &[Piece<'_>], beside: &Beside<'_>) -> Result<()> {
        let Beside { base, tokenizer, stop, shape, head, shard } = beside;
        let mut folder = dir.to_path_buf();
        if let Some((options, weights)) = &self.adapter {
            checkpoint::peft::write(dir, &options.adapter_config_of(base, shape)?, weights, tokenizer)?;
            folder.push(MERGED);
        }
        let Some(tied) = self.tied else { return Ok(()) };
        let (mut config, generation) = stop.export(base.config(), base.generation_config().as_ref());
        config["tie_word_embeddings"] = tied.into();
        if let Some((head, pad)) = head {
            config = head.config(&config, *pad);
        }
        if let Some(rows) = model.iter().find(|piece| piece.name == TABLE).and_then(|table| table.shape.first()) {
            set_vocab_size(&mut config, *rows);
        }
        let mut weights = checkpoint::hf::Weights::new();
        for piece in model {
            weights.insert_with(&piece.name, piece.dtype, &piece.shape, || piece.make());
        }
        checkpoint::hf::write(&folder, &config, weights, tokenizer, Some(&generation), *shard)
    }
}

/// The folder of the merged model in an adapter's.
pub(super) const MERGED: &str = "merged";

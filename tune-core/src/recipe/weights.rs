//! What a checkpoint holds for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::ValueModel;
use super::value::VALUE;
use crate::Result;
use crate::checkpoint::{self, Checkpoint};
use crate::models::{Decoder, Head, LoraOptions, ModelSpec, Parameter, Piece, TABLE, Trainable, set_vocab_size};
use crate::peft;
use crate::tokenizer::{StopTokens, TokenizerFiles};

/// The results of a run as a checkpoint has them: a model, an adapter, or an adapter with the merged model beside it. Where several
/// processes train together, each makes them at the same time.
#[derive(Debug)]
pub struct Weights<'m> {
    adapter: Option<(LoraOptions, BTreeMap<String, Tensor>)>,
    /// By Hugging Face's names, to be made as they are written, and whether the output layer is tied to the embedding.
    model: Option<(Vec<Piece<'m>>, bool)>,
    trainable: &'m Trainable,
    value: Option<OfValue<'m>>,
}

/// A value model, with its weights and its optimizer's state.
#[derive(Debug)]
struct OfValue<'m> {
    model: &'m ValueModel,
    pieces: Vec<Piece<'m>>,
    state: BTreeMap<String, Tensor>,
}

/// What goes with the weights, from the model that training began with.
pub(super) struct Beside<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) tokenizer: &'a TokenizerFiles,
    /// What the trained model ends its answers with.
    pub(super) stop: &'a StopTokens,
    /// Its shape.
    pub(super) shape: &'a ModelSpec,
    /// The head that scores sequences, if it has one.
    pub(super) head: Option<&'a Head>,
    /// The token that fills rows up.
    pub(super) pad: Option<u32>,
    /// The largest size of a weight file, in bytes.
    pub(super) shard: u64,
}

impl<'m> Weights<'m> {
    /// The weights of the model itself.
    ///
    /// # Errors
    /// Where an adapter in it cannot be merged.
    pub fn model(model: &'m Decoder) -> Result<Self> {
        Ok(Self { adapter: None, model: Some(model.pieces()?), trainable: model.trainable(), value: None })
    }

    /// The model's adapters alone.
    ///
    /// # Errors
    /// Where they cannot be read from the device.
    pub fn adapter(options: &LoraOptions, model: &'m Decoder) -> Result<Self> {
        let adapter = Some((options.clone(), peft::adapter_weights(model)?));
        Ok(Self { adapter, model: None, trainable: model.trainable(), value: None })
    }

    /// The same, with the merged model in the folder `merged` beside the adapter.
    ///
    /// # Errors
    /// As [`Weights::model`].
    pub fn with_merged(self, model: &'m Decoder) -> Result<Self> {
        Ok(Self { model: Some(model.pieces()?), ..self })
    }

    /// The same, with a value model in the folder `value` beside them, as transformers' models for sequence classification.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn with_value(self, model: &'m ValueModel) -> Result<Self> {
        let (pieces, state) = model.pieces()?;
        Ok(Self { value: Some(OfValue { model, pieces, state }), ..self })
    }

    /// The bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        let adapter = self.adapter.iter().flat_map(|(_, weights)| weights.values());
        let adapter: u64 = adapter.map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum();
        adapter + self.all_pieces().map(Piece::bytes).sum::<u64>()
    }

    /// The weights of the model, and behind them those of the value model.
    fn all_pieces(&self) -> impl Iterator<Item = &Piece<'m>> {
        let value = self.value.iter().flat_map(|value| &value.pieces);
        self.model.iter().flat_map(|(pieces, _)| pieces).chain(value)
    }

    /// What is made as it is written: the weights of the models, and behind them the state that their optimizers have here.
    pub(super) fn pieces(&self, optimizer: BTreeMap<String, Tensor>) -> Result<Vec<Piece<'_>>> {
        let mut pieces: Vec<Piece<'_>> = self.all_pieces().map(Piece::again).collect();
        for (name, here) in optimizer {
            let parameter = name.rsplit_once('.').and_then(|(parameter, _)| self.trainable.get(parameter));
            let parameter = parameter.filter(|parameter| parameter.var().dims() == here.dims());
            let shape = parameter.map_or_else(|| here.dims().to_vec(), Parameter::dims);
            let dtype = here.dtype();
            let make = move || parameter.map_or_else(|| Ok(here.clone()), |parameter| parameter.whole(&here));
            pieces.push(Piece::new(name, dtype, shape, make));
        }
        let value = self.value.iter().flat_map(|value| &value.state);
        pieces.extend(value.map(|(name, tensor)| Piece::of(name, tensor)));
        Ok(pieces)
    }

    /// Writes them as Hugging Face's and PEFT's libraries read them; `pieces` are those of the models.
    pub(super) fn write(&self, dir: &Path, pieces: &[Piece<'_>], beside: &Beside<'_>) -> Result<()> {
        let Beside { base, tokenizer, stop, shape, head, pad, shard } = beside;
        let (model, of_value) = pieces.split_at(self.model.as_ref().map_or(0, |(pieces, _)| pieces.len()));
        if let Some(value) = &self.value {
            let mut config = Head::reward().config(value.model.base.config(), *pad);
            // Its output layer is the head.
            config["tie_word_embeddings"] = false.into();
            checkpoint::hf::write(&dir.join(VALUE), &config, made_later(of_value), tokenizer, None, *shard)?;
        }
        let mut folder = dir.to_path_buf();
        if let Some((options, weights)) = &self.adapter {
            checkpoint::peft::write(dir, &options.adapter_config_of(base, shape)?, weights, tokenizer)?;
            folder.push(MERGED);
        }
        let Some((_, tied)) = &self.model else { return Ok(()) };
        let (mut config, generation) = stop.export(base.config(), base.generation_config().as_ref());
        config["tie_word_embeddings"] = (*tied).into();
        if let Some(head) = head {
            config = head.config(&config, *pad);
        }
        if let Some(rows) = model.iter().find(|piece| piece.name == TABLE).and_then(|table| table.shape.first()) {
            set_vocab_size(&mut config, *rows);
        }
        checkpoint::hf::write(&folder, &config, made_later(model), tokenizer, Some(&generation), *shard)
    }

    /// How many pieces the models have.
    pub(super) fn of_models(&self) -> usize {
        self.all_pieces().count()
    }
}

/// Weights that are made as they are written.
fn made_later<'a>(pieces: &'a [Piece<'_>]) -> checkpoint::hf::Weights<'a> {
    let mut weights = checkpoint::hf::Weights::new();
    for piece in pieces {
        weights.insert_with(&piece.name, piece.dtype, &piece.shape, || piece.make());
    }
    weights
}

/// The folder of the merged model in an adapter's.
pub(super) const MERGED: &str = "merged";

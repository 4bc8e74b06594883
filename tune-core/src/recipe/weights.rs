//! What a checkpoint holds for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::Value;

use super::ValueModel;
use super::value::{VALUE, padding};
use crate::Result;
use crate::checkpoint::{self, Checkpoint};
use crate::models::{Decoder, Head, LoraOptions, ModelSpec, Piece, TABLE, Trainable, set_vocab_size};
use crate::peft;
use crate::tokenizer::{StopTokens, TokenizerFiles};

/// The results of a run as a checkpoint has them: a model, an adapter, or an adapter with the merged model beside it. Where several
/// processes train together, each makes them at the same time.
#[derive(Debug)]
pub struct Weights<'m> {
    form: Form,
    /// The adapters', by their names in files.
    adapter: Vec<Piece<'m>>,
    /// The model's, by Hugging Face's names, to be made as they are written.
    model: Vec<Piece<'m>>,
    trainable: &'m Trainable,
    /// The same of a value model, and its optimizer's state.
    value: Vec<Piece<'m>>,
    value_state: Vec<Piece<'m>>,
}

/// What of a checkpoint is not made piece by piece, and how the rest is written.
#[derive(Debug, Clone, Default)]
pub(super) struct Form {
    adapter: Option<LoraOptions>,
    /// How many pieces the adapters have; those of the model come behind them.
    of_adapter: usize,
    /// Where there is a model: whether its output layer is tied to the embedding.
    tied: Option<bool>,
    /// How many pieces the model has; those of the value model come behind them.
    of_model: usize,
    /// Where there is a value model: the config of the one that it began with.
    value: Option<Value>,
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
    fn of(form: Form, adapter: Vec<Piece<'m>>, model: Vec<Piece<'m>>, of: &'m Decoder) -> Self {
        let form = Form { of_adapter: adapter.len(), of_model: model.len(), ..form };
        Self { form, adapter, model, trainable: of.trainable(), value: Vec::new(), value_state: Vec::new() }
    }

    /// The weights of the model itself.
    ///
    /// # Errors
    /// Where an adapter in it cannot be merged.
    pub fn model(model: &'m Decoder) -> Result<Self> {
        let (pieces, tied) = model.pieces()?;
        Ok(Self::of(Form { tied: Some(tied), ..Form::default() }, Vec::new(), pieces, model))
    }

    /// The model's adapters alone.
    ///
    /// # Errors
    /// Where they cannot be read from the device.
    pub fn adapter(options: &LoraOptions, model: &'m Decoder) -> Result<Self> {
        let form = Form { adapter: Some(options.clone()), ..Form::default() };
        Ok(Self::of(form, peft::adapter_pieces(model)?, Vec::new(), model))
    }

    /// The same, with the merged model in the folder `merged` beside the adapter.
    ///
    /// # Errors
    /// As [`Weights::model`].
    pub fn with_merged(self, model: &'m Decoder) -> Result<Self> {
        let (pieces, tied) = model.pieces()?;
        let form = Form { tied: Some(tied), of_model: pieces.len(), ..self.form };
        Ok(Self { form, model: pieces, ..self })
    }

    /// The same, with a value model in the folder `value` beside them, as transformers' models for sequence classification.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn with_value(self, model: &'m ValueModel) -> Result<Self> {
        let (value, value_state) = model.pieces()?;
        let form = Form { value: Some(model.base.config().clone()), ..self.form };
        Ok(Self { form, value, value_state, ..self })
    }

    /// The bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.all_pieces().map(Piece::bytes).sum()
    }

    /// The weights of adapters and of the model, and behind them those of the value model.
    fn all_pieces(&self) -> impl Iterator<Item = &Piece<'m>> {
        self.adapter.iter().chain(&self.model).chain(&self.value)
    }

    /// What is made as it is written: the weights of the models, and behind them the state that their optimizers have here.
    pub(super) fn pieces<'a>(&'a self, mut optimizer: Vec<Piece<'a>>) -> Vec<Piece<'a>> {
        optimizer.sort_by(|a, b| a.name.cmp(&b.name));
        let mut pieces: Vec<Piece<'a>> = self.all_pieces().map(Piece::again).collect();
        pieces.extend(whole_state(optimizer, self.trainable));
        pieces.extend(self.value_state.iter().map(Piece::again));
        pieces
    }

    /// How they are written, and how many pieces the models have.
    pub(super) fn form(&self) -> (&Form, usize) {
        (&self.form, self.all_pieces().count())
    }
}

impl Form {
    /// Writes them as Hugging Face's and PEFT's libraries read them; `pieces` are those of the models.
    pub(super) fn write(&self, dir: &Path, pieces: &[Piece<'_>], beside: &Beside<'_>) -> Result<()> {
        let Beside { base, tokenizer, stop, shape, head, pad, shard } = beside;
        let (adapter, pieces) = pieces.split_at(self.of_adapter);
        let (model, of_value) = pieces.split_at(self.of_model);
        if let Some(config) = &self.value {
            let mut config = Head::reward().config(config, padding(config).or(*pad));
            // Its output layer is the head.
            config["tie_word_embeddings"] = false.into();
            checkpoint::hf::write(&dir.join(VALUE), &config, made_later(of_value), tokenizer, None, *shard)?;
        }
        let mut folder = dir.to_path_buf();
        if let Some(options) = &self.adapter {
            let weights = adapter.iter().map(|piece| Ok((piece.name.clone(), piece.make()?)));
            let weights = weights.collect::<Result<BTreeMap<String, Tensor>>>()?;
            checkpoint::peft::write(dir, &options.adapter_config_of(base, shape)?, &weights, tokenizer)?;
            folder.push(MERGED);
        }
        let Some(tied) = self.tied else { return Ok(()) };
        let (mut config, generation) = stop.export(base.config(), base.generation_config().as_ref());
        config["tie_word_embeddings"] = tied.into();
        if let Some(head) = head {
            config = head.config(&config, *pad);
        }
        if let Some(rows) = model.iter().find(|piece| piece.name == TABLE).and_then(|table| table.shape.first()) {
            set_vocab_size(&mut config, *rows);
        }
        checkpoint::hf::write(&folder, &config, made_later(model), tokenizer, Some(&generation), *shard)
    }
}

/// An optimizer's state, of which this process has the rows that it has of the parameters, as it is of the whole ones.
pub(super) fn whole_state<'a>(state: Vec<Piece<'a>>, of: &'a Trainable) -> Vec<Piece<'a>> {
    let whole = |piece: Piece<'a>| {
        let parameter = piece.name.rsplit_once('.').and_then(|(parameter, _)| of.get(parameter));
        let parameter = parameter.filter(|parameter| parameter.var().dims() == piece.shape);
        // Those of which all is here are as they are.
        let Some(parameter) = parameter.filter(|parameter| parameter.shard().is_some()) else { return piece };
        let (name, dtype) = (piece.name.clone(), piece.dtype);
        let make = move || parameter.whole(&piece.make()?);
        Piece::new(name, dtype, parameter.dims(), make)
    };
    state.into_iter().map(whole).collect()
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

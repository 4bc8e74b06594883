//! Models that score what a run's own model draws: a value model, which is trained beside it, and a reward model, which is not.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::Value;

use super::weights::whole_state;
use super::{Opened, Outline};
use crate::checkpoint::state::read_optimizer;
use crate::checkpoint::{Checkpoint, CheckpointConfig};
use crate::models::{Decoder, LoadOptions, ModelSpec, Piece, SCORE, Trainable, WithHead};
use crate::optim::Optimizer;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The folder of the value model in a checkpoint, and what its optimizer's state is called there.
pub(super) const VALUE: &str = "value";

/// The value model of a run: it says what an answer's tokens will be worth. All of its weights are trained.
pub struct ValueModel {
    /// A model whose output layer gives one score.
    pub model: Decoder,
    /// What moves it.
    pub optimizer: Box<dyn Optimizer>,
    /// The model that it began with, whose files go with it.
    pub(super) base: Checkpoint,
}

impl std::fmt::Debug for ValueModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ValueModel({})", self.base.path().display())
    }
}

impl ValueModel {
    /// Its weights and its optimizer's state, as a checkpoint has them.
    pub(super) fn pieces(&self) -> Result<(Vec<Piece<'_>>, Vec<Piece<'_>>)> {
        let mut state = whole_state(self.optimizer.state_pieces()?, self.model.trainable());
        state.iter_mut().for_each(|piece| piece.name = format!("{VALUE}.{}", piece.name));
        state.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((self.model.pieces()?.0, state))
    }
}

impl Outline {
    /// The model that a run's value model begins with: its files and its shape. No weight is read.
    ///
    /// # Errors
    /// As [`Outline::base`]; an adapter; a head with more than one score.
    pub fn value(&self) -> Result<Option<(Checkpoint, ModelSpec)>> {
        let Some(config) = &self.value else { return Ok(None) };
        self.scoring("value_checkpointer", config.as_ref().unwrap_or(&self.run.checkpointer), config.is_some())
            .map(Some)
    }

    /// The model that says what answers are worth: its files and its shape. No weight is read.
    ///
    /// # Errors
    /// As [`Outline::value`]; a model without a head.
    pub fn judge(&self) -> Result<Option<(Checkpoint, ModelSpec)>> {
        let Some(config) = &self.judge else { return Ok(None) };
        let (judge, shape) = self.scoring("reward_checkpointer", config, true)?;
        match has_head(&judge) {
            true => Ok(Some((judge, shape))),
            false => Err(Error::file(
                judge.path(),
                "has no head that scores answers: reward_checkpointer names a reward model, such as the recipe `reward` makes",
            )),
        }
    }

    fn scoring(&self, key: &str, config: &CheckpointConfig, is_own: bool) -> Result<(Checkpoint, ModelSpec)> {
        if let (Some(dir), true) = (&config.adapter_checkpoint, is_own) {
            return Err(Error::file(
                dir,
                format!(
                    "{key}: a model that scores is a whole one: merge the adapter into its base (`reward` does so with \
                     save_adapter_weights_only=false), and set {key}.checkpoint_dir to the merged model"
                ),
            ));
        }
        let base = config.open()?;
        let shape = ModelSpec::of(&base)?.with_scores(1);
        Decoder::skeleton(shape.clone(), &base)?;
        Ok((base, shape))
    }

    /// Refuses models that score what another tokenizer's tokens say. They may have more of them.
    ///
    /// # Errors
    /// The first token that is another one; a tokenizer that cannot be read.
    pub(crate) fn check_all_scoring(&self, tokenizer: &Tokenizer) -> Result<()> {
        for (role, model) in [("value", self.value()?), ("reward", self.judge()?)] {
            model.map_or(Ok(()), |(model, _)| self.check_scoring(role, &model, tokenizer))?;
        }
        Ok(())
    }

    fn check_scoring(&self, role: &str, model: &Checkpoint, tokenizer: &Tokenizer) -> Result<()> {
        let (theirs, _) = self.data.tokenizer.open(model)?;
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        match ids.into_iter().find(|&id| tokenizer.token(id) != theirs.token(id)) {
            None => Ok(()),
            Some(id) => Err(other_token(role, model, id, (tokenizer, &theirs))),
        }
    }

    /// What the run has of models that score, by role, in words.
    pub(crate) fn describe_scoring(&self) -> Result<Vec<(&'static str, String)>> {
        let mut said = Vec::new();
        if let Some((value, shape)) = self.value()? {
            let head = if has_head(&value) { "" } else { ", with a fresh head" };
            let parameters = shape.parameter_count();
            said.push((
                "value model",
                format!("{}{head}: all {parameters} parameters are trained", value.path().display()),
            ));
        }
        if let Some((judge, _)) = self.judge()? {
            said.push(("rewards", judge.path().display().to_string()));
        }
        Ok(said)
    }
}

/// The token that fills up rows of a model that scores, by its config.
pub(super) fn padding(config: &Value) -> Option<u32> {
    config["pad_token_id"].as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Whether a model scores sequences.
fn has_head(model: &Checkpoint) -> bool {
    model.names().any(|name| name == SCORE)
}

/// What is told of a token that is not what it is for the trained model.
pub(super) fn other_token(role: &str, model: &Checkpoint, id: u32, (here, there): (&Tokenizer, &Tokenizer)) -> Error {
    let named = |tokenizer: &Tokenizer| tokenizer.token(id).map_or("nothing".to_owned(), |token| format!("`{token}`"));
    Error::file(
        model.path(),
        format!(
            "the {role} model has other tokens than the model that is trained: {id} is {} there, and {} here; take a model of \
             the same family",
            named(there),
            named(here)
        ),
    )
}

impl Opened {
    /// Loads this process's part of the value model: that of the checkpoint which the run goes on from, with its optimizer's state, or the one that it begins
    /// with, below a fresh head if that has none.
    ///
    /// # Errors
    /// As [`Decoder::load_shard`]; state that is not this optimizer's; and a run that has no value model.
    pub fn load_value(&mut self, mut optimizer: Box<dyn Optimizer>) -> Result<ValueModel> {
        let (base, shape) = self.outline.value()?.ok_or_else(|| Error::setup("this run has no value model"))?;
        let (dtype, device) = (self.dtype, self.device.clone());
        let options = LoadOptions { dtype, device, train_weights: true, lora: None };
        let model = match self.resumed.as_ref().map(|saved| saved.path.join(VALUE)) {
            Some(dir) => Decoder::load_shard(shape, &Checkpoint::open(&dir)?, &options, &self.mesh)?,
            None => {
                let source = WithHead::new(&base, &shape, base.config(), self.seed)?;
                Decoder::load_shard(shape.clone(), &source, &options, &self.mesh)?
            }
        };
        self.give_state(optimizer.as_mut(), model.trainable(), true)?;
        if let Some(dir) = &self.outline.steps.activation_offload_dir {
            model.offload_inputs(dir);
        }
        Ok(ValueModel { model, optimizer, base })
    }

    /// Gives an optimizer its state, where the run goes on from a checkpoint: that of the model, or that of the value model. What is kept
    /// in a file is read parameter by parameter.
    ///
    /// # Errors
    /// State that is not this optimizer's, and as [`read_optimizer`].
    pub(super) fn give_state(
        &mut self,
        optimizer: &mut dyn Optimizer,
        parameters: &Trainable,
        to_value: bool,
    ) -> Result<()> {
        let mut give = |all: BTreeMap<String, Tensor>| {
            let (value, own): (BTreeMap<_, _>, _) = all.into_iter().partition(|(name, _)| of_value(name).is_some());
            let short = |(name, tensor): (String, Tensor)| Some((of_value(&name)?.to_owned(), tensor));
            let (given, left) = match to_value {
                true => (value.into_iter().filter_map(short).collect(), own),
                false => (own, value),
            };
            if !given.is_empty() {
                optimizer.set_state(given, parameters)?;
            }
            Ok(left)
        };
        match (&mut self.state, &self.resumed) {
            (Some(_), Some(saved)) if self.outline.optimizer.offload_dir().is_some() => {
                read_optimizer(&saved.path, self.mesh.shards(), &mut |of_one| give(of_one).map(drop))
            }
            (Some(state), _) => {
                state.optimizer = give(std::mem::take(&mut state.optimizer))?;
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Loads this process's part of the reward model, if there is one, with the token that fills its rows up: it scores at the last other one.
    ///
    /// # Errors
    /// As [`Decoder::load_shard`].
    pub fn load_judge(&self) -> Result<Option<(Decoder, Option<u32>)>> {
        let options = LoadOptions { dtype: self.dtype, device: self.device.clone(), train_weights: false, lora: None };
        let load = |(judge, shape): (Checkpoint, ModelSpec)| {
            Ok((Decoder::load_shard(shape, &judge, &options, &self.mesh)?, padding(judge.config())))
        };
        self.outline.judge()?.map(load).transpose()
    }
}

/// The name of a tensor of the value model's optimizer, without what says that it is.
fn of_value(name: &str) -> Option<&str> {
    name.strip_prefix(VALUE)?.strip_prefix('.')
}

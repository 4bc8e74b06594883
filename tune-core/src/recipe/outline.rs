//! What a config says of a run, before anything is read.

mod base;
mod below;
mod checks;
mod compared;
mod planned;
mod resumed;
mod stored;
mod tokens;

use std::collections::BTreeMap;

use candle_core::DType;
use serde_json::Value as Json;
use tune_config::Config;

use super::{Data, EvaluationKeys, Plan, RunKeys, StepKeys, VAL_LOSS, settings};
use crate::Result;
use crate::checkpoint::CheckpointConfig;
use crate::data::{DataConfig, Loader, LoaderOptions};
use crate::device::Compute;
use crate::distributed::{self, Group};
use crate::eval::ExactMatchConfig;
use crate::memory_plan::Drawing;
use crate::methods::TokenLoss;
use crate::models::{Architecture, FakeQuantizer, Head, InitConfig, Quantization};
use crate::optim::{OptimizerConfig, SchedulerConfig};
use crate::peft::LoraOptions;
use crate::tokenizer::Tokenizer;

pub use compared::Compared;
pub(crate) use resumed::fingerprints;
pub use stored::{StoredTeacher, TeacherLogitsConfig};

/// What is trained, and so what is saved.
#[derive(Debug, Clone)]
pub enum Trained {
    /// The model's own weights.
    Weights,
    /// Adapters on frozen weights.
    Adapters {
        /// Which ones.
        lora: Box<LoraOptions>,
        /// Whether a merged model is saved beside them.
        merged: bool,
    },
}

/// A run in outline. [`Outline::open`] opens it piece by piece with the methods here, and a preflight looks at the same
/// pieces, so the two cannot disagree.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Where the run begins, where it computes and what it leaves behind.
    pub run: RunKeys,
    /// What is trained and validated on.
    pub data: Data,
    /// How long is trained, and what a step is made of.
    pub steps: StepKeys,
    /// What moves what is trained.
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    pub lr_scheduler: SchedulerConfig,
    /// What is trained.
    pub trained: Trained,
    /// How the base model is held in memory where it is frozen.
    pub quantization: Quantization,
    /// The model that the checkpoint must hold, if that is said.
    pub architecture: Option<Architecture>,
    /// Questions that the model is asked.
    pub exact_match: Option<ExactMatchConfig>,
    /// What else is measured while it trains, and what follows from it. A recipe that has these keys calls [`Run::evaluate`](super::Run::evaluate).
    pub evaluation: EvaluationKeys,
    /// The names of what validation finds that says which model is better.
    pub validated: &'static [&'static str],
    /// What is minimized of each trained token, where it is not cross-entropy alone.
    pub loss: TokenLoss,
    /// Whether gradients are applied in the backward pass; `None` where the recipe has no such key.
    pub optimizer_in_bwd: Option<bool>,
    /// What the model is compared with; `None` where it is compared with nothing.
    pub reference: Option<Compared>,
    /// What a teacher says of the training data, where that is stored: then `reference` is a teacher that is still to be asked.
    pub teacher_logits: Option<StoredTeacher>,
    /// How fresh weights are drawn, of a model that begins with these; `None` where it begins with those that are there.
    pub fresh: Option<InitConfig>,
    /// The head that scores sequences; `None` where tokens are predicted.
    pub head: Option<Head>,
    /// Where the value model begins that is trained beside the model, `Some(None)` from the same base; `None` where there is none.
    pub value: Option<Option<CheckpointConfig>>,
    /// The reward model that says what answers are worth, if one does.
    pub judge: Option<CheckpointConfig>,
    /// Whether the loss asks how far the model has moved: about the answers of each batch to each other's prompts.
    pub asks_how_far: bool,
    /// How answers are drawn that are learnt from; `None` where the data has what is learnt.
    pub drawing: Option<Drawing>,
    /// Rows of an update, where these must be whole batches.
    pub rows_of_update: Option<usize>,
    /// How the model is computed as if it were quantized, if it is.
    pub fake_quantizer: Option<FakeQuantizer>,
    /// The settings that a resumed run must share.
    pub settings: BTreeMap<String, Json>,
    /// What holds where they say nothing.
    pub defaults: BTreeMap<String, Json>,
    /// The whole config as YAML.
    pub yaml: String,
    /// Who trains together.
    pub group: Group,
}

impl Outline {
    /// The outline of a run that trains all weights of whatever model is there. A recipe says what is otherwise by
    /// `Outline { architecture, ..Outline::new(...) }`.
    pub fn new(
        config: &impl Config,
        run: &RunKeys,
        data: impl Into<Data>,
        steps: &StepKeys,
        optimizer: &OptimizerConfig,
        lr_scheduler: &SchedulerConfig,
    ) -> Self {
        let (group, mut settings) = (distributed::current(), settings(config));
        // What counts is how many there are in a step over all processes: another number of them may go on.
        if let Some(value) = settings.get_mut("gradient_accumulation_steps") {
            *value = steps.plan().of_all(group.world_size()).gradient_accumulation_steps.into();
        }
        Self {
            run: run.clone(),
            data: data.into(),
            steps: steps.clone(),
            optimizer: optimizer.clone(),
            lr_scheduler: lr_scheduler.clone(),
            trained: Trained::Weights,
            quantization: Quantization::default(),
            architecture: None,
            exact_match: None,
            evaluation: EvaluationKeys::default(),
            validated: &[VAL_LOSS],
            loss: TokenLoss::CROSS_ENTROPY,
            optimizer_in_bwd: None,
            reference: None,
            teacher_logits: None,
            fresh: None,
            head: None,
            value: None,
            judge: None,
            asks_how_far: false,
            drawing: None,
            rows_of_update: None,
            fake_quantizer: None,
            settings,
            defaults: settings::defaults(config),
            yaml: config.to_yaml(),
            group,
        }
    }

    /// How batches become steps and epochs, in all processes together.
    pub fn plan(&self) -> Plan {
        self.steps.plan().of_all(self.group.world_size())
    }

    /// The device, and the dtype of weights and activations.
    ///
    /// # Errors
    /// As [`DeviceConfig::open`](crate::device::DeviceConfig::open) and [`Precision::training_dtype`](crate::device::Precision::training_dtype).
    pub fn device(&self) -> Result<(Compute, DType)> {
        Ok((self.run.device.choose_among(&self.group)?.0, self.run.dtype.training_dtype()?))
    }

    /// The training data in batches.
    ///
    /// # Errors
    /// As [`Loader::open`].
    pub fn train_data(&self, tokenizer: &Tokenizer, seed: u64) -> Result<Loader> {
        self.loader(&self.data.dataset, tokenizer, self.loader_options(tokenizer, seed))
    }

    /// The validation data in batches, in the order of the files; `None` where there is none.
    ///
    /// # Errors
    /// As [`Loader::open`].
    pub fn validation_data(&self, tokenizer: &Tokenizer, seed: u64) -> Result<Option<Loader>> {
        if self.data.dataset_val.is_empty() {
            return Ok(None);
        }
        let options = LoaderOptions { shuffle: false, ..self.loader_options(tokenizer, seed) };
        self.loader(&self.data.dataset_val, tokenizer, options).map(Some)
    }

    pub(crate) fn loader_options(&self, tokenizer: &Tokenizer, seed: u64) -> LoaderOptions {
        let pad_id = tokenizer.pad().unwrap_or(0);
        LoaderOptions {
            batch_size: self.data.batch_size,
            shuffle: self.data.shuffle,
            seed,
            pad_id,
            must_stop: true,
            ..Default::default()
        }
    }

    pub(crate) fn loader(
        &self,
        configs: &[DataConfig],
        tokenizer: &Tokenizer,
        options: LoaderOptions,
    ) -> Result<Loader> {
        Loader::open(configs, tokenizer, self.data.tokenizer.max_seq_len, options)
    }
}

//! Keys that training recipes share, in groups: a recipe's config holds each with `#[config(flatten)]`, so that its keys
//! stand among the recipe's own in a file.

use std::path::PathBuf;

use tune_config::Config;

use super::{EarlyStoppingConfig, Plan};
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::run::Start;
use crate::data::{DataConfig, DatasetConfig, PreferenceConfig, PretrainData, ScoredConfig, UnpairedConfig};
use crate::device::{DeviceConfig, Precision};
use crate::distributed::MeshKeys;
use crate::eval::{EvaluationConfig, SamplesConfig};
use crate::metrics::MetricLoggerConfig;
use crate::models::Head;
use crate::tokenizer::TokenizerConfig;
use crate::{Error, Result};

/// Where a run begins, where it computes and what it leaves behind.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    compile = "everything here is compiled",
    profiler = "use a profiler of the system, such as perf",
    log_peak_memory_stats = "the peak is always logged",
    enable_activation_offloading = "activations stay where they are made; on the processor, activation_offload_dir=FOLDER keeps them in a file"
))]
pub struct RunKeys {
    /// Checkpoints, logs and the resolved config go here.
    #[config(may_change)]
    pub output_dir: PathBuf,
    /// Go on from the newest checkpoint in output_dir.
    #[config(default = false, may_change)]
    pub resume_from_checkpoint: bool,
    /// Delete the checkpoints of an earlier run in output_dir and start anew.
    #[config(default = false, may_change)]
    pub overwrite: bool,
    /// The model to start from, and how results are saved.
    pub checkpointer: CheckpointConfig,
    /// Write checkpoints in the background, of a copy in memory, while training goes on.
    #[config(default = false, may_change)]
    pub enable_async_checkpointing: bool,
    /// Seed of everything that is random. If null, a fresh one is chosen and printed.
    pub seed: Option<u64>,
    /// cpu, cuda, cuda:N, or auto: the first card, if there is one.
    #[config(default = "cpu")]
    pub device: DeviceConfig,
    /// Precision of weights and activations.
    #[config(default)]
    pub dtype: Precision,
    /// Where metrics are recorded: one place or several.
    #[config(default = ["jsonl"], one_or_many, may_change)]
    pub metric_logger: Vec<MetricLoggerConfig>,
    /// Record every N steps.
    #[config(default = 1, range = 1.., may_change)]
    pub log_every_n_steps: u64,
    /// How several processes share the work and the model.
    #[config(flatten)]
    pub mesh: MeshKeys,
}

impl RunKeys {
    /// How the run treats what is in its output folder.
    pub fn start(&self) -> Start {
        match (self.resume_from_checkpoint, self.overwrite) {
            (true, _) => Start::Resume,
            (false, true) => Start::Overwrite,
            (false, false) => Start::Fresh,
        }
    }
}

/// How data become batches, whatever a row is made of: a sample, a pack of samples, a pair of answers, documents.
#[derive(Debug, Clone, Config)]
pub struct RowKeys {
    /// Hold out this share of each dataset's records (below 1), or this many (from 1 on), and validate on them, too; the seed draws them.
    #[config(range = 1e-6..)]
    pub val_set_size: Option<f64>,
    /// Also validate every N steps, not only at the end of each epoch.
    #[config(range = 1.., may_change)]
    pub run_val_every_n_steps: Option<u64>,
    /// Take the rows in a new order in each epoch.
    #[config(default = true)]
    pub shuffle: bool,
    /// Rows per micro-batch: samples, packs of them, or pairs.
    #[config(default = 2, range = 1..)]
    pub batch_size: usize,
}

/// What a model is trained and validated on.
#[derive(Debug, Clone, Config)]
pub struct DataKeys {
    /// Text to tokens.
    #[config(default)]
    pub tokenizer: TokenizerConfig,
    /// What is trained on: one dataset or several.
    #[config(one_or_many)]
    pub dataset: Vec<DatasetConfig>,
    /// What the model is validated on.
    #[config(default, one_or_many, may_change)]
    pub dataset_val: Vec<DatasetConfig>,
    /// How data become batches.
    #[config(flatten)]
    pub rows: RowKeys,
}

impl DataKeys {
    /// Whether these are plain texts, and not questions with answers.
    ///
    /// # Errors
    /// Texts and others together.
    pub fn are_texts(&self) -> Result<bool> {
        let mut all = self.dataset.iter().chain(&self.dataset_val).map(|of| matches!(of, DatasetConfig::Text(_)));
        let first = all.next().unwrap_or(false);
        match all.all(|is_text| is_text == first) {
            true => Ok(first),
            false => Err(Error::setup(
                "dataset: a text is a prompt as a whole, and other data have prompts with answers: take the one or the other",
            )),
        }
    }
}

/// Pairs of answers that a model learns and is validated on.
#[derive(Debug, Clone, Config)]
pub struct PreferenceKeys {
    /// Text to tokens.
    #[config(default)]
    pub tokenizer: TokenizerConfig,
    /// Pairs of answers that are learnt from: one dataset or several.
    #[config(one_or_many)]
    pub dataset: Vec<PreferenceConfig>,
    /// What the model is validated on.
    #[config(default, one_or_many, may_change)]
    pub dataset_val: Vec<PreferenceConfig>,
    /// How data become batches.
    #[config(flatten)]
    pub rows: RowKeys,
}

/// Answers with labels that a model learns and is validated on.
#[derive(Debug, Clone, Config)]
pub struct UnpairedKeys {
    /// Text to tokens.
    #[config(default)]
    pub tokenizer: TokenizerConfig,
    /// Answers, each labelled good or bad, that are learnt from: one dataset or several.
    #[config(one_or_many)]
    pub dataset: Vec<UnpairedConfig>,
    /// What the model is validated on.
    #[config(default, one_or_many, may_change)]
    pub dataset_val: Vec<UnpairedConfig>,
    /// How data become batches.
    #[config(flatten)]
    pub rows: RowKeys,
}

/// Sequences that a model learns to score and is validated on.
#[derive(Debug, Clone, Config)]
pub struct ScoredKeys {
    /// Text to tokens.
    #[config(default)]
    pub tokenizer: TokenizerConfig,
    /// The names of the classes, in the order of their numbers, which are from 0 on; none where pairs of answers are compared.
    #[config(default)]
    pub labels: Vec<String>,
    /// Pairs of answers or texts with labels that are learnt from: one dataset or several.
    #[config(one_or_many)]
    pub dataset: Vec<ScoredConfig>,
    /// What the model is validated on.
    #[config(default, one_or_many, may_change)]
    pub dataset_val: Vec<ScoredConfig>,
    /// How data become batches.
    #[config(flatten)]
    pub rows: RowKeys,
}

impl ScoredKeys {
    /// The head for these data: a score for each class, or one.
    ///
    /// # Errors
    /// Pairs and labelled texts together, classes that nobody names or that are named twice, names for pairs.
    pub fn head(&self) -> Result<Head> {
        let mut all = self.dataset.iter().chain(&self.dataset_val);
        let is_labelled = self.dataset.iter().any(ScoredConfig::is_labelled);
        if all.any(|dataset| dataset.is_labelled() != is_labelled) {
            return Err(Error::setup(
                "dataset: pairs of answers make a reward model, and texts with labels a classifier: take the one or the other",
            ));
        }
        match (is_labelled, self.labels.len()) {
            (false, 0) => Ok(Head::reward()),
            (false, _) => Err(Error::setup("labels names classes, and pairs of answers have none: remove it")),
            (true, 0 | 1) => Err(Error::setup(
                "labels must name the classes of the texts, two or more in the order of their numbers: labels=[negative, positive], say",
            )),
            (true, _) => {
                let named_before =
                    |(i, label): (usize, &String)| self.labels[..i].contains(label).then(|| label.clone());
                match self.labels.iter().enumerate().find_map(named_before) {
                    Some(twice) => {
                        Err(Error::setup(format!("labels has `{twice}` twice: each class has a name of its own")))
                    }
                    None => Ok(Head::classes(&self.labels)),
                }
            }
        }
    }
}

/// Text that a model is made of and validated on.
#[derive(Debug, Clone, Config)]
pub struct PretrainKeys {
    /// Text to tokens. A row of documents has max_seq_len tokens.
    #[config(default)]
    pub tokenizer: TokenizerConfig,
    /// What is trained on: one dataset or several.
    #[config(one_or_many)]
    pub dataset: Vec<PretrainData>,
    /// What the model is validated on.
    #[config(default, one_or_many, may_change)]
    pub dataset_val: Vec<PretrainData>,
    /// How data become batches.
    #[config(flatten)]
    pub rows: RowKeys,
}

/// What a model is trained and validated on, whatever the keys are that say it.
#[derive(Debug, Clone)]
pub struct Data {
    /// Text to tokens.
    pub tokenizer: TokenizerConfig,
    /// What is trained on.
    pub dataset: Vec<DataConfig>,
    /// What the model is validated on.
    pub dataset_val: Vec<DataConfig>,
    /// Also validate every N steps.
    pub run_val_every_n_steps: Option<u64>,
    /// Take the rows in a new order in each epoch.
    pub shuffle: bool,
    /// Rows per micro-batch: samples, packs of them, or pairs.
    pub batch_size: usize,
}

impl Data {
    /// Of datasets for training and validation. What `rows` holds out of the first is in the second.
    fn new<'k, D>(tokenizer: &TokenizerConfig, [train, validate]: [&'k [D]; 2], rows: &RowKeys) -> Self
    where
        DataConfig: From<&'k D>,
    {
        let RowKeys { val_set_size, run_val_every_n_steps, shuffle, batch_size } = *rows;
        let [mut dataset, mut dataset_val] =
            [train, validate].map(|of| of.iter().map(Into::into).collect::<Vec<DataConfig>>());
        if let Some(size) = val_set_size {
            dataset_val.extend(dataset.iter().map(|dataset| dataset.held_out(size)));
            dataset.iter_mut().for_each(|dataset| *dataset = dataset.without_held_out(size));
        }
        Self { tokenizer: tokenizer.clone(), dataset, dataset_val, run_val_every_n_steps, shuffle, batch_size }
    }

    /// Whether rows are pairs of answers.
    pub(crate) fn is_of_pairs(&self) -> bool {
        self.dataset.iter().any(DataConfig::is_of_pairs)
    }

    /// Whether rows are answers that are labelled good or bad.
    pub(crate) fn is_labelled(&self) -> bool {
        self.dataset.iter().any(DataConfig::is_labelled)
    }

    /// Whether several samples share a row.
    pub(crate) fn is_packed(&self) -> bool {
        self.dataset.iter().any(DataConfig::packed)
    }
}

impl From<&DataKeys> for Data {
    fn from(keys: &DataKeys) -> Self {
        Self::new(&keys.tokenizer, [&keys.dataset, &keys.dataset_val], &keys.rows)
    }
}

impl From<&PreferenceKeys> for Data {
    fn from(keys: &PreferenceKeys) -> Self {
        Self::new(&keys.tokenizer, [&keys.dataset, &keys.dataset_val], &keys.rows)
    }
}

impl From<&UnpairedKeys> for Data {
    fn from(keys: &UnpairedKeys) -> Self {
        Self::new(&keys.tokenizer, [&keys.dataset, &keys.dataset_val], &keys.rows)
    }
}

impl From<&ScoredKeys> for Data {
    fn from(keys: &ScoredKeys) -> Self {
        let with_labels = |all: &[ScoredConfig]| all.iter().map(|of| of.with_labels(&keys.labels)).collect::<Vec<_>>();
        let [train, validate] = [&keys.dataset, &keys.dataset_val].map(|all| with_labels(all));
        Self::new(&keys.tokenizer, [&train, &validate], &keys.rows)
    }
}

impl From<&PretrainKeys> for Data {
    fn from(keys: &PretrainKeys) -> Self {
        Self::new(&keys.tokenizer, [&keys.dataset, &keys.dataset_val], &keys.rows)
    }
}

/// What else is measured of a model while it trains, and what follows from it.
#[derive(Debug, Clone, Default, Config)]
pub struct EvaluationKeys {
    /// Tasks that the model is measured on while it trains: files of items, as `tune eval` takes them.
    #[config(default, one_or_many, may_change)]
    pub evaluation: Vec<EvaluationConfig>,
    /// Prompts whose answers are shown and logged while the model trains.
    #[config(may_change)]
    pub samples: Option<SamplesConfig>,
    /// Also evaluate and show samples every N steps, not only before the first step and at the end of each epoch.
    #[config(range = 1.., may_change)]
    pub run_eval_every_n_steps: Option<u64>,
    /// End the run where a metric no longer gets better.
    #[config(may_change)]
    pub early_stopping: Option<EarlyStoppingConfig>,
}

/// How long is trained, and what a step is made of.
#[derive(Debug, Clone, Config)]
pub struct StepKeys {
    /// Micro-batches whose gradients make one step.
    #[config(default = 1, range = 1..)]
    pub gradient_accumulation_steps: usize,
    /// Passes over the data.
    #[config(default = 1, range = 1..)]
    pub epochs: u64,
    /// End each epoch after N steps.
    #[config(range = 1..)]
    pub max_steps_per_epoch: Option<u64>,
    /// Scale gradients down to this norm.
    #[config(range = 1e-6..)]
    pub clip_grad_norm: Option<f64>,
    /// Keep only each block's input for the backward pass: less memory, a third more time.
    #[config(default = false, may_change)]
    pub enable_activation_checkpointing: bool,
    /// Keep what enable_activation_checkpointing keeps in a file in this folder, which should be on a fast disk of this machine, and not in
    /// memory. The steps are the same; nothing is left in the folder. In memory where null.
    #[config(may_change)]
    pub activation_offload_dir: Option<PathBuf>,
}

impl StepKeys {
    /// How batches become steps and epochs.
    pub fn plan(&self) -> Plan {
        let Self { gradient_accumulation_steps, max_steps_per_epoch, epochs, .. } = *self;
        Plan { gradient_accumulation_steps, max_steps_per_epoch, epochs }
    }
}

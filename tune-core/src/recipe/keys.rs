//! Keys that training recipes share, in groups: a recipe's config holds each with `#[config(flatten)]`, so that its keys
//! stand among the recipe's own in a file.

use std::path::PathBuf;

use tune_config::Config;

use super::Plan;
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::run::Start;
use crate::data::DatasetConfig;
use crate::device::{DeviceConfig, Precision};
use crate::metrics::MetricLoggerConfig;
use crate::tokenizer::TokenizerConfig;

/// Where a run begins, where it computes and what it leaves behind.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    compile = "everything here is compiled",
    profiler = "use a profiler of the system, such as perf",
    log_peak_memory_stats = "the peak is always logged",
    enable_activation_offloading = "activations stay where they are made"
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
    /// Seed of everything that is random. If null, a fresh one is chosen and printed.
    pub seed: Option<u64>,
    /// cpu, cuda or cuda:N.
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
    /// Also validate every N steps, not only at the end of each epoch.
    #[config(range = 1.., may_change)]
    pub run_val_every_n_steps: Option<u64>,
    /// Take the samples in a new order in each epoch.
    #[config(default = true)]
    pub shuffle: bool,
    /// Sequences per micro-batch.
    #[config(default = 2, range = 1..)]
    pub batch_size: usize,
}

/// How long is trained, and what a step is made of.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    loss = "training minimizes the cross-entropy of the next token, a mean over a step's trained tokens"
))]
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
}

impl StepKeys {
    /// How batches become steps and epochs.
    pub fn plan(&self) -> Plan {
        let Self { gradient_accumulation_steps, max_steps_per_epoch, epochs, .. } = *self;
        Plan { gradient_accumulation_steps, max_steps_per_epoch, epochs }
    }
}

//! What a recipe is written with: `use tune_core::prelude::*;`.

pub use std::path::{Path, PathBuf};

pub use crate::checkpoint::{self, Checkpoint, CheckpointConfig, run::RunDir, run::Saved, state::TrainingState};
pub use crate::config::{Config, ResolvedConfig, recipe, say};
pub use crate::data::{self, Batch, DatasetConfig, Loader, LoaderOptions};
pub use crate::device::{DeviceConfig, Precision, choose_seed};
pub use crate::distributed::init_process_group;
pub use crate::engine::{self, RunOptions, forward_backward};
pub use crate::eval::{self, Answer, ExactMatch, ExactMatchConfig};
pub use crate::generate::{Sampler, SamplerOptions, StopOptions};
pub use crate::hub;
pub use crate::loss::LossConfig;
pub use crate::memory_plan::{self, MemoryPlan};
pub use crate::metrics::{
    Console, Downloads, MetricLogger, MetricLoggerConfig, Metrics, StepMetrics, Throughput, ValidationMetrics,
    peak_memory,
};
pub use crate::models::{Decoder, DecoderConfig, LoadOptions, ModelConfig};
pub use crate::optim::{Gradients, InBackward, Optimizer, OptimizerConfig, Schedule, SchedulerConfig, clip_factor};
pub use crate::peft::{self, LoraModel};
pub use crate::recipe::{
    Outline, Plan, Position, Recipe, Step, Steps, Trained, Validations, already_complete, check_finite, check_stop,
    dropout_key, end_of_run, inputs, run_start, save, settings, write_config,
};
pub use crate::tokenizer::{StopTokens, Tokenizer, TokenizerConfig, TokenizerFiles};
pub use crate::{Error, Result};

//! What a recipe is written with: `use tune_core::prelude::*;`.

pub use std::path::{Path, PathBuf};

pub use crate::checkpoint::{self, Checkpoint, CheckpointConfig, run::RunDir, run::Saved, state::TrainingState};
pub use crate::config::{Config, ResolvedConfig, recipe, say};
pub use crate::data::{self, Batch, DatasetConfig, Loader, LoaderOptions};
pub use crate::device::{DeviceConfig, Precision, choose_seed};
pub use crate::distributed::init_process_group;
pub use crate::engine::{
    self, EmbeddingNoise, RunOptions, forward_backward, minimize, minimize_scores, queue_forward_backward,
};
pub use crate::eval::{self, Answer, ExactMatch, ExactMatchConfig};
pub use crate::generate::{Kernels, Sampler, SamplerOptions, StopOptions, sample_groups};
pub use crate::hub;
pub use crate::memory_plan::{self, Drawing, MemoryPlan};
pub use crate::methods::{
    self, AdvantageKeys, DivergenceLoss, Experience, OnPolicyConfig, PairwiseLoss, Penalties, PolicyLoss,
    PolicyMetrics, PpoLoss, PpoMetrics, PreferenceLoss, PreferenceMetrics, Reference, ReferenceChoice, Reward,
    RewardConfig, Rollout, ScoreMetrics, Teacher, TokenLoss, Totals, UnpairedLoss, UnpairedMetrics, UpdateKeys,
};
pub use crate::metrics::{
    Console, Downloads, EvaluationMetrics, Extra, MetricLogger, MetricLoggerConfig, Metrics, Pace, StepMetrics,
    ValidationMetrics, peak_memory,
};
pub use crate::models::{
    Decoder, FakeQuantizer, FreshWeights, FrozenBase, InBlocks, InitConfig, LoadOptions, ModelConfig, ModelSpec,
    Quantization, WeightSource,
};
pub use crate::optim::{Gradients, InBackward, Optimizer, OptimizerConfig, Schedule, SchedulerConfig, clip_factor};
pub use crate::peft::{self, LoraModel, LoraOrFullModel};
pub use crate::recipe::{
    Compared, DataKeys, EvaluationKeys, Measured, Opened, Outline, Plan, Position, PreferenceKeys, PretrainKeys,
    Recipe, RowKeys, Run, RunKeys, ScoredKeys, Step, StepKeys, Steps, StoredTeacher, TeacherLogitsConfig, Trained,
    UnpairedKeys, VAL_LOSS, ValueModel, Weights, check_finite, check_stop, dropout_key, sampling_key,
};
pub use crate::tokenizer::{StopTokens, Tokenizer, TokenizerConfig, TokenizerFiles};
pub use crate::{Error, Later, Result};

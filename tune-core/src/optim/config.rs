//! The `optimizer` and `lr_scheduler` keys.

use tune_config::Config;

use super::{AdamW, Optimizer, Schedule, Sgd, Shape};

/// What moves the weights.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay.
    #[config(name = "adamw", alias = "torch.optim.AdamW", default)]
    AdamW(AdamWConfig),
    /// Gradient descent, with or without momentum.
    #[config(name = "sgd", alias = "torch.optim.SGD")]
    Sgd(SgdConfig),
}

/// Adam with decoupled weight decay.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config, ignored(fused = "the update is always one pass over a parameter", foreach = "the update is always one pass over a parameter"))]
pub struct AdamWConfig {
    /// Learning rate, before any schedule.
    #[config(default = 2e-5, range = 0.0..)]
    pub lr: f64,
    /// Decay of the running means of the gradient and of its square.
    #[config(default = [0.9, 0.999], range = 0.0..1.0)]
    pub betas: [f64; 2],
    /// Added to the root of the mean square, against division by zero.
    #[config(default = 1e-8, range = 0.0..)]
    pub eps: f64,
    /// Share of each weight that a step takes away, times the learning rate.
    #[config(default = 0.01, range = 0.0..)]
    pub weight_decay: f64,
}

/// Gradient descent.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config, ignored(fused = "the update is always one pass over a parameter", foreach = "the update is always one pass over a parameter"))]
pub struct SgdConfig {
    /// Learning rate, before any schedule.
    #[config(default = 1e-3, range = 0.0..)]
    pub lr: f64,
    /// Share of the last step that the next one keeps.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub momentum: f64,
    /// Share of each weight that is added to its gradient.
    #[config(default = 0.0, range = 0.0..)]
    pub weight_decay: f64,
}

impl OptimizerConfig {
    /// The numbers, in f32, that it keeps for each one that is trained.
    pub fn state_per_parameter(&self) -> usize {
        match self {
            Self::AdamW(_) => 2,
            Self::Sgd(c) => usize::from(c.momentum > 0.0),
        }
    }

    /// The optimizer, without state yet.
    pub fn build(&self) -> Box<dyn Optimizer> {
        match self {
            Self::AdamW(c) => Box::new(AdamW::new(c.lr, c.betas, c.eps, c.weight_decay)),
            Self::Sgd(c) => Box::new(Sgd::new(c.lr, c.momentum, c.weight_decay)),
        }
    }
}

/// How the learning rate changes over the run.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum SchedulerConfig {
    /// It stays as it is once it is warmed up.
    #[config(name = "constant", default)]
    Constant(WarmupConfig),
    /// It falls to zero in a line.
    #[config(name = "linear")]
    Linear(WarmupConfig),
    /// It falls to zero along half a cosine.
    #[config(
        name = "cosine",
        alias = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
        alias = "torchtune.modules.get_cosine_schedule_with_warmup"
    )]
    Cosine(CosineConfig),
}

/// A warm-up.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct WarmupConfig {
    /// Optimizer steps over which the learning rate rises from zero.
    #[config(default = 0)]
    pub num_warmup_steps: u64,
}

/// A warm-up and a cosine.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct CosineConfig {
    /// Optimizer steps over which the learning rate rises from zero.
    #[config(default = 0)]
    pub num_warmup_steps: u64,
    /// Waves of the cosine over the run; half a wave ends at zero.
    #[config(default = 0.5, range = 0.0..)]
    pub num_cycles: f64,
}

impl SchedulerConfig {
    /// The schedule.
    pub fn build(&self) -> Schedule {
        let (shape, warmup_steps) = match self {
            Self::Constant(c) => (Shape::Constant, c.num_warmup_steps),
            Self::Linear(c) => (Shape::Linear, c.num_warmup_steps),
            Self::Cosine(c) => (Shape::Cosine { cycles: c.num_cycles }, c.num_warmup_steps),
        };
        Schedule { shape, warmup_steps }
    }
}

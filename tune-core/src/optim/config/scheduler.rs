//! The `lr_scheduler` key.

use tune_config::Config;

use crate::optim::{Decay, Schedule, Shape};

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
    /// It falls to zero along half a cosine, again and again from the top.
    #[config(name = "cosine_with_restarts")]
    CosineWithRestarts(RestartsConfig),
    /// It falls as a power of what is left of the run.
    #[config(name = "polynomial")]
    Polynomial(PolynomialConfig),
    /// It falls as one over the root of the step.
    #[config(name = "inverse_sqrt")]
    InverseSqrt(InverseSqrtConfig),
    /// It stays, and falls at the end of the run (warm-up, stable, decay).
    #[config(name = "wsd", alias = "warmup_stable_decay")]
    StableDecay(StableDecayConfig),
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

/// A warm-up and a cosine that begins anew.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct RestartsConfig {
    /// Optimizer steps over which the learning rate rises from zero.
    #[config(default = 0)]
    pub num_warmup_steps: u64,
    /// How often it falls to zero over the run.
    #[config(default = 1.0, range = 0.0..)]
    pub num_cycles: f64,
}

/// A warm-up and a power.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct PolynomialConfig {
    /// Optimizer steps over which the learning rate rises from zero.
    #[config(default = 0)]
    pub num_warmup_steps: u64,
    /// The power of what is left of the run; 1 is a line.
    #[config(default = 1.0, range = 0.0..)]
    pub power: f64,
    /// The learning rate at the end, as a share of optimizer.lr.
    #[config(default = 0.0, range = 0.0..=1.0)]
    pub min_lr_ratio: f64,
}

/// A warm-up and an inverse square root.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct InverseSqrtConfig {
    /// Optimizer steps over which the learning rate rises from zero.
    #[config(default = 0)]
    pub num_warmup_steps: u64,
    /// How slowly it falls: after this many steps it is at 0.71 of optimizer.lr. Where null, num_warmup_steps, or 10 000 without any.
    #[config(range = 1.0..)]
    pub timescale: Option<f64>,
}

/// A warm-up, and a fall at the end.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct StableDecayConfig {
    /// Optimizer steps over which the learning rate rises from zero.
    #[config(default = 0)]
    pub num_warmup_steps: u64,
    /// Optimizer steps at the end of the run over which it falls.
    pub num_decay_steps: u64,
    /// How it falls.
    #[config(default)]
    pub decay: Decay,
    /// The learning rate at the end, as a share of optimizer.lr.
    #[config(default = 0.0, range = 0.0..=1.0)]
    pub min_lr_ratio: f64,
}

impl SchedulerConfig {
    /// The schedule.
    pub fn build(&self) -> Schedule {
        let (shape, warmup_steps) = match self {
            Self::Constant(c) => (Shape::Constant, c.num_warmup_steps),
            Self::Linear(c) => (Shape::Linear, c.num_warmup_steps),
            Self::Cosine(c) => (Shape::Cosine { cycles: c.num_cycles }, c.num_warmup_steps),
            Self::CosineWithRestarts(c) => (Shape::CosineWithRestarts { cycles: c.num_cycles }, c.num_warmup_steps),
            Self::Polynomial(c) => (Shape::Polynomial { power: c.power, end: c.min_lr_ratio }, c.num_warmup_steps),
            Self::InverseSqrt(c) => (Shape::InverseSqrt { timescale: c.timescale }, c.num_warmup_steps),
            Self::StableDecay(c) => {
                let (decay_steps, decay, end) = (c.num_decay_steps, c.decay, c.min_lr_ratio);
                (Shape::StableDecay { decay_steps, decay, end }, c.num_warmup_steps)
            }
        };
        Schedule { shape, warmup_steps }
    }
}

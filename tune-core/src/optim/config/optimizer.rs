//! The `optimizer` key.

use tune_config::Config;

use crate::optim::{AdamW, AdamW8bit, Groups, Lion, LoraPlus, Optimizer, Sgd};

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
    /// AdamW whose state is in eight bits where a parameter is large: a quarter of the memory.
    #[config(name = "adamw_8bit", alias = "adamw8bit")]
    AdamW8bit(AdamW8bitConfig),
    /// Steps of one size, by the sign of a mean of gradients: half of AdamW's state.
    #[config(name = "lion", alias = "lion_pytorch.Lion")]
    Lion(LionConfig),
}

/// What differs from parameter to parameter, whatever moves them.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct GroupKeys {
    /// Whether weight decay also shrinks norms, biases and the magnitudes of adapters: all that has one dimension.
    #[config(default = true)]
    pub decay_vectors: bool,
}

impl Default for GroupKeys {
    fn default() -> Self {
        Self { decay_vectors: true }
    }
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
    /// What differs from parameter to parameter.
    #[config(flatten)]
    pub groups: GroupKeys,
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
    /// What differs from parameter to parameter.
    #[config(flatten)]
    pub groups: GroupKeys,
}

/// Adam with decoupled weight decay, and state in eight bits (Dettmers et al. 2021, <https://arxiv.org/abs/2110.02861>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct AdamW8bitConfig {
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
    /// What differs from parameter to parameter.
    #[config(flatten)]
    pub groups: GroupKeys,
}

/// Lion (Chen et al. 2023, <https://arxiv.org/abs/2302.06675>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct LionConfig {
    /// Learning rate, before any schedule: how far every weight goes in a step. A third to a tenth of AdamW's.
    #[config(default = 1e-5, range = 0.0..)]
    pub lr: f64,
    /// The share of the running mean in a step's direction, and the decay of that mean.
    #[config(default = [0.9, 0.99], range = 0.0..1.0)]
    pub betas: [f64; 2],
    /// Share of each weight that a step takes away, times the learning rate. Three to ten times AdamW's.
    #[config(default = 0.0, range = 0.0..)]
    pub weight_decay: f64,
    /// What differs from parameter to parameter.
    #[config(flatten)]
    pub groups: GroupKeys,
}

impl OptimizerConfig {
    /// The bytes that it keeps for a trained parameter of this name and shape.
    pub fn state_bytes(&self, _name: &str, dims: &[usize]) -> u64 {
        let elements = dims.iter().product::<usize>() as u64;
        match self {
            Self::AdamW(_) => 8 * elements,
            Self::AdamW8bit(_) => AdamW8bit::state_bytes(dims),
            Self::Sgd(c) => 4 * elements * u64::from(c.momentum > 0.0),
            Self::Lion(_) => 4 * elements,
        }
    }

    /// The bytes of it in a checkpoint.
    pub fn saved_bytes(&self, name: &str, dims: &[usize]) -> u64 {
        match self {
            Self::AdamW8bit(_) => AdamW8bit::saved_bytes(dims),
            _ => self.state_bytes(name, dims),
        }
    }

    /// Whether it keeps anything from step to step.
    pub fn keeps_state(&self) -> bool {
        !matches!(self, Self::Sgd(c) if c.momentum == 0.0)
    }

    /// The numbers, in f32, that it keeps on a card for each one that is trained: none where steps are taken on the processor.
    pub fn state_on_card_per_parameter(&self) -> usize {
        match self {
            Self::AdamW(_) => 2,
            Self::Sgd(c) => usize::from(c.momentum > 0.0),
            Self::AdamW8bit(_) | Self::Lion(_) => 0,
        }
    }

    /// Why it cannot move a parameter whose rows are divided among several processes, if so.
    pub fn needs_whole_parameters(&self) -> Option<&'static str> {
        match self {
            Self::AdamW8bit(_) => Some("adamw_8bit keeps blocks of state that do not end where a process's rows do"),
            _ => None,
        }
    }

    /// The optimizer, without state yet.
    pub fn build(&self) -> Box<dyn Optimizer> {
        let (decay, groups) = match self {
            Self::AdamW(c) => (c.weight_decay, &c.groups),
            Self::Sgd(c) => (c.weight_decay, &c.groups),
            Self::AdamW8bit(c) => (c.weight_decay, &c.groups),
            Self::Lion(c) => (c.weight_decay, &c.groups),
        };
        match groups.decay_vectors || decay == 0.0 {
            true => self.with_decay(decay),
            false => Box::new(Groups::new(self.with_decay(decay), self.with_decay(0.0))),
        }
    }

    fn with_decay(&self, decay: f64) -> Box<dyn Optimizer> {
        match self {
            Self::AdamW(c) => Box::new(AdamW::new(c.lr, c.betas, c.eps, decay)),
            Self::Sgd(c) => Box::new(Sgd::new(c.lr, c.momentum, decay)),
            Self::AdamW8bit(c) => Box::new(AdamW8bit::new(c.lr, c.betas, c.eps, decay)),
            Self::Lion(c) => Box::new(Lion::new(c.lr, c.betas, decay)),
        }
    }

    /// The same for adapters whose `B` is moved at a multiple of the learning rate, if there is one (LoRA+).
    pub fn build_for_adapters(&self, loraplus_lr_ratio: Option<f64>) -> Box<dyn Optimizer> {
        match loraplus_lr_ratio {
            None => self.build(),
            Some(ratio) => Box::new(LoraPlus::new(self.build(), ratio)),
        }
    }
}

//! The keys of each optimizer.

use std::path::PathBuf;

use tune_config::Config;

use crate::optim::AdjustLr;

/// What differs from parameter to parameter, whatever moves them.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct GroupKeys {
    /// Whether weight decay also shrinks norms, biases and the magnitudes of adapters: all that has one dimension.
    #[config(default = true)]
    pub decay_vectors: bool,
    /// The learning rate of a block, as a share of that of the block above it. The output layer has lr, the uppermost trained block this
    /// share of it, and the embedding table is below the lowest block. 1 is the same rate for all.
    #[config(default = 1.0, range = 0.0..=1.0)]
    pub layerwise_lr_decay: f64,
    /// Average the weights, and evaluate and save the mean: the share of it that a step keeps, such as 0.999. The mean is over about
    /// 1 / (1 - ema_decay) steps. None where null.
    #[config(range = 0.0..1.0)]
    pub ema_decay: Option<f64>,
    /// Keep the optimizer's state in a file in this folder, which should be on a fast disk of this machine, and not in memory. The steps
    /// are the same; nothing is left in the folder. In memory where null.
    #[config(may_change)]
    pub offload_dir: Option<PathBuf>,
}

impl Default for GroupKeys {
    fn default() -> Self {
        Self { decay_vectors: true, layerwise_lr_decay: 1.0, ema_decay: None, offload_dir: None }
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

/// Adafactor (Shazeer & Stern 2018, <https://arxiv.org/abs/1804.04235>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config, ignored(foreach = "the update is always a few passes over a parameter"))]
pub struct AdafactorConfig {
    /// Learning rate, before any schedule; with scale_parameter a share of the size of weights.
    #[config(default = 1e-2, range = 0.0..)]
    pub lr: f64,
    /// Step t takes t to this power of the new squared gradients into their means.
    #[config(default = -0.8, range = -1.0..=0.0, alias = "decay_rate")]
    pub beta2_decay: f64,
    /// The least root of a mean squared gradient, and the least size of weights that steps are scaled by.
    #[config(default = [1.1920928955078125e-7, 1e-3], range = 0.0..)]
    pub eps: [f64; 2],
    /// The largest root mean square of a step before it is scaled.
    #[config(default = 1.0, range = 0.0.., alias = "clip_threshold")]
    pub d: f64,
    /// Share of each weight that a step takes away, times the learning rate.
    #[config(default = 0.0, range = 0.0..)]
    pub weight_decay: f64,
    /// Scale steps by the root mean square of a parameter's weights.
    #[config(default = true)]
    pub scale_parameter: bool,
    /// Let the learning rate be at most one over the root of the step.
    #[config(default = true)]
    pub relative_step: bool,
    /// What differs from parameter to parameter.
    #[config(flatten)]
    pub groups: GroupKeys,
}

/// Muon (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct MuonConfig {
    /// Learning rate of matrices, before any schedule.
    #[config(default = 2e-4, range = 0.0..)]
    pub lr: f64,
    /// Share of the mean of gradients that a step keeps.
    #[config(default = 0.95, range = 0.0..1.0)]
    pub momentum: f64,
    /// Whether a step goes by the mean that is to come.
    #[config(default = true)]
    pub nesterov: bool,
    /// Iterations that make a matrix orthogonal.
    #[config(default = 5, range = 1..100)]
    pub ns_steps: usize,
    /// How the learning rate of a matrix depends on its shape.
    #[config(default)]
    pub adjust_lr_fn: AdjustLr,
    /// Share of each weight that a step takes away, times the learning rate.
    #[config(default = 0.1, range = 0.0..)]
    pub weight_decay: f64,
    /// Learning rate of AdamW, which moves the embedding table, the output layer, norms and biases; lr where null.
    #[config(range = 0.0..)]
    pub adamw_lr: Option<f64>,
    /// AdamW's decay of the running means of the gradient and of its square.
    #[config(default = [0.9, 0.95], range = 0.0..1.0)]
    pub betas: [f64; 2],
    /// Added to the root of AdamW's mean square, against division by zero.
    #[config(default = 1e-8, range = 0.0..)]
    pub eps: f64,
    /// What differs from parameter to parameter.
    #[config(flatten)]
    pub groups: GroupKeys,
}

/// AdamW without a schedule (Defazio et al. 2024, <https://arxiv.org/abs/2405.15682>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config, ignored(foreach = "the update is always one pass over a parameter"))]
pub struct ScheduleFreeConfig {
    /// Learning rate. It needs no schedule but a warm-up, as lr_scheduler=constant has it; larger than AdamW's.
    #[config(default = 2.5e-3, range = 0.0..)]
    pub lr: f64,
    /// The share of the averaged weights in those that gradients are taken at, and the decay of the mean of squared gradients.
    #[config(default = [0.9, 0.999], range = 0.0..1.0)]
    pub betas: [f64; 2],
    /// Added to the root of the mean square, against division by zero.
    #[config(default = 1e-8, range = 0.0..)]
    pub eps: f64,
    /// Share of each weight that a step takes away, times the learning rate.
    #[config(default = 0.0, range = 0.0..)]
    pub weight_decay: f64,
    /// Step t counts as t to this power in the averaged weights.
    #[config(default = 0.0, range = 0.0..)]
    pub r: f64,
    /// A step counts as the largest learning rate so far to this power in the averaged weights.
    #[config(default = 2.0, range = 0.0..)]
    pub weight_lr_power: f64,
    /// What differs from parameter to parameter.
    #[config(flatten)]
    pub groups: GroupKeys,
}

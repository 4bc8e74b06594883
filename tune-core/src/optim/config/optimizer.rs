//! The `optimizer` key.

use tune_config::Config;

use super::settings::{AdafactorConfig, AdamWConfig, GroupKeys, LionConfig, MuonConfig, ScheduleFreeConfig, SgdConfig};
use crate::optim::{
    Adafactor, AdamW, AdamW8bit, Averaged, Groups, LayerWise, Lion, LoraPlus, Muon, Optimizer, Scaled, ScheduleFree,
    Sgd,
};

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
    AdamW8bit(AdamWConfig),
    /// Steps of one size, by the sign of a mean of gradients: half of AdamW's state.
    #[config(name = "lion", alias = "lion_pytorch.Lion")]
    Lion(LionConfig),
    /// AdamW's steps from means over rows and columns alone: hardly any state.
    #[config(name = "adafactor", alias = "torch.optim.Adafactor")]
    Adafactor(AdafactorConfig),
    /// Orthogonal steps for matrices, AdamW for the rest: little more than half of AdamW's state.
    #[config(name = "muon", alias = "torch.optim.Muon")]
    Muon(MuonConfig),
    /// AdamW that needs no schedule: the weights that are evaluated and saved are a mean over its steps.
    #[config(name = "schedule_free_adamw", alias = "schedulefree.AdamWScheduleFree")]
    ScheduleFree(ScheduleFreeConfig),
}

impl OptimizerConfig {
    /// The bytes that it keeps for a trained parameter of this name and shape.
    pub fn state_bytes(&self, name: &str, dims: &[usize]) -> u64 {
        self.own_state_bytes(name, dims) + self.average_bytes(dims)
    }

    fn average_bytes(&self, dims: &[usize]) -> u64 {
        match self.groups().ema_decay {
            Some(_) => Averaged::state_bytes(dims.iter().product::<usize>() as u64),
            None => 0,
        }
    }

    fn own_state_bytes(&self, name: &str, dims: &[usize]) -> u64 {
        let elements = dims.iter().product::<usize>() as u64;
        match self {
            Self::AdamW(_) => 8 * elements,
            Self::AdamW8bit(_) => AdamW8bit::state_bytes(dims),
            Self::Sgd(c) => 4 * elements * u64::from(c.momentum > 0.0),
            Self::Lion(_) => 4 * elements,
            Self::Adafactor(_) => Adafactor::state_bytes(dims),
            Self::Muon(_) => {
                if Muon::is_for(name, dims) {
                    4 * elements
                } else {
                    8 * elements
                }
            }
            Self::ScheduleFree(_) => ScheduleFree::state_bytes(elements),
        }
    }

    /// The bytes of it in a checkpoint.
    pub fn saved_bytes(&self, name: &str, dims: &[usize]) -> u64 {
        match self {
            Self::AdamW8bit(_) => AdamW8bit::saved_bytes(dims) + self.average_bytes(dims),
            _ => self.state_bytes(name, dims),
        }
    }

    /// Whether it keeps anything from step to step.
    pub fn keeps_state(&self) -> bool {
        !matches!(self, Self::Sgd(c) if c.momentum == 0.0) || self.averages()
    }

    /// The numbers, in f32, that it keeps on a card for each one that is trained: none where steps are taken on the processor.
    pub fn state_on_card_per_parameter(&self) -> usize {
        match self {
            _ if self.averages() => 0,
            Self::AdamW(_) => 2,
            Self::Sgd(c) => usize::from(c.momentum > 0.0),
            Self::Lion(_) => 1,
            _ => 0,
        }
    }

    /// Why it cannot move parameters whose rows are divided among several processes, if so.
    pub fn needs_whole_parameters(&self) -> Option<&'static str> {
        match self {
            _ if self.averages() => Some("optimizer.ema_decay averages whole weights, for now"),
            Self::AdamW(_) | Self::Sgd(_) | Self::Lion(_) => None,
            Self::AdamW8bit(_) => Some("adamw_8bit keeps blocks of state that do not end where a process's rows do"),
            Self::Adafactor(_) => Some("adafactor needs the means over all rows of a matrix"),
            Self::Muon(_) => Some("muon makes whole matrices orthogonal"),
            Self::ScheduleFree(_) => Some("schedule_free_adamw moves whole weights, for now"),
        }
    }

    /// The setting by which gradients are taken elsewhere than at the weights that are evaluated and saved, if there is one.
    pub fn moves_between_weights(&self) -> Option<&'static str> {
        match self {
            _ if self.averages() => Some("optimizer.ema_decay"),
            Self::ScheduleFree(_) => Some("optimizer=schedule_free_adamw"),
            _ => None,
        }
    }

    fn averages(&self) -> bool {
        self.groups().ema_decay.is_some()
    }

    /// The optimizer, without state yet.
    pub fn build(&self) -> Box<dyn Optimizer> {
        let (decay, groups) = self.decay();
        let optimizer = match groups.decay_vectors || decay == 0.0 {
            true => self.with_decay(decay),
            false => Box::new(Groups::new(self.with_decay(decay), self.with_decay(0.0))),
        };
        let optimizer = match groups.layerwise_lr_decay == 1.0 {
            true => optimizer,
            false => Box::new(Scaled::new(optimizer, LayerWise::new(groups.layerwise_lr_decay))),
        };
        match groups.ema_decay {
            None => optimizer,
            Some(decay) => Box::new(Averaged::new(optimizer, decay)),
        }
    }

    fn groups(&self) -> &GroupKeys {
        self.decay().1
    }

    /// Weight decay, and what differs from parameter to parameter.
    fn decay(&self) -> (f64, &GroupKeys) {
        match self {
            Self::AdamW(c) | Self::AdamW8bit(c) => (c.weight_decay, &c.groups),
            Self::Sgd(c) => (c.weight_decay, &c.groups),
            Self::Lion(c) => (c.weight_decay, &c.groups),
            Self::Adafactor(c) => (c.weight_decay, &c.groups),
            Self::Muon(c) => (c.weight_decay, &c.groups),
            Self::ScheduleFree(c) => (c.weight_decay, &c.groups),
        }
    }

    /// The optimizer with another weight decay, for all parameters alike.
    fn with_decay(&self, decay: f64) -> Box<dyn Optimizer> {
        match self {
            Self::AdamW(c) => Box::new(AdamW::new(c.lr, c.betas, c.eps, decay)),
            Self::Sgd(c) => Box::new(Sgd::new(c.lr, c.momentum, decay)),
            Self::AdamW8bit(c) => Box::new(AdamW8bit::new(c.lr, c.betas, c.eps, decay)),
            Self::Lion(c) => Box::new(Lion::new(c.lr, c.betas, decay)),
            Self::Adafactor(c) => {
                let mut adafactor = Adafactor::new(c.lr, decay);
                adafactor.beta2_decay = c.beta2_decay;
                adafactor.eps = c.eps;
                adafactor.clip_threshold = c.d;
                adafactor.scale_parameter = c.scale_parameter;
                adafactor.relative_step = c.relative_step;
                Box::new(adafactor)
            }
            Self::Muon(c) => {
                let others = AdamW::new(c.adamw_lr.unwrap_or(c.lr), c.betas, c.eps, decay);
                let mut muon = Muon::new(c.lr, decay, others);
                muon.momentum = c.momentum;
                muon.nesterov = c.nesterov;
                muon.ns_steps = c.ns_steps;
                muon.adjust = c.adjust_lr_fn;
                Box::new(muon)
            }
            Self::ScheduleFree(c) => {
                let mut schedule_free = ScheduleFree::new(c.lr, c.betas, c.eps, decay);
                schedule_free.r = c.r;
                schedule_free.weight_lr_power = c.weight_lr_power;
                Box::new(schedule_free)
            }
        }
    }

    /// The same for adapters whose `B` is moved at a multiple of the learning rate, if there is one (LoRA+).
    pub fn build_for_adapters(&self, loraplus_lr_ratio: Option<f64>) -> Box<dyn Optimizer> {
        match loraplus_lr_ratio {
            None => self.build(),
            Some(ratio) => Box::new(Scaled::new(self.build(), LoraPlus(ratio))),
        }
    }
}

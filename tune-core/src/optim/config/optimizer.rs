//! The `optimizer` key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tune_config::Config;

use super::settings::{AdafactorConfig, AdamWConfig, GroupKeys, LionConfig, MuonConfig, ScheduleFreeConfig, SgdConfig};
use crate::offload::OffloadFile;
use crate::optim::state::AT_ONCE;
use crate::optim::{
    Adafactor, AdamW, AdamW8bit, Averaged, Groups, LayerWise, Lion, LoraPlus, Muon, Offloaded, Optimizer, Scaled,
    ScheduleFree, Sgd,
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

    /// The bytes of these that are in memory from step to step; the others are in the folder that `offload_dir` names.
    pub fn held_bytes(&self, name: &str, dims: &[usize]) -> u64 {
        match (self, self.offload_dir()) {
            (_, None) => self.state_bytes(name, dims),
            (Self::Adafactor(_), Some(_)) => self.own_state_bytes(name, dims),
            (_, Some(_)) => 0,
        }
    }

    /// The bytes of these that are in memory for a while, when the parameter is moved.
    pub fn passing_bytes(&self, name: &str, dims: &[usize]) -> u64 {
        if self.offload_dir().is_none() {
            return 0;
        }
        let elements = dims.iter().product::<usize>() as u64;
        let at_once = elements.min(AT_ONCE as u64);
        let in_parts = |parts: u64| 4 * parts * at_once;
        let own = match self {
            Self::AdamW(_) => in_parts(2),
            // Bytes.
            Self::AdamW8bit(_) => 2 * at_once,
            Self::Sgd(c) => in_parts(u64::from(c.momentum > 0.0)),
            Self::Lion(_) => in_parts(1),
            Self::Adafactor(_) => 0,
            Self::Muon(_) if Muon::is_for(name, dims) => 4 * elements,
            Self::Muon(_) => in_parts(2),
            // Where its weights are put back it needs one of the three as a whole.
            Self::ScheduleFree(_) => in_parts(3).max(4 * elements + in_parts(1)),
        };
        let averaged = if self.averages() { in_parts(2).max(4 * elements) } else { 0 };
        own.max(averaged)
    }

    /// The folder that the state is kept in, if it is not in memory.
    pub fn offload_dir(&self) -> Option<&Path> {
        self.groups().offload_dir.as_deref()
    }

    /// The same with its state kept in this folder.
    pub(crate) fn offloaded_to(mut self, dir: PathBuf) -> Self {
        let groups = match &mut self {
            Self::AdamW(c) | Self::AdamW8bit(c) => &mut c.groups,
            Self::Sgd(c) => &mut c.groups,
            Self::Lion(c) => &mut c.groups,
            Self::Adafactor(c) => &mut c.groups,
            Self::Muon(c) => &mut c.groups,
            Self::ScheduleFree(c) => &mut c.groups,
        };
        groups.offload_dir = Some(dir);
        self
    }

    /// Why there is nothing that `offload_dir` could keep, if so.
    pub fn has_nothing_to_offload(&self) -> Option<&'static str> {
        match self {
            _ if self.averages() => None,
            Self::Adafactor(_) => Some("adafactor keeps next to nothing"),
            Self::Sgd(c) if c.momentum == 0.0 => Some("sgd without momentum keeps nothing"),
            _ => None,
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

    /// The bytes of each thing that it keeps on a card for a parameter: nothing where steps are taken on the processor.
    pub fn parts_on_card(&self, name: &str, dims: &[usize]) -> Vec<usize> {
        let elements = dims.iter().product::<usize>();
        let of_numbers = |parts: usize| vec![4 * elements; parts];
        let mut parts = match self {
            Self::AdamW(_) => of_numbers(2),
            Self::AdamW8bit(_) => AdamW8bit::parts_on_card(elements),
            Self::Sgd(c) => of_numbers(usize::from(c.momentum > 0.0)),
            Self::Lion(_) => of_numbers(1),
            Self::ScheduleFree(_) => of_numbers(3),
            Self::Muon(_) => of_numbers(if Muon::is_for(name, dims) { 1 } else { 2 }),
            Self::Adafactor(_) => return Vec::new(),
        };
        if self.averages() {
            parts.extend(of_numbers(2));
        }
        parts
    }

    /// The bytes of each thing that a step takes on a card for a while, when the parameter is moved there.
    pub fn passing_on_card(&self, name: &str, dims: &[usize]) -> Vec<usize> {
        match self {
            Self::Muon(_) if Muon::is_for(name, dims) => Muon::passing_on_card(dims),
            _ => Vec::new(),
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

    /// The learning rate where the schedule has its factor at 1.
    pub fn lr(&self) -> f64 {
        match self {
            Self::AdamW(c) | Self::AdamW8bit(c) => c.lr,
            Self::Sgd(c) => c.lr,
            Self::Lion(c) => c.lr,
            Self::Adafactor(c) => c.lr,
            Self::Muon(c) => c.lr,
            Self::ScheduleFree(c) => c.lr,
        }
    }

    /// The optimizer, without state yet.
    pub fn build(&self) -> Box<dyn Optimizer> {
        self.build_for_adapters(None)
    }

    /// The same for adapters whose `B` is moved at a multiple of the learning rate, if there is one (LoRA+).
    pub fn build_for_adapters(&self, loraplus_lr_ratio: Option<f64>) -> Box<dyn Optimizer> {
        let file = self.offload_dir().map(|dir| OffloadFile::new(dir, "optimizer.offload_dir"));
        let optimizer = self.build_in(file.as_ref());
        let optimizer = match loraplus_lr_ratio {
            None => optimizer,
            Some(ratio) => Box::new(Scaled::new(optimizer, LoraPlus(ratio))),
        };
        match file {
            None => optimizer,
            Some(file) => Box::new(Offloaded::new(optimizer, file, self.clone())),
        }
    }

    /// The same with its state in a file, if there is one.
    fn build_in(&self, file: Option<&Arc<OffloadFile>>) -> Box<dyn Optimizer> {
        let (decay, groups) = self.decay();
        let optimizer = match groups.decay_vectors || decay == 0.0 {
            true => self.with_decay(decay, file),
            false => Box::new(Groups::new(self.with_decay(decay, file), self.with_decay(0.0, file))),
        };
        let optimizer = match groups.layerwise_lr_decay == 1.0 {
            true => optimizer,
            false => Box::new(Scaled::new(optimizer, LayerWise::new(groups.layerwise_lr_decay))),
        };
        match groups.ema_decay {
            None => optimizer,
            Some(decay) => Box::new(Averaged::new(optimizer, decay).keep_in(file)),
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
    fn with_decay(&self, decay: f64, file: Option<&Arc<OffloadFile>>) -> Box<dyn Optimizer> {
        match self {
            Self::AdamW(c) => Box::new(AdamW::new(c.lr, c.betas, c.eps, decay).keep_in(file)),
            Self::Sgd(c) => Box::new(Sgd::new(c.lr, c.momentum, decay).keep_in(file)),
            Self::AdamW8bit(c) => Box::new(AdamW8bit::new(c.lr, c.betas, c.eps, decay).keep_in(file)),
            Self::Lion(c) => Box::new(Lion::new(c.lr, c.betas, decay).keep_in(file)),
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
                Box::new(muon.keep_in(file))
            }
            Self::ScheduleFree(c) => {
                let mut schedule_free = ScheduleFree::new(c.lr, c.betas, c.eps, decay);
                schedule_free.r = c.r;
                schedule_free.weight_lr_power = c.weight_lr_power;
                Box::new(schedule_free.keep_in(file))
            }
        }
    }
}

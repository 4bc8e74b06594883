//! LoRA+ (Hayou et al. 2024, <https://arxiv.org/abs/2402.12354>): `B` learns faster than `A`.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Gradient, Optimizer};
use crate::Result;
use crate::models::{Parameter, Trainable};

/// An optimizer that moves an adapter's `B` at a multiple of the learning rate. As in peft, a vector is moved as `B` is.
pub struct LoraPlus {
    optimizer: Box<dyn Optimizer>,
    ratio: f64,
}

impl LoraPlus {
    /// The learning rate of `B` is that of `A` times `ratio`.
    #[must_use]
    pub fn new(optimizer: Box<dyn Optimizer>, ratio: f64) -> Self {
        Self { optimizer, ratio }
    }

    fn factor(&self, parameter: &Parameter) -> f64 {
        let is_fast = parameter.name().ends_with(".lora_B.weight") || parameter.var().rank() == 1;
        if is_fast { self.ratio } else { 1.0 }
    }
}

impl Optimizer for LoraPlus {
    fn base_lr(&self) -> f64 {
        self.optimizer.base_lr()
    }

    fn prepare(&mut self, parameter: &Parameter, step: u64) -> Result<()> {
        self.optimizer.prepare(parameter, step)
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        let lr = lr * self.factor(parameter);
        self.optimizer.update(parameter, gradient, lr, scale, step)
    }

    fn works_on_cards(&self) -> bool {
        self.optimizer.works_on_cards()
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        let (slow, fast): (Vec<_>, Vec<_>) = all.iter().partition(|(parameter, _)| self.factor(parameter) == 1.0);
        self.optimizer.update_all(&slow, lr, scale, step)?;
        self.optimizer.update_all(&fast, lr * self.ratio, scale, step)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.optimizer.state()
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        self.optimizer.set_state(state, parameters)
    }
}

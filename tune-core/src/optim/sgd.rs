//! Stochastic gradient descent with momentum, as PyTorch defines it.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::{Optimizer, StatePart};
use crate::Result;
use crate::ops::update;

/// SGD: `velocity = momentum · velocity + (gradient + weight_decay · weight)`, `weight -= lr · velocity`.
#[derive(Debug)]
pub struct Sgd {
    /// Learning rate before any schedule.
    pub lr: f64,
    /// Share of the velocity that a step keeps; no state is held if it is zero.
    pub momentum: f64,
    /// Share of a weight added to its gradient.
    pub weight_decay: f64,
    velocity: StatePart,
}

impl Sgd {
    /// SGD without state yet.
    pub fn new(lr: f64, momentum: f64, weight_decay: f64) -> Self {
        Self { lr, momentum, weight_decay, velocity: StatePart::default() }
    }
}

impl Optimizer for Sgd {
    fn base_lr(&self) -> f64 {
        self.lr
    }

    fn update(&mut self, name: &str, var: &Var, gradient: &Tensor, lr: f64, scale: f64, _step: u64) -> Result<()> {
        let (decay, momentum) = (self.weight_decay, self.momentum);
        let (lr32, decay32, momentum32, s) = (lr as f32, decay as f32, momentum as f32, scale as f32);
        if momentum == 0.0 {
            let step = |w: f64, g: f64, _| w - lr * (g * scale + decay * w);
            return Ok(update(var, gradient, gradient, step, |w, g, _| w - lr32 * (g * s + decay32 * w))?);
        }
        let velocity = self.velocity.get(name, var)?;
        let weight = var.as_detached_tensor();
        let gather = |v: f64, g: f64, w: f64| v * momentum + g * scale + decay * w;
        update(velocity, gradient, &weight, gather, |v, g, w| v * momentum32 + g * s + decay32 * w)?;
        Ok(update(var, velocity, velocity, |w, v, _| w - lr * v, |w, v, _| w - lr32 * v)?)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        self.velocity.save("momentum_buffer", &mut state);
        state
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &BTreeMap<String, Var>) -> Result<()> {
        StatePart::load(state, &mut [("momentum_buffer", &mut self.velocity)], parameters)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn momentum_gathers_speed() {
        let var = Var::new(&[1f32], &Device::Cpu).unwrap();
        let gradient = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let mut sgd = Sgd::new(0.1, 0.5, 0.0);
        for step in 1..=2 {
            sgd.update("w", &var, &gradient, 0.1, 1.0, step).unwrap();
        }
        let w = var.to_vec1::<f32>().unwrap()[0];
        assert!((w - (1.0 - 0.1 - 0.15)).abs() < 1e-6, "{w}");
    }
}

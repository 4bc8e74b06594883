//! Stochastic gradient descent with momentum, as PyTorch defines it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::on_card::update_on_card;
use super::update::{UpdateRule, update};
use super::values::Real;
use super::{Gradient, Optimizer, StatePart, made, rounding};
use crate::Result;
use crate::engine::Rule as OnCards;
use crate::models::{Parameter, Piece, Trainable};
use crate::offload::OffloadFile;

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

    /// Keeps its state in this file, before there is any.
    pub(super) fn keep_in(mut self, file: Option<&Arc<OffloadFile>>) -> Self {
        self.velocity.keep_in(file);
        self
    }
}

impl Optimizer for Sgd {
    fn base_lr(&self) -> f64 {
        self.lr
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        if gradient.card().is_some() {
            return self.update_all(&[(parameter, gradient)], lr, scale, step);
        }
        let rule = Rule { lr, scale, momentum: self.momentum, decay: self.weight_decay };
        let key = rounding(parameter, step);
        if self.momentum == 0.0 {
            return Ok(update(parameter.var(), [], gradient, key, &rule)?);
        }
        Ok(update(parameter.var(), [self.velocity.get(parameter)?], gradient, key, &rule)?)
    }

    fn works_on_cards(&self) -> bool {
        true
    }

    fn clips_on_cards(&self) -> bool {
        true
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        for (parameter, gradient) in all.iter().filter(|(_, gradient)| gradient.card().is_none()) {
            self.update(parameter, gradient, lr, scale, step)?;
        }
        let Self { momentum, weight_decay, .. } = *self;
        let rule = OnCards::Sgd(tune_cuda::Sgd { lr, momentum, weight_decay });
        match momentum == 0.0 {
            true => update_on_card(all, [], rule, scale, step),
            false => update_on_card(all, [&mut self.velocity], rule, scale, step),
        }
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = Vec::new();
        self.velocity.pieces("momentum_buffer", &mut pieces);
        Ok(pieces)
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        StatePart::load(state, &mut [("momentum_buffer", &mut self.velocity)], parameters)
    }
}

/// One step of one parameter, with or without a velocity.
#[derive(Clone, Copy)]
struct Rule {
    lr: f64,
    scale: f64,
    momentum: f64,
    decay: f64,
}

impl UpdateRule<0> for Rule {
    #[inline(always)]
    fn step<R: Real>(&self, w: R, _: &mut [R; 0], g: R) -> R {
        w - R::of(self.lr) * (g * R::of(self.scale) + R::of(self.decay) * w)
    }
}

impl UpdateRule<1> for Rule {
    #[inline(always)]
    fn step<R: Real>(&self, w: R, [velocity]: &mut [R; 1], g: R) -> R {
        *velocity = *velocity * R::of(self.momentum) + g * R::of(self.scale) + R::of(self.decay) * w;
        w - R::of(self.lr) * *velocity
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn momentum_gathers_speed() {
        let var = Var::new(&[1f32], &Device::Cpu).unwrap();
        let gradient = Tensor::new(&[1f32], &Device::Cpu).unwrap().into();
        let parameters = Trainable::from_iter([("w".to_string(), var.clone())]);
        let mut sgd = Sgd::new(0.1, 0.5, 0.0);
        for step in 1..=2 {
            sgd.update(parameters.at(0).unwrap(), &gradient, 0.1, 1.0, step).unwrap();
        }
        let w = var.to_vec1::<f32>().unwrap()[0];
        assert!((w - (1.0 - 0.1 - 0.15)).abs() < 1e-6, "{w}");
    }
}

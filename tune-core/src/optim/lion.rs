//! Lion (Chen et al. 2023, <https://arxiv.org/abs/2302.06675>): every weight goes the same way, by the sign of a mean of gradients.

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

/// Lion: `weight -= lr · (sign(β₁ · mean + (1 - β₁) · gradient) + weight_decay · weight)`, then
/// `mean = β₂ · mean + (1 - β₂) · gradient`, as its authors have it.
#[derive(Debug)]
pub struct Lion {
    /// Learning rate before any schedule: the way that a weight goes in a step.
    pub lr: f64,
    /// The share of the mean in the direction of a step, and the decay of the mean.
    pub betas: [f64; 2],
    /// Share of a weight taken away per step, times the learning rate.
    pub weight_decay: f64,
    mean: StatePart,
}

impl Lion {
    /// Lion without state yet.
    pub fn new(lr: f64, betas: [f64; 2], weight_decay: f64) -> Self {
        Self { lr, betas, weight_decay, mean: StatePart::default() }
    }

    /// Keeps its state in this file, before there is any.
    pub(super) fn keep_in(mut self, file: Option<&Arc<OffloadFile>>) -> Self {
        self.mean.keep_in(file);
        self
    }
}

impl Optimizer for Lion {
    fn base_lr(&self) -> f64 {
        self.lr
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        if gradient.card().is_some() {
            return self.update_all(&[(parameter, gradient)], lr, scale, step);
        }
        let rule = Rule { lr, scale, betas: self.betas, keep: 1.0 - lr * self.weight_decay };
        let mean = self.mean.get(parameter)?;
        Ok(update(parameter.var(), [mean], gradient, rounding(parameter, step), &rule)?)
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
        let Self { betas, weight_decay, .. } = *self;
        let rule = OnCards::Lion(tune_cuda::Lion { lr, betas, weight_decay });
        update_on_card(all, [&mut self.mean], rule, scale, step)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = Vec::new();
        self.mean.pieces("exp_avg", &mut pieces);
        Ok(pieces)
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        StatePart::load(state, &mut [("exp_avg", &mut self.mean)], parameters)
    }
}

/// One step of one parameter.
#[derive(Clone, Copy)]
struct Rule {
    lr: f64,
    scale: f64,
    betas: [f64; 2],
    /// What weight decay leaves of a weight.
    keep: f64,
}

impl UpdateRule<1> for Rule {
    #[inline(always)]
    fn step<R: Real>(&self, w: R, [mean]: &mut [R; 1], g: R) -> R {
        let [b1, b2] = self.betas;
        let g = g * R::of(self.scale);
        let direction = *mean * R::of(b1) + g * R::of(1.0 - b1);
        *mean = *mean * R::of(b2) + g * R::of(1.0 - b2);
        // Zero has no sign.
        let up = if direction > R::zero() { R::of(self.lr) } else { R::zero() };
        let down = if direction < R::zero() { R::of(self.lr) } else { R::zero() };
        w * R::of(self.keep) - up + down
    }
}

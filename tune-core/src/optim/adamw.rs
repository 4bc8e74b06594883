//! Adam with decoupled weight decay (Loshchilov & Hutter 2017, <https://arxiv.org/abs/1711.05101>).

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

/// AdamW, computed in f32 in the order of PyTorch's.
#[derive(Debug)]
pub struct AdamW {
    /// Learning rate before any schedule.
    pub lr: f64,
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight taken away per step, times the learning rate.
    pub weight_decay: f64,
    first: StatePart,
    second: StatePart,
}

impl AdamW {
    /// AdamW without state yet.
    pub fn new(lr: f64, betas: [f64; 2], eps: f64, weight_decay: f64) -> Self {
        Self { lr, betas, eps, weight_decay, first: StatePart::default(), second: StatePart::default() }
    }

    /// Keeps its state in this file, before there is any.
    pub(super) fn keep_in(mut self, file: Option<&Arc<OffloadFile>>) -> Self {
        self.first.keep_in(file);
        self.second.keep_in(file);
        self
    }

    /// What a step does to an element.
    pub(super) fn rule(&self, lr: f64, scale: f64, step: u64) -> Rule {
        let ([b1, b2], steps) = (self.betas, step as f64);
        Rule {
            scale,
            betas: self.betas,
            size: lr / (1.0 - b1.powf(steps)),
            root: (1.0 - b2.powf(steps)).sqrt(),
            keep: 1.0 - lr * self.weight_decay,
            eps: self.eps,
        }
    }
}

impl Optimizer for AdamW {
    fn base_lr(&self) -> f64 {
        self.lr
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        if gradient.card().is_some() {
            return self.update_all(&[(parameter, gradient)], lr, scale, step);
        }
        let rule = self.rule(lr, scale, step);
        let (m, v) = (self.first.get(parameter)?, self.second.get(parameter)?);
        Ok(update(parameter.var(), [m, v], gradient, rounding(parameter, step), &rule)?)
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
        let Self { betas, eps, weight_decay, .. } = *self;
        let rule = OnCards::AdamW(tune_cuda::AdamW { lr, betas, eps, weight_decay }, step);
        update_on_card(all, [&mut self.first, &mut self.second], rule, scale, step)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = Vec::new();
        self.first.pieces("exp_avg", &mut pieces);
        self.second.pieces("exp_avg_sq", &mut pieces);
        Ok(pieces)
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        StatePart::load(state, &mut [("exp_avg", &mut self.first), ("exp_avg_sq", &mut self.second)], parameters)
    }
}

/// One step of one parameter.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    scale: f64,
    betas: [f64; 2],
    /// The learning rate over the first moment's bias.
    size: f64,
    /// The root of the second moment's bias.
    root: f64,
    /// What weight decay leaves of a weight.
    keep: f64,
    eps: f64,
}

impl UpdateRule<2> for Rule {
    #[inline(always)]
    fn step<R: Real>(&self, w: R, [m, v]: &mut [R; 2], g: R) -> R {
        let [b1, b2] = self.betas;
        let g = g * R::of(self.scale);
        *m += (g - *m) * R::of(1.0 - b1);
        *v = *v * R::of(b2) + R::of(1.0 - b2) * g * g;
        w * R::of(self.keep) - R::of(self.size) * *m / (v.sqrt() / R::of(self.root) + R::of(self.eps))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Against a hand-computed first step: every weight moves by the learning rate, less its decay.
    #[test]
    fn the_first_step_moves_by_the_learning_rate() {
        let var = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let gradient = Tensor::new(&[0.5f32, -3.0], &Device::Cpu).unwrap().into();
        let parameters = Trainable::from_iter([("w".to_string(), var.clone())]);
        AdamW::new(0.1, [0.9, 0.999], 1e-8, 0.01).update(parameters.at(0).unwrap(), &gradient, 0.1, 1.0, 1).unwrap();
        let w: Vec<f32> = var.to_vec1().unwrap();
        assert!((w[0] - (0.999 - 0.1)).abs() < 1e-6 && (w[1] - (-1.998 + 0.1)).abs() < 1e-6, "{w:?}");
    }

    #[test]
    fn state_survives_a_round_trip() {
        let of = |var: &Var| Trainable::from_iter([("w".to_string(), var.clone())]);
        let var = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let gradient = Tensor::new(&[0.5f32, -3.0], &Device::Cpu).unwrap().into();
        let mut one = AdamW::new(0.1, [0.9, 0.999], 1e-8, 0.01);
        one.update(of(&var).at(0).unwrap(), &gradient, 0.1, 1.0, 1).unwrap();
        let mut two = AdamW::new(0.1, [0.9, 0.999], 1e-8, 0.01);
        let copy = Var::from_tensor(&var.as_detached_tensor()).unwrap();
        two.set_state(one.state().unwrap(), &of(&copy)).unwrap();
        one.update(of(&var).at(0).unwrap(), &gradient, 0.1, 1.0, 2).unwrap();
        two.update(of(&copy).at(0).unwrap(), &gradient, 0.1, 1.0, 2).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), copy.to_vec1::<f32>().unwrap());
    }

    /// Against an AdamW that is not ours, over some steps.
    #[test]
    fn steps_are_those_of_candle_nn() {
        use candle_nn::optim::{Optimizer as _, ParamsAdamW};

        let numbers = |seed| crate::models::uniform(seed, 500, 1.0);
        let start = Tensor::from_vec(numbers(1), 500, &Device::Cpu).unwrap();
        let [ours, theirs] = [0, 1].map(|_| Var::from_tensor(&start.copy().unwrap()).unwrap());
        let parameters = Trainable::from_iter([("w".to_string(), ours.clone())]);
        let mut adamw = AdamW::new(0.01, [0.9, 0.99], 1e-6, 0.1);
        let params = ParamsAdamW { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
        let mut peer = candle_nn::AdamW::new(vec![theirs.clone()], params).unwrap();
        for step in 1..=20 {
            let lr = 0.01 / step as f64;
            // The gradient of a sum of products is what the weight is multiplied by.
            let gradient = Tensor::from_vec(numbers(step + 1), 500, &Device::Cpu).unwrap();
            peer.set_learning_rate(lr);
            peer.backward_step(&(theirs.as_tensor() * &gradient).unwrap().sum_all().unwrap()).unwrap();
            adamw.update(parameters.at(0).unwrap(), &gradient.into(), lr, 1.0, step).unwrap();
            let [ours, theirs] = [&ours, &theirs].map(|var| var.to_vec1::<f32>().unwrap());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert!((ours - theirs).abs() < 2e-6, "step {step}: {ours}, and candle-nn says {theirs}");
            }
        }
    }
}

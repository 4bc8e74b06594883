//! Muon (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon>): the momentum of a matrix is made orthogonal before the
//! matrix is moved by it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use tune_config::Config;

use super::on_card::update_on_card;
use super::update::{UpdateRule, squared_norm, update};
use super::values::Real;
use super::{AdamW, Gradient, Optimizer, StatePart, made, rounding};
use crate::Result;
use crate::engine::{OnCard, Rule};
use crate::models::{HEAD, OUTPUT_ROWS, Parameter, Piece, SCORE, TABLE, TOKEN_ROWS, Trainable};
use crate::offload::OffloadFile;

/// The iteration's coefficients: those that raise small singular values fastest, and leave all between 0.7 and 1.2.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];

/// The least norm that a matrix is divided by.
const LEAST_NORM: f64 = 1e-7;

/// How the learning rate of a matrix depends on its shape `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum AdjustLr {
    /// Times 0.2 · √max(out, in): steps have the root mean square of AdamW's (Liu et al. 2025, <https://arxiv.org/abs/2502.16982>).
    #[config(name = "match_rms_adamw", default)]
    MatchRmsAdamW,
    /// Times √max(1, out / in), as the method's author has it.
    #[config(name = "original")]
    Original,
}

impl AdjustLr {
    fn factor(self, out: usize, inner: usize) -> f64 {
        match self {
            Self::MatchRmsAdamW => 0.2 * (out.max(inner) as f64).sqrt(),
            Self::Original => (out as f64 / inner as f64).max(1.0).sqrt(),
        }
    }
}

/// Muon for matrices; AdamW for the embedding table and rows of it, the output layer and all that has one dimension.
#[derive(Debug)]
pub struct Muon {
    /// Learning rate before any schedule.
    pub lr: f64,
    /// Share of the mean of gradients that a step keeps.
    pub momentum: f64,
    /// Whether a step goes by the mean that is to come.
    pub nesterov: bool,
    /// Iterations that make a matrix orthogonal.
    pub ns_steps: usize,
    /// How the learning rate of a matrix depends on its shape.
    pub adjust: AdjustLr,
    /// Share of a weight taken away per step, times the learning rate.
    pub weight_decay: f64,
    momenta: StatePart,
    others: AdamW,
}

impl Muon {
    /// Without state yet. `others` moves what is no matrix within a block, at its own learning rate.
    pub fn new(lr: f64, weight_decay: f64, others: AdamW) -> Self {
        Self {
            lr,
            momentum: 0.95,
            nesterov: true,
            ns_steps: 5,
            adjust: AdjustLr::MatchRmsAdamW,
            weight_decay,
            momenta: StatePart::default(),
            others,
        }
    }

    /// Keeps its state in this file, before there is any.
    pub(super) fn keep_in(mut self, file: Option<&Arc<OffloadFile>>) -> Self {
        self.momenta.keep_in(file);
        self.others = self.others.keep_in(file);
        self
    }

    /// Whether a parameter of this name and shape is moved as a matrix.
    pub(super) fn is_for(name: &str, dims: &[usize]) -> bool {
        dims.len() == 2 && ![TABLE, TOKEN_ROWS, HEAD, OUTPUT_ROWS, SCORE].contains(&name)
    }

    /// Bytes of each thing that a step takes on a card for a while, for a matrix of this shape.
    pub(super) fn passing_on_card(dims: &[usize]) -> Vec<usize> {
        let (all, square) = (dims.iter().product::<usize>(), dims.iter().min().map_or(0, |short| short * short));
        // The matrix before a step of the iteration and after it, and two products of it with itself.
        vec![4 * all, 4 * square, 4 * square, 4 * all]
    }

    /// Moves a matrix whose gradient is on a card, where its mean is, too. Numbers are the processor's but for the order of sums.
    fn move_on_card(
        &mut self,
        parameter: &Parameter,
        gradient: &OnCard,
        (lr, factor): (f64, f64),
        scale: f64,
        step: u64,
    ) -> Result<()> {
        let (keep, new) = (self.momentum, 1.0 - self.momentum);
        let mean = self.momenta.take_on(gradient.card(), parameter)?.mixed(keep, gradient, scale * new);
        let towards = if self.nesterov { (keep, scale * new) } else { (1.0, 0.0) };
        let direction = mean.mixed(towards.0, gradient, towards.1);
        self.momenta.put_on_card(parameter, mean);
        let direction = direction.orthogonal(self.ns_steps, COEFFICIENTS, LEAST_NORM)?.into();
        // As plain descent along that direction, of which weight decay is a part.
        let rule = tune_cuda::Sgd { lr: lr * factor, momentum: 0.0, weight_decay: self.weight_decay / factor };
        update_on_card(&[(parameter, &direction)], [], Rule::Sgd(rule), 1.0, step)
    }

    /// The learning rate of the others where that of matrices is `lr`, on a schedule.
    fn lr_of_others(&self, lr: f64) -> f64 {
        if self.others.lr == self.lr || self.lr == 0.0 { lr } else { lr / self.lr * self.others.lr }
    }
}

impl Optimizer for Muon {
    fn base_lr(&self) -> f64 {
        self.lr
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        let var = parameter.var();
        let (true, &[out, inner]) = (Self::is_for(parameter.name(), var.dims()), var.dims()) else {
            let lr = self.lr_of_others(lr);
            return self.others.update(parameter, gradient, lr, scale, step);
        };
        if let Some(gradient) = gradient.on_card() {
            return self.move_on_card(parameter, gradient, (lr, self.adjust.factor(out, inner)), scale, step);
        }
        let mean = &self.momenta.whole(parameter)?;
        update(mean, [], gradient, (0, 0), &Mean { scale, new: 1.0 - self.momentum })?;
        self.momenta.give_back(parameter, mean)?;
        let direction = match self.nesterov {
            true => {
                let gradient = (gradient.to_tensor()?.to_dtype(mean.dtype())? * scale)?;
                (((mean - &gradient)? * self.momentum)? + gradient)?
            }
            false => mean.clone(),
        };
        let direction = orthogonal(&direction, self.ns_steps)?.into();
        let rule = Step { keep: 1.0 - lr * self.weight_decay, size: lr * self.adjust.factor(out, inner) };
        Ok(update(var, [], &direction, rounding(parameter, step), &rule)?)
    }

    fn works_on_cards(&self) -> bool {
        true
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        let is_matrix =
            |(parameter, _): &(&Parameter, &Gradient)| Self::is_for(parameter.name(), parameter.var().dims());
        let (matrices, others): (Vec<_>, Vec<_>) = all.iter().copied().partition(is_matrix);
        for (parameter, gradient) in matrices {
            self.update(parameter, gradient, lr, scale, step)?;
        }
        let lr = self.lr_of_others(lr);
        self.others.update_all(&others, lr, scale, step)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = self.others.state_pieces()?;
        self.momenta.pieces(MOMENTUM, &mut pieces);
        Ok(pieces)
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        let is_momentum = |key: &str| key.strip_suffix(MOMENTUM).is_some_and(|name| name.ends_with('.'));
        let (momenta, others) = state.into_iter().partition(|(key, _)| is_momentum(key));
        StatePart::load(momenta, &mut [(MOMENTUM, &mut self.momenta)], parameters)?;
        self.others.set_state(others, parameters)
    }
}

/// What the mean of gradients is called in a checkpoint.
const MOMENTUM: &str = "momentum_buffer";

/// A matrix with the singular vectors of `x [out, in]` and singular values near 1, by Newton and Schulz's iteration.
fn orthogonal(x: &Tensor, steps: usize) -> Result<Tensor> {
    let (out, inner) = x.dims2()?;
    // The products with the transpose are as small as can be.
    let is_tall = out > inner;
    let mut x = if is_tall { x.t()?.contiguous()? } else { x.clone() };
    // No singular value is above the norm.
    x = (&x / squared_norm(&x)?.sqrt().max(LEAST_NORM))?;
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..steps {
        let gram = x.matmul(&x.t()?)?;
        let odd = ((gram.matmul(&gram)? * c)? + (gram * b)?)?;
        x = (odd.matmul(&x)? + (x * a)?)?;
    }
    Ok(if is_tall { x.t()?.contiguous()? } else { x })
}

/// Takes a share of the gradient into the mean.
#[derive(Clone, Copy)]
struct Mean {
    scale: f64,
    new: f64,
}

impl UpdateRule<0> for Mean {
    #[inline(always)]
    fn step<R: Real>(&self, mean: R, _: &mut [R; 0], gradient: R) -> R {
        mean + (gradient * R::of(self.scale) - mean) * R::of(self.new)
    }
}

/// Moves a weight against a direction.
#[derive(Clone, Copy)]
struct Step {
    /// What weight decay leaves of a weight.
    keep: f64,
    size: f64,
}

impl UpdateRule<0> for Step {
    #[inline(always)]
    fn step<R: Real>(&self, weight: R, _: &mut [R; 0], direction: R) -> R {
        weight * R::of(self.keep) - R::of(self.size) * direction
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// All singular values come near 1, whichever side is longer, so products with the transpose are near the identity.
    #[test]
    fn singular_values_come_near_one() {
        for (out, inner) in [(6, 24), (24, 6), (8, 8)] {
            let x = Tensor::from_vec(crate::models::uniform(5, out * inner, 1.0), (out, inner), &Device::Cpu).unwrap();
            let x = orthogonal(&x, 8).unwrap();
            assert_eq!(x.dims(), [out, inner]);
            let short = if out > inner { x.t().unwrap().contiguous().unwrap() } else { x };
            let gram: Vec<Vec<f32>> = short.matmul(&short.t().unwrap()).unwrap().to_vec2().unwrap();
            for (i, row) in gram.iter().enumerate() {
                let trace_share = row[i];
                assert!((0.4..1.6).contains(&trace_share), "{out} by {inner}: {trace_share} on the diagonal");
                let beside = row.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, x)| x.abs()).fold(0.0, f32::max);
                assert!(beside < 0.5, "{out} by {inner}: {beside} beside the diagonal");
            }
        }
    }

    #[test]
    fn a_matrix_of_zeros_stays_one() {
        let zeros = Tensor::zeros((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let x: Vec<Vec<f32>> = orthogonal(&zeros, 5).unwrap().to_vec2().unwrap();
        assert!(x.iter().flatten().all(|&x| x == 0.0));
    }
}

//! An exponential mean of the weights, whatever moves them: what is evaluated and saved is the mean, and training goes on from the weights
//! themselves. As `torch.optim.swa_utils.get_ema_multi_avg_fn` has it: the mean begins with the weights after the first step.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::by_place::ByPlace;
use super::state::dtype_of;
use super::update::{UpdateRule, update};
use super::values::Real;
use super::{Gradient, Optimizer, StatePart, made, rounding};
use crate::kernels::Dropout;
use crate::models::{Parameter, Piece, Trainable};
use crate::offload::OffloadFile;
use crate::{Error, Result};

/// An optimizer whose weights are averaged. Between steps a model has the mean; [`Optimizer::prepare`] puts the weights in its place, at
/// which gradients are taken, and the update puts back the new mean.
pub struct Averaged {
    optimizer: Box<dyn Optimizer>,
    /// The share of the mean that a step keeps.
    decay: f64,
    weights: StatePart,
    mean: StatePart,
    /// The step whose gradients are taken, while a parameter has its weights.
    under_way: ByPlace<u64>,
}

/// What state is called in a checkpoint.
const WEIGHTS: &str = "averaged_weights";
const MEAN: &str = "average";

impl Averaged {
    /// What `optimizer` does to the weights, averaged with this decay.
    #[must_use]
    pub fn new(optimizer: Box<dyn Optimizer>, decay: f64) -> Self {
        Self {
            optimizer,
            decay,
            weights: StatePart::default(),
            mean: StatePart::default(),
            under_way: ByPlace::default(),
        }
    }

    /// Keeps its state in this file, before there is any.
    pub(super) fn keep_in(mut self, file: Option<&Arc<OffloadFile>>) -> Self {
        self.weights.keep_in(file);
        self.mean.keep_in(file);
        self
    }

    /// Bytes of the state of a parameter with so many elements, beside that of the optimizer.
    pub(super) fn state_bytes(elements: u64) -> u64 {
        8 * elements
    }
}

impl Optimizer for Averaged {
    fn base_lr(&self) -> f64 {
        self.optimizer.base_lr()
    }

    fn prepare(&mut self, parameter: &Parameter, step: u64) -> Result<()> {
        let var = parameter.var();
        match self.weights.has(parameter) {
            true => var.set(&self.weights.whole(parameter)?.to_dtype(var.dtype())?)?,
            // A copy of its own: it is changed in place.
            false => self.weights.put(parameter, var.as_tensor().to_dtype(dtype_of(parameter))?.copy()?)?,
        }
        self.under_way.insert(parameter, step);
        self.optimizer.prepare(parameter, step)
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        if self.under_way.take(parameter) != Some(step) {
            return Err(Error::Training(
                "the weights are not those that are averaged: a recipe calls `prepare_all` before each step".to_owned(),
            ));
        }
        self.optimizer.update(parameter, gradient, lr, scale, step)?;
        let new = if self.mean.has(parameter) { 1.0 - self.decay } else { 1.0 };
        let state = [self.weights.get(parameter)?, self.mean.get(parameter)?];
        let (key, first) = rounding(parameter, step);
        // Bits of its own: those of the key itself are for the step.
        Ok(update(parameter.var(), state, gradient, (Dropout::mix(key, 2), first), &Rule { new })?)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = self.optimizer.state_pieces()?;
        self.weights.pieces(WEIGHTS, &mut pieces);
        self.mean.pieces(MEAN, &mut pieces);
        Ok(pieces)
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        let is_ours = |key: &str| key.rsplit('.').next().is_some_and(|part| part == WEIGHTS || part == MEAN);
        let (ours, others) = state.into_iter().partition(|(key, _)| is_ours(key));
        StatePart::load(ours, &mut [(WEIGHTS, &mut self.weights), (MEAN, &mut self.mean)], parameters)?;
        match parameters.iter().find(|parameter| self.weights.has(parameter) != self.mean.has(parameter)) {
            Some(parameter) => Err(Error::setup(format!(
                "the saved mean of `{}` is not whole; resume with the optimizer that the run was started with",
                parameter.name()
            ))),
            None => self.optimizer.set_state(others, parameters),
        }
    }
}

/// Keeps the weights, and moves the mean towards them.
#[derive(Clone, Copy)]
struct Rule {
    /// The share of the weights in the new mean.
    new: f64,
}

impl UpdateRule<2> for Rule {
    #[inline(always)]
    fn step<R: Real>(&self, weight: R, [kept, mean]: &mut [R; 2], _: R) -> R {
        *kept = weight;
        *mean += (weight - *mean) * R::of(self.new);
        *mean
    }
}

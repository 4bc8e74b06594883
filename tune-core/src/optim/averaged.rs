//! An exponential mean of the weights, whatever moves them: what is evaluated and saved is the mean, and training goes on from the weights
//! themselves. As `torch.optim.swa_utils.get_ema_multi_avg_fn` has it: the mean begins with the weights after the first step.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::by_place::ByPlace;
use super::on_card::{place_on_card, update_by_keys};
use super::state::dtype_of;
use super::update::{UpdateRule, update};
use super::values::Real;
use super::{Gradient, Optimizer, StatePart, made, rounding, rounding_key};
use crate::engine::Rule as OnCards;
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

    /// Ends a step of a parameter, which was prepared for it.
    fn end(&mut self, parameter: &Parameter, step: u64) -> Result<()> {
        if self.under_way.take(parameter) == Some(step) {
            return Ok(());
        }
        Err(Error::Training(
            "the weights are not those that are averaged: a recipe calls `prepare_all` before each step".to_owned(),
        ))
    }

    /// The share of the weights in the new mean: the first one is these themselves.
    fn share(&self, parameter: &Parameter) -> f64 {
        if self.mean.has(parameter) { 1.0 - self.decay } else { 1.0 }
    }

    /// Bytes of the state of a parameter with this many elements, beside that of the optimizer.
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
        match (parameter.card(), self.weights.has(parameter)) {
            (Some(card), false) if self.works_on_cards() => {
                self.weights.put_on_card(parameter, card.widened(var)?);
            }
            // A weight that was kept is moved by no rounding.
            (Some(_), true) if self.works_on_cards() => {
                place_on_card(parameter, (None, &mut self.weights), 1.0, rounding_key(parameter, step))?;
            }
            (card, true) => {
                var.set(&self.weights.whole(parameter)?.to_dtype(var.dtype())?)?;
                card.iter().for_each(|card| card.forget(var));
            }
            // A copy of its own: it is changed in place.
            (_, false) => self.weights.put(parameter, var.as_tensor().to_dtype(dtype_of(parameter))?.copy()?)?,
        }
        self.under_way.insert(parameter, step);
        self.optimizer.prepare(parameter, step)
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        if gradient.card().is_some() {
            return self.update_all(&[(parameter, gradient)], lr, scale, step);
        }
        self.end(parameter, step)?;
        self.optimizer.update(parameter, gradient, lr, scale, step)?;
        let new = self.share(parameter);
        let state = [self.weights.get(parameter)?, self.mean.get(parameter)?];
        let (key, first) = rounding(parameter, step);
        // Bits of its own: those of the key itself are for the step.
        Ok(update(parameter.var(), state, gradient, (Dropout::mix(key, 2), first), &Rule { new })?)
    }

    fn works_on_cards(&self) -> bool {
        self.optimizer.works_on_cards()
    }

    fn clips_on_cards(&self) -> bool {
        self.optimizer.clips_on_cards()
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        let (on_card, here): (Vec<(&Parameter, &Gradient)>, Vec<_>) =
            all.iter().partition(|(_, gradient)| gradient.card().is_some());
        here.iter().try_for_each(|(parameter, gradient)| self.update(parameter, gradient, lr, scale, step))?;
        on_card.iter().try_for_each(|(parameter, _)| self.end(parameter, step))?;
        self.optimizer.update_all(&on_card, lr, scale, step)?;
        let key = |parameter: &Parameter| Dropout::mix(rounding_key(parameter, step), 2);
        let (begun, first): (Vec<(&Parameter, &Gradient)>, Vec<_>) =
            on_card.iter().partition(|(parameter, _)| self.mean.has(parameter));
        for some in [begun, first] {
            let Some((parameter, _)) = some.first() else { continue };
            let rule = OnCards::Averaged(self.share(parameter));
            update_by_keys(&some, [&mut self.weights, &mut self.mean], rule, 1.0, &key)?;
        }
        Ok(())
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

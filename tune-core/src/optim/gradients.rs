//! Where gradients go: gathered for a step, or applied as they come.

use super::by_place::ByPlace;
use super::{Gradient, Optimizer};
use crate::Result;
use crate::models::{Decoder, Parameter};

/// Takes each trained parameter's gradient once per micro-batch.
pub trait GradientSink: Send {
    /// The gradient of the scaled loss with respect to `parameter`, in f32 or in its dtype.
    fn take(&mut self, parameter: &Parameter, gradient: Gradient) -> Result<()>;
}

/// The gradients of one optimizer step, summed over its micro-batches in f32, in the order of their parameters' places.
#[derive(Debug, Default)]
pub struct Gradients(ByPlace<Gradient>);

impl GradientSink for Gradients {
    fn take(&mut self, parameter: &Parameter, gradient: Gradient) -> Result<()> {
        match self.0.get_mut(parameter) {
            Some(sum) => sum.add(&gradient)?,
            None => self.0.insert(parameter, gradient.widened()?),
        }
        Ok(())
    }
}

impl Gradients {
    /// The gradient of the parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Gradient> {
        self.iter().find_map(|(of, gradient)| (of == name).then_some(gradient))
    }

    /// Names and gradients, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Gradient)> {
        self.0.iter().map(|(_, name, gradient)| (&**name, gradient))
    }

    /// The 2-norm over all of them.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for (_, gradient) in self.iter() {
            sum += gradient.squared_norm()?;
        }
        Ok(sum.sqrt())
    }

    /// Takes step `step` (from 1) with them, scaled by `scale`, and leaves none behind.
    pub fn apply(
        &mut self,
        model: &Decoder,
        optimizer: &mut dyn Optimizer,
        lr: f64,
        scale: f64,
        step: u64,
    ) -> Result<()> {
        for (place, gradient) in std::mem::take(&mut self.0).into_values() {
            if let Some(parameter) = model.trainable().at(place) {
                optimizer.update(parameter, &gradient, lr, scale, step)?;
            }
        }
        Ok(())
    }
}

/// The factor that brings a gradient of norm `norm` down to `max_norm`, as PyTorch computes it.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// The optimizer in the backward pass: each gradient is applied and freed as soon as it is complete,
/// so that no step ever holds them all. Leaves no room for accumulation or clipping.
pub struct InBackward<'a> {
    /// What takes the steps.
    pub optimizer: &'a mut dyn Optimizer,
    /// This step's learning rate.
    pub lr: f64,
    /// This step, from 1.
    pub step: u64,
    /// The sum of the gradients' squares, so far.
    pub squared_norm: f64,
}

impl GradientSink for InBackward<'_> {
    fn take(&mut self, parameter: &Parameter, gradient: Gradient) -> Result<()> {
        self.squared_norm += gradient.squared_norm()?;
        self.optimizer.update(parameter, &gradient, self.lr, 1.0, self.step)
    }
}

//! Learning rates that differ from parameter to parameter, whatever moves them.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Gradient, Optimizer};
use crate::Result;
use crate::models::{Parameter, Piece, Trainable};

/// What a parameter's learning rate is, as a multiple of the optimizer's.
pub trait Rates: Send {
    /// Takes note of a parameter that is trained.
    fn see(&mut self, _parameter: &Parameter) {}

    /// The multiple.
    ///
    /// # Errors
    /// It depends on which parameters are trained, and these have not been seen.
    fn of(&self, parameter: &Parameter) -> Result<f64>;
}

/// An optimizer that moves each parameter at a multiple of the learning rate.
pub struct Scaled<R> {
    optimizer: Box<dyn Optimizer>,
    rates: R,
}

impl<R: Rates> Scaled<R> {
    /// `optimizer` at these rates.
    #[must_use]
    pub fn new(optimizer: Box<dyn Optimizer>, rates: R) -> Self {
        Self { optimizer, rates }
    }
}

impl<R: Rates> Optimizer for Scaled<R> {
    fn base_lr(&self) -> f64 {
        self.optimizer.base_lr()
    }

    fn prepare(&mut self, parameter: &Parameter, step: u64) -> Result<()> {
        self.rates.see(parameter);
        self.optimizer.prepare(parameter, step)
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        let lr = lr * self.rates.of(parameter)?;
        self.optimizer.update(parameter, gradient, lr, scale, step)
    }

    fn works_on_cards(&self) -> bool {
        self.optimizer.works_on_cards()
    }

    fn clips_on_cards(&self) -> bool {
        self.optimizer.clips_on_cards()
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        // Those of one learning rate at once. Positive numbers are in the order of their bits.
        let mut by_rate: BTreeMap<u64, Vec<(&Parameter, &Gradient)>> = BTreeMap::new();
        for &(parameter, gradient) in all {
            by_rate.entry(self.rates.of(parameter)?.to_bits()).or_default().push((parameter, gradient));
        }
        for (rate, some) in by_rate {
            self.optimizer.update_all(&some, lr * f64::from_bits(rate), scale, step)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.optimizer.state()
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        self.optimizer.state_pieces()
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        self.optimizer.set_state(state, parameters)
    }
}

//! Two groups of parameters: matrices, and norms, biases and magnitudes, which have one dimension.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Gradient, Optimizer, made};
use crate::Result;
use crate::models::{Parameter, Piece, Trainable};

/// An optimizer for each group, with the learning rate of the first.
pub struct Groups {
    matrices: Box<dyn Optimizer>,
    vectors: Box<dyn Optimizer>,
}

impl Groups {
    /// What moves matrices, and what moves vectors.
    #[must_use]
    pub fn new(matrices: Box<dyn Optimizer>, vectors: Box<dyn Optimizer>) -> Self {
        Self { matrices, vectors }
    }
}

fn is_vector(parameter: &Parameter) -> bool {
    parameter.var().rank() < 2
}

impl Optimizer for Groups {
    fn base_lr(&self) -> f64 {
        self.matrices.base_lr()
    }

    fn prepare(&mut self, parameter: &Parameter, step: u64) -> Result<()> {
        let group = if is_vector(parameter) { &mut self.vectors } else { &mut self.matrices };
        group.prepare(parameter, step)
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        let group = if is_vector(parameter) { &mut self.vectors } else { &mut self.matrices };
        group.update(parameter, gradient, lr, scale, step)
    }

    fn works_on_cards(&self) -> bool {
        self.matrices.works_on_cards() && self.vectors.works_on_cards()
    }

    fn clips_on_cards(&self) -> bool {
        self.matrices.clips_on_cards() && self.vectors.clips_on_cards()
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        let (vectors, matrices): (Vec<_>, Vec<_>) = all.iter().partition(|(parameter, _)| is_vector(parameter));
        self.matrices.update_all(&matrices, lr, scale, step)?;
        self.vectors.update_all(&vectors, lr, scale, step)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = self.matrices.state_pieces()?;
        pieces.extend(self.vectors.state_pieces()?);
        Ok(pieces)
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        let is_of_vector = |key: &str| {
            let parameter = key.rsplit_once('.').and_then(|(name, _)| parameters.get(name));
            parameter.is_some_and(is_vector)
        };
        let (vectors, matrices) = state.into_iter().partition(|(key, _)| is_of_vector(key));
        self.matrices.set_state(matrices, parameters)?;
        self.vectors.set_state(vectors, parameters)
    }
}

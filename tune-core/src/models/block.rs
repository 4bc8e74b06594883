//! The parameters of one transformer block.

use candle_core::Tensor;

use super::linear::Linear;
use super::slots::{Half, PerSlot};

/// A block in Hugging Face's names.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its place in the model, from 0.
    pub index: usize,
    /// The norms of its halves, in the order of [`Half::ALL`].
    pub(crate) norms: [Tensor; 2],
    pub(crate) linears: PerSlot<Linear>,
}

impl Block {
    /// The weight of a half's norm.
    pub(crate) fn norm(&self, half: Half) -> &Tensor {
        &self.norms[half as usize]
    }

    /// Whether anything in it is trained.
    pub fn is_trained(&self) -> bool {
        self.norms.iter().any(Tensor::is_variable)
            || self.linears.iter().any(|l| l.adapter.is_some() || l.weight.is_variable())
    }
}

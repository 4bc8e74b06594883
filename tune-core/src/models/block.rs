//! The parameters of one transformer block.

use candle_core::Tensor;

use super::linear::Linear;
use super::slots::Layers;
use super::spec::BlockNorm;

/// A block in Hugging Face's names.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its place in the model, from 0.
    pub index: usize,
    pub(crate) norms: Vec<(BlockNorm, Tensor)>,
    pub(crate) linears: Layers<Linear>,
}

impl Block {
    /// Whether anything in it is trained.
    pub fn is_trained(&self) -> bool {
        self.norms.iter().any(|(_, weight)| weight.is_variable())
            || self.linears.iter().any(|(_, l)| l.adapter.is_some() || l.weight.is_variable())
    }
}

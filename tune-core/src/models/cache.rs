//! The keys and values of the tokens so far, for generation.

use candle_core::Tensor;

use crate::Result;

/// One entry a block: keys (already turned) and values, `[1, past, kv_heads * head_dim]` each.
#[derive(Debug, Default)]
pub struct KvCache {
    blocks: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    /// An empty cache for a model of `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self { blocks: vec![None; blocks] }
    }

    /// The number of tokens that are held.
    pub fn len(&self) -> usize {
        self.blocks.first().and_then(|b| b.as_ref()).map_or(0, |(k, _)| k.dims()[1])
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the newest tokens' keys and values to block `block` and returns all of them.
    pub(crate) fn append(&mut self, block: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let all = match &self.blocks[block] {
            Some((past_k, past_v)) => (Tensor::cat(&[past_k, k], 1)?, Tensor::cat(&[past_v, v], 1)?),
            None => (k.clone(), v.clone()),
        };
        self.blocks[block] = Some(all.clone());
        Ok(all)
    }
}

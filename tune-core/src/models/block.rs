//! One transformer block: attention, then a gated MLP, each on a normed copy and added back.

use candle_core::Tensor;

use super::cache::KvCache;
use super::decoder::Pass;
use super::linear::Linear;
use super::slots::{Half, PerSlot, Slot};
use crate::Result;
use crate::kernels::AttentionShape;
use crate::ops;

/// A block in Hugging Face's names; `x_bsh` is the residual stream, `[batch, seq, hidden]`.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its place in the model, from 0.
    pub index: usize,
    /// The norms of its halves, in the order of [`Half::ALL`].
    pub(crate) norms: [Tensor; 2],
    pub(crate) linears: PerSlot<Linear>,
    pub(crate) attention: AttentionShape,
    pub(crate) eps: f64,
}

impl Block {
    /// The residual stream after this block, for `x_bsh` `[batch, seq, hidden]`.
    pub fn forward(&self, x_bsh: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.run(x_bsh, pass, |q, k, v| Ok(ops::attention(q, k, v, self.attention, &pass.spans)?))
    }

    /// The same for the newest tokens of one sequence, whose past is in `cache`.
    pub(crate) fn forward_cached(&self, x_bsh: &Tensor, pass: &Pass, cache: &mut KvCache) -> Result<Tensor> {
        self.run(x_bsh, pass, |q, k, v| {
            let (k, v) = cache.append(self.index, k, v)?;
            Ok(ops::attention_with_cache(q, &k, &v, self.attention)?)
        })
    }

    fn run(
        &self,
        x_bsh: &Tensor,
        pass: &Pass,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let layer = |slot: Slot, x: &Tensor| self.linears[slot].forward(x, pass);
        let normed = ops::rms_norm(x_bsh, self.norm(Half::Attention), self.eps)?;
        let q = ops::rope(&layer(Slot::QProj, &normed)?, &pass.rotary)?;
        let k = ops::rope(&layer(Slot::KProj, &normed)?, &pass.rotary)?;
        let v = layer(Slot::VProj, &normed)?;
        let attended = layer(Slot::OProj, &attend(&q, &k, &v)?)?;
        let x_bsh = (x_bsh + attended)?;

        let normed = ops::rms_norm(&x_bsh, self.norm(Half::Mlp), self.eps)?;
        let gated = ops::swiglu(&layer(Slot::GateProj, &normed)?, &layer(Slot::UpProj, &normed)?)?;
        Ok((x_bsh + layer(Slot::DownProj, &gated)?)?)
    }

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

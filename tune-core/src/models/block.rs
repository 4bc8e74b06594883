//! One transformer block: attention, then a gated MLP, each on a normed copy and added back.

use candle_core::Tensor;

use super::cache::KvCache;
use super::decoder::Pass;
use super::linear::Linear;
use crate::Result;
use crate::kernels::AttentionShape;
use crate::ops;

/// A block in Hugging Face's names; `x_bsh` is the residual stream, `[batch, seq, hidden]`.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its place in the model, from 0.
    pub index: usize,
    pub(crate) input_layernorm: Tensor,
    pub(crate) post_attention_layernorm: Tensor,
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) o_proj: Linear,
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
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
        let normed = ops::rms_norm(x_bsh, &self.input_layernorm, self.eps)?;
        let q = ops::rope(&self.q_proj.forward(&normed, pass)?, &pass.rotary)?;
        let k = ops::rope(&self.k_proj.forward(&normed, pass)?, &pass.rotary)?;
        let v = self.v_proj.forward(&normed, pass)?;
        let attended = self.o_proj.forward(&attend(&q, &k, &v)?, pass)?;
        let x_bsh = (x_bsh + attended)?;

        let normed = ops::rms_norm(&x_bsh, &self.post_attention_layernorm, self.eps)?;
        let gated = ops::swiglu(&self.gate_proj.forward(&normed, pass)?, &self.up_proj.forward(&normed, pass)?)?;
        Ok((x_bsh + self.down_proj.forward(&gated, pass)?)?)
    }

    /// Its linear layers, in name order.
    pub(crate) fn linears(&self) -> [&Linear; 7] {
        [&self.down_proj, &self.gate_proj, &self.up_proj, &self.k_proj, &self.o_proj, &self.q_proj, &self.v_proj]
    }

    /// Whether anything in it is trained.
    pub fn is_trained(&self) -> bool {
        self.input_layernorm.is_variable()
            || self.post_attention_layernorm.is_variable()
            || self.linears().iter().any(|l| l.adapter.is_some() || l.weight.is_variable())
    }
}

//! One linear layer of a model, with or without an adapter.

use candle_core::Tensor;

use super::adapter::Adapter;
use crate::Result;
use crate::kernels::Dropout;

/// `y = x Wᵀ`, with a bias and an adapter's update if it has them.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The layer's Hugging Face name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[out, in]`; trained if it is a variable.
    pub weight: Tensor,
    /// `[out]`, where it has one; trained if it is a variable.
    pub bias: Option<Tensor>,
    /// Its adapter.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// The dropout on the adapter's input in a pass with this key.
    pub(crate) fn dropout(&self, key: Option<u64>) -> Option<Dropout> {
        let p = self.adapter.as_ref().map(|a| a.dropout).filter(|&p| p > 0.0)?;
        Some(Dropout::new(p, Dropout::mix_name(key?, &self.name)))
    }

    /// The weight with the adapter's update added: `W + scale · B A`, in f32, as the weight's dtype.
    pub fn merged(&self) -> Result<Tensor> {
        let Some(adapter) = &self.adapter else { return Ok(self.weight.detach()) };
        let f32 = |t: &Tensor| t.detach().to_dtype(candle_core::DType::F32);
        let update = (f32(&adapter.b)?.matmul(&f32(&adapter.a)?)? * adapter.scale)?;
        Ok((f32(&self.weight)? + update)?.to_dtype(self.weight.dtype())?)
    }
}

//! One linear layer of a model, with or without an adapter.

use candle_core::{DType, Tensor};

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
        merged(
            &self.weight,
            self.adapter.iter().map(|adapter| (adapter.a.as_tensor(), adapter.b.as_tensor(), adapter.scale)),
        )
    }
}

/// A weight with the updates of adapters added, each with its `A` `[rank, in]`, its `B` `[out, rank]` and what their product is
/// scaled by: `W + scale · B A + …`, in f32, as the weight's dtype.
pub(crate) fn merged<'a>(
    weight: &Tensor,
    updates: impl Iterator<Item = (&'a Tensor, &'a Tensor, f64)>,
) -> Result<Tensor> {
    let f32 = |t: &Tensor| t.detach().to_dtype(DType::F32);
    let mut sum = None;
    for (a, b, scale) in updates {
        let update = (f32(b)?.matmul(&f32(a)?)? * scale)?;
        let before = sum.map_or_else(|| f32(weight), Ok)?;
        sum = Some((before + update)?);
    }
    match sum {
        Some(sum) => Ok(sum.to_dtype(weight.dtype())?),
        None => Ok(weight.detach()),
    }
}

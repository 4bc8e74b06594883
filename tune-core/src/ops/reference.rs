//! Every operation as a plain composition of candle's differentiable ones: slow, easy to
//! check by eye, right on any device. The fused operations are tested against these.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{AttentionShape, LoraFactors, OutputHead, Rotary};
use crate::data::{IGNORE, Span};

/// See [`super::linear()`]. candle computes a frozen weight's gradient, too; it is dropped here.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let y = x.reshape(((), k))?.matmul(&weight.t()?)?;
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    y.reshape(shape)
}

/// See [`super::lora_linear`].
pub fn lora_linear(x: &Tensor, weight: &Tensor, lora: &LoraFactors) -> Result<Tensor> {
    let dropped = match &lora.dropout {
        Some(d) => {
            let factors: Vec<f64> = (0..x.elem_count()).map(|i| d.factor(i)).collect();
            (x * Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?)?
        }
        None => x.clone(),
    };
    let (a, b) = (lora.a.to_dtype(x.dtype())?, lora.b.to_dtype(x.dtype())?);
    let update = linear(&linear(&dropped, &a)?, &b)?;
    linear(x, weight)? + (update * lora.scale)?
}

/// See [`super::rms_norm()`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

/// See [`super::rope()`].
pub fn rope(x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    let half = rotary.head_dim / 2;
    let table = |values: &[f32]| Tensor::from_slice(values, (batch, seq, 1, half), x.device())?.to_dtype(x.dtype());
    let (cos, sin) = (table(&rotary.cos)?, table(&rotary.sin)?);
    let x = x.reshape((batch, seq, width / rotary.head_dim, rotary.head_dim))?;
    let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 3)?.reshape((batch, seq, width))
}

/// See [`super::swiglu()`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// See [`super::embedding()`].
pub fn embedding(ids: &[u32], rows: usize, weight: &Tensor) -> Result<Tensor> {
    let ids_tensor = Tensor::from_slice(ids, ids.len(), weight.device())?;
    weight.index_select(&ids_tensor, 0)?.reshape((rows, ids.len() / rows.max(1), weight.dim(1)?))
}

/// See [`super::attention()`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape, spans: &[Span]) -> Result<Tensor> {
    let (batch, seq, _) = q.dims3()?;
    let mut visible = vec![0f32; batch * seq * seq];
    for s in spans {
        for i in 0..s.len {
            for j in (0..s.len).filter(|&j| shape.sees(i, j)) {
                visible[(s.row * seq + s.start + i) * seq + s.start + j] = 1.0;
            }
        }
    }
    masked_attention(q, k, v, shape, &Tensor::from_vec(visible, (batch, 1, seq, seq), q.device())?)
}

/// See [`super::attention_with_cache()`].
pub fn attention_with_cache(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    let (new, total) = (q.dim(1)?, k.dim(1)?);
    let visible: Vec<f32> =
        (total - new..total).flat_map(|i| (0..total).map(move |j| f32::from(u8::from(shape.sees(i, j))))).collect();
    masked_attention(q, k, v, shape, &Tensor::from_vec(visible, (1, 1, new, total), q.device())?)
}

/// Attention where `visible` `[batch, 1, queries, keys]` is 1; rows without a single 1 give zero.
fn masked_attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape, visible: &Tensor) -> Result<Tensor> {
    let (batch, seq, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let group = shape.heads / shape.kv_heads;
    let q = q.reshape((batch, seq, shape.heads, shape.head_dim))?.transpose(1, 2)?.contiguous()?;
    let expand = |x: &Tensor| -> Result<Tensor> {
        x.reshape((batch, keys, shape.kv_heads, shape.head_dim))?
            .transpose(1, 2)?
            .unsqueeze(2)?
            .broadcast_as((batch, shape.kv_heads, group, keys, shape.head_dim))?
            .contiguous()?
            .reshape((batch, shape.heads, keys, shape.head_dim))
    };
    let (k, v) = (expand(k)?, expand(v)?);
    let visible = visible.to_dtype(q.dtype())?;
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * shape.scale)?;
    let scores = scores.broadcast_add(&((&visible - 1.0)? * 1e9)?)?;
    let max = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&max)?.exp()?.broadcast_mul(&visible)?;
    let sum = (weights.sum_keepdim(D::Minus1)? + 1e-30)?;
    let out = weights.broadcast_div(&sum)?.matmul(&v)?;
    out.transpose(1, 2)?.contiguous()?.reshape((batch, seq, width))
}

/// The summed cross-entropy over trained tokens; see [`super::cross_entropy()`].
pub fn cross_entropy(hidden: &Tensor, head: &OutputHead, targets: &[u32]) -> Result<Tensor> {
    let width = hidden.dim(D::Minus1)?;
    let trained: Vec<u32> = (0..targets.len() as u32).filter(|&i| targets[i as usize] != IGNORE).collect();
    let wanted: Vec<u32> = targets.iter().copied().filter(|&t| t != IGNORE).collect();
    if trained.is_empty() {
        return Tensor::zeros((), DType::F32, hidden.device());
    }
    let logits = match &head.lora {
        Some(l) => lora_linear(hidden, &head.weight, l)?,
        None => linear(hidden, &head.weight)?,
    };
    let n = trained.len();
    let logits =
        logits.reshape((targets.len(), head.weight.dim(0)?))?.index_select(&ids(&trained, hidden.device())?, 0)?;
    debug_assert_eq!(hidden.elem_count(), targets.len() * width);
    let logits = if logits.dtype() == DType::F64 { logits } else { logits.to_dtype(DType::F32)? };
    let max = logits.max_keepdim(1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
    let right = shifted.gather(&ids(&wanted, hidden.device())?.reshape((n, 1))?, 1)?;
    (log_sum - right)?.sum_all()
}

fn ids(values: &[u32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), device)
}

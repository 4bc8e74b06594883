//! A training step by candle's own operations and its graph.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use tune_core::data::Batch;

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD: usize = 64;

/// Four blocks of SmolLM2-135M's sizes, from plain tensors.
pub(crate) struct Plain {
    embedding: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
}

struct Layer {
    norms: [Tensor; 2],
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    gate: Projection,
    up: Projection,
    down: Projection,
}

struct Projection {
    weight: Tensor,
    /// `A` and `B`, in f32.
    lora: Option<[Tensor; 2]>,
}

impl Projection {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = linear(x, &self.weight)?;
        let Some([a, b]) = &self.lora else { return Ok(y) };
        let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
        y + (linear(&linear(x, &a)?, &b)? * 2.0)?
    }
}

impl Plain {
    /// Random weights; adapters on all layers, or all weights trained.
    pub(crate) fn new(vocab: usize, dtype: DType, lora: bool) -> Result<Self> {
        let variable = |dims: &[usize], dtype: DType| -> Result<Tensor> {
            let values = Tensor::randn(0f32, 0.02, dims, &Device::Cpu)?.to_dtype(dtype)?;
            Ok(Var::from_tensor(&values)?.into_inner())
        };
        let weight = |dims: &[usize]| {
            let weight = variable(dims, dtype)?;
            Ok::<_, candle_core::Error>(if lora { weight.detach() } else { weight })
        };
        let projection = |out: usize, inner: usize| {
            let (a, b) = (variable(&[8, inner], DType::F32)?, variable(&[out, 8], DType::F32)?);
            Ok::<_, candle_core::Error>(Projection { weight: weight(&[out, inner])?, lora: lora.then_some([a, b]) })
        };
        let layer = || {
            Ok::<_, candle_core::Error>(Layer {
                norms: [weight(&[576])?, weight(&[576])?],
                q: projection(576, 576)?,
                k: projection(192, 576)?,
                v: projection(192, 576)?,
                o: projection(576, 576)?,
                gate: projection(1536, 576)?,
                up: projection(1536, 576)?,
                down: projection(576, 1536)?,
            })
        };
        let layers = (0..4).map(|_| layer()).collect::<Result<_>>()?;
        Ok(Self { embedding: weight(&[vocab, 576])?, norm: weight(&[576])?, layers })
    }

    /// The summed loss of a batch whose rows are one sample each.
    pub(crate) fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let frequency = |i: usize| 10000f32.powf(-(i as f32) / (HEAD / 2) as f32);
        let angles = batch.positions.iter().flat_map(|&p| (0..HEAD / 2).map(move |i| p as f32 * frequency(i)));
        let angles = Tensor::from_iter(angles, &Device::Cpu)?.reshape((batch.rows, batch.len, 1, HEAD / 2))?;
        let dtype = self.embedding.dtype();
        let (cos, sin) = (angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?);
        let ids = Tensor::from_slice(&batch.input_ids, batch.input_ids.len(), &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?.reshape((batch.rows, batch.len, ()))?;
        for layer in &self.layers {
            let normed = rms_norm(&x, &layer.norms[0])?;
            let q = rope(&layer.q.forward(&normed)?, (&cos, &sin))?;
            let k = rope(&layer.k.forward(&normed)?, (&cos, &sin))?;
            let attended = attention(&q, &k, &layer.v.forward(&normed)?)?;
            x = (x + layer.o.forward(&attended)?)?;
            let normed = rms_norm(&x, &layer.norms[1])?;
            let activated = (layer.gate.forward(&normed)?.silu()? * layer.up.forward(&normed)?)?;
            x = (x + layer.down.forward(&activated)?)?;
        }
        cross_entropy(&linear(&rms_norm(&x, &self.norm)?, &self.embedding)?, &batch.targets)
    }
}

/// `x Wᵀ`. candle computes a frozen weight's gradient, too; it is dropped here.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (n, k) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let y = x.reshape(((), k))?.matmul(&weight.t()?)?;
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    y.reshape(shape)
}

fn rms_norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

/// Turns every head of `x` `[batch, seq, heads * HEAD]`, for cosines and sines `[batch, seq, 1, HEAD / 2]`.
fn rope(x: &Tensor, (cos, sin): (&Tensor, &Tensor)) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    let x = x.reshape((batch, seq, width / HEAD, HEAD))?;
    let (a, b) = (x.narrow(3, 0, HEAD / 2)?, x.narrow(3, HEAD / 2, HEAD / 2)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], 3)?.reshape((batch, seq, width))
}

/// Causal attention within rows.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (batch, seq, width) = q.dims3()?;
    let q = q.reshape((batch, seq, HEADS, HEAD))?.transpose(1, 2)?.contiguous()?;
    let expand = |x: &Tensor| -> Result<Tensor> {
        x.reshape((batch, seq, KV_HEADS, HEAD))?
            .transpose(1, 2)?
            .unsqueeze(2)?
            .broadcast_as((batch, KV_HEADS, HEADS / KV_HEADS, seq, HEAD))?
            .contiguous()?
            .reshape((batch, HEADS, seq, HEAD))
    };
    let (k, v) = (expand(k)?, expand(v)?);
    let visible = Tensor::tril2(seq, q.dtype(), q.device())?.reshape((1, 1, seq, seq))?;
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * (HEAD as f64).powf(-0.5))?;
    let scores = scores.broadcast_add(&((&visible - 1.0)? * 1e9)?)?;
    let max = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&max)?.exp()?.broadcast_mul(&visible)?;
    let out = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.matmul(&v)?;
    out.transpose(1, 2)?.contiguous()?.reshape((batch, seq, width))
}

/// The summed cross-entropy, every position being trained.
fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let logits = logits.reshape((targets.len(), ()))?.to_dtype(DType::F32)?;
    let max = logits.max_keepdim(1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
    let right = shifted.gather(&Tensor::from_slice(targets, (targets.len(), 1), logits.device())?, 1)?;
    (log_sum - right)?.sum_all()
}

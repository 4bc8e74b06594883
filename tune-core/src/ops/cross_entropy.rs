//! The output layer and the loss in one: logits exist for a chunk of trained tokens at a time.

use candle_core::{Error, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::linear::{RowDropout, lora_backward, lora_forward};
use super::matmul::{Strided, Threads, gemm, matmul_nn, matmul_nt};
use super::real::{self, Real, Values, dispatch, tensor};
use super::{LoraFactors, reference};
use crate::data::IGNORE;
use crate::kernels::check_targets;

/// Logits held at once, at most (64 MiB in f32).
const LOGITS: usize = 1 << 24;

/// The layer that makes logits of hidden states.
#[derive(Debug, Clone)]
pub struct OutputHead {
    /// `[vocab, hidden]`; trained if it is a variable.
    pub weight: Tensor,
    /// An adapter on the frozen weight.
    pub lora: Option<LoraFactors>,
}

/// The loss of a batch, and its gradients if they were asked for.
#[derive(Debug)]
pub struct HeadLoss {
    /// The sum of the cross-entropy over trained tokens, not scaled.
    pub sum: f64,
    /// The gradients of `scale · sum`.
    pub gradients: Option<HeadGradients>,
}

/// Gradients of the scaled loss.
#[derive(Debug)]
pub struct HeadGradients {
    /// `[batch, seq, hidden]`, zero where nothing is trained.
    pub hidden: Tensor,
    /// `[vocab, hidden]`, if the weight is trained.
    pub weight: Option<Tensor>,
    /// Of the adapter's `a` and `b`, if there is one.
    pub lora: Option<(Tensor, Tensor)>,
}

/// Cross-entropy of `hidden` `[batch, seq, hidden]` against `targets` (`[batch * seq]`, [`IGNORE`]
/// where untrained), with the gradients of `scale` times the sum made in the same pass if `scale` is given.
///
/// # Errors
/// A target outside the vocabulary.
pub fn cross_entropy(hidden: &Tensor, head: &OutputHead, targets: &[u32], scale: Option<f64>) -> Result<HeadLoss> {
    let (batch, seq, width) = hidden.dims3()?;
    let (vocab, inner) = head.weight.dims2()?;
    if inner != width || targets.len() != batch * seq {
        bail!(
            "cross_entropy: hidden {:?}, weight {:?}, {} targets",
            hidden.shape(),
            head.weight.shape(),
            targets.len()
        );
    }
    check_targets(targets, vocab).map_err(Error::wrap)?;
    if !hidden.device().is_cpu() {
        return composed(hidden, head, targets, scale);
    }
    dispatch!(hidden.dtype(), chunked::<_>(hidden, head, targets, scale))
}

fn chunked<R: Real>(hidden: &Tensor, head: &OutputHead, targets: &[u32], scale: Option<f64>) -> Result<HeadLoss> {
    let (vocab, width) = head.weight.dims2()?;
    let (hs, w) = (Values::<R>::of(hidden)?, Values::<R>::of(&head.weight)?);
    let factors = match &head.lora {
        Some(l) => Some((l, Values::<R>::of(&l.a)?, Values::<R>::of(&l.b)?)),
        None => None,
    };
    let trained: Vec<usize> = (0..targets.len()).filter(|&i| targets[i] != IGNORE).collect();
    let zeros = |t: &Tensor, wanted: bool| vec![R::zero(); if wanted { t.elem_count() } else { 0 }];
    let train_weight = scale.is_some() && head.weight.is_variable();
    let mut gw = zeros(&head.weight, train_weight);
    let mut gh = zeros(hidden, scale.is_some());
    let (mut ga, mut gb) = match &head.lora {
        Some(l) => (zeros(&l.a, scale.is_some()), zeros(&l.b, scale.is_some())),
        None => (Vec::new(), Vec::new()),
    };

    let mut sum = 0.0;
    for rows in trained.chunks((LOGITS / vocab).clamp(16, 1024)) {
        let size = (rows.len(), width, vocab);
        let x: Vec<R> = rows.iter().flat_map(|&i| hs[i * width..(i + 1) * width].iter().copied()).collect();
        let dropout = |l: &LoraFactors| l.dropout.map(|dropout| RowDropout { dropout, rows: Some(rows) });
        let mut logits = match &factors {
            Some((l, a, b)) => lora_forward(&x, &w, a, b, size, R::of(l.scale), dropout(l)),
            None => matmul_nt(&x, &w, size),
        };
        let losses: Vec<R> = logits
            .par_chunks_mut(vocab)
            .zip(rows)
            .map(|(logits, &i)| loss_and_gradient(logits, targets[i] as usize, scale.map(R::of)))
            .collect();
        sum += losses.iter().map(|l| l.as_f64()).sum::<f64>();
        if scale.is_none() {
            continue;
        }
        let gx = match &factors {
            Some((l, a, b)) => {
                let g = lora_backward(&x, &w, a, b, &logits, size, R::of(l.scale), dropout(l), true);
                ga.iter_mut().zip(&g.a).for_each(|(s, &g)| *s += g);
                gb.iter_mut().zip(&g.b).for_each(|(s, &g)| *s += g);
                g.x.unwrap_or_default()
            }
            None => matmul_nn(&logits, &w, (rows.len(), vocab, width)),
        };
        for (&i, g) in rows.iter().zip(gx.chunks(width)) {
            gh[i * width..(i + 1) * width].copy_from_slice(g);
        }
        if train_weight {
            let g = Strided::rows(&logits, vocab).t();
            gemm(
                (vocab, rows.len(), width),
                R::one(),
                g,
                Strided::rows(&x, width),
                R::one(),
                &mut gw,
                width,
                Threads::All,
            );
        }
    }

    let gradients = scale.is_some().then(|| HeadGradients {
        hidden: tensor(gh, hidden.shape(), hidden.dtype()),
        weight: train_weight.then(|| tensor(gw, head.weight.shape(), head.weight.dtype())),
        lora: head.lora.as_ref().map(|l| (tensor(ga, l.a.shape(), l.a.dtype()), tensor(gb, l.b.shape(), l.b.dtype()))),
    });
    Ok(HeadLoss { sum, gradients })
}

/// The loss of one token; with a `scale`, its logits become the gradient of `scale` times the loss.
fn loss_and_gradient<R: Real>(logits: &mut [R], target: usize, scale: Option<R>) -> R {
    let max = real::max(logits);
    let right = logits[target];
    let sum = real::exp_and_sum(logits, max);
    if let Some(scale) = scale {
        let factor = scale / sum;
        logits.iter_mut().for_each(|l| *l *= factor);
        logits[target] -= scale;
    }
    sum.ln() + max - right
}

/// The same through candle's own operations, for devices without the chunked one.
fn composed(hidden: &Tensor, head: &OutputHead, targets: &[u32], scale: Option<f64>) -> Result<HeadLoss> {
    let input = Var::from_tensor(hidden)?;
    let loss = reference::cross_entropy(&input, head, targets)?;
    let sum = loss.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
    let Some(scale) = scale else { return Ok(HeadLoss { sum, gradients: None }) };
    let mut grads = (loss * scale)?.backward()?;
    let mut take = |t: &Tensor| grads.remove(t).map_or_else(|| t.zeros_like(), Ok);
    let gradients = HeadGradients {
        hidden: take(&input)?,
        weight: if head.weight.is_variable() { Some(take(&head.weight)?) } else { None },
        lora: match &head.lora {
            Some(l) => Some((take(&l.a)?, take(&l.b)?)),
            None => None,
        },
    };
    Ok(HeadLoss { sum, gradients: Some(gradients) })
}

//! The last norm, the output layer and the loss: logits exist for a chunk of trained tokens at a time.

use rayon::prelude::*;

use super::linear::{Layer, input_gradient};
use super::weights::Weight;
use super::{NamedGradients, Run};
use crate::Result;
use crate::data::IGNORE;
use crate::kernels::buffers::Buffer;
use crate::kernels::gemm::Finish;
use crate::kernels::view::{View, ViewMut};
use crate::kernels::{Element, check_targets, rms_norm, softmax};

/// Logits held at once, at most (56 MiB in f32).
const LOGITS: usize = 14 << 20;

/// Of so many trained tokens, those whose logits exist at a time: about as many each time, for the weights
/// are read anew.
pub(super) fn rows_at_once(trained: usize, vocab: usize) -> usize {
    let most = (LOGITS / vocab).clamp(16, 1024);
    trained.div_ceil(trained.div_ceil(most).max(1)).next_multiple_of(8).min(most).max(1)
}

/// What comes out at the top.
pub(super) struct Top<T: Element> {
    /// The loss summed over trained tokens, not scaled.
    pub(super) loss: f64,
    /// The gradient of the last block's output, `[m, hidden]`, if it was asked for.
    pub(super) of_blocks: Option<Buffer<T>>,
    /// The gradient of a tied embedding table in its role as output layer.
    pub(super) tied: Option<Buffer<f32>>,
    /// The gradients of what is trained here.
    pub(super) found: NamedGradients,
}

impl Run<'_> {
    /// The loss of the residual stream `x` `[m, hidden]`, and with a `scale` the gradients of `scale` times it.
    pub(super) fn top<T: Element>(&self, x: &[T], scale: Option<f64>, below: bool) -> Result<Top<T>> {
        let config = &self.model.config;
        let (width, vocab, eps) = (config.hidden_size, config.vocab_size, config.rms_norm_eps as f32);
        let targets = &self.batch.targets;
        check_targets(targets, vocab)?;
        let (norm_weight, lm_head) = self.model.top();
        let (norm, head) = (Weight::<T>::new(norm_weight)?, Layer::<T>::new(self, lm_head)?);
        let trained: Vec<usize> = (0..targets.len()).filter(|&i| targets[i] != IGNORE).collect();
        let backward = scale.is_some();
        let norm_trained = backward && norm_weight.is_variable();

        let mut weight_gradient = (backward && lm_head.weight.is_variable()).then(|| match trained.is_empty() {
            true => Buffer::zeros(vocab * width),
            false => Buffer::new(vocab * width),
        });
        let mut adapter_gradients: Option<(Buffer<f32>, Buffer<f32>)> = None;
        let mut norm_gradient = norm_trained.then(|| Buffer::<f32>::zeros(width));
        let mut of_blocks = (below && backward).then(|| Buffer::<T>::zeros(x.len()));
        let mut loss = 0.0;
        for (i, rows) in trained.chunks(rows_at_once(trained.len(), vocab)).enumerate() {
            let mut input = Buffer::<T>::new(rows.len() * width);
            for (dst, &row) in input.chunks_exact_mut(width).zip(rows) {
                dst.copy_from_slice(&x[row * width..][..width]);
            }
            let mut normed = Buffer::new(input.len());
            rms_norm::forward(View::new(&input, width), &norm, eps, ViewMut::new(&mut normed, width));
            let low_rank = head.low_rank(&normed, Some(rows));
            let mut logits = Buffer::<f32>::new(rows.len() * vocab);
            head.forward(&normed, &low_rank, &mut logits, Finish::Store);
            let losses: Vec<f32> = logits
                .par_chunks_exact_mut(vocab)
                .zip(rows)
                .map(|(row, &i)| softmax::loss_and_gradient::<T>(row, targets[i] as usize, scale.map(|s| s as f32)))
                .collect();
            loss += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
            if !backward || !loss.is_finite() {
                continue;
            }
            // The gradient in the type of the activations lies where the logits were, at the beginning of each row.
            let gradient = View::strided(
                bytemuck::cast_slice::<f32, T>(&logits),
                (rows.len(), vocab),
                vocab * size_of::<f32>() / size_of::<T>(),
            );
            let back = head.back(gradient);
            if let Some(sum) = &mut weight_gradient {
                let finish = if i == 0 { Finish::Store } else { Finish::Add };
                head.weight_gradient(&normed, gradient, sum, finish);
            }
            if let Some((a, b)) = head.adapter_gradients(&back, &normed, &low_rank, Some(rows)) {
                match &mut adapter_gradients {
                    None => adapter_gradients = Some((a, b)),
                    Some(sum) => {
                        sum.0.iter_mut().zip(&*a).for_each(|(s, g)| *s += g);
                        sum.1.iter_mut().zip(&*b).for_each(|(s, g)| *s += g);
                    }
                }
            }
            if of_blocks.is_none() && norm_gradient.is_none() {
                continue;
            }
            let mut g_normed = normed;
            input_gradient(&[&back], Some(rows), &mut g_normed);
            let mut g_input = Buffer::zeros(input.len());
            let (x, g, sum) =
                (View::new(&input, width), View::new(&g_normed, width), ViewMut::new(&mut g_input, width));
            let own = rms_norm::backward(x, &norm, eps, g, sum, norm_trained);
            if let (Some(sum), Some(own)) = (&mut norm_gradient, own) {
                sum.iter_mut().zip(&*own).for_each(|(s, g)| *s += g);
            }
            if let Some(of_blocks) = &mut of_blocks {
                for (src, &row) in g_input.chunks_exact(width).zip(rows) {
                    of_blocks[row * width..][..width].copy_from_slice(src);
                }
            }
        }
        let mut top = Top { loss, of_blocks, tied: None, found: NamedGradients::new() };
        if !loss.is_finite() {
            return Ok(top);
        }
        if let Some(gradient) = weight_gradient {
            match config.tie_word_embeddings {
                true => top.tied = Some(gradient),
                false => top.found.push(("lm_head.weight".to_string(), gradient)),
            }
        }
        if let (Some(adapter), true) = (&lm_head.adapter, backward) {
            let zeros = || (Buffer::zeros(adapter.a.elem_count()), Buffer::zeros(adapter.b.elem_count()));
            let (a, b) = adapter_gradients.unwrap_or_else(zeros);
            top.found.push(("lm_head.lora_A.weight".to_string(), a));
            top.found.push(("lm_head.lora_B.weight".to_string(), b));
        }
        if let Some(gradient) = norm_gradient {
            top.found.push(("model.norm.weight".to_string(), gradient));
        }
        Ok(top)
    }
}

//! The engine of the processor: plain buffers, no graph.
//!
//! What a block saves for its backward pass is written down in [`block::Saved`]; what is cheap to
//! make again (norms, the gate's activation) is made again. In names, `m` is the number of tokens.

mod block;
mod footprint;
mod linear;
mod peak;
mod top;
mod weights;

use super::{Gradient, GradientSink, RunOptions, lost, lowest_trained};
use crate::Result;
use crate::data::Batch;
use crate::kernels::buffers::Buffer;
use crate::kernels::{Element, check_token_ids};
use crate::models::{Decoder, Pass};
pub(crate) use footprint::StepOnPaper;
pub(super) use peak::matmul_peak;
use weights::Weight;

/// One run of a model over a batch without padding.
struct Run<'a> {
    model: &'a Decoder,
    batch: &'a Batch,
    pass: Pass,
}

/// See [`super::forward_backward`].
pub(super) fn forward_backward<T: Element>(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<f64> {
    let run = Run { model, batch, pass: model.pass(batch, options.dropout) };
    let lowest = lowest_trained(model);
    let mut x = run.embed::<T>()?;
    let mut saved = Vec::with_capacity(model.blocks.len() - lowest);
    for block in &model.blocks {
        let (y, inner) = run.block(block)?.forward(&x, block.index >= lowest && !options.activation_checkpointing);
        let input = std::mem::replace(&mut x, y);
        if block.index >= lowest {
            saved.push((input, inner));
        }
    }

    let below = lowest < model.blocks.len();
    let top = run.top(&x, Some(options.scale), below)?;
    drop(x);
    if !top.loss.is_finite() {
        return Ok(top.loss);
    }
    run.emit(top.found, sink)?;
    let Some(mut gradient) = top.of_blocks else { return Ok(top.loss) };
    while let Some((input, inner)) = saved.pop() {
        let block = &model.blocks[lowest + saved.len()];
        let wants_input = block.index > lowest || model.trains_embedding();
        let found = run.block(block)?.backward(&input, inner, &mut gradient, wants_input);
        run.emit(found, sink)?;
    }
    if model.trains_embedding() {
        run.emit(vec![run.embedding_backward(&gradient, top.tied)], sink)?;
    }
    Ok(top.loss)
}

/// See [`super::evaluate`].
pub(super) fn evaluate<T: Element>(model: &Decoder, batch: &Batch) -> Result<f64> {
    let run = Run { model, batch, pass: model.pass(batch, None) };
    let mut x = run.embed::<T>()?;
    for block in &model.blocks {
        x = run.block(block)?.forward(&x, false).0;
    }
    Ok(run.top(&x, None, false)?.loss)
}

/// Gradients of trained parameters, by their names in [`Decoder::trainable`]. They are handed over when nothing borrows
/// the weights any more: who takes them may change the weights at once.
type NamedGradients = Vec<(String, Buffer<f32>)>;

impl Run<'_> {
    fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }

    /// The residual stream below the first block, `[m, hidden]`.
    fn embed<T: Element>(&self) -> Result<Buffer<T>> {
        let (width, vocab) = (self.model.config.hidden_size, self.model.config.vocab_size);
        check_token_ids(&self.batch.input_ids, vocab)?;
        let table = Weight::<T>::new(self.model.embedding())?;
        let mut x = Buffer::new(self.tokens() * width);
        for (row, &id) in x.chunks_exact_mut(width).zip(&self.batch.input_ids) {
            row.copy_from_slice(&table[id as usize * width..][..width]);
        }
        Ok(x)
    }

    /// The embedding table's gradient: each token's, and, for a tied table, the output layer's.
    fn embedding_backward<T: Element>(&self, gradient: &[T], tied: Option<Buffer<f32>>) -> (String, Buffer<f32>) {
        let width = self.model.config.hidden_size;
        let mut table = tied.unwrap_or_else(|| Buffer::zeros(self.model.config.vocab_size * width));
        for (row, &id) in gradient.chunks_exact(width).zip(&self.batch.input_ids) {
            let entry = &mut table[id as usize * width..][..width];
            entry.iter_mut().zip(row).for_each(|(e, g)| *e += g.to_f32());
        }
        ("model.embed_tokens.weight".to_string(), table)
    }

    /// Hands gradients over.
    fn emit(&self, found: NamedGradients, sink: &mut dyn GradientSink) -> Result<()> {
        for (name, gradient) in found {
            let var = self.model.trainable().get(&name).ok_or_else(|| lost(&name))?;
            sink.take(&name, var, Gradient::pooled(gradient, var.shape())?)?;
        }
        Ok(())
    }
}

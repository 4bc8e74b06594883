//! A batch through a model, block by block, forward and back.

use super::backend::Backend;
use super::block::Block;
use super::parameters::{ParamId, Parameters};
use crate::Result;
use crate::data::Batch;
use crate::kernels::{Rotary, check_token_ids};
use crate::models::DecoderConfig;

/// Takes each trained parameter's gradient once a micro-batch, when nothing borrows the parameter any more: it may be
/// changed at once.
pub(crate) trait Sink<B: Backend> {
    /// The gradient of the weighted loss.
    fn take(&mut self, id: ParamId, gradient: B::Sums) -> Result<()>;
}

/// Gradients on their way to a [`Sink`].
pub(super) type Found<B> = Vec<(ParamId, <B as Backend>::Sums)>;

/// One run of a model over a batch without padding.
pub(crate) struct Run<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) shape: &'a DecoderConfig,
    pub(super) parameters: &'a dyn Parameters<B>,
    pub(super) batch: &'a Batch,
    /// The angles of its positions.
    pub(super) rotary: Rotary,
}

impl<'a, B: Backend> Run<'a, B> {
    pub(super) fn new(
        backend: &'a B,
        shape: &'a DecoderConfig,
        parameters: &'a dyn Parameters<B>,
        batch: &'a Batch,
    ) -> Self {
        let rotary = Rotary::new(&batch.positions, &shape.inverse_frequencies());
        Self { backend, shape, parameters, batch, rotary }
    }

    /// Forward and back. Gradients are those of the sum of losses, each times its token's weight; `checkpointing` keeps
    /// only each block's input and runs the block again. Returns the sum of losses without weights.
    pub(super) fn forward_backward(
        &self,
        weights: &Weights<'_>,
        checkpointing: bool,
        sink: &mut dyn Sink<B>,
    ) -> Result<f64> {
        let blocks = self.shape.num_hidden_layers;
        let trains_embedding = self.parameters.trains_embedding();
        let lowest = if trains_embedding { 0 } else { self.parameters.lowest_trained_block() };
        let mut x = self.embed()?;
        let mut saved = Vec::with_capacity(blocks - lowest);
        for index in 0..blocks {
            let next = Some(index + 1).filter(|&next| next < blocks);
            let (y, inner) = self.block(index, next)?.forward(&x, index >= lowest && !checkpointing);
            let input = std::mem::replace(&mut x, y);
            if index >= lowest {
                saved.push((input, inner));
            }
        }

        let top = self.top(&x, Some(weights), lowest < blocks)?;
        drop(x);
        if !top.loss.is_finite() {
            return Ok(top.loss);
        }
        emit(top.found, sink)?;
        let Some(mut gradient) = top.of_blocks else { return Ok(top.loss) };
        while let Some((input, inner)) = saved.pop() {
            let index = lowest + saved.len();
            let wants_input = index > lowest || trains_embedding;
            let next = index.checked_sub(1).filter(|&next| next >= lowest);
            let found = self.block(index, next)?.backward(&input, inner, &mut gradient, wants_input);
            emit(found, sink)?;
        }
        if trains_embedding {
            let mut table = top.tied.unwrap_or_else(|| {
                let mut table = self.backend.gradient(self.shape.vocab_size, self.shape.hidden_size);
                self.backend.clear(&mut table);
                table
            });
            self.backend.lookup_back(&gradient, self.shape.hidden_size, &self.batch.input_ids, &mut table);
            sink.take(ParamId::Embedding, table)?;
        }
        Ok(top.loss)
    }

    /// The sum of losses.
    pub(super) fn evaluate(&self) -> Result<f64> {
        let x = self.through_blocks()?;
        Ok(self.top(&x, None, false)?.loss)
    }

    /// The residual stream above the last block, `[m, hidden]`.
    pub(super) fn through_blocks(&self) -> Result<B::Acts> {
        let blocks = self.shape.num_hidden_layers;
        let mut x = self.embed()?;
        for index in 0..blocks {
            let next = Some(index + 1).filter(|&next| next < blocks);
            x = self.block(index, next)?.forward(&x, false).0;
        }
        Ok(x)
    }

    pub(super) fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }

    /// Memory for `width` activations of each token.
    pub(super) fn acts(&self, width: usize) -> B::Acts {
        self.backend.acts(self.tokens(), width)
    }

    /// The residual stream below the first block, `[m, hidden]`.
    fn embed(&self) -> Result<B::Acts> {
        check_token_ids(&self.batch.input_ids, self.shape.vocab_size)?;
        let table = self.parameters.embedding(self.backend)?;
        let mut x = self.acts(self.shape.hidden_size);
        self.backend.lookup(&table, self.shape.hidden_size, &self.batch.input_ids, &mut x);
        Ok(x)
    }

    fn block(&self, index: usize, next: Option<usize>) -> Result<Block<'_, B>> {
        Ok(Block { run: self, index, params: self.parameters.open(self.backend, index, next)? })
    }
}

fn emit<B: Backend>(found: Found<B>, sink: &mut dyn Sink<B>) -> Result<()> {
    found.into_iter().try_for_each(|(id, gradient)| sink.take(id, gradient))
}

/// What each trained token's loss counts, in the sum that is minimized.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// All the same: one over the trained tokens of the whole step, mostly.
    All(f64),
    /// One number for each position of the batch, `[rows, len]`; those of positions that are not trained are not read.
    Each(&'a [f64]),
}

impl Weights<'_> {
    /// Those of some positions.
    pub(super) fn of(&self, rows: &[usize]) -> Vec<f64> {
        match self {
            Self::All(weight) => vec![*weight; rows.len()],
            Self::Each(weights) => rows.iter().map(|&row| weights[row]).collect(),
        }
    }
}

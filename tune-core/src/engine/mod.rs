//! The model run block by block, forward and back.
//!
//! A block's backward pass needs its input and what the block saved on the way;
//! with activation checkpointing only the input is kept and the block is run
//! again. Gradients leave the engine one parameter at a time, as soon as they
//! are complete, so whoever takes them may apply and free them at once.
//!
//! On the processor, in fp32 and bf16, `cpu` runs each half of a block as a whole, without a graph.
//! Everywhere else `composed` runs the operations of [`crate::ops`] one by one, through candle's.
//! Both are tested against each other.

mod composed;
mod cpu;

use candle_core::DType;
pub(crate) use cpu::StepOnPaper;

use crate::data::Batch;
use crate::models::Decoder;
pub use crate::optim::{Gradient, GradientSink};
use crate::{Error, Result};

/// How one micro-batch is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Factor on the summed loss: one over the trained tokens of the whole step.
    pub scale: f64,
    /// Keep only each block's input and run the block again in the backward pass.
    pub activation_checkpointing: bool,
    /// The key of this micro-batch's dropout, see [`crate::models::Pass::dropout`].
    pub dropout: Option<u64>,
}

/// Runs a micro-batch forward and back. Returns the loss summed over its trained tokens, not scaled.
///
/// Nothing is propagated below the lowest parameter that is trained, and nothing at all
/// if the loss is not finite.
///
/// # Errors
/// A token outside the vocabulary, or a trained parameter that got no gradient (a bug).
pub fn forward_backward(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<f64> {
    let batch = batch.without_padding();
    match (model.device().is_cpu(), model.dtype()) {
        (true, DType::F32) => on_a_worker(|| cpu::forward_backward::<f32>(model, &batch, options, sink)),
        (true, DType::BF16) => on_a_worker(|| cpu::forward_backward::<half::bf16>(model, &batch, options, sink)),
        _ => composed::forward_backward(model, &batch, options, sink),
    }
}

/// The loss summed over a batch's trained tokens, without gradients or dropout.
///
/// # Errors
/// A token outside the vocabulary.
pub fn evaluate(model: &Decoder, batch: &Batch) -> Result<f64> {
    let batch = batch.without_padding();
    match (model.device().is_cpu(), model.dtype()) {
        (true, DType::F32) => on_a_worker(|| cpu::evaluate::<f32>(model, &batch)),
        (true, DType::BF16) => on_a_worker(|| cpu::evaluate::<half::bf16>(model, &batch)),
        _ => composed::evaluate(model, &batch),
    }
}

/// The speed of the processor's matrix product in GFLOP/s, for fp32 or bf16: the median of products
/// 2048 x 2048 x 2048 by the kernels that training uses. What the speed of a run is measured against.
pub fn matmul_peak(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => on_a_worker(cpu::matmul_peak::<half::bf16>),
        _ => on_a_worker(cpu::matmul_peak::<f32>),
    }
}

/// Runs `f` on a thread of the pool. On any other, each of a step's thousands of parallel loops would
/// put the thread to sleep and wake it again.
fn on_a_worker<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// The lowest block in which anything is to be propagated, or the number of blocks.
fn lowest_trained(model: &Decoder) -> usize {
    if model.trains_embedding() {
        return 0;
    }
    model.blocks.iter().position(|b| b.is_trained()).unwrap_or(model.blocks.len())
}

fn lost(what: &str) -> Error {
    Error::Training(format!("{what} got no gradient; this is a bug of the program, please report it"))
}

//! The model run block by block, forward and back.
//!
//! A block's backward pass needs its input and what the block saved on the way;
//! with activation checkpointing only the input is kept and the block is run
//! again. Gradients leave the engine one parameter at a time, as soon as they
//! are complete, so whoever takes them may apply and free them at once.
//!
//! What a model computes is written once ([`run`], [`block`], [`linear`], [`top`]), over a [`backend`].

mod backend;
mod block;
mod composed;
mod cpu;
mod linear;
mod paper;
mod parameters;
mod run;
mod top;

use candle_core::DType;
use half::bf16;
pub use paper::Work;
pub(crate) use paper::{Paper, StepOnPaper};
use parameters::{Held, ParamId};
pub use run::Weights;

use crate::data::Batch;
use crate::kernels::Element;
use crate::kernels::buffers::Buffer;
use crate::models::Decoder;
pub use crate::optim::{Gradient, GradientSink};
use crate::{Error, Result};
use cpu::Cpu;
use run::{Run, Sink};

/// How one micro-batch is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Factor on the summed loss: one over the trained tokens of the whole step.
    pub scale: f64,
    /// Keep only each block's input and run the block again in the backward pass.
    pub activation_checkpointing: bool,
    /// The key of this micro-batch's dropout (from seed, step and micro-batch); no dropout if `None`.
    pub dropout: Option<u64>,
}

/// Runs a micro-batch forward and back. Returns the loss summed over its trained tokens, not scaled.
///
/// Nothing is propagated below the lowest parameter that is trained, and nothing at all
/// if the loss is not finite.
///
/// # Errors
/// A token outside the vocabulary, a model on a device or in a type that is not trained in, or a trained parameter that got
/// no gradient (a bug).
pub fn forward_backward(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<f64> {
    let batch = batch.without_padding();
    match (model.device().is_cpu(), model.dtype()) {
        (true, DType::BF16) => on_a_worker(|| forward_backward_on_cpu::<bf16>(model, &batch, options, sink)),
        (true, DType::F32) => on_a_worker(|| forward_backward_on_cpu::<f32>(model, &batch, options, sink)),
        _ => composed::forward_backward(model, &batch, options, sink),
    }
}

fn forward_backward_on_cpu<T: Element>(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<f64> {
    let (backend, held) = (Cpu::<T>::new(), Held { model, dropout: options.dropout });
    let run = Run::new(&backend, &model.config, &held, batch);
    let weights = Weights::All(options.scale);
    run.forward_backward(&weights, options.activation_checkpointing, &mut Pooled { model, sink })
}

/// The loss summed over a batch's trained tokens, without gradients or dropout.
///
/// # Errors
/// As [`forward_backward`].
pub fn evaluate(model: &Decoder, batch: &Batch) -> Result<f64> {
    let batch = batch.without_padding();
    match (model.device().is_cpu(), model.dtype()) {
        (true, DType::BF16) => on_a_worker(|| evaluate_on_cpu::<bf16>(model, &batch)),
        (true, DType::F32) => on_a_worker(|| evaluate_on_cpu::<f32>(model, &batch)),
        _ => composed::evaluate(model, &batch),
    }
}

fn evaluate_on_cpu<T: Element>(model: &Decoder, batch: &Batch) -> Result<f64> {
    Run::new(&Cpu::<T>::new(), &model.config, &Held { model, dropout: None }, batch).evaluate()
}

/// The speed of the processor's matrix product in GFLOP/s, for fp32 or bf16: the median of products
/// 2048 x 2048 x 2048 by the kernels that training uses. What the speed of a run is measured against.
pub fn matmul_peak(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => on_a_worker(cpu::matmul_peak::<bf16>),
        _ => on_a_worker(cpu::matmul_peak::<f32>),
    }
}

/// Hands gradients over by the names and variables of their model.
struct Pooled<'a> {
    model: &'a Decoder,
    sink: &'a mut dyn GradientSink,
}

impl<T: Element> Sink<Cpu<'_, T>> for Pooled<'_> {
    fn take(&mut self, id: ParamId, gradient: Buffer<f32>) -> Result<()> {
        let name = id.name();
        let var = self.model.trainable().get(&name).ok_or_else(|| lost(&name))?;
        self.sink.take(&name, var, Gradient::pooled(gradient, var.shape())?)
    }
}

/// Runs `f` on a thread of the pool. On any other, each of a step's thousands of parallel loops would
/// put the thread to sleep and wake it again.
fn on_a_worker<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

fn lost(what: &str) -> Error {
    Error::Training(format!("{what} got no gradient; this is a bug of the program, please report it"))
}

/// The lowest block in which anything is to be propagated, or the number of blocks.
fn lowest_trained(model: &Decoder) -> usize {
    if model.trains_embedding() {
        return 0;
    }
    model.blocks.iter().position(|b| b.is_trained()).unwrap_or(model.blocks.len())
}

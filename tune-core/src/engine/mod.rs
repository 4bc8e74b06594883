//! The model run block by block, forward and back.
//!
//! A block's backward pass needs its input and what the block saved on the way;
//! with activation checkpointing only the input is kept and the block is run
//! again. Gradients leave the engine one parameter at a time, as soon as they
//! are complete, so whoever takes them may apply and free them at once.
//!
//! What a model computes is written once (`run`, `block`, `linear`, `top`), over a `backend`.

mod attention;
mod backend;
mod block;
mod cpu;
mod cuda;
mod experts;
mod few;
mod inputs;
mod kept;
mod linear;
mod mlp;
mod new_tokens;
mod paper;
mod parameters;
mod reference;
mod run;
mod sequences;
mod sharded;
mod to_model;
mod tokens;
mod top;

use std::sync::Arc;

use backend::Reads;
use candle_core::{DType, Device, Tensor};
use cpu::Cpu;
pub use cuda::Card;
use cuda::Cuda;
pub(crate) use cuda::{BlocksOnCard, Factor, Move, Move8bit, OnCard, Rule, Squares, Step8bit};
use half::bf16;
pub use inputs::{Inputs, observe};
use kept::Keeper;
pub use new_tokens::{Behind, Drawn, New, Wanted};
pub use paper::{Loss, Work};
pub(crate) use paper::{Paper, State, StepOnPaper};
use parameters::{Held, Parameters};
use reference::Reference;
pub use run::Objective;
use run::{By, Minimized, Passed, Run, Sink, Taught};
pub use sequences::{Kernels, Sequences};

pub use crate::kernels::{Draw, SamplerOptions};
use sharded::Sharded;
use to_model::ToModel;

use crate::data::Batch;
use crate::kernels::{Isa, Mixture, TokenLoss, TopTokens, softmax};
use crate::models::Decoder;
pub use crate::optim::{Gradient, GradientSink};
use crate::{Error, Later, Result};

/// How one micro-batch is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Factor on what is minimized: one over the trained tokens of the whole step, mostly.
    pub scale: f64,
    /// Keep only each block's input and run the block again in the backward pass.
    pub activation_checkpointing: bool,
    /// The key of this micro-batch's dropout (from seed, step and micro-batch); no dropout if `None`.
    pub dropout: Option<u64>,
    /// Noise on the embeddings of tokens; none if `None`.
    pub noise: Option<EmbeddingNoise>,
    /// What [`forward_backward`] minimizes of each trained token. The others have losses of their own, on cross-entropy alone.
    pub loss: TokenLoss,
    /// What logits are divided by before softmax, above 0: where answers were drawn at a temperature, log-probabilities are those at it.
    /// Without effect on [`distill`], whose [`Mixture`] has one of its own.
    pub temperature: f64,
}

impl RunOptions {
    /// The sum of cross-entropy, and nothing else.
    pub const PLAIN: Self = Self {
        scale: 1.0,
        activation_checkpointing: false,
        dropout: None,
        noise: None,
        loss: TokenLoss::CROSS_ENTROPY,
        temperature: 1.0,
    };
}

/// Noise on the embeddings of tokens, so that a model learns from few examples without repeating them word by word (NEFTune, Jain et
/// al. 2023, <https://arxiv.org/abs/2310.05914>).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingNoise {
    /// How much: uniform noise, no larger than `alpha / sqrt(len * hidden)` in a sample of `len` tokens.
    pub alpha: f64,
    /// The key of this micro-batch's noise, which may be that of its dropout.
    pub key: u64,
}

/// Calls a generic function with the backend for a model, on a thread of the pool.
macro_rules! on_backend {
    ($model:expr, $call:ident($($arg:expr),*)) => {
        match Precision::of($model)? {
            Precision::F32 => on_a_worker(|| $call(&Cpu::<f32>::new(), $model $(, $arg)*)),
            Precision::Bf16 => on_a_worker(|| $call(&Cpu::<bf16>::new(), $model $(, $arg)*)),
            Precision::F64 => on_a_worker(|| $call(&Reference, $model $(, $arg)*)),
            Precision::F32On(card) => on_a_worker(|| on_card(&card, |card| $call(&Cuda::<f32>::new(card), $model $(, $arg)*))),
            Precision::Bf16On(card) => on_a_worker(|| on_card(&card, |card| $call(&Cuda::<bf16>::new(card), $model $(, $arg)*))),
        }
    };
}

// It uses the macro.
mod distill;
pub use distill::{Distilled, distill, distill_by, top_tokens};

/// Runs a micro-batch forward and back. Returns the loss summed over its trained tokens, not scaled.
///
/// Nothing is propagated below the lowest parameter that is trained, and nothing at all
/// if the loss is not finite.
///
/// # Errors
/// A token outside the vocabulary, a model on a device or in a type that is not trained in, or a trained parameter that got no
/// gradient (a bug).
pub fn forward_backward(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<f64> {
    let batch = batch.without_padding();
    Ok(on_backend!(model, train(&batch, Minimized::Sum(options.scale, options.loss), None, options, sink))?.value)
}

/// [`forward_backward`] that does not wait for a card: the loss is read when it is asked for, and what is not finite is propagated. On the
/// processor it is the same.
///
/// # Errors
/// As [`forward_backward`].
pub fn queue_forward_backward(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<Later> {
    if model.card().is_none() || !model.mesh().is_single() {
        return forward_backward(model, batch, options, sink).map(Later::from);
    }
    let batch = batch.without_padding();
    let passed =
        on_backend!(model, train(&batch, Minimized::SumLater(options.scale, options.loss), None, options, sink))?;
    Ok(passed.unread.unwrap_or_default())
}

/// Runs a micro-batch forward and back to minimize something else than the sum of its tokens' losses.
///
/// `objective` is given the log-probability of each position's target, `[rows * len]`, 0 where none is trained, and says what
/// is minimized and its derivative with respect to each of them. Returns what it said, not scaled. The output layer's forward
/// pass is computed twice, and logits are never held at a time.
///
/// Cross-entropy in which a token counts as much as its weight says:
///
/// ```
/// # use tune_core::engine::{self, Objective, RunOptions};
/// # use tune_core::prelude::*;
/// # use tune_core::optim::GradientSink;
/// fn weighted(
///     model: &Decoder,
///     batch: &Batch,
///     weights: &[f64],
///     options: RunOptions,
///     sink: &mut dyn GradientSink,
/// ) -> Result<f64> {
///     engine::minimize(model, batch, options, sink, |log_probs| {
///         Ok(Objective {
///             value: -log_probs.iter().zip(weights).map(|(l, w)| l * w).sum::<f64>(),
///             gradient: weights.iter().map(|w| -w).collect(),
///         })
///     })
/// }
/// ```
///
/// # Errors
/// As [`forward_backward`], those of `objective`, and a gradient of another length than the log-probabilities.
pub fn minimize(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
    mut objective: impl FnMut(&[f64]) -> Result<Objective> + Send,
) -> Result<f64> {
    minimize_by(model, batch, options, sink, &mut objective)
}

/// What is compiled here, and not once more for each objective: the whole engine.
fn minimize_by(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
    objective: &mut (dyn FnMut(&[f64]) -> Result<Objective> + Send),
) -> Result<f64> {
    let (positions, places) = (batch.targets.len(), batch.places().collect::<Vec<_>>());
    let mut of_places = |log_probs: &[f64]| {
        let mut all = vec![0.0; positions];
        places.iter().zip(log_probs).for_each(|(&place, &l)| all[place] = l);
        let Objective { value, gradient } = objective(&all)?;
        if gradient.len() != positions {
            return Err(Error::Training(format!(
                "the objective's gradient has {} numbers, but the batch has {positions} positions",
                gradient.len()
            )));
        }
        Ok(Objective { value, gradient: places.iter().map(|&place| gradient[place]).collect() })
    };
    let batch = batch.without_padding();
    Ok(on_backend!(model, train(&batch, Minimized::Of(&mut of_places, options.scale), None, options, sink))?.value)
}

/// Runs a micro-batch forward and back to minimize a function of scores, for a model whose output layer gives these
/// ([`ModelSpec::with_scores`](crate::models::ModelSpec::with_scores)).
///
/// Positions that have a target are scored, whatever it is below the number of scores.
/// [`Sample::scored`](crate::data::Sample::scored) gives one to a sequence's last token alone, where transformers' models for
/// sequence classification take the score; of a value model each token of an answer has one
/// ([`Experience::states`](crate::methods::Experience::states)). `objective` is given `[positions, scores]`, in the order of
/// [`Batch::spans`] and their positions, and says what is minimized and its derivative with respect to each score. Returns what it
/// said, not scaled. Of the output layer there is no forward pass but that of the scored positions, twice.
///
/// # Errors
/// As [`forward_backward`], those of `objective`, and a gradient of another length than the scores.
pub fn minimize_scores(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
    mut objective: impl FnMut(&[f64]) -> Result<Objective> + Send,
) -> Result<f64> {
    minimize_scores_by(model, batch, options, sink, &mut objective)
}

/// What is compiled here, and not once more for each objective: the whole engine.
fn minimize_scores_by(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
    objective: &mut (dyn FnMut(&[f64]) -> Result<Objective> + Send),
) -> Result<f64> {
    let mut checked = |scores: &[f64]| {
        let said = objective(scores)?;
        match said.gradient.len() == scores.len() {
            true => Ok(said),
            false => Err(Error::Training(format!(
                "the objective's gradient has {} numbers, but the batch has {} scores",
                said.gradient.len(),
                scores.len()
            ))),
        }
    };
    let batch = batch.without_padding();
    Ok(on_backend!(model, train(&batch, Minimized::Scores(&mut checked, options.scale), None, options, sink))?.value)
}

/// The scores of a batch's positions that have a target, as [`minimize_scores`] has them, without dropout: `[positions, scores]`.
///
/// # Errors
/// As [`forward_backward`].
pub fn scores(model: &Decoder, batch: &Batch) -> Result<Vec<f64>> {
    fn kept<'m, B: Reads<'m>>(backend: &B, model: &'m Decoder, batch: &Batch) -> Result<Vec<f64>> {
        Run::new(backend, &model.config, &*parameters(model, None, false), batch).scores()
    }
    on_backend!(model, kept(&batch.without_padding()))
}

/// Whom a model learns from.
#[derive(Clone, Copy)]
enum Teacher<'m> {
    Model(&'m Decoder),
    /// What it said of the batch's trained positions.
    Said(&'m TopTokens),
}

fn train<'m, B: Reads<'m>>(
    backend: &B,
    model: &'m Decoder,
    batch: &Batch,
    minimized: Minimized<'_>,
    teacher: Option<(Teacher<'m>, Mixture)>,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<Passed>
where
    for<'a> ToModel<'a>: Sink<B>,
{
    let of_model = match teacher {
        Some((Teacher::Model(teacher), _)) => Some((teacher, parameters(teacher, None, false))),
        _ => None,
    };
    let asked = of_model.as_ref().map(|(model, parameters)| Run::new(backend, &model.config, &**parameters, batch));
    let taught = match (&asked, teacher) {
        (Some(asked), Some((_, mixture))) => Some(Taught::new(asked, mixture)?),
        (None, Some((Teacher::Said(said), mixture))) => Some(Taught { by: By::Said(said), mixture }),
        _ => None,
    };
    let parameters = parameters(model, options.dropout, true);
    let run = Run {
        taught,
        noise: options.noise,
        temperature: options.temperature,
        keeper: model.inputs_file().map_or(Keeper::Memory, Keeper::File),
        ..Run::new(backend, &model.config, &*parameters, batch)
    };
    let mut sink = ToModel::new(model, sink);
    sink.begin(backend);
    let passed = run.forward_backward(minimized, options.activation_checkpointing, &mut sink)?;
    sink.end(backend)?;
    Ok(passed)
}

/// Where the parameters of a model are, with the key of a pass's dropout; `goes_back` says whether there is a backward pass.
fn parameters<'m, B: Reads<'m>>(
    model: &'m Decoder,
    dropout: Option<u64>,
    goes_back: bool,
) -> Box<dyn Parameters<B> + 'm> {
    match model.mesh().divides() {
        false => Box::new(Held { model, dropout }),
        true => Box::new(Sharded::new(model, dropout, goes_back && model.mesh().keeps_gathered())),
    }
}

/// Has what computes a model read all of its parameters: on a card they are then there before anything else is, and a card that
/// is too small says so at once.
///
/// # Errors
/// A tensor of a type that it does not read, and a card that is too small.
pub(crate) fn read_parameters(model: &Decoder) -> Result<()> {
    fn all<'m, B: Reads<'m>>(backend: &B, model: &'m Decoder) -> Result<()> {
        if model.mesh().divides() {
            return Sharded::keep(model, backend).and_then(|()| backend.check());
        }
        let held = Held { model, dropout: None };
        Parameters::<B>::embedding(&held, backend)?;
        (0..model.blocks.len()).try_for_each(|block| Parameters::<B>::open(&held, backend, block, None).map(drop))?;
        Parameters::<B>::top(&held, backend)?;
        backend.check()
    }
    on_backend!(model, all())
}

/// The loss summed over a batch's trained tokens, without gradients or dropout.
///
/// # Errors
/// As [`forward_backward`].
pub fn evaluate(model: &Decoder, batch: &Batch) -> Result<f64> {
    fn sum<'m, B: Reads<'m>>(backend: &B, model: &'m Decoder, batch: &Batch) -> Result<f64> {
        Run::new(backend, &model.config, &*parameters(model, None, false), batch).evaluate()
    }
    on_backend!(model, sum(&batch.without_padding()))
}

/// The log-probability of each position's target, `[rows * len]`, 0 where none is trained; without dropout.
///
/// # Errors
/// As [`forward_backward`].
pub fn log_probs(model: &Decoder, batch: &Batch) -> Result<Vec<f64>> {
    log_probs_at(model, batch, 1.0)
}

/// The same where logits are divided by a `temperature` above 0.
///
/// # Errors
/// As [`log_probs`].
pub fn log_probs_at(model: &Decoder, batch: &Batch, temperature: f64) -> Result<Vec<f64>> {
    fn kept<'m, B: Reads<'m>>(backend: &B, model: &'m Decoder, batch: &Batch, temperature: f64) -> Result<Vec<f64>> {
        let parameters = parameters(model, None, false);
        Run { temperature, ..Run::new(backend, &model.config, &*parameters, batch) }.log_probs()
    }
    let mut all = vec![0.0; batch.targets.len()];
    let of_places = on_backend!(model, kept(&batch.without_padding(), temperature))?;
    batch.places().zip(of_places).for_each(|(place, l)| all[place] = l);
    Ok(all)
}

/// The log-probability of `token` by these logits `[vocab]`, as [`log_probs`] has it, to the last bit, for logits of
/// [`Sequences`].
///
/// # Panics
/// If there is no such token.
pub fn log_prob(logits: &[f32], token: u32) -> f64 {
    log_prob_at(logits, token, 1.0)
}

/// The same where logits are divided by a `temperature` above 0, as [`log_probs_at`] has it.
///
/// # Panics
/// If there is no such token.
pub fn log_prob_at(logits: &[f32], token: u32, temperature: f64) -> f64 {
    let mut logits = logits.to_vec();
    if temperature != 1.0 {
        softmax::multiply(&mut logits, (1.0 / temperature) as f32);
    }
    -f64::from(softmax::loss_and_gradient::<f32>(&mut logits, token as usize, TokenLoss::CROSS_ENTROPY, None))
}

/// The logits of every position, `[rows, len, outputs]`, f32, zeros for padding; outputs are those of the vocabulary, or scores. All of
/// them at a time, which training never holds.
///
/// # Errors
/// As [`forward_backward`].
pub fn logits(model: &Decoder, batch: &Batch) -> Result<Tensor> {
    fn kept<'m, B: Reads<'m>>(backend: &B, model: &'m Decoder, batch: &Batch) -> Result<Vec<f32>> {
        let parameters = parameters(model, None, false);
        let run = Run::new(backend, &model.config, &*parameters, batch);
        let x = run.through_blocks()?;
        let rows: Vec<usize> = (0..run.tokens()).collect();
        Ok(backend.numbers(&run.logits(&x, &rows)?))
    }
    let vocab = model.config.outputs();
    let of_places = on_backend!(model, kept(&batch.without_padding()))?;
    let mut all = vec![0f32; batch.rows * batch.len * vocab];
    for (place, logits) in batch.places().zip(of_places.chunks_exact(vocab)) {
        all[place * vocab..][..vocab].copy_from_slice(logits);
    }
    Ok(Tensor::from_vec(all, (batch.rows, batch.len, vocab), &Device::Cpu)?)
}

/// What instructions this process computes with on the processor, as `TUNE_ISA` names them.
#[must_use]
pub fn kernels() -> String {
    Isa::get().to_string()
}

/// The speed of the processor's matrix product in GFLOP/s, for fp32 or bf16: the median of products
/// 2048 x 2048 x 2048 by the kernels that training uses. What the speed of a run is measured against.
pub fn matmul_peak(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => on_a_worker(cpu::matmul_peak::<bf16>),
        _ => on_a_worker(cpu::matmul_peak::<f32>),
    }
}

/// What a model is computed in.
enum Precision {
    F32,
    Bf16,
    /// Plainly, for comparison.
    F64,
    F32On(Arc<Card>),
    Bf16On(Arc<Card>),
}

impl Precision {
    fn of(model: &Decoder) -> Result<Self> {
        match (model.card(), model.dtype()) {
            (Some(card), DType::F32) => return Ok(Self::F32On(Arc::clone(card))),
            (Some(card), DType::BF16) => return Ok(Self::Bf16On(Arc::clone(card))),
            _ => {}
        }
        match (model.device().is_cpu(), model.dtype()) {
            (true, DType::F32) => Ok(Self::F32),
            (true, DType::BF16) => Ok(Self::Bf16),
            (true, DType::F64) => Ok(Self::F64),
            (true, dtype) => Err(Error::setup(format!("models are computed in f32 and bf16, not in {dtype:?}"))),
            (false, _) => Err(Error::setup("models are computed on the processor; choose device=cpu")),
        }
    }
}

/// Runs `f` on a thread of the pool. On any other, each of a step's thousands of parallel loops would
/// put the thread to sleep and wake it again.
fn on_a_worker<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// What `f` gives on a card; the card's own error, if that was the reason or has come to light since.
fn on_card<R>(card: &Arc<Card>, f: impl FnOnce(Arc<Card>) -> Result<R>) -> Result<R> {
    let result = f(Arc::clone(card));
    card.check()?;
    result
}

#[cfg(test)]
#[path = "distill_tests.rs"]
mod distill_tests;

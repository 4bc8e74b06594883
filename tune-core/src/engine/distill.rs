//! A student that learns from a teacher, or from what a teacher said.

use std::sync::Arc;

use half::bf16;

use super::backend::{self, Reads};
use super::top::rows_at_once;
use super::{
    Cpu, Cuda, Minimized, Passed, Precision, Reference, Run, RunOptions, Teacher, on_a_worker, on_card, parameters,
    train,
};
use crate::data::Batch;
use crate::kernels::{Mixture, TokenLoss, TopTokens, parallel};
use crate::models::Decoder;
use crate::optim::GradientSink;
use crate::{Error, Result};

/// A student's two losses of a batch, see [`distill`]. Where several processes train together, they are summed over the batches of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distilled {
    /// The cross-entropy with the targets, summed over trained tokens.
    pub cross_entropy: f64,
    /// The divergence from the teacher, summed over trained tokens.
    pub divergence: f64,
    /// The same two, in this order, of the batch of this process alone: the others may minimize another mixture.
    pub here: [f64; 2],
}

/// Runs a micro-batch forward and back to bring a student nearer to its teacher: what is minimized is a `mixture` of
/// cross-entropy with the targets and of divergence from the teacher, in trained tokens. Neither is scaled in what is returned.
/// Processes that train together call it at the same time, each with a `mixture` of its own.
///
/// Only the student gets gradients. Logits of both exist for a chunk of trained tokens at a time.
///
/// # Errors
/// As [`forward_backward`](super::forward_backward); a teacher with another vocabulary, in another precision or on another
/// device.
pub fn distill(
    student: &Decoder,
    teacher: &Decoder,
    batch: &Batch,
    mixture: Mixture,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<Distilled> {
    let (of_student, of_teacher) = (student.config.vocab_size, teacher.config.vocab_size);
    if of_student != of_teacher {
        return Err(Error::setup(format!(
            "the teacher has logits of {of_teacher} tokens and the student of {of_student}: they cannot be compared"
        )));
    }
    let same_card = match (student.card(), teacher.card()) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    };
    if student.dtype() != teacher.dtype() || !same_card {
        return Err(Error::setup("the teacher must be computed where the student is, and in the same precision"));
    }
    taught(student, Teacher::Model(teacher), batch, mixture, options, sink)
}

/// The same where the teacher is gone and `said` is what [`top_tokens`] found of the batch: the divergence is that over the
/// teacher's likeliest tokens and one outcome more, see [`TopTokens`]. No logits of the teacher's exist.
///
/// # Errors
/// As [`forward_backward`](super::forward_backward); positions that are not those of the batch, tokens outside the vocabulary, and as
/// [`Mixture::check_stored`].
pub fn distill_by(
    student: &Decoder,
    said: &TopTokens,
    batch: &Batch,
    mixture: Mixture,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<Distilled> {
    mixture.check_stored()?;
    let (positions, trained, vocab) = (said.positions(), batch.trained_tokens(), student.config.vocab_size);
    if positions != trained || [said.ids.len(), said.log_probs.len()] != [positions * said.k; 2] {
        return Err(Error::setup(format!(
            "the teacher said something of {positions} positions, and {trained} are trained in this batch"
        )));
    }
    if let Some(id) = said.ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::setup(format!("the teacher said something of token {id}, and the student has {vocab}")));
    }
    taught(student, Teacher::Said(said), batch, mixture, options, sink)
}

fn taught(
    student: &Decoder,
    teacher: Teacher<'_>,
    batch: &Batch,
    mixture: Mixture,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<Distilled> {
    let (batch, teacher) = (batch.without_padding(), Some((teacher, mixture)));
    let Passed { value, divergence, here, .. } = on_backend!(
        student,
        train(&batch, Minimized::Sum(options.scale, TokenLoss::CROSS_ENTROPY), teacher, options, sink)
    )?;
    Ok(Distilled { cross_entropy: value, divergence, here })
}

/// The `k` likeliest next tokens at each trained position of a batch, and what all others have together; without dropout. Of several
/// samples, the positions of each follow each other in the order of [`Batch::spans`]. Logits exist for a chunk of positions at a time.
///
/// # Errors
/// As [`forward_backward`](super::forward_backward).
pub fn top_tokens(model: &Decoder, batch: &Batch, k: usize) -> Result<TopTokens> {
    fn found<'m, B: Reads<'m>>(backend: &B, model: &'m Decoder, batch: &Batch, k: usize) -> Result<TopTokens> {
        let parameters = parameters(model, None, false);
        let run = Run::new(backend, &model.config, &*parameters, batch);
        let (x, trained, vocab) = (run.through_blocks()?, run.trained(), model.config.vocab_size);
        let mut top = TopTokens::new(k.min(vocab));
        for rows in trained.chunks(rows_at_once(trained.len(), backend::rows_at_once(vocab))) {
            let logits = backend.numbers(&run.logits(&x, rows)?);
            let logits = &logits[..rows.len() * vocab];
            let each = parallel::map_chunks(logits, vocab, |_, row| TopTokens::of_logits(row, k));
            each.iter().for_each(|row| top.extend(&row.rows(0..1)));
        }
        Ok(top)
    }
    on_backend!(model, found(&batch.without_padding(), k))
}

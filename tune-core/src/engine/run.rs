//! A batch through a model, block by block, forward and back.

use super::EmbeddingNoise;
use super::backend::Backend;
use super::block::{Block, Past};
use super::kept::Keeper;
use super::parameters::Parameters;
use super::tokens::Among;
use crate::data::{Batch, Span};
use crate::kernels::attention::Stretch;
use crate::kernels::{Mixture, Noise, Rotary, TokenLoss, TopTokens, check_token_ids};
use crate::models::{ModelSpec, ParamId};
use crate::{Later, Result};

/// Takes each trained parameter's gradient once a micro-batch, when nothing borrows the parameter any more: it may be
/// changed at once.
pub(crate) trait Sink<B: Backend> {
    /// The gradient of the weighted loss.
    fn take(&mut self, id: ParamId, gradient: B::Sums) -> Result<()>;

    /// Gives the backend what earlier micro-batches have begun.
    fn begin(&mut self, _: &B) {}

    /// Takes back what the backend did not use of it.
    fn end(&mut self, _: &B) -> Result<()> {
        Ok(())
    }
}

/// Gradients on their way to a [`Sink`].
pub(super) type Found<B> = Vec<(ParamId, <B as Backend>::Sums)>;

/// One run of a model over a batch without padding.
pub(crate) struct Run<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) shape: &'a ModelSpec,
    pub(super) parameters: &'a dyn Parameters<B>,
    pub(super) batch: &'a Batch,
    /// Its samples.
    pub(super) stretches: Vec<Stretch>,
    /// Where keys and values of its tokens go, if there is a [`Past`].
    pub(super) rows_in_past: Vec<usize>,
    /// The angles of its positions, by each of the model's tables.
    pub(super) rotary: Vec<Rotary>,
    /// Noise on the embeddings.
    pub(super) noise: Option<EmbeddingNoise>,
    /// Who keeps the inputs of blocks, where only these are kept.
    pub(super) keeper: Keeper<'a>,
    /// What logits are divided by before softmax; the probabilities of a model that is taught are its own all the same.
    pub(super) temperature: f64,
    /// What another model says of the same batch, which this one learns from.
    pub(super) taught: Option<Taught<'a, B>>,
}

/// What a pass has found.
pub(super) struct Passed {
    /// The sum of losses without weights, or what the objective says; of all processes that train together.
    pub(super) value: f64,
    /// The sum of divergences from a teacher, of the same; 0 where there is none.
    pub(super) divergence: f64,
    /// Both of this process's batch alone.
    pub(super) here: [f64; 2],
    /// The sum of losses, where nobody waited for it.
    pub(super) unread: Option<Later>,
}

/// What is learnt from a teacher.
pub(super) struct Taught<'a, B: Backend> {
    pub(super) by: By<'a, B>,
    /// What is minimized.
    pub(super) mixture: Mixture,
}

/// A teacher.
pub(super) enum By<'a, B: Backend> {
    /// One whose blocks are done, with its residual stream above the last block, `[m, its hidden]`.
    Model(&'a Run<'a, B>, B::Acts),
    /// What it said of each trained position.
    Said(&'a TopTokens),
}

impl<'a, B: Backend> Taught<'a, B> {
    /// The teacher's forward pass up to its logits, which exist for a chunk of trained tokens at a time, later.
    pub(super) fn new(teacher: &'a Run<'a, B>, mixture: Mixture) -> Result<Self> {
        Ok(Self { by: By::Model(teacher, teacher.through_blocks()?), mixture })
    }
}

impl<'a, B: Backend> Run<'a, B> {
    pub(super) fn new(
        backend: &'a B,
        shape: &'a ModelSpec,
        parameters: &'a dyn Parameters<B>,
        batch: &'a Batch,
    ) -> Self {
        let lens = lens(batch);
        let head_dim = shape.blocks.first().map_or(0, |block| block.attention.shape.head_dim);
        let rotary = shape.rotary.iter().map(|table| Rotary::new(table, head_dim, &batch.positions, &lens)).collect();
        Self {
            backend,
            shape,
            parameters,
            batch,
            stretches: stretches(batch),
            rows_in_past: Vec::new(),
            rotary,
            noise: None,
            keeper: Keeper::Memory,
            temperature: 1.0,
            taught: None,
        }
    }

    /// Forward and back; `checkpointing` keeps only each block's input and runs the block again.
    pub(super) fn forward_backward(
        &self,
        minimized: Minimized<'_>,
        checkpointing: bool,
        sink: &mut dyn Sink<B>,
    ) -> Result<Passed> {
        let blocks = self.shape.blocks.len();
        let trains_embedding = self.parameters.trains_embedding();
        let trains_tokens = self.parameters.trained_tokens().is_some();
        let reaches_embedding = trains_embedding || trains_tokens;
        let lowest = if reaches_embedding { 0 } else { self.parameters.lowest_trained_block() };
        let mut x = self.embed()?;
        let mut saved = Vec::with_capacity(blocks - lowest);
        for index in 0..blocks {
            let next = Some(index + 1).filter(|&next| next < blocks);
            let block = self.block(index, next)?;
            let (y, inner) = block.forward(&x, index >= lowest && !checkpointing);
            let input = std::mem::replace(&mut x, y);
            if index >= lowest {
                self.parameters.give_back(index, block.params);
                let keeper = if checkpointing { self.keeper } else { Keeper::Memory };
                saved.push((keeper.keep(self.backend, index - lowest, input)?, inner));
            }
        }

        let of = match minimized {
            Minimized::Sum(_, of) | Minimized::SumLater(_, of) => of,
            Minimized::Of(..) | Minimized::Scores(..) => TokenLoss::CROSS_ENTROPY,
        };
        let waits = !matches!(minimized, Minimized::SumLater(..));
        let (value, weights) = self.weigh(&x, minimized)?;
        let top = self.top(&x, (of, waits), Some(&weights), lowest < blocks)?;
        drop(x);
        let here = [value.unwrap_or(top.loss), top.divergence];
        // Where several processes train together, all go on or none does.
        let loss = self.parameters.total(top.loss)?;
        let value = value.map_or(Ok(loss), |value| self.parameters.total(value))?;
        let divergence = match self.taught {
            Some(_) => self.parameters.total(top.divergence)?,
            None => 0.0,
        };
        let passed = Passed { value, divergence, here, unread: top.unread };
        if !loss.is_finite() || !value.is_finite() || !divergence.is_finite() {
            return Ok(passed);
        }
        emit(top.found, sink)?;
        let Some(mut gradient) = top.of_blocks else { return Ok(passed) };
        while let Some((input, inner)) = saved.pop() {
            let index = lowest + saved.len();
            let wants_input = index > lowest || reaches_embedding;
            let next = index.checked_sub(1).filter(|&next| next >= lowest);
            let input = input.bring(self.backend, (self.tokens(), self.shape.hidden_size))?;
            if let Some((below, _)) = saved.last() {
                below.expect();
            }
            let found = self.block(index, next)?.backward(&input, inner, &mut gradient, wants_input);
            emit(found, sink)?;
        }
        if trains_embedding {
            let mut table = top.tied.or_else(|| self.backend.begun(ParamId::Embedding)).unwrap_or_else(|| {
                let mut table = self.backend.gradient(self.shape.vocab_size, self.shape.hidden_size);
                self.backend.clear(&mut table);
                table
            });
            self.backend.lookup_back(
                &gradient,
                self.shape.hidden_size,
                &self.batch.input_ids,
                self.shape.embedding,
                &mut table,
            );
            sink.take(ParamId::Embedding, table)?;
        }
        if let Some(ids) = self.parameters.trained_tokens() {
            let among = Among::of(ids, &self.batch.input_ids);
            let gradient = among.gradient(self.backend, self.shape, &gradient, top.of_tokens);
            sink.take(ParamId::Tokens, gradient)?;
        }
        Ok(passed)
    }

    /// What an objective says of the batch's log-probabilities, and the weights of its tokens' losses.
    fn weigh(&self, x: &B::Acts, minimized: Minimized<'_>) -> Result<(Option<f64>, Weights)> {
        match minimized {
            Minimized::Sum(weight, _) | Minimized::SumLater(weight, _) => Ok((None, Weights::All(weight))),
            Minimized::Of(objective, scale) => {
                let log_probs = self.losses_at(x)?.into_iter().map(|loss| -loss).collect::<Vec<_>>();
                let Objective { value, gradient } = objective(&log_probs)?;
                // The loss is minus the log-probability.
                let weights = gradient.into_iter().map(|gradient| -gradient * scale);
                Ok((Some(value), Weights::Each(weights.collect())))
            }
            Minimized::Scores(objective, scale) => {
                let Objective { value, gradient } = objective(&self.scores_at(x)?)?;
                let slopes = gradient.into_iter().map(|slope| slope * scale);
                Ok((Some(value), Weights::Scores(slopes.collect())))
            }
        }
    }

    /// The log-probability of each position's target, 0 where none is trained.
    pub(super) fn log_probs(&self) -> Result<Vec<f64>> {
        let losses = self.losses_at(&self.through_blocks()?)?;
        Ok(losses.into_iter().map(|loss| -loss).collect())
    }

    /// What the output layer gives the positions that have a target, `[trained, outputs]`.
    pub(super) fn scores(&self) -> Result<Vec<f64>> {
        self.scores_at(&self.through_blocks()?)
    }

    /// The sum of losses.
    pub(super) fn evaluate(&self) -> Result<f64> {
        let x = self.through_blocks()?;
        self.parameters.total(self.top(&x, (TokenLoss::CROSS_ENTROPY, true), None, false)?.loss)
    }

    /// The residual stream above the last block, `[m, hidden]`.
    pub(super) fn through_blocks(&self) -> Result<B::Acts> {
        let blocks = self.shape.blocks.len();
        let mut x = self.embed()?;
        for index in 0..blocks {
            let next = Some(index + 1).filter(|&next| next < blocks);
            x = self.block(index, next)?.forward(&x, false).0;
        }
        Ok(x)
    }

    /// The same for the newest tokens of sequences; `past` is that of each block.
    pub(super) fn through_blocks_on(&self, past: &mut [Past<B>]) -> Result<B::Acts> {
        let mut x = self.embed()?;
        for (index, past) in past.iter_mut().enumerate() {
            let next = Some(index + 1).filter(|&next| next < self.shape.blocks.len());
            x = self.block(index, next)?.forward_on(&x, past);
        }
        Ok(x)
    }

    pub(super) fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }

    /// Whether these are the newest tokens of sequences, one of each.
    pub(super) fn is_of_newest(&self) -> bool {
        !self.rows_in_past.is_empty() && self.stretches.iter().all(|stretch| stretch.len == 1)
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
        self.backend.lookup(&table, self.shape.hidden_size, &self.batch.input_ids, self.shape.embedding, &mut x);
        if let Some(tokens) = self.parameters.tokens(self.backend)? {
            Among::of(&tokens.ids, &self.batch.input_ids).embed(self.backend, self.shape, &tokens.rows, &mut x);
        }
        if let Some(EmbeddingNoise { alpha, key }) = self.noise {
            let noise = Noise::new(alpha, key, &self.stretches, self.tokens(), self.shape.hidden_size);
            self.backend.add_noise(&noise, &mut x);
        }
        Ok(x)
    }

    fn block(&self, index: usize, next: Option<usize>) -> Result<Block<'_, B>> {
        let spec = &self.shape.blocks[index];
        Ok(Block { run: self, index, spec, params: self.parameters.open(self.backend, index, next)? })
    }
}

/// The samples of a batch, whose keys are beside their queries.
fn stretches(batch: &Batch) -> Vec<Stretch> {
    let stretch = |span: &Span| {
        let first = span.row * batch.len + span.start;
        Stretch { queries: first, len: span.len, keys: first, past: 0 }
    };
    batch.spans.iter().map(stretch).collect()
}

/// The length of the sequence that each position is in, up to the last of its tokens here.
fn lens(batch: &Batch) -> Vec<usize> {
    let mut lens = vec![0; batch.positions.len()];
    for span in batch.spans.iter().filter(|span| span.len > 0) {
        let first = span.row * batch.len + span.start;
        let len = batch.positions[first + span.len - 1] as usize + 1;
        lens[first..][..span.len].fill(len);
    }
    lens
}

fn emit<B: Backend>(found: Found<B>, sink: &mut dyn Sink<B>) -> Result<()> {
    found.into_iter().try_for_each(|(id, gradient)| sink.take(id, gradient))
}

/// What is minimized.
pub(super) enum Minimized<'a> {
    /// The sum of such losses, times a factor.
    Sum(f64, TokenLoss),
    /// The same, which nobody waits for: the pass goes back whatever it is.
    SumLater(f64, TokenLoss),
    /// A function of the log-probabilities of all positions, times a factor.
    Of(&'a mut dyn FnMut(&[f64]) -> Result<Objective>, f64),
    /// A function of what the output layer gives the positions that have a target, times a factor.
    Scores(&'a mut dyn FnMut(&[f64]) -> Result<Objective>, f64),
}

/// What a recipe minimizes instead of the sum of losses, see [`super::minimize`] and [`super::minimize_scores`].
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// What is minimized.
    pub value: f64,
    /// Its derivative with respect to each log-probability or score.
    pub gradient: Vec<f64>,
}

/// What each trained token's loss counts in the sum that is minimized.
pub(super) enum Weights {
    /// All the same.
    All(f64),
    /// A number for each position; those of positions that are not trained are not read.
    Each(Vec<f64>),
    /// There are no such losses: these are the derivatives of what is minimized with respect to the outputs of trained positions,
    /// `[trained, outputs]`.
    Scores(Vec<f64>),
}

impl Weights {
    /// Those of some positions.
    pub(super) fn of(&self, rows: &[usize]) -> Vec<f64> {
        match self {
            Self::All(weight) => vec![*weight; rows.len()],
            Self::Each(weights) => rows.iter().map(|&row| weights[row]).collect(),
            Self::Scores(_) => Vec::new(),
        }
    }
}

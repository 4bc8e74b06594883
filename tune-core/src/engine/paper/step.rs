//! The passes of a run on paper: training, validation, and answers.

use std::collections::BTreeMap;

use super::Paper;
use super::gradients::{Gathered, State};
use super::memory::Machine;
use super::sharded::ShardedOnPaper;
use crate::Result;
use crate::data::{Batch, IGNORE, Span};
use crate::distributed::Layout;
use crate::engine::backend::Backend;
use crate::engine::block::Past;
use crate::engine::kept::Keeper;
use crate::engine::parameters::Parameters;
use crate::engine::run::{Minimized, Objective, Run, Taught};
use crate::kernels::attention::Stretch;
use crate::kernels::ledger::Entry;
use crate::kernels::{Element, Mixture, TokenLoss};
use crate::models::{BlockSpec, FakeQuantizer, InBlocks, LoraOptions, ModelSpec, ParamId};

/// What a loss is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The cross-entropies of tokens.
    Tokens,
    /// The log-probabilities of tokens, which are computed before it.
    LogProbs,
    /// The scores of sequences.
    Scores,
}

/// What is known of a training step before there is a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepOnPaper<'a> {
    pub(crate) model: &'a ModelSpec,
    /// The weights that are held in blocks.
    pub(crate) in_blocks: &'a InBlocks,
    /// The adapters that are trained, resolved; the model's own weights if `None`.
    pub(crate) lora: Option<&'a LoraOptions>,
    pub(crate) activation_checkpointing: bool,
    /// Whether the inputs of blocks that are kept are in a file.
    pub(crate) offloads_inputs: bool,
    /// Whether gradients are used up as they come.
    pub(crate) optimizer_in_backward: bool,
    /// Among how many processes parameters are divided; this is the first, whose share is the largest.
    pub(crate) layout: Layout,
    /// A model that is not trained, whose logits are compared with those of this one.
    pub(crate) teacher: Option<&'a StepOnPaper<'a>>,
    /// How weights are rounded, if they are.
    pub(crate) fake: Option<FakeQuantizer>,
}

impl StepOnPaper<'_> {
    /// A training step with micro-batches that are given without padding.
    ///
    /// # Errors
    /// As [`crate::engine::forward_backward`].
    pub(crate) fn train<T: Element>(&self, micro_batches: &[&Batch], paper: &Paper<T>) -> Result<()> {
        self.train_with(micro_batches, paper, Loss::Tokens, |_| Ok(()), None)
    }

    /// The same where something else comes `before` each micro-batch, where what is minimized may be a function of
    /// log-probabilities or scores, and where the optimizer's step comes then, whose state is in the same memory.
    ///
    /// # Errors
    /// As [`crate::engine::forward_backward`], and those of `before`.
    pub(crate) fn train_with<T: Element>(
        &self,
        micro_batches: &[&Batch],
        paper: &Paper<T>,
        loss: Loss,
        before: impl Fn(&Batch) -> Result<()>,
        mut state: Option<&mut State>,
    ) -> Result<()> {
        let mut gradients = BTreeMap::new();
        let mut nothing = |numbers: &[f64]| Ok(Objective { value: 0.0, gradient: vec![0.0; numbers.len()] });
        for batch in micro_batches {
            before(batch)?;
            let of_teacher = self.teacher.map(|teacher| (teacher, ShardedOnPaper::new(*teacher, false)));
            let teacher = of_teacher
                .as_ref()
                .map(|(teacher, sharded)| Run::new(paper, teacher.model, teacher.parameters(sharded), batch));
            let taught = teacher.as_ref().map(|run| Taught::new(run, Mixture::new(0.5, 0.5))).transpose()?;
            let sharded = ShardedOnPaper::new(*self, true);
            let keeper = if self.offloads_inputs { Keeper::Paper } else { Keeper::Memory };
            let run = Run { taught, keeper, ..Run::new(paper, self.model, self.parameters(&sharded), batch) };
            if paper.machine == Machine::Card && self.layout.processes() == 1 {
                paper.begun.borrow_mut().extend(gradients.extract_if(.., |id: &ParamId, _| id.is_begun()));
            }
            let in_backward = if self.optimizer_in_backward { state.as_deref_mut() } else { None };
            let mut gathered =
                Gathered::new(&mut gradients, !self.optimizer_in_backward, in_backward, (self.layout, paper.machine));
            let minimized = match loss {
                Loss::Tokens => Minimized::Sum(1.0, TokenLoss::CROSS_ENTROPY),
                Loss::LogProbs => Minimized::Of(&mut nothing, 1.0),
                Loss::Scores => Minimized::Scores(&mut nothing, 1.0),
            };
            run.forward_backward(minimized, self.activation_checkpointing, &mut gathered)?;
            gathered.finish(0);
        }
        if let Some(state) = state {
            gradients.iter().for_each(|(id, gradient)| state.of(*id, gradient));
        }
        Ok(())
    }

    /// Answers to prompts are drawn, `samples` to each, token by token: `batch` has each prompt with its answers, whose tokens are
    /// trained.
    ///
    /// # Errors
    /// As [`crate::engine::evaluate`].
    pub(crate) fn draw<T: Element>(&self, batch: &Batch, samples: usize, paper: &Paper<T>) -> Result<()> {
        let spans = &batch.spans;
        let starts: Vec<usize> = spans.iter().map(|span| batch.positions_of(span).start).collect();
        let rows = spans.iter().map(|span| span.len).sum();
        let mut past = self.no_past(rows, paper);
        // Prompts are read once.
        let prompt = |span: &Span| span.len + 1 - batch.trained_tokens_of(span);
        let first = (0..spans.len()).step_by(samples.max(1));
        let prompts: Vec<(usize, usize, usize)> = first.map(|i| (starts[i], 0, prompt(&spans[i]))).collect();
        drop(self.grow(&prompts, samples, &mut past, paper)?);
        let copied: usize = (0..spans.len()).filter(|i| i % samples.max(1) > 0).map(|i| prompt(&spans[i])).sum();
        for past in &past {
            drop((paper.acts(copied, past.width), paper.acts(copied, past.width)));
        }
        // The first new tokens and the last are computed in the smallest and the largest memory.
        for is_last in [false, true] {
            let new = |(span, &start): (&Span, &usize)| (start, if is_last { span.len - 1 } else { prompt(span) }, 1);
            let new: Vec<(usize, usize, usize)> =
                spans.iter().zip(&starts).filter(|&(span, _)| span.len > prompt(span)).map(new).collect();
            drop(self.grow(&new, 1, &mut past, paper)?);
        }
        paper.ledger.forget_kept();
        Ok(())
    }

    /// Sequences grow: each is given by the row of its first key, how many it has, and by how many more; behind each so many tokens are
    /// drawn. Returns the logits of the newest tokens, and what is drawn by them: a card has that, and the processor a copy of logits.
    fn grow<T: Element>(
        &self,
        new: &[(usize, usize, usize)],
        draws: usize,
        past: &mut [Past<Paper<T>>],
        paper: &Paper<T>,
    ) -> Result<Option<[Entry; 2]>> {
        if new.is_empty() {
            return Ok(None);
        }
        let len = new.iter().map(|(.., len)| len).sum();
        let mut batch = Batch {
            rows: 1,
            len,
            input_ids: vec![0; len],
            targets: vec![IGNORE; len],
            positions: Vec::with_capacity(len),
            spans: Vec::with_capacity(new.len()),
            origins: vec![String::new(); new.len()],
            labels: Vec::new(),
        };
        let (mut stretches, mut rows, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for &(keys, past, len) in new {
            let first = batch.positions.len();
            batch.spans.push(Span { row: 0, start: first, len });
            batch.positions.extend(past as u32..(past + len) as u32);
            stretches.push(Stretch { queries: first, len, keys, past });
            rows.extend(keys + past..keys + past + len);
            last.push(first + len - 1);
        }
        let sharded = ShardedOnPaper::new(*self, false);
        let run =
            Run { stretches, rows_in_past: rows, ..Run::new(paper, self.model, self.parameters(&sharded), &batch) };
        let mut compute = || -> Result<Option<[Entry; 2]>> {
            let logits = run.logits(&run.through_blocks_on(past)?, &last)?;
            let drawn = match paper.machine {
                Machine::Processor(_) => paper.take::<f32>(last.len() * self.model.vocab_size),
                Machine::Card => paper.take::<u32>(2 * draws * last.len()),
            };
            Ok(Some([logits, drawn]))
        };
        // A card records steps of newest tokens: one is done as any other in the memory of recordings, and one in what that left.
        match paper.machine == Machine::Card && self.layout.shards == 1 && new.iter().all(|&(.., len)| len == 1) {
            true => {
                drop(paper.ledger.keeping(&mut compute)?);
                paper.ledger.keeping(compute)
            }
            false => compute(),
        }
    }

    /// A micro-batch without gradients.
    ///
    /// # Errors
    /// As [`crate::engine::evaluate`].
    pub(crate) fn evaluate<T: Element>(&self, batch: &Batch, paper: &Paper<T>) -> Result<()> {
        let sharded = ShardedOnPaper::new(*self, false);
        Run::new(paper, self.model, self.parameters(&sharded), batch).evaluate().map(drop)
    }

    fn parameters<'a, T: Element>(&'a self, sharded: &'a ShardedOnPaper<'a, T>) -> &'a dyn Parameters<Paper<T>> {
        if self.layout.shards > 1 { sharded } else { self }
    }

    /// Answers to prompts of these lengths, all at a time: the keys and values of as many tokens as they may come to have are in
    /// memory, the prompts are read, and then the newest tokens, one of each, of which the last takes the most.
    ///
    /// # Errors
    /// As [`crate::engine::Sequences::extend`].
    pub(crate) fn generate<T: Element>(&self, prompts: &[usize], max_new: usize, paper: &Paper<T>) -> Result<()> {
        let longest = self.model.max_position_embeddings;
        let rooms = prompts.iter().map(|len| longest.min(len + max_new.saturating_sub(1)));
        let mut rows = 0;
        let mut first_row = |room: usize| {
            rows += room;
            rows - room
        };
        let (prompts, newest): (Vec<_>, Vec<_>) = prompts
            .iter()
            .zip(rooms)
            .map(|(&len, room)| (first_row(room), len, room))
            .map(|(start, len, room)| ((start, 0, len), (start, room.saturating_sub(1), room.min(1))))
            .unzip();
        let mut past = self.no_past(rows, paper);
        drop(self.grow(&prompts, 1, &mut past, paper)?);
        drop(self.grow(&newest, 1, &mut past, paper)?);
        paper.ledger.forget_kept();
        Ok(())
    }

    /// Memory for the keys and values of this many tokens.
    fn no_past<T: Element>(&self, rows: usize, paper: &Paper<T>) -> Vec<Past<Paper<T>>> {
        let of_block = |block: &BlockSpec| {
            let width = block.attention.widths().1;
            Past { keys: paper.zeros(rows, width), values: paper.zeros(rows, width), rows, width }
        };
        self.model.blocks.iter().map(of_block).collect()
    }
}

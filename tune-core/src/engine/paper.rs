//! A training step on paper: the engine itself takes and drops the buffers that it would, and nothing is computed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;

use super::backend::{Backend, Experts, Finish, Losses, Norm, Part, PartMut, Term};
use super::block::Past;
use super::paper_gradients::{Gathered, State};
use super::paper_sharded::ShardedOnPaper;
use super::parameters::{AdapterParams, BlockParams, Exact, LayerParams, NormParams, Parameters};
use super::run::{Minimized, Objective, Run, Taught};
use super::{backend, cuda};
use crate::Result;
use crate::data::{Batch, IGNORE, Span};
use crate::distributed::Layout;
use crate::kernels::attention::{Attention, Stretch};
use crate::kernels::experts::Routes;
use crate::kernels::fake_quant::Levels;
use crate::kernels::isa::Isa;
use crate::kernels::ledger::{Entry, Ledger, Purpose};
use crate::kernels::rope::Turn;
use crate::kernels::{Dropout, Element, Noise, Rotary, gemm, rms_norm};
use crate::methods::{Mixture, TokenLoss};
use crate::models::{
    Activation, BlockNorm, BlockSpec, EmbeddingSpec, FakeQuantizer, InBlocks, LayerSpec, Layers, LoraOptions,
    ModelSpec, ParamId, TABLE,
};

/// The memory of a processor or a card on paper, for weights and activations of type `T`.
pub(crate) struct Paper<T> {
    pub(crate) ledger: Ledger,
    machine: Machine,
    /// Gradients that earlier micro-batches have begun, which a card adds to.
    begun: RefCell<BTreeMap<ParamId, Entry>>,
    purpose: Cell<Purpose>,
    work: RefCell<Work>,
    element: PhantomData<T>,
}

/// Floating-point operations that a training step cannot do without, a multiplication and an addition being two.
///
/// What is done again instead of kept (scores in the backward pass), what is computed and then masked, padding, and everything
/// that is not a product (a few operations an element) is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Products with the weights of the blocks' layers and of their adapters.
    pub layers: f64,
    /// Scores and values of attention.
    pub attention: f64,
    /// Products with the weights of the output layer, for trained tokens.
    pub output: f64,
}

impl Work {
    /// Of a step on samples of these lengths, so many of whose tokens are trained, with activations kept.
    ///
    /// # Errors
    /// As [`super::forward_backward`].
    pub fn of_step(model: &ModelSpec, lora: Option<&LoraOptions>, samples: &[usize], trained: usize) -> Result<Self> {
        let len = samples.iter().sum();
        let mut start = 0;
        let spans = samples.iter().map(|&len| {
            start += len;
            Span { row: 0, start: start - len, len }
        });
        let batch = Batch {
            rows: 1,
            len,
            input_ids: vec![0; len],
            targets: (0..len).map(|i| if i < trained { 0 } else { IGNORE }).collect(),
            positions: vec![0; len],
            spans: spans.collect(),
            origins: vec![String::new(); samples.len()],
        };
        let in_blocks = &InBlocks::default();
        let lora = lora.map(|lora| lora.resolved(model)).transpose()?;
        let lora = lora.as_ref();
        let (activation_checkpointing, optimizer_in_backward, layout) = (false, true, Layout::ONE);
        let step = StepOnPaper {
            model,
            in_blocks,
            lora,
            activation_checkpointing,
            optimizer_in_backward,
            layout,
            teacher: None,
            fake: None,
        };
        let paper = Paper::<f32>::new(1);
        step.train(&[&batch], &paper)?;
        Ok(paper.work.into_inner())
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.layers + self.attention + self.output
    }
}

/// What computes: kernels of each have workspaces of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    /// With so many threads.
    Processor(usize),
    Card,
}

impl<T: Element> Paper<T> {
    /// This processor, with so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self::of(Ledger::new(), Machine::Processor(threads.max(1)))
    }

    /// A card.
    pub(crate) fn card() -> Self {
        Self::of(Ledger::of_card(), Machine::Card)
    }

    fn of(ledger: Ledger, machine: Machine) -> Self {
        Self {
            ledger,
            machine,
            begun: RefCell::default(),
            purpose: Cell::new(Purpose::Activations),
            work: RefCell::default(),
            element: PhantomData,
        }
    }

    fn take<E>(&self, len: usize) -> Entry {
        self.ledger.take::<E>(len, self.purpose.get())
    }

    fn product(&self, terms: &[Term<'_, Self>], (m, n): (usize, usize)) {
        let sides: Vec<_> = terms.iter().map(Term::sides).collect();
        match self.machine {
            Machine::Processor(threads) => {
                drop(self.take::<f32>(gemm::workspace::<T>(Isa::get(), (m, n), &sides, threads)));
            }
            Machine::Card => terms.iter().for_each(|term| self.dequantized(term)),
        }
        let inner: usize = sides.iter().map(|side| side.inner).sum();
        let mut work = self.work.borrow_mut();
        let of = if self.purpose.get() == Purpose::Output { &mut work.output } else { &mut work.layers };
        *of += 2.0 * m as f64 * n as f64 * inner as f64;
    }

    /// Takes the memory that a card dequantizes a product's weight to, piece by piece.
    fn dequantized(&self, term: &Term<'_, Self>) {
        let (results, inner) = match term {
            Term::Up { w, .. } if w.quantized => (w.out, w.inner),
            Term::Down { w, .. } if w.quantized => (w.inner, w.out),
            _ => return,
        };
        for (_, count) in tune_cuda::panels(results, inner, cuda::AT_ONCE) {
            drop(self.take::<T>(count * inner));
        }
    }

    /// Adds so many products of head size for each query and key that sees it.
    fn attention(&self, how: &Attention<'_>, products: f64) {
        let shape = &how.shape;
        let positions = how.stretches.iter().flat_map(|stretch| stretch.past..stretch.past + stretch.len);
        let pairs: usize = positions.map(|i| i + 1 - shape.first_key(i)).sum();
        self.work.borrow_mut().attention += products * 2.0 * (shape.heads * shape.head_dim * pairs) as f64;
    }
}

impl<T: Element> Backend for Paper<T> {
    type Acts = Entry;
    type Sums = Entry;
    /// Memory of its own, if it is converted.
    type Param = Option<Entry>;
    type Each = Vec<f64>;
    /// How many results are scaled, and the memory of the factors.
    type Scaling = (usize, Option<Entry>);

    fn acts(&self, rows: usize, cols: usize) -> Entry {
        self.take::<T>(rows * cols)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Entry {
        self.take::<T>(rows * cols)
    }

    fn sums(&self, rows: usize, cols: usize) -> Entry {
        self.take::<f32>(rows * cols)
    }

    fn gradient(&self, rows: usize, cols: usize) -> Entry {
        self.ledger.take::<f32>(rows * cols, Purpose::Gradients)
    }

    fn begun(&self, id: ParamId) -> Option<Entry> {
        self.begun.borrow_mut().remove(&id)
    }

    fn clear(&self, _: &mut Entry) {}

    fn accumulate(&self, _: &mut Entry, _: &Entry) {}

    fn transpose(&self, _: &Entry, _: (usize, usize), _: &mut Entry) {}

    fn purpose(&self, purpose: Purpose) {
        self.purpose.set(purpose);
    }

    fn multiply(&self, terms: &[Term<'_, Self>], finish: Finish<'_, Self>, y: PartMut<'_, Entry>) {
        // A card has no such product.
        let apart = self.machine == Machine::Card && matches!(finish, Finish::AddDropped(..));
        let _sums = apart.then(|| self.take::<T>(y.rows * y.cols));
        self.product(terms, (y.rows, y.cols));
    }

    fn multiply_sums(&self, terms: &[Term<'_, Self>], _: bool, y: PartMut<'_, Entry>) {
        self.product(terms, (y.rows, y.cols));
    }

    fn lookup(&self, _: &Option<Entry>, _: usize, _: &[u32], _: EmbeddingSpec, _: &mut Entry) {}

    fn add_noise(&self, _: &Noise, _: &mut Entry) {}

    fn lookup_back(&self, _: &Entry, width: usize, ids: &[u32], _: EmbeddingSpec, _: &mut Entry) {
        // Rows that are not padding are brought together first.
        drop((self.machine == Machine::Card).then(|| self.take::<T>(ids.len() * width)));
    }

    fn add_bias(&self, _: &Option<Entry>, _: usize, _: PartMut<'_, Entry>) {}

    fn bias_back(&self, g: Part<'_, Entry>, _: usize, _: &mut Entry) {
        if self.machine == Machine::Card {
            drop(self.take::<f32>(tune_cuda::sum_rows_workspace(g.rows, g.cols)));
        }
    }

    fn gather(&self, _: &Entry, _: usize, _: &[usize], _: &mut Entry) {}

    fn scatter(&self, _: &Entry, _: usize, _: &[usize], _: &mut Entry) {}

    fn norm(&self, _: Part<'_, Entry>, _: &Option<Entry>, _: Norm, _: Option<Part<'_, Entry>>, _: PartMut<'_, Entry>) {}

    fn norm_back(
        &self,
        x: Part<'_, Entry>,
        _: &Option<Entry>,
        norm: Norm,
        _: Part<'_, Entry>,
        _: PartMut<'_, Entry>,
        own: Option<&mut Entry>,
    ) {
        let len = match (own, self.machine) {
            (None, _) => return,
            (Some(_), Machine::Processor(_)) => rms_norm::workspace(x.rows, norm.width),
            (Some(_), Machine::Card) => tune_cuda::Norm::workspace(x.rows * x.cols / norm.width, norm.width),
        };
        drop(self.take::<f32>(len));
    }

    fn rotate(&self, _: PartMut<'_, Entry>, _: &Rotary, _: Turn) {}

    fn gate(&self, _: Activation, _: &Entry, _: &Entry, _: &mut Entry) {}

    fn gate_back(&self, _: Activation, _: &mut Entry, _: &mut Entry, _: &mut Entry) {}

    fn dropped(&self, _: Part<'_, Entry>, _: Dropout, _: Option<&[usize]>, _: &mut Entry) {}

    fn attend(&self, how: &Attention<'_>, _: [Part<'_, Entry>; 3], _: PartMut<'_, Entry>, _: &mut Entry) {
        if let Machine::Processor(threads) = self.machine {
            drop(self.take::<f32>(how.forward_workspace::<T>(threads)));
        }
        self.attention(how, 2.0);
    }

    fn attend_back(
        &self,
        how: &Attention<'_>,
        _: [Part<'_, Entry>; 3],
        (y, _): (Part<'_, Entry>, &Entry),
        _: Part<'_, Entry>,
        _: [PartMut<'_, Entry>; 3],
    ) {
        drop(self.take::<f32>(match self.machine {
            Machine::Processor(threads) => how.backward_workspace::<T>(threads),
            Machine::Card => {
                let lens = how.stretches.iter().map(|stretch| stretch.len);
                cuda::attention(how).workspace(T::IS_BF16, y.rows, lens)
            }
        }));
        // The gradients of probabilities, of values, of keys and of queries.
        self.attention(how, 4.0);
    }

    fn rescale(&self, (out, factors): &mut Self::Scaling, _: &Option<Entry>, _: (&Entry, &Entry), _: usize, _: f64) {
        *factors = Some(self.take::<f32>(2 * *out));
    }

    fn scale_columns(
        &self,
        _: (&Self::Scaling, usize),
        _: Option<Part<'_, Entry>>,
        _: Option<Part<'_, Entry>>,
        _: PartMut<'_, Entry>,
    ) {
    }

    fn scale_sums(&self, _: &Self::Scaling, _: PartMut<'_, Entry>) {}

    fn magnitude_back(&self, _: (&Self::Scaling, usize), g: Part<'_, Entry>, _: Part<'_, Entry>, _: &mut Entry) {
        let len = || tune_cuda::Context::column_dots_workspace(g.rows, g.cols);
        drop((self.machine == Machine::Card).then(|| self.take::<f32>(len())));
    }

    /// On paper every expert has as many tokens as any other, or one more.
    fn route(&self, _: &Entry, tokens: usize, how: Experts) -> Routes {
        let experts: Vec<u32> = (0..tokens * how.chosen).map(|i| (i % how.count) as u32).collect();
        let weights = vec![0.0; experts.len()];
        Routes::new(experts, weights, how.chosen, how.count)
    }

    fn route_back(&self, _: &Entry, _: Experts, _: &Routes, _: &[f64], _: &mut Entry) {}

    fn combine(&self, _: Part<'_, Entry>, _: &Routes, _: bool, _: Option<Part<'_, Entry>>, _: PartMut<'_, Entry>) {}

    fn scale_rows(&self, _: PartMut<'_, Entry>, _: &[f64]) {}

    fn row_dots(&self, a: Part<'_, Entry>, _: Part<'_, Entry>) -> Vec<f64> {
        vec![0.0; a.rows]
    }

    fn cap(&self, _: &mut Entry, _: f64) {}

    fn loss(
        &self,
        logits: Entry,
        vocab: usize,
        _: Option<f64>,
        _: TokenLoss,
        targets: &[u32],
        weights: Option<&[f64]>,
    ) -> Losses<Self> {
        let gradient = weights.map(|_| (logits, vocab * size_of::<f32>() / size_of::<T>()));
        Losses { each: vec![0.0; targets.len()], gradient }
    }

    fn distilled(
        &self,
        (logits, _): (Entry, Entry),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        _: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Vec<f64>) {
        (self.loss(logits, vocab, cap, TokenLoss::CROSS_ENTROPY, targets, weights), vec![0.0; targets.len()])
    }

    fn losses(&self, each: Vec<f64>) -> Vec<f64> {
        each
    }

    fn read_sums(&self, _: &Entry, count: usize) -> Vec<f64> {
        vec![0.0; count]
    }

    fn given(&self, numbers: &[f64]) -> Entry {
        self.take::<T>(numbers.len())
    }

    fn wants_wide(&self) -> bool {
        self.machine != Machine::Card
    }

    fn rows_at_once(&self, vocab: usize, trained: bool) -> usize {
        match self.machine {
            Machine::Processor(_) => backend::rows_at_once(vocab),
            Machine::Card => cuda::rows_at_once(vocab, trained),
        }
    }
}

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
    /// Whether gradients are used up as they come.
    pub(crate) optimizer_in_backward: bool,
    /// Among how many processes parameters are divided; this is the first, whose share is the largest.
    pub(crate) layout: Layout,
    /// A model that is not trained, whose logits are compared with those of this one.
    pub(crate) teacher: Option<&'a StepOnPaper<'a>>,
    /// How weights are rounded, if they are.
    pub(crate) fake: Option<FakeQuantizer>,
}

/// A parameter as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stored {
    /// So many elements in the type of activations.
    Own(usize),
    /// So many elements of f32.
    F32(usize),
    /// So many bytes of blocks.
    Blocks(usize),
}

/// Gives what is read of a parameter, in the order in which a model has them: memory of its own, or none.
pub(super) type Read<'a> = &'a mut dyn FnMut(Stored) -> Option<Entry>;

impl StepOnPaper<'_> {
    /// A training step with micro-batches that are given without padding.
    ///
    /// # Errors
    /// As [`super::forward_backward`].
    pub(crate) fn train<T: Element>(&self, micro_batches: &[&Batch], paper: &Paper<T>) -> Result<()> {
        self.train_with(micro_batches, paper, Loss::Tokens, |_| Ok(()), None)
    }

    /// The same where something else comes `before` each micro-batch, where what is minimized may be a function of
    /// log-probabilities or scores, and where the optimizer's step comes then, whose state is in the same memory.
    ///
    /// # Errors
    /// As [`super::forward_backward`], and those of `before`.
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
            let teacher = self.teacher.map(|teacher| Run::new(paper, teacher.model, teacher, batch));
            let taught = teacher.as_ref().map(|run| Taught::new(run, Mixture::new(0.5, 0.5))).transpose()?;
            let sharded = ShardedOnPaper::new(*self, true);
            let run = Run { taught, ..Run::new(paper, self.model, self.parameters(&sharded), batch) };
            if paper.machine == Machine::Card {
                paper.begun.borrow_mut().extend(gradients.extract_if(.., |id: &ParamId, _| id.is_begun()));
            }
            let in_backward = if self.optimizer_in_backward { state.as_deref_mut() } else { None };
            let mut gathered = Gathered::new(&mut gradients, !self.optimizer_in_backward, in_backward, self.layout);
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
    /// As [`super::evaluate`].
    pub(crate) fn draw<T: Element>(&self, batch: &Batch, samples: usize, paper: &Paper<T>) -> Result<()> {
        let spans = &batch.spans;
        let starts: Vec<usize> = spans.iter().map(|span| batch.positions_of(span).start).collect();
        let rows = spans.iter().map(|span| span.len).sum();
        let mut past: Vec<Past<Paper<T>>> = self
            .model
            .blocks
            .iter()
            .map(|block| block.attention.widths().1)
            .map(|width| Past { keys: paper.zeros(rows, width), values: paper.zeros(rows, width), rows, width })
            .collect();
        // Prompts are read once.
        let prompt = |span: &Span| span.len + 1 - batch.trained_tokens_of(span);
        let first = (0..spans.len()).step_by(samples.max(1));
        let prompts: Vec<(usize, usize, usize)> = first.map(|i| (starts[i], 0, prompt(&spans[i]))).collect();
        self.grow(&prompts, &mut past, paper)?;
        let copied: usize = (0..spans.len()).filter(|i| i % samples.max(1) > 0).map(|i| prompt(&spans[i])).sum();
        for past in &past {
            drop((paper.acts(copied, past.width), paper.acts(copied, past.width)));
        }
        // The first new tokens and the last are computed in the smallest and the largest memory.
        for is_last in [false, true] {
            let new = |(span, &start): (&Span, &usize)| (start, if is_last { span.len - 1 } else { prompt(span) }, 1);
            let new: Vec<(usize, usize, usize)> =
                spans.iter().zip(&starts).filter(|&(span, _)| span.len > prompt(span)).map(new).collect();
            self.grow(&new, &mut past, paper)?;
        }
        Ok(())
    }

    /// Sequences grow: each is given by the row of its first key, how many it has, and by how many more.
    fn grow<T: Element>(
        &self,
        new: &[(usize, usize, usize)],
        past: &mut [Past<Paper<T>>],
        paper: &Paper<T>,
    ) -> Result<()> {
        if new.is_empty() {
            return Ok(());
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
        let x = run.through_blocks_on(past)?;
        let _logits = run.logits(&x, &last)?;
        // They are handed out one by one, and are there twice then.
        drop(paper.take::<f32>(2 * last.len() * self.model.vocab_size));
        Ok(())
    }

    /// A micro-batch without gradients.
    ///
    /// # Errors
    /// As [`super::evaluate`].
    pub(crate) fn evaluate<T: Element>(&self, batch: &Batch, paper: &Paper<T>) -> Result<()> {
        let sharded = ShardedOnPaper::new(*self, false);
        Run::new(paper, self.model, self.parameters(&sharded), batch).evaluate().map(drop)
    }

    fn parameters<'a, T: Element>(&'a self, sharded: &'a ShardedOnPaper<'a, T>) -> &'a dyn Parameters<Paper<T>> {
        if self.layout.shards > 1 { sharded } else { self }
    }

    /// Reads what is in memory: adapters are f32, and what is of another type is converted.
    fn held<T: Element>(paper: &Paper<T>) -> impl FnMut(Stored) -> Option<Entry> {
        let converts = T::IS_BF16 && paper.machine != Machine::Card;
        move |stored| match stored {
            Stored::F32(len) if converts => Some(paper.take::<T>(len)),
            _ => None,
        }
    }

    /// The parameters of a block.
    pub(super) fn block<T: Element>(&self, paper: &Paper<T>, block: usize, read: Read<'_>) -> BlockParams<Paper<T>> {
        let mut layers = Vec::new();
        for layer in self.model.layers(block) {
            let name = format!("model.layers.{block}.{}", layer.site.path());
            let (site, levels) = (layer.site, self.fake.and_then(|fake| fake.of_layer(self.model, block, &layer)));
            let params = self.layer(paper, &name, &format!("{name}.weight"), layer, read);
            layers.push((site, self.rounded(paper, params, levels)));
        }
        let norm = |(norm, width): (BlockNorm, usize)| (norm, self.norm(ParamId::Norm(block, norm), width, read));
        BlockParams { norms: self.model.norms(block).into_iter().map(norm).collect(), layers: Layers::new(layers) }
    }

    /// The last norm and the output layer.
    pub(super) fn head<T: Element>(
        &self,
        paper: &Paper<T>,
        read: Read<'_>,
    ) -> (NormParams<Paper<T>>, LayerParams<Paper<T>>) {
        let name = self.model.output_name();
        let own = format!("{name}.weight");
        let weight = if self.model.tie_word_embeddings { TABLE } else { own.as_str() };
        let norm = self.norm(ParamId::LastNorm, self.model.hidden_size, read);
        let params = self.layer(paper, &name, weight, self.model.output(), read);
        (norm, self.rounded(paper, params, self.fake.and_then(|fake| fake.of_output(self.model))))
    }

    /// A layer whose weight is rounded, in memory of its own, where there are levels.
    fn rounded<T: Element>(
        &self,
        paper: &Paper<T>,
        mut params: LayerParams<Paper<T>>,
        levels: Option<Levels>,
    ) -> LayerParams<Paper<T>> {
        if let Some((levels, fake)) = levels.zip(self.fake) {
            let rounded = Some(paper.take::<T>(params.out * params.inner));
            let weight = std::mem::replace(&mut params.weight, rounded);
            params.exact = Some(Exact { weight, levels, rounds_inputs: fake.rounds_inputs() });
        }
        params
    }

    /// The embedding table.
    pub(super) fn table<T: Element>(&self, paper: &Paper<T>, read: Read<'_>) -> Option<Entry> {
        let (rows, cols) = (self.model.vocab_size, self.model.hidden_size);
        let table = read(self.matrix(TABLE, rows, cols));
        match self.fake.and_then(|fake| fake.of_embedding(self.model)) {
            Some(_) => Some(paper.take::<T>(rows * cols)),
            None => table,
        }
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Stored {
        match self.in_blocks.format(name) {
            Some(format) => Stored::Blocks(format.bytes(rows, cols).unwrap_or_default() as usize),
            None => Stored::Own(rows * cols),
        }
    }

    /// Answers to prompts of these lengths, all at a time: the keys and values of as many tokens as they may come to have are in
    /// memory, the prompts are read, and then the newest tokens, one of each, of which the last takes the most.
    ///
    /// # Errors
    /// As [`super::Sequences::extend`].
    pub(crate) fn generate<T: Element>(&self, prompts: &[usize], max_new: usize, paper: &Paper<T>) -> Result<()> {
        let longest = self.model.max_position_embeddings;
        let rooms: Vec<usize> = prompts.iter().map(|len| longest.min(len + max_new.saturating_sub(1))).collect();
        let rows = rooms.iter().sum();
        let of_block = |block: &BlockSpec| {
            let width = block.attention.widths().1;
            Past { keys: paper.zeros(rows, width), values: paper.zeros(rows, width), rows, width }
        };
        let mut past: Vec<Past<Paper<T>>> = self.model.blocks.iter().map(of_block).collect();
        let prefill = prompts.iter().map(|&len| 0..len).collect::<Vec<_>>();
        let newest = rooms.iter().map(|&room| room.saturating_sub(1)..room).collect::<Vec<_>>();
        for read in [prefill, newest] {
            let (mut batch, mut stretches, mut rows_in_past, mut last) =
                (no_tokens(), Vec::new(), Vec::new(), Vec::new());
            let mut start = 0;
            for (positions, room) in read.into_iter().zip(&rooms) {
                let (queries, len) = (batch.len, positions.len());
                stretches.push(Stretch { queries, len, keys: start, past: positions.start });
                rows_in_past.extend(positions.clone().map(|position| start + position));
                batch.spans.push(Span { row: 0, start: queries, len });
                batch.positions.extend(positions.map(|position| position as u32));
                batch.len += len;
                last.push(batch.len - 1);
                start += room;
            }
            (batch.input_ids, batch.targets) = (vec![0; batch.len], vec![IGNORE; batch.len]);
            let sharded = ShardedOnPaper::new(*self, false);
            let run = Run::new(paper, self.model, self.parameters(&sharded), &batch);
            let run = Run { stretches, rows_in_past, ..run };
            let x = run.through_blocks_on(&mut past)?;
            drop(run.logits(&x, &last)?);
        }
        Ok(())
    }

    /// A layer of this name, whose weight may be that of another.
    fn layer<T: Element>(
        &self,
        paper: &Paper<T>,
        name: &str,
        weight: &str,
        layer: LayerSpec,
        read: Read<'_>,
    ) -> LayerParams<Paper<T>> {
        let LayerSpec { out, parts, inner, bias, .. } = layer;
        let adapter = self.lora.and_then(|lora| Some((lora, lora.of_layer(name)?.rank)));
        let adapter = adapter.map(|(lora, rank)| AdapterParams {
            a: read(Stored::F32(rank * inner)),
            b: read(Stored::F32(out * rank)),
            rank,
            scale: 1.0,
            scaling: None,
            dropout: (lora.dropout > 0.0).then(|| Dropout::new(lora.dropout, 0)),
        });
        let params = LayerParams {
            weight: read(self.matrix(weight, out, inner)),
            quantized: self.in_blocks.format(weight).is_some(),
            bias: bias.then(|| read(Stored::Own(out))),
            trained: self.trains(weight),
            out,
            parts,
            inner,
            adapter,
            exact: None,
        };
        match self.lora.is_some_and(|lora| lora.dora) && params.adapter.is_some() {
            true => params.scaled_by(paper, (out, None)),
            false => params,
        }
    }

    fn norm<T: Element>(&self, id: ParamId, width: usize, read: Read<'_>) -> NormParams<Paper<T>> {
        NormParams { weight: read(Stored::Own(width)), width, trained: self.trains(&id.name(self.model)) }
    }

    /// Whether the model's own weight of this name is trained.
    fn trains(&self, weight: &str) -> bool {
        self.lora.is_none_or(|lora| lora.whole.contains(weight))
    }
}

impl<T: Element> Parameters<Paper<T>> for StepOnPaper<'_> {
    fn open(&self, paper: &Paper<T>, block: usize, _: Option<usize>) -> Result<BlockParams<Paper<T>>> {
        Ok(self.block(paper, block, &mut Self::held(paper)))
    }

    fn embedding(&self, paper: &Paper<T>) -> Result<Option<Entry>> {
        Ok(self.table(paper, &mut Self::held(paper)))
    }

    fn top(&self, paper: &Paper<T>) -> Result<(NormParams<Paper<T>>, LayerParams<Paper<T>>)> {
        Ok(self.head(paper, &mut Self::held(paper)))
    }

    fn trains_embedding(&self) -> bool {
        self.trains(TABLE)
    }

    fn lowest_trained_block(&self) -> usize {
        let Some(lora) = self.lora else { return 0 };
        let blocks = self.model.blocks.len();
        let name = |block: &usize, layer: &LayerSpec| format!("model.layers.{block}.{}", layer.site.path());
        let adapted =
            |block: &usize| self.model.layers(*block).iter().any(|layer| lora.of_layer(&name(block, layer)).is_some());
        let is_whole =
            |block: &usize| lora.whole.iter().any(|name| name.starts_with(&format!("model.layers.{block}.")));
        (0..blocks).find(|block| adapted(block) || is_whole(block)).unwrap_or(blocks)
    }
}

/// A row that tokens are still to come into.
fn no_tokens() -> Batch {
    Batch {
        rows: 1,
        len: 0,
        input_ids: Vec::new(),
        targets: Vec::new(),
        positions: Vec::new(),
        spans: Vec::new(),
        origins: Vec::new(),
    }
}

#[cfg(test)]
#[path = "paper_tests.rs"]
mod tests;

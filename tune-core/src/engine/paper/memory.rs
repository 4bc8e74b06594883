//! The backend that takes memory and counts operations, and computes nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;

use super::Work;
use crate::engine::backend::{self, Backend, ByExperts, Experts, Finish, Losses, Norm, Part, PartMut, Selection, Term};
use crate::engine::cuda;
use crate::kernels::attention::Attention;
use crate::kernels::fake_quant::Levels;
use crate::kernels::isa::Isa;
use crate::kernels::ledger::{Entry, Ledger, Purpose};
use crate::kernels::rope::Turn;
use crate::kernels::{Dropout, Element, Mixture, Noise, Rotary, TokenLoss, TopRows, gemm, rms_norm};
use crate::models::{Activation, EmbeddingSpec, ParamId};

/// The memory of a processor or a card on paper, for weights and activations of type `T`.
pub(crate) struct Paper<T> {
    pub(crate) ledger: Ledger,
    pub(super) machine: Machine,
    /// Gradients that earlier micro-batches have begun, which a card adds to.
    pub(super) begun: RefCell<BTreeMap<ParamId, Entry>>,
    purpose: Cell<Purpose>,
    pub(super) work: RefCell<Work>,
    element: PhantomData<T>,
}

/// What computes: kernels of each have workspaces of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    /// With this many threads.
    Processor(usize),
    Card,
}

impl<T: Element> Paper<T> {
    /// This processor, with this many threads.
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

    pub(super) fn take<E>(&self, len: usize) -> Entry {
        self.ledger.take::<E>(len, self.purpose.get())
    }

    /// A sum of products `[m, n]` into numbers of type `D`; `stored`: as they are.
    fn product<D: Element>(&self, terms: &[Term<'_, Self>], stored: bool, (m, n): (usize, usize)) {
        let sides: Vec<_> = terms.iter().map(Term::sides).collect();
        match self.machine {
            Machine::Processor(threads) => {
                drop(self.take::<f32>(gemm::workspace::<T, D>(Isa::get(), (m, n), &sides, stored, threads)));
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

    /// Adds this many products of head size for each query and key that sees it.
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
    /// The first place of each expert, and the memory that a card keeps routes in.
    type Routes = (Vec<usize>, Vec<Entry>);

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
        self.product::<T>(terms, matches!(finish, Finish::Store), (y.rows, y.cols));
    }

    fn multiply_sums(&self, terms: &[Term<'_, Self>], adding: bool, y: PartMut<'_, Entry>) {
        self.product::<f32>(terms, !adding, (y.rows, y.cols));
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

    fn put_columns(&self, _: &Entry, _: &[u32], _: PartMut<'_, Entry>) {}

    fn take_columns(&self, _: PartMut<'_, Entry>, _: &[u32], _: &mut Entry) {}

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

    fn dropped(&self, _: Part<'_, Entry>, _: Dropout, _: Option<Selection<'_, Self>>, _: &mut Entry) {}

    fn rounded(&self, _: &Option<Entry>, (rows, cols): (usize, usize), _: Levels) -> crate::Result<Option<Entry>> {
        Ok(Some(self.take::<T>(rows * cols)))
    }

    // These take no memory.
    fn rounded_back(&self, _: &Option<Entry>, _: Levels, _: &mut Entry) {}

    fn round_tokens(&self, _: Part<'_, Entry>, _: PartMut<'_, Entry>) {}

    fn round_tokens_back(&self, _: Part<'_, Entry>, _: Option<Part<'_, Entry>>, _: PartMut<'_, Entry>) {}

    fn attend(&self, how: &Attention<'_>, _: [Part<'_, Entry>; 3], _: PartMut<'_, Entry>, _: &mut Entry) {
        let len = match self.machine {
            Machine::Processor(threads) => Some(how.forward_workspace::<T>(threads)),
            Machine::Card => {
                let longest = how.stretches.iter().map(|stretch| stretch.past + stretch.len).max().unwrap_or(0);
                let are_newest = how.stretches.iter().all(|stretch| stretch.len == 1);
                are_newest.then(|| cuda::attention(how).workspace_of_newest(how.stretches.len(), longest))
            }
        };
        drop(len.map(|len| self.take::<f32>(len)));
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
    fn route(&self, _: &Entry, tokens: usize, how: Experts, _: bool) -> Self::Routes {
        let places = tokens * how.chosen;
        let (each, more) = (places / how.count, places % how.count);
        let starts = (0..=how.count).map(|expert| expert * each + expert.min(more)).collect();
        let kept = match self.machine {
            Machine::Processor(_) => Vec::new(),
            // Experts and weights of choices, their places, tokens and weights of these, and where each expert's begin.
            Machine::Card => [places; 5].into_iter().chain([how.count + 1]).map(|len| self.take::<f32>(len)).collect(),
        };
        (starts, kept)
    }

    /// As on a card, which has few places in a step that may be recorded.
    fn has_few_places(&self, places: usize, experts: usize) -> bool {
        self.ledger.is_keeping() && places <= tune_cuda::few_places(experts)
    }

    fn multiply_places(&self, (starts, _): &Self::Routes, by: ByExperts<'_, Self>) {
        let places = starts.last().copied().unwrap_or(0);
        let operations = by.products.len() * places * by.out * (by.inner + by.rank);
        self.work.borrow_mut().layers += 2.0 * operations as f64;
    }

    fn starts(&self, (starts, _): &mut Self::Routes) -> Vec<usize> {
        starts.clone()
    }

    fn keeps_routes(&self) -> bool {
        self.machine == Machine::Card
    }

    fn route_back(&self, _: &Entry, _: Experts, _: &Self::Routes, _: &Entry, _: &mut Entry) {}

    fn to_places(&self, _: &Entry, _: usize, _: &Self::Routes, _: &mut Entry) {}

    fn combine(
        &self,
        _: Part<'_, Entry>,
        _: &Self::Routes,
        _: bool,
        _: Option<Part<'_, Entry>>,
        _: PartMut<'_, Entry>,
    ) {
    }

    fn weigh_places(&self, _: PartMut<'_, Entry>, _: &Self::Routes) {}

    fn row_dots(&self, a: Part<'_, Entry>, _: Part<'_, Entry>) -> Entry {
        self.sums(a.rows, 1)
    }

    fn cap(&self, _: &mut Entry, _: f64) {}

    fn multiply_logits(&self, _: &mut Entry, _: usize, _: f64) {}

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

    fn distilled_by_top(
        &self,
        (logits, _): (Entry, TopRows<'_>),
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

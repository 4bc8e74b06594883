//! An NVIDIA card: thin calls into [`tune_cuda`].
//!
//! A model's tensors stay on the processor. What is frozen is copied to the card once and kept there, what is trained is copied for
//! each run, and gradients come back one parameter at a time. What fails on the card comes to light when results are read: until
//! then nothing is done any more, and [`Card::check`] has the error.

use std::any::Any;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Tensor, TensorId};
use tune_cuda::{Buffer, Context, Onto, Qkv, QkvMut, Spans, View, ViewMut};

use super::backend::{Backend, Experts, Finish, Losses, Norm, Part, PartMut, Reads, Term, Weight};
use super::cpu::Cpu;
use crate::kernels::attention::{Attention, Stretch};
use crate::kernels::buffers::Buffer as Here;
use crate::kernels::experts::Routes;
use crate::kernels::rope::Turn;
use crate::kernels::{Dropout, Element, Quantized, Rotary, softmax};
use crate::models::{Activation, EmbeddingSpec};
use crate::{Error, Result};

/// A card that models may be computed on, with what it has of them.
#[derive(Debug)]
pub struct Card {
    context: Context,
    /// What is frozen, by tensor and by whether it is bf16.
    frozen: Mutex<HashMap<(TensorId, bool), Arc<dyn Any + Send + Sync>>>,
    angles: Mutex<Option<Angles>>,
    spans: Mutex<Option<Last>>,
}

/// The stretches of the batch that was run last.
#[derive(Debug)]
struct Last {
    of: Vec<Stretch>,
    /// Of queries and of keys.
    rows: [usize; 2],
    spans: Arc<Spans>,
}

/// The angles of the batch that was run last.
#[derive(Debug)]
struct Angles {
    of: Arc<Vec<f32>>,
    cos: Buffer<f32>,
    sin: Buffer<f32>,
}

impl Card {
    /// Opens a card by its number.
    ///
    /// # Errors
    /// What is missing for it, in one line.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let context = Context::open(ordinal).map_err(of_card)?;
        Ok(Arc::new(Self { context, frozen: Mutex::default(), angles: Mutex::default(), spans: Mutex::default() }))
    }

    /// The maker's name for it.
    pub fn name(&self) -> &str {
        &self.context.card().name
    }

    /// Whether all went well so far.
    ///
    /// # Errors
    /// The first thing that failed.
    pub(super) fn check(&self) -> Result<()> {
        self.context.check().map_err(of_card)
    }
}

fn of_card(error: tune_cuda::Error) -> Error {
    match error {
        tune_cuda::Error::Unavailable(_) => Error::setup(error.to_string()),
        error => Error::Training(error.to_string()),
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Weights and activations of type `T` on a card, sums in f32.
pub(super) struct Cuda<T> {
    card: Arc<Card>,
    of: PhantomData<T>,
}

/// A type of numbers here and on a card.
pub(super) trait Number: Element + tune_cuda::Element {}
impl<T: Element + tune_cuda::Element> Number for T {}

impl<T> Cuda<T> {
    pub(super) fn new(card: Arc<Card>) -> Self {
        Self { card, of: PhantomData }
    }

    /// Sums as they are; not-a-number for each if they cannot be had, for which the context has the reason.
    pub(super) fn read(&self, x: &Buffer<f32>) -> Vec<f32> {
        self.context().download(x).unwrap_or_else(|_| vec![f32::NAN; x.len()])
    }

    fn context(&self) -> &Context {
        &self.card.context
    }

    fn rows(&self, rows: &[usize]) -> Buffer<u32> {
        self.context().upload(&rows.iter().map(|&row| row as u32).collect::<Vec<_>>())
    }

    /// The stretches of `how` on the card, for so many rows of queries and of keys.
    fn spans(&self, how: &Attention<'_>, queries: usize, keys: usize) -> Arc<Spans> {
        let mut last = lock(&self.card.spans);
        if let Some(last) = last.as_ref().filter(|last| last.of == how.stretches && last.rows == [queries, keys]) {
            return Arc::clone(&last.spans);
        }
        let stretch = |s: &Stretch| tune_cuda::Stretch { queries: s.queries, len: s.len, keys: s.keys, past: s.past };
        let spans = Spans::behind(&how.stretches.iter().map(stretch).collect::<Vec<_>>(), queries, keys);
        let spans = Arc::new(spans);
        *last = Some(Last { of: how.stretches.to_vec(), rows: [queries, keys], spans: Arc::clone(&spans) });
        spans
    }
}

impl<'m, T: Number> Reads<'m> for Cuda<T> {
    fn param(&self, tensor: &'m Tensor) -> Result<Self::Param> {
        let key = (tensor.id(), T::IS_BF16);
        if !tensor.is_variable()
            && let Some(Ok(kept)) =
                lock(&self.card.frozen).get(&key).map(|kept| Arc::clone(kept).downcast::<Buffer<T>>())
        {
            return Ok(kept);
        }
        let numbers = Cpu::<T>::new().param(tensor)?;
        let param = Arc::new(self.context().upload(&numbers));
        if !tensor.is_variable() {
            let kept: Arc<dyn Any + Send + Sync> = Arc::<Buffer<T>>::clone(&param);
            lock(&self.card.frozen).insert(key, kept);
        }
        self.card.check()?;
        Ok(param)
    }

    fn quantized(&self, of: &'m Quantized) -> Result<Self::Param> {
        Err(Error::setup(format!(
            "weights in blocks ({}) are computed with on the processor alone: set device=cpu, or have them read as dtype, \
             with model.quantize_base=false and model.keep_quantized=false",
            of.format()
        )))
    }

    fn numbers(&self, x: &Buffer<f32>) -> Vec<f32> {
        self.read(x)
    }

    fn check(&self) -> Result<()> {
        self.card.check()
    }
}

fn view<'a, E>(part: Part<'a, Buffer<E>>) -> View<'a, E> {
    part.of.part(part.at, (part.rows, part.cols), part.stride)
}

// A part to be written is given away.
#[allow(clippy::needless_pass_by_value)]
fn view_mut<E>(part: PartMut<'_, Buffer<E>>) -> ViewMut<'_, E> {
    part.of.part_mut(part.at, (part.rows, part.cols), part.stride)
}

fn product<'a, T: Number>(term: &Term<'a, Cuda<T>>) -> tune_cuda::Term<'a, T> {
    let weight = |w: &Weight<'a, Cuda<T>>| w.param.part(w.first * w.inner, (w.out, w.inner), w.inner);
    match term {
        Term::Up { x, w } => tune_cuda::Term::Up { x: view(*x), w: weight(w) },
        Term::Down { g, w } => tune_cuda::Term::Down { g: view(*g), w: weight(w) },
        Term::Across { g, x } => tune_cuda::Term::Across { g: view(*g), x: view(*x) },
    }
}

fn attention(how: &Attention<'_>) -> tune_cuda::Attention {
    let shape = &how.shape;
    tune_cuda::Attention {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: shape.scale as f32,
        window: shape.window,
        softcap: shape.softcap.map(|cap| cap as f32),
    }
}

fn norm(norm: Norm) -> tune_cuda::Norm {
    tune_cuda::Norm { eps: norm.eps as f32, from_one: norm.from_one }
}

fn curve(activation: Activation) -> tune_cuda::Activation {
    match activation {
        Activation::Silu => tune_cuda::Activation::Silu,
        Activation::GeluTanh => tune_cuda::Activation::GeluTanh,
    }
}

/// The factor of an embedding, as type `T` has it.
fn scale<T: Number>(how: EmbeddingSpec) -> f32 {
    how.scale.map_or(1.0, |factor| T::from_f32(factor as f32).to_f32())
}

/// What is computed on the processor: the routes of a mixture of experts, and what goes by them.
impl<T: Number> Cuda<T> {
    /// A copy of a matrix on the processor, without gaps.
    fn here(&self, part: Part<'_, Buffer<T>>) -> Here<T> {
        let mut whole = self.context().buffer::<T>(part.rows * part.cols);
        self.context().convert(view(part), 1.0, false, whole.view_mut(part.cols));
        let numbers = self.context().download(&whole).unwrap_or_else(|_| vec![T::from_f32(0.0); whole.len()]);
        copied(&numbers)
    }

    /// Stores a matrix of the processor, which has no gaps.
    fn there(&self, numbers: &[T], y: PartMut<'_, Buffer<T>>) {
        let (whole, cols) = (self.context().upload(numbers), y.cols);
        self.context().convert(whole.view(cols), 1.0, false, view_mut(y));
    }

    fn sums_here(&self, x: &Buffer<f32>) -> Here<f32> {
        copied(&self.context().download(x).unwrap_or_else(|_| vec![0.0; x.len()]))
    }
}

fn copied<E: Element>(numbers: &[E]) -> Here<E> {
    let mut here = Here::new(numbers.len());
    here.copy_from_slice(numbers);
    here
}

impl<T: Number> Backend for Cuda<T> {
    type Acts = Buffer<T>;
    type Sums = Buffer<f32>;
    type Param = Arc<Buffer<T>>;

    fn acts(&self, rows: usize, cols: usize) -> Buffer<T> {
        self.context().buffer(rows * cols)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Buffer<T> {
        self.context().zeros(rows * cols)
    }

    fn sums(&self, rows: usize, cols: usize) -> Buffer<f32> {
        self.context().buffer(rows * cols)
    }

    fn gradient(&self, rows: usize, cols: usize) -> Buffer<f32> {
        self.context().buffer(rows * cols)
    }

    fn clear(&self, x: &mut Buffer<f32>) {
        self.context().fill(x, 0);
    }

    fn accumulate(&self, onto: &mut Buffer<f32>, more: &Buffer<f32>) {
        let len = more.len();
        self.context().convert(more.view(len), 1.0, true, onto.view_mut(len));
    }

    /// As a product with the identity, which changes nothing: `rows` is the rank of an adapter.
    fn transpose(&self, x: &Buffer<f32>, (rows, cols): (usize, usize), y: &mut Buffer<f32>) {
        let identity: Vec<f32> = (0..rows * rows).map(|i| if i % (rows + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let identity = self.context().upload(&identity);
        let term = tune_cuda::Term::Across { g: x.view(cols), x: identity.view(rows) };
        self.context().multiply(term, 1.0, None, Onto::Nothing, y.view_mut(rows));
    }

    fn multiply(&self, terms: &[Term<'_, Self>], finish: Finish<'_, Self>, y: PartMut<'_, Buffer<T>>) {
        if let Finish::Plus(bias, first) = finish {
            let PartMut { of, at, rows, cols, stride } = y;
            self.multiply(terms, Finish::Store, PartMut { of: &mut *of, at, rows, cols, stride });
            return self.add_bias(bias, first, PartMut { of, at, rows, cols, stride });
        }
        let mut y = view_mut(y);
        let (factor, first) = match finish {
            Finish::Store | Finish::Plus(..) => (1.0, Onto::Nothing),
            Finish::Scaled(factor) => (factor as f32, Onto::Nothing),
            Finish::Onto(other) => (1.0, Onto::Other(view(other))),
            Finish::AddDropped(dropout, rows) => {
                let (m, n) = y.shape();
                let mut sums = self.acts(m, n);
                self.multiply(terms, Finish::Store, PartMut::new(&mut sums, m, n));
                let ((p, key), rows) = (dropout.parts(), rows.map(|rows| self.rows(rows)));
                let dropout = tune_cuda::Dropout { p, key };
                return self.context().dropped(sums.view(n), dropout, rows.as_ref(), Onto::Itself, y);
            }
        };
        for (i, term) in terms.iter().enumerate() {
            let onto = if i == 0 { first } else { Onto::Itself };
            self.context().multiply(product(term), factor, None, onto, y.reborrow());
        }
    }

    fn multiply_sums(&self, terms: &[Term<'_, Self>], adding: bool, y: PartMut<'_, Buffer<f32>>) {
        let mut y = view_mut(y);
        for (i, term) in terms.iter().enumerate() {
            let onto = if i == 0 && !adding { Onto::Nothing } else { Onto::Itself };
            self.context().multiply(product(term), 1.0, None, onto, y.reborrow());
        }
    }

    fn lookup(&self, table: &Arc<Buffer<T>>, width: usize, ids: &[u32], how: EmbeddingSpec, y: &mut Buffer<T>) {
        self.context().lookup(table.view(width), &self.context().upload(ids), scale::<T>(how), y.view_mut(width));
    }

    fn lookup_back(&self, g: &Buffer<T>, width: usize, ids: &[u32], how: EmbeddingSpec, table: &mut Buffer<f32>) {
        let rows: Vec<usize> = (0..ids.len()).filter(|&i| Some(ids[i]) != how.padding).collect();
        let ids: Vec<u32> = rows.iter().map(|&row| ids[row]).collect();
        let (mut some, factor) = (self.acts(rows.len(), width), scale::<T>(how));
        self.gather(g, width, &rows, &mut some);
        self.context().lookup_back(some.view(width), &self.context().group(&ids), factor, table.view_mut(width));
    }

    /// As one more product, with a column of ones.
    fn add_bias(&self, bias: &Arc<Buffer<T>>, first: usize, y: PartMut<'_, Buffer<T>>) {
        let ones = self.context().upload(&vec![T::from_f32(1.0); y.rows]);
        let term = tune_cuda::Term::Up { x: ones.view(1), w: bias.part(first, (y.cols, 1), 1) };
        self.context().multiply(term, 1.0, None, Onto::Itself, view_mut(y));
    }

    fn bias_back(&self, g: Part<'_, Buffer<T>>, first: usize, own: &mut Buffer<f32>) {
        let ones = self.context().upload(&vec![T::from_f32(1.0); g.rows]);
        let term = tune_cuda::Term::Across { g: view(g), x: ones.view(1) };
        self.context().multiply(term, 1.0, None, Onto::Nothing, own.part_mut(first, (g.cols, 1), 1));
    }

    fn gather(&self, x: &Buffer<T>, width: usize, rows: &[usize], y: &mut Buffer<T>) {
        self.context().gather(x.view(width), &self.rows(rows), y.view_mut(width));
    }

    fn scatter(&self, x: &Buffer<T>, width: usize, rows: &[usize], y: &mut Buffer<T>) {
        self.context().scatter(x.view(width), &self.rows(rows), false, y.view_mut(width));
    }

    fn norm(
        &self,
        x: Part<'_, Buffer<T>>,
        weight: &Arc<Buffer<T>>,
        how: Norm,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        self.context().norm(view(x), weight, norm(how), None, onto.map(view), view_mut(y));
    }

    fn norm_back(
        &self,
        x: Part<'_, Buffer<T>>,
        weight: &Arc<Buffer<T>>,
        how: Norm,
        g: Part<'_, Buffer<T>>,
        onto: PartMut<'_, Buffer<T>>,
        mut own: Option<&mut Buffer<f32>>,
    ) {
        if let Some(own) = own.as_deref_mut() {
            self.clear(own);
        }
        self.context().norm_back(view(x), weight, norm(how), view(g), (view_mut(onto), true), own);
    }

    fn rotate(&self, x: PartMut<'_, Buffer<T>>, angles: &Rotary, turn: Turn) {
        let mut last = lock(&self.card.angles);
        if !last.as_ref().is_some_and(|last| Arc::ptr_eq(&last.of, &angles.cos)) {
            let [cos, sin] = [&angles.cos, &angles.sin].map(|table| self.context().upload(table));
            *last = Some(Angles { of: Arc::clone(&angles.cos), cos, sin });
        }
        let (Some(on_card), half) = (last.as_ref(), angles.turned / 2) else { return };
        let turn = match turn {
            Turn::Forward => tune_cuda::Turn::Forward,
            Turn::Back => tune_cuda::Turn::Back,
        };
        let tables = (on_card.cos.view(half), on_card.sin.view(half));
        self.context().rotate(view_mut(x), angles.head_dim, tables, turn);
    }

    fn gate(&self, activation: Activation, gate: &Buffer<T>, up: &Buffer<T>, y: &mut Buffer<T>) {
        let len = gate.len();
        self.context().gate(curve(activation), gate.view(len), up.view(len), y.view_mut(len));
    }

    fn gate_back(&self, activation: Activation, gate: &mut Buffer<T>, up: &mut Buffer<T>, g: &mut Buffer<T>) {
        let len = gate.len();
        self.context().gate_back(curve(activation), gate.view_mut(len), up.view_mut(len), g.view_mut(len));
    }

    fn dropped(&self, x: &Buffer<T>, width: usize, dropout: Dropout, rows: Option<&[usize]>, y: &mut Buffer<T>) {
        let ((p, key), rows) = (dropout.parts(), rows.map(|rows| self.rows(rows)));
        let dropout = tune_cuda::Dropout { p, key };
        self.context().dropped(x.view(width), dropout, rows.as_ref(), Onto::Nothing, y.view_mut(width));
    }

    fn attend(
        &self,
        how: &Attention<'_>,
        [q, k, v]: [Part<'_, Buffer<T>>; 3],
        y: PartMut<'_, Buffer<T>>,
        lse: &mut Buffer<f32>,
    ) {
        let spans = self.spans(how, y.rows, k.rows);
        let qkv = Qkv { q: view(q), k: view(k), v: view(v) };
        self.context().attend(&attention(how), &spans, qkv, view_mut(y), lse);
    }

    fn attend_back(
        &self,
        how: &Attention<'_>,
        [q, k, v]: [Part<'_, Buffer<T>>; 3],
        (y, lse): (Part<'_, Buffer<T>>, &Buffer<f32>),
        g: Part<'_, Buffer<T>>,
        gqkv: [PartMut<'_, Buffer<T>>; 3],
    ) {
        let spans = self.spans(how, y.rows, k.rows);
        let qkv = Qkv { q: view(q), k: view(k), v: view(v) };
        let [q, k, v] = gqkv.map(view_mut);
        let into = QkvMut { q, k, v };
        self.context().attend_back(&attention(how), &spans, qkv, (view(y), lse), view(g), into);
    }

    fn route(&self, logits: &Buffer<f32>, tokens: usize, how: Experts) -> Routes {
        Cpu::<T>::new().route(&self.sums_here(logits), tokens, how)
    }

    fn route_back(&self, logits: &Buffer<f32>, how: Experts, routes: &Routes, g: &[f64], y: &mut Buffer<T>) {
        let mut here = Here::zeros(y.len());
        Cpu::<T>::new().route_back(&self.sums_here(logits), how, routes, g, &mut here);
        self.context().write(y, &here);
    }

    fn combine(
        &self,
        x: Part<'_, Buffer<T>>,
        routes: &Routes,
        weighted: bool,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        let (here, onto, cols) = (self.here(x), onto.map(|onto| (self.here(onto), onto.rows)), y.cols);
        let onto = onto.as_ref().map(|(onto, rows)| Part::new(onto, *rows, cols));
        let mut sums = Here::zeros(y.rows * cols);
        let into = PartMut::new(&mut sums, y.rows, cols);
        Cpu::<T>::new().combine(Part::new(&here, x.rows, cols), routes, weighted, onto, into);
        self.there(&sums, y);
    }

    fn scale_rows(&self, x: PartMut<'_, Buffer<T>>, factors: &[f64]) {
        let PartMut { of, at, rows, cols, stride } = x;
        let mut here = self.here(Part { of: &*of, at, rows, cols, stride });
        Cpu::<T>::new().scale_rows(PartMut::new(&mut here, rows, cols), factors);
        self.there(&here, PartMut { of, at, rows, cols, stride });
    }

    fn row_dots(&self, a: Part<'_, Buffer<T>>, b: Part<'_, Buffer<T>>) -> Vec<f64> {
        let (here, there) = (self.here(a), self.here(b));
        Cpu::<T>::new().row_dots(Part::new(&here, a.rows, a.cols), Part::new(&there, b.rows, b.cols))
    }

    fn cap(&self, logits: &mut Buffer<f32>, cap: f64) {
        let mut here = self.sums_here(logits);
        softmax::cap_rows(&mut here, cap as f32);
        self.context().write(logits, &here);
    }

    fn loss(
        &self,
        mut logits: Buffer<f32>,
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        weights: Option<&[f64]>,
    ) -> Losses<Self> {
        let cap = cap.map(|cap| cap as f32);
        let context = self.context();
        let on_card = context.upload(targets);
        let mut losses = context.buffer::<f32>(targets.len());
        let mut run = |weights: Option<&Buffer<f32>>, scale| {
            let view = logits.view_mut(vocab);
            context.cross_entropy::<f32, T>(view, &on_card, weights, scale, None, cap, &mut losses);
            weights.is_none().then(|| self.read(&losses))
        };
        let first = weights.and_then(|weights| weights.first().copied());
        let same = weights.is_none_or(|weights| weights.iter().all(|&w| Some(w) == first));
        // The kernel weighs losses as it weighs gradients, and here losses are wanted as they are.
        let each = run(None, if same { first.map(|w| w as f32) } else { None });
        if let (Some(weights), false) = (weights, same) {
            let weights = context.upload(&weights.iter().map(|&w| w as f32).collect::<Vec<_>>());
            run(Some(&weights), Some(1.0));
        }
        let each = each.unwrap_or_default().into_iter().map(f64::from).collect();
        let gradient = weights.map(|_| (logits.reused(), vocab * size_of::<f32>() / size_of::<T>()));
        Losses { each, gradient }
    }
}

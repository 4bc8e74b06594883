//! An NVIDIA card: thin calls into [`tune_cuda`].
//!
//! A model's tensors are on the processor. The card has copies: of what is frozen for good, of what is trained until the tensor
//! is changed; see [`trained`]. What fails on the card comes to light when results are read: until then nothing is done any
//! more, and [`Card::check`] has the error.

mod by_experts;
mod card;
mod eight_bits;
mod gathered;
mod newest;
mod orthogonal;
mod trained;
mod weights;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, RwLock};

use candle_core::Tensor;
pub use card::Card;
use card::{Scaling, lock, of_card};
pub(crate) use eight_bits::{BlocksOnCard, Move8bit, Step8bit};
use gathered::OnTheWay;
use newest::{Newest, Step};
pub(crate) use trained::{Factor, Move, OnCard, Rule, Squares};
use tune_cuda::{Adapted, Buffer, Choice, Context, Distillation, Onto, Qkv, QkvMut, Routes, View, ViewMut};
pub(super) use weights::AT_ONCE;
use weights::{Param, fake_levels, is_in_blocks};

use super::backend::{Backend, ByExperts, Experts, Finish, Losses, Norm, Part, PartMut, Reads, Selection, Term};
use super::cpu::Cpu;
use super::new_tokens::{Answered, NewTokens};
use crate::distributed::Mesh;
use crate::kernels::attention::Attention;
use crate::kernels::fake_quant::Levels;
use crate::kernels::rope::Turn;
use crate::kernels::{Dropout, Element, Mixture, Noise, Quantized, Rotary, TokenLoss, TopRows};
use crate::models::{Activation, EmbeddingSpec, Here, Magnitude, ParamId};
use crate::{Later, Result};

/// Rows of logits that exist at a time, at most: 1 GiB in f32, so that a product with the output layer is limited by arithmetic, and not
/// by reading its weight. Twice as many where that weight is trained: each time its gradient is read and written, which are four
/// times as many bytes.
pub(super) fn rows_at_once(vocab: usize, trained: bool) -> usize {
    let (numbers, most) = if trained { (512 << 20, 8192) } else { (256 << 20, 4096) };
    (numbers / vocab).clamp(16, most)
}

/// Bytes of logits that are read by pinned memory, at most.
const READ_PINNED: usize = 4 << 20;

/// Weights and activations of type `T` on a card, sums in f32.
pub(super) struct Cuda<T> {
    card: Arc<Card>,
    /// Gradients that earlier micro-batches have begun.
    begun: Mutex<BTreeMap<ParamId, Buffer<f32>>>,
    /// Steps of newest tokens that are done again, and the one that is computed.
    newest: Mutex<Newest>,
    step: RwLock<Option<Step>>,
    of: PhantomData<T>,
}

/// A type of numbers here and on a card.
pub(super) trait Number: Element + tune_cuda::Element {}
impl<T: Element + tune_cuda::Element> Number for T {}

impl<T> Cuda<T> {
    pub(super) fn new(card: Arc<Card>) -> Self {
        Self { card, begun: Mutex::default(), newest: Mutex::default(), step: RwLock::default(), of: PhantomData }
    }

    /// Has the next gradient of a parameter be added to this one.
    pub(super) fn begin(&self, id: ParamId, gradient: Buffer<f32>) {
        lock(&self.begun).insert(id, gradient);
    }

    /// What was begun and found no other gradient.
    pub(super) fn unused(&self) -> BTreeMap<ParamId, Buffer<f32>> {
        std::mem::take(&mut *lock(&self.begun))
    }

    /// Sums as they are; not-a-number for each if they cannot be had, for which the context has the reason.
    pub(super) fn read(&self, x: &Buffer<f32>) -> Vec<f32> {
        self.context().download(x).unwrap_or_else(|_| vec![f32::NAN; x.len()])
    }

    fn context(&self) -> &Context {
        &self.card.context
    }

    fn floats(&self, numbers: &[f64]) -> Buffer<f32> {
        self.context().upload_ahead(&numbers.iter().map(|&x| x as f32).collect::<Vec<_>>())
    }

    fn rows(&self, rows: &[usize]) -> Arc<Buffer<u32>> {
        let upload = || self.context().upload_ahead(&rows.iter().map(|&row| row as u32).collect::<Vec<_>>());
        self.of_step(|step| step.list(rows)).unwrap_or_else(|| upload().into())
    }
}

impl<'m, T: Number> Reads<'m> for Cuda<T> {
    fn param(&self, tensor: &'m Tensor) -> Result<Self::Param> {
        let param = match tensor.is_variable() {
            true => self.card.trained(tensor)?,
            false => self.card.frozen(tensor)?,
        };
        self.card.check()?;
        Ok(Param::Numbers(param))
    }

    fn quantized(&self, of: &'m Quantized) -> Result<Self::Param> {
        let blocks = self.card.blocks(of)?;
        self.card.check()?;
        Ok(Param::Blocks(blocks))
    }

    type OnTheWay = OnTheWay<T>;
    type Gathered = Param<T>;

    fn keep(&self, here: &Here) -> Result<()> {
        self.read_part(here)
    }

    fn bring(&self, mesh: &Mesh, of: &str, here: &[Here]) -> Result<OnTheWay<T>> {
        self.gather_parts(mesh, of, here)
    }

    fn arrived(&self, on_the_way: OnTheWay<T>) -> Result<Vec<Param<T>>> {
        self.arrived_parts(on_the_way)
    }

    fn gathered(&self, of: Param<T>) -> Result<Param<T>> {
        Ok(of)
    }

    fn scaling(&self, of: &'m Magnitude) -> Result<Scaling> {
        self.card.scaling(of)
    }

    fn newest(&self, new: &NewTokens<'_>, compute: &mut dyn FnMut() -> Result<Buffer<f32>>) -> Result<Answered> {
        self.newest_step(new, compute)
    }

    fn numbers(&self, x: &Buffer<f32>) -> Vec<f32> {
        // By pinned memory, which is as large as what was ever read by it.
        match x.len() * size_of::<f32>() <= READ_PINNED {
            true => self.context().read_later(x).wait().unwrap_or_else(|_| vec![f32::NAN; x.len()]),
            false => self.read(x),
        }
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

/// The products of a sum in the order in which they are added: what adapters make comes first. It is small, so that less is lost when
/// it is rounded, and the large product, which arithmetic limits, has the time to read it.
fn small_first<'t, 'a, T: Number>(terms: &'t [Term<'a, Cuda<T>>]) -> Vec<&'t Term<'a, Cuda<T>>> {
    let mut terms: Vec<_> = terms.iter().collect();
    terms.sort_by_key(|term| term.sides().inner);
    terms
}

pub(super) fn attention(how: &Attention<'_>) -> tune_cuda::Attention {
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

fn distillation(mixture: Mixture) -> Distillation {
    let [forward, _] = mixture.shares();
    // What lies between two takes a part of each: a share that f32 would round to all of one is the nearest below.
    let most = if mixture.middle().is_some() { 1f32.next_down() } else { 1.0 };
    Distillation {
        ratio: mixture.ratio as f32,
        forward: (forward as f32).min(most),
        temperature: mixture.temperature() as f32,
        from_middle: mixture.middle().is_some(),
    }
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

impl<T: Number> Cuda<T> {
    fn drop_rows(
        &self,
        x: View<'_, T>,
        dropout: Dropout,
        rows: Option<Selection<'_, Self>>,
        onto: Onto<'_, T>,
        y: ViewMut<'_, T>,
    ) {
        let (p, key) = dropout.parts();
        let brought = if let Some(Selection::Tokens(rows)) = rows { Some(self.rows(rows)) } else { None };
        let rows = match rows {
            Some(Selection::Places { routes, first, count }) => Some(routes.tokens().part(first, (1, count), count)),
            _ => brought.as_deref().map(|rows| rows.part(0, (1, rows.len()), rows.len())),
        };
        self.context().dropped(x, tune_cuda::Dropout { p, key }, rows, onto, y);
    }
}

impl<T: Number> Backend for Cuda<T> {
    type Acts = Buffer<T>;
    type Sums = Buffer<f32>;
    type Param = Param<T>;
    type Each = Buffer<f32>;
    type Scaling = Scaling;
    type Routes = Routes;

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

    fn begun(&self, id: ParamId) -> Option<Buffer<f32>> {
        lock(&self.begun).remove(&id)
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
        let identity = self.context().upload_ahead(&identity);
        let term = tune_cuda::Term::Across { g: x.view(cols), x: identity.view(rows) };
        self.context().multiply(term, 1.0, None, Onto::Nothing, y.view_mut(rows));
    }

    fn multiply(&self, terms: &[Term<'_, Self>], finish: Finish<'_, Self>, y: PartMut<'_, Buffer<T>>) {
        let mut bias = None;
        match finish {
            Finish::Plus(all, 0) if all.numbers().len() == y.cols && !terms.iter().any(is_in_blocks) => {
                bias = Some(all.numbers());
            }
            Finish::Plus(all, first) => {
                let PartMut { of, at, rows, cols, stride } = y;
                self.multiply(terms, Finish::Store, PartMut { of: &mut *of, at, rows, cols, stride });
                return self.add_bias(all, first, PartMut { of, at, rows, cols, stride });
            }
            _ => {}
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
                return self.drop_rows(sums.view(n), dropout, rows, Onto::Itself, y);
            }
        };
        for (i, term) in small_first(terms).into_iter().enumerate() {
            let onto = if i == 0 { first } else { Onto::Itself };
            self.multiply_one(term, factor, bias.take(), onto, y.reborrow());
        }
    }

    fn multiply_sums(&self, terms: &[Term<'_, Self>], adding: bool, y: PartMut<'_, Buffer<f32>>) {
        let mut y = view_mut(y);
        for (i, term) in small_first(terms).into_iter().enumerate() {
            let onto = if i == 0 && !adding { Onto::Nothing } else { Onto::Itself };
            self.multiply_one(term, 1.0, None, onto, y.reborrow());
        }
    }

    fn lookup(&self, table: &Param<T>, width: usize, ids: &[u32], how: EmbeddingSpec, y: &mut Buffer<T>) {
        self.rows_of_table(table, width, ids, how, y);
    }

    /// It is drawn on the processor.
    fn add_noise(&self, noise: &Noise, x: &mut Buffer<T>) {
        let (width, nothing) = (noise.width(), tune_cuda::Dropout { p: 0.0, key: 0 });
        let noise = self.context().upload_ahead(&noise.numbers::<T>());
        self.context().dropped(noise.view(width), nothing, None, Onto::Itself, x.view_mut(width));
    }

    fn lookup_back(&self, g: &Buffer<T>, width: usize, ids: &[u32], how: EmbeddingSpec, table: &mut Buffer<f32>) {
        let rows: Vec<usize> = (0..ids.len()).filter(|&i| Some(ids[i]) != how.padding).collect();
        let ids: Vec<u32> = rows.iter().map(|&row| ids[row]).collect();
        let (mut some, factor) = (self.acts(rows.len(), width), scale::<T>(how));
        self.gather(g, width, &rows, &mut some);
        self.context().lookup_back(some.view(width), &self.context().group(&ids), factor, table.view_mut(width));
    }

    /// As one more product, with a column of ones.
    fn add_bias(&self, bias: &Param<T>, first: usize, y: PartMut<'_, Buffer<T>>) {
        let ones = self.card.ones::<T>(y.rows);
        let w = bias.numbers().part(first, (y.cols, 1), 1);
        let term = tune_cuda::Term::Up { x: ones.part(0, (y.rows, 1), 1), w };
        self.context().multiply(term, 1.0, None, Onto::Itself, view_mut(y));
    }

    fn bias_back(&self, g: Part<'_, Buffer<T>>, first: usize, own: &mut Buffer<f32>) {
        self.context().sum_rows(view(g), own.part_mut(first, (1, g.cols), g.cols));
    }

    fn gather(&self, x: &Buffer<T>, width: usize, rows: &[usize], y: &mut Buffer<T>) {
        self.context().gather(x.view(width), &self.rows(rows), y.view_mut(width));
    }

    fn scatter(&self, x: &Buffer<T>, width: usize, rows: &[usize], y: &mut Buffer<T>) {
        self.context().scatter(x.view(width), &self.rows(rows), false, y.view_mut(width));
    }

    fn put_columns(&self, x: &Buffer<f32>, columns: &[u32], y: PartMut<'_, Buffer<f32>>) {
        self.context().put_columns(x, &self.context().upload_ahead(columns), view_mut(y));
    }

    fn take_columns(&self, x: PartMut<'_, Buffer<T>>, columns: &[u32], y: &mut Buffer<T>) {
        self.context().take_columns(view_mut(x), &self.context().upload_ahead(columns), y);
    }

    fn norm(
        &self,
        x: Part<'_, Buffer<T>>,
        weight: &Param<T>,
        how: Norm,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        self.context().norm(view(x), weight.numbers(), norm(how), None, onto.map(view), view_mut(y));
    }

    fn norm_back(
        &self,
        x: Part<'_, Buffer<T>>,
        weight: &Param<T>,
        how: Norm,
        g: Part<'_, Buffer<T>>,
        onto: PartMut<'_, Buffer<T>>,
        mut own: Option<&mut Buffer<f32>>,
    ) {
        if let Some(own) = own.as_deref_mut() {
            self.clear(own);
        }
        self.context().norm_back(view(x), weight.numbers(), norm(how), view(g), (view_mut(onto), true), own);
    }

    fn rotate(&self, x: PartMut<'_, Buffer<T>>, angles: &Rotary, turn: Turn) {
        let tables = self.of_step(|step| step.angles(angles)).unwrap_or_else(|| self.card.angles(angles));
        let half = angles.turned / 2;
        let turn = match turn {
            Turn::Forward => tune_cuda::Turn::Forward,
            Turn::Back => tune_cuda::Turn::Back,
        };
        let tables = (tables.cos.view(half), tables.sin.view(half));
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

    fn dropped(&self, x: Part<'_, Buffer<T>>, dropout: Dropout, rows: Option<Selection<'_, Self>>, y: &mut Buffer<T>) {
        self.drop_rows(view(x), dropout, rows, Onto::Nothing, y.view_mut(x.cols));
    }

    fn rounded(&self, weight: &Param<T>, (rows, cols): (usize, usize), levels: Levels) -> Result<Param<T>> {
        let Some(levels) = fake_levels(levels) else {
            return Ok(Param::Numbers(Arc::clone(weight.shared())));
        };
        let mut rounded = self.context().buffer(rows * cols);
        self.context().round_weight(levels, weight.numbers(), &mut rounded);
        Ok(Param::Numbers(Arc::new(rounded)))
    }

    fn rounded_back(&self, weight: &Param<T>, levels: Levels, g: &mut Buffer<f32>) {
        if let Some(levels) = fake_levels(levels) {
            self.context().round_weight_back(levels, weight.numbers(), g);
        }
    }

    fn round_tokens(&self, x: Part<'_, Buffer<T>>, y: PartMut<'_, Buffer<T>>) {
        self.context().round_rows(view(x), view_mut(y));
    }

    fn round_tokens_back(&self, x: Part<'_, Buffer<T>>, onto: Option<Part<'_, Buffer<T>>>, g: PartMut<'_, Buffer<T>>) {
        self.context().round_rows_back(view(x), onto.map(view), view_mut(g));
    }

    fn attend(
        &self,
        how: &Attention<'_>,
        [q, k, v]: [Part<'_, Buffer<T>>; 3],
        y: PartMut<'_, Buffer<T>>,
        lse: &mut Buffer<f32>,
    ) {
        let of_step = self.of_step(|step| step.spans(how, k.rows));
        let spans = of_step.unwrap_or_else(|| self.card.spans(how, y.rows, k.rows));
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
        let spans = self.card.spans(how, y.rows, k.rows);
        let qkv = Qkv { q: view(q), k: view(k), v: view(v) };
        let [q, k, v] = gqkv.map(view_mut);
        let into = QkvMut { q, k, v };
        self.context().attend_back(&attention(how), &spans, qkv, (view(y), lse), view(g), into);
    }

    fn rescale(
        &self,
        scaling: &mut Scaling,
        b: &Param<T>,
        (with_weight, with_itself): (&Buffer<f32>, &Buffer<f32>),
        _: usize,
        scale: f64,
    ) {
        let squares = Arc::clone(&scaling.squares);
        let of = Adapted { b: b.numbers(), squares: &squares, with_weight, with_itself, scale: scale as f32 };
        self.card.rescale(scaling, of);
    }

    fn is_scaled(&self, scaling: &Scaling) -> bool {
        scaling.is_scaled()
    }

    fn scale_columns(
        &self,
        (by, first): (&Scaling, usize),
        x: Option<Part<'_, Buffer<T>>>,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        self.context().scale_columns(by.factors(first, y.cols), x.map(view), onto.map(view), view_mut(y));
    }

    fn scale_sums(&self, by: &Scaling, y: PartMut<'_, Buffer<f32>>) {
        self.context().scale_columns(by.factors(0, y.cols), None, None, view_mut(y));
    }

    fn magnitude_back(
        &self,
        (by, first): (&Scaling, usize),
        g: Part<'_, Buffer<T>>,
        x: Part<'_, Buffer<T>>,
        own: &mut Buffer<f32>,
    ) {
        let y = own.part_mut(first, (1, g.cols), g.cols);
        self.context().column_dots(view(g), view(x), by.inverses(first, g.cols), y);
    }

    fn route(&self, logits: &Buffer<f32>, _: usize, how: Experts, asks: bool) -> Routes {
        let Experts { count, chosen, renormalized } = how;
        let mut routes = self.context().route(logits.view(count), Choice { count, chosen, renormalized });
        if asks {
            self.context().ask_starts(&mut routes);
        }
        routes
    }

    /// The shapes of the products of experts, which cuBLASLt is told by the processor. Where they cannot be had any more, nothing is
    /// computed, and any will do.
    fn starts(&self, routes: &mut Routes) -> Vec<usize> {
        let places = routes.len();
        self.context().starts(routes).map_or_else(|_| vec![0, places], <[usize]>::to_vec)
    }

    /// In steps that may be recorded, whose weights stay where they are.
    fn has_few_places(&self, places: usize, experts: usize) -> bool {
        places <= tune_cuda::few_places(experts) && self.of_step(|_| Some(())).is_some()
    }

    fn multiply_places(&self, routes: &Routes, by: ByExperts<'_, Self>) {
        self.by_experts(routes, by);
    }

    /// To find them again is to wait again.
    fn keeps_routes(&self) -> bool {
        true
    }

    fn route_back(&self, logits: &Buffer<f32>, how: Experts, routes: &Routes, g: &Buffer<f32>, y: &mut Buffer<T>) {
        self.context().route_back(logits.view(how.count), routes, g, y.view_mut(how.count));
    }

    fn to_places(&self, x: &Buffer<T>, width: usize, routes: &Routes, y: &mut Buffer<T>) {
        self.context().gather(x.view(width), routes.tokens(), y.view_mut(width));
    }

    fn combine(
        &self,
        x: Part<'_, Buffer<T>>,
        routes: &Routes,
        weighted: bool,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        let weights = weighted.then(|| routes.weights());
        self.context().combine(view(x), routes.places(), weights, onto.map(view), view_mut(y));
    }

    fn weigh_places(&self, x: PartMut<'_, Buffer<T>>, routes: &Routes) {
        self.context().scale_rows(view_mut(x), routes.weights_of_places());
    }

    fn row_dots(&self, a: Part<'_, Buffer<T>>, b: Part<'_, Buffer<T>>) -> Buffer<f32> {
        let mut dots = self.context().buffer(a.rows);
        self.context().row_dots(view(a), view(b), &mut dots);
        dots
    }

    fn cap(&self, logits: &mut Buffer<f32>, cap: f64) {
        self.context().softcap(logits, cap as f32);
    }

    fn multiply_logits(&self, logits: &mut Buffer<f32>, vocab: usize, factor: f64) {
        let view = logits.view_mut(vocab);
        let factors = vec![factor; view.shape().0];
        self.context().scale_rows(view, &self.floats(&factors));
    }

    fn loss(
        &self,
        mut logits: Buffer<f32>,
        vocab: usize,
        cap: Option<f64>,
        of: TokenLoss,
        targets: &[u32],
        weights: Option<&[f64]>,
    ) -> Losses<Self> {
        let how = tune_cuda::TokenLoss {
            smoothing: of.label_smoothing as f32,
            z: of.z_loss as f32,
            softcap: cap.map(|cap| cap as f32),
        };
        let context = self.context();
        let on_card = context.upload_ahead(targets);
        let mut each = context.buffer::<f32>(targets.len());
        let mut run = |weights: Option<&Buffer<f32>>, scale, losses: &mut Buffer<f32>| {
            let view = logits.view_mut(vocab);
            context.cross_entropy::<f32, T>(view, &on_card, weights, scale, None, how, losses);
        };
        let first = weights.and_then(|weights| weights.first().copied());
        let same = weights.is_none_or(|weights| weights.iter().all(|&w| Some(w) == first));
        run(None, if same { first.map(|w| w as f32) } else { None }, &mut each);
        if let (Some(weights), false) = (weights, same) {
            let weights = context.upload_ahead(&weights.iter().map(|&w| w as f32).collect::<Vec<_>>());
            // The kernel weighs losses as it weighs gradients, and losses are wanted as they are.
            let mut weighed = context.buffer(targets.len());
            run(Some(&weights), Some(1.0), &mut weighed);
        }
        let gradient = weights.map(|_| (logits.reused(), vocab * size_of::<f32>() / size_of::<T>()));
        Losses { each, gradient }
    }

    fn distilled(
        &self,
        (mut logits, teacher): (Buffer<f32>, Buffer<f32>),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Buffer<f32>) {
        let (context, how) = (self.context(), distillation(mixture));
        let (on_card, scales) = (context.upload_ahead(targets), weights.map(|weights| self.floats(weights)));
        let [mut each, mut divergences] = [(); 2].map(|()| context.buffer::<f32>(targets.len()));
        context.distill::<T>(
            (logits.view_mut(vocab), teacher.view(vocab)),
            &on_card,
            (how, cap.map(|cap| cap as f32)),
            scales.as_ref(),
            (&mut each, &mut divergences),
        );
        let gradient = weights.map(|_| (logits.reused(), vocab * size_of::<f32>() / size_of::<T>()));
        (Losses { each, gradient }, divergences)
    }

    fn distilled_by_top(
        &self,
        (mut logits, said): (Buffer<f32>, TopRows<'_>),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Buffer<f32>) {
        let (context, how) = (self.context(), distillation(mixture));
        let (on_card, scales) = (context.upload_ahead(targets), weights.map(|weights| self.floats(weights)));
        let [log_probs, rest] = [said.log_probs, said.rest].map(|numbers| context.upload_ahead(numbers));
        let teacher = tune_cuda::Top { ids: &context.upload_ahead(said.ids), log_probs: &log_probs, rest: &rest };
        let [mut each, mut divergences] = [(); 2].map(|()| context.buffer::<f32>(targets.len()));
        context.distill_top::<T>(
            (logits.view_mut(vocab), teacher),
            &on_card,
            (how, cap.map(|cap| cap as f32)),
            scales.as_ref(),
            (&mut each, &mut divergences),
        );
        let gradient = weights.map(|_| (logits.reused(), vocab * size_of::<f32>() / size_of::<T>()));
        (Losses { each, gradient }, divergences)
    }

    fn losses(&self, each: Buffer<f32>) -> Vec<f64> {
        self.read(&each).into_iter().map(f64::from).collect()
    }

    fn total(&self, all: Vec<Buffer<f32>>) -> Later {
        if all.is_empty() {
            return 0.0.into();
        }
        let parts: Vec<_> = all.iter().map(|each| self.context().read_later(each)).collect();
        Later::of(move || {
            let mut total = 0.0;
            for part in &parts {
                total += part.wait().map_err(of_card)?.into_iter().map(f64::from).sum::<f64>();
            }
            Ok(total)
        })
    }

    fn read_sums(&self, x: &Buffer<f32>, count: usize) -> Vec<f64> {
        self.read(x).into_iter().take(count).map(f64::from).collect()
    }

    fn given(&self, numbers: &[f64]) -> Buffer<T> {
        let mut given = self.context().buffer(numbers.len());
        self.context().write(&mut given, &Cpu::<T>::new().given(numbers));
        given
    }

    fn wants_wide(&self) -> bool {
        false
    }

    fn rows_at_once(&self, vocab: usize, trained: bool) -> usize {
        rows_at_once(vocab, trained)
    }
}

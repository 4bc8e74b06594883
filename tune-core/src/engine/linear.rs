//! A linear layer forward and back, with or without bias and adapter.
//!
//! A layer may make several results (queries, keys and values, where they are stored as one layer): its parts, rows of its
//! weight. Each is a matrix of its own.

mod back;

use super::backend::{Backend, Finish, Part, PartMut, Selection, Term, Weight};
use super::parameters::{AdapterParams, LayerParams, TokenParams};
use crate::models::EmbeddingSpec;

pub(super) use back::{Back, input_gradient};

/// `scale · dropout(x) Aᵀ`, `[m, rank]`: what an adapter makes of its input on the way. `None` without an adapter.
pub(super) type LowRank<B> = Option<<B as Backend>::Acts>;

impl<B: Backend> LayerParams<B> {
    /// What it is computed with, where that is no more than a weight that is numbers, and an adapter: many such layers that are alike
    /// can be computed at once.
    pub(super) fn plain(&self) -> Option<Plain> {
        let Self { quantized, bias, exact, tokens, adapter, out, inner, .. } = self;
        let is_plain = |adapter: &AdapterParams<B>| adapter.scaling.is_none() && adapter.dropout.is_none();
        let of_itself = !quantized && bias.is_none() && exact.is_none() && tokens.is_none();
        (of_itself && adapter.as_ref().is_none_or(is_plain)).then(|| Plain {
            out: *out,
            inner: *inner,
            adapter: adapter.as_ref().map(|adapter| (adapter.rank, adapter.scale)),
        })
    }

    /// The same with results that are scaled. The norms are those of this moment: `‖W + s B A‖² = ‖W‖² + 2 s B (A Wᵀ) + s² B (A Aᵀ) Bᵀ`,
    /// row by row, which takes a product with `W` for as many rows as the adapter has ranks, and never the sum itself.
    pub(super) fn scaled_by(mut self, backend: &B, mut scaling: B::Scaling) -> Self {
        if let (Some(adapter), false) = (&self.adapter, backend.is_scaled(&scaling)) {
            let layer = Layer { backend, params: &self };
            let (rank, inner, out) = (adapter.rank, self.inner, self.out);
            let mut a = backend.acts(rank, inner);
            let rows: Vec<u32> = (0..rank as u32).collect();
            backend.lookup(&adapter.a, inner, &rows, EmbeddingSpec::default(), &mut a);
            let product = |w, cols| {
                let mut y = backend.sums(rank, cols);
                let term = Term::Up { x: Part::new(&a, rank, inner), w };
                backend.multiply_sums(&[term], false, PartMut::new(&mut y, rank, cols));
                y
            };
            let (with_weight, with_itself) = (product(layer.weight((0, out)), out), product(layer.a(adapter), rank));
            backend.rescale(&mut scaling, &adapter.b, (&with_weight, &with_itself), rank, adapter.scale);
        }
        if let Some(adapter) = &mut self.adapter {
            adapter.scaling = Some(scaling);
        }
        self
    }
}

/// An input `[m, in]` of layers: for adapters as it is, for weights rounded where these are given it so.
pub(super) struct Fed<'x, B: Backend> {
    plain: Part<'x, B::Acts>,
    rounded: Option<B::Acts>,
}

impl<'x, B: Backend> Fed<'x, B> {
    /// Rounded as the weight of `layer` is given it, and with it those of all layers with this input. `None` where no weight asks.
    pub(super) fn of(layer: Option<Layer<'_, B>>, x: Part<'x, B::Acts>) -> Self {
        let rounded = layer.filter(Layer::rounds_inputs).map(|layer| {
            let mut rounded = layer.backend.acts(x.rows, x.cols);
            layer.backend.round_tokens(x, PartMut::new(&mut rounded, x.rows, x.cols));
            rounded
        });
        Self { plain: x, rounded }
    }

    fn to_weights(&self) -> Part<'_, B::Acts> {
        let Part { rows, cols, .. } = self.plain;
        self.rounded.as_ref().map_or(self.plain, |rounded| Part::new(rounded, rows, cols))
    }
}

/// The shape of a layer, and the rank and the scale of its adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Plain {
    pub(super) out: usize,
    pub(super) inner: usize,
    pub(super) adapter: Option<(usize, f64)>,
}

/// A layer in use.
pub(super) struct Layer<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) params: &'a LayerParams<B>,
}

impl<B: Backend> Clone for Layer<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Layer<'_, B> {}

impl<'a, B: Backend> Layer<'a, B> {
    pub(super) fn inner(&self) -> usize {
        self.params.inner
    }

    pub(super) fn out(&self) -> usize {
        self.params.out
    }

    /// Whether nothing of it is trained.
    pub(super) fn is_frozen(&self) -> bool {
        self.params.adapter.is_none() && !self.params.trained
    }

    /// Whether the input of its weight is rounded. An adapter is given the input as it is.
    fn rounds_inputs(&self) -> bool {
        self.params.exact.as_ref().is_some_and(|exact| exact.rounds_inputs)
    }

    /// An input of this layer alone.
    pub(super) fn fed<'x>(&self, x: Part<'x, B::Acts>) -> Fed<'x, B> {
        Fed::of(Some(*self), x)
    }

    /// The same for the backward pass: a weight that is not trained does not ask what its input was.
    pub(super) fn fed_back<'x>(&self, x: Part<'x, B::Acts>) -> Fed<'x, B> {
        Fed::of(self.params.trained.then_some(*self), x)
    }

    /// The results: the first row of the weight for each, and how many.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, usize)> + use<'a, B> {
        self.params.parts.iter().scan(0, |next, &rows| {
            *next += rows;
            Some((*next - rows, rows))
        })
    }

    fn weight(&self, (first, out): (usize, usize)) -> Weight<'a, B> {
        let LayerParams { weight: param, inner, quantized, .. } = self.params;
        Weight { param, first, out, inner: *inner, quantized: *quantized }
    }

    /// What the adapter makes of `x` `[m, in]`, whose rows count as the tokens that `rows` says for its dropout.
    pub(super) fn low_rank(&self, x: Part<'_, B::Acts>, rows: Option<Selection<'_, B>>) -> LowRank<B> {
        let adapter = self.params.adapter.as_ref()?;
        let dropped = self.drop(adapter, x, rows);
        let x = dropped.as_ref().map_or(x, |dropped| Part::new(dropped, x.rows, x.cols));
        let mut h = self.backend.acts(x.rows, adapter.rank);
        let y = PartMut::new(&mut h, x.rows, adapter.rank);
        self.backend.multiply(&[Term::Up { x, w: self.a(adapter) }], Finish::Scaled(adapter.scale), y);
        Some(h)
    }

    /// `x Wᵀ`, the bias and the adapter's update, for `x` `[m, in]`, into `y` `[m, out]`.
    pub(super) fn forward(&self, x: &B::Acts, m: usize, low_rank: &LowRank<B>, finish: Finish<'_, B>, y: &mut B::Acts) {
        self.forward_part(
            &self.fed(Part::new(x, m, self.inner())),
            low_rank,
            (0, self.out()),
            finish,
            PartMut::new(y, m, self.out()),
        );
    }

    /// The same for one of its results.
    pub(super) fn forward_part(
        &self,
        x: &Fed<'_, B>,
        low_rank: &LowRank<B>,
        part: (usize, usize),
        finish: Finish<'_, B>,
        mut y: PartMut<'_, B::Acts>,
    ) {
        // Once for all of its results.
        if part.0 == 0 {
            self.observe(x);
        }
        let (terms, count) = self.up(x.to_weights(), low_rank, part);
        if let Some(scaling) = self.scaling() {
            self.backend.multiply(&terms[..count], Finish::Store, y.again());
            let onto = if let Finish::Onto(onto) = finish { Some(onto) } else { None };
            self.backend.scale_columns((scaling, part.0), None, onto, y.again());
            if let Some(bias) = &self.params.bias {
                self.backend.add_bias(bias, part.0, y);
            }
            return;
        }
        match (&self.params.bias, finish) {
            (Some(bias), Finish::Store) => {
                let finish = Finish::Plus(bias, part.0);
                self.backend.multiply(&terms[..count], finish, y);
            }
            (Some(bias), finish) => {
                self.backend.multiply(&terms[..count], finish, y.again());
                self.backend.add_bias(bias, part.0, y);
            }
            (None, finish) => self.backend.multiply(&terms[..count], finish, y),
        }
    }

    /// `x Wᵀ` and the adapter's update in the type of sums.
    pub(super) fn forward_sums(&self, x: &B::Acts, m: usize, low_rank: &LowRank<B>, y: &mut B::Sums) {
        let x = self.fed(Part::new(x, m, self.inner()));
        self.observe(&x);
        let (terms, count) = self.up(x.to_weights(), low_rank, (0, self.out()));
        self.backend.multiply_sums(&terms[..count], false, PartMut::new(y, m, self.out()));
        if let Some(scaling) = self.scaling() {
            self.backend.scale_sums(scaling, PartMut::new(y, m, self.out()));
        }
        if let Some(tokens) = &self.params.tokens {
            let mut own = self.backend.sums(m, tokens.ids.len());
            let term = Term::Up { x: x.to_weights(), w: self.rows(tokens) };
            self.backend.multiply_sums(&[term], false, PartMut::new(&mut own, m, tokens.ids.len()));
            self.backend.put_columns(&own, &tokens.ids, PartMut::new(y, m, self.out()));
        }
    }

    /// Tells whoever asks what it is given.
    fn observe(&self, x: &Fed<'_, B>) {
        if let Some(place) = self.params.place {
            self.backend.observe(place, x.plain);
        }
    }

    /// What its results are scaled by.
    fn scaling(&self) -> Option<&'a B::Scaling> {
        self.params.adapter.as_ref()?.scaling.as_ref()
    }

    /// The terms of the forward pass, and how many they are.
    fn up<'t>(&self, x: Part<'t, B::Acts>, low_rank: &'t LowRank<B>, part: (usize, usize)) -> ([Term<'t, B>; 2], usize)
    where
        'a: 't,
    {
        let base = || Term::Up { x, w: self.weight(part) };
        match (low_rank, &self.params.adapter) {
            (Some(h), Some(adapter)) => {
                ([base(), Term::Up { x: Part::new(h, x.rows, adapter.rank), w: self.b(adapter, part) }], 2)
            }
            _ => ([base(), base()], 1),
        }
    }

    /// The input `[m, in]` of an adapter with dropout.
    fn drop(
        &self,
        adapter: &AdapterParams<B>,
        x: Part<'_, B::Acts>,
        rows: Option<Selection<'_, B>>,
    ) -> Option<B::Acts> {
        let dropout = adapter.dropout?;
        let mut y = self.backend.acts(x.rows, x.cols);
        self.backend.dropped(x, dropout, rows, &mut y);
        Some(y)
    }

    fn a(&self, adapter: &'a AdapterParams<B>) -> Weight<'a, B> {
        Weight { param: &adapter.a, first: 0, out: adapter.rank, inner: self.params.inner, quantized: false }
    }

    fn rows(&self, tokens: &'a TokenParams<B>) -> Weight<'a, B> {
        Weight { param: &tokens.rows, first: 0, out: tokens.ids.len(), inner: self.params.inner, quantized: false }
    }

    fn b(&self, adapter: &'a AdapterParams<B>, (first, out): (usize, usize)) -> Weight<'a, B> {
        Weight { param: &adapter.b, first, out, inner: adapter.rank, quantized: false }
    }
}

//! The way back through a linear layer: the gradients of what is trained of it, and that of its input.

use super::{Fed, Layer, LowRank};
use crate::engine::backend::{Backend, Finish, Part, PartMut, Selection, Term};
use crate::engine::parameters::TokenParams;
use crate::engine::run::Found;
use crate::models::{Of, ParamId};

impl<'a, B: Backend> Layer<'a, B> {
    /// Adds to `found` the gradients of what is trained, for the input `x` `[m, in]`, whose rows count as the tokens that `rows` says for
    /// dropout; `id` names them.
    pub(in crate::engine) fn train(
        &self,
        back: &Back<'_, B>,
        x: &Fed<'_, B>,
        low_rank: &LowRank<B>,
        rows: Option<Selection<'_, B>>,
        id: impl Fn(Of) -> ParamId,
        found: &mut Found<B>,
    ) {
        if self.params.trained {
            let begun = self.backend.begun(id(Of::Weight));
            let adding = begun.is_some();
            let mut gradient = begun.unwrap_or_else(|| self.backend.gradient(self.out(), self.inner()));
            for (&g, part) in back.gradients.iter().zip(self.parts()) {
                self.weight_gradient(x, g, part.0, adding, &mut gradient);
            }
            self.limit(&mut gradient);
            found.push((id(Of::Weight), gradient));
            if self.params.bias.is_some() {
                let mut gradient = self.backend.gradient(1, self.out());
                for (&g, part) in back.gradients.iter().zip(self.parts()) {
                    self.backend.bias_back(g, part.0, &mut gradient);
                }
                found.push((id(Of::Bias), gradient));
            }
        }
        let of_adapter = self.adapter_gradients(back, x.plain, low_rank, rows);
        found.extend(of_adapter.into_iter().flatten().map(|(of, gradient)| (id(of), gradient)));
    }

    /// Adds to `found` gradients of zero of what is trained, where there is no input.
    pub(in crate::engine) fn train_on_nothing(&self, id: impl Fn(Of) -> ParamId, found: &mut Found<B>) {
        let bias = self.params.bias.as_ref().map(|_| (Of::Bias, self.zeros(1, self.out())));
        let own = self.params.trained.then(|| (Of::Weight, self.zeros(self.out(), self.inner())));
        let own = own.into_iter().chain(bias.filter(|_| self.params.trained));
        let all = own.chain(self.no_adapter_gradients().into_iter().flatten());
        found.extend(all.map(|(of, gradient)| (id(of), gradient)));
    }

    /// What [`Layer::adapter_gradients`] are without an input.
    pub(in crate::engine) fn no_adapter_gradients(&self) -> Option<Vec<(Of, B::Sums)>> {
        let adapter = self.params.adapter.as_ref()?;
        let matrices =
            [(Of::LoraA, self.zeros(adapter.rank, self.inner())), (Of::LoraB, self.zeros(self.out(), adapter.rank))];
        let magnitudes = adapter.scaling.as_ref().map(|_| (Of::LoraMagnitude, self.zeros(1, self.out())));
        Some(matrices.into_iter().chain(magnitudes).collect())
    }

    fn zeros(&self, rows: usize, cols: usize) -> B::Sums {
        let mut zeros = self.backend.gradient(rows, cols);
        self.backend.clear(&mut zeros);
        zeros
    }

    /// The weight's gradient `gᵀ x`, the rows from `first` on, which is stored or added.
    pub(in crate::engine) fn weight_gradient(
        &self,
        x: &Fed<'_, B>,
        g: Part<'_, B::Acts>,
        first: usize,
        adding: bool,
        gradient: &mut B::Sums,
    ) {
        let term = Term::Across { g, x: x.to_weights() };
        self.backend.multiply_sums(&[term], adding, PartMut::rows(gradient, first, g.cols, self.inner()));
    }

    /// Turns the gradient of a weight that was rounded into that of the weight.
    pub(in crate::engine) fn limit(&self, gradient: &mut B::Sums) {
        if let Some(exact) = self.params.exact.as_ref().filter(|exact| exact.levels.are_limited()) {
            self.backend.rounded_back(&exact.weight, exact.levels, gradient);
        }
    }

    /// The gradients of the adapter's `A` `[rank, in]` and `B` `[out, rank]`, and of its magnitudes `[out]`, if it has some. For these
    /// the results are computed once more as they are before they are scaled.
    pub(in crate::engine) fn adapter_gradients(
        &self,
        back: &Back<'_, B>,
        x: Part<'_, B::Acts>,
        low_rank: &LowRank<B>,
        rows: Option<Selection<'_, B>>,
    ) -> Option<Vec<(Of, B::Sums)>> {
        let of_magnitude = self.scaling().map(|scaling| {
            let (mut own, m) = (self.backend.gradient(1, self.out()), back.rows());
            for (&g, part) in back.gradients.iter().zip(self.parts()) {
                let mut results = self.backend.acts(m, part.1);
                let (terms, count) = self.up(x, low_rank, part);
                self.backend.multiply(&terms[..count], Finish::Store, PartMut::new(&mut results, m, part.1));
                self.backend.magnitude_back((scaling, part.0), g, Part::new(&results, m, part.1), &mut own);
            }
            (Of::LoraMagnitude, own)
        });
        let (adapter, h, gh) = (self.params.adapter.as_ref()?, low_rank.as_ref()?, back.low_rank.as_ref()?);
        let (rank, m) = (adapter.rank, back.rows());
        let dropped = self.drop(adapter, x, rows);
        let x = dropped.as_ref().map_or(x, |dropped| Part::new(dropped, m, x.cols));
        let mut a = self.backend.gradient(rank, self.inner());
        let term = Term::Across { g: Part::new(gh, m, rank), x };
        self.backend.multiply_sums(&[term], false, PartMut::new(&mut a, rank, self.inner()));
        let h = Part::new(h, m, rank);
        if !self.backend.wants_wide() {
            let mut b = self.backend.gradient(self.out(), rank);
            for (g, (first, cols)) in back.gradients().zip(self.parts()) {
                let y = PartMut::rows(&mut b, first, cols, rank);
                self.backend.multiply_sums(&[Term::Across { g, x: h }], false, y);
            }
            return Some([(Of::LoraA, a), (Of::LoraB, b)].into_iter().chain(of_magnitude).collect());
        }
        let mut transposed = self.backend.sums(rank, self.out());
        for (g, (first, cols)) in back.gradients().zip(self.parts()) {
            let term = Term::Across { g: h, x: g };
            let y = PartMut { of: &mut transposed, at: first, rows: rank, cols, stride: self.out() };
            self.backend.multiply_sums(&[term], false, y);
        }
        let mut b = self.backend.gradient(self.out(), rank);
        self.backend.transpose(&transposed, (rank, self.out()), &mut b);
        Some([(Of::LoraA, a), (Of::LoraB, b)].into_iter().chain(of_magnitude).collect())
    }

    /// Begins the backward pass for the gradients `[m, ..]` of its results.
    pub(in crate::engine) fn back<'b>(&self, gradients: Vec<Part<'b, B::Acts>>) -> Back<'b, B>
    where
        'a: 'b,
    {
        let m = gradients.first().map_or(0, |g| g.rows);
        let scaled = self.scaling().map(|scaling| {
            let scale = |(&g, part): (&Part<'b, B::Acts>, (usize, usize))| {
                let mut scaled = self.backend.acts(m, part.1);
                self.backend.scale_columns((scaling, part.0), Some(g), None, PartMut::new(&mut scaled, m, part.1));
                scaled
            };
            gradients.iter().zip(self.parts()).map(scale).collect()
        });
        let mut back =
            Back { layer: *self, gradients, scaled: scaled.unwrap_or_default(), low_rank: None, of_tokens: None };
        back.low_rank = self.params.adapter.as_ref().map(|adapter| {
            let mut gh = self.backend.acts(m, adapter.rank);
            let y = PartMut::new(&mut gh, m, adapter.rank);
            let term = |(g, part)| Term::Down { g, w: self.b(adapter, part) };
            let terms: Vec<_> = back.gradients().zip(self.parts()).map(term).collect();
            self.backend.multiply(&terms, Finish::Scaled(adapter.scale), y);
            gh
        });
        back
    }

    /// The same for rows without gaps.
    pub(in crate::engine) fn back_of<'b>(&self, gradient: &'b B::Acts, m: usize) -> Back<'b, B>
    where
        'a: 'b,
    {
        self.back(vec![Part::new(gradient, m, self.out())])
    }

    /// Moves the gradients of the results that are those of rows of single tokens out of all, `[m, out]`, into `[m, tokens]`: what is
    /// left does not reach the weight's own rows.
    pub(in crate::engine) fn take_tokens(&self, g: PartMut<'_, B::Acts>) -> Option<B::Acts> {
        let tokens = self.params.tokens.as_ref()?;
        let mut own = self.backend.acts(g.rows, tokens.ids.len());
        self.backend.take_columns(g, &tokens.ids, &mut own);
        Some(own)
    }

    /// The gradient of the rows of single tokens `[tokens, in]`, for that of their results `g` `[m, tokens]` and the input `x`, which is
    /// stored or added.
    pub(in crate::engine) fn tokens_gradient(
        &self,
        g: &B::Acts,
        x: Part<'_, B::Acts>,
        adding: bool,
        gradient: &mut B::Sums,
    ) {
        if let Some(TokenParams { ids, .. }) = &self.params.tokens {
            let term = Term::Across { g: Part::new(g, x.rows, ids.len()), x };
            self.backend.multiply_sums(&[term], adding, PartMut::new(gradient, ids.len(), self.inner()));
        }
    }
}

/// A layer on the way back: the gradients of its results, and of what its adapter makes of the input.
pub(in crate::engine) struct Back<'a, B: Backend> {
    layer: Layer<'a, B>,
    /// `[m, ..]` each.
    gradients: Vec<Part<'a, B::Acts>>,
    /// Those of results before they are scaled, where they are.
    scaled: Vec<B::Acts>,
    /// `scale · g B`, `[m, rank]`.
    low_rank: LowRank<B>,
    /// The gradients of the results of rows of single tokens, `[m, tokens]`, which are not among the others.
    of_tokens: Option<&'a B::Acts>,
}

impl<'a, B: Backend> Back<'a, B> {
    /// The same with the gradients that [`Layer::take_tokens`] took out.
    pub(in crate::engine) fn with_tokens(self, of_tokens: Option<&'a B::Acts>) -> Self {
        Self { of_tokens, ..self }
    }

    /// The part of the input's gradient that comes through rows of single tokens.
    fn through_tokens(&self) -> Option<Term<'_, B>> {
        let (g, tokens) = (self.of_tokens?, self.layer.params.tokens.as_ref()?);
        Some(Term::Down { g: Part::new(g, self.rows(), tokens.ids.len()), w: self.layer.rows(tokens) })
    }

    fn rows(&self) -> usize {
        self.gradients.first().map_or(0, |g| g.rows)
    }

    /// The gradients of what the products make, before anything is scaled.
    fn gradients(&self) -> impl Iterator<Item = Part<'_, B::Acts>> {
        self.gradients.iter().enumerate().map(|(i, &g)| match self.scaled.get(i) {
            Some(scaled) => Part::new(scaled, g.rows, g.cols),
            None => g,
        })
    }

    /// The parts of the input's gradient that come through the weight.
    fn through_weight(&self) -> impl Iterator<Item = Term<'_, B>> {
        let term = |(g, part)| Term::Down { g, w: self.layer.weight(part) };
        self.gradients().zip(self.layer.parts()).map(term)
    }

    /// The adapter's part of the input's gradient.
    fn through_adapter(&self) -> Option<Term<'_, B>> {
        let (low_rank, adapter) = (self.low_rank.as_ref()?, self.layer.params.adapter.as_ref()?);
        Some(Term::Down { g: Part::new(low_rank, self.rows(), adapter.rank), w: self.layer.a(adapter) })
    }

    /// Whether the input of its weight was rounded.
    pub(in crate::engine) fn rounds_inputs(&self) -> bool {
        self.layer.rounds_inputs()
    }

    /// Whether its adapter, if it has one, is without dropout.
    fn is_plain(&self) -> bool {
        self.layer.params.adapter.as_ref().is_none_or(|a| a.dropout.is_none())
    }
}

/// The gradient of the input `[m, in]` that several layers share, stored, or added to what is in `onto`. The input's rows count
/// as the tokens that `rows` says for dropout. Where it was rounded, `x` is the input, and in other memory than its gradient.
///
/// With dropout an adapter's part meets its own mask, and comes in a product of its own.
pub(in crate::engine) fn input_gradient<B: Backend>(
    backs: &[&Back<'_, B>],
    rows: Option<Selection<'_, B>>,
    x: Option<Part<'_, B::Acts>>,
    onto: Option<&B::Acts>,
    mut gx: PartMut<'_, B::Acts>,
) {
    let Some(first) = backs.first() else { return };
    let backend = first.layer.backend;
    let mut terms = Vec::with_capacity(2 * backs.len());
    terms.extend(backs.iter().flat_map(|back| back.through_weight()));
    let of_adapters = backs.iter().filter(|back| back.is_plain()).filter_map(|back| back.through_adapter());
    let of_adapters = of_adapters.chain(backs.iter().filter_map(|back| back.through_tokens()));
    let onto = onto.map(|onto| Part::new(onto, gx.rows, gx.cols));
    match x {
        None => {
            terms.extend(of_adapters);
            backend.multiply(&terms, onto.map_or(Finish::Store, Finish::Onto), gx.again());
        }
        // Only what comes through the weights meets the limits.
        Some(x) => {
            let of_adapters: Vec<_> = of_adapters.collect();
            if of_adapters.is_empty() {
                backend.multiply(&terms, Finish::Store, gx.again());
                backend.round_tokens_back(x, onto, gx.again());
            } else {
                let mut limited = backend.acts(gx.rows, gx.cols);
                backend.multiply(&terms, Finish::Store, PartMut::new(&mut limited, gx.rows, gx.cols));
                backend.round_tokens_back(x, onto, PartMut::new(&mut limited, gx.rows, gx.cols));
                let finish = Finish::Onto(Part::new(&limited, gx.rows, gx.cols));
                backend.multiply(&of_adapters, finish, gx.again());
            }
        }
    }
    for back in backs.iter().filter(|back| !back.is_plain()) {
        let dropout = back.layer.params.adapter.as_ref().and_then(|adapter| adapter.dropout);
        if let (Some(term), Some(dropout)) = (back.through_adapter(), dropout) {
            backend.multiply(&[term], Finish::AddDropped(dropout, rows), gx.again());
        }
    }
}

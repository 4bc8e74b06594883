//! A linear layer forward and back, with or without an adapter.

use super::backend::{Backend, Finish, Part, PartMut, Term, Weight};
use super::parameters::{AdapterParams, LayerParams, Of, ParamId};
use super::run::Found;

/// `scale · dropout(x) Aᵀ`, `[m, rank]`: what an adapter makes of its input on the way. `None` without an adapter.
pub(super) type LowRank<B> = Option<<B as Backend>::Acts>;

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

    fn weight(&self) -> Weight<'a, B> {
        Weight { param: &self.params.weight, out: self.params.out, inner: self.params.inner }
    }

    /// What the adapter makes of `x` `[m, in]`, whose rows count as `rows` for its dropout.
    pub(super) fn low_rank(&self, x: &B::Acts, m: usize, rows: Option<&[usize]>) -> LowRank<B> {
        let adapter = self.params.adapter.as_ref()?;
        let dropped = self.drop(adapter, x, m, rows);
        let x = Part::new(dropped.as_ref().unwrap_or(x), m, self.inner());
        let mut h = self.backend.acts(m, adapter.rank);
        let y = PartMut::new(&mut h, m, adapter.rank);
        self.backend.multiply(&[Term::Up { x, w: self.a(adapter) }], Finish::Scaled(adapter.scale), y);
        Some(h)
    }

    /// `x Wᵀ` and the adapter's update, for `x` `[m, in]`, into `y` `[m, out]`.
    pub(super) fn forward(
        &self,
        x: &B::Acts,
        m: usize,
        low_rank: &LowRank<B>,
        finish: Finish<'_, B::Acts>,
        y: &mut B::Acts,
    ) {
        let (terms, count) = self.up(x, m, low_rank);
        self.backend.multiply(&terms[..count], finish, PartMut::new(y, m, self.out()));
    }

    /// The same in the type of sums.
    pub(super) fn forward_sums(&self, x: &B::Acts, m: usize, low_rank: &LowRank<B>, y: &mut B::Sums) {
        let (terms, count) = self.up(x, m, low_rank);
        self.backend.multiply_sums(&terms[..count], false, PartMut::new(y, m, self.out()));
    }

    /// The terms of the forward pass, and how many they are.
    fn up<'t>(&self, x: &'t B::Acts, m: usize, low_rank: &'t LowRank<B>) -> ([Term<'t, B>; 2], usize)
    where
        'a: 't,
    {
        let base = || Term::Up { x: Part::new(x, m, self.inner()), w: self.weight() };
        match (low_rank, &self.params.adapter) {
            (Some(h), Some(adapter)) => {
                ([base(), Term::Up { x: Part::new(h, m, adapter.rank), w: self.b(adapter) }], 2)
            }
            _ => ([base(), base()], 1),
        }
    }

    /// Adds to `found` the gradients of what is trained, for the input `x` `[m, in]`; `id` names them.
    pub(super) fn train(
        &self,
        back: &Back<'_, B>,
        x: &B::Acts,
        low_rank: &LowRank<B>,
        id: impl Fn(Of) -> ParamId,
        found: &mut Found<B>,
    ) {
        if self.params.trained {
            let mut gradient = self.backend.gradient(self.out(), self.inner());
            self.weight_gradient(x, back.gradient, false, &mut gradient);
            found.push((id(Of::Weight), gradient));
        }
        if let Some((a, b)) = self.adapter_gradients(back, x, low_rank, None) {
            found.push((id(Of::LoraA), a));
            found.push((id(Of::LoraB), b));
        }
    }

    /// The weight's gradient `gᵀ x`, `[out, in]`, which is stored or added.
    pub(super) fn weight_gradient(&self, x: &B::Acts, g: Part<'_, B::Acts>, adding: bool, gradient: &mut B::Sums) {
        let term = Term::Across { g, x: Part::new(x, g.rows, self.inner()) };
        self.backend.multiply_sums(&[term], adding, PartMut::new(gradient, self.out(), self.inner()));
    }

    /// The gradients of the adapter's `A` `[rank, in]` and `B` `[out, rank]`.
    pub(super) fn adapter_gradients(
        &self,
        back: &Back<'_, B>,
        x: &B::Acts,
        low_rank: &LowRank<B>,
        rows: Option<&[usize]>,
    ) -> Option<(B::Sums, B::Sums)> {
        let (adapter, h, gh) = (self.params.adapter.as_ref()?, low_rank.as_ref()?, back.low_rank.as_ref()?);
        let (rank, m) = (adapter.rank, back.gradient.rows);
        let dropped = self.drop(adapter, x, m, rows);
        let x = Part::new(dropped.as_ref().unwrap_or(x), m, self.inner());
        let mut a = self.backend.gradient(rank, self.inner());
        let term = Term::Across { g: Part::new(gh, m, rank), x };
        self.backend.multiply_sums(&[term], false, PartMut::new(&mut a, rank, self.inner()));
        // The long side of a product is to be that of its columns, so that this one is made transposed.
        let mut transposed = self.backend.sums(rank, self.out());
        let term = Term::Across { g: Part::new(h, m, rank), x: back.gradient };
        self.backend.multiply_sums(&[term], false, PartMut::new(&mut transposed, rank, self.out()));
        let mut b = self.backend.gradient(self.out(), rank);
        self.backend.transpose(&transposed, (rank, self.out()), &mut b);
        Some((a, b))
    }

    /// Begins the backward pass for the gradient `[m, out]` of the output.
    pub(super) fn back<'b>(&self, gradient: Part<'b, B::Acts>) -> Back<'b, B>
    where
        'a: 'b,
    {
        let m = gradient.rows;
        let low_rank = self.params.adapter.as_ref().map(|adapter| {
            let mut gh = self.backend.acts(m, adapter.rank);
            let y = PartMut::new(&mut gh, m, adapter.rank);
            let term = Term::Down { g: gradient, w: self.b(adapter) };
            self.backend.multiply(&[term], Finish::Scaled(adapter.scale), y);
            gh
        });
        Back { layer: *self, gradient, low_rank }
    }

    /// The same for rows without gaps.
    pub(super) fn back_of<'b>(&self, gradient: &'b B::Acts, m: usize) -> Back<'b, B>
    where
        'a: 'b,
    {
        self.back(Part::new(gradient, m, self.out()))
    }

    /// The input `[m, in]` of an adapter with dropout.
    fn drop(&self, adapter: &AdapterParams<B>, x: &B::Acts, m: usize, rows: Option<&[usize]>) -> Option<B::Acts> {
        let dropout = adapter.dropout?;
        let mut y = self.backend.acts(m, self.inner());
        self.backend.dropped(x, self.inner(), dropout, rows, &mut y);
        Some(y)
    }

    fn a(&self, adapter: &'a AdapterParams<B>) -> Weight<'a, B> {
        Weight { param: &adapter.a, out: adapter.rank, inner: self.params.inner }
    }

    fn b(&self, adapter: &'a AdapterParams<B>) -> Weight<'a, B> {
        Weight { param: &adapter.b, out: self.params.out, inner: adapter.rank }
    }
}

/// A layer on the way back: the gradient of its output, and of what its adapter makes of the input.
pub(super) struct Back<'a, B: Backend> {
    layer: Layer<'a, B>,
    /// `[m, out]`.
    gradient: Part<'a, B::Acts>,
    /// `scale · g B`, `[m, rank]`.
    low_rank: LowRank<B>,
}

impl<B: Backend> Back<'_, B> {
    /// The adapter's part of the input's gradient.
    fn through_adapter(&self) -> Option<Term<'_, B>> {
        let (low_rank, adapter) = (self.low_rank.as_ref()?, self.layer.params.adapter.as_ref()?);
        Some(Term::Down { g: Part::new(low_rank, self.gradient.rows, adapter.rank), w: self.layer.a(adapter) })
    }

    /// Whether its adapter, if it has one, is without dropout.
    fn is_plain(&self) -> bool {
        self.layer.params.adapter.as_ref().is_none_or(|a| a.dropout.is_none())
    }
}

/// Stores the gradient of the input `[m, in]` that several layers share.
///
/// With dropout an adapter's part meets its own mask, and comes in a product of its own.
pub(super) fn input_gradient<B: Backend>(backs: &[&Back<'_, B>], rows: Option<&[usize]>, gx: &mut B::Acts) {
    let Some(first) = backs.first() else { return };
    let (backend, m, inner) = (first.layer.backend, first.gradient.rows, first.layer.inner());
    let mut terms = Vec::with_capacity(2 * backs.len());
    terms.extend(backs.iter().map(|back| Term::Down { g: back.gradient, w: back.layer.weight() }));
    terms.extend(backs.iter().filter(|back| back.is_plain()).filter_map(|back| back.through_adapter()));
    backend.multiply(&terms, Finish::Store, PartMut::new(gx, m, inner));
    for back in backs.iter().filter(|back| !back.is_plain()) {
        let dropout = back.layer.params.adapter.as_ref().and_then(|adapter| adapter.dropout);
        if let (Some(term), Some(dropout)) = (back.through_adapter(), dropout) {
            backend.multiply(&[term], Finish::AddDropped(dropout, rows), PartMut::new(gx, m, inner));
        }
    }
}

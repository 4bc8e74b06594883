//! Linear layers, trained, frozen or with an adapter, as terms of matrix products.

use super::weights::Weight;
use super::{NamedGradients, Run};
use crate::Result;
use crate::kernels::buffers::Buffer;
use crate::kernels::gemm::{Finish, Term, multiply};
use crate::kernels::view::{View, ViewMut};
use crate::kernels::{Dropout, Element};
use crate::models::Linear;

/// A layer `[out, in]` as the kernels see it.
pub(super) struct Layer<'a, T: Element> {
    linear: &'a Linear,
    weight: Weight<'a, T>,
    adapter: Option<Adapter<'a, T>>,
    pub(super) inner: usize,
    pub(super) out: usize,
}

/// A low-rank update in the type of the activations.
struct Adapter<'a, T: Element> {
    /// `[rank, in]`.
    a: Weight<'a, T>,
    /// `[out, rank]`.
    b: Weight<'a, T>,
    rank: usize,
    scale: f32,
    dropout: Option<Dropout>,
}

/// `scale · dropout(x) Aᵀ`, `[m, rank]`: what an adapter makes of its input on the way. `None` without an adapter.
pub(super) type LowRank<T> = Option<Buffer<T>>;

impl<'a, T: Element> Layer<'a, T> {
    pub(super) fn new(run: &Run<'_>, linear: &'a Linear) -> Result<Self> {
        let (out, inner) = linear.weight.dims2()?;
        let adapter = match &linear.adapter {
            None => None,
            Some(adapter) => Some(Adapter {
                a: Weight::new(&adapter.a)?,
                b: Weight::new(&adapter.b)?,
                rank: adapter.a.dim(0)?,
                scale: adapter.scale as f32,
                dropout: linear.dropout(&run.pass),
            }),
        };
        Ok(Self { linear, weight: Weight::new(&linear.weight)?, adapter, inner, out })
    }

    /// Whether nothing of it is trained.
    pub(super) fn is_frozen(&self) -> bool {
        self.adapter.is_none() && !self.linear.weight.is_variable()
    }

    /// What the adapter makes of `x` `[m, in]`, whose rows count as `rows` for its dropout.
    pub(super) fn low_rank(&self, x: &[T], rows: Option<&[usize]>) -> LowRank<T> {
        let adapter = self.adapter.as_ref()?;
        let m = x.len() / self.inner;
        let dropped = adapter.drop(x, self.inner, rows);
        let x = dropped.as_deref().unwrap_or(x);
        let mut h = Buffer::new(m * adapter.rank);
        let term = Term::Up { x: View::new(x, self.inner), w: adapter.a() };
        multiply(&[term], &ViewMut::new(&mut h, adapter.rank), Finish::Scaled(adapter.scale));
        Some(h)
    }

    /// `x Wᵀ` and the adapter's update, for `x` `[m, in]`, into `y` `[m, out]`.
    pub(super) fn forward<D: Element>(&self, x: &[T], low_rank: &LowRank<T>, y: &mut [D], finish: Finish<'_, D>) {
        let y = ViewMut::new(y, self.out);
        let base = Term::Up { x: View::new(x, self.inner), w: self.weight() };
        match (low_rank, &self.adapter) {
            (Some(h), Some(adapter)) => {
                let update = Term::Up { x: View::new(h, adapter.rank), w: adapter.b() };
                multiply(&[base, update], &y, finish);
            }
            _ => multiply(&[base], &y, finish),
        }
    }

    fn weight(&self) -> View<'_, T> {
        View::new(&self.weight, self.inner)
    }

    /// Adds to `found` the gradients of what is trained, for the input `x` and the gradient `g` `[m, out]` of the output.
    pub(super) fn train(&self, back: &Back<'_, T>, x: &[T], low_rank: &LowRank<T>, found: &mut NamedGradients) {
        if self.linear.weight.is_variable() {
            let mut gradient = Buffer::new(self.out * self.inner);
            self.weight_gradient(x, back.gradient, &mut gradient, Finish::Store);
            found.push((format!("{}.weight", self.linear.name), gradient));
        }
        if let Some((a, b)) = self.adapter_gradients(back, x, low_rank, None) {
            found.push((format!("{}.lora_A.weight", self.linear.name), a));
            found.push((format!("{}.lora_B.weight", self.linear.name), b));
        }
    }

    /// The weight's gradient `gᵀ x`, `[out, in]`.
    pub(super) fn weight_gradient(&self, x: &[T], g: View<'_, T>, gradient: &mut [f32], finish: Finish<'_, f32>) {
        let term = Term::Across { g, x: View::new(x, self.inner) };
        multiply(&[term], &ViewMut::new(gradient, self.inner), finish);
    }

    /// The gradients of the adapter's `A` `[rank, in]` and `B` `[out, rank]`.
    pub(super) fn adapter_gradients(
        &self,
        back: &Back<'_, T>,
        x: &[T],
        low_rank: &LowRank<T>,
        rows: Option<&[usize]>,
    ) -> Option<(Buffer<f32>, Buffer<f32>)> {
        let (adapter, h, gh) = (self.adapter.as_ref()?, low_rank.as_ref()?, back.low_rank.as_ref()?);
        let rank = adapter.rank;
        let dropped = adapter.drop(x, self.inner, rows);
        let x = View::new(dropped.as_deref().unwrap_or(x), self.inner);
        let mut a = Buffer::new(rank * self.inner);
        let term = Term::Across { g: View::new(gh, rank), x };
        multiply(&[term], &ViewMut::new(&mut a, self.inner), Finish::Store);
        let mut transposed = Buffer::<f32>::new(rank * self.out);
        let term = Term::Across { g: View::new(h, rank), x: back.gradient };
        multiply(&[term], &ViewMut::new(&mut transposed, self.out), Finish::Store);
        let mut b = Buffer::<f32>::new(self.out * rank);
        for (r, row) in transposed.chunks_exact(self.out).enumerate() {
            b.iter_mut().skip(r).step_by(rank).zip(row).for_each(|(b, &v)| *b = v);
        }
        Some((a, b))
    }

    /// Begins the backward pass for the gradient `[m, out]` of the output.
    pub(super) fn back<'b>(&'b self, gradient: View<'b, T>) -> Back<'b, T> {
        let low_rank = self.adapter.as_ref().map(|adapter| {
            let mut gh = Buffer::new(gradient.rows() * adapter.rank);
            let term = Term::Down { g: gradient, w: adapter.b() };
            multiply(&[term], &ViewMut::new(&mut gh, adapter.rank), Finish::Scaled(adapter.scale));
            gh
        });
        Back { layer: self, gradient, low_rank }
    }

    /// The same for rows without gaps.
    pub(super) fn back_of<'b>(&'b self, gradient: &'b [T]) -> Back<'b, T> {
        self.back(View::new(gradient, self.out))
    }
}

impl<T: Element> Adapter<'_, T> {
    fn drop(&self, x: &[T], width: usize, rows: Option<&[usize]>) -> Option<Buffer<T>> {
        let dropout = self.dropout?;
        let mut y = Buffer::new(x.len() / width * width);
        dropout.apply(x, width, rows, &mut y);
        Some(y)
    }

    fn a(&self) -> View<'_, T> {
        View::new(&self.a, self.a.len() / self.rank)
    }

    fn b(&self) -> View<'_, T> {
        View::new(&self.b, self.rank)
    }
}

/// A layer on the way back: the gradient of its output, and of what its adapter makes of the input.
pub(super) struct Back<'a, T: Element> {
    layer: &'a Layer<'a, T>,
    /// `[m, out]`.
    gradient: View<'a, T>,
    /// `scale · g B`, `[m, rank]`.
    low_rank: LowRank<T>,
}

impl<T: Element> Back<'_, T> {
    /// The adapter's part of the input's gradient.
    fn through_adapter(&self) -> Option<Term<'_, T>> {
        let (low_rank, adapter) = (self.low_rank.as_ref()?, self.layer.adapter.as_ref()?);
        Some(Term::Down { g: View::new(low_rank, adapter.rank), w: adapter.a() })
    }

    /// Whether its adapter, if it has one, is without dropout.
    fn is_plain(&self) -> bool {
        self.layer.adapter.as_ref().is_none_or(|a| a.dropout.is_none())
    }
}

/// Stores the gradient of the input `[m, in]` that several layers share.
///
/// With dropout an adapter's part meets its own mask, and comes in a product of its own.
pub(super) fn input_gradient<T: Element>(backs: &[&Back<'_, T>], rows: Option<&[usize]>, gx: &mut [T]) {
    let Some(first) = backs.first() else { return };
    let gx = ViewMut::new(gx, first.layer.inner);
    let mut terms = Vec::with_capacity(2 * backs.len());
    terms.extend(backs.iter().map(|back| Term::Down { g: back.gradient, w: back.layer.weight() }));
    terms.extend(backs.iter().filter(|back| back.is_plain()).filter_map(|back| back.through_adapter()));
    multiply(&terms, &gx, Finish::Store);
    for back in backs.iter().filter(|back| !back.is_plain()) {
        let dropout = back.layer.adapter.as_ref().and_then(|adapter| adapter.dropout);
        if let (Some(term), Some(dropout)) = (back.through_adapter(), dropout) {
            multiply(&[term], &gx, Finish::AddDropped(dropout, rows));
        }
    }
}

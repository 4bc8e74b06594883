//! Linear layers, trained, frozen or with an adapter, as terms of matrix products.

use super::weights::Weight;
use super::{NamedGradients, Run};
use crate::Result;
use crate::kernels::buffers::Buffer;
use crate::kernels::gemm::{At, Left, Right, Rows, Store, Term, multiply, set};
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
        let scaled = adapter.scaled();
        multiply((m, adapter.rank), &[Term::nt(x, &adapter.a, self.inner)], &mut h, adapter.rank, scaled);
        Some(h)
    }

    /// Stores `x Wᵀ` and the adapter's update, for `x` `[m, in]`, in rows of `out`.
    pub(super) fn forward<D: Send>(&self, x: &[T], low_rank: &LowRank<T>, y: &mut [D], store: impl Store<D>) {
        let m = x.len() / self.inner;
        let base = Term::nt(x, &self.weight, self.inner);
        match (low_rank, &self.adapter) {
            (Some(h), Some(adapter)) => {
                let update = Term::nt(h, &adapter.b, adapter.rank);
                multiply((m, self.out), &[base, update], y, self.out, store);
            }
            _ => multiply((m, self.out), &[base], y, self.out, store),
        }
    }

    /// Adds to `found` the gradients of what is trained, for the input `x` and the gradient `g` `[m, out]` of the output.
    pub(super) fn train(&self, back: &Back<'_, T>, x: &[T], low_rank: &LowRank<T>, found: &mut NamedGradients) {
        if self.linear.weight.is_variable() {
            let mut gradient = Buffer::new(self.out * self.inner);
            self.weight_gradient(x, back.gradient, &mut gradient, set);
            found.push((format!("{}.weight", self.linear.name), gradient));
        }
        if let Some((a, b)) = self.adapter_gradients(back, x, low_rank, None) {
            found.push((format!("{}.lora_A.weight", self.linear.name), a));
            found.push((format!("{}.lora_B.weight", self.linear.name), b));
        }
    }

    /// Stores the weight's gradient `gᵀ x`, `[out, in]`.
    pub(super) fn weight_gradient(&self, x: &[T], g: Rows<'_, T>, gradient: &mut [f32], store: impl Store<f32>) {
        let (left, right) = (Left::Columns(g), Right::Rows(Rows::new(x, self.inner)));
        let term = Term { left, right, inner: x.len() / self.inner };
        multiply((self.out, self.inner), &[term], gradient, self.inner, store);
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
        let (m, rank) = (x.len() / self.inner, adapter.rank);
        let dropped = adapter.drop(x, self.inner, rows);
        let x = dropped.as_deref().unwrap_or(x);
        let mut a = Buffer::new(rank * self.inner);
        multiply((rank, self.inner), &[Term::tn(gh, x, (rank, m, self.inner))], &mut a, self.inner, set);
        let mut transposed = Buffer::<f32>::new(rank * self.out);
        let (left, right) = (Left::Columns(Rows::new(h, rank)), Right::Rows(back.gradient));
        let term = Term { left, right, inner: m };
        multiply((rank, self.out), &[term], &mut transposed, self.out, set);
        let mut b = Buffer::<f32>::new(self.out * rank);
        for (r, row) in transposed.chunks_exact(self.out).enumerate() {
            b.iter_mut().skip(r).step_by(rank).zip(row).for_each(|(b, &v)| *b = v);
        }
        Some((a, b))
    }

    /// Begins the backward pass for the gradient `g` `[m, out]` of the output.
    pub(super) fn back<'b>(&'b self, g: &'b [T]) -> Back<'b, T> {
        self.back_of(Rows::new(g, self.out), g.len() / self.out)
    }

    /// The same for a gradient whose `m` rows have gaps between them.
    pub(super) fn back_of<'b>(&'b self, gradient: Rows<'b, T>, m: usize) -> Back<'b, T> {
        let low_rank = self.adapter.as_ref().map(|adapter| {
            let rank = adapter.rank;
            let mut gh = Buffer::new(m * rank);
            let (left, right) = (Left::Rows(gradient), Right::Rows(Rows::new(&adapter.b, rank)));
            multiply((m, rank), &[Term { left, right, inner: self.out }], &mut gh, rank, adapter.scaled());
            gh
        });
        Back { layer: self, gradient, m, low_rank }
    }
}

impl<T: Element> Adapter<'_, T> {
    fn drop(&self, x: &[T], width: usize, rows: Option<&[usize]>) -> Option<Buffer<T>> {
        let dropout = self.dropout?;
        let mut y = Buffer::new(x.len() / width * width);
        dropout.apply(x, width, rows, &mut y);
        Some(y)
    }

    fn scaled(&self) -> impl Store<T> + use<T> {
        let scale = self.scale;
        move |_: At, sums: &[f32], dst: &mut [T]| {
            for (d, s) in dst.iter_mut().zip(sums) {
                *d = T::from_f32(s * scale);
            }
        }
    }
}

/// A layer on the way back: the gradient of its output, and of what its adapter makes of the input.
pub(super) struct Back<'a, T: Element> {
    layer: &'a Layer<'a, T>,
    /// `[m, out]`.
    gradient: Rows<'a, T>,
    m: usize,
    /// `scale · g B`, `[m, rank]`.
    low_rank: LowRank<T>,
}

impl<T: Element> Back<'_, T> {
    fn is_plain(&self) -> bool {
        self.layer.adapter.as_ref().is_none_or(|a| a.dropout.is_none())
    }
}

/// Stores the gradient of the input `[m, in]` that several layers share.
///
/// With dropout an adapter's part meets its own mask, and comes in a product of its own.
pub(super) fn input_gradient<T: Element>(backs: &[&Back<'_, T>], rows: Option<&[usize]>, gx: &mut [T]) {
    let Some(first) = backs.first() else { return };
    let (inner, m) = (first.layer.inner, first.m);
    let mut terms = Vec::with_capacity(2 * backs.len());
    for back in backs {
        let (left, right) = (Left::Rows(back.gradient), Right::Rows(Rows::new(&back.layer.weight, inner)));
        terms.push(Term { left, right, inner: back.layer.out });
    }
    for back in backs.iter().filter(|b| b.is_plain()) {
        if let (Some(gh), Some(adapter)) = (&back.low_rank, &back.layer.adapter) {
            terms.push(Term::nn(gh, &adapter.a, (adapter.rank, inner)));
        }
    }
    multiply((m, inner), &terms, gx, inner, set);
    for back in backs.iter().filter(|b| !b.is_plain()) {
        let (Some(gh), Some(adapter)) = (&back.low_rank, &back.layer.adapter) else { continue };
        let Some(dropout) = adapter.dropout else { continue };
        let through = |at: At, sums: &[f32], dst: &mut [T]| {
            let first = rows.map_or(at.row, |r| r[at.row]) * inner + at.col;
            for (i, (d, s)) in dst.iter_mut().zip(sums).enumerate() {
                *d = T::from_f32(d.to_f32() + s * dropout.factor(first + i) as f32);
            }
        };
        multiply((m, inner), &[Term::nn(gh, &adapter.a, (adapter.rank, inner))], gx, inner, through);
    }
}

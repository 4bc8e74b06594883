use super::both;
use crate::buffer::{Buffer, Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

static FACTORS: [Kernel; 2] = both("columns", ["columns_factors_f32", "columns_factors_bf16"], "pppppplif");
static SCALE: [Kernel; 2] = both("columns", ["columns_scale_f32", "columns_scale_bf16"], "pppplllll");
static DOTS: [Kernel; 2] = both("columns", ["columns_dots_f32", "columns_dots_bf16"], "ppppllll");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&FACTORS, &SCALE, &DOTS];

/// Rows that a part of a sum over rows has at least.
const ROWS: usize = 32;

/// Parts of such a sum, at most: the same on every card, for they decide its order.
const PARTS: usize = 128;

/// A layer with an adapter, as [`Context::column_factors`] reads it.
#[derive(Debug, Clone, Copy)]
pub struct Adapted<'a, T> {
    /// `B` `[out, rank]`.
    pub b: &'a Buffer<T>,
    /// The squares of the lengths of the weight's rows, `[out]`.
    pub squares: &'a Buffer<f32>,
    /// `A Wᵀ` `[rank, out]`.
    pub with_weight: &'a Buffer<f32>,
    /// `A Aᵀ` `[rank, rank]`.
    pub with_itself: &'a Buffer<f32>,
    /// What `B A` counts.
    pub scale: f32,
}

impl Context {
    /// What a layer's results are scaled by, `[2, out]`: magnitudes over the lengths of the rows of `W + scale · B A`, and one over
    /// these lengths; 1 and 0 for a row of zeros.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn column_factors<T: Element>(&self, magnitudes: &Buffer<f32>, of: Adapted<'_, T>) -> Buffer<f32> {
        let out = magnitudes.len();
        let rank = of.b.len() / out.max(1);
        let fits = [of.b.len(), of.with_weight.len()] == [rank * out; 2] && of.with_itself.len() == rank * rank;
        assert!(fits && of.squares.len() == out, "column_factors: shapes that do not fit");
        let factors = self.buffer(2 * out);
        Launch::new(self, &FACTORS[T::INDEX])
            .pointer(factors.address())
            .pointer(magnitudes.address())
            .pointer(of.squares.address())
            .pointer(of.b.address())
            .pointer(of.with_weight.address())
            .pointer(of.with_itself.address())
            .long(out)
            .int(rank)
            .float(of.scale)
            .go(Size::row(out.div_ceil(8), 256, 0));
        factors
    }

    /// `y = x · factors + onto`, column by column; where there is no `x`, it is `y`. `factors` is one row.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn scale_columns<T: Element>(
        &self,
        factors: View<'_, f32>,
        x: Option<View<'_, T>>,
        onto: Option<View<'_, T>>,
        y: ViewMut<'_, T>,
    ) {
        let others = [x, onto].into_iter().flatten().all(|other| other.shape() == y.shape());
        assert!(others && factors.shape() == (1, y.cols), "scale_columns: shapes that do not fit");
        let of_x = x.map_or((y.address, y.stride), |x| (x.address, x.stride));
        let of_onto = onto.map_or((0, 0), |onto| (onto.address, onto.stride));
        Launch::new(self, &SCALE[T::INDEX])
            .pointer(y.address)
            .pointer(of_x.0)
            .pointer(of_onto.0)
            .pointer(factors.address)
            .long(y.rows)
            .long(y.cols)
            .long(y.stride)
            .long(of_x.1)
            .long(of_onto.1)
            .go(Size::matrix(y.rows, y.cols, wide::<T>(), 256));
    }

    /// Numbers of f32 that [`Context::column_dots`] needs for matrices of this shape.
    #[must_use]
    pub fn column_dots_workspace(rows: usize, cols: usize) -> usize {
        parts(rows) * cols
    }

    /// The product of each column of `a` with the same column of `b`, times its number of `factors`, which is one row, as `y` is.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn column_dots<T: Element>(&self, a: View<'_, T>, b: View<'_, T>, factors: View<'_, f32>, y: ViewMut<'_, f32>) {
        let one_row = [factors.shape(), y.shape()] == [(1, a.cols); 2];
        assert!(one_row && a.shape() == b.shape(), "column_dots: shapes that do not fit");
        let partial = self.buffer::<f32>(Self::column_dots_workspace(a.rows, a.cols));
        let size = Size::matrix(parts(a.rows), a.cols, wide::<T>(), 128);
        Launch::new(self, &DOTS[T::INDEX])
            .pointer(partial.address())
            .pointer(a.address)
            .pointer(b.address)
            .pointer(factors.address)
            .long(a.rows)
            .long(a.cols)
            .long(a.stride)
            .long(b.stride)
            .go(size);
        self.sum_columns(&partial, false, y);
    }
}

/// Parts of a sum over this many rows. No rows are a part, too, whose sum is zero.
fn parts(rows: usize) -> usize {
    rows.div_ceil(ROWS).clamp(1, PARTS.min(MOST_ROWS))
}

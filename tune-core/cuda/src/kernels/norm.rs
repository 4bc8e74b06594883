use super::{both, one};
use crate::buffer::{Buffer, Element, View, ViewMut};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

static FORWARD: [Kernel; 2] = both("norm", ["norm_forward_f32", "norm_forward_bf16"], "pppppplllllliiff");
static BACKWARD: [Kernel; 2] = both("norm", ["norm_backward_f32", "norm_backward_bf16"], "ppppplllliiffi");
static COLUMN_SUMS: [Kernel; 1] = [one("norm", "column_sums", "pplli")];

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&FORWARD, &BACKWARD, &COLUMN_SUMS];

/// Elements of a norm that a thread keeps.
const KEPT: usize = 32;

/// Blocks of the backward pass, at most, where the weight has a gradient: four for each multiprocessor of the largest card, but
/// the same on every card, for they decide the order of the weight's sums.
const BLOCKS: usize = 528;

/// What a norm is told beside its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub eps: f32,
    /// The factor is `1 + weight`, as in Gemma.
    pub from_one: bool,
}

impl Norm {
    fn weight_from(self) -> f32 {
        if self.from_one { 1.0 } else { 0.0 }
    }
}

/// Threads of a norm, and norms of a block: a thread keeps up to 32 elements.
fn threads(width: usize) -> [usize; 2] {
    let x = match width {
        w if w <= 256 => w.div_ceil(8).next_power_of_two().max(8),
        w => w.div_ceil(KEPT).next_multiple_of(32),
    };
    [x, if width <= 256 { 256 / x } else { (128 / x).max(1) }]
}

/// Bytes of shared memory for the sums of a block's warps.
fn shared(threads: [usize; 2]) -> usize {
    4 * (threads[0] / 32) * threads[1]
}

/// Blocks of the backward pass for this many norms of `width`, with or without a gradient of the weight.
fn blocks(norms: usize, width: usize, own: bool) -> usize {
    norms.div_ceil(threads(width)[1]).min(if own { BLOCKS } else { usize::MAX })
}

impl Norm {
    /// Numbers of f32 that [`Context::norm_back`] needs for this many norms of `width` where the weight has a gradient.
    #[must_use]
    pub fn workspace(norms: usize, width: usize) -> usize {
        blocks(norms, width, true) * width
    }
}

impl Context {
    /// `y = x / rms(x) · factor (+ onto)`, `x` `[m, c · width]` for a weight of `width`: a row is `c` norms. With `residual` and a
    /// destination for the sum, `x + residual` stands for `x`, and is stored there as it was rounded.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn norm<T: Element>(
        &self,
        x: View<'_, T>,
        weight: &Buffer<T>,
        norm: Norm,
        residual: Option<(View<'_, T>, ViewMut<'_, T>)>,
        onto: Option<View<'_, T>>,
        y: ViewMut<'_, T>,
    ) {
        let (rows, width) = (x.rows, weight.len());
        let fits = x.shape() == y.shape() && width > 0 && x.cols.is_multiple_of(width) && width <= KEPT * 512;
        let others = residual.as_ref().is_none_or(|(r, sum)| r.shape() == x.shape() && sum.shape() == x.shape())
            && onto.is_none_or(|o| o.shape() == x.shape());
        assert!(fits && others, "norm: shapes that do not fit");
        let (heads, threads) = (x.cols / width, threads(width));
        let (of_residual, of_sum) =
            residual.map_or(((0, 0), (0, 0)), |(r, s)| ((r.address, r.stride), (s.address, s.stride)));
        let of_onto = onto.map_or((0, 0), |o| (o.address, o.stride));
        let size = Size { grid: [(rows * heads).div_ceil(threads[1]), 1, 1], threads, shared: shared(threads) };
        Launch::new(self, &FORWARD[T::INDEX])
            .pointer(y.address)
            .pointer(of_sum.0)
            .pointer(x.address)
            .pointer(of_residual.0)
            .pointer(of_onto.0)
            .pointer(weight.address())
            .long(rows)
            .long(y.stride)
            .long(of_sum.1)
            .long(x.stride)
            .long(of_residual.1)
            .long(of_onto.1)
            .int(heads)
            .int(width)
            .float(norm.eps)
            .float(norm.weight_from())
            .go(size);
    }

    /// The gradient of `x` for that of the result, `g`, stored in `dx` or added to it; that of the weight is added to `own`.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn norm_back<T: Element>(
        &self,
        x: View<'_, T>,
        weight: &Buffer<T>,
        norm: Norm,
        g: View<'_, T>,
        (dx, add): (ViewMut<'_, T>, bool),
        own: Option<&mut Buffer<f32>>,
    ) {
        let (rows, width) = (x.rows, weight.len());
        let fits = x.shape() == dx.shape() && x.shape() == g.shape() && width > 0 && x.cols.is_multiple_of(width);
        assert!(fits && own.as_ref().is_none_or(|own| own.len() == width), "norm: shapes that do not fit");
        let (heads, threads) = (x.cols / width, threads(width));
        let blocks = blocks(rows * heads, width, own.is_some());
        let partial = own.as_ref().map(|_| self.buffer::<f32>(Norm::workspace(rows * heads, width)));
        let of_weight = if partial.is_some() { 4 * threads[1] * width } else { 0 };
        // Two sums at a time.
        let shared = 2 * shared(threads) + of_weight;
        assert!(
            shared <= self.card().shared_memory as usize && width <= KEPT * 512,
            "norm: a weight of {width} is too wide"
        );
        Launch::new(self, &BACKWARD[T::INDEX])
            .pointer(dx.address)
            .pointer(super::address(partial.as_ref()))
            .pointer(x.address)
            .pointer(g.address)
            .pointer(weight.address())
            .long(rows)
            .long(dx.stride)
            .long(x.stride)
            .long(g.stride)
            .int(heads)
            .int(width)
            .float(norm.eps)
            .float(norm.weight_from())
            .int(usize::from(add))
            .go(Size { grid: [blocks, 1, 1], threads, shared });
        if let (Some(partial), Some(own)) = (partial, own) {
            self.sum_columns(&partial, true, own.view_mut(width));
        }
    }

    /// The sum of the rows of `partial` `[parts, width]`, in their order, stored in `y`, which is one row, or added to it.
    pub(super) fn sum_columns(&self, partial: &Buffer<f32>, add: bool, y: ViewMut<'_, f32>) {
        let width = y.cols;
        Launch::new(self, &COLUMN_SUMS[0])
            .pointer(y.address)
            .pointer(partial.address())
            .long(partial.len() / width.max(1))
            .long(width)
            .int(usize::from(add))
            .go(Size { grid: [width.div_ceil(32), 1, 1], threads: [32, 32], shared: 4096 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks are whole warps of at most 512 threads, and a thread keeps no more than it can.
    #[test]
    fn threads_hold_a_norm() {
        for width in 1..=KEPT * 512 {
            let [x, y] = threads(width);
            assert!((x == 8 || x == 16 || x.is_multiple_of(32)) && (x * y).is_multiple_of(32), "{width}");
            assert!(x * y <= 512 && x * KEPT >= width, "{width}");
        }
    }
}

//! Root-mean-square normalization of rows (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>).

use rayon::prelude::*;

use super::buffers::Buffer;
use super::footprint::Paper;
use super::ledger::Entry;
use super::math::sum;
use super::view::{View, ViewMut};
use super::{Element, simd};

/// Rows that one task handles; also those whose share of a weight's gradient is summed together.
const ROWS: usize = 64;

#[inline(always)]
fn inverse_rms<T: Element>(x: &[T], eps: f32) -> f32 {
    let squares = sum(
        [x],
        #[inline(always)]
        |[x]| x.to_f32() * x.to_f32(),
    );
    let mean = squares / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// `y = x / rms(x) · weight`, row by row; rows of several times the weight's length are as many norms each.
pub(crate) fn forward<T: Element>(x: View<'_, T>, weight: &[T], eps: f32, y: ViewMut<'_, T>) {
    let width = weight.len();
    check(x, weight, &y);
    y.par_tasks(ROWS).for_each(|(first, mut y)| {
        simd(
            #[inline(always)]
            || {
                for row in 0..y.rows() {
                    let x = x.row(first + row);
                    for (y, x) in y.row(row).chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let r = inverse_rms(x, eps);
                        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                            *y = T::from_f32(x.to_f32() * r * w.to_f32());
                        }
                    }
                }
            },
        );
    });
}

/// Adds the gradient of `x` to `residual`: with `r = 1 / rms` and `g` the incoming gradient it is
/// `r (g w - x r² mean(g w x))`. Returns that of the weight if it is asked for, the sum over rows of `g x r`.
pub(crate) fn backward<T: Element>(
    x: View<'_, T>,
    weight: &[T],
    eps: f32,
    grad: View<'_, T>,
    residual: ViewMut<'_, T>,
    wants_weight: bool,
) -> Option<Buffer<f32>> {
    let width = weight.len();
    check(x, weight, &residual);
    let mut partial = Buffer::<f32>::zeros(partial_len(x.rows(), width, wants_weight));
    let run = |first: usize, residual: &mut ViewMut<'_, T>, gw: &mut [f32]| {
        simd(
            #[inline(always)]
            || {
                for row in 0..residual.rows() {
                    let (x, grad) = (x.row(first + row), grad.row(first + row));
                    let norms = residual.row(row).chunks_exact_mut(width);
                    for ((out, x), g) in norms.zip(x.chunks_exact(width)).zip(grad.chunks_exact(width)) {
                        let r = inverse_rms(x, eps);
                        let dot = sum(
                            [x, g, weight],
                            #[inline(always)]
                            |[x, g, w]| x.to_f32() * g.to_f32() * w.to_f32(),
                        );
                        let c = dot * r * r / width as f32;
                        for (((out, x), g), w) in out.iter_mut().zip(x).zip(g).zip(weight) {
                            *out = T::from_f32(out.to_f32() + r * (g.to_f32() * w.to_f32() - x.to_f32() * c));
                        }
                        for ((gw, x), g) in gw.iter_mut().zip(x).zip(g) {
                            *gw += g.to_f32() * x.to_f32() * r;
                        }
                    }
                }
            },
        );
    };
    let tasks = residual.par_tasks(ROWS);
    if !wants_weight {
        tasks.for_each(|(first, mut residual)| run(first, &mut residual, &mut []));
        return None;
    }
    tasks.zip(partial.par_chunks_mut(width)).for_each(|((first, mut residual), gw)| run(first, &mut residual, gw));
    let mut total = Buffer::zeros(width);
    for part in partial.chunks_exact(width) {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    Some(total)
}

fn check<T: Element>(x: View<'_, T>, weight: &[T], y: &ViewMut<'_, T>) {
    let shapes = ((x.rows(), x.cols()), (y.rows(), y.cols()));
    assert!(shapes.0 == shapes.1 && x.cols().is_multiple_of(weight.len()), "norm: shapes that do not fit: {shapes:?}");
}

/// Elements of the sums that the tasks of [`backward`] make of a weight's gradient.
fn partial_len(rows: usize, width: usize, wants_weight: bool) -> usize {
    if wants_weight { rows.div_ceil(ROWS) * width } else { 0 }
}

/// The buffers of [`backward`] on paper, for so many rows of `width`: the weight's gradient, if it is asked for.
pub(crate) fn backward_on_paper(paper: &Paper, rows: usize, width: usize, wants_weight: bool) -> Option<Entry> {
    let _partial = paper.buffer::<f32>(partial_len(rows, width, wants_weight));
    wants_weight.then(|| paper.gradient(width))
}

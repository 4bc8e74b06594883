//! Root-mean-square normalization of rows (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>).

use rayon::prelude::*;

use super::buffers::Buffer;
use super::footprint::Paper;
use super::ledger::Entry;
use super::math::sum;
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

/// `y = x / rms(x) · weight`, row by row.
pub(crate) fn forward<T: Element>(x: &[T], weight: &[T], eps: f32, y: &mut [T]) {
    let width = weight.len();
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let r = inverse_rms(x, eps);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = T::from_f32(x.to_f32() * r * w.to_f32());
                    }
                }
            },
        );
    });
}

/// Adds the gradient of `x` to `residual`: with `r = 1 / rms` and `g` the incoming gradient it is
/// `r (g w - x r² mean(g w x))`. Returns that of the weight if it is asked for, the sum over rows of `g x r`.
pub(crate) fn backward<T: Element>(
    x: &[T],
    weight: &[T],
    eps: f32,
    grad: &[T],
    residual: &mut [T],
    wants_weight: bool,
) -> Option<Buffer<f32>> {
    let width = weight.len();
    let task = ROWS * width;
    let mut partial = Buffer::<f32>::zeros(partial_len(x.len(), width, wants_weight));
    let run = |residual: &mut [T], x: &[T], grad: &[T], gw: &mut [f32]| {
        simd(
            #[inline(always)]
            || {
                for ((out, x), g) in
                    residual.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width))
                {
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
            },
        );
    };
    let parts = residual.par_chunks_mut(task).zip(x.par_chunks(task).zip(grad.par_chunks(task)));
    if !wants_weight {
        parts.for_each(|(residual, (x, grad))| run(residual, x, grad, &mut []));
        return None;
    }
    parts.zip(partial.par_chunks_mut(width)).for_each(|((residual, (x, grad)), gw)| run(residual, x, grad, gw));
    let mut total = Buffer::zeros(width);
    for part in partial.chunks_exact(width) {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    Some(total)
}

/// Elements of the sums that the tasks of [`backward`] make of a weight's gradient.
fn partial_len(len: usize, width: usize, wants_weight: bool) -> usize {
    if wants_weight { len.div_ceil(ROWS * width) * width } else { 0 }
}

/// The buffers of [`backward`] on paper, for `x` of `len` elements in rows of `width`: the weight's gradient, if it is asked for.
pub(crate) fn backward_on_paper(paper: &Paper, len: usize, width: usize, wants_weight: bool) -> Option<Entry> {
    let _partial = paper.buffer::<f32>(partial_len(len, width, wants_weight));
    wants_weight.then(|| paper.gradient(width))
}

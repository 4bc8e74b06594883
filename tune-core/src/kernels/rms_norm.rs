//! Root-mean-square normalization of rows (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>).

use super::math::sum;
use super::view::{View, ViewMut};
use super::{Element, parallel, simd};

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

/// How a norm is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Kind {
    pub(crate) eps: f32,
    /// The factor is `1 + weight`, and not the weight.
    pub(crate) from_one: bool,
}

/// What an element is multiplied by.
#[inline(always)]
fn factor<T: Element, const FROM_ONE: bool>(weight: T) -> f32 {
    if FROM_ONE { 1.0 + weight.to_f32() } else { weight.to_f32() }
}

/// `y = x / rms(x) · factor`, row by row; rows of several times the weight's length are as many norms each.
pub(crate) fn forward<T: Element>(x: View<'_, T>, weight: &[T], kind: Kind, y: ViewMut<'_, T>) {
    match kind.from_one {
        false => forward_by::<T, false>(x, weight, kind.eps, y),
        true => forward_by::<T, true>(x, weight, kind.eps, y),
    }
}

fn forward_by<T: Element, const FROM_ONE: bool>(x: View<'_, T>, weight: &[T], eps: f32, y: ViewMut<'_, T>) {
    let width = weight.len();
    check(x, weight, &y);
    y.each_task(ROWS, |first, mut y| {
        simd(
            #[inline(always)]
            || {
                for row in 0..y.rows() {
                    let x = x.row(first + row);
                    for (y, x) in y.row(row).chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let r = inverse_rms(x, eps);
                        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                            *y = T::from_f32(x.to_f32() * r * factor::<T, FROM_ONE>(*w));
                        }
                    }
                }
            },
        );
    });
}

/// `y = x / rms(x) · factor + onto`, see [`forward`].
pub(crate) fn forward_onto<T: Element>(x: View<'_, T>, weight: &[T], kind: Kind, onto: View<'_, T>, y: ViewMut<'_, T>) {
    let width = weight.len();
    let one = if kind.from_one { 1.0 } else { 0.0 };
    check(x, weight, &y);
    y.each_task(ROWS, |first, mut y| {
        simd(
            #[inline(always)]
            || {
                for row in 0..y.rows() {
                    let (x, onto) = (x.row(first + row), onto.row(first + row));
                    let rows = y.row(row).chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for ((y, x), onto) in rows.zip(onto.chunks_exact(width)) {
                        let r = inverse_rms(x, kind.eps);
                        for (((y, x), w), o) in y.iter_mut().zip(x).zip(weight).zip(onto) {
                            *y = T::from_f32(x.to_f32() * r * (one + w.to_f32()) + o.to_f32());
                        }
                    }
                }
            },
        );
    });
}

/// Adds the gradient of `x` to `residual`: with `r = 1 / rms` and `g` the incoming gradient it is
/// `r (g f - x r² mean(g f x))`, `f` being the factor. Stores that of the weight in `own` if it is asked for, the sum over rows of `g x r`;
/// for it, `workspace` is to have as many elements as [`workspace`] says.
pub(crate) fn backward<T: Element>(
    x: View<'_, T>,
    weight: &[T],
    kind: Kind,
    grad: View<'_, T>,
    residual: ViewMut<'_, T>,
    own: Option<&mut [f32]>,
    workspace: &mut [f32],
) {
    match kind.from_one {
        false => backward_by::<T, false>(x, weight, kind.eps, grad, residual, own, workspace),
        true => backward_by::<T, true>(x, weight, kind.eps, grad, residual, own, workspace),
    }
}

fn backward_by<T: Element, const FROM_ONE: bool>(
    x: View<'_, T>,
    weight: &[T],
    eps: f32,
    grad: View<'_, T>,
    residual: ViewMut<'_, T>,
    own: Option<&mut [f32]>,
    workspace: &mut [f32],
) {
    let width = weight.len();
    check(x, weight, &residual);
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
                            |[x, g, w]| x.to_f32() * g.to_f32() * factor::<T, FROM_ONE>(w),
                        );
                        let c = dot * r * r / width as f32;
                        for (((out, x), g), w) in out.iter_mut().zip(x).zip(g).zip(weight) {
                            let gw = g.to_f32() * factor::<T, FROM_ONE>(*w);
                            *out = T::from_f32(out.to_f32() + r * (gw - x.to_f32() * c));
                        }
                        for ((gw, x), g) in gw.iter_mut().zip(x).zip(g) {
                            *gw += g.to_f32() * x.to_f32() * r;
                        }
                    }
                }
            },
        );
    };
    let partial_len = self::workspace(x.rows(), width);
    let Some(own) = own else {
        residual.each_task(ROWS, |first, mut residual| run(first, &mut residual, &mut []));
        return;
    };
    let partial = &mut workspace[..partial_len];
    let tasks = (residual.tasks(ROWS), parallel::chunks(partial, width));
    parallel::each_part(tasks, |task, (mut residual, gw)| {
        gw.fill(0.0);
        run(task * ROWS, &mut residual, gw);
    });
    own.fill(0.0);
    for part in partial.chunks_exact(width) {
        own.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
}

fn check<T: Element>(x: View<'_, T>, weight: &[T], y: &ViewMut<'_, T>) {
    let shapes = ((x.rows(), x.cols()), (y.rows(), y.cols()));
    assert!(shapes.0 == shapes.1 && x.cols().is_multiple_of(weight.len()), "norm: shapes that do not fit: {shapes:?}");
}

/// The elements that [`backward`] needs for the gradient of a weight of `width`: the sums of its tasks.
pub(crate) fn workspace(rows: usize, width: usize) -> usize {
    rows.div_ceil(ROWS) * width
}

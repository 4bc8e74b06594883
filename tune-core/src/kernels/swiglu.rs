//! The gated activation of Llama-like MLPs (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use rayon::prelude::*;

use super::math::sigmoid;
use super::{Element, simd};

/// Elements that one task handles.
const TASK: usize = 1 << 14;

/// `y = silu(gate) · up`.
pub(crate) fn forward<T: Element>(gate: &[T], up: &[T], y: &mut [T]) {
    y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK))).for_each(|(y, (gate, up))| {
        simd(
            #[inline(always)]
            || {
                for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                    let g = g.to_f32();
                    *y = T::from_f32(g * sigmoid(g) * u.to_f32());
                }
            },
        );
    });
}

/// Replaces `gate` and `up` by their gradients, for the gradient `grad` of the result, and that one by the result.
pub(crate) fn backward<T: Element>(gate: &mut [T], up: &mut [T], grad: &mut [T]) {
    let parts = gate.par_chunks_mut(TASK).zip(up.par_chunks_mut(TASK)).zip(grad.par_chunks_mut(TASK));
    parts.for_each(|((gate, up), grad)| {
        simd(
            #[inline(always)]
            || {
                for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
                    let (g, u, of_y) = (gate.to_f32(), up.to_f32(), grad.to_f32());
                    let s = sigmoid(g);
                    let silu = g * s;
                    *up = T::from_f32(of_y * silu);
                    *gate = T::from_f32(of_y * u * (s + silu * (1.0 - s)));
                    *grad = T::from_f32(silu * u);
                }
            },
        );
    });
}

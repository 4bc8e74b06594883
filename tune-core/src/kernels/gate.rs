//! The gated activation of MLPs (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use super::math::{sigmoid, tanh};
use super::{Element, parallel, simd};

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// The Gaussian error linear unit, approximated with `tanh`.
    GeluTanh,
}

/// Elements that one task handles.
const TASK: usize = 1 << 14;

/// A function of the gate: its value, and its slope.
trait Curve: Copy + Sync {
    fn value(self, x: f32) -> f32;
    fn value_and_slope(self, x: f32) -> (f32, f32);
}

#[derive(Clone, Copy)]
struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        let s = sigmoid(x);
        let silu = x * s;
        (silu, s + silu * (1.0 - s))
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl GeluTanh {
    /// `sqrt(2 / π)`.
    const ROOT: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;

    /// `(1 + tanh(..)) / 2`.
    #[inline(always)]
    fn share(x: f32) -> f32 {
        0.5 * (1.0 + tanh(Self::ROOT * (x + Self::CUBIC * x * x * x)))
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        x * Self::share(x)
    }

    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        let share = Self::share(x);
        // The slope of tanh is 1 - tanh², that is 4 share (1 - share).
        let inner = Self::ROOT * (1.0 + 3.0 * Self::CUBIC * x * x);
        (x * share, share + 2.0 * x * share * (1.0 - share) * inner)
    }
}

/// `y = activation(gate) · up`.
pub(crate) fn forward<T: Element>(activation: Activation, gate: &[T], up: &[T], y: &mut [T]) {
    match activation {
        Activation::Silu => forward_with(Silu, gate, up, y),
        Activation::GeluTanh => forward_with(GeluTanh, gate, up, y),
    }
}

fn forward_with<T: Element>(curve: impl Curve, gate: &[T], up: &[T], y: &mut [T]) {
    parallel::each_chunk(y, TASK, |i, y| {
        let [gate, up] = [gate, up].map(|of| &of[i * TASK..][..y.len()]);
        simd(
            #[inline(always)]
            || {
                for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                    *y = T::from_f32(curve.value(g.to_f32()) * u.to_f32());
                }
            },
        );
    });
}

/// Replaces `gate` and `up` by their gradients, for the gradient `grad` of the result, and that one by the result.
pub(crate) fn backward<T: Element>(activation: Activation, gate: &mut [T], up: &mut [T], grad: &mut [T]) {
    match activation {
        Activation::Silu => backward_with(Silu, gate, up, grad),
        Activation::GeluTanh => backward_with(GeluTanh, gate, up, grad),
    }
}

fn backward_with<T: Element>(curve: impl Curve, gate: &mut [T], up: &mut [T], grad: &mut [T]) {
    let parts = (parallel::chunks(gate, TASK), (parallel::chunks(up, TASK), parallel::chunks(grad, TASK)));
    parallel::each_part(parts, |_, (gate, (up, grad))| {
        simd(
            #[inline(always)]
            || {
                for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
                    let (u, of_y) = (up.to_f32(), grad.to_f32());
                    let (value, slope) = curve.value_and_slope(gate.to_f32());
                    *up = T::from_f32(of_y * value);
                    *gate = T::from_f32(of_y * u * slope);
                    *grad = T::from_f32(value * u);
                }
            },
        );
    });
}

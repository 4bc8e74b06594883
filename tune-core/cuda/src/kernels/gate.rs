use super::both;
use crate::buffer::{Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

static FORWARD: [Kernel; 2] = both("gate", ["gate_forward_f32", "gate_forward_bf16"], "pppllllli");
static BACKWARD: [Kernel; 2] = both("gate", ["gate_backward_f32", "gate_backward_bf16"], "pppllllli");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&FORWARD, &BACKWARD];

/// The activation of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// GELU, approximated by tanh.
    GeluTanh,
}

impl Context {
    /// `y = act(gate) · up`, element by element.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn gate<T: Element>(&self, act: Activation, gate: View<'_, T>, up: View<'_, T>, y: ViewMut<'_, T>) {
        assert_eq!([gate.shape(), up.shape()], [y.shape(); 2], "gate: shapes that do not fit");
        Launch::new(self, &FORWARD[T::INDEX])
            .pointer(y.address)
            .pointer(gate.address)
            .pointer(up.address)
            .long(y.rows)
            .long(y.cols)
            .long(y.stride)
            .long(gate.stride)
            .long(up.stride)
            .int(act as usize)
            .go(Size::matrix(y.rows, y.cols, wide::<T>(), 256));
    }

    /// Replaces `gate` and `up` by their gradients, for the gradient `g` of the result, and that one by the result.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn gate_back<T: Element>(&self, act: Activation, gate: ViewMut<'_, T>, up: ViewMut<'_, T>, g: ViewMut<'_, T>) {
        assert_eq!([gate.shape(), up.shape()], [g.shape(); 2], "gate: shapes that do not fit");
        Launch::new(self, &BACKWARD[T::INDEX])
            .pointer(gate.address)
            .pointer(up.address)
            .pointer(g.address)
            .long(g.rows)
            .long(g.cols)
            .long(gate.stride)
            .long(up.stride)
            .long(g.stride)
            .int(act as usize)
            .go(Size::matrix(g.rows, g.cols, wide::<T>(), 256));
    }
}

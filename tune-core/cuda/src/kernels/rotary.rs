use super::both;
use crate::buffer::{Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

static TURN: [Kernel; 2] = both("rotary", ["rotary_f32", "rotary_bf16"], "ppplliiif");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&TURN];

/// Which way vectors are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the angle of the position.
    Forward,
    /// Back by it: the gradient of a turn.
    Back,
}

impl Context {
    /// Turns every head of `x` `[m, heads · head_dim]` in place. Row `i` has the angles whose cosines and sines are row `i` of the
    /// tables `[m, half]`, which have no gaps; element `j < half` is turned with element `j + half`, others stay.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn rotate<T: Element>(
        &self,
        x: ViewMut<'_, T>,
        head_dim: usize,
        (cos, sin): (View<'_, f32>, View<'_, f32>),
        turn: Turn,
    ) {
        let half = cos.cols;
        let tables = cos.shape() == sin.shape() && cos.rows == x.rows && [cos.stride, sin.stride] == [half; 2];
        let fits = half > 0 && 2 * half <= head_dim && x.cols.is_multiple_of(head_dim);
        assert!(tables && fits, "rotary: shapes that do not fit");
        let heads = x.cols / head_dim;
        Launch::new(self, &TURN[T::INDEX])
            .pointer(x.address)
            .pointer(cos.address)
            .pointer(sin.address)
            .long(x.rows)
            .long(x.stride)
            .int(heads)
            .int(head_dim)
            .int(2 * half)
            .float(if turn == Turn::Back { -1.0 } else { 1.0 })
            .go(Size::matrix(x.rows, heads * half, wide::<T>(), 128));
    }
}

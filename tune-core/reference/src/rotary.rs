//! Rotary position embeddings (Su et al. 2021, <https://arxiv.org/abs/2104.09864>), in the half-split order of Hugging Face's models.

use crate::{View, ViewMut};

/// Which way vectors are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the angle of the position.
    Forward,
    /// Back by it: the gradient of a turn.
    Back,
}

/// Turns every head of `x` `[m, heads · head_dim]` in place. Row `i` has the angles whose cosines and sines are row `i`
/// of `cos` and `sin` `[m, half]`; element `j < half` of a head is turned with element `j + half`, and what is behind
/// the first `2 · half` elements stays: `(a, b) ← (a c - b s, b c + a s)`.
pub fn turn(x: &mut ViewMut<'_>, head_dim: usize, (cos, sin): (View<'_>, View<'_>), turn: Turn) {
    let half = cos.cols();
    let fits = 2 * half <= head_dim && x.cols().is_multiple_of(head_dim) && sin.cols() == half;
    assert!(fits && cos.rows() == x.rows() && sin.rows() == x.rows(), "rotary: shapes that do not fit");
    for i in 0..x.rows() {
        for head in x.row(i).chunks_exact_mut(head_dim) {
            for j in 0..half {
                let (c, s) = (cos.row(i)[j], sin.row(i)[j]);
                let s = if turn == Turn::Back { -s } else { s };
                let (a, b) = (head[j], head[j + half]);
                head[j] = a * c - b * s;
                head[j + half] = b * c + a * s;
            }
        }
    }
}

//! Rotary position embeddings in place (Su et al. 2021, <https://arxiv.org/abs/2104.09864>), element `i`
//! of a head turning with element `i + head_dim / 2`.

use std::sync::Arc;

use rayon::prelude::*;

use super::view::ViewMut;
use super::{Element, simd};

/// Rows that one task handles.
const ROWS: usize = 32;

/// The angles of one batch: cosine and sine for each token and each pair of elements.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    /// `[tokens, head_dim / 2]`.
    pub(crate) cos: Arc<Vec<f32>>,
    /// `[tokens, head_dim / 2]`.
    pub(crate) sin: Arc<Vec<f32>>,
    pub(crate) head_dim: usize,
}

impl Rotary {
    /// Angles for tokens at `positions`, turning by `inverse_frequencies` (`[head_dim / 2]`, radians a position).
    ///
    /// Computed in f32, as in the reference implementations, so that long positions round alike.
    pub(crate) fn new(positions: &[u32], inverse_frequencies: &[f32]) -> Self {
        let angles: Vec<f32> =
            positions.iter().flat_map(|&p| inverse_frequencies.iter().map(move |f| p as f32 * f)).collect();
        Self {
            cos: Arc::new(angles.iter().map(|a| a.cos()).collect()),
            sin: Arc::new(angles.iter().map(|a| a.sin()).collect()),
            head_dim: 2 * inverse_frequencies.len(),
        }
    }
}

/// Which way to turn: the transpose of a rotation is its inverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Forward pass.
    Forward,
    /// Backward pass.
    Back,
}

/// Turns every head of `x` `[tokens, heads * head_dim]` by its token's angles.
pub(crate) fn turn<T: Element>(x: ViewMut<'_, T>, rotary: &Rotary, turn: Turn) {
    let (head_dim, half) = (rotary.head_dim, rotary.head_dim / 2);
    let angles = rotary.cos.par_chunks(ROWS * half).zip(rotary.sin.par_chunks(ROWS * half));
    x.par_tasks(ROWS).zip(angles).for_each(|((_, mut x), (cos, sin))| {
        simd(
            #[inline(always)]
            || {
                for (row, (cos, sin)) in cos.chunks_exact(half).zip(sin.chunks_exact(half)).enumerate() {
                    for head in x.row(row).chunks_exact_mut(head_dim) {
                        let (low, high) = head.split_at_mut(half);
                        for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                            let s = if turn == Turn::Back { -s } else { s };
                            let (x, y) = (a.to_f32(), b.to_f32());
                            *a = T::from_f32(x * c - y * s);
                            *b = T::from_f32(y * c + x * s);
                        }
                    }
                }
            },
        );
    });
}

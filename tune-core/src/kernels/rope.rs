//! Rotary position embeddings in place (Su et al. 2021, <https://arxiv.org/abs/2104.09864>), element `i`
//! of a head turning with element `i + turned / 2`; the elements after the turned ones stay.

use std::sync::Arc;

use super::rotary::RotarySpec;
use super::view::ViewMut;
use super::{Element, simd};

/// Rows that one task handles.
const ROWS: usize = 32;

/// The angles of one batch: cosine and sine for each token and each pair of elements.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    /// `[tokens, turned / 2]`.
    pub(crate) cos: Arc<Vec<f32>>,
    /// `[tokens, turned / 2]`.
    pub(crate) sin: Arc<Vec<f32>>,
    pub(crate) head_dim: usize,
    /// The elements of a head that are turned, the first ones.
    pub(crate) turned: usize,
}

impl Rotary {
    /// Angles for tokens at `positions` by a table, in heads of `head_dim` elements, each token in a sequence of as many
    /// tokens as `lens` says.
    ///
    /// Computed in f32, as in the reference implementations, so that long positions round alike.
    pub(crate) fn new(table: &RotarySpec, head_dim: usize, positions: &[u32], lens: &[usize]) -> Self {
        let (half, factor) = (table.dim / 2, table.attention_factor());
        let mut cos = Vec::with_capacity(half * positions.len());
        let mut sin = Vec::with_capacity(half * positions.len());
        let mut of_len: Option<(usize, Vec<f32>)> = None;
        for (&position, &len) in positions.iter().zip(lens) {
            let known = of_len.take().filter(|(known, _)| *known == len || !table.depends_on_length());
            let (len, frequencies) = known.unwrap_or_else(|| (len, table.inverse_frequencies(len)));
            for frequency in &frequencies {
                let angle = position as f32 * frequency;
                cos.push(angle.cos() * factor);
                sin.push(angle.sin() * factor);
            }
            of_len = Some((len, frequencies));
        }
        Self { cos: Arc::new(cos), sin: Arc::new(sin), head_dim, turned: table.dim }
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
    let (head_dim, half) = (rotary.head_dim, rotary.turned / 2);
    x.each_task(ROWS, |first, mut x| {
        let [cos, sin] = [&rotary.cos, &rotary.sin].map(|of| &of[first * half..][..x.rows() * half]);
        simd(
            #[inline(always)]
            || {
                for (row, (cos, sin)) in cos.chunks_exact(half).zip(sin.chunks_exact(half)).enumerate() {
                    for head in x.row(row).chunks_exact_mut(head_dim) {
                        let (low, high) = head[..2 * half].split_at_mut(half);
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

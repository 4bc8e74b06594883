//! The memory that attention needs besides its arguments.

use std::ops::Range;

use super::{Attention, AttentionShape, COLS, KEYS, Keys, Tile};
use crate::kernels::Element;
use crate::kernels::gemm::{Sides, workspace_here};
use crate::kernels::isa::Isa;
use crate::kernels::workspace::room;

/// Elements of f32 of each part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Keys in f32, where they are not; values as many.
    pub(super) widened: usize,
    /// Shares of the gradients of keys and values.
    shares: usize,
    pub(super) threads: usize,
    /// Of a thread: what each matrix product needs, and all else.
    pub(super) product: usize,
    other: usize,
}

impl Memory {
    pub(super) fn of_thread(&self) -> usize {
        room(self.product) + self.other
    }

    fn all(&self) -> usize {
        2 * room(self.widened) + room(self.shares) + self.threads * room(self.of_thread())
    }
}

impl Attention<'_> {
    /// The elements that [`Attention::forward`] needs on this many threads.
    pub(crate) fn forward_workspace<T: Element>(&self, threads: usize) -> usize {
        self.forward_memory::<T>(threads).all()
    }

    /// The elements that [`Attention::backward`] needs on this many threads.
    pub(crate) fn backward_workspace<T: Element>(&self, threads: usize) -> usize {
        self.backward_memory::<T>(threads).all()
    }

    pub(super) fn forward_memory<T: Element>(&self, threads: usize) -> Memory {
        let dim = self.shape.head_dim;
        let product = self.largest([((KEYS, COLS), Some(dim), dim), ((COLS, dim), None, KEYS)]);
        Memory {
            widened: Keys::widened::<T>(self.stretches, self.widths().1),
            shares: 0,
            threads,
            product,
            other: 2 * room(COLS * dim),
        }
    }

    pub(super) fn backward_memory<T: Element>(&self, threads: usize) -> Memory {
        let dim = self.shape.head_dim;
        let product =
            self.largest([((KEYS, COLS), Some(dim), dim), ((KEYS, dim), Some(COLS), COLS), ((COLS, dim), None, KEYS)]);
        let scores_and_columns = 2 * room(KEYS * COLS) + 3 * room(COLS * dim);
        // The sums of shares, when those are there, take the same memory.
        let other = scores_and_columns.max(room(KEYS * dim));
        let shares = shares(&self.shape, &self.backward_tiles()).1;
        Memory { widened: Keys::widened::<T>(self.stretches, self.widths().1), shares, threads, product, other }
    }

    /// The most that one of these products needs: its size, the width of its left side's rows, and its inner dimension.
    fn largest<const N: usize>(&self, products: [((usize, usize), Option<usize>, usize); N]) -> usize {
        let of = |(size, left_width, inner)| {
            workspace_here::<f32>(Isa::get(), size, &[Sides { left_width, inner, quantized: false, up: false }])
        };
        products.map(of).into_iter().max().unwrap_or(0)
    }
}

/// Where the share of each tile is, keys before values, and the elements of all.
pub(super) fn shares(shape: &AttentionShape, tiles: &[Tile]) -> (Vec<Range<usize>>, usize) {
    let mut end = 0;
    let places = tiles.iter().map(|tile| {
        let seen = tile.first + tile.queries - shape.first_key(tile.first);
        let start = end;
        end += 2 * seen * shape.head_dim;
        start..end
    });
    (places.collect(), end)
}

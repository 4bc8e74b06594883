//! The buffers of attention on paper.

use super::{Attention, COLS, KEYS, Tile};
use crate::kernels::Element;
use crate::kernels::footprint::Paper;
use crate::kernels::gemm::Sides;
use crate::kernels::ledger::Entry;

impl Attention<'_> {
    /// See [`Attention::forward`], for so many tokens.
    pub(crate) fn forward_on_paper<T: Element>(&self, tokens: usize, paper: &Paper) {
        let dim = self.shape.head_dim;
        let _wide = self.wide::<T>(tokens, paper);
        let tiles = self.tiles(|_, queries| queries);
        let threads = paper.threads.min(tiles.len());
        // A tile leaves the arena as it found it: one of each size says it all.
        for tile in first_of_each(&tiles, |t| t.cols()) {
            let size = tile.cols() * dim;
            let _buffers: Vec<_> =
                (0..threads).map(|_| [paper.buffer::<f32>(size), paper.buffer::<f32>(size)]).collect();
            for (_, keys) in self.key_blocks(tile) {
                paper.multiply_here::<f32>(threads, (keys, tile.cols()), &[Sides::plain(dim)]);
                paper.multiply_here::<f32>(threads, (tile.cols(), dim), &[Sides::transposed(keys)]);
            }
        }
    }

    /// See [`Attention::backward`], for so many tokens.
    pub(crate) fn backward_on_paper<T: Element>(&self, tokens: usize, paper: &Paper) {
        let (dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let _wide = self.wide::<T>(tokens, paper);
        let mut shares = Vec::new();
        for tiles in self.backward_tiles().chunks(paper.threads) {
            let mut scratch = Vec::new();
            for tile in tiles {
                let seen = tile.first + tile.queries - self.shape.first_key(tile.first);
                shares.extend([0; 2].map(|_| paper.buffer::<f32>(seen * dim)));
                scratch.extend([0; 2].map(|_| paper.buffer::<f32>(KEYS * COLS)));
            }
            let Some(&tile) = tiles.first() else { continue };
            let parts: Vec<_> = tile.parts().collect();
            for part in first_of_each(&parts, |p| p.queries) {
                let cols = part.cols();
                let _buffers: Vec<_> = tiles.iter().map(|_| [0; 3].map(|_| paper.buffer::<f32>(cols * dim))).collect();
                for (_, keys) in self.key_blocks(part) {
                    let multiply = |size, sides| paper.multiply_here::<f32>(tiles.len(), size, &[sides]);
                    multiply((keys, cols), Sides::plain(dim));
                    multiply((keys, dim), Sides::plain(cols));
                    multiply((cols, dim), Sides::transposed(keys));
                }
            }
        }
        let heads: Vec<_> = self.spans.iter().flat_map(|span| std::iter::repeat_n(span.len, kv_heads)).collect();
        for lens in heads.chunks(paper.threads) {
            let _sums: Vec<_> = lens.iter().map(|len| paper.buffer::<f32>(len * dim)).collect();
        }
    }

    /// Copies of keys and values in f32, where they are not.
    fn wide<T: Element>(&self, tokens: usize, paper: &Paper) -> Option<[Entry; 2]> {
        let len = tokens * self.widths().1;
        T::IS_BF16.then(|| [0; 2].map(|_| paper.buffer::<f32>(len)))
    }
}

/// Of tiles that are alike by `size`, the first.
fn first_of_each(tiles: &[Tile], size: impl Fn(&Tile) -> usize) -> Vec<&Tile> {
    let mut seen = Vec::new();
    let mut is_new = |tile: &Tile| {
        let size = size(tile);
        let new = !seen.contains(&size);
        seen.extend(new.then_some(size));
        new
    };
    tiles.iter().filter(|tile| is_new(tile)).collect()
}

//! Causal attention over packed sequences, tile by tile with an online softmax
//! (FlashAttention-2, Dao 2023, <https://arxiv.org/abs/2307.08691>).
//!
//! Scores are made transposed, a row for each key and a column for each query of a tile: keys and
//! values are then read where they lie, only a tile's queries are gathered, and the softmax goes down the
//! columns, a vector at a time. Query heads that share keys share a tile: the fewer queries it spans, the less
//! is computed beyond the diagonal. Nothing is kept but the output and the logarithm of each query's
//! normalizer. Everything is computed in f32.

mod backward;
mod forward;
mod shape;
mod workspace;

pub use shape::AttentionShape;

use std::ops::Range;

use super::view::View;
use super::{Element, widen};
use crate::data::Span;

/// Columns of a tile: as many as a tile of a matrix product has.
const COLS: usize = 48;
/// Keys handled at once: their scores stay in the second-level cache.
const KEYS: usize = 256;

/// The arguments that the forward and the backward pass share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) shape: AttentionShape,
    /// Attention never leaves a span.
    pub(crate) spans: &'a [Span],
    /// Positions in a row of the batch.
    pub(crate) len: usize,
}

/// Consecutive queries of one span, in query heads that share their keys. Column `i * heads + h` of what is
/// computed for it belongs to query `first + i` and head `head + h`.
#[derive(Debug, Clone, Copy)]
struct Tile {
    /// The span's number.
    span: usize,
    kv_head: usize,
    /// The first query head, and how many.
    head: usize,
    heads: usize,
    /// The first position in the span, and how many.
    first: usize,
    queries: usize,
}

impl Tile {
    fn cols(&self) -> usize {
        self.queries * self.heads
    }

    /// The same in parts of at most [`COLS`] columns.
    fn parts(self) -> impl Iterator<Item = Self> {
        let (end, size) = (self.first + self.queries, COLS / self.heads);
        (self.first..end).step_by(size).map(move |first| Self { first, queries: size.min(end - first), ..self })
    }
}

impl Attention<'_> {
    /// Elements of a token: of its queries, and of its keys and of its values.
    fn widths(&self) -> (usize, usize) {
        (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim)
    }

    /// All queries in tiles of so many as `size` says of a span's length, the longest-running first.
    fn tiles(&self, size: impl Fn(usize, usize) -> usize) -> Vec<Tile> {
        let group = self.shape.heads / self.shape.kv_heads;
        let mut tiles = Vec::new();
        for (number, span) in self.spans.iter().enumerate() {
            for head in (0..self.shape.heads).step_by(group).flat_map(|h| (h..h + group).step_by(COLS)) {
                let kv_head = head / group;
                let heads = COLS.min((kv_head + 1) * group - head);
                let size = size(span.len, COLS / heads);
                tiles.extend((0..span.len).step_by(size).map(|first| Tile {
                    span: number,
                    kv_head,
                    head,
                    heads,
                    first,
                    queries: size.min(span.len - first),
                }));
            }
        }
        tiles.sort_by_key(|t| std::cmp::Reverse(t.first + t.queries));
        tiles
    }

    /// The number of a token in the batch.
    fn token(&self, span: usize, position: usize) -> usize {
        let span = &self.spans[span];
        span.row * self.len + span.start + position
    }

    /// `keys` keys or values of a tile's head, from `position` of its span on.
    fn rows<'x>(&self, x: View<'x, f32>, tile: &Tile, position: usize, keys: usize) -> View<'x, f32> {
        let (token, col) = (self.token(tile.span, position), tile.kv_head * self.shape.head_dim);
        x.part(token..token + keys, col..col + self.shape.head_dim)
    }

    /// Where query `i` of a tile is in queries or outputs: its row, and the columns of the tile's heads, which are neighbours.
    fn at(&self, tile: &Tile, i: usize) -> (usize, Range<usize>) {
        let col = tile.head * self.shape.head_dim;
        (self.token(tile.span, tile.first + i), col..col + tile.heads * self.shape.head_dim)
    }

    /// The rows of `x`, shaped as the queries, that are a tile's columns, into `gathered` `[cols, head_dim]`.
    fn gather<'g, T: Element>(&self, x: View<'_, T>, tile: &Tile, gathered: &'g mut [f32]) -> &'g [f32] {
        let len = tile.heads * self.shape.head_dim;
        for (i, row) in gathered.chunks_exact_mut(len).enumerate() {
            let (token, cols) = self.at(tile, i);
            widen(&x.row(token)[cols], row);
        }
        gathered
    }

    /// The keys that a tile's queries see, in blocks: the first and how many.
    fn key_blocks(&self, tile: &Tile) -> impl Iterator<Item = (usize, usize)> {
        let (start, end) = (self.shape.first_key(tile.first), tile.first + tile.queries);
        (start..end).step_by(KEYS).map(move |k| (k, KEYS.min(end - k)))
    }

    /// Which of a tile's columns see `key`.
    #[inline(always)]
    fn seeing(&self, tile: &Tile, key: usize) -> Range<usize> {
        let end = self.shape.window.map_or(tile.queries, |w| (key + w).saturating_sub(tile.first).min(tile.queries));
        key.saturating_sub(tile.first).min(end) * tile.heads..end * tile.heads
    }

    /// Whether there are positions outside every span.
    fn has_gaps(&self, tokens: usize) -> bool {
        self.spans.iter().map(|s| s.len).sum::<usize>() < tokens
    }
}

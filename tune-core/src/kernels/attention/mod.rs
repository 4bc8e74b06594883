//! Causal attention over packed sequences, tile by tile with an online softmax
//! (FlashAttention-2, Dao 2023, <https://arxiv.org/abs/2307.08691>).
//!
//! Scores are made transposed, a row for each key and a column for each query of a tile: keys and
//! values are then read where they are, only a tile's queries are gathered, and the softmax goes down the
//! columns, a vector at a time. Query heads that share keys share a tile: the fewer queries it spans, the less
//! is computed beyond the diagonal. Nothing is kept but the output and the logarithm of each query's
//! normalizer. Everything is computed in f32.

mod backward;
mod forward;
mod newest;
mod shape;
mod workspace;

pub use shape::AttentionShape;

use std::ops::Range;

use super::view::View;
use super::{Element, widen, widen_rows};

/// Columns of a tile: as many as a tile of a matrix product has.
const COLS: usize = 48;
/// Keys handled at once: their scores stay in the second-level cache.
const KEYS: usize = 256;

/// The arguments that the forward and the backward pass share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) shape: AttentionShape,
    /// Attention never leaves a stretch.
    pub(crate) stretches: &'a [Stretch],
}

/// Consecutive tokens of one sequence: their queries, and the keys of the sequence up to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// The row of the first query, and how many there are.
    pub(crate) queries: usize,
    pub(crate) len: usize,
    /// The row of the sequence's first key, and how many keys come before that of the first query.
    pub(crate) keys: usize,
    pub(crate) past: usize,
}

impl Stretch {
    /// Keys of the sequence.
    fn seen(&self) -> usize {
        self.past + self.len
    }
}

/// Consecutive queries of one stretch, in query heads that share their keys. Column `i * heads + h` of what is
/// computed for it belongs to query `first + i` and head `head + h`.
#[derive(Debug, Clone, Copy)]
struct Tile {
    /// The stretch's number.
    stretch: usize,
    kv_head: usize,
    /// The first query head, and how many.
    head: usize,
    heads: usize,
    /// The first position in the sequence, and how many.
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

    /// All queries in tiles as large as `size` says of a stretch's length, the longest-running first.
    fn tiles(&self, size: impl Fn(usize, usize) -> usize) -> Vec<Tile> {
        let group = self.shape.heads / self.shape.kv_heads;
        let mut tiles = Vec::new();
        for (number, stretch) in self.stretches.iter().enumerate() {
            for head in (0..self.shape.heads).step_by(group).flat_map(|h| (h..h + group).step_by(COLS)) {
                let kv_head = head / group;
                let heads = COLS.min((kv_head + 1) * group - head);
                let size = size(stretch.len, COLS / heads);
                tiles.extend((0..stretch.len).step_by(size).map(|first| Tile {
                    stretch: number,
                    kv_head,
                    head,
                    heads,
                    first: stretch.past + first,
                    queries: size.min(stretch.len - first),
                }));
            }
        }
        tiles.sort_by_key(|t| std::cmp::Reverse(t.first + t.queries));
        tiles
    }

    /// `count` keys or values of a tile's head, from `position` of its sequence on.
    fn rows<'x>(&self, of: &Keys<'x>, which: Which, tile: &Tile, position: usize, count: usize) -> View<'x, f32> {
        let (row, col) = (of.starts[tile.stretch] + position, tile.kv_head * self.shape.head_dim);
        of.both[which as usize].part(row..row + count, col..col + self.shape.head_dim)
    }

    /// Where query `i` of a tile is in queries or outputs: its row, and the columns of the tile's heads, which are neighbours.
    fn at(&self, tile: &Tile, i: usize) -> (usize, Range<usize>) {
        let (stretch, col) = (&self.stretches[tile.stretch], tile.head * self.shape.head_dim);
        let row = stretch.queries + tile.first - stretch.past + i;
        (row, col..col + tile.heads * self.shape.head_dim)
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

    /// The keys that a tile's queries see, in blocks: the first and how many. Blocks begin at the same keys for every
    /// tile, so that what a query sees is summed in the same order whichever queries are beside it.
    fn key_blocks(&self, tile: &Tile) -> impl Iterator<Item = (usize, usize)> {
        let (start, end) = (self.shape.first_key(tile.first), tile.first + tile.queries);
        (start / KEYS * KEYS..end).step_by(KEYS).map(move |block| {
            let first = block.max(start);
            (first, end.min(block + KEYS) - first)
        })
    }

    /// Which of a tile's columns see `key`.
    #[inline(always)]
    fn seeing(&self, tile: &Tile, key: usize) -> Range<usize> {
        let end = self.shape.window.map_or(tile.queries, |w| (key + w).saturating_sub(tile.first).min(tile.queries));
        key.saturating_sub(tile.first).min(end) * tile.heads..end * tile.heads
    }

    /// Whether there are rows outside every stretch.
    fn has_gaps(&self, rows: usize) -> bool {
        self.stretches.iter().map(|s| s.len).sum::<usize>() < rows
    }
}

/// Keys and values in f32.
struct Keys<'a> {
    both: [View<'a, f32>; 2],
    /// The row of each stretch's first key.
    starts: Vec<usize>,
}

/// One of [`Keys::both`].
#[derive(Debug, Clone, Copy)]
enum Which {
    Keys,
    Values,
}

impl<'a> Keys<'a> {
    /// As they are, or widened, those of one stretch behind the other, into memory of [`Keys::widened`] elements each.
    fn new<T: Element>(stretches: &[Stretch], both: [View<'a, T>; 2], memory: [&'a mut [f32]; 2]) -> Self {
        let [k, v] = both;
        if let (Some(k), Some(v)) = (T::as_f32(k), T::as_f32(v)) {
            return Self { both: [k, v], starts: stretches.iter().map(|s| s.keys).collect() };
        }
        let mut end = 0;
        let starts: Vec<usize> = stretches
            .iter()
            .map(|stretch| {
                end += stretch.seen();
                end - stretch.seen()
            })
            .collect();
        let cols = k.cols();
        let widened = |of: View<'a, T>, memory: &'a mut [f32]| {
            for (stretch, start) in stretches.iter().zip(&starts) {
                let rows = of.part(stretch.keys..stretch.keys + stretch.seen(), 0..cols);
                widen_rows(rows, &mut memory[start * cols..(start + stretch.seen()) * cols]);
            }
            View::new(memory, cols)
        };
        let [of_keys, of_values] = memory;
        Self { both: [widened(k, of_keys), widened(v, of_values)], starts }
    }

    /// Elements of the keys of all stretches in f32, if they are not.
    fn widened<T: Element>(stretches: &[Stretch], cols: usize) -> usize {
        if T::IS_BF16 { stretches.iter().map(|s| s.seen() * cols).sum() } else { 0 }
    }
}

//! Left sides as tiles read them.

use std::ops::Range;

use super::tiles::{TILE, TILE_ROW};
use super::{BLOCK, INNER, TILE_WORDS, pack};
use crate::kernels::gemm::Side;
use crate::kernels::view::View;
use crate::kernels::{Element, parallel};

/// Words of a step of a packed block.
const STEP: usize = 2 * TILE_WORDS;
/// Words that a packed left side takes, at most, where it could be read as it is stored (8 MiB).
const PACKED: usize = 2 << 20;
/// Columns of a result from which on packing what could be read as it is stored is little beside using it.
const COLS: usize = 256;
/// Elements of a page: rows so far apart meet in the same few lines of a cache.
const PAGE: usize = 2048;

/// Whether a left side `[m, k]` of a result with `n` columns is packed as a whole; `width` is that of its rows, `None` if the
/// transpose is stored.
///
/// Where the steps are in several groups, it is read once for all panels of a task and each group.
fn is_packed(width: Option<usize>, (m, k, n): (usize, usize, usize)) -> bool {
    let Some(width) = width else { return true };
    let pays = super::groups(k.div_ceil(INNER)).0 > 1 || width.is_multiple_of(PAGE);
    pays && n >= COLS && packed_words(m, k) <= PACKED
}

fn packed_words(m: usize, k: usize) -> usize {
    m.div_ceil(BLOCK) * k.div_ceil(INNER) * STEP
}

/// Words that the edges of a left side take that is read as it is stored: the rows behind the last whole block, and the
/// elements behind the last whole step of each other block.
fn edge_words(m: usize, k: usize) -> (usize, usize) {
    let rows = if m.is_multiple_of(BLOCK) { 0 } else { k.div_ceil(INNER) * STEP };
    (rows, if k.is_multiple_of(INNER) { 0 } else { m / BLOCK * STEP })
}

/// Words that a left side needs, see [`is_packed`].
pub(super) fn words(width: Option<usize>, (m, k, n): (usize, usize, usize)) -> usize {
    if is_packed(width, (m, k, n)) {
        return packed_words(m, k);
    }
    let (rows, tails) = edge_words(m, k);
    rows + tails
}

/// A left side that tiles can read.
#[derive(Clone, Copy)]
pub(super) struct Left {
    steps: usize,
    /// All blocks, or the one behind the last whole one, packed.
    packed: *const f32,
    /// The blocks that are read as they are stored.
    stored: Option<Stored>,
}

#[derive(Clone, Copy)]
struct Stored {
    start: *const u8,
    /// Bytes from one row to the next.
    row: usize,
    /// Whole blocks, and whole steps of each.
    blocks: usize,
    whole: usize,
    /// The last step of each block, packed, where it is no whole one.
    tails: *const f32,
}

// SAFETY: the pointers are to elements that are borrowed for as long as the product is computed, and only read.
unsafe impl Sync for Left {}

/// Steps of two tiles whose rows are equally far apart.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) start: *const u8,
    /// Bytes from one row to the next, from the first row to that of the second tile, and from one step to the next.
    pub(super) row: usize,
    pub(super) lower: usize,
    pub(super) step: usize,
    pub(super) steps: usize,
}

impl Left {
    /// Rewrites what has to be into `memory`, of as many elements as [`words`] says, for a result with `n` columns.
    pub(super) fn new<T: Element>(of: &Side<'_, T>, n: usize, parallel: bool, memory: &mut [f32]) -> Self {
        let (stored, width, (m, k)) = match of {
            Side::Rows(l) => (l, Some(l.stride()), (l.rows(), l.cols())),
            Side::Columns(l) => (l, None, (l.cols(), l.rows())),
        };
        let steps = k.div_ceil(INNER);
        if is_packed(width, (m, k, n)) {
            let rows = |block: usize| block * BLOCK..m.min((block + 1) * BLOCK);
            each(memory, steps * STEP, parallel, |block, dst| {
                // SAFETY: the processor has AVX-512.
                unsafe {
                    match of {
                        Side::Rows(l) => pack::left(l.part(rows(block), 0..k), dst),
                        Side::Columns(l) => pack::left_of_columns(l.part(0..k, rows(block)), dst),
                    }
                }
            });
            return Self { steps, packed: memory.as_ptr(), stored: None };
        }
        let (blocks, whole) = (m / BLOCK, k / INNER);
        let (edge, tails) = memory.split_at_mut(edge_words(m, k).0);
        let part = |rows: Range<usize>, from: usize| -> View<'_, T> { stored.part(rows, from..k) };
        if !edge.is_empty() {
            // SAFETY: the processor has AVX-512.
            unsafe { pack::left(part(blocks * BLOCK..m, 0), edge) };
        }
        each(tails, STEP, parallel, |block, dst| {
            // SAFETY: as above.
            unsafe { pack::left(part(block * BLOCK..(block + 1) * BLOCK, whole * INNER), dst) };
        });
        let row = stored.stride() * size_of::<T>();
        let stored = Stored { start: stored.as_ptr().cast(), row, blocks, whole, tails: tails.as_ptr() };
        Self { steps, packed: edge.as_ptr(), stored: Some(stored) }
    }

    /// Where steps `from..to` of a block are: one run or two.
    pub(super) fn runs(&self, block: usize, from: usize, to: usize) -> impl Iterator<Item = Run> {
        let packed = |start: *const f32, steps: usize| Run {
            start: start.cast(),
            row: TILE_ROW,
            lower: TILE * TILE_ROW,
            step: 2 * TILE * TILE_ROW,
            steps,
        };
        let of_packed = |block: usize| packed(self.packed.wrapping_add((block * self.steps + from) * STEP), to - from);
        let (first, second) = match self.stored {
            None => (of_packed(block), None),
            Some(stored) if block >= stored.blocks => (of_packed(block - stored.blocks), None),
            Some(Stored { start, row, whole, tails, .. }) => {
                let start = start.wrapping_add(block * BLOCK * row + from * TILE_ROW);
                let steps = to.min(whole).saturating_sub(from);
                let tail = (to > whole).then(|| packed(tails.wrapping_add(block * STEP), 1));
                (Run { start, row, lower: TILE * row, step: TILE_ROW, steps }, tail)
            }
        };
        std::iter::once(first).chain(second).filter(|run| run.steps > 0)
    }
}

/// Fills `memory` piece by piece.
fn each(memory: &mut [f32], size: usize, parallel: bool, fill: impl Fn(usize, &mut [f32]) + Sync) {
    let size = size.max(1);
    if parallel {
        parallel::each_chunk(memory, size, fill);
    } else {
        memory.chunks_mut(size).enumerate().for_each(|(number, piece)| fill(number, piece));
    }
}

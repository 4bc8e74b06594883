//! What one task computes: some blocks of rows, in some panels of columns.

use std::ops::Range;

use super::left::{Left, Run};
use super::tiles::{TILE, TILE_ROW, Tiles};
use super::{BLOCK, BLOCK_WORDS, INNER, TILE_WORDS, pack};
use crate::kernels::Element;
use crate::kernels::gemm::ahead::Ahead;
use crate::kernels::gemm::groups::{Group, Piece, steps_of};
use crate::kernels::gemm::{At, Epilogue, Right};
use crate::kernels::view::ViewMut;

/// Steps between two shares of the rows that are handed on meanwhile.
const CHUNK: usize = 4;
/// Bytes of a row of a block's sums, and from its upper tiles to its lower ones.
const ROW: usize = 4 * BLOCK;
const LOWER: usize = TILE * ROW;

/// A term whose left side can be read by tiles.
pub(super) struct Ready<'a, T> {
    pub(super) left: Left,
    pub(super) right: Right<'a, T>,
    pub(super) inner: usize,
    pub(super) steps: usize,
}

impl<T> Ready<'_, T> {
    /// The inner elements of some of its steps.
    fn elements(&self, piece: &Piece) -> Range<usize> {
        piece.from * INNER..self.inner.min(piece.to * INNER)
    }
}

/// The memory of one task.
pub(super) struct Memory<'a> {
    /// For the packed right sides of a group of steps.
    pub(super) packed: &'a mut [f32],
    /// For the sums of its blocks: of all, where there are several groups, else of one.
    pub(super) sums: &'a mut [f32],
}

/// Computes blocks `blocks` of a sum of products, in columns given by the panels.
///
/// While a panel is computed, the sources of the next one are fetched; `next` is the panel that this thread will likely meet
/// after this task. What becomes of a block's sums is computed while the units are busy with the next block.
///
/// # Safety
/// The processor has AVX-512 and what the tiles need, the columns of a panel are at most [`BLOCK`], and nobody else writes to
/// that part of `dst`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn stripe<X: Tiles, T: Element, D>(
    terms: &[Ready<'_, T>],
    blocks: Range<usize>,
    panels: &(impl Iterator<Item = Range<usize>> + Clone),
    next: Option<&Range<usize>>,
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    memory: Memory<'_>,
) {
    let (steps, count) = steps_of(terms, |term| term.steps);
    let steps = &steps[..count];
    let (groups, size) = super::groups(steps.iter().sum());
    let Memory { packed, sums } = memory;
    let kept = if groups == 1 { 1 } else { blocks.len() * panels.clone().count() };
    assert!(sums.len() >= kept * BLOCK_WORDS, "as large as needed");
    let sums = sums.as_mut_ptr();

    // SAFETY: as the caller promises.
    let mut tiles = unsafe { X::new() };
    let mut pending = Pending { sums, first: At { row: 0, col: 0 }, cols: 0, rows: 0..0 };
    let first_group = Group::default().next(steps, size);
    let mut group = first_group;
    for g in 0..groups {
        let (following, panel) = match g + 1 < groups {
            true => (group.next(steps, size), panels.clone().next()),
            false => (first_group, next.cloned()),
        };
        let others = panels.clone().skip(1).map(|cols| (group, cols));
        let mut upcoming = others.chain(panel.map(|cols| (following, cols)));
        for (p, cols) in panels.clone().enumerate() {
            let two = cols.len() > TILE;
            let step = if two { 2 * TILE_WORDS } else { TILE_WORDS };
            let mut used = 0;
            for piece in group.pieces() {
                let part = &mut packed[used..][..(piece.to - piece.from) * step];
                used += part.len();
                let term = &terms[piece.term];
                pack::right(&term.right, &cols, term.elements(piece), part);
            }
            let mut ahead = match upcoming.next() {
                Some((group, cols)) => {
                    let source = |piece: &Piece| (terms[piece.term].right, terms[piece.term].elements(piece));
                    Ahead::new(group.pieces().iter().map(source), &cols, blocks.len())
                }
                None => Ahead::none(),
            };
            let chunks: usize = group.pieces().iter().map(|piece| (piece.to - piece.from).div_ceil(CHUNK)).sum();
            let share = BLOCK.div_ceil(chunks.max(1));
            for block in blocks.clone() {
                ahead.fetch();
                let number = if groups == 1 { 0 } else { p * blocks.len() + block - blocks.start };
                let first = At { row: block * BLOCK, col: cols.start };
                let rows = BLOCK.min(dst.rows() - first.row);
                // SAFETY: there are this many blocks, as asserted. Sums that are pending are handed on before others take their place.
                unsafe {
                    let sums = sums.add(number * BLOCK_WORDS);
                    let shape = (rows > TILE, two);
                    match g {
                        0 => zero(&mut tiles),
                        _ => load(&mut tiles, sums.cast()),
                    }
                    let mut right = packed.as_ptr().cast::<u8>();
                    for piece in group.pieces() {
                        for run in terms[piece.term].left.runs(block, piece.from, piece.to) {
                            let mut done = 0;
                            while done < run.steps {
                                let steps = CHUNK.min(run.steps - done);
                                let start = run.start.wrapping_add(done * run.step);
                                add(&mut tiles, shape, Run { start, steps, ..run }, right);
                                right = right.wrapping_add(steps * step * 4);
                                done += steps;
                                pending.hand_on(share, dst, epilogue);
                            }
                        }
                    }
                    pending.hand_on(BLOCK, dst, epilogue);
                    store(&tiles, sums.cast());
                    if g + 1 == groups {
                        pending = Pending { sums, first, cols: cols.len(), rows: 0..rows };
                    }
                }
            }
        }
        group = following;
    }
    // SAFETY: as above.
    unsafe { pending.hand_on(BLOCK, dst, epilogue) };
}

/// A block whose sums are still to be handed on.
struct Pending {
    sums: *const f32,
    first: At,
    cols: usize,
    /// The rows that are left.
    rows: Range<usize>,
}

impl Pending {
    /// Hands on at most this many rows.
    ///
    /// # Safety
    /// Nobody else uses that part of `dst`, and the sums are there.
    #[inline(always)]
    unsafe fn hand_on<D>(&mut self, count: usize, dst: &ViewMut<'_, D>, epilogue: &impl Epilogue<D>) {
        for row in self.rows.by_ref().take(count) {
            let at = At { row: self.first.row + row, col: self.first.col };
            // SAFETY: as the caller promises. A whole row has a length that the compiler knows.
            unsafe {
                let sums = &*self.sums.add(row * BLOCK).cast::<[f32; BLOCK]>();
                if self.cols == BLOCK {
                    epilogue(at, sums, dst.part(at.row, at.col, BLOCK));
                } else {
                    epilogue(at, &sums[..self.cols], dst.part(at.row, at.col, self.cols));
                }
            }
        }
    }
}

/// Makes the sums in tiles 0 to 3 zeros.
#[inline(always)]
fn zero(tiles: &mut impl Tiles) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
}

/// Reads the sums of a block: tiles 0 and 1 are its upper rows.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn load(tiles: &mut impl Tiles, sums: *const u8) {
    // SAFETY: as the caller promises.
    unsafe {
        tiles.load::<0>(sums, ROW);
        tiles.load::<1>(sums.add(TILE_ROW), ROW);
        tiles.load::<2>(sums.add(LOWER), ROW);
        tiles.load::<3>(sums.add(LOWER + TILE_ROW), ROW);
    }
}

/// Writes the sums of a block.
///
/// # Safety
/// There is room for them.
#[inline(always)]
unsafe fn store(tiles: &impl Tiles, sums: *mut u8) {
    // SAFETY: as the caller promises.
    unsafe {
        tiles.store::<0>(sums, ROW);
        tiles.store::<1>(sums.add(TILE_ROW), ROW);
        tiles.store::<2>(sums.add(LOWER), ROW);
        tiles.store::<3>(sums.add(LOWER + TILE_ROW), ROW);
    }
}

/// Adds some steps to a block, which has two tiles of rows or one, and two of columns or one.
///
/// # Safety
/// Both sides have this many steps.
#[inline(always)]
unsafe fn add(tiles: &mut impl Tiles, shape: (bool, bool), left: Run, right: *const u8) {
    // SAFETY: as the caller promises.
    unsafe {
        match shape {
            (true, true) => add_tiles::<_, true, true>(tiles, left, right),
            (true, false) => add_tiles::<_, true, false>(tiles, left, right),
            (false, true) => add_tiles::<_, false, true>(tiles, left, right),
            (false, false) => add_tiles::<_, false, false>(tiles, left, right),
        }
    }
}

/// The left side comes from the second-level cache and would push the packed right side out of the first.
#[inline(always)]
unsafe fn add_tiles<X: Tiles, const ROWS: bool, const COLS: bool>(tiles: &mut X, left: Run, right: *const u8) {
    let (mut a, mut b) = (left.start, right);
    for _ in 0..left.steps {
        // SAFETY: both sides have such a step, as the caller promises.
        unsafe {
            tiles.load::<6>(b, TILE_ROW);
            tiles.load_once::<4>(a, left.row);
            tiles.dot::<0, 4, 6>();
            if COLS {
                tiles.load::<7>(b.add(TILE * TILE_ROW), TILE_ROW);
                tiles.dot::<1, 4, 7>();
            }
            if ROWS {
                tiles.load_once::<5>(a.add(left.lower), left.row);
                tiles.dot::<2, 5, 6>();
                if COLS {
                    tiles.dot::<3, 5, 7>();
                }
            }
        }
        a = a.wrapping_add(left.step);
        b = b.wrapping_add(if COLS { 2 } else { 1 } * TILE * TILE_ROW);
    }
}

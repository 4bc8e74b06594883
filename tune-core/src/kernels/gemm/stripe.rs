//! What one task computes: some rows of a sum of products, in some panels of columns.

use std::ops::Range;

use super::ahead::Ahead;
use super::avx512::{self, Operands};
use super::groups::{Group, MAX_TERMS, Piece, steps_of};
use super::pack::{Ready, Word};
use super::{At, COLS, Epilogue, LANES, ROWS, Right, Side};
use crate::kernels::Element;
use crate::kernels::view::ViewMut;

/// Inner steps whose packed right side stays in the second-level cache, with the left sides that meet it.
const STEPS: usize = 768;

/// The memory of one task.
pub(super) struct Memory<'a> {
    /// For the packed right sides of a group of inner steps.
    pub(super) packed: &'a mut [f32],
    /// For the sums of its tiles: of all, where there are several groups, else of one.
    pub(super) sums: &'a mut [f32],
}

/// Sums that the panels of a task may hold between two groups of inner steps (384 KiB).
const SUMS: usize = 96 << 10;

/// Of this many inner steps, in how many groups they are taken, and the steps of each.
pub(super) fn groups(total: usize) -> (usize, usize) {
    let groups = ((total + STEPS / 2) / STEPS).max(1);
    (groups, total.div_ceil(groups).max(1))
}

/// Of `panels` of a product with `rows` rows and this many inner steps, how many one task handles.
///
/// Where the inner steps are in several groups, the left sides of one group stay in the cache
/// while it meets all panels of a task: the more, the less often they come from memory.
pub(super) fn panels_per_task(steps: usize, rows: usize, panels: usize, threads: usize) -> usize {
    if groups(steps).0 == 1 {
        return 1;
    }
    let few = panels.div_ceil(2 * threads);
    few.min(SUMS / (rows.next_multiple_of(ROWS) * COLS)).max(1)
}

/// Computes rows `rows` of a sum of products, in columns given by the panels.
///
/// The inner steps of all terms are taken in as many groups as they need to stay in the cache. The
/// small terms of adapters share a group with what they are added to. While a panel is computed, the
/// sources of the next one are fetched; `next` is the panel that this thread will likely meet after this task.
///
/// # Safety
/// The processor has AVX-512 (and its bf16 part, for pairs), the columns of a panel are at most [`COLS`], and
/// nobody else writes to that part of `dst`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn stripe<T: Element, D>(
    terms: &[Ready<'_, T>],
    rows: Range<usize>,
    panels: &(impl Iterator<Item = Range<usize>> + Clone),
    next: Option<&Range<usize>>,
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    memory: Memory<'_>,
) {
    let (steps, count) = steps_of(terms, |term| term.steps);
    let steps = &steps[..count];
    let (groups, size) = groups(steps.iter().sum());
    let Memory { packed, sums } = memory;
    let kept = if groups == 1 { 0 } else { rows.len().next_multiple_of(ROWS) * COLS };

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
            let width = cols.len().next_multiple_of(LANES);
            let rights = rights(terms, group.pieces(), &cols, packed);
            let fetches = group.pieces().iter().map(|piece| (piece.to - piece.from).div_ceil(avx512::BETWEEN));
            let shares = rows.len().div_ceil(ROWS) * fetches.sum::<usize>();
            let mut ahead = match upcoming.next() {
                Some((group, cols)) => Ahead::new(sources(terms, group.pieces()), &cols, shares),
                None => Ahead::none(),
            };
            for first in rows.clone().step_by(ROWS) {
                let tile_rows = ROWS.min(rows.end - first);
                let at = if groups == 1 { 0 } else { p * kept + (first - rows.start) * COLS };
                let Some(tile) = sums[at..].first_chunk_mut::<{ ROWS * COLS }>() else {
                    unreachable!("as large as needed")
                };
                for (i, (piece, &(right, right_step))) in group.pieces().iter().zip(&rights).enumerate() {
                    let t = &terms[piece.term];
                    let operands = Operands {
                        steps: piece.to - piece.from,
                        fresh: g == 0 && i == 0,
                        // SAFETY: that row and step are inside, as `Term::check` found.
                        left: unsafe { t.left.add(first * t.left_tile + piece.from * t.left_step) },
                        left_row: t.left_row,
                        left_step: t.left_step,
                        right,
                        right_step,
                    };
                    // SAFETY: the left side has that many rows and steps from there, the right side
                    // as many steps of `width`.
                    unsafe {
                        match t.word {
                            Word::Pair => avx512::add_bf16(tile_rows, width / LANES, operands, tile, &mut ahead),
                            _ => avx512::add_f32(tile_rows, width / LANES, operands, tile, &mut ahead),
                        }
                    }
                }
                if g + 1 == groups {
                    for (i, sums) in tile.chunks_exact(COLS).enumerate().take(tile_rows) {
                        let at = At { row: first + i, col: cols.start };
                        // SAFETY: inside, and this task's own.
                        epilogue(at, &sums[..cols.len()], unsafe { dst.part(at.row, at.col, cols.len()) });
                    }
                }
            }
        }
        group = following;
    }
}

/// What packing these pieces reads: their right sides, and which inner elements of them.
fn sources<'a, T: Element>(
    terms: &'a [Ready<'a, T>],
    pieces: &'a [Piece],
) -> impl Iterator<Item = (Right<'a, T>, Range<usize>)> {
    let packed = pieces.iter().map(|piece| (&terms[piece.term], piece)).filter(|(term, _)| !term.in_place);
    packed.map(|(term, piece)| {
        let elements = term.word.elements();
        (term.right, piece.from * elements..term.inner.min(piece.to * elements))
    })
}

/// Where the right side of each piece is read in columns `cols`, and how far apart its inner steps are: in place,
/// or in `packed`, one piece behind the other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn rights<T: Element>(
    terms: &[Ready<'_, T>],
    pieces: &[Piece],
    cols: &Range<usize>,
    packed: &mut [f32],
) -> [(*const f32, usize); MAX_TERMS] {
    let width = cols.len().next_multiple_of(LANES);
    let mut rights = [(std::ptr::null(), 0); MAX_TERMS];
    let mut used = 0;
    for (right, piece) in rights.iter_mut().zip(pieces) {
        let (t, steps) = (&terms[piece.term], piece.from..piece.to);
        *right = match t.right {
            Right::Stored(Side::Rows(r)) if t.in_place && cols.len() == width => {
                (r.part(steps, cols.clone()).as_ptr().cast(), r.stride())
            }
            _ => {
                let part = &mut packed[used * width..][..steps.len() * width];
                used += steps.len();
                t.pack(cols, steps, width, part);
                (part.as_ptr(), width)
            }
        };
    }
    rights
}

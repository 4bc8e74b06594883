//! What one task computes: some rows of a sum of products, in some panels of columns.

use std::ops::Range;

use super::ahead::Ahead;
use super::avx512::{self, Operands};
use super::pack::{Ready, Word};
use super::{At, COLS, Epilogue, LANES, ROWS, Right, Side};
use crate::kernels::Element;
use crate::kernels::view::ViewMut;

/// Inner steps whose packed right side stays in the second-level cache, with the left sides that meet it.
const STEPS: usize = 768;
/// Products in one sum, at most.
pub(super) const MAX_TERMS: usize = 8;

/// The memory of one task.
pub(super) struct Memory<'a> {
    /// For the packed right sides of a group of inner steps.
    pub(super) packed: &'a mut [f32],
    /// For the sums of its tiles: of all, where there are several groups, else of one.
    pub(super) sums: &'a mut [f32],
}

/// Sums that the panels of a task may hold between two groups of inner steps (384 KiB).
const SUMS: usize = 96 << 10;

/// Inner steps of all terms.
pub(super) fn steps<T>(terms: &[Ready<'_, T>]) -> usize {
    terms.iter().map(|t| t.steps).sum()
}

/// Of so many inner steps, in how many groups they are taken, and the steps of each.
pub(super) fn groups(total: usize) -> (usize, usize) {
    let groups = ((total + STEPS / 2) / STEPS).max(1);
    (groups, total.div_ceil(groups).max(1))
}

/// Of `panels` of a product with `rows` rows and so many inner steps, how many one task handles.
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

/// Inner steps `from..to` of a term.
#[derive(Clone, Copy, Default)]
pub(super) struct Piece {
    pub(super) term: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Pieces that share a group of inner steps.
#[derive(Clone, Copy, Default)]
struct Group {
    pieces: [Piece; MAX_TERMS],
    count: usize,
    /// Where the next group begins.
    term: usize,
    step: usize,
}

impl Group {
    /// The group of `size` steps that follows this one.
    fn next<T>(&self, terms: &[Ready<'_, T>], size: usize) -> Self {
        let mut group = Self { count: 0, ..*self };
        let mut used = 0;
        while group.term < terms.len() && used < size {
            let steps = terms[group.term].steps;
            let to = steps.min(group.step + size - used);
            group.pieces[group.count] = Piece { term: group.term, from: group.step, to };
            group.count += 1;
            used += to - group.step;
            (group.term, group.step) = if to == steps { (group.term + 1, 0) } else { (group.term, to) };
        }
        group
    }

    /// How often a tile of these pieces fetches ahead.
    fn fetches(&self) -> usize {
        self.pieces().iter().map(|piece| (piece.to - piece.from).div_ceil(avx512::BETWEEN)).sum()
    }

    fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }
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
    assert!(!terms.is_empty() && terms.len() <= MAX_TERMS, "matrix product: too many terms, or none");
    let (groups, size) = groups(steps(terms));
    let Memory { packed, sums } = memory;
    let kept = if groups == 1 { 0 } else { rows.len().next_multiple_of(ROWS) * COLS };

    let first_group = Group::default().next(terms, size);
    let mut group = first_group;
    for g in 0..groups {
        let (following, panel) = match g + 1 < groups {
            true => (group.next(terms, size), panels.clone().next()),
            false => (first_group, next.cloned()),
        };
        let others = panels.clone().skip(1).map(|cols| (group, cols));
        let mut upcoming = others.chain(panel.map(|cols| (following, cols)));
        for (p, cols) in panels.clone().enumerate() {
            let width = cols.len().next_multiple_of(LANES);
            let rights = rights(terms, group.pieces(), &cols, packed);
            let shares = rows.len().div_ceil(ROWS) * group.fetches();
            let mut ahead = match upcoming.next() {
                Some((group, cols)) => Ahead::new(terms, group.pieces(), &cols, shares),
                None => Ahead::new(terms, &[], &cols, shares),
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
                        // SAFETY: that row and step lie inside, as `Term::check` found.
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

//! Products of bf16 by Intel's matrix units (AMX): blocks of 32 rows by 32 columns, held in four tiles.
//!
//! A step is 32 inner elements; what a term is short of a whole number of steps is zeros. Left sides are read where they are if
//! they can be, right sides are packed a panel of 32 columns at a time. Each element of a result is summed step by step, whatever
//! blocks, groups and panels there are: so its bits depend neither on the number of threads nor on the rows beside it.

mod left;
mod pack;
mod plain;
mod stripe;
mod tiles;

use std::arch::x86_64::{__m512, __m512bh, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_storeu_ps};
use std::ops::Range;

use super::plan::{Sides, Team};
use super::{At, Epilogue, LANES, Term};
use crate::kernels::isa::Isa;
use crate::kernels::view::ViewMut;
use crate::kernels::workspace::{Workspace, room};
use crate::kernels::{Element, parallel};
use left::Left;
use tiles::{TILE, TILE_ROW, Tiles};

/// Rows, and columns, of a block.
const BLOCK: usize = 2 * TILE;
/// Inner elements of a step.
const INNER: usize = 32;
/// Words of a tile.
const TILE_WORDS: usize = TILE * TILE_ROW / 4;
/// Words of the sums of a block.
const BLOCK_WORDS: usize = BLOCK * BLOCK;

/// Steps of all terms, up to which they are one group: a panel's right sides then stay in the first-level cache.
const ONE_GROUP: usize = 24;
/// Steps of a group where there are several.
const GROUP: usize = 16;
/// Blocks of rows of a task, at most, where there is one group: its left sides stay in the second-level cache.
const BLOCKS: usize = 32;
/// The same where there are several, which leave room for sums.
const BLOCKS_OF_GROUP: usize = 16;
/// Panels of a task with one group, at most.
const PANELS: usize = 4;
/// Words of sums that the panels of a task may hold between two groups (512 KiB).
const SUMS: usize = 128 << 10;

/// Of this many steps, in how many groups they are taken, and the steps of each.
fn groups(total: usize) -> (usize, usize) {
    let groups = if total <= ONE_GROUP { 1 } else { total.div_ceil(GROUP) };
    (groups, total.div_ceil(groups).max(1))
}

/// How a product is taken apart.
struct Plan {
    /// Blocks of rows of a task, and how many such parts there are.
    blocks: usize,
    parts: usize,
    /// Panels of columns of a task, and of the product.
    together: usize,
    panels: usize,
    /// Words of all left sides that are rewritten.
    rewritten: usize,
    /// Words of a thread: of its packed right sides and of its sums.
    packed: usize,
    sums: usize,
    threads: usize,
}

impl Plan {
    fn new((m, n): (usize, usize), terms: impl Iterator<Item = Sides>, team: Team) -> Self {
        let (mut rewritten, mut steps) = (0, 0);
        for term in terms {
            rewritten += room(left::words(term.left_width, (m, term.inner, n)));
            steps += term.inner.div_ceil(INNER);
        }
        let (groups, group) = groups(steps);
        let (all, panels) = (m.div_ceil(BLOCK), n.div_ceil(BLOCK));
        let even = |count: usize, most: usize| count.div_ceil(count.div_ceil(most));
        let (blocks, together) = match team {
            Team::This => (all, panels),
            Team::Threads(threads) => {
                let blocks = even(all, if groups == 1 { BLOCKS } else { BLOCKS_OF_GROUP });
                let of_all = all.div_ceil(blocks) * panels;
                let most = match groups {
                    1 => PANELS.min(of_all.div_ceil(4 * threads.max(1))),
                    _ => (SUMS / (blocks * BLOCK_WORDS)).min(of_all.div_ceil(2 * threads.max(1))),
                };
                (blocks, even(panels, most.max(1)))
            }
        };
        // With one group a block's sums are handed on before those of the next are stored.
        let sums = if groups == 1 { 1 } else { blocks * together };
        Self {
            blocks,
            parts: all.div_ceil(blocks),
            together,
            panels,
            rewritten,
            packed: group * 2 * TILE_WORDS,
            sums: sums * BLOCK_WORDS,
            threads: team.threads(),
        }
    }

    /// Words of a thread.
    fn of_thread(&self) -> usize {
        room(self.packed) + room(self.sums)
    }
}

/// The elements of f32 that [`multiply`] needs besides, for a result `[m, n]`.
pub(super) fn workspace(size: (usize, usize), terms: &[Sides], team: Team) -> usize {
    let plan = Plan::new(size, terms.iter().copied(), team);
    plan.rewritten + plan.threads * room(plan.of_thread())
}

/// See [`super::multiply`], with the units themselves or without, as `isa` says.
pub(super) fn multiply<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    isa: Isa,
    team: Team,
    workspace: &mut [f32],
) {
    match isa {
        Isa::Amx => compute::<tiles::Units, T, D>(terms, dst, epilogue, team, workspace),
        _ => compute::<plain::Plain, T, D>(terms, dst, epilogue, team, workspace),
    }
}

fn compute<'a, X: Tiles, T: Element, D: Send>(
    terms: &[Term<'a, T>],
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    team: Team,
    workspace: &mut [f32],
) {
    let (m, n) = (dst.rows(), dst.cols());
    let plan = Plan::new((m, n), terms.iter().map(Term::sides), team);
    let mut workspace = Workspace::new(workspace);
    let ready = |term: &Term<'a, T>| {
        let inner = term.inner();
        let memory = workspace.take(left::words(term.sides().left_width, (m, inner, n)));
        let left = Left::new(&term.left(), n, team.is_parallel(), memory);
        stripe::Ready { left, right: term.right(), inner, steps: inner.div_ceil(INNER) }
    };
    let terms: Vec<_> = terms.iter().map(ready).collect();
    let of_threads = workspace.per_thread(plan.threads, plan.of_thread());
    let columns = |panel: usize| panel * BLOCK..n.min((panel + 1) * BLOCK);
    let stripes = plan.panels.div_ceil(plan.together);
    let run = |task: usize| {
        let (part, first) = (task / stripes, task % stripes * plan.together);
        let end = plan.panels.min(first + plan.together);
        let panels = (first..end).map(columns);
        // A thread mostly goes on with the neighbouring task.
        let next = (team.is_parallel() && end < plan.panels).then(|| columns(end));
        let blocks: Range<usize> = part * plan.blocks..m.div_ceil(BLOCK).min((part + 1) * plan.blocks);
        // SAFETY: a task takes it once, and waits for nothing.
        let mut of_thread = Workspace::new(unsafe { of_threads.mine() });
        let memory = stripe::Memory { packed: of_thread.take(plan.packed), sums: of_thread.take(plan.sums) };
        // SAFETY: the processor has what the tiles need, and AVX-512; tasks are apart in rows or in columns.
        unsafe { stripe::stripe::<X, T, D>(&terms, blocks, &panels, next.as_ref(), dst, epilogue, memory) };
    };
    let tasks = plan.parts * stripes;
    if team.is_parallel() {
        parallel::each_together(tasks, 1..=1, run);
    } else {
        (0..tasks).for_each(run);
    }
}

/// [`super::store`] for bf16 as processors with matrix units can do it, 32 sums at a time: to the nearest, ties to even, and
/// denormal numbers become zeros.
#[inline(always)]
pub(super) fn store<D: Element>(at: At, sums: &[f32], dst: &mut [D]) {
    const PAIR: usize = 2 * LANES;
    match (sums.first_chunk::<PAIR>(), dst.first_chunk_mut::<PAIR>()) {
        // SAFETY: only chosen where the processor has it.
        (Some(from), Some(to)) if D::IS_BF16 && sums.len() == PAIR => unsafe { narrow(from, to) },
        _ => super::store(at, sums, dst),
    }
}

/// # Safety
/// The processor has AVX-512 with bf16, and `D` is bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn narrow<D: Element>(from: &[f32; 2 * LANES], to: &mut [D; 2 * LANES]) {
    assert!(D::IS_BF16, "two bytes an element");
    // SAFETY: 32 f32 are read, 64 bytes are written; `__m512bh` is 64 bytes of which any bits are a value.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(LANES)));
        let rounded: __m512bh = _mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_ps(to.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512>(rounded));
    }
}

#[cfg(test)]
mod tests;

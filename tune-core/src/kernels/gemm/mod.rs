//! Matrix products: a sum of products at once, finished row by row where it is still in the cache.
//!
//! `C = sum of Lᵢ · Rᵢ`, where each `L` is `[m, kᵢ]` and each `R` is `[kᵢ, n]`. A layer with an
//! adapter is two terms, its input gradient two more, so an adapter costs no pass of its own. The
//! right sides are packed a panel of columns at a time by the task that uses them; the left
//! sides are read where they lie. The sum over `k` runs in order, whatever the number of threads.

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod finish;
mod footprint;
#[cfg(target_arch = "x86_64")]
mod pack;
mod portable;
#[cfg(target_arch = "x86_64")]
mod stripe;

pub(crate) use finish::{At, Epilogue, Finish, add, store};
pub(crate) use footprint::Sides;
use rayon::prelude::*;

use super::Element;
use super::isa::Isa;
use super::view::{View, ViewMut};

/// Columns of a vector of f32.
const LANES: usize = 16;
/// Rows of a tile.
const ROWS: usize = 8;
/// Columns of a tile, at most.
const COLS: usize = 48;
/// Rows that one task handles, at most: as many as stay in the second-level cache.
const ROWS_PER_TASK: usize = 512;

/// One side of a product.
#[derive(Debug, Clone, Copy)]
enum Side<'a, T> {
    /// As it is stored.
    Rows(View<'a, T>),
    /// The transpose of what is stored.
    Columns(View<'a, T>),
}

/// One product of a sum, `[m, n]`, by its part in a layer with the weight `w`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Term<'a, T> {
    /// `x · wᵀ` for `x` `[m, k]` and `w` `[n, k]`: on the way up.
    Up { x: View<'a, T>, w: View<'a, T> },
    /// `g · w` for `g` `[m, k]` and `w` `[k, n]`: on the way down.
    Down { g: View<'a, T>, w: View<'a, T> },
    /// `gᵀ · x` for `g` `[k, m]` and `x` `[k, n]`: the weight's gradient.
    Across { g: View<'a, T>, x: View<'a, T> },
}

impl<'a, T: Element> Term<'a, T> {
    /// The left side, `[m, k]`.
    fn left(&self) -> Side<'a, T> {
        match *self {
            Self::Up { x: left, .. } | Self::Down { g: left, .. } => Side::Rows(left),
            Self::Across { g, .. } => Side::Columns(g),
        }
    }

    /// The right side, `[k, n]`.
    fn right(&self) -> Side<'a, T> {
        match *self {
            Self::Up { w, .. } => Side::Columns(w),
            Self::Down { w: right, .. } | Self::Across { x: right, .. } => Side::Rows(right),
        }
    }

    /// `k`.
    fn inner(&self) -> usize {
        match self {
            Self::Up { x: left, .. } | Self::Down { g: left, .. } => left.cols(),
            Self::Across { g, .. } => g.rows(),
        }
    }

    fn check(&self, m: usize, n: usize) {
        let shape = |side: Side<'_, T>| match side {
            Side::Rows(v) => (v.rows(), v.cols()),
            Side::Columns(v) => (v.cols(), v.rows()),
        };
        let (left, right, k) = (shape(self.left()), shape(self.right()), self.inner());
        assert!(left == (m, k) && right == (k, n), "matrix product: {left:?} times {right:?} is not {m} by {n}");
    }
}

/// Computes the sum of `terms` on all threads into `dst`.
pub(crate) fn multiply<T: Element, D: Element>(terms: &[Term<'_, T>], dst: &ViewMut<'_, D>, finish: Finish<'_, D>) {
    match finish {
        Finish::Store => compute(terms, dst, &store, true),
        Finish::Add => compute(terms, dst, &add, true),
        Finish::Scaled(factor) => compute(terms, dst, &finish::scaled(factor), true),
        Finish::Onto(other) => compute(terms, dst, &finish::onto(other), true),
        Finish::AddDropped(dropout, rows) => compute(terms, dst, &finish::add_dropped(dropout, rows, dst.cols()), true),
    }
}

/// The same on this thread alone, for what is itself one of many tasks, with an epilogue of its own.
pub(crate) fn multiply_here<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: impl Epilogue<D>,
) {
    compute(terms, dst, &epilogue, false);
}

fn compute<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    parallel: bool,
) {
    let (m, n) = (dst.rows(), dst.cols());
    if m == 0 || n == 0 {
        return;
    }
    terms.iter().for_each(|t| t.check(m, n));
    match Isa::get() {
        #[cfg(target_arch = "x86_64")]
        isa @ (Isa::Avx512 | Isa::Avx512Bf16) => {
            let terms: Vec<_> = terms.iter().map(|t| pack::Ready::new(t, m, isa, parallel)).collect();
            let panels = Panels::new(n);
            let block = if parallel { rows_per_task(m) } else { m };
            let blocks = m.div_ceil(block);
            let together = match parallel {
                true => {
                    let (steps, threads) = (stripe::steps(&terms), rayon::current_num_threads());
                    stripe::panels_per_task(steps, block, blocks * panels.count, threads)
                }
                false => panels.count,
            };
            let stripes = panels.count.div_ceil(together);
            let tasks = blocks * stripes;
            let run = |task: usize| {
                let (row, panel) = (task / stripes * block, task % stripes * together);
                let end = panels.count.min(panel + together);
                let columns = (panel..end).map(|p| panels.columns(p));
                // A thread mostly goes on with the neighbouring task.
                let next = (parallel && end < panels.count).then(|| panels.columns(end));
                // SAFETY: the processor has AVX-512; tasks are apart in rows or in columns.
                unsafe { stripe::stripe(&terms, row..m.min(row + block), &columns, next.as_ref(), dst, epilogue) };
            };
            if parallel {
                (0..tasks).into_par_iter().with_max_len(1).for_each(run);
            } else {
                (0..tasks).for_each(run);
            }
        }
        _ => portable::multiply(terms, dst, epilogue, parallel),
    }
}

/// Rows of `m` for each task: blocks of one size, and whole tiles.
#[cfg(target_arch = "x86_64")]
fn rows_per_task(m: usize) -> usize {
    m.div_ceil(m.div_ceil(ROWS_PER_TASK)).next_multiple_of(ROWS)
}

/// The columns of a result in panels of one width, no wider than a tile and filled as well as may be.
#[cfg(target_arch = "x86_64")]
struct Panels {
    n: usize,
    width: usize,
    count: usize,
}

#[cfg(target_arch = "x86_64")]
impl Panels {
    fn new(n: usize) -> Self {
        let width = n.div_ceil(n.div_ceil(COLS)).next_multiple_of(LANES);
        Self { n, width, count: n.div_ceil(width) }
    }

    fn columns(&self, panel: usize) -> std::ops::Range<usize> {
        panel * self.width..self.n.min((panel + 1) * self.width)
    }
}

#[cfg(test)]
mod tests;

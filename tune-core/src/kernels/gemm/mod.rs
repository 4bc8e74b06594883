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
mod footprint;
#[cfg(target_arch = "x86_64")]
mod pack;
mod portable;
#[cfg(target_arch = "x86_64")]
mod stripe;

pub(crate) use footprint::Sides;
use rayon::prelude::*;

use super::Element;
use super::isa::Isa;
use super::shared::Shared;

/// Columns of a vector of f32.
const LANES: usize = 16;
/// Rows of a tile.
const ROWS: usize = 8;
/// Columns of a tile, at most.
const COLS: usize = 48;
/// Rows that one task handles, at most: as many as stay in the second-level cache.
const ROWS_PER_TASK: usize = 512;

/// A matrix row by row, `width` elements from one row to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) width: usize,
}

impl<'a, T: Element> Rows<'a, T> {
    /// Rows that follow each other without a gap.
    pub(crate) fn new(data: &'a [T], width: usize) -> Self {
        Self { data, width }
    }

    /// Whether `rows` rows of `cols` elements lie inside.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.width + cols <= self.data.len()
    }

    /// The rows from `row` on, without the columns before `col`.
    fn from(&self, row: usize, col: usize) -> Self {
        Self { data: self.data.get(row * self.width + col..).unwrap_or_default(), width: self.width }
    }
}

/// The left side of a product, `[m, k]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left<'a, T> {
    /// As it is.
    Rows(Rows<'a, T>),
    /// The transpose of what is stored, `[k, m]`.
    Columns(Rows<'a, T>),
}

/// The right side of a product, `[k, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a, T> {
    /// As it is.
    Rows(Rows<'a, T>),
    /// The transpose of what is stored, `[n, k]`: a weight in the forward pass.
    Columns(Rows<'a, T>),
}

/// One product of a sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term<'a, T> {
    pub(crate) left: Left<'a, T>,
    pub(crate) right: Right<'a, T>,
    /// `k`.
    pub(crate) inner: usize,
}

impl<'a, T: Element> Term<'a, T> {
    /// `x · wᵀ` for `x` `[m, k]` and `w` `[n, k]`.
    pub(crate) fn nt(x: &'a [T], w: &'a [T], k: usize) -> Self {
        Self { left: Left::Rows(Rows::new(x, k)), right: Right::Columns(Rows::new(w, k)), inner: k }
    }

    /// `g · w` for `g` `[m, k]` and `w` `[k, n]`.
    pub(crate) fn nn(g: &'a [T], w: &'a [T], (k, n): (usize, usize)) -> Self {
        Self { left: Left::Rows(Rows::new(g, k)), right: Right::Rows(Rows::new(w, n)), inner: k }
    }

    /// `gᵀ · x` for `g` `[k, m]` and `x` `[k, n]`.
    pub(crate) fn tn(g: &'a [T], x: &'a [T], (m, k, n): (usize, usize, usize)) -> Self {
        Self { left: Left::Columns(Rows::new(g, m)), right: Right::Rows(Rows::new(x, n)), inner: k }
    }

    fn check(&self, m: usize, n: usize) {
        let left = match self.left {
            Left::Rows(l) => l.holds(m, self.inner),
            Left::Columns(l) => l.holds(self.inner, m),
        };
        let right = match self.right {
            Right::Rows(r) => r.holds(self.inner, n),
            Right::Columns(r) => r.holds(n, self.inner),
        };
        assert!(left && right, "matrix product: an operand is too short");
    }
}

/// Where part of a row of the result lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// What becomes of a part of a row of sums: `store(at, sums, destination)`.
pub(crate) trait Store<D>: Fn(At, &[f32], &mut [D]) + Sync {}
impl<D, F: Fn(At, &[f32], &mut [D]) + Sync> Store<D> for F {}

/// Rounds the sums to the destination's type.
#[inline(always)]
pub(crate) fn set<D: Element>(_: At, sums: &[f32], dst: &mut [D]) {
    for (d, &s) in dst.iter_mut().zip(sums) {
        *d = D::from_f32(s);
    }
}

/// Adds the sums to the destination.
#[inline(always)]
pub(crate) fn add<D: Element>(_: At, sums: &[f32], dst: &mut [D]) {
    for (d, &s) in dst.iter_mut().zip(sums) {
        *d = D::from_f32(d.to_f32() + s);
    }
}

/// Computes the sum of `terms`, `[m, n]`, on all threads; its rows go to `dst`, `dst_width` apart, through `store`.
pub(crate) fn multiply<T: Element, D: Send>(
    size: (usize, usize),
    terms: &[Term<'_, T>],
    dst: &mut [D],
    dst_width: usize,
    store: impl Store<D>,
) {
    compute(size, terms, dst, dst_width, &store, true);
}

/// The same on this thread alone, for what is itself one of many tasks.
pub(crate) fn multiply_here<T: Element, D: Send>(
    size: (usize, usize),
    terms: &[Term<'_, T>],
    dst: &mut [D],
    dst_width: usize,
    store: impl Store<D>,
) {
    compute(size, terms, dst, dst_width, &store, false);
}

fn compute<T: Element, D: Send>(
    (m, n): (usize, usize),
    terms: &[Term<'_, T>],
    dst: &mut [D],
    dst_width: usize,
    store: &impl Store<D>,
    parallel: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    terms.iter().for_each(|t| t.check(m, n));
    let dst = Destination::new(dst, dst_width, m, n);
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
                unsafe { stripe::stripe(&terms, row..m.min(row + block), &columns, next.as_ref(), &dst, store) };
            };
            if parallel {
                (0..tasks).into_par_iter().with_max_len(1).for_each(run);
            } else {
                (0..tasks).for_each(run);
            }
        }
        _ => portable::multiply((m, n), terms, &dst, store, parallel),
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

/// Where the rows of a result go.
struct Destination<'a, D> {
    data: Shared<'a, D>,
    width: usize,
}

impl<'a, D> Destination<'a, D> {
    fn new(data: &'a mut [D], width: usize, m: usize, n: usize) -> Self {
        assert!((m == 1 || n <= width) && (m - 1) * width + n <= data.len(), "matrix product: no room for the result");
        Self { data: Shared::new(data), width }
    }

    /// # Safety
    /// Nobody else holds that part.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, at: At, len: usize) -> &mut [D] {
        // SAFETY: as the caller promises.
        unsafe { self.data.part(at.row * self.width + at.col, len) }
    }
}

#[cfg(test)]
mod tests;

//! Matrix products: a sum of products at once, finished row by row where it is still in the cache.
//!
//! `C = sum of Lᵢ · Rᵢ`, where each `L` is `[m, kᵢ]` and each `R` is `[kᵢ, n]`. A layer with an
//! adapter is two terms, its input gradient two more, so an adapter costs no pass of its own. The
//! right sides are packed a panel of columns at a time by the task that uses them; the left
//! sides are read where they are. The sum over `k` runs in order, whatever the number of threads.

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod few;
mod finish;
#[cfg(target_arch = "x86_64")]
mod groups;
#[cfg(target_arch = "x86_64")]
mod in_order;
#[cfg(target_arch = "x86_64")]
mod pack;
mod plan;
mod portable;
#[cfg(target_arch = "x86_64")]
mod stripe;

pub(crate) use few::{is_few, multiply_few, workspace_few};
pub(crate) use finish::{At, Epilogue, Finish, add, store};
use plan::Team;
pub(crate) use plan::{Sides, workspace, workspace_here};

use super::Element;
use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::parallel;
use super::quantized::Rows;
use super::view::{View, ViewMut};
#[cfg(target_arch = "x86_64")]
use super::workspace::Workspace;

/// Columns of a vector of f32.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 16;
/// Rows of a tile.
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 8;
/// Columns of a tile, at most.
#[cfg(target_arch = "x86_64")]
const COLS: usize = 48;
/// Rows that one task handles, at most: as many as stay in the second-level cache.
#[cfg(target_arch = "x86_64")]
const ROWS_PER_TASK: usize = 512;

/// One side of a product.
#[derive(Debug, Clone, Copy)]
enum Side<'a, T> {
    /// As it is stored.
    Rows(View<'a, T>),
    /// The transpose of what is stored.
    Columns(View<'a, T>),
}

/// The right side of a product.
#[derive(Debug, Clone, Copy)]
enum Right<'a, T> {
    /// In memory.
    Stored(Side<'a, T>),
    /// A weight in blocks, as it is stored.
    Quantized(Rows<'a>),
    /// Its transpose.
    QuantizedColumns(Rows<'a>),
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
    /// [`Term::Up`] with a weight that is dequantized while it is packed, `[n, k]`.
    UpQuantized { x: View<'a, T>, w: Rows<'a> },
    /// [`Term::Down`] with such a weight, `[k, n]`.
    DownQuantized { g: View<'a, T>, w: Rows<'a> },
}

impl<'a, T: Element> Term<'a, T> {
    /// The left side, `[m, k]`.
    fn left(&self) -> Side<'a, T> {
        match *self {
            Self::Up { x: left, .. }
            | Self::Down { g: left, .. }
            | Self::UpQuantized { x: left, .. }
            | Self::DownQuantized { g: left, .. } => Side::Rows(left),
            Self::Across { g, .. } => Side::Columns(g),
        }
    }

    /// The right side, `[k, n]`.
    fn right(&self) -> Right<'a, T> {
        match *self {
            Self::Up { w, .. } => Right::Stored(Side::Columns(w)),
            Self::Down { w: right, .. } | Self::Across { x: right, .. } => Right::Stored(Side::Rows(right)),
            Self::UpQuantized { w, .. } => Right::QuantizedColumns(w),
            Self::DownQuantized { w, .. } => Right::Quantized(w),
        }
    }

    /// `k`.
    fn inner(&self) -> usize {
        match self.left() {
            Side::Rows(left) => left.cols(),
            Side::Columns(left) => left.rows(),
        }
    }

    /// Its shape.
    pub(crate) fn sides(&self) -> Sides {
        let left_width = match self.left() {
            Side::Rows(left) => Some(left.stride()),
            Side::Columns(_) => None,
        };
        let quantized = !matches!(self.right(), Right::Stored(_));
        let up = matches!(self, Self::Up { .. } | Self::UpQuantized { .. });
        Sides { left_width, inner: self.inner(), quantized, up }
    }

    fn check(&self, m: usize, n: usize) {
        let shape = |side: Side<'_, T>| match side {
            Side::Rows(v) => (v.rows(), v.cols()),
            Side::Columns(v) => (v.cols(), v.rows()),
        };
        let right = match self.right() {
            Right::Stored(right) => shape(right),
            Right::Quantized(w) => (w.rows(), w.cols()),
            Right::QuantizedColumns(w) => (w.cols(), w.rows()),
        };
        let (left, k) = (shape(self.left()), self.inner());
        assert!(left == (m, k) && right == (k, n), "matrix product: {left:?} times {right:?} is not {m} by {n}");
    }
}

/// Computes the sum of `terms` on all threads into `dst`, with so much memory besides as [`workspace`] says.
pub(crate) fn multiply<T: Element, D: Element>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    finish: Finish<'_, D>,
    workspace: &mut [f32],
) {
    let team = Team::Threads(rayon::current_num_threads());
    if let (Finish::Store, Some(dst)) = (finish, D::as_f32_mut(dst))
        && plan::is_in_place::<D>(Isa::get(), dst.rows())
    {
        terms.iter().for_each(|t| t.check(dst.rows(), dst.cols()));
        return portable::multiply_in_place(terms, dst, team.is_parallel(), workspace);
    }
    match finish {
        #[cfg(target_arch = "x86_64")]
        Finish::Store if T::IS_BF16 && Isa::get() == Isa::Amx => compute(terms, dst, &amx::store, team, workspace),
        Finish::Store => compute(terms, dst, &store, team, workspace),
        Finish::Add => compute(terms, dst, &add, team, workspace),
        Finish::Scaled(factor) => compute(terms, dst, &finish::scaled(factor), team, workspace),
        Finish::Onto(other) => compute(terms, dst, &finish::onto(other), team, workspace),
        Finish::Plus(row) => compute(terms, dst, &finish::plus(row), team, workspace),
        Finish::AddDropped(dropout, rows) => {
            compute(terms, dst, &finish::add_dropped(dropout, rows, dst.cols()), team, workspace);
        }
    }
}

/// The same on this thread alone, for what is itself one of many tasks, with an epilogue of its own and so much memory
/// besides as [`workspace_here`] says.
pub(crate) fn multiply_here<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: impl Epilogue<D>,
    workspace: &mut [f32],
) {
    compute(terms, dst, &epilogue, Team::This, workspace);
}

fn compute<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    team: Team,
    workspace: &mut [f32],
) {
    let (m, n) = (dst.rows(), dst.cols());
    if m == 0 || n == 0 {
        return;
    }
    terms.iter().for_each(|t| t.check(m, n));
    match Isa::get() {
        #[cfg(target_arch = "x86_64")]
        isa if isa.has_tiles() && T::IS_BF16 => amx::multiply(terms, dst, epilogue, isa, team, workspace),
        #[cfg(target_arch = "x86_64")]
        isa if isa.has_avx512() => packed(terms, dst, epilogue, isa, team, workspace),
        _ => portable::multiply(terms, dst, epilogue, team.is_parallel(), workspace),
    }
}

#[cfg(target_arch = "x86_64")]
fn packed<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    isa: Isa,
    team: Team,
    workspace: &mut [f32],
) {
    let (m, n) = (dst.rows(), dst.cols());
    let plan = plan::Plan::new::<T>(isa, (m, n), terms.iter().map(Term::sides), team);
    let mut workspace = Workspace::new(workspace);
    let terms: Vec<_> = terms.iter().map(|t| pack::Ready::new(t, m, isa, team.is_parallel(), &mut workspace)).collect();
    let of_threads = workspace.per_thread(plan.threads, plan.of_thread());
    let panels = Panels::new(n);
    let stripes = plan.panels.div_ceil(plan.together);
    let run = |task: usize| {
        let (row, panel) = (task / stripes * plan.block, task % stripes * plan.together);
        let end = plan.panels.min(panel + plan.together);
        let columns = (panel..end).map(|p| panels.columns(p));
        // A thread mostly goes on with the neighbouring task.
        let next = (team.is_parallel() && end < plan.panels).then(|| panels.columns(end));
        // SAFETY: a task takes it once, and waits for nothing.
        let mut of_thread = Workspace::new(unsafe { of_threads.mine() });
        let memory = stripe::Memory { packed: of_thread.take(plan.packed), sums: of_thread.take(plan.sums) };
        let rows = row..m.min(row + plan.block);
        // SAFETY: the processor has AVX-512; tasks are apart in rows or in columns.
        unsafe { stripe::stripe(&terms, rows, &columns, next.as_ref(), dst, epilogue, memory) };
    };
    let tasks = plan.blocks * stripes;
    if team.is_parallel() {
        parallel::each_together(tasks, 1..=1, run);
    } else {
        (0..tasks).for_each(run);
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

//! Products of few rows, as new tokens of some sequences are: `x · wᵀ` by reading `w` once, where it is.
//!
//! What [`super::multiply`] does first, packing `w`, costs as much as using it once. Here a result is the dot product of two
//! rows where they are in memory; several rows of `w` meet several of `x` at a time, so that either is read from the cache as
//! seldom as registers allow. A result's sum runs in one order, whatever is computed beside it.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use super::{At, Epilogue, Finish, Sides, Term, add, finish, store};
use crate::kernels::isa::Isa;
use crate::kernels::team::Team;
use crate::kernels::view::{View, ViewMut};
use crate::kernels::workspace::{PerThread, Workspace, room};
use crate::kernels::{Element, widen};

/// Columns of the result, which are rows of `w`, that one part of the work computes.
const COLS: usize = 32;
/// Elements of a row of `x` and of `w` that are multiplied at a time, at most.
const GROUP: usize = 32;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Portable,
    Avx2,
    Avx512,
    /// AVX-512 with a dot product of pairs of bf16.
    Pairs,
}

/// How rows of `x` are stored for a kernel: in groups of elements, the last of which ends with zeros. The rows of a tile take
/// turns, group by group, so that a kernel reads them from one end to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// In f32.
    Plain { group: usize },
    /// In f32, those with even numbers before the others: so bf16 is widened, two vectors out of one.
    Split { group: usize },
    /// In bf16.
    Pairs { group: usize },
}

impl Kernel {
    fn of<T: Element>(isa: Isa) -> Self {
        match isa {
            Isa::Portable => Self::Portable,
            Isa::Avx2 => Self::Avx2,
            Isa::Avx512Bf16 if T::IS_BF16 => Self::Pairs,
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx | Isa::AmxPlain => Self::Avx512,
        }
    }

    fn layout<T: Element>(self) -> Layout {
        match self {
            Self::Portable => Layout::Plain { group: 8 },
            Self::Avx2 if T::IS_BF16 => Layout::Split { group: 16 },
            Self::Avx2 => Layout::Plain { group: 8 },
            Self::Avx512 if T::IS_BF16 => Layout::Split { group: 32 },
            Self::Avx512 => Layout::Plain { group: 16 },
            Self::Pairs => Layout::Pairs { group: 32 },
        }
    }

    /// The first of the rows of `x` in each tile, and their number: 4, 2 or 1.
    fn tiles(self, m: usize) -> impl Iterator<Item = (usize, usize)> {
        let most = match self {
            Self::Avx512 | Self::Pairs => 4,
            Self::Portable | Self::Avx2 => 2,
        };
        let mut row = 0;
        std::iter::from_fn(move || {
            let first = row;
            let count = match most.min(m - first) {
                0 => return None,
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            row += count;
            Some((first, count))
        })
    }
}

impl Layout {
    /// Words of 32 bits that a row of this many elements takes.
    fn words(self, inner: usize) -> usize {
        match self {
            Self::Plain { group } | Self::Split { group } => inner.next_multiple_of(group),
            Self::Pairs { group } => inner.next_multiple_of(group) / 2,
        }
    }

    /// Elements of a group.
    fn group(self) -> usize {
        match self {
            Self::Plain { group } | Self::Split { group } | Self::Pairs { group } => group,
        }
    }

    /// Stores a group of a row, or what is left of it, with zeros behind it.
    fn store<T: Element>(self, from: &[T], to: &mut [f32]) {
        match self {
            Self::Plain { .. } => {
                let (numbers, zeros) = to.split_at_mut(from.len());
                widen(from, numbers);
                zeros.fill(0.0);
            }
            Self::Split { group } => {
                to.fill(0.0);
                let (even, odd) = to.split_at_mut(group / 2);
                for (pair, (even, odd)) in from.chunks(2).zip(even.iter_mut().zip(odd)) {
                    *even = pair[0].to_f32();
                    *odd = pair.get(1).map_or(0.0, |x| x.to_f32());
                }
            }
            Self::Pairs { .. } => {
                let (numbers, zeros) = bytemuck::cast_slice_mut::<f32, T>(to).split_at_mut(from.len());
                numbers.copy_from_slice(from);
                zeros.fill(T::from_f32(0.0));
            }
        }
    }
}

/// Rows of `w`, a tile of rows of `x` as a kernel reads them, and elements of each row.
#[derive(Debug, Clone, Copy)]
struct Operands<T> {
    w: *const T,
    /// Elements from one row of `w` to the next.
    w_row: usize,
    x: *const f32,
    inner: usize,
}

/// Whether [`multiply_few`] computes this sum.
pub(crate) fn is_few<T: Element>(terms: &[Term<'_, T>]) -> bool {
    terms.iter().all(|term| matches!(term, Term::Up { .. }))
}

/// The elements that [`multiply_few`] needs besides, for `m` rows on this many threads.
pub(crate) fn workspace_few<T: Element>(isa: Isa, m: usize, terms: &[Sides], threads: usize) -> usize {
    let layout = Kernel::of::<T>(isa).layout::<T>();
    let lefts: usize = terms.iter().map(|term| room(m * layout.words(term.inner))).sum();
    lefts + threads * room(m * COLS)
}

/// Computes the sum of `terms`, all of which are [`Term::Up`], into `dst`, with so much memory besides as
/// [`workspace_few`] says.
pub(crate) fn multiply_few<T: Element, D: Element>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    finish: Finish<'_, D>,
    workspace: &mut [f32],
    team: &Team,
) {
    let product = Product::new(Kernel::of::<T>(Isa::get()), terms, dst, workspace, rayon::current_num_threads());
    match finish {
        Finish::Store => product.compute(dst, &store, team),
        Finish::Add => product.compute(dst, &add, team),
        Finish::Scaled(factor) => product.compute(dst, &finish::scaled(factor), team),
        Finish::Onto(other) => product.compute(dst, &finish::onto(other), team),
        Finish::Plus(row) => product.compute(dst, &finish::plus(row), team),
        Finish::AddDropped(dropout, rows) => {
            product.compute(dst, &finish::add_dropped(dropout, rows, dst.cols()), team);
        }
    }
}

/// A sum of products, ready to be computed.
struct Product<'a, T> {
    kernel: Kernel,
    m: usize,
    /// The `w` of each term, and its rows of `x` with the words of one.
    terms: Vec<(View<'a, T>, &'a [f32], usize)>,
    of_threads: PerThread<'a>,
}

impl<'a, T: Element> Product<'a, T> {
    fn new<D>(
        kernel: Kernel,
        terms: &[Term<'a, T>],
        dst: &ViewMut<'_, D>,
        workspace: &'a mut [f32],
        threads: usize,
    ) -> Self {
        let (m, n, layout) = (dst.rows(), dst.cols(), kernel.layout::<T>());
        let mut workspace = Workspace::new(workspace);
        let ready = |term: &Term<'a, T>| {
            term.check(m, n);
            let Term::Up { x, w } = *term else { panic!("a product of few rows is one with the rows of a weight") };
            let words = layout.words(x.cols());
            let stored = workspace.take(m * words);
            for (row, count) in kernel.tiles(m) {
                let tile = &mut stored[row * words..(row + count) * words];
                for i in 0..count {
                    let turns = tile.chunks_exact_mut(layout.words(1)).skip(i).step_by(count);
                    x.row(row + i).chunks(layout.group()).zip(turns).for_each(|(from, to)| layout.store(from, to));
                }
            }
            (w, &*stored, words)
        };
        let terms = terms.iter().map(ready).collect();
        Self { kernel, m, terms, of_threads: workspace.per_thread(threads, m * COLS) }
    }

    fn compute<D: Send>(&self, dst: &ViewMut<'_, D>, epilogue: &impl Epilogue<D>, team: &Team) {
        let (m, n) = (dst.rows(), dst.cols());
        team.run(n.div_ceil(COLS), |part| {
            let cols = part * COLS..n.min((part + 1) * COLS);
            // SAFETY: a part of the work takes it once, and waits for nothing.
            let sums = unsafe { self.of_threads.mine() };
            sums.fill(0.0);
            for term in &self.terms {
                self.add(term, &cols, sums);
            }
            for (row, sums) in sums.chunks_exact(COLS).enumerate().take(m) {
                let at = At { row, col: cols.start };
                // SAFETY: parts of the work have no column in common.
                epilogue(at, &sums[..cols.len()], unsafe { dst.part(row, cols.start, cols.len()) });
            }
        });
    }

    /// Adds one product to the sums `[m, COLS]` of some columns.
    fn add(&self, &(w, x, words): &(View<'a, T>, &'a [f32], usize), cols: &Range<usize>, sums: &mut [f32]) {
        let mut col = cols.start;
        while col < cols.end {
            let (rest, at) = (cols.end - col, col - cols.start);
            let operands = Operands { w: w.row(col).as_ptr(), w_row: w.stride(), x: x.as_ptr(), inner: w.cols() };
            col += match (self.m, rest) {
                (1, 8..) => self.add_columns::<8>(operands, words, at, sums),
                (_, 4..) => self.add_columns::<4>(operands, words, at, sums),
                _ => self.add_columns::<1>(operands, words, at, sums),
            };
        }
    }

    /// Adds `R` columns, from `at` on; returns `R`. A row of `x` has this many words.
    fn add_columns<const R: usize>(&self, o: Operands<T>, words: usize, at: usize, sums: &mut [f32]) -> usize {
        for (row, count) in self.kernel.tiles(self.m) {
            let sums = &mut sums[row * COLS + at..];
            let operands = Operands { x: o.x.wrapping_add(row * words), ..o };
            match count {
                4 => self.add_tile::<R, 4>(operands, sums),
                2 => self.add_tile::<R, 2>(operands, sums),
                _ => self.add_tile::<R, 1>(operands, sums),
            }
        }
        R
    }

    /// Adds the products of `R` rows of `w` with `M` of `x`.
    fn add_tile<const R: usize, const M: usize>(&self, o: Operands<T>, sums: &mut [f32]) {
        let layout = self.kernel.layout::<T>();
        let rest = o.inner % layout.group();
        let whole = o.inner - rest;
        // SAFETY: all rows that the operands describe are there, as `Term::check` found.
        unsafe { self.add_groups::<R, M>(Operands { inner: whole, ..o }, sums) };
        if rest > 0 {
            // The last part of each row, with zeros behind it as in `x`.
            let mut tails = [[T::from_f32(0.0); GROUP]; R];
            for (r, tail) in tails.iter_mut().enumerate() {
                let from = o.w.wrapping_add(r * o.w_row + whole);
                // SAFETY: this many elements of the row are there.
                tail[..rest].copy_from_slice(unsafe { std::slice::from_raw_parts(from, rest) });
            }
            let (w, x) = (tails.as_ptr().cast::<T>(), o.x.wrapping_add(M * layout.words(whole)));
            // SAFETY: a tail has room for the largest group, and rows of `x` end with a whole one.
            unsafe { self.add_groups::<R, M>(Operands { w, w_row: GROUP, x, inner: layout.group() }, sums) };
        }
    }

    /// The same for whole groups.
    ///
    /// # Safety
    /// All that the operands describe can be read.
    unsafe fn add_groups<const R: usize, const M: usize>(&self, o: Operands<T>, sums: &mut [f32]) {
        // SAFETY: as the caller promises, and the processor has what the kernel needs.
        let tile: [[f32; M]; R] = unsafe {
            match (self.kernel, T::IS_BF16) {
                #[cfg(target_arch = "x86_64")]
                (Kernel::Pairs, _) => x86::pairs(o.cast()),
                #[cfg(target_arch = "x86_64")]
                (Kernel::Avx512, true) => x86::avx512_bf16(o.cast()),
                #[cfg(target_arch = "x86_64")]
                (Kernel::Avx512, false) => x86::avx512_f32(o.cast()),
                #[cfg(target_arch = "x86_64")]
                (Kernel::Avx2, true) => x86::avx2_bf16(o.cast()),
                #[cfg(target_arch = "x86_64")]
                (Kernel::Avx2, false) => x86::avx2_f32(o.cast()),
                _ => portable::tile(o),
            }
        };
        for (r, of_row) in tile.iter().enumerate() {
            for (m, sum) in of_row.iter().enumerate() {
                sums[m * COLS + r] += sum;
            }
        }
    }
}

impl<T> Operands<T> {
    #[cfg(target_arch = "x86_64")]
    fn cast<U>(self) -> Operands<U> {
        let Self { w, w_row, x, inner } = self;
        Operands { w: w.cast(), w_row, x, inner }
    }
}

#[cfg(test)]
mod tests;

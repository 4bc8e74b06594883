//! The same sums through the `gemm` crate, for processors without AVX-512.
//!
//! Every sum runs in one order, whatever the number of rows and columns: what training computes is what generation
//! computes, to the last bit. The crate has kernels of another order for small results, for single rows and for
//! short sums, so these are kept from it.

use std::ops::Range;

use gemm::Parallelism;

#[cfg(target_arch = "x86_64")]
use super::in_order;
use super::{At, Epilogue, Right, Side, Sides, Term};
use crate::kernels::quantized::Rows;
use crate::kernels::view::ViewMut;
use crate::kernels::workspace::Workspace;
use crate::kernels::{Element, parallel, simd, widen};

/// Columns of a result for which a weight in blocks is dequantized at a time.
const COLS: usize = 256;
/// Inner elements of one call, which the crate sums in one go, one after the other. How it divides longer sums depends
/// on the shape.
pub(super) const DEPTH: usize = 512;
/// The crate sums results of no more elements in an order of their own.
const SMALL: usize = 256;
/// The same of sums of no more products.
const SHORT: usize = 2;
/// A single row is computed twice: alone, the crate would treat it as a vector.
pub(super) const LEAST_ROWS: usize = 2;

/// Elements of f32 that the sums of a result `[m, n]` need.
pub(super) fn sums(m: usize, n: usize) -> usize {
    m.max(LEAST_ROWS) * n
}

/// Elements of f32 that the left sides of a product `[m, n]` need, and its right sides.
pub(super) fn widened<T: Element>((m, n): (usize, usize), terms: impl Iterator<Item = Sides>) -> [usize; 2] {
    let widest = |[left, right]: [usize; 2], term: Sides| {
        let widened = |side| if T::IS_BF16 { term.inner * side } else { 0 };
        let of_right = match term {
            Sides { quantized: true, .. } => term.inner * n.min(COLS),
            Sides { up: true, .. } if is_in_order(m) => 0,
            _ => widened(n),
        };
        [left.max(widened(m)), right.max(of_right)]
    };
    terms.fold([0, 0], widest)
}

/// A matrix of f32 with its distances between rows and between columns.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub(super) data: *const f32,
    row: usize,
    col: usize,
}

// SAFETY: it is only read, and whoever makes one promises that it can be.
unsafe impl Sync for Strided {}

impl Strided {
    /// One side of a product; bf16 is widened into `memory`.
    fn new<T: Element>(side: Side<'_, T>, memory: &mut [f32]) -> Self {
        let (from, transposed) = match side {
            Side::Rows(from) => (from, false),
            Side::Columns(from) => (from, true),
        };
        let (data, width) = if T::IS_BF16 {
            let cols = from.cols();
            let copy = &mut memory[..from.rows() * cols];
            parallel::each_chunk(copy, cols.max(1), |i, row| widen(from.row(i), row));
            (copy.as_ptr(), cols)
        } else {
            (from.as_ptr().cast(), from.stride())
        };
        let (row, col) = if transposed { (1, width) } else { (width, 1) };
        Self { data, row, col }
    }

    /// Columns `cols` of a weight in blocks or of its transpose, dequantized into `memory`.
    fn dequantized<T: Element>(from: Rows<'_>, transposed: bool, cols: Range<usize>, memory: &mut [f32]) -> Self {
        if transposed {
            let width = from.cols();
            let rows = &mut memory[..cols.len() * width];
            parallel::each_chunk(rows, width.max(1), |i, row| from.widened::<T>(cols.start + i, 0, row));
            return Self { data: memory.as_ptr(), row: 1, col: width };
        }
        let rows = &mut memory[..from.rows() * cols.len()];
        parallel::each_chunk(rows, cols.len().max(1), |i, row| from.widened::<T>(i, cols.start, row));
        Self { data: memory.as_ptr(), row: cols.len(), col: 1 }
    }

    /// From row `row` and column `col` on.
    pub(super) fn from(self, row: usize, col: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.row + col * self.col), ..self }
    }
}

/// Where the sums of a product `[m, n]` are.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) data: *mut f32,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Whether they begin as what is there; else whatever is there is overwritten.
    pub(super) begun: bool,
}

impl Sums {
    /// From row `row` and column `col` on.
    pub(super) fn from(self, row: usize, col: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.stride + col), ..self }
    }
}

// SAFETY: whoever writes through it promises to be alone there.
unsafe impl Sync for Sums {}

/// Adds `left` `[m, inner]` times `right` `[inner, n]` to sums, or begins them with it.
///
/// # Safety
/// Both sides can be read, and the sums are as many as [`sums`] says, or `[m, n]` where `m` is [`LEAST_ROWS`] or more.
unsafe fn add_product((m, n, inner): (usize, usize, usize), left: Strided, right: Strided, sums: Sums, parallel: bool) {
    #[cfg(target_arch = "x86_64")]
    if right.row == 1 && left.col == 1 && is_in_order(m) {
        let weight = in_order::Weight { data: right.data, stride: right.col };
        // SAFETY: as the caller promises, and the processor has what it takes.
        unsafe { in_order::add_product((m, n, inner), left, weight, sums, parallel) };
        return;
    }
    for depth in (0..inner).step_by(DEPTH) {
        let count = DEPTH.min(inner - depth);
        let (left, right) = (left.from(0, depth), right.from(depth, 0));
        let sums = Sums { begun: sums.begun || depth > 0, ..sums };
        if n == 1 || count <= SHORT || m.max(LEAST_ROWS) * n <= SMALL {
            // SAFETY: as the caller promises.
            unsafe { add_in_order((m, n, count), left, right, sums) };
            continue;
        }
        let (rows, left_row) = if m < LEAST_ROWS { (LEAST_ROWS, 0) } else { (m, left.row) };
        // SAFETY: as the caller promises; a row that is computed twice is read twice.
        unsafe {
            gemm::gemm(
                rows,
                n,
                count,
                sums.data,
                1,
                sums.stride as isize,
                sums.begun,
                left.data,
                left.col as isize,
                left_row as isize,
                right.data,
                right.col as isize,
                right.row as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                if parallel { Parallelism::Rayon(rayon::current_num_threads()) } else { Parallelism::None },
            );
        }
    }
}

/// The same in the crate's order: a sum of its own, which is then added.
///
/// # Safety
/// As for [`add_product`].
unsafe fn add_in_order((m, n, inner): (usize, usize, usize), left: Strided, right: Strided, sums: Sums) {
    /// Columns that are summed at a time.
    const TOGETHER: usize = 16;
    let fused = fused();
    simd(
        #[inline(always)]
        || {
            for row in 0..m {
                for first in (0..n).step_by(TOGETHER) {
                    let width = TOGETHER.min(n - first);
                    let mut of_row = [0f32; TOGETHER];
                    for k in 0..inner {
                        // SAFETY: as the caller promises.
                        let a = unsafe { left.from(row, k).data.read() };
                        for (j, sum) in of_row[..width].iter_mut().enumerate() {
                            // SAFETY: as the caller promises.
                            let b = unsafe { right.from(k, first + j).data.read() };
                            *sum = if fused { a.mul_add(b, *sum) } else { a * b + *sum };
                        }
                    }
                    for (j, sum) in of_row[..width].iter().enumerate() {
                        // SAFETY: as the caller promises.
                        let whole = unsafe { &mut *sums.data.add(row * sums.stride + first + j) };
                        *whole = if sums.begun { *whole + sum } else { *sum };
                    }
                }
            }
        },
    );
}

/// Whether so many rows are computed by `in_order` where the right side is a transpose.
#[cfg(target_arch = "x86_64")]
fn is_in_order(m: usize) -> bool {
    m <= in_order::MOST_ROWS && in_order::is_here()
}

#[cfg(not(target_arch = "x86_64"))]
fn is_in_order(_: usize) -> bool {
    false
}

/// Whether the crate's multiply-adds round once on this processor.
#[cfg(target_arch = "x86_64")]
fn fused() -> bool {
    is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn fused() -> bool {
    cfg!(target_arch = "aarch64")
}

pub(super) fn multiply<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    parallel: bool,
    workspace: &mut [f32],
) {
    let (m, n) = (dst.rows(), dst.cols());
    let mut workspace = Workspace::new(workspace);
    let sums = workspace.take(sums(m, n));
    // SAFETY: the sums are as many as they must be, and nobody else has them.
    unsafe { sum(terms, (m, n), (sums.as_mut_ptr(), n), parallel, workspace) };
    let sums = &sums[..m * n];
    let finish = |row: usize| {
        let at = At { row, col: 0 };
        // SAFETY: inside, and each row is written once.
        epilogue(at, &sums[row * n..][..n], unsafe { dst.part(row, 0, n) });
    };
    if parallel {
        parallel::each(m, finish);
    } else {
        (0..m).for_each(finish);
    }
}

/// The same where the sums are stored as they are: they are computed in the destination.
pub(super) fn multiply_in_place<T: Element>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, f32>,
    parallel: bool,
    workspace: &mut [f32],
) {
    let (m, n) = (dst.rows(), dst.cols());
    assert!(m >= LEAST_ROWS, "a product in place has {LEAST_ROWS} rows or more");
    // SAFETY: the destination is `[m, n]`, and whoever lent it has lent it to nobody else.
    unsafe { sum(terms, (m, n), (dst.as_mut_ptr(), dst.stride()), parallel, Workspace::new(workspace)) };
}

/// Computes the sums of a product `[m, n]` into `data`, whose rows are `stride` elements apart.
///
/// # Safety
/// As for [`add_product`].
unsafe fn sum<T: Element>(
    terms: &[Term<'_, T>],
    (m, n): (usize, usize),
    (data, stride): (*mut f32, usize),
    parallel: bool,
    mut workspace: Workspace<'_>,
) {
    let [left, right] = widened::<T>((m, n), terms.iter().map(Term::sides));
    let (left, right) = (workspace.take(left), workspace.take(right));
    let mut sums = Sums { data, stride, begun: false };
    for term in terms.iter().filter(|term| term.inner() > 0) {
        let left = Strided::new(term.left(), left);
        let add = |cols: Range<usize>, right: Strided| {
            let shape = (m, cols.len(), term.inner());
            let sums = sums.from(0, cols.start);
            // SAFETY: both sides hold what the term describes, as `Term::check` found, and the sums are as many as the
            // caller promises.
            unsafe { add_product(shape, left, right, sums, parallel) };
        };
        match term.right() {
            #[cfg(target_arch = "x86_64")]
            Right::Stored(Side::Columns(w)) if T::IS_BF16 && is_in_order(m) => {
                let weight = in_order::Weight { data: w.as_ptr(), stride: w.stride() };
                // SAFETY: as above, and the processor has what it takes.
                unsafe { in_order::add_product((m, n, term.inner()), left, weight, sums, parallel) };
            }
            Right::Stored(side) => add(0..n, Strided::new(side, right)),
            Right::Quantized(w) => each_dequantized::<T>(w, false, n, right, add),
            Right::QuantizedColumns(w) => each_dequantized::<T>(w, true, n, right, add),
        }
        sums.begun = true;
    }
    if !sums.begun {
        for row in 0..m {
            // SAFETY: a row of the sums.
            unsafe { std::slice::from_raw_parts_mut(data.add(row * stride), n) }.fill(0.0);
        }
    }
}

/// Dequantizes a weight in blocks or its transpose into `memory`, [`COLS`] of its `n` columns at a time.
fn each_dequantized<T: Element>(
    w: Rows<'_>,
    transposed: bool,
    n: usize,
    memory: &mut [f32],
    add: impl Fn(Range<usize>, Strided),
) {
    for first in (0..n).step_by(COLS) {
        let cols = first..n.min(first + COLS);
        add(cols.clone(), Strided::dequantized::<T>(w, transposed, cols, memory));
    }
}

//! The same sums through the `gemm` crate, for processors without AVX-512.

use gemm::Parallelism;
use rayon::prelude::*;

use super::{At, Epilogue, Side, Term};
use crate::kernels::view::ViewMut;
use crate::kernels::workspace::Workspace;
use crate::kernels::{Element, widen};

/// A matrix of f32 with its distances between rows and between columns.
struct Strided {
    data: *const f32,
    row: usize,
    col: usize,
}

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
            copy.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, row)| widen(from.row(i), row));
            (copy.as_ptr(), cols)
        } else {
            (from.as_ptr().cast(), from.stride())
        };
        let (row, col) = if transposed { (1, width) } else { (width, 1) };
        Self { data, row, col }
    }
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
    let sums = workspace.take(m * n);
    if parallel {
        sums.par_chunks_mut(1 << 20).for_each(|part| part.fill(0.0));
    } else {
        sums.fill(0.0);
    }
    let widest = |side: usize| if T::IS_BF16 { terms.iter().map(|t| t.inner() * side).max().unwrap_or(0) } else { 0 };
    let (left, right) = (workspace.take(widest(m)), workspace.take(widest(n)));
    for term in terms {
        let (left, right) = (Strided::new(term.left(), left), Strided::new(term.right(), right));
        let threads = if parallel { Parallelism::Rayon(rayon::current_num_threads()) } else { Parallelism::None };
        // SAFETY: both sides hold what the term describes, as `Term::check` found, and the sums are `[m, n]`.
        unsafe {
            gemm::gemm(
                m,
                n,
                term.inner(),
                sums.as_mut_ptr(),
                1,
                n as isize,
                true,
                left.data,
                left.col as isize,
                left.row as isize,
                right.data,
                right.col as isize,
                right.row as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                threads,
            );
        }
    }
    let finish = |(row, sums): (usize, &[f32])| {
        let at = At { row, col: 0 };
        // SAFETY: inside, and each row is written once.
        epilogue(at, sums, unsafe { dst.part(row, 0, n) });
    };
    if parallel {
        sums.par_chunks(n).enumerate().for_each(finish);
    } else {
        sums.chunks(n).enumerate().for_each(finish);
    }
}

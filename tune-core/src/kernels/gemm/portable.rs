//! The same sums through the `gemm` crate, for processors without AVX-512.

use gemm::Parallelism;
use rayon::prelude::*;

use super::{At, Epilogue, Side, Term};
use crate::kernels::buffers::Buffer;
use crate::kernels::view::ViewMut;
use crate::kernels::{Element, widen};

/// A matrix of f32 with its distances between rows and between columns.
struct Strided {
    data: *const f32,
    row: usize,
    col: usize,
    _widened: Option<Buffer<f32>>,
}

impl Strided {
    fn new<T: Element>(side: Side<'_, T>) -> Self {
        let (from, transposed) = match side {
            Side::Rows(from) => (from, false),
            Side::Columns(from) => (from, true),
        };
        let (data, width, widened) = if T::IS_BF16 {
            let cols = from.cols();
            let mut copy = Buffer::<f32>::new(from.rows() * cols);
            copy.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, row)| widen(from.row(i), row));
            (copy.as_ptr(), cols, Some(copy))
        } else {
            (from.as_ptr().cast(), from.stride(), None)
        };
        let (row, col) = if transposed { (1, width) } else { (width, 1) };
        Self { data, row, col, _widened: widened }
    }
}

pub(super) fn multiply<T: Element, D: Send>(
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, D>,
    epilogue: &impl Epilogue<D>,
    parallel: bool,
) {
    let (m, n) = (dst.rows(), dst.cols());
    let mut sums = Buffer::<f32>::zeros(m * n);
    for term in terms {
        let (left, right) = (Strided::new(term.left()), Strided::new(term.right()));
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

//! The same sums through the `gemm` crate, for processors without AVX-512.

use gemm::Parallelism;
use rayon::prelude::*;

use super::{At, Destination, Left, Right, Rows, Store, Term};
use crate::kernels::buffers::Buffer;
use crate::kernels::{Element, widen};

/// A matrix of f32 with its distances between rows and between columns.
struct Strided {
    data: *const f32,
    row: usize,
    col: usize,
    _widened: Option<Buffer<f32>>,
}

impl Strided {
    /// `rows` rows of `cols` elements, and their transpose if that is asked for.
    fn new<T: Element>(from: Rows<'_, T>, rows: usize, cols: usize, transposed: bool) -> Self {
        let (data, width, widened) = if T::IS_BF16 {
            let mut copy = Buffer::<f32>::new(rows * cols);
            copy.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, row)| widen(&from.data[i * from.width..], row));
            (copy.as_ptr(), cols, Some(copy))
        } else {
            (from.data.as_ptr().cast(), from.width, None)
        };
        let (row, col) = if transposed { (1, width) } else { (width, 1) };
        Self { data, row, col, _widened: widened }
    }
}

pub(super) fn multiply<T: Element, D: Send>(
    (m, n): (usize, usize),
    terms: &[Term<'_, T>],
    dst: &Destination<'_, D>,
    store: &impl Store<D>,
    parallel: bool,
) {
    let mut sums = Buffer::<f32>::zeros(m * n);
    for term in terms {
        let k = term.inner;
        let left = match term.left {
            Left::Rows(l) => Strided::new(l, m, k, false),
            Left::Columns(l) => Strided::new(l, k, m, true),
        };
        let right = match term.right {
            Right::Rows(r) => Strided::new(r, k, n, false),
            Right::Columns(r) => Strided::new(r, n, k, true),
        };
        let threads = if parallel { Parallelism::Rayon(rayon::current_num_threads()) } else { Parallelism::None };
        // SAFETY: both sides hold what the term describes, as `Term::check` found, and the sums are `[m, n]`.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
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
        store(at, sums, unsafe { dst.part(at, n) });
    };
    if parallel {
        sums.par_chunks(n).enumerate().for_each(finish);
    } else {
        sums.chunks(n).enumerate().for_each(finish);
    }
}

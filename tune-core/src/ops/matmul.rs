//! One matrix product over strided slices: the only door to the `gemm` crate.

use super::Real;

/// A matrix in a slice: the distance between two rows and between two columns.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a, R> {
    pub(crate) data: &'a [R],
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a, R> Strided<'a, R> {
    /// A matrix stored row by row, `width` elements apart.
    pub(crate) fn rows(data: &'a [R], width: usize) -> Self {
        Self { data, row: width, col: 1 }
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Self { data: self.data, row: self.col, col: self.row }
    }
}

/// Whether a product may use all threads or is itself one of many parallel tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    One,
    All,
}

/// `dst = beta * dst + alpha * lhs · rhs` with `lhs` `[m, k]`, `rhs` `[k, n]`
/// and `dst` `[m, n]` row by row, `dst_width` elements apart.
///
/// The sum over `k` runs in an order that depends on the shape alone.
#[allow(clippy::too_many_arguments)]
pub(crate) fn gemm<R: Real>(
    (m, k, n): (usize, usize, usize),
    alpha: R,
    lhs: Strided<'_, R>,
    rhs: Strided<'_, R>,
    beta: R,
    dst: &mut [R],
    dst_width: usize,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |rows: usize, cols: usize, row: usize, col: usize| (rows - 1) * row + (cols - 1) * col;
    assert!(last(m, n, dst_width, 1) < dst.len(), "matmul: destination too short");
    assert!(k == 0 || last(m, k, lhs.row, lhs.col) < lhs.data.len(), "matmul: left side too short");
    assert!(k == 0 || last(k, n, rhs.row, rhs.col) < rhs.data.len(), "matmul: right side too short");
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: the asserts above keep every access inside the three slices, `dst`
    // is borrowed mutably and so overlaps neither side, and `R` is f32 or f64.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_width as isize,
            beta != R::zero(),
            lhs.data.as_ptr(),
            lhs.col as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.col as isize,
            rhs.row as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `lhs · rhsᵀ` for `lhs` `[m, k]` and `rhs` `[n, k]`, both row by row: a linear layer's forward pass.
pub(crate) fn matmul_nt<R: Real>(lhs: &[R], rhs: &[R], (m, k, n): (usize, usize, usize)) -> Vec<R> {
    let mut dst = vec![R::zero(); m * n];
    gemm((m, k, n), R::one(), Strided::rows(lhs, k), Strided::rows(rhs, k).t(), R::zero(), &mut dst, n, Threads::All);
    dst
}

/// `lhs · rhs` for `lhs` `[m, k]` and `rhs` `[k, n]`, both row by row.
pub(crate) fn matmul_nn<R: Real>(lhs: &[R], rhs: &[R], (m, k, n): (usize, usize, usize)) -> Vec<R> {
    let mut dst = vec![R::zero(); m * n];
    gemm((m, k, n), R::one(), Strided::rows(lhs, k), Strided::rows(rhs, n), R::zero(), &mut dst, n, Threads::All);
    dst
}

/// `lhsᵀ · rhs` for `lhs` `[k, m]` and `rhs` `[k, n]`, both row by row: a weight's gradient.
pub(crate) fn matmul_tn<R: Real>(lhs: &[R], rhs: &[R], (m, k, n): (usize, usize, usize)) -> Vec<R> {
    let mut dst = vec![R::zero(); m * n];
    gemm((m, k, n), R::one(), Strided::rows(lhs, m).t(), Strided::rows(rhs, n), R::zero(), &mut dst, n, Threads::All);
    dst
}

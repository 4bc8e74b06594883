//! `x · wᵀ` for a few rows on processors with AVX2: weights are read once, where they are, and every sum runs in the order of
//! [`super::portable`]. To pack a weight, as the `gemm` crate does, takes longer than a few rows of its products.

use std::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm256_broadcast_ss, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

use super::portable::{DEPTH, Strided, Sums};
use crate::kernels::{Element, parallel};

/// Rows up to which it is faster than the crate.
pub(super) const MOST_ROWS: usize = 16;
/// Columns of a result that are summed at a time, one in each lane.
const LANES: usize = 8;
/// Rows that are summed at a time, at most.
const ROWS: usize = 4;
/// Columns of a task.
const TOGETHER: usize = 4 * LANES;

/// Whether this processor has the instructions.
pub(super) fn is_here() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// A weight `[n, inner]`, whose transpose is the right side.
#[derive(Clone, Copy)]
pub(super) struct Weight<T> {
    pub data: *const T,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<T: Copy> Weight<T> {
    fn row(self, row: usize) -> *const T {
        self.data.wrapping_add(row * self.stride)
    }
}

// SAFETY: it is only read, and whoever makes one promises that it can be.
unsafe impl<T> Sync for Weight<T> {}

/// Adds `left` `[m, inner]`, whose rows are without gaps, times the transpose of `weight` `[n, inner]` to sums, or begins them with it.
///
/// # Safety
/// The processor has the instructions ([`is_here`]), both sides can be read, and the sums are `[m, n]`.
pub(super) unsafe fn add_product<T: Element>(
    (m, n, inner): (usize, usize, usize),
    left: Strided,
    weight: Weight<T>,
    sums: Sums,
    parallel: bool,
) {
    let run = |task: usize| {
        let end = n.min((task + 1) * TOGETHER);
        for first in (task * TOGETHER..end).step_by(LANES) {
            let width = LANES.min(end - first);
            // Lanes without a column compute the last one again.
            let rows = std::array::from_fn(|j| weight.row(first + j.min(width - 1)));
            for depth in (0..inner).step_by(DEPTH) {
                let range = (depth, DEPTH.min(inner - depth));
                for row in (0..m).step_by(ROWS) {
                    let sums = sums.from(row, first);
                    let sums = Sums { begun: sums.begun || depth > 0, ..sums };
                    let left = left.from(row, 0);
                    // SAFETY: as the caller promises; tasks have columns of their own.
                    unsafe {
                        match m - row {
                            1 => add_rows::<T, 1>(left, &rows, range, sums, width),
                            2 => add_rows::<T, 2>(left, &rows, range, sums, width),
                            3 => add_rows::<T, 3>(left, &rows, range, sums, width),
                            _ => add_rows::<T, ROWS>(left, &rows, range, sums, width),
                        }
                    }
                }
            }
        }
    };
    let tasks = n.div_ceil(TOGETHER);
    if parallel {
        parallel::each(tasks, run);
    } else {
        (0..tasks).for_each(run);
    }
}

/// Sums `R` rows and `width` columns over `count` inner elements from `depth` on, and adds these sums.
///
/// # Safety
/// As for [`add_product`].
#[target_feature(enable = "avx2,fma")]
unsafe fn add_rows<T: Element, const R: usize>(
    left: Strided,
    weight: &[*const T; LANES],
    (depth, count): (usize, usize),
    sums: Sums,
    width: usize,
) {
    let mut of_rows = [_mm256_setzero_ps(); R];
    let whole = count / LANES * LANES;
    for k in (depth..depth + whole).step_by(LANES) {
        // SAFETY: so many elements are in each row.
        let columns = transposed(weight.map(|row| unsafe { load(row.wrapping_add(k)) }));
        for (i, column) in columns.into_iter().enumerate() {
            for (row, sum) in of_rows.iter_mut().enumerate() {
                // SAFETY: inside of the left side.
                let x = unsafe { _mm256_broadcast_ss(&*left.from(row, k + i).data) };
                *sum = _mm256_fmadd_ps(x, column, *sum);
            }
        }
    }
    for k in depth + whole..depth + count {
        // SAFETY: inside of both sides.
        let column = weight.map(|row| unsafe { row.wrapping_add(k).read() }.to_f32());
        for (row, sum) in of_rows.iter_mut().enumerate() {
            // SAFETY: as above; eight numbers are there.
            unsafe {
                let x = _mm256_broadcast_ss(&*left.from(row, k).data);
                *sum = _mm256_fmadd_ps(x, _mm256_loadu_ps(column.as_ptr()), *sum);
            }
        }
    }
    for (row, sum) in of_rows.into_iter().enumerate() {
        let mut lanes = [0f32; LANES];
        // SAFETY: eight numbers have room there; the sums are the caller's.
        let stored = unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), sum);
            std::slice::from_raw_parts_mut(sums.data.add(row * sums.stride), width)
        };
        for (whole, sum) in stored.iter_mut().zip(lanes) {
            *whole = if sums.begun { *whole + sum } else { sum };
        }
    }
}

/// Eight elements as f32.
///
/// # Safety
/// They can be read.
#[target_feature(enable = "avx2")]
unsafe fn load<T: Element>(from: *const T) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe {
        if T::IS_BF16 {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        } else {
            _mm256_loadu_ps(from.cast())
        }
    }
}

/// Rows of eight as columns.
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m256; LANES]) -> [__m256; LANES] {
    let [a, b, c, d, e, f, g, h] = rows;
    let pairs = |a, b| [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
    let fours = |[ab, ab_high]: [__m256; 2], [cd, cd_high]: [__m256; 2]| {
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
            _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
            _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high),
            _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high),
        ]
    };
    let (low, high) = (fours(pairs(a, b), pairs(c, d)), fours(pairs(e, f), pairs(g, h)));
    let half = |i: usize| _mm256_permute2f128_ps::<0x20>(low[i], high[i]);
    let other = |i: usize| _mm256_permute2f128_ps::<0x31>(low[i], high[i]);
    [half(0), half(1), half(2), half(3), other(0), other(1), other(2), other(3)]
}

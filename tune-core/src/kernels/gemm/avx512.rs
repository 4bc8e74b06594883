//! Tiles of a product in AVX-512: eight rows by up to 48 columns, held in registers.
//!
//! Both number types are seen as 32-bit words along the inner dimension: one f32, or a pair of
//! neighbouring bf16, so that the two kernels differ in a single instruction.

use std::arch::x86_64::{
    __m512, __m512bh, _MM_HINT_T0, _mm_prefetch, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::ahead::Ahead;
use super::{COLS, LANES, ROWS};

/// Steps that the right side is fetched ahead of its use.
const AHEAD: usize = 12;
/// Steps between two fetches of what comes next.
pub(super) const BETWEEN: usize = 16;

/// One product that is added to a tile, in words.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) steps: usize,
    pub(super) left: *const f32,
    /// Distance between two rows of the left side, and between two inner steps.
    pub(super) left_row: usize,
    pub(super) left_step: usize,
    pub(super) right: *const f32,
    /// Distance between two inner steps of the right side, whose columns are neighbours.
    pub(super) right_step: usize,
    /// Whether the tile begins with this product, whatever it held.
    pub(super) fresh: bool,
}

#[inline(always)]
fn pairs(words: __m512) -> __m512bh {
    // SAFETY: both are 64 bytes of which any bits are a value.
    unsafe { std::mem::transmute(words) }
}

macro_rules! kernel {
    ($name:ident, $tile:ident, $features:literal, |$a:ident, $b:ident, $c:ident| $step:expr) => {
        /// Adds `rows` by `16 · vectors` sums of products to a tile whose rows are [`COLS`] wide.
        ///
        /// # Safety
        /// The processor has the instructions, and all that the operands describe can be read.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(
            rows: usize,
            vectors: usize,
            operands: Operands,
            tile: &mut [f32; ROWS * COLS],
            ahead: &mut Ahead,
        ) {
            let mut done = 0;
            while done < rows {
                // SAFETY: as the caller promises; row `done` is one of `rows`.
                unsafe {
                    let part = Operands { left: operands.left.add(done * operands.left_row), ..operands };
                    let tile = &mut tile[done * COLS..];
                    done += match (rows - done, vectors) {
                        (8.., 3) => $tile::<8, 3>(part, tile, ahead),
                        (8.., 2) => $tile::<8, 2>(part, tile, ahead),
                        (8.., _) => $tile::<8, 1>(part, tile, ahead),
                        (4.., 3) => $tile::<4, 3>(part, tile, ahead),
                        (4.., 2) => $tile::<4, 2>(part, tile, ahead),
                        (4.., _) => $tile::<4, 1>(part, tile, ahead),
                        (_, 3) => $tile::<1, 3>(part, tile, ahead),
                        (_, 2) => $tile::<1, 2>(part, tile, ahead),
                        (..) => $tile::<1, 1>(part, tile, ahead),
                    };
                }
            }
        }

        /// As above, for `R` rows; returns `R`.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $tile<const R: usize, const V: usize>(o: Operands, tile: &mut [f32], ahead: &mut Ahead) -> usize {
            assert!(tile.len() >= (R - 1) * COLS + V * LANES);
            // SAFETY: as the caller promises for the operands; the tile is as large as is asserted.
            unsafe {
                let mut acc: [[__m512; V]; R] = [[_mm512_setzero_ps(); V]; R];
                if !o.fresh {
                    for (r, row) in acc.iter_mut().enumerate() {
                        for (v, sum) in row.iter_mut().enumerate() {
                            *sum = _mm512_loadu_ps(tile.as_ptr().add(r * COLS + v * LANES));
                        }
                    }
                }
                let (mut left, mut right) = (o.left, o.right);
                let mut rest = o.steps;
                while rest > 0 {
                    let steps = rest.min(BETWEEN);
                    rest -= steps;
                    ahead.fetch();
                    for _ in 0..steps {
                        let mut columns = [_mm512_setzero_ps(); V];
                        for (v, column) in columns.iter_mut().enumerate() {
                            *column = _mm512_loadu_ps(right.add(v * LANES));
                            _mm_prefetch::<_MM_HINT_T0>(right.wrapping_add(v * LANES + AHEAD * o.right_step).cast());
                        }
                        for (r, row) in acc.iter_mut().enumerate() {
                            let $a = _mm512_set1_ps(left.add(r * o.left_row).read_unaligned());
                            for (sum, &$b) in row.iter_mut().zip(&columns) {
                                let $c = *sum;
                                *sum = $step;
                            }
                        }
                        left = left.wrapping_add(o.left_step);
                        right = right.wrapping_add(o.right_step);
                    }
                }
                for (r, row) in acc.iter().enumerate() {
                    for (v, sum) in row.iter().enumerate() {
                        _mm512_storeu_ps(tile.as_mut_ptr().add(r * COLS + v * LANES), *sum);
                    }
                }
            }
            R
        }
    };
}

kernel!(add_f32, tile_f32, "avx512f", |a, b, c| _mm512_fmadd_ps(a, b, c));
kernel!(add_bf16, tile_bf16, "avx512f,avx512bf16", |a, b, c| _mm512_dpbf16_ps(c, pairs(a), pairs(b)));

//! The same in AVX2 and AVX-512. The kernels differ in the width of a vector, and in how a group of a row of `w` becomes
//! vectors.

use std::arch::x86_64::*;

use super::Operands;

#[target_feature(enable = "avx2")]
#[inline]
fn sum_of_8(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sum_of_16(x: __m512) -> f32 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x)));
    sum_of_8(_mm256_add_ps(_mm512_castps512_ps256(x), high))
}

macro_rules! kernel {
    (
        $name:ident, $features:literal, $word:ty, $vector:ty, $lanes:literal, group $group:literal in $vectors:literal,
        $zero:ident, $load:ident, $sum:ident, |$p:ident| $w:expr, |$a:ident, $b:ident, $c:ident| $step:expr
    ) => {
        /// The products of `R` rows of `w` with `M` of `x`, in whole groups.
        ///
        /// # Safety
        /// The processor has the instructions, and all that the operands describe can be read.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const R: usize, const M: usize>(o: Operands<$word>) -> [[f32; M]; R] {
            // Loops that count are unrolled early enough for all vectors to stay in registers; iterators are not.
            let mut sums: [[$vector; M]; R] = [[$zero(); M]; R];
            for group in 0..o.inner / $group {
                let mut x: [[$vector; $vectors]; M] = [[$zero(); $vectors]; M];
                let x_at = o.x.wrapping_add(group * M * $vectors * $lanes);
                let mut m = 0;
                while m < M {
                    let mut v = 0;
                    while v < $vectors {
                        // SAFETY: as the caller promises.
                        x[m][v] = unsafe { $load(x_at.wrapping_add((m * $vectors + v) * $lanes)) };
                        v += 1;
                    }
                    m += 1;
                }
                let mut r = 0;
                while r < R {
                    let $p = o.w.wrapping_add(r * o.w_row + group * $group);
                    // What the next tile reads, which the first cache has no room for beside this one.
                    _mm_prefetch::<_MM_HINT_T1>($p.wrapping_add(R * o.w_row).cast());
                    // SAFETY: as the caller promises.
                    let w: [$vector; $vectors] = unsafe { $w };
                    let mut v = 0;
                    while v < $vectors {
                        let mut m = 0;
                        while m < M {
                            let ($a, $b, $c) = (w[v], x[m][v], sums[r][m]);
                            sums[r][m] = $step;
                            m += 1;
                        }
                        v += 1;
                    }
                    r += 1;
                }
            }
            let mut results = [[0f32; M]; R];
            let mut r = 0;
            while r < R {
                let mut m = 0;
                while m < M {
                    results[r][m] = $sum(sums[r][m]);
                    m += 1;
                }
                r += 1;
            }
            results
        }
    };
}

kernel!(
    avx2_f32, "avx2,fma", f32, __m256, 8, group 8 in 1, _mm256_setzero_ps, _mm256_loadu_ps, sum_of_8,
    |p| [_mm256_loadu_ps(p)], |a, b, c| _mm256_fmadd_ps(a, b, c)
);
kernel!(
    avx2_bf16, "avx2,fma", u16, __m256, 8, group 16 in 2, _mm256_setzero_ps, _mm256_loadu_ps, sum_of_8,
    |p| {
        let pairs = _mm256_loadu_si256(p.cast());
        let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd)]
    },
    |a, b, c| _mm256_fmadd_ps(a, b, c)
);
kernel!(
    avx512_f32, "avx512f", f32, __m512, 16, group 16 in 1, _mm512_setzero_ps, _mm512_loadu_ps, sum_of_16,
    |p| [_mm512_loadu_ps(p)], |a, b, c| _mm512_fmadd_ps(a, b, c)
);
kernel!(
    avx512_bf16, "avx512f", u16, __m512, 16, group 32 in 2, _mm512_setzero_ps, _mm512_loadu_ps, sum_of_16,
    |p| {
        let pairs = _mm512_loadu_si512(p.cast());
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd)]
    },
    |a, b, c| _mm512_fmadd_ps(a, b, c)
);
kernel!(
    pairs, "avx512f,avx512bf16", u16, __m512, 16, group 32 in 1, _mm512_setzero_ps, _mm512_loadu_ps, sum_of_16,
    |p| [_mm512_loadu_ps(p.cast())], |a, b, c| _mm512_dpbf16_ps(c, bf16s(a), bf16s(b))
);

#[inline(always)]
fn bf16s(words: __m512) -> __m512bh {
    // SAFETY: both are 64 bytes of which any bits are a value.
    unsafe { std::mem::transmute(words) }
}

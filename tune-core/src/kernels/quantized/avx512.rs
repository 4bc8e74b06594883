//! The same with AVX-512: a unit is a vector. Elements before the first whole unit of a piece and behind the last are left to the
//! loops for any processor; so are all checks.

use std::arch::x86_64::{
    __m512, __m512i, _mm_cvtsi32_si128, _mm_loadl_epi64, _mm_loadu_si128, _mm256_loadu_si256, _mm256_storeu_si256,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtepu8_epi64,
    _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_mask_or_epi32, _mm512_mul_ps, _mm512_or_si512,
    _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_set1_ps, _mm512_slli_epi32, _mm512_slli_epi64,
    _mm512_srl_epi32, _mm512_srli_epi32, _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_sub_epi32, _mm512_sub_ps,
};
use std::arch::x86_64::{_CMP_UNORD_Q, _mm512_mask_blend_epi32};

use super::format::{Decode, Format};
use super::{Nf4, Quantized, UNIT, fill, floats, k, nf4, small};
use crate::kernels::Element;

/// See [`Quantized::dequantize`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn dequantize<T: Element>(of: &Quantized, row: usize, from: usize, out: &mut [T]) {
    assert!(row < of.rows && from + out.len() <= of.cols, "a part outside of its whole");
    let first = row * of.cols + from;
    match of.format {
        Format::F16 => f16(of, first, out),
        Format::Bf16 => bf16(of, first, out),
        Format::Q4_0 => q4_0(of, first, out),
        Format::Q4_1 => q4_1(of, first, out),
        Format::Q5_0 => q5_0(of, first, out),
        Format::Q5_1 => q5_1(of, first, out),
        Format::Q8_0 => q8_0(of, first, out),
        Format::Iq4Nl => iq4_nl(of, first, out),
        Format::Q2K => q2_k(of, first, out),
        Format::Q3K => q3_k(of, first, out),
        Format::Q4K => q4_k(of, first, out),
        Format::Q5K => q5_k(of, first, out),
        Format::Q6K => q6_k(of, first, out),
        Format::Nf4 => nf4(of, first, out),
    }
}

/// A function that dequantizes elements from number `first` on, given what one unit is as a vector.
macro_rules! units {
    ($name:ident, $decode:ty, |$head:ident, $block:ident, $unit:ident| $vector:expr) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn $name<T: Element>(of: &Quantized, first: usize, out: &mut [T]) {
            let units = <$decode>::ELEMENTS / UNIT;
            let before = (first.next_multiple_of(UNIT) - first).min(out.len());
            let (begin, out) = out.split_at_mut(before);
            fill::<$decode, T>(&of.bytes, &of.scales, first, begin);
            let (whole, end) = out.as_chunks_mut::<UNIT>();
            let (mut unit, mut done) = ((first + before) / UNIT, 0);
            while done < whole.len() {
                let number = unit / units;
                let $block = &of.bytes[number * <$decode>::BYTES..][..<$decode>::BYTES];
                let $head = <$decode>::head($block, &of.scales, number);
                let within = unit % units;
                let count = (units - within).min(whole.len() - done);
                for ($unit, out) in (within..).zip(&mut whole[done..done + count]) {
                    store($vector, out);
                }
                (unit, done) = (unit + count, done + count);
            }
            fill::<$decode, T>(&of.bytes, &of.scales, unit * UNIT, end);
        }
    };
}

units!(f16, floats::F16, |_head, block, _unit| {
    assert!(block.len() == 2 * UNIT);
    // SAFETY: that many bytes are there.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(block.as_ptr().cast()) })
});
units!(bf16, floats::Bf16, |_head, block, _unit| {
    assert!(block.len() == 2 * UNIT);
    // SAFETY: that many bytes are there.
    let halves = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
});
units!(q4_0, small::Q4_0, |scale, block, unit| {
    let codes = few_bits(bytes(block, 2), 4 * unit, 15);
    scaled(less(codes, 8), scale)
});
units!(q4_1, small::Q4_1, |head, block, unit| {
    let codes = few_bits(bytes(block, 4), 4 * unit, 15);
    _mm512_add_ps(scaled(codes, head[0]), _mm512_set1_ps(head[1]))
});
units!(q5_0, small::Q5_0, |scale, block, unit| {
    let codes = with_fifth(few_bits(bytes(block, 6), 4 * unit, 15), block, 2 + 2 * unit);
    scaled(less(codes, 16), scale)
});
units!(q5_1, small::Q5_1, |head, block, unit| {
    let codes = with_fifth(few_bits(bytes(block, 8), 4 * unit, 15), block, 4 + 2 * unit);
    _mm512_add_ps(scaled(codes, head[0]), _mm512_set1_ps(head[1]))
});
units!(q8_0, small::Q8_0, |scale, block, unit| {
    let at = &block[2 + UNIT * unit..][..UNIT];
    // SAFETY: sixteen bytes are there.
    scaled(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.as_ptr().cast()) }), scale)
});
units!(iq4_nl, small::Iq4Nl, |scale, block, unit| {
    let codes = few_bits(bytes(block, 2), 4 * unit, 15);
    _mm512_mul_ps(_mm512_set1_ps(scale), table(codes, &small::VALUES))
});
units!(q2_k, k::Q2K, |head, block, unit| {
    let [scale, minimum] = k::Q2K::of_unit(&head, block, unit);
    let (at, shift) = k::two_bits(16, unit);
    _mm512_sub_ps(scaled(few_bits(bytes(block, at), shift, 3), scale), _mm512_set1_ps(minimum))
});
units!(q3_k, k::Q3K, |scales, block, unit| {
    let (at, shift) = k::two_bits(32, unit);
    let (low, high) = (few_bits(bytes(block, at), shift, 3), few_bits(bytes(block, UNIT * (unit % 2)), unit / 2, 1));
    scaled(less(_mm512_or_si512(low, _mm512_slli_epi32::<2>(high)), 4), scales[unit])
});
units!(q4_k, k::Q4K, |head, block, unit| {
    let [scale, minimum] = head.of_unit(unit);
    let (at, shift) = k::four_bits(16, unit);
    _mm512_sub_ps(scaled(few_bits(bytes(block, at), shift, 15), scale), _mm512_set1_ps(minimum))
});
units!(q5_k, k::Q5K, |head, block, unit| {
    let [scale, minimum] = head.of_unit(unit);
    let (at, shift) = k::four_bits(48, unit);
    let high = few_bits(bytes(block, 16 + UNIT * (unit % 2)), unit / 2, 1);
    let codes = _mm512_or_si512(few_bits(bytes(block, at), shift, 15), _mm512_slli_epi32::<4>(high));
    _mm512_sub_ps(scaled(codes, scale), _mm512_set1_ps(minimum))
});
units!(q6_k, k::Q6K, |scales, block, unit| {
    let (scale, (at, shift)) = (k::Q6K::of_unit(scales, block, unit), k::Q6K::low_bits(unit));
    let (high_at, high_shift) = k::two_bits(128, unit);
    let high = few_bits(bytes(block, high_at), high_shift, 3);
    let codes = _mm512_or_si512(few_bits(bytes(block, at), shift, 15), _mm512_slli_epi32::<4>(high));
    scaled(less(codes, 32), scale)
});
units!(nf4, Nf4, |scale, block, unit| {
    let at = &block[UNIT / 2 * unit..][..UNIT / 2];
    // SAFETY: eight bytes are there.
    let pairs = _mm512_cvtepu8_epi64(unsafe { _mm_loadl_epi64(at.as_ptr().cast()) });
    let both = _mm512_or_si512(pairs, _mm512_slli_epi64::<32>(pairs));
    // The first of two codes is the upper half.
    let codes = _mm512_and_si512(_mm512_srlv_epi32(both, _mm512_set1_epi64(4)), _mm512_set1_epi32(15));
    _mm512_mul_ps(table(codes, &nf4::VALUES), _mm512_set1_ps(scale))
});

/// Sixteen bytes from `at` on as numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn bytes(block: &[u8], at: usize) -> __m512i {
    let at = &block[at..][..UNIT];
    // SAFETY: sixteen bytes are there.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(at.as_ptr().cast()) })
}

/// Bits of each number from `shift` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn few_bits(of: __m512i, shift: usize, mask: i32) -> __m512i {
    _mm512_and_si512(_mm512_srl_epi32(of, _mm_cvtsi32_si128(shift as i32)), _mm512_set1_epi32(mask))
}

/// The codes with a fifth bit, of the two bytes from `at` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn with_fifth(codes: __m512i, block: &[u8], at: usize) -> __m512i {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    _mm512_mask_or_epi32(codes, bits, codes, _mm512_set1_epi32(16))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn less(codes: __m512i, offset: i32) -> __m512i {
    _mm512_sub_epi32(codes, _mm512_set1_epi32(offset))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn scaled(codes: __m512i, scale: f32) -> __m512 {
    _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(codes))
}

/// The value of each code.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn table(codes: __m512i, values: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen values are there.
    _mm512_permutexvar_ps(codes, unsafe { _mm512_loadu_ps(values.as_ptr()) })
}

/// Stores a unit, rounded as [`Element::from_f32`] does.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn store<T: Element>(values: __m512, out: &mut [T; UNIT]) {
    if !T::IS_BF16 {
        // SAFETY: sixteen f32.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), values) };
        return;
    }
    let bits = _mm512_castps_si512(values);
    let upper = _mm512_srli_epi32::<16>(bits);
    let half = _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
    let no_number = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
    let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    let rounded = _mm512_mask_blend_epi32(no_number, rounded, quiet);
    // SAFETY: sixteen bf16.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded)) };
}

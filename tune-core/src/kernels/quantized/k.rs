//! llama.cpp's k-quants: blocks of 256 whose parts have scales in few bits themselves.
//!
//! A unit is sixteen elements, number 0 to 15. Codes of two bits are stored for four times 32 elements in 32 bytes, those of four
//! bits for twice 32.

use super::UNIT;
use super::format::{Decode, Format, half, sixteen};
use super::nf4::Scales;

/// Where the bytes with two of the bits of a unit's codes begin, which are in 64 bytes from `at` on, and the shift to them.
#[inline(always)]
pub(super) fn two_bits(at: usize, unit: usize) -> (usize, usize) {
    let (half, quarter) = (unit / 8, unit / 2 % 4);
    (at + 32 * half + UNIT * (unit % 2), 2 * quarter)
}

/// `scale · code - minimum`.
pub(super) struct Q2K;

impl Decode for Q2K {
    const FORMAT: Format = Format::Q2K;
    /// The scale of scales, and that of minima.
    type Head = [f32; 2];

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> [f32; 2] {
        [half(block, 80), half(block, 82)]
    }

    #[inline(always)]
    fn unit([scales, minima]: &[f32; 2], block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let [scale, minimum] = Self::of_unit(&[*scales, *minima], block, unit);
        let (at, shift) = two_bits(16, unit);
        for (out, &byte) in out.iter_mut().zip(sixteen(block, at)) {
            *out = scale * f32::from((byte >> shift) & 3) - minimum;
        }
    }
}

impl Q2K {
    /// Scale and minimum of a unit.
    #[inline(always)]
    pub(super) fn of_unit([scales, minima]: &[f32; 2], block: &[u8], unit: usize) -> [f32; 2] {
        [scales * f32::from(block[unit] & 15), minima * f32::from(block[unit] >> 4)]
    }
}

/// `scale · (code - 4)`: the third bit of a code is apart.
pub(super) struct Q3K;

impl Decode for Q3K {
    const FORMAT: Format = Format::Q3K;
    /// The scales of all units.
    type Head = [f32; 16];

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> [f32; 16] {
        let (scale, packed) = (half(block, 108), &block[96..108]);
        std::array::from_fn(|i| {
            let low = (packed[i % 8] >> (4 * (i / 8))) & 15;
            let high = (packed[8 + i % 4] >> (2 * (i / 4))) & 3;
            scale * (i32::from(low | (high << 4)) - 32) as f32
        })
    }

    #[inline(always)]
    fn unit(scales: &[f32; 16], block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let (at, shift) = two_bits(32, unit);
        let highest = sixteen(block, UNIT * (unit % 2));
        for ((out, &byte), &high) in out.iter_mut().zip(sixteen(block, at)).zip(highest) {
            let code = ((byte >> shift) & 3) | (((high >> (unit / 2)) & 1) << 2);
            *out = scales[unit] * (i32::from(code) - 4) as f32;
        }
    }
}

/// The scales and minima of eight times 32 elements, six bits each, in twelve bytes from `at` on.
#[inline(always)]
fn scales_and_minima(block: &[u8], at: usize) -> [[u8; 8]; 2] {
    let word = |i: usize| u32::from_le_bytes([block[at + i], block[at + i + 1], block[at + i + 2], block[at + i + 3]]);
    let (low, middle, high) = (word(0), word(4), word(8));
    let both = |first: u32, last: u32| (u64::from(first) | (u64::from(last) << 32)).to_le_bytes();
    let scales = both(low & 0x3f3f_3f3f, (high & 0x0f0f_0f0f) | ((low >> 2) & 0x3030_3030));
    let minima = both(middle & 0x3f3f_3f3f, ((high >> 4) & 0x0f0f_0f0f) | ((middle >> 2) & 0x3030_3030));
    [scales, minima]
}

/// The head of a block of [`Q4K`] or [`Q5K`]: what scales and minima are multiplied by, and they.
pub(super) struct Head {
    factors: [f32; 2],
    of: [[u8; 8]; 2],
}

impl Head {
    #[inline(always)]
    fn read(block: &[u8]) -> Self {
        Self { factors: [half(block, 0), half(block, 2)], of: scales_and_minima(block, 4) }
    }

    /// Scale and minimum of a unit.
    #[inline(always)]
    pub(super) fn of_unit(&self, unit: usize) -> [f32; 2] {
        [0, 1].map(|i| self.factors[i] * f32::from(self.of[i][unit / 2 % 8]))
    }
}

/// Where the bytes with a unit's codes of four bits begin, which are in 128 bytes from `at` on, and the shift to them.
#[inline(always)]
pub(super) fn four_bits(at: usize, unit: usize) -> (usize, usize) {
    (at + 32 * (unit / 4) + UNIT * (unit % 2), 4 * (unit / 2 % 2))
}

/// `scale · code - minimum`.
pub(super) struct Q4K;

impl Decode for Q4K {
    const FORMAT: Format = Format::Q4K;
    type Head = Head;

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> Head {
        Head::read(block)
    }

    #[inline(always)]
    fn unit(head: &Head, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let [scale, minimum] = head.of_unit(unit);
        let (at, shift) = four_bits(16, unit);
        for (out, &byte) in out.iter_mut().zip(sixteen(block, at)) {
            *out = scale * f32::from((byte >> shift) & 15) - minimum;
        }
    }
}

/// The same with a fifth bit, which is apart.
pub(super) struct Q5K;

impl Decode for Q5K {
    const FORMAT: Format = Format::Q5K;
    type Head = Head;

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> Head {
        Head::read(block)
    }

    #[inline(always)]
    fn unit(head: &Head, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let [scale, minimum] = head.of_unit(unit);
        let (at, shift) = four_bits(48, unit);
        let highest = sixteen(block, 16 + UNIT * (unit % 2));
        for ((out, &byte), &high) in out.iter_mut().zip(sixteen(block, at)).zip(highest) {
            let code = ((byte >> shift) & 15) | (((high >> (unit / 2)) & 1) << 4);
            *out = scale * f32::from(code) - minimum;
        }
    }
}

/// `scale · (code - 32)`: the upper two of six bits are apart.
pub(super) struct Q6K;

impl Decode for Q6K {
    const FORMAT: Format = Format::Q6K;
    /// The scale of scales.
    type Head = f32;

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> f32 {
        half(block, 208)
    }

    #[inline(always)]
    fn unit(scales: &f32, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let (scale, (at, shift)) = (Self::of_unit(*scales, block, unit), Self::low_bits(unit));
        let (high_at, high_shift) = two_bits(128, unit);
        for ((out, &byte), &high) in out.iter_mut().zip(sixteen(block, at)).zip(sixteen(block, high_at)) {
            let code = ((byte >> shift) & 15) | (((high >> high_shift) & 3) << 4);
            *out = scale * (i32::from(code) - 32) as f32;
        }
    }
}

impl Q6K {
    /// The scale of a unit.
    #[inline(always)]
    pub(super) fn of_unit(scales: f32, block: &[u8], unit: usize) -> f32 {
        scales * f32::from(block[192 + unit] as i8)
    }

    /// Where the bytes with the lower four bits of a unit's codes begin, and the shift to them: of each 128 elements the first
    /// 64 are the low halves of 64 bytes.
    #[inline(always)]
    pub(super) fn low_bits(unit: usize) -> (usize, usize) {
        let (part, within) = (unit / 8, unit % 8);
        (64 * part + UNIT * (within % 4), 4 * (within / 4))
    }
}

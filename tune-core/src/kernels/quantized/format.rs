//! The formats by name and size.

use std::fmt;

use super::UNIT;
use super::nf4::Scales;

/// How a frozen weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits with a scale for 32 elements.
    Q4_0,
    /// 4 bits with a scale and a minimum for 32.
    Q4_1,
    /// 5 bits with a scale for 32.
    Q5_0,
    /// 5 bits with a scale and a minimum for 32.
    Q5_1,
    /// 8 bits with a scale for 32.
    Q8_0,
    /// One of 16 values that are not equally far apart, with a scale for 32.
    Iq4Nl,
    /// 2 bits in blocks of 256 with 4-bit scales and minima for 16.
    Q2K,
    /// 3 bits in blocks of 256 with 6-bit scales for 16.
    Q3K,
    /// 4 bits in blocks of 256 with 6-bit scales and minima for 32.
    Q4K,
    /// 5 bits in blocks of 256 with 6-bit scales and minima for 32.
    Q5K,
    /// 6 bits in blocks of 256 with 8-bit scales for 16.
    Q6K,
    /// 4-bit NormalFloat (Dettmers et al. 2023, <https://arxiv.org/abs/2305.14314>) in blocks of 64, whose scales are
    /// quantized to 8 bits.
    Nf4,
}

impl Format {
    /// Elements of a block, and its bytes.
    pub(crate) const fn block(self) -> (usize, usize) {
        match self {
            Self::F16 | Self::Bf16 => (UNIT, 2 * UNIT),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            // The codes; see `Scales` for the rest.
            Self::Nf4 => (64, 32),
        }
    }

    /// The bytes of a matrix; `None` if it does not consist of whole blocks.
    #[must_use]
    pub fn bytes(self, rows: usize, cols: usize) -> Option<u64> {
        let (block, bytes) = self.block();
        let elements = rows.checked_mul(cols)?;
        let codes = (elements / block).checked_mul(bytes).filter(|_| elements.is_multiple_of(block))?;
        let scales = if self == Self::Nf4 { Scales::bytes_of(elements / block) } else { 0 };
        Some((codes + scales) as u64)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Iq4Nl => "IQ4_NL",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Nf4 => "NF4",
        })
    }
}

/// How the blocks of a format are read.
pub(super) trait Decode {
    /// The format.
    const FORMAT: Format;
    /// Elements of a block.
    const ELEMENTS: usize = Self::FORMAT.block().0;
    /// Bytes of a block.
    const BYTES: usize = Self::FORMAT.block().1;
    /// What the units of a block share: its scales.
    type Head;

    /// Reads the scales of a block, the given number of all.
    fn head(block: &[u8], scales: &Scales, number: usize) -> Self::Head;

    /// Dequantizes one unit of a block.
    fn unit(head: &Self::Head, block: &[u8], unit: usize, out: &mut [f32; UNIT]);
}

/// Sixteen bytes of a block.
#[inline(always)]
pub(super) fn sixteen(block: &[u8], at: usize) -> &[u8; UNIT] {
    match block[at..].first_chunk() {
        Some(bytes) => bytes,
        None => unreachable!("a block has sixteen bytes there"),
    }
}

/// A half-precision number, exactly.
#[inline(always)]
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f32_of_half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The same of its bits: without branches, so that loops over it become vectors.
#[inline(always)]
pub(super) fn f32_of_half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let (sign, rest) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    // The exponent counts from another number, in subnormal numbers too.
    let scaled = (f32::from_bits(rest) * f32::from_bits(0x7780_0000)).to_bits();
    let special = rest | 0x7f80_0000;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { scaled })
}

//! Sixteen bits an element.

use super::UNIT;
use super::format::{Decode, Format, f32_of_half};
use super::nf4::Scales;

/// Sixteen numbers are a block.
pub(super) struct F16;

impl Decode for F16 {
    const FORMAT: Format = Format::F16;
    type Head = ();

    #[inline(always)]
    fn head(_: &[u8], _: &Scales, _: usize) {}

    #[inline(always)]
    fn unit((): &(), block: &[u8], _: usize, out: &mut [f32; UNIT]) {
        for (out, bytes) in out.iter_mut().zip(block.chunks_exact(2)) {
            *out = f32_of_half(u16::from_le_bytes([bytes[0], bytes[1]]));
        }
    }
}

/// The same in bfloat16.
pub(super) struct Bf16;

impl Decode for Bf16 {
    const FORMAT: Format = Format::Bf16;
    type Head = ();

    #[inline(always)]
    fn head(_: &[u8], _: &Scales, _: usize) {}

    #[inline(always)]
    fn unit((): &(), block: &[u8], _: usize, out: &mut [f32; UNIT]) {
        for (out, bytes) in out.iter_mut().zip(block.chunks_exact(2)) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
        }
    }
}

//! Formats of blocks of 32: a scale, perhaps a minimum, and codes. The low halves of sixteen bytes are the first sixteen
//! codes, the high halves the others.

use super::UNIT;
use super::format::{Decode, Format, half, sixteen};
use super::nf4::Scales;

/// The four bits of a unit's codes.
#[inline(always)]
fn nibble(byte: u8, unit: usize) -> u8 {
    (byte >> (4 * unit)) & 15
}

/// The fifth bit of the codes of a unit, as bit 4.
#[inline(always)]
fn fifth(block: &[u8], at: usize, unit: usize, element: usize) -> u8 {
    let bits = u16::from_le_bytes([block[at + 2 * unit], block[at + 2 * unit + 1]]);
    (((bits >> element) & 1) << 4) as u8
}

/// `scale · (code - 8)`.
pub(super) struct Q4_0;

impl Decode for Q4_0 {
    const FORMAT: Format = Format::Q4_0;
    type Head = f32;

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> f32 {
        half(block, 0)
    }

    #[inline(always)]
    fn unit(scale: &f32, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        for (out, &byte) in out.iter_mut().zip(sixteen(block, 2)) {
            *out = scale * (i32::from(nibble(byte, unit)) - 8) as f32;
        }
    }
}

/// `scale · code + minimum`.
pub(super) struct Q4_1;

impl Decode for Q4_1 {
    const FORMAT: Format = Format::Q4_1;
    type Head = [f32; 2];

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> [f32; 2] {
        [half(block, 0), half(block, 2)]
    }

    #[inline(always)]
    fn unit([scale, minimum]: &[f32; 2], block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        for (out, &byte) in out.iter_mut().zip(sixteen(block, 4)) {
            *out = scale * f32::from(nibble(byte, unit)) + minimum;
        }
    }
}

/// `scale · (code - 16)`.
pub(super) struct Q5_0;

impl Decode for Q5_0 {
    const FORMAT: Format = Format::Q5_0;
    type Head = f32;

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> f32 {
        half(block, 0)
    }

    #[inline(always)]
    fn unit(scale: &f32, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        for (i, (out, &byte)) in out.iter_mut().zip(sixteen(block, 6)).enumerate() {
            let code = nibble(byte, unit) | fifth(block, 2, unit, i);
            *out = scale * (i32::from(code) - 16) as f32;
        }
    }
}

/// `scale · code + minimum`.
pub(super) struct Q5_1;

impl Decode for Q5_1 {
    const FORMAT: Format = Format::Q5_1;
    type Head = [f32; 2];

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> [f32; 2] {
        [half(block, 0), half(block, 2)]
    }

    #[inline(always)]
    fn unit([scale, minimum]: &[f32; 2], block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        for (i, (out, &byte)) in out.iter_mut().zip(sixteen(block, 8)).enumerate() {
            let code = nibble(byte, unit) | fifth(block, 4, unit, i);
            *out = scale * f32::from(code) + minimum;
        }
    }
}

/// `scale · code`, the code with a sign.
pub(super) struct Q8_0;

impl Decode for Q8_0 {
    const FORMAT: Format = Format::Q8_0;
    type Head = f32;

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> f32 {
        half(block, 0)
    }

    #[inline(always)]
    fn unit(scale: &f32, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        for (out, &byte) in out.iter_mut().zip(sixteen(block, 2 + UNIT * unit)) {
            *out = f32::from(byte as i8) * scale;
        }
    }
}

/// `scale · value` of the code.
pub(super) struct Iq4Nl;

/// The values of llama.cpp's non-linear four bits.
pub(super) const VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

impl Decode for Iq4Nl {
    const FORMAT: Format = Format::Iq4Nl;
    type Head = f32;

    #[inline(always)]
    fn head(block: &[u8], _: &Scales, _: usize) -> f32 {
        half(block, 0)
    }

    #[inline(always)]
    fn unit(scale: &f32, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        for (out, &byte) in out.iter_mut().zip(sixteen(block, 2)) {
            *out = scale * VALUES[usize::from(nibble(byte, unit))];
        }
    }
}

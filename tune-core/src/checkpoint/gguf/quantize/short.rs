//! Blocks of 32 numbers.

use half::f16;

use super::search::{Search, farthest, scale_alone, scale_and_offset, weigh};

/// The numbers of a block.
const N: usize = 32;

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn put_half(out: &mut [u8], value: f32) {
    out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Scale, then each number in 8 bits: `x = d q`, `-127 <= q <= 127`.
pub(super) fn q8_0(x: &[f32], out: &mut [u8]) {
    let scale = farthest(x).abs() / 127.0;
    let inverse = inverse(scale);
    put_half(out, scale);
    for (q, &x) in out[2..].iter_mut().zip(x) {
        // Halves away from zero, as C's `roundf`.
        *q = ((x * inverse).round() as i8).cast_unsigned();
    }
}

/// Scale, then each number in 4 bits: `x = d (q - 8)`. A byte has a number of the first half and one of the second.
pub(super) fn q4_0(x: &[f32], out: &mut [u8]) {
    let scale = farthest(x) / -8.0;
    let inverse = inverse(scale);
    put_half(out, scale);
    four_bits(&mut out[2..], |j| ((x[j] * inverse + 8.5) as i8).min(15).cast_unsigned());
}

/// Scale and least number, then as [`q4_0`]: `x = d q + m`.
pub(super) fn q4_1(x: &[f32], out: &mut [u8]) {
    let (least, most) = ends(x);
    let scale = (most - least) / 15.0;
    let inverse = inverse(scale);
    put_half(out, scale);
    put_half(&mut out[2..], least);
    four_bits(&mut out[4..], |j| (((x[j] - least) * inverse + 0.5) as u8).min(15));
}

/// Scale, the fifth bits of all numbers, then the four others as in [`q4_0`]: `x = d (q - 16)`.
pub(super) fn q5_0(x: &[f32], out: &mut [u8]) {
    let scale = farthest(x) / -16.0;
    let inverse = inverse(scale);
    put_half(out, scale);
    five_bits(&mut out[2..], |j| ((x[j] * inverse + 16.5) as i8).min(31).cast_unsigned());
}

/// Scale and least number, then as [`q5_0`]: `x = d q + m`.
pub(super) fn q5_1(x: &[f32], out: &mut [u8]) {
    let (least, most) = ends(x);
    let scale = (most - least) / 31.0;
    let inverse = inverse(scale);
    put_half(out, scale);
    put_half(&mut out[2..], least);
    five_bits(&mut out[4..], |j| ((x[j] - least) * inverse + 0.5) as u8);
}

/// The least and the largest of the numbers.
fn ends(x: &[f32]) -> (f32, f32) {
    let least = x.iter().fold(f32::MAX, |least, &x| if x < least { x } else { least });
    (least, x.iter().fold(-f32::MAX, |most, &x| if x > most { x } else { most }))
}

/// What the error of each number of a block counts by its column; `spread` is the mean of the squares of its row.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) of: &'a [f32],
    pub(super) spread: f32,
}

impl Columns<'_> {
    /// The scale of `x` and its whole numbers, `x = d (q - top)`.
    fn scale(self, x: &[f32], top: i32) -> (f32, [u8; N]) {
        let (weights, mut q) = (self.weights(x), [0; N]);
        (scale_alone(x, |i| weights[i], top, &mut q), q)
    }

    /// The scale of `x`, its least number and its whole numbers, `x = d q + m`.
    fn scale_and_least(self, x: &[f32], top: i32) -> (f32, f32, [u8; N]) {
        let mut q = [0; N];
        let (scale, offset) = scale_and_offset(x, &self.weights(x), &mut q, &Search::by_columns(top));
        (scale, -offset, q)
    }

    fn weights(self, x: &[f32]) -> [f32; N] {
        let mut weights = [0.0; N];
        weigh(x, self.of, self.spread, &mut weights);
        weights
    }
}

/// As [`q4_0`], where errors count by their columns.
pub(super) fn q4_0_by_columns(x: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let (scale, q) = columns.scale(x, 8);
    put_half(out, scale);
    four_bits(&mut out[2..], |j| q[j]);
}

/// As [`q4_1`], where errors count by their columns.
pub(super) fn q4_1_by_columns(x: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let (scale, least, q) = columns.scale_and_least(x, 15);
    put_half(out, scale);
    put_half(&mut out[2..], least);
    four_bits(&mut out[4..], |j| q[j]);
}

/// As [`q5_0`], where errors count by their columns.
pub(super) fn q5_0_by_columns(x: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let (scale, q) = columns.scale(x, 16);
    put_half(out, scale);
    five_bits(&mut out[2..], |j| q[j]);
}

/// As [`q5_1`], where errors count by their columns.
pub(super) fn q5_1_by_columns(x: &[f32], columns: Columns<'_>, out: &mut [u8]) {
    let (scale, least, q) = columns.scale_and_least(x, 31);
    put_half(out, scale);
    put_half(&mut out[2..], least);
    five_bits(&mut out[4..], |j| q[j]);
}

fn four_bits(out: &mut [u8], q: impl Fn(usize) -> u8) {
    for (j, byte) in out.iter_mut().enumerate() {
        *byte = q(j) | (q(j + N / 2) << 4);
    }
}

fn five_bits(out: &mut [u8], q: impl Fn(usize) -> u8) {
    let mut fifth = 0u32;
    for j in 0..N / 2 {
        let (low, high) = (q(j), q(j + N / 2));
        out[4 + j] = (low & 15) | ((high & 15) << 4);
        fifth |= u32::from((low >> 4) & 1) << j;
        fifth |= u32::from((high >> 4) & 1) << (j + N / 2);
    }
    out[..4].copy_from_slice(&fifth.to_le_bytes());
}

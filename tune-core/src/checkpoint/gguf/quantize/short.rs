//! Blocks of 32 numbers.

use half::f16;

/// The numbers of a block.
const N: usize = 32;

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn put_half(out: &mut [u8], value: f32) {
    out[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The number that is farthest from zero, with its sign; the first of several.
pub(super) fn farthest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |far: f32, &x| if x.abs() > far.abs() { x } else { far })
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
    let q = |x: f32| ((x * inverse + 8.5) as i8).min(15).cast_unsigned();
    for (j, byte) in out[2..].iter_mut().enumerate() {
        *byte = q(x[j]) | (q(x[j + N / 2]) << 4);
    }
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
    let least = x.iter().fold(f32::MAX, |least, &x| if x < least { x } else { least });
    let most = x.iter().fold(-f32::MAX, |most, &x| if x > most { x } else { most });
    let scale = (most - least) / 31.0;
    let inverse = inverse(scale);
    put_half(out, scale);
    put_half(&mut out[2..], least);
    five_bits(&mut out[4..], |j| ((x[j] - least) * inverse + 0.5) as u8);
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

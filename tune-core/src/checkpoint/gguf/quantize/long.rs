//! Blocks of 256 numbers in parts with scales of their own: the K formats.
//!
//! A part's scale is not the one that its largest number asks for: a few near it are tried, each with the sum of squared
//! errors that is left when scale and offset are then fitted to the whole numbers that it leads to (`search`).

use half::f16;

use super::search::{
    NOTHING, Search, farthest, nearest, scale_alone, scale_and_offset, scale_from_zero, spread, weigh,
};

/// The numbers of a block.
const N: usize = 256;
fn half_of(value: f32) -> (f32, [u8; 2]) {
    let half = f16::from_f32(value);
    (half.to_f32(), half.to_le_bytes())
}

/// Scales and offsets of the eight parts of a block, both in 6 bits, for Q4_K and Q5_K; and the whole numbers.
struct Parts {
    /// The scales' scale, the offsets' scale, and both in 6 bits, packed.
    head: [u8; 16],
    q: [u8; N],
}

const PARTS: usize = 8;
const WIDTH: usize = N / PARTS;

/// Scales or offsets of a block in 6 bits, and their scale.
type SixBits = ([u8; PARTS], f32);

fn parts(x: &[f32], columns: Option<&[f32]>, search: &Search) -> Parts {
    let mut q = [0; N];
    let (scales, offsets) = match columns {
        None => parts_alike(x, search, &mut q),
        Some(columns) => parts_by_columns(x, columns, search.top, &mut q),
    };
    let ((scales, scale), (offsets, offset)) = (scales, offsets);
    let (scale, scale_bytes) = half_of(scale);
    let (offset, offset_bytes) = half_of(offset);

    let mut head = [0; 16];
    head[..2].copy_from_slice(&scale_bytes);
    head[2..4].copy_from_slice(&offset_bytes);
    // The first four parts have a byte for each scale and offset; the others' upper two bits fill these bytes up.
    let packed = &mut head[4..];
    for part in 0..PARTS {
        let (scale, offset) = (scales[part], offsets[part]);
        if part < 4 {
            packed[part] = scale;
            packed[part + 4] = offset;
        } else {
            packed[part + 4] = (scale & 15) | ((offset & 15) << 4);
            packed[part - 4] |= (scale >> 4) << 6;
            packed[part] |= (offset >> 4) << 6;
        }
    }
    // With the scales as they are stored.
    for (part, (x, q)) in x.chunks_exact(WIDTH).zip(q.chunks_exact_mut(WIDTH)).enumerate() {
        let scale = scale * f32::from(scales[part]);
        if scale == 0.0 {
            continue;
        }
        let offset = offset * f32::from(offsets[part]);
        for (&x, q) in x.iter().zip(q) {
            *q = nearest((x + offset) / scale).clamp(0, search.top) as u8;
        }
    }
    Parts { head, q }
}

/// Scales and offsets where no column counts more than another: the largest number of each becomes 63.
fn parts_alike(x: &[f32], search: &Search, q: &mut [u8]) -> (SixBits, SixBits) {
    let (mut scales, mut offsets) = ([0f32; PARTS], [0f32; PARTS]);
    for (part, (x, q)) in x.chunks_exact(WIDTH).zip(q.chunks_exact_mut(WIDTH)).enumerate() {
        // Larger numbers count more.
        let spread = spread(x, 1.0).sqrt();
        let mut weights = [0f32; WIDTH];
        weights.iter_mut().zip(x).for_each(|(w, x)| *w = spread + x.abs());
        (scales[part], offsets[part]) = scale_and_offset(x, &weights, q, search);
    }
    let six_bits = |of: &[f32; PARTS]| {
        let largest = of.iter().fold(0.0, |largest: f32, &x| if x > largest { x } else { largest });
        let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
        // A byte of C's, then not more than fits.
        (of.map(|x| (nearest(inverse * x) as u8).min(63)), largest / 63.0)
    };
    (six_bits(&scales), six_bits(&offsets))
}

/// The same where errors count by their columns; a part's scale then counts as much as its numbers together.
fn parts_by_columns(x: &[f32], columns: &[f32], top: i32, q: &mut [u8]) -> (SixBits, SixBits) {
    let (mut scales, mut offsets, mut sums) = ([0f32; PARTS], [0f32; PARTS], [0f32; PARTS]);
    let (spread, search) = (spread(x, 2.0), Search::by_columns(top));
    let parts = x.chunks_exact(WIDTH).zip(columns.chunks_exact(WIDTH)).zip(q.chunks_exact_mut(WIDTH));
    for (part, ((x, columns), q)) in parts.enumerate() {
        let mut weights = [0f32; WIDTH];
        weigh(x, columns, spread, &mut weights);
        sums[part] = weights.iter().fold(0.0, |sum, w| sum + w);
        (scales[part], offsets[part]) = scale_and_offset(x, &weights, q, &search);
    }
    let six_bits = |of: &[f32; PARTS]| {
        let mut bits = [0; PARTS];
        let scale = scale_from_zero(of, &sums, 63, &mut bits);
        (bits.map(|bits| bits.min(63)), scale)
    };
    (six_bits(&scales), six_bits(&offsets))
}

/// 4 bits: two parts in 32 bytes, the second in the upper half of each.
pub(super) fn q4_k(x: &[f32], columns: Option<&[f32]>, out: &mut [u8]) {
    let Parts { head, q } = parts(x, columns, &Search { top: 15, first: -1.0, step: 0.1, steps: 20 });
    out[..16].copy_from_slice(&head);
    for (bytes, q) in out[16..].chunks_exact_mut(32).zip(q.chunks_exact(64)) {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = q[l] | (q[l + 32] << 4);
        }
    }
}

/// 5 bits: the fifth of all numbers first, a bit of each of 32 bytes for a part; the others as in [`q4_k`].
pub(super) fn q5_k(x: &[f32], columns: Option<&[f32]>, out: &mut [u8]) {
    let Parts { head, q } = parts(x, columns, &Search { top: 31, first: -0.5, step: 0.1, steps: 15 });
    out[..16].copy_from_slice(&head);
    let (fifth, others) = out[16..].split_at_mut(32);
    fifth.fill(0);
    for (pair, (bytes, q)) in others.chunks_exact_mut(32).zip(q.chunks_exact(64)).enumerate() {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = (q[l] & 15) | ((q[l + 32] & 15) << 4);
            fifth[l] |= ((q[l] >> 4) | ((q[l + 32] >> 4) << 1)) << (2 * pair);
        }
    }
}

/// 6 bits: the lower four, the upper two, then the scales of 16 parts in 8 bits each, and their scale.
pub(super) fn q6_k(x: &[f32], columns: Option<&[f32]>, out: &mut [u8]) {
    const PARTS: usize = 16;
    const WIDTH: usize = N / PARTS;
    let mut q = [0u8; N];
    let mut scales = [0f32; PARTS];
    for (part, (x, q)) in x.chunks_exact(WIDTH).zip(q.chunks_exact_mut(WIDTH)).enumerate() {
        scales[part] = match columns.map(|columns| &columns[part * WIDTH..]) {
            None => scale_alone(x, |i| x[i] * x[i], 32, q),
            Some(columns) => scale_alone(x, |i| columns[i], 32, q),
        };
    }
    let far = farthest(&scales);
    if far.abs() < NOTHING {
        out.fill(0);
        return;
    }
    let inverse = -128.0 / far;
    let (scale, scale_bytes) = half_of(1.0 / inverse);
    let scales = scales.map(|x| nearest(inverse * x).min(127) as i8);
    for (part, (x, q)) in x.chunks_exact(WIDTH).zip(q.chunks_exact_mut(WIDTH)).enumerate() {
        let scale = scale * f32::from(scales[part]);
        if scale == 0.0 {
            continue;
        }
        for (&x, q) in x.iter().zip(q) {
            *q = (nearest(x / scale).clamp(-32, 31) + 32) as u8;
        }
    }
    let (lower, rest) = out.split_at_mut(N / 2);
    let (upper, rest) = rest.split_at_mut(N / 4);
    for (half, q) in q.chunks_exact(128).enumerate() {
        for l in 0..32 {
            let [a, b, c, d] = [q[l], q[l + 32], q[l + 64], q[l + 96]];
            lower[64 * half + l] = (a & 15) | ((c & 15) << 4);
            lower[64 * half + l + 32] = (b & 15) | ((d & 15) << 4);
            upper[32 * half + l] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6);
        }
    }
    for (byte, scale) in rest.iter_mut().zip(scales) {
        *byte = scale.cast_unsigned();
    }
    rest[PARTS..].copy_from_slice(&scale_bytes);
}

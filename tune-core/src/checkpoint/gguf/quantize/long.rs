//! Blocks of 256 numbers in parts with scales of their own: the K formats.
//!
//! A part's scale is not the one that its largest number asks for: a few near it are tried, each with the sum of squared
//! errors that is left when scale and offset are then fitted to the whole numbers that it leads to.

use half::f16;

use super::short::farthest;

/// The numbers of a block.
const N: usize = 256;
/// Below this, all numbers of a part are zero.
const NOTHING: f32 = 1e-15;

/// The nearest whole number, the even one of two.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

fn half_of(value: f32) -> (f32, [u8; 2]) {
    let half = f16::from_f32(value);
    (half.to_f32(), half.to_le_bytes())
}

/// What there is to try for a part that has a scale and an offset: `steps + 1` scales for whole numbers up to `top`, which
/// would come to be `top + first`, `top + first + step` and so on.
struct Search {
    top: i32,
    first: f32,
    step: f32,
    steps: usize,
}

/// Scale and offset of 32 numbers, `x = scale q - offset`, with both not below zero. `q` becomes the whole numbers.
fn scale_and_offset(x: &[f32], q: &mut [u8], search: &Search) -> (f32, f32) {
    let top = search.top as f32;
    // Larger numbers count more.
    let spread = (x.iter().fold(0.0, |sum, x| sum + x * x) / x.len() as f32).sqrt();
    let weight = |x: f32| spread + x.abs();

    let (mut least, mut most) = (x[0], x[0]);
    let mut weights = weight(x[0]);
    let mut weighted = weights * x[0];
    for &x in &x[1..] {
        least = if x < least { x } else { least };
        most = if x > most { x } else { most };
        let w = weight(x);
        weights += w;
        weighted += w * x;
    }
    let mut least = least.min(0.0);
    if most == least {
        q.fill(0);
        return (0.0, -least);
    }
    let whole = |x: f32, least: f32, inverse: f32| nearest(inverse * (x - least)).clamp(0, search.top) as u8;
    let error = |q: &[u8], scale: f32, least: f32| {
        x.iter().zip(q).fold(0.0, |sum, (&x, &q)| {
            let difference = scale * f32::from(q) + least - x;
            sum + weight(x) * (difference * difference)
        })
    };
    let inverse = top / (most - least);
    let mut scale = 1.0 / inverse;
    x.iter().zip(q.iter_mut()).for_each(|(&x, q)| *q = whole(x, least, inverse));
    let mut best = error(q, scale, least);

    let mut tried = [0u8; 32];
    let tried = &mut tried[..x.len()];
    for trial in 0..=search.steps {
        // From the offset that is best so far.
        let inverse = (search.first + search.step * trial as f32 + top) / (most - least);
        let (mut sum_q, mut sum_qq, mut sum_xq) = (0.0, 0.0, 0.0);
        for (&x, tried) in x.iter().zip(tried.iter_mut()) {
            *tried = whole(x, least, inverse);
            let (w, q) = (weight(x), f32::from(*tried));
            sum_q += w * q;
            sum_qq += w * q * q;
            sum_xq += w * q * x;
        }
        let determinant = weights * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 || determinant.is_nan() {
            continue;
        }
        let mut of_trial = (weights * sum_xq - weighted * sum_q) / determinant;
        let mut offset = (sum_qq * weighted - sum_q * sum_xq) / determinant;
        if offset > 0.0 {
            offset = 0.0;
            of_trial = sum_xq / sum_qq;
        }
        let left = error(tried, of_trial, offset);
        if left < best {
            q.copy_from_slice(tried);
            (best, scale, least) = (left, of_trial, offset);
        }
    }
    (scale, -least)
}

/// Scales and offsets of the eight parts of a block, both in 6 bits, for Q4_K and Q5_K; and the whole numbers.
struct Parts {
    /// The scales' scale, the offsets' scale, and both in 6 bits, packed.
    head: [u8; 16],
    q: [u8; N],
}

fn parts(x: &[f32], search: &Search) -> Parts {
    const PARTS: usize = 8;
    const WIDTH: usize = N / PARTS;
    let mut q = [0; N];
    let (mut scales, mut offsets) = ([0f32; PARTS], [0f32; PARTS]);
    for (part, (x, q)) in x.chunks_exact(WIDTH).zip(q.chunks_exact_mut(WIDTH)).enumerate() {
        (scales[part], offsets[part]) = scale_and_offset(x, q, search);
    }
    let largest = |of: &[f32]| of.iter().fold(0.0, |largest: f32, &x| if x > largest { x } else { largest });
    let (scale, offset) = (largest(&scales), largest(&offsets));
    let six_bits = |of: &[f32; PARTS], largest: f32| {
        let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
        // A byte of C's, then not more than fits.
        of.map(|x| (nearest(inverse * x) as u8).min(63))
    };
    let (scales, offsets) = (six_bits(&scales, scale), six_bits(&offsets, offset));
    let (scale, scale_bytes) = half_of(scale / 63.0);
    let (offset, offset_bytes) = half_of(offset / 63.0);

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

/// 4 bits: two parts in 32 bytes, the second in the upper half of each.
pub(super) fn q4_k(x: &[f32], out: &mut [u8]) {
    let Parts { head, q } = parts(x, &Search { top: 15, first: -1.0, step: 0.1, steps: 20 });
    out[..16].copy_from_slice(&head);
    for (bytes, q) in out[16..].chunks_exact_mut(32).zip(q.chunks_exact(64)) {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = q[l] | (q[l + 32] << 4);
        }
    }
}

/// 5 bits: the fifth of all numbers first, a bit of each of 32 bytes for a part; the others as in [`q4_k`].
pub(super) fn q5_k(x: &[f32], out: &mut [u8]) {
    let Parts { head, q } = parts(x, &Search { top: 31, first: -0.5, step: 0.1, steps: 15 });
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

/// The scale of 16 numbers, `x = scale q` with `-32 <= q <= 31`; `q + 32` goes into `out`.
fn scale_alone(x: &[f32], out: &mut [u8]) -> f32 {
    const TOP: i32 = 32;
    let far = farthest(x);
    if far.abs() < NOTHING {
        out.fill(0);
        return 0.0;
    }
    let whole = |x: f32, inverse: f32| nearest(inverse * x).clamp(-TOP, TOP - 1);
    let sums = |inverse: f32| {
        x.iter().fold((0.0, 0.0), |(products, squares), &x| {
            let (w, q) = (x * x, whole(x, inverse) as f32);
            (products + w * x * q, squares + w * q * q)
        })
    };
    let put = |out: &mut [u8], inverse: f32| {
        x.iter().zip(out).for_each(|(&x, out)| *out = (whole(x, inverse) + TOP) as u8);
    };
    let inverse = -(TOP as f32) / far;
    let (products, squares) = sums(inverse);
    put(out, inverse);
    let mut scale = if squares == 0.0 { 0.0 } else { products / squares };
    let mut best = scale * products;
    for trial in (-9..=9).filter(|&trial| trial != 0) {
        let inverse = -(TOP as f32 + 0.1 * trial as f32) / far;
        let (products, squares) = sums(inverse);
        if squares > 0.0 && products * products > best * squares {
            put(out, inverse);
            scale = products / squares;
            best = scale * products;
        }
    }
    scale
}

/// 6 bits: the lower four, the upper two, then the scales of 16 parts in 8 bits each, and their scale.
pub(super) fn q6_k(x: &[f32], out: &mut [u8]) {
    const PARTS: usize = 16;
    const WIDTH: usize = N / PARTS;
    let mut q = [0u8; N];
    let mut scales = [0f32; PARTS];
    for (part, (x, q)) in x.chunks_exact(WIDTH).zip(q.chunks_exact_mut(WIDTH)).enumerate() {
        scales[part] = scale_alone(x, q);
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

//! Scales and offsets that leave numbers the least errors, by trying a few.
//!
//! The error of each number counts as its weight says: a larger number more, and with an importance matrix one in a column
//! that much comes through. All is computed in the order in which llama.cpp computes it, so that bits agree.

/// Below this, all numbers of a part are zero.
pub(super) const NOTHING: f32 = 1e-15;

/// The nearest whole number, the even one of two; at most 2^22 - 1 in magnitude, and 0 for what is no number.
pub(super) fn nearest(x: f32) -> i32 {
    // Where numbers have no digits behind the point, adding rounds; a function is called for it on older processors.
    const HALFWAY: f32 = 12_582_912.0;
    const LARGEST: f32 = 4_194_303.0;
    let sum = x.clamp(-LARGEST, LARGEST) + HALFWAY;
    (sum.to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000
}

/// The number that is farthest from zero, with its sign; the first of several.
pub(super) fn farthest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |far: f32, &x| if x.abs() > far.abs() { x } else { far })
}

/// What there is to try for a part that has a scale and an offset: `steps + 1` scales for whole numbers up to `top`, which
/// would come to be `top + first`, `top + first + step` and so on.
pub(super) struct Search {
    pub(super) top: i32,
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) steps: usize,
}

impl Search {
    /// Where errors count by their columns.
    pub(super) const fn by_columns(top: i32) -> Self {
        Self { top, first: -0.9, step: 0.05, steps: 36 }
    }
}

/// Scale and offset of at most 32 numbers, `x = scale q - offset`, with both not below zero. `q` becomes the whole numbers. The
/// error of a number counts as much as its weight says.
pub(super) fn scale_and_offset(x: &[f32], weights: &[f32], q: &mut [u8], search: &Search) -> (f32, f32) {
    let top = search.top as f32;
    let (mut least, mut most) = (x[0], x[0]);
    let mut weight = weights[0];
    let mut weighted = weight * x[0];
    for (&x, w) in x.iter().zip(weights).skip(1) {
        least = if x < least { x } else { least };
        most = if x > most { x } else { most };
        weight += w;
        weighted += w * x;
    }
    let mut least = if least > 0.0 { 0.0 } else { least };
    if most == least {
        q.fill(0);
        return (0.0, -least);
    }
    let whole = |x: f32, least: f32, inverse: f32| nearest(inverse * (x - least)).clamp(0, search.top) as u8;
    let error = |q: &[u8], scale: f32, least: f32| {
        x.iter().zip(weights).zip(q).fold(0.0, |sum, ((&x, w), &q)| {
            let difference = scale * f32::from(q) + least - x;
            sum + w * (difference * difference)
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
        x.iter().zip(tried.iter_mut()).for_each(|(&x, tried)| *tried = whole(x, least, inverse));
        for ((&x, w), tried) in x.iter().zip(weights).zip(&*tried) {
            let q = f32::from(*tried);
            sum_q += w * q;
            sum_qq += w * q * q;
            sum_xq += w * q * x;
        }
        let determinant = weight * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 || determinant.is_nan() {
            continue;
        }
        let mut of_trial = (weight * sum_xq - weighted * sum_q) / determinant;
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

/// The scale of numbers that are not below zero, `x = scale q` with `q <= top`; the error of each counts as its weight says.
/// `q` becomes the whole numbers.
pub(super) fn scale_from_zero(x: &[f32], weights: &[f32], top: i32, q: &mut [u8]) -> f32 {
    let most = x.iter().fold(0.0, |most: f32, &x| if x > most { x } else { most });
    if most < NOTHING {
        q.fill(0);
        return 0.0;
    }
    let terms = || x.iter().zip(weights);
    let error = |inverse: f32| {
        let scale = 1.0 / inverse;
        terms().fold(0.0, |sum, (&x, w)| {
            let difference = x - scale * nearest(inverse * x).min(top) as f32;
            sum + w * difference * difference
        })
    };
    let mut inverse = top as f32 / most;
    let mut best = error(inverse);
    for trial in (-4..=4).filter(|&trial| trial != 0) {
        let of_trial = (0.1 * trial as f32 + top as f32) / most;
        let left = error(of_trial);
        if left < best {
            (best, inverse) = (left, of_trial);
        }
    }
    let (mut products, mut squares) = (0.0, 0.0);
    for ((&x, w), q) in terms().zip(q.iter_mut()) {
        let whole = nearest(inverse * x).min(top);
        *q = whole as u8;
        products += w * x * whole as f32;
        squares += w * whole as f32 * whole as f32;
    }
    // Each number may move where that makes the best scale's error smaller.
    for _ in 0..5 {
        let mut moved = false;
        for ((&x, w), q) in terms().zip(q.iter_mut()) {
            let own = f32::from(*q);
            let (mut other_products, mut other_squares) = (products - w * x * own, squares - w * own * own);
            if other_products <= 0.0 || other_squares <= 0.0 || other_products.is_nan() || other_squares.is_nan() {
                continue;
            }
            let whole = nearest(x * other_squares / other_products).min(top);
            if whole == i32::from(*q) {
                continue;
            }
            other_products += w * x * whole as f32;
            other_squares += w * whole as f32 * whole as f32;
            if other_products * other_products * squares > products * products * other_squares {
                *q = whole as u8;
                (products, squares, moved) = (other_products, other_squares, true);
            }
        }
        if !moved {
            break;
        }
    }
    if squares > 0.0 { products / squares } else { 0.0 }
}

/// The scale of numbers alone, `x = scale q` with `-top <= q < top`; `q + top` goes into `out`. The error of a number counts as
/// much as `weight` says of its place.
pub(super) fn scale_alone(x: &[f32], weight: impl Fn(usize) -> f32, top: i32, out: &mut [u8]) -> f32 {
    let far = farthest(x);
    if far.abs() < NOTHING {
        out.fill(0);
        return 0.0;
    }
    let whole = |x: f32, inverse: f32| nearest(inverse * x).clamp(-top, top - 1);
    let sums = |inverse: f32| {
        x.iter().enumerate().fold((0.0, 0.0), |(products, squares), (i, &x)| {
            let (w, q) = (weight(i), whole(x, inverse) as f32);
            (products + w * x * q, squares + w * q * q)
        })
    };
    let put = |out: &mut [u8], inverse: f32| {
        x.iter().zip(out).for_each(|(&x, out)| *out = (whole(x, inverse) + top) as u8);
    };
    let inverse = -(top as f32) / far;
    let (products, squares) = sums(inverse);
    put(out, inverse);
    let mut scale = if squares == 0.0 { 0.0 } else { products / squares };
    let mut best = scale * products;
    for trial in (-9..=9).filter(|&trial| trial != 0) {
        let inverse = -(top as f32 + 0.1 * trial as f32) / far;
        let (products, squares) = sums(inverse);
        if squares > 0.0 && products * products > best * squares {
            put(out, inverse);
            scale = products / squares;
            best = scale * products;
        }
    }
    scale
}

/// The mean of squares, times a factor.
pub(super) fn spread(x: &[f32], factor: f32) -> f32 {
    factor * x.iter().fold(0.0, |sum, x| sum + x * x) / x.len() as f32
}

/// How much the error of each number counts: as its column does, and more where it is large.
pub(super) fn weigh(x: &[f32], columns: &[f32], spread: f32, weights: &mut [f32]) {
    for ((w, x), column) in weights.iter_mut().zip(x).zip(columns) {
        *w = column * (spread + x * x).sqrt();
    }
}

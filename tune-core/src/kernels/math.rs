//! Elementary functions and sums that become vectors.

use std::ops::AddAssign;

use num_traits::Zero;

/// Sums that are kept apart until the end: the compiler makes vectors of them, for they are more than it unrolls, and
/// a long sum does not lose its small terms to rounding.
const LANES: usize = 64;

/// The sum of `f` of the first elements of all slices, of the second ones, and so on, in an order that depends on
/// their length alone.
///
/// # Panics
/// Where a slice is shorter than the first.
#[inline(always)]
pub(crate) fn sum<T: Copy, R: Copy + Zero + AddAssign, const N: usize>(of: [&[T]; N], f: impl Fn([T; N]) -> R) -> R {
    let len = of.first().map_or(0, |x| x.len());
    let of = of.map(|x| x[..len].as_chunks::<LANES>());
    let mut lanes = [R::zero(); LANES];
    for chunk in 0..len / LANES {
        let chunks = of.map(|(whole, _)| &whole[chunk]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(chunks.map(|c| c[lane]));
        }
    }
    for i in 0..len % LANES {
        lanes[i] += f(of.map(|(_, rest)| rest[i]));
    }
    // Halves onto halves, which are vectors, too.
    let mut count = LANES;
    while count > 1 {
        count /= 2;
        let (low, high) = lanes.split_at_mut(count);
        low.iter_mut().zip(high).for_each(|(l, h)| *l += *h);
    }
    lanes[0]
}

/// `e^x`, within two units in the last place; 0 below -87.3 (and for minus infinity), NaN for NaN.
///
/// The argument is reduced to half of ln 2, a polynomial (Cephes' `expf`) does the rest.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and subtracting it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.72 { 88.72 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = p * r + c;
    }
    let y = p * (r * r) + r + 1.0;
    // The low bits of `shifted` are n; 2^n in two halves, so that n = 128 does not overflow.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    let y = y * power(half) * power(n.wrapping_sub(half));
    if x < -87.3 { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)`; near zero by its series, where the formula would lose it to rounding.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let series =
        1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * (62.0 / 2835.0))));
    let formula = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if square < 0.09 { x * series } else { formula }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_close_everywhere() {
        for i in -20_000..20_000 {
            let x = i as f32 / 1000.0 + 1e-4;
            let (ours, right) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!((ours / right - 1.0).abs() < 1e-6, "tanh({x}) = {ours}, not {right}");
        }
        assert_eq!((tanh(0.0), tanh(100.0), tanh(-100.0)), (0.0, 1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in -87_000..88_700 {
            let x = i as f32 / 1000.0 + 1e-4;
            let (ours, right) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / right - 1.0).abs() < 3e-7, "exp({x}) = {ours}, not {right}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-1e30)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && exp(200.0).is_finite() && exp(200.0) > 3e38);
    }

    #[test]
    fn sigmoid_has_its_limits() {
        assert_eq!((sigmoid(0.0), sigmoid(200.0)), (0.5, 1.0));
        assert!(sigmoid(-200.0) < 1e-37);
    }
}

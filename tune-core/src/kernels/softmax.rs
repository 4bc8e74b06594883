//! Cross-entropy of one row of logits.

use super::math::{exp, sum, tanh};
use super::{Element, simd};

/// Maxima and sums that are kept apart: the compiler makes vectors of them, and a long sum does
/// not lose its small terms to rounding.
const LANES: usize = 64;

/// The loss of one token; with a `scale`, its logits become the gradient of `scale` times the loss, numbers of type
/// `T` from the beginning of the row on.
pub(crate) fn loss_and_gradient<T: Element>(logits: &mut [f32], target: usize, scale: Option<f32>) -> f32 {
    simd(
        #[inline(always)]
        || {
            let right = logits[target];
            let max = max(logits);
            let sum = exp_and_sum(logits, max);
            if let Some(scale) = scale {
                let factor = scale / sum;
                let of_target = logits[target] * factor - scale;
                map_into::<T>(
                    logits,
                    #[inline(always)]
                    |v| v * factor,
                );
                bytemuck::cast_slice_mut::<f32, T>(logits)[target] = T::from_f32(of_target);
            }
            sum.ln() + max - right
        },
    )
}

/// The same for logits `z` that become `cap · tanh(z / cap)` first.
pub(crate) fn capped_loss_and_gradient<T: Element>(
    logits: &mut [f32],
    cap: f32,
    target: usize,
    scale: Option<f32>,
) -> f32 {
    cap_rows(logits, cap);
    let Some(scale) = scale else { return loss_and_gradient::<T>(logits, target, None) };
    simd(
        #[inline(always)]
        || {
            let right = logits[target];
            let max = max(logits);
            let total = sum(
                [&*logits],
                #[inline(always)]
                |[c]| exp(c - max),
            );
            let factor = scale / total;
            let slope = |c: f32| 1.0 - (c / cap) * (c / cap);
            let of_target = (exp(right - max) * factor - scale) * slope(right);
            map_into::<T>(
                logits,
                #[inline(always)]
                |c| exp(c - max) * factor * slope(c),
            );
            bytemuck::cast_slice_mut::<f32, T>(logits)[target] = T::from_f32(of_target);
            total.ln() + max - right
        },
    )
}

/// The capped logits of some rows.
pub(crate) fn cap_rows(logits: &mut [f32], cap: f32) {
    simd(
        #[inline(always)]
        || logits.iter_mut().for_each(|z| *z = cap * tanh(*z / cap)),
    );
}

#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// `x[i] = exp(x[i] - shift)`; returns the sum of the results.
#[inline(always)]
fn exp_and_sum(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *v = exp(*v - shift);
            *lane += *v;
        }
    }
    let mut tail = 0.0;
    for v in chunks.into_remainder() {
        *v = exp(*v - shift);
        tail += *v;
    }
    lanes.iter().sum::<f32>() + tail
}

/// A function of each element of a row, into numbers of type `T` at its beginning: one is written no later than it is read.
#[inline(always)]
fn map_into<T: Element>(row: &mut [f32], f: impl Fn(f32) -> f32) {
    let len = row.len();
    let mut start = 0;
    while start < len {
        let count = LANES.min(len - start);
        let mut values = [0f32; LANES];
        match row[start..].first_chunk() {
            Some(whole) => values = *whole,
            None => values[..count].copy_from_slice(&row[start..]),
        }
        let mut products = [T::from_f32(0.0); LANES];
        for (p, v) in products.iter_mut().zip(&values) {
            *p = T::from_f32(f(*v));
        }
        bytemuck::cast_slice_mut::<f32, T>(row)[start..start + count].copy_from_slice(&products[..count]);
        start += count;
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn loss_and_gradient_are_those_of_the_definition() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 9.0 - 40.0).collect();
        let mut gradient = logits.clone();
        let loss = loss_and_gradient::<f32>(&mut gradient, 17, Some(0.5));
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        assert!((f64::from(loss) - (sum.ln() - f64::from(logits[17]))).abs() < 1e-5);
        for (i, (&l, &g)) in logits.iter().zip(&gradient).enumerate() {
            let right = 0.5 * (f64::from(l).exp() / sum - f64::from(u8::from(i == 17)));
            assert!((f64::from(g) - right).abs() < 1e-7, "{i}: {g} {right}");
        }
        let mut rounded = logits;
        assert_eq!(loss_and_gradient::<bf16>(&mut rounded, 17, Some(0.5)), loss);
        let expected: Vec<bf16> = gradient.iter().map(|&g| Element::from_f32(g)).collect();
        assert_eq!(bytemuck::cast_slice::<f32, bf16>(&rounded)[..1000], expected);
    }

    #[test]
    fn capped_logits_have_the_loss_and_gradient_of_the_definition() {
        let (cap, scale) = (3.0, 0.5);
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 9.0 - 6.0).collect();
        let loss = |logits: &[f64]| {
            let capped: Vec<f64> = logits.iter().map(|z| cap * (z / cap).tanh()).collect();
            capped.iter().map(|c| c.exp()).sum::<f64>().ln() - capped[17]
        };
        let wide: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
        let mut gradient = logits.clone();
        let got = capped_loss_and_gradient::<f32>(&mut gradient, cap as f32, 17, Some(scale as f32));
        assert!((f64::from(got) - loss(&wide)).abs() < 1e-5, "{got}");
        for i in [0, 17, 400, 999] {
            let (mut more, mut less) = (wide.clone(), wide.clone());
            more[i] += 1e-5;
            less[i] -= 1e-5;
            let right = scale * (loss(&more) - loss(&less)) / 2e-5;
            assert!((f64::from(gradient[i]) - right).abs() < 1e-6, "{i}: {} {right}", gradient[i]);
        }
        let mut capped = logits;
        cap_rows(&mut capped, cap as f32);
        assert!(capped.iter().zip(&wide).all(|(c, z)| (f64::from(*c) - cap * (z / cap).tanh()).abs() < 1e-6));
    }

    #[test]
    fn a_logit_that_is_no_number_is_not_hidden() {
        assert!(loss_and_gradient::<f32>(&mut [0.0, f32::NAN, 1.0], 0, None).is_nan());
        assert!(!loss_and_gradient::<f32>(&mut [0.0, f32::INFINITY, 1.0], 0, None).is_finite());
    }
}

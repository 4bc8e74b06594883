//! Cross-entropy of one row of logits.

use super::math::{exp, sum, tanh};
use super::token_loss::TokenLoss;
use super::{Element, simd};

/// Maxima and sums that are kept apart: the compiler makes vectors of them, and a long sum does
/// not lose its small terms to rounding.
const LANES: usize = 64;

/// The loss of one token; with a `scale`, its logits become the gradient of `scale` times the loss, numbers of type
/// `T` from the beginning of the row on.
pub(crate) fn loss_and_gradient<T: Element>(
    logits: &mut [f32],
    target: usize,
    of: TokenLoss,
    scale: Option<f32>,
) -> f32 {
    simd(
        #[inline(always)]
        || {
            let (right, all) = (logits[target], mean_if_smoothed(logits, of));
            let max = max(logits);
            let sum = exp_and_sum(logits, max);
            let normalizer = sum.ln() + max;
            if let Some(scale) = scale {
                let Slopes { of_normalizer, of_target, of_all } = Slopes::new(of, normalizer, scale, logits.len());
                let factor = of_normalizer / sum;
                let of_target = logits[target] * factor - of_target - of_all;
                map_into::<T>(
                    logits,
                    #[inline(always)]
                    |v| v * factor - of_all,
                );
                bytemuck::cast_slice_mut::<f32, T>(logits)[target] = T::from_f32(of_target);
            }
            value(of, normalizer, right, all)
        },
    )
}

/// The mean of a row of logits, where a loss asks for it.
#[inline(always)]
fn mean_if_smoothed(logits: &[f32], of: TokenLoss) -> f32 {
    let total = |logits| {
        sum(
            [logits],
            #[inline(always)]
            |[z]| z,
        )
    };
    if of.label_smoothing > 0.0 { total(logits) / logits.len() as f32 } else { 0.0 }
}

/// The loss of a token with the logit `right`, by the logarithm of softmax's sum and the mean of all logits.
fn value(TokenLoss { label_smoothing, z_loss }: TokenLoss, normalizer: f32, right: f32, all: f32) -> f32 {
    let mut value = normalizer - right;
    if label_smoothing > 0.0 {
        value += label_smoothing as f32 * (right - all);
    }
    if z_loss > 0.0 {
        value += z_loss as f32 * normalizer * normalizer;
    }
    value
}

/// The derivatives of a token's loss, times a scale.
struct Slopes {
    /// By the logarithm of softmax's sum.
    of_normalizer: f32,
    /// By minus the logit of the token that came.
    of_target: f32,
    /// By minus any logit, on top.
    of_all: f32,
}

impl Slopes {
    fn new(TokenLoss { label_smoothing, z_loss }: TokenLoss, normalizer: f32, scale: f32, vocab: usize) -> Self {
        let (smoothing, z) = (label_smoothing as f32, z_loss as f32);
        Self {
            of_normalizer: scale * (1.0 + 2.0 * z * normalizer),
            of_target: scale * (1.0 - smoothing),
            of_all: scale * smoothing / vocab as f32,
        }
    }
}

/// The same for logits `z` that become `cap · tanh(z / cap)` first.
pub(crate) fn capped_loss_and_gradient<T: Element>(
    logits: &mut [f32],
    cap: f32,
    target: usize,
    of: TokenLoss,
    scale: Option<f32>,
) -> f32 {
    cap_rows(logits, cap);
    let Some(scale) = scale else { return loss_and_gradient::<T>(logits, target, of, None) };
    simd(
        #[inline(always)]
        || {
            let (right, all) = (logits[target], mean_if_smoothed(logits, of));
            let max = max(logits);
            let total = sum(
                [&*logits],
                #[inline(always)]
                |[c]| exp(c - max),
            );
            let normalizer = total.ln() + max;
            let Slopes { of_normalizer, of_target, of_all } = Slopes::new(of, normalizer, scale, logits.len());
            let factor = of_normalizer / total;
            let slope = |c: f32| 1.0 - (c / cap) * (c / cap);
            let of_target = (exp(right - max) * factor - of_target - of_all) * slope(right);
            map_into::<T>(
                logits,
                #[inline(always)]
                |c| (exp(c - max) * factor - of_all) * slope(c),
            );
            bytemuck::cast_slice_mut::<f32, T>(logits)[target] = T::from_f32(of_target);
            value(of, normalizer, right, all)
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

/// All logits times a factor.
pub(crate) fn multiply(logits: &mut [f32], factor: f32) {
    simd(
        #[inline(always)]
        || logits.iter_mut().for_each(|z| *z *= factor),
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
pub(super) fn map_into<T: Element>(row: &mut [f32], f: impl Fn(f32) -> f32) {
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
        let loss = loss_and_gradient::<f32>(&mut gradient, 17, TokenLoss::CROSS_ENTROPY, Some(0.5));
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        assert!((f64::from(loss) - (sum.ln() - f64::from(logits[17]))).abs() < 1e-5);
        for (i, (&l, &g)) in logits.iter().zip(&gradient).enumerate() {
            let right = 0.5 * (f64::from(l).exp() / sum - f64::from(u8::from(i == 17)));
            assert!((f64::from(g) - right).abs() < 1e-7, "{i}: {g} {right}");
        }
        let mut rounded = logits;
        assert_eq!(loss_and_gradient::<bf16>(&mut rounded, 17, TokenLoss::CROSS_ENTROPY, Some(0.5)), loss);
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
        let got = capped_loss_and_gradient::<f32>(
            &mut gradient,
            cap as f32,
            17,
            TokenLoss::CROSS_ENTROPY,
            Some(scale as f32),
        );
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
    fn what_is_beside_cross_entropy_has_the_loss_and_gradient_of_the_definition() {
        let of = TokenLoss { label_smoothing: 0.1, z_loss: 0.02 };
        let (cap, scale) = (3.0, 0.5);
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 9.0 - 6.0).collect();
        let wide: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
        for capped in [false, true] {
            let loss = |logits: &[f64]| {
                let of_cap = |z: &f64| if capped { cap * (z / cap).tanh() } else { *z };
                let x: Vec<f64> = logits.iter().map(of_cap).collect();
                let normalizer = x.iter().map(|x| x.exp()).sum::<f64>().ln();
                let all = x.iter().map(|x| normalizer - x).sum::<f64>() / x.len() as f64;
                0.9 * (normalizer - x[17]) + 0.1 * all + 0.02 * normalizer * normalizer
            };
            for backward in [None, Some(scale as f32)] {
                let mut gradient = logits.clone();
                let got = match capped {
                    false => loss_and_gradient::<f32>(&mut gradient, 17, of, backward),
                    true => capped_loss_and_gradient::<f32>(&mut gradient, cap as f32, 17, of, backward),
                };
                assert!((f64::from(got) - loss(&wide)).abs() < 1e-5, "{got}");
                for i in [0, 17, 400, 999].into_iter().filter(|_| backward.is_some()) {
                    let (mut more, mut less) = (wide.clone(), wide.clone());
                    more[i] += 1e-5;
                    less[i] -= 1e-5;
                    let right = scale * (loss(&more) - loss(&less)) / 2e-5;
                    assert!((f64::from(gradient[i]) - right).abs() < 1e-6, "{i}: {} {right}", gradient[i]);
                }
            }
        }
    }

    /// As `torch.nn.functional.cross_entropy` has it with `label_smoothing=0.1`, in f64, of torch 2.15.
    #[test]
    fn labels_are_smoothed_as_in_torch() {
        let mut logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 9.0 - 6.0).collect();
        let of = TokenLoss { label_smoothing: 0.1, z_loss: 0.0 };
        let loss = loss_and_gradient::<f32>(&mut logits, 17, of, Some(1.0));
        assert!((f64::from(loss) - 12.804_414_981_576_8).abs() < 1e-5, "{loss}");
        let of_torch = [(0, -9.984_190_69e-5), (17, -0.900_097_964), (400, -3.622_068_58e-5), (999, 8.370_271_137e-3)];
        for (i, gradient) in of_torch {
            assert!((f64::from(logits[i]) - gradient).abs() < 1e-7, "{i}: {} {gradient}", logits[i]);
        }
    }

    #[test]
    fn a_logit_that_is_no_number_is_not_hidden() {
        assert!(loss_and_gradient::<f32>(&mut [0.0, f32::NAN, 1.0], 0, TokenLoss::CROSS_ENTROPY, None).is_nan());
        assert!(
            !loss_and_gradient::<f32>(&mut [0.0, f32::INFINITY, 1.0], 0, TokenLoss::CROSS_ENTROPY, None).is_finite()
        );
    }
}

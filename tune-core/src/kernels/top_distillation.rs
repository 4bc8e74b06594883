//! The same as [`super::distillation`] where of the teacher only the likeliest tokens are known, and what the others have together.

use super::general_distillation::Compared;
use super::math::{exp, sum};
use super::softmax::{cap_rows, map_into, max};
use super::{Element, parallel, simd};
use super::{Mixture, TopRows};

/// A student's loss of one token, and its divergence from a teacher over the teacher's `ids` and one outcome more, any other token.
/// `log_q` has the logarithms of the teacher's probabilities of these tokens, and `log_rest` that of the others together. With a
/// `scale`, the student's logits become the gradient of `scale` times the mixture, numbers of type `T` from the beginning of
/// the row on.
fn distilled<T: Element>(
    student: &mut [f32],
    (ids, log_q, log_rest): (&[u32], &[f32], f32),
    cap: Option<f32>,
    target: usize,
    mixture: Mixture,
    scale: Option<f32>,
) -> [f32; 2] {
    if let Some(cap) = cap {
        cap_rows(student, cap);
    }
    let right = student[target];
    let top: Vec<f32> = ids.iter().map(|&id| student[id as usize]).collect();
    // The others are added up by themselves: as one less the sum of the tokens they would be lost to rounding.
    ids.iter().for_each(|&id| student[id as usize] = f32::NEG_INFINITY);
    let has_rest = ids.len() < student.len();
    let of_others = if has_rest { log_sum_exp(student) } else { f32::NEG_INFINITY };

    let largest = top.iter().copied().fold(of_others, f32::max);
    let total = top.iter().chain(&[of_others]).map(|&z| f64::from(exp(z - largest))).sum::<f64>();
    let normalizer = largest + total.ln() as f32;
    let log_p_rest = of_others - normalizer;
    let (mut to_teacher, mut to_student) = (0.0f64, 0.0f64);
    let tokens = top.iter().zip(log_q).map(|(z, &log_q)| (z - normalizer, log_q));
    let compared = Compared::new(&mixture);
    for (log_p, log_q) in tokens.clone().chain(has_rest.then_some((log_p_rest, log_rest))) {
        let [for_teacher, for_student] = compared.of(log_p, log_q);
        to_teacher += f64::from(exp(log_q) * (log_q - for_teacher));
        to_student += f64::from(exp(log_p) * (log_p - for_student));
    }

    if let Some(scale) = scale {
        let [of_target, forward, reverse] = mixture.parts().map(|part| part as f32);
        let forward = compared.forward(forward);
        let slope = |z: f32| cap.map_or(1.0, |cap| 1.0 - (z / cap) * (z / cap));
        let gradient = |log_p: f32, log_q: f32| {
            let (p, q, [_, for_student]) = (exp(log_p), exp(log_q), compared.of(log_p, log_q));
            of_target * p + forward * (p - q) + reverse * p * (log_p - for_student - to_student as f32)
        };
        if has_rest {
            // That of their outcome, which each has a share of.
            let of_rest = scale * gradient(log_p_rest, log_rest);
            simd(
                #[inline(always)]
                || student.iter_mut().for_each(|z| *z = of_rest * slope(*z) * exp(*z - of_others)),
            );
        }
        for ((&id, &z), (log_p, log_q)) in ids.iter().zip(&top).zip(tokens) {
            student[id as usize] = scale * slope(z) * gradient(log_p, log_q);
        }
        student[target] -= scale * slope(right) * of_target;
        simd(
            #[inline(always)]
            || {
                map_into::<T>(
                    student,
                    #[inline(always)]
                    |g| g,
                );
            },
        );
    }
    let [share_forward, share_reverse] = mixture.shares();
    [normalizer - right, (share_forward * to_teacher + share_reverse * to_student) as f32]
}

/// `ln Σ exp(x)`, of which one at least is no minus infinity.
fn log_sum_exp(x: &[f32]) -> f32 {
    simd(
        #[inline(always)]
        || {
            let max = max(x);
            let total = sum(
                [x],
                #[inline(always)]
                |[z]| exp(z - max),
            );
            max + total.ln()
        },
    )
}

/// The same of rows of `vocab` logits. Returns each one's loss and divergence.
pub(crate) fn distilled_rows<T: Element>(
    (student, teacher): (&mut [f32], TopRows<'_>),
    vocab: usize,
    cap: Option<f64>,
    targets: &[u32],
    mixture: Mixture,
    weights: Option<&[f64]>,
) -> Vec<(f64, f64)> {
    let rows = parallel::chunks(&mut student[..targets.len() * vocab], vocab);
    parallel::map_parts(rows, |i, student| {
        let weight = weights.map(|weights| weights[i] as f32);
        let cap = cap.map(|cap| cap as f32);
        distilled::<T>(student, teacher.row(i), cap, targets[i] as usize, mixture, weight).map(f64::from).into()
    })
}

#[cfg(test)]
#[path = "top_distillation_tests.rs"]
mod tests;

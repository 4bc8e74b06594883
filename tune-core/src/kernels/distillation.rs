//! Cross-entropy of one row of a student's logits, and how far it is from the same row of its teacher's.

use super::math::{exp, sum};
use super::softmax::{cap_rows, max};
use super::{Element, Mixture, general_distillation, parallel, simd};

/// A student's loss of one token and how far it is from its teacher, both of whose logits are given: the cross-entropy with
/// the target, and the divergence of `mixture`. `cap` is the student's; the teacher's logits are capped already. With a
/// `scale`, the student's logits become the gradient of `scale` times the mixture, numbers of type `T` from the beginning of
/// the row on. What the teacher's row holds then is of no use.
fn distilled<T: Element>(
    student: &mut [f32],
    teacher: &mut [f32],
    cap: Option<f32>,
    target: usize,
    mixture: Mixture,
    scale: Option<f32>,
) -> [f32; 2] {
    if let Some(cap) = cap {
        cap_rows(student, cap);
    }
    if !mixture.is_plain() {
        return general_distillation::distilled::<T>(student, teacher, cap, target, mixture, scale);
    }
    let [of_target, forward, reverse] = mixture.parts().map(|part| part as f32);
    let [share_forward, share_reverse] = mixture.shares().map(|share| share as f32);
    simd(
        #[inline(always)]
        || {
            let shifts = [&*student, &*teacher].map(|logits| {
                let max = max(logits);
                let total = sum(
                    [logits],
                    #[inline(always)]
                    |[z]| exp(z - max),
                );
                max + total.ln()
            });
            let [of_student, of_teacher] = shifts;
            let right = student[target];
            let to_teacher = sum(
                [&*teacher, &*student],
                #[inline(always)]
                |[t, s]| exp(t - of_teacher) * ((t - of_teacher) - (s - of_student)),
            );
            let to_student = sum(
                [&*teacher, &*student],
                #[inline(always)]
                |[t, s]| exp(s - of_student) * ((s - of_student) - (t - of_teacher)),
            );
            if let Some(scale) = scale {
                let slope = |s: f32| cap.map_or(1.0, |cap| 1.0 - (s / cap) * (s / cap));
                for (t, s) in teacher.iter_mut().zip(&*student) {
                    let (log_q, log_p) = (*t - of_teacher, *s - of_student);
                    let (q, p) = (exp(log_q), exp(log_p));
                    let gradient = of_target * p + forward * (p - q) + reverse * p * (log_p - log_q - to_student);
                    *t = scale * slope(*s) * gradient;
                }
                teacher[target] -= scale * slope(right) * of_target;
                let gradient = bytemuck::cast_slice_mut::<f32, T>(student);
                gradient.iter_mut().zip(&*teacher).for_each(|(to, from)| *to = T::from_f32(*from));
            }
            [of_student - right, share_forward * to_teacher + share_reverse * to_student]
        },
    )
}

/// The same of rows of `vocab` logits, of a student and its teacher. Returns each one's loss and divergence.
pub(crate) fn distilled_rows<T: Element>(
    (student, teacher): (&mut [f32], &mut [f32]),
    vocab: usize,
    cap: Option<f64>,
    targets: &[u32],
    mixture: Mixture,
    weights: Option<&[f64]>,
) -> Vec<(f64, f64)> {
    let [student, teacher] = [student, teacher].map(|of| parallel::chunks(&mut of[..targets.len() * vocab], vocab));
    parallel::map_parts((student, teacher), |i, (student, teacher)| {
        let weight = weights.map(|weights| weights[i] as f32);
        let cap = cap.map(|cap| cap as f32);
        distilled::<T>(student, teacher, cap, targets[i] as usize, mixture, weight).map(f64::from).into()
    })
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use serde_json::Value;

    use super::*;
    use crate::methods::{DivergenceLoss, GeneralizedJsd};

    fn jensen(beta: f64) -> DivergenceLoss {
        DivergenceLoss::JensenShannon(GeneralizedJsd { beta })
    }

    #[test]
    fn a_students_loss_and_gradient_are_those_of_the_definition() {
        let student: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 19.0 - 3.0).collect();
        let teacher: Vec<f32> = (0..1000).map(|i| ((i * 53) % 97) as f32 / 23.0 - 1.0).collect();
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let log_softmax = |x: &[f64]| {
            let total = x.iter().map(|x| x.exp()).sum::<f64>().ln();
            x.iter().map(|x| x - total).collect::<Vec<_>>()
        };
        let log_q = log_softmax(&wide(&teacher));
        for (mixture, cap) in [
            (Mixture::new(0.25, 1.0), None),
            (Mixture::new(1.0, 0.0), None),
            (Mixture::new(0.5, 0.25), Some(4.0)),
            (Mixture::new(0.0, 1.0), None),
            (Mixture::new(0.5, 0.25).at(2.0), Some(4.0)),
            (Mixture::new(0.7, 1.0).at(0.5), None),
            (jensen(0.5).mixed(1.0), None),
            (jensen(0.1).mixed(0.25), Some(4.0)),
            (jensen(0.9).mixed(0.75).at(1.7), None),
        ] {
            let parts = |z: &[f64]| {
                let z: Vec<f64> = z.iter().map(|z| cap.map_or(*z, |cap: f64| cap * (z / cap).tanh())).collect();
                let log_p = log_softmax(&z);
                let tempered = |x: &[f64]| {
                    let x: Vec<f64> = x.iter().map(|x| x / mixture.temperature()).collect();
                    log_softmax(&x)
                };
                let (cross_entropy, log_p, log_q) = (-log_p[17], tempered(&log_p), tempered(&log_q));
                if let Some(beta) = mixture.middle() {
                    let both = log_p.iter().zip(&log_q).map(|(p, q)| {
                        let m = (beta * q.exp() + (1.0 - beta) * p.exp()).ln();
                        beta * q.exp() * (q - m) + (1.0 - beta) * p.exp() * (p - m)
                    });
                    return [cross_entropy, both.sum()];
                }
                let pairs = || log_p.iter().zip(&log_q);
                let forward: f64 = pairs().map(|(p, q)| q.exp() * (q - p)).sum();
                let reverse: f64 = pairs().map(|(p, q)| p.exp() * (p - q)).sum();
                let [to_teacher, to_student] = mixture.shares();
                [cross_entropy, to_teacher * forward + to_student * reverse]
            };
            let value = |z: &[f64]| {
                let [loss, divergence] = parts(z);
                mixture.of(loss, divergence)
            };
            let (mut row, mut beside, small) = (student.clone(), teacher.clone(), cap.map(|cap| cap as f32));
            let got = distilled::<f32>(&mut row, &mut beside, small, 17, mixture, Some(0.5));
            for (got, right) in got.iter().zip(parts(&wide(&student))) {
                assert!((f64::from(*got) - right).abs() < 1e-5 * (1.0 + right), "{mixture:?}: {got} {right}");
            }
            for i in [0, 17, 400, 999] {
                let (mut more, mut less) = (wide(&student), wide(&student));
                more[i] += 1e-5;
                less[i] -= 1e-5;
                let right = 0.5 * (value(&more) - value(&less)) / 2e-5;
                assert!((f64::from(row[i]) - right).abs() < 1e-6, "{mixture:?}, {i}: {} {right}", row[i]);
            }
            let (mut rounded, mut beside) = (student.clone(), teacher.clone());
            assert_eq!(distilled::<bf16>(&mut rounded, &mut beside, small, 17, mixture, Some(0.5)), got);
            let expected: Vec<bf16> = row.iter().map(|&g| Element::from_f32(g)).collect();
            assert_eq!(bytemuck::cast_slice::<f32, bf16>(&rounded)[..1000], expected);
        }
    }

    /// torchtune's forward divergence lacks the teacher's `q ln q`, a constant.
    #[test]
    fn divergences_and_gradients_are_those_of_torchtune() {
        const FIXTURE: &str = include_str!("../../../tests/fixtures/distillation_losses.json");
        let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
        let rows = |value: &Value| -> Vec<Vec<f32>> { serde_json::from_value(value.clone()).unwrap() };
        let (student, teacher) = (rows(&fixture["student"]), rows(&fixture["teacher"]));
        let targets: Vec<i64> = serde_json::from_value(fixture["targets"].clone()).unwrap();
        let trained: Vec<usize> = (0..targets.len()).filter(|&row| targets[row] >= 0).collect();
        let scale = 1.0 / trained.len() as f32;
        let cases = fixture["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let loss = tune_config::load::<DivergenceLoss>(tune_config::Input::yaml("loss", case["loss"].to_string()));
            let mixture = loss.unwrap().config.mixed(1.0);
            let [forward, _] = mixture.shares();
            let (mut total, gradient) = (0.0, rows(&case["gradient"]));
            for &row in &trained {
                let (mut s, mut t) = (student[row].clone(), teacher[row].clone());
                let entropy = {
                    let all: f64 = t.iter().map(|&t| f64::from(t).exp()).sum();
                    let log = |t: f32| f64::from(t) - all.ln();
                    -t.iter().map(|&t| log(t).exp() * log(t)).sum::<f64>()
                };
                let [_, divergence] =
                    distilled::<f32>(&mut s, &mut t, None, targets[row] as usize, mixture, Some(scale));
                total += (f64::from(divergence) + forward * entropy) / trained.len() as f64;
                for (ours, theirs) in s.iter().zip(&gradient[row]) {
                    assert!((ours - theirs).abs() < 1e-6, "{}: {ours} instead of {theirs}", case["loss"]);
                }
            }
            let theirs = case["value"].as_f64().unwrap();
            assert!((total - theirs).abs() < 1e-5, "{}: {total} instead of {theirs}", case["loss"]);
        }
    }

    /// Without cross-entropy, as TRL has it in f64.
    #[test]
    fn generalized_divergences_at_temperatures_are_those_of_trl() {
        const FIXTURE: &str = include_str!("../../../tests/fixtures/generalized_jsd.json");
        let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
        let rows = |value: &Value| -> Vec<Vec<f32>> { serde_json::from_value(value.clone()).unwrap() };
        let (student, teacher) = (rows(&fixture["student"]), rows(&fixture["teacher"]));
        let cases = fixture["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 9);
        for case in cases {
            let number = |key: &str| case[key].as_f64().unwrap();
            let mixture = jensen(number("beta")).mixed(1.0).at(number("temperature"));
            let (mut total, gradient) = (0.0, rows(&case["gradient"]));
            for (row, theirs) in gradient.iter().enumerate() {
                let (mut s, mut t) = (student[row].clone(), teacher[row].clone());
                let scale = 1.0 / student.len() as f32;
                let [_, divergence] = distilled::<f32>(&mut s, &mut t, None, 3, mixture, Some(scale));
                total += f64::from(scale * divergence);
                for (ours, theirs) in s.iter().zip(theirs) {
                    assert!((ours - theirs).abs() < 2e-6, "{mixture:?}: {ours} instead of {theirs}");
                }
            }
            let theirs = number("value");
            assert!((total - theirs).abs() < 1e-5, "{mixture:?}: {total} instead of {theirs}");
        }
    }
}

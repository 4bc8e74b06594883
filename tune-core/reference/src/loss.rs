//! Cross-entropy of logits, token by token.

use crate::{View, ViewMut};

/// A target that is not trained: its loss and its gradient are zero.
pub const IGNORE: u32 = u32::MAX;

/// `loss_i = ln Σ_j exp(x_ij) - x_i,target`, one for each row of `logits` `[tokens, vocab]`, not weighted.
pub fn cross_entropy(logits: View<'_>, targets: &[u32]) -> Vec<f64> {
    assert_eq!(logits.rows(), targets.len(), "cross_entropy: a target for each row");
    let loss = |(i, &target): (usize, &u32)| match target {
        IGNORE => 0.0,
        target => log_sum_exp(logits.row(i)) - logits.row(i)[target as usize],
    };
    targets.iter().enumerate().map(loss).collect()
}

/// Stores the gradient of `Σ_i weights_i · loss_i` into `of_logits`: `weights_i (softmax(x_i)_j - [j = target_i])`.
pub fn cross_entropy_back(logits: View<'_>, targets: &[u32], weights: &[f64], of_logits: &mut ViewMut<'_>) {
    let shapes = (logits.rows(), logits.cols()) == (of_logits.rows(), of_logits.cols());
    assert!(shapes && [targets.len(), weights.len()] == [logits.rows(); 2], "cross_entropy: shapes that do not fit");
    for (i, (&target, &weight)) in targets.iter().zip(weights).enumerate() {
        if target == IGNORE {
            of_logits.row(i).fill(0.0);
            continue;
        }
        let lse = log_sum_exp(logits.row(i));
        for (j, (g, x)) in of_logits.row(i).iter_mut().zip(logits.row(i)).enumerate() {
            let right = if j == target as usize { 1.0 } else { 0.0 };
            *g = weight * ((x - lse).exp() - right);
        }
    }
}

/// `(1 - smoothing) · CE_i + smoothing · mean_j (lse_i - x_ij) + z · lse_i²`, one for each row, with `CE_i` that of [`cross_entropy`]
/// and `lse_i = ln Σ_j exp(x_ij)`.
pub fn token_losses(logits: View<'_>, targets: &[u32], smoothing: f64, z: f64) -> Vec<f64> {
    let each = cross_entropy(logits, targets).into_iter().enumerate();
    let whole = |(i, loss): (usize, f64)| {
        if targets[i] == IGNORE {
            return 0.0;
        }
        let (row, lse) = (logits.row(i), log_sum_exp(logits.row(i)));
        let all = row.iter().map(|x| lse - x).sum::<f64>() / row.len() as f64;
        (1.0 - smoothing) * loss + smoothing * all + z * lse * lse
    };
    each.map(whole).collect()
}

/// Stores the gradient of `Σ_i weights_i · loss_i` of [`token_losses`] into `of_logits`.
pub fn token_losses_back(
    logits: View<'_>,
    targets: &[u32],
    weights: &[f64],
    smoothing: f64,
    z: f64,
    of_logits: &mut ViewMut<'_>,
) {
    cross_entropy_back(logits, targets, weights, of_logits);
    for (i, &weight) in weights.iter().enumerate().filter(|(i, _)| targets[*i] != IGNORE) {
        let (row, lse) = (logits.row(i), log_sum_exp(logits.row(i)));
        for (j, (g, x)) in of_logits.row(i).iter_mut().zip(row).enumerate() {
            let (p, right) = ((x - lse).exp(), if j == targets[i] as usize { 1.0 } else { 0.0 });
            *g += weight * (smoothing * (right - 1.0 / row.len() as f64) + 2.0 * z * lse * p);
        }
    }
}

/// Of each row, with `p` the probabilities of `student` and `q` those of `teacher`, both `[tokens, vocab]`: the forward
/// divergence `Σ q (ln q - ln p)` and the reverse one, `Σ p (ln p - ln q)`.
pub fn divergences(student: View<'_>, teacher: View<'_>) -> Vec<[f64; 2]> {
    let shapes = (student.rows(), student.cols()) == (teacher.rows(), teacher.cols());
    assert!(shapes, "divergences: shapes that do not fit");
    let of_row = |i: usize| {
        let (of_student, of_teacher) = (log_sum_exp(student.row(i)), log_sum_exp(teacher.row(i)));
        student.row(i).iter().zip(teacher.row(i)).fold([0.0; 2], |[forward, reverse], (s, t)| {
            let (p, q) = (s - of_student, t - of_teacher);
            [forward + q.exp() * (q - p), reverse + p.exp() * (p - q)]
        })
    };
    (0..student.rows()).map(of_row).collect()
}

/// Adds to `of_student` the gradient of `Σ_i weights_i (shares_0 forward_i + shares_1 reverse_i)` of [`divergences`] with
/// respect to the student's logits: `p - q` of the forward one, `p (ln p - ln q - reverse)` of the other.
pub fn divergences_back(
    student: View<'_>,
    teacher: View<'_>,
    shares: [f64; 2],
    weights: &[f64],
    of_student: &mut ViewMut<'_>,
) {
    for (i, [_, reverse]) in divergences(student, teacher).into_iter().enumerate() {
        let (of_s, of_t) = (log_sum_exp(student.row(i)), log_sum_exp(teacher.row(i)));
        for (g, (s, t)) in of_student.row(i).iter_mut().zip(student.row(i).iter().zip(teacher.row(i))) {
            let (p, q) = (s - of_s, t - of_t);
            *g += weights[i] * (shares[0] * (p.exp() - q.exp()) + shares[1] * p.exp() * (p - q - reverse));
        }
    }
}

/// A divergence at a temperature, which divides the logits of both.
#[derive(Debug, Clone, Copy)]
pub struct General {
    /// Above 0.
    pub temperature: f64,
    /// What the teacher's divergence from the student counts, and the student's from the teacher.
    pub shares: [f64; 2],
    /// Whether both are taken from `m = shares_0 q + shares_1 p` instead.
    pub from_middle: bool,
}

impl General {
    /// Of a row, the logarithms of `p`, of `q`, and of what `p` and `q` are compared with.
    fn row(&self, student: &[f64], teacher: &[f64]) -> Vec<[f64; 4]> {
        let log_probs = |logits: &[f64]| {
            let divided: Vec<f64> = logits.iter().map(|z| z / self.temperature).collect();
            let all = log_sum_exp(&divided);
            divided.into_iter().map(move |z| z - all)
        };
        log_probs(student).zip(log_probs(teacher)).map(|(p, q)| self.compared(p, q)).collect()
    }

    /// Logarithms of an outcome's `p` and `q`, and of what `p` and `q` are compared with.
    fn compared(&self, p: f64, q: f64) -> [f64; 4] {
        match self.from_middle {
            false => [p, q, q, p],
            true => {
                let m = log_sum_exp(&[q + self.shares[0].ln(), p + self.shares[1].ln()]);
                [p, q, m, m]
            }
        }
    }

    /// The teacher's divergence and the student's, of outcomes.
    fn sums(&self, outcomes: impl IntoIterator<Item = [f64; 4]>) -> [f64; 2] {
        outcomes.into_iter().fold([0.0; 2], |[of_teacher, of_student], [p, q, for_p, for_q]| {
            [of_teacher + q.exp() * (q - for_q), of_student + p.exp() * (p - for_p)]
        })
    }

    /// The gradient with respect to an outcome's logarithm before it was normalized, where the student's divergence is `from`.
    fn slope(&self, [p, q, for_p, _]: [f64; 4], from: f64) -> f64 {
        let forward = if self.from_middle { 0.0 } else { self.shares[0] * (p.exp() - q.exp()) };
        forward + self.shares[1] * p.exp() * (p - for_p - from)
    }
}

/// Of each row the divergence of the teacher's probabilities and that of the student's, from each other or from their weighted
/// mean (Agarwal et al. 2024, <https://arxiv.org/abs/2306.13649>).
pub fn general_divergences(student: View<'_>, teacher: View<'_>, of: General) -> Vec<[f64; 2]> {
    (0..student.rows()).map(|i| of.sums(of.row(student.row(i), teacher.row(i)))).collect()
}

/// Adds to `of_student` the gradient of `Σ_i weights_i (shares_0 teacher_i + shares_1 student_i)` of [`general_divergences`] with
/// respect to the student's logits. From their mean it is `shares_1 p (ln p - ln m - student) / temperature`.
pub fn general_divergences_back(
    student: View<'_>,
    teacher: View<'_>,
    of: General,
    weights: &[f64],
    of_student: &mut ViewMut<'_>,
) {
    for (i, [_, from]) in general_divergences(student, teacher, of).into_iter().enumerate() {
        let row = of.row(student.row(i), teacher.row(i));
        for (g, outcome) in of_student.row(i).iter_mut().zip(row) {
            *g += weights[i] / of.temperature * of.slope(outcome, from);
        }
    }
}

/// Of each row of a teacher's logits the `k` likeliest tokens with the logarithms of their probabilities, `[tokens, k]`, and that of
/// what all others have together, `[tokens]`, which is not read where `k` is the vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct Top<'a> {
    /// Tokens of a row.
    pub k: usize,
    /// The tokens.
    pub ids: &'a [u32],
    /// The logarithms of their probabilities.
    pub log_probs: &'a [f64],
    /// That of all others together.
    pub rest: &'a [f64],
}

impl Top<'_> {
    /// Of row `i` the logarithms of a student's and of the teacher's probabilities of each outcome, and of what they are compared with: the
    /// outcomes are the tokens and, where there are others, any other token. With it which outcome each token of the vocabulary belongs to.
    fn outcomes(&self, student: &[f64], i: usize, of: General) -> (Vec<[f64; 4]>, Vec<usize>) {
        let tokens = i * self.k..(i + 1) * self.k;
        let mut outcome_of = vec![self.k; student.len()];
        self.ids[tokens.clone()].iter().enumerate().for_each(|(n, &id)| outcome_of[id as usize] = n);
        let all = log_sum_exp(student);
        let known = self.ids[tokens.clone()].iter().zip(&self.log_probs[tokens]);
        let mut outcomes: Vec<[f64; 4]> =
            known.map(|(&id, &log_q)| of.compared(student[id as usize] - all, log_q)).collect();
        let others: Vec<f64> =
            student.iter().zip(&outcome_of).filter(|(_, n)| **n == self.k).map(|(s, _)| *s).collect();
        if !others.is_empty() {
            outcomes.push(of.compared(log_sum_exp(&others) - all, self.rest[i]));
        }
        (outcomes, outcome_of)
    }
}

/// [`general_divergences`], at a temperature of 1, from a teacher of which the likeliest tokens are known: over these and one outcome more,
/// any other token.
pub fn top_divergences(student: View<'_>, teacher: Top<'_>, of: General) -> Vec<[f64; 2]> {
    (0..student.rows()).map(|i| of.sums(teacher.outcomes(student.row(i), i, of).0)).collect()
}

/// [`general_divergences_back`] of [`top_divergences`]. An outcome's gradient is that of its logarithm's numerator; a token that is one of
/// several in its outcome has a share of it, its probability among them.
pub fn top_divergences_back(
    student: View<'_>,
    teacher: Top<'_>,
    of: General,
    weights: &[f64],
    of_student: &mut ViewMut<'_>,
) {
    for (i, [_, from]) in top_divergences(student, teacher, of).into_iter().enumerate() {
        let (outcomes, outcome_of) = teacher.outcomes(student.row(i), i, of);
        let all = log_sum_exp(student.row(i));
        for ((g, s), outcome) in of_student.row(i).iter_mut().zip(student.row(i)).zip(outcome_of) {
            let outcome = outcomes[outcome];
            let share = (s - all - outcome[0]).exp();
            *g += weights[i] * share * of.slope(outcome, from);
        }
    }
}

/// The logarithm of the probability of each row's target; zero for [`IGNORE`].
pub fn log_probabilities(logits: View<'_>, targets: &[u32]) -> Vec<f64> {
    cross_entropy(logits, targets).into_iter().map(|loss| -loss).collect()
}

/// `ln Σ exp(x)`, by way of the largest.
pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

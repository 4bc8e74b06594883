//! The same as [`super::distillation`] at a temperature, or where student and teacher are compared with their weighted mean.

use super::Element;
use super::math::exp;
use super::mixture::Mixture;

/// What a teacher's and a student's probabilities of an outcome are compared with: each other, or their weighted mean.
#[derive(Clone, Copy)]
pub(super) struct Compared {
    /// The logarithms of the teacher's and the student's shares of the mean.
    middle: Option<[f32; 2]>,
}

impl Compared {
    pub(super) fn new(mixture: &Mixture) -> Self {
        Self { middle: mixture.middle().map(|share| [share.ln() as f32, (1.0 - share).ln() as f32]) }
    }

    /// The logarithms of what the teacher's probability is compared with and the student's.
    pub(super) fn of(self, log_p: f32, log_q: f32) -> [f32; 2] {
        match self.middle {
            None => [log_p, log_q],
            Some([share_q, share_p]) => [log_sum(share_q + log_q, share_p + log_p); 2],
        }
    }

    /// What the difference of the probabilities counts in the gradient, of what it counts in the divergence: what moves the middle cancels
    /// out.
    pub(super) fn forward(self, share: f32) -> f32 {
        if self.middle.is_some() { 0.0 } else { share }
    }
}

/// As the function of this name there, of logits that are capped already.
pub(super) fn distilled<T: Element>(
    student: &mut [f32],
    teacher: &mut [f32],
    cap: Option<f32>,
    target: usize,
    mixture: Mixture,
    scale: Option<f32>,
) -> [f32; 2] {
    let factor = (1.0 / mixture.temperature()) as f32;
    let compared = Compared::new(&mixture);
    let of_loss = log_total(student, 1.0);
    let [of_student, of_teacher] = [&*student, &*teacher].map(|logits| log_total(logits, factor));
    let right = student[target];
    let (mut from_teacher, mut from_student) = (0.0f64, 0.0f64);
    for (t, s) in teacher.iter_mut().zip(&*student) {
        let (log_q, log_p) = (factor * *t - of_teacher, factor * *s - of_student);
        let [for_teacher, for_student] = compared.of(log_p, log_q);
        from_teacher += f64::from(exp(log_q) * (log_q - for_teacher));
        from_student += f64::from(exp(log_p) * (log_p - for_student));
        *t = for_student;
    }
    if let Some(scale) = scale {
        let [of_target, forward, reverse] = mixture.parts().map(|part| part as f32);
        let forward = compared.forward(forward);
        let slope = |s: f32| cap.map_or(1.0, |cap| 1.0 - (s / cap) * (s / cap));
        for (t, s) in teacher.iter_mut().zip(&*student) {
            let (log_p, for_student) = (factor * *s - of_student, *t);
            let p = exp(log_p);
            let divergence =
                forward * (p - exp(for_student)) + reverse * p * (log_p - for_student - from_student as f32);
            *t = scale * slope(*s) * (of_target * exp(*s - of_loss) + factor * divergence);
        }
        teacher[target] -= scale * slope(right) * of_target;
        let gradient = bytemuck::cast_slice_mut::<f32, T>(student);
        gradient.iter_mut().zip(&*teacher).for_each(|(to, from)| *to = T::from_f32(*from));
    }
    let [of_teacher, of_student] = mixture.shares();
    [of_loss - right, (of_teacher * from_teacher + of_student * from_student) as f32]
}

/// `ln Σ exp(factor x)`.
fn log_total(x: &[f32], factor: f32) -> f32 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = x.iter().map(|&z| f64::from(exp(factor * (z - max)))).sum();
    factor * max + total.ln() as f32
}

/// `ln (exp(a) + exp(b))`.
fn log_sum(a: f32, b: f32) -> f32 {
    a.max(b) + exp(-(a - b).abs()).ln_1p()
}

//! Losses of logits, with their gradients.

use tune_reference::{View, ViewMut, loss, softcap};

use super::Reference;
use crate::engine::backend::Losses;
use crate::kernels::{Mixture, TokenLoss, TopRows};

/// Logits `[rows, vocab]`, capped where the model caps them.
pub(super) struct Logits {
    capped: Vec<f64>,
    vocab: usize,
    cap: Option<f64>,
}

impl Logits {
    /// These logits, which are to be capped.
    pub(super) fn new(mut logits: Vec<f64>, vocab: usize, cap: Option<f64>) -> Self {
        let width = logits.len();
        if let Some(cap) = cap {
            softcap::forward(&mut ViewMut::new(&mut logits, width), cap);
        }
        Self { capped: logits, vocab, cap }
    }

    fn view(&self) -> View<'_> {
        View::new(&self.capped, self.vocab)
    }

    /// The gradient `[rows, vocab]` with respect to logits before they are capped, for that which `add` adds up for capped ones.
    fn gradient(&self, add: impl FnOnce(&mut ViewMut<'_>)) -> (Vec<f64>, usize) {
        let mut gradient = vec![0.0; self.capped.len()];
        let mut into = ViewMut::new(&mut gradient, self.vocab);
        add(&mut into);
        if let Some(cap) = self.cap {
            softcap::backward(self.view(), cap, &mut into);
        }
        (gradient, self.vocab)
    }

    /// See [`Backend::loss`](crate::engine::backend::Backend::loss).
    pub(super) fn token_losses(&self, of: TokenLoss, targets: &[u32], weights: Option<&[f64]>) -> Losses<Reference> {
        let TokenLoss { label_smoothing, z_loss } = of;
        let add = |weights, into: &mut ViewMut<'_>| {
            loss::token_losses_back(self.view(), targets, weights, label_smoothing, z_loss, into);
        };
        Losses {
            each: loss::token_losses(self.view(), targets, label_smoothing, z_loss),
            gradient: weights.map(|weights| self.gradient(|into| add(weights, into))),
        }
    }

    /// See [`Backend::distilled`](crate::engine::backend::Backend::distilled).
    pub(super) fn distilled(
        &self,
        teacher: View<'_>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Reference>, Vec<f64>) {
        let (of, general) = (self.view(), general(&mixture));
        if mixture.is_plain() {
            let [_, forward, reverse] = mixture.parts();
            let add = |weights: &[f64], into: &mut ViewMut<'_>| {
                loss::divergences_back(of, teacher, [forward, reverse], weights, into);
            };
            return self.taught(targets, &mixture, weights, loss::divergences(of, teacher), add);
        }
        let add = |weights: &[f64], into: &mut ViewMut<'_>| {
            loss::general_divergences_back(of, teacher, general, &times(weights, mixture.ratio), into);
        };
        self.taught(targets, &mixture, weights, loss::general_divergences(of, teacher, general), add)
    }

    /// See [`Backend::distilled_by_top`](crate::engine::backend::Backend::distilled_by_top).
    pub(super) fn distilled_by_top(
        &self,
        teacher: TopRows<'_>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Reference>, Vec<f64>) {
        let (of, general) = (self.view(), general(&mixture));
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (log_probs, rest) = (wide(teacher.log_probs), wide(teacher.rest));
        let teacher = loss::Top { k: teacher.k, ids: teacher.ids, log_probs: &log_probs, rest: &rest };
        let add = |weights: &[f64], into: &mut ViewMut<'_>| {
            loss::top_divergences_back(of, teacher, general, &times(weights, mixture.ratio), into);
        };
        self.taught(targets, &mixture, weights, loss::top_divergences(of, teacher, general), add)
    }

    /// The cross-entropies of a student, its divergences from a teacher of which each row has two, and the gradient of both, of which `add`
    /// adds that of the divergences.
    fn taught(
        &self,
        targets: &[u32],
        mixture: &Mixture,
        weights: Option<&[f64]>,
        divergences: Vec<[f64; 2]>,
        add: impl FnOnce(&[f64], &mut ViewMut<'_>),
    ) -> (Losses<Reference>, Vec<f64>) {
        let ([of_target, ..], shares) = (mixture.parts(), mixture.shares());
        let gradient = weights.map(|weights| {
            self.gradient(|into| {
                loss::cross_entropy_back(self.view(), targets, &times(weights, of_target), into);
                add(weights, into);
            })
        });
        let divergences = divergences.into_iter().map(|[forward, reverse]| shares[0] * forward + shares[1] * reverse);
        (Losses { each: loss::cross_entropy(self.view(), targets), gradient }, divergences.collect())
    }
}

fn times(weights: &[f64], factor: f64) -> Vec<f64> {
    weights.iter().map(|weight| weight * factor).collect()
}

/// How a mixture compares the student with its teacher.
fn general(mixture: &Mixture) -> loss::General {
    loss::General {
        temperature: mixture.temperature(),
        shares: mixture.shares(),
        from_middle: mixture.middle().is_some(),
    }
}

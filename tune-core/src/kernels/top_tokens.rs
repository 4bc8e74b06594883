//! A teacher's likeliest tokens: what is kept of its logits where these are stored.

use std::cmp::Ordering;
use std::ops::Range;

/// Of some positions the likeliest next tokens, and what all others have together.
///
/// From these and a student's logits its divergence is that of two distributions over `k + 1` outcomes: the `k` tokens, and *another
/// token*. It is zero where the student is as good as the teacher, never more than that over the whole vocabulary, and equal to it
/// where `k` is the vocabulary. A sum over the `k` tokens alone has no such minimum: it teaches a student that no other token ever comes
/// (Anshumann et al. 2025, <https://arxiv.org/abs/2503.16870>, who call that outcome a ghost token).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopTokens {
    /// Tokens of each position.
    pub k: usize,
    /// The tokens, the likeliest first, `[positions, k]`.
    pub ids: Vec<u32>,
    /// The logarithm of each one's probability, in nats, `[positions, k]`.
    pub log_probs: Vec<f32>,
    /// The logarithm of what all other tokens have together, `[positions]`; minus infinity where there are no others.
    pub rest: Vec<f32>,
}

/// Some positions of [`TopTokens`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TopRows<'a> {
    pub(crate) k: usize,
    pub(crate) ids: &'a [u32],
    pub(crate) log_probs: &'a [f32],
    pub(crate) rest: &'a [f32],
}

impl TopTokens {
    /// None yet, of `k` tokens each.
    pub fn new(k: usize) -> Self {
        Self { k, ..Self::default() }
    }

    /// Positions.
    pub fn positions(&self) -> usize {
        self.rest.len()
    }

    /// Whether they are logarithms of probabilities, from a position on, of `vocab` tokens.
    pub(crate) fn are_log_probs(&self, from: usize, vocab: usize) -> bool {
        let is_log = |&x: &f32| x.is_finite() && x < 1e-2;
        let rest = self.k >= vocab || self.rest[from..].iter().all(is_log);
        rest && self.log_probs[from * self.k..].iter().all(is_log)
    }

    /// Those of a row of logits. Of tokens that are as likely, the first come first.
    pub(crate) fn of_logits(logits: &[f32], k: usize) -> Self {
        let k = k.min(logits.len());
        let before = |a: &u32, b: &u32| -> Ordering {
            logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b))
        };
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        if (1..order.len()).contains(&k) {
            order.select_nth_unstable_by(k, before);
        }
        let (top, others) = order.split_at_mut(k);
        top.sort_unstable_by(before);
        let [of_top, of_others] = [&*top, &*others].map(|ids| log_sum_exp(ids.iter().map(|&id| logits[id as usize])));
        let whole = of_top.max(of_others) + (-(of_top - of_others).abs()).exp().ln_1p();
        let log_prob = |&id: &u32| (f64::from(logits[id as usize]) - whole) as f32;
        Self {
            k,
            log_probs: top.iter().map(log_prob).collect(),
            ids: top.to_vec(),
            rest: vec![(of_others - whole) as f32],
        }
    }

    /// Puts other positions behind these, which have as many tokens each.
    pub(crate) fn extend(&mut self, more: &TopRows<'_>) {
        self.ids.extend(more.ids);
        self.log_probs.extend(more.log_probs);
        self.rest.extend(more.rest);
    }

    /// Some of the positions.
    pub(crate) fn rows(&self, rows: Range<usize>) -> TopRows<'_> {
        let tokens = rows.start * self.k..rows.end * self.k;
        TopRows {
            k: self.k,
            ids: &self.ids[tokens.clone()],
            log_probs: &self.log_probs[tokens],
            rest: &self.rest[rows],
        }
    }
}

impl<'a> TopRows<'a> {
    /// The tokens of one of them, the logarithms of their probabilities, and that of the rest.
    pub(crate) fn row(&self, row: usize) -> (&'a [u32], &'a [f32], f32) {
        let tokens = row * self.k..(row + 1) * self.k;
        (&self.ids[tokens.clone()], &self.log_probs[tokens], self.rest[row])
    }
}

/// `ln Σ exp(x)` in f64; minus infinity of nothing.
fn log_sum_exp(x: impl Iterator<Item = f32> + Clone) -> f64 {
    let max = x.clone().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    match max.is_finite() {
        true => max + x.map(|x| (f64::from(x) - max).exp()).sum::<f64>().ln(),
        false => max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_the_rest_is_what_is_left() {
        let logits = [0.5f32, 3.0, -2.0, 3.0, 1.0];
        let total: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
        let top = TopTokens::of_logits(&logits, 3);
        assert_eq!((top.k, top.positions(), &top.ids[..]), (3, 1, &[1, 3, 4][..]));
        for (&id, &log_prob) in top.ids.iter().zip(&top.log_probs) {
            let right = f64::from(logits[id as usize]) - total.ln();
            assert!((f64::from(log_prob) - right).abs() < 1e-6, "{log_prob} instead of {right}");
        }
        let right = ((0.5f64.exp() + (-2.0f64).exp()) / total).ln();
        assert!((f64::from(top.rest[0]) - right).abs() < 1e-6, "{} instead of {right}", top.rest[0]);

        let all = TopTokens::of_logits(&logits, 5);
        assert_eq!((&all.ids[..], all.rest[0]), (&[1, 3, 4, 0, 2][..], f32::NEG_INFINITY));
        assert!((all.log_probs.iter().map(|&l| f64::from(l).exp()).sum::<f64>() - 1.0).abs() < 1e-6);
        // More than there are.
        assert_eq!(TopTokens::of_logits(&logits, 9), all);
    }

    #[test]
    fn a_rest_that_is_hardly_there_is_no_difference_of_large_numbers() {
        let top = TopTokens::of_logits(&[60.0, 0.0, 0.0], 1);
        assert!((top.rest[0] - (2f32.ln() - 60.0)).abs() < 1e-5, "{}", top.rest[0]);
    }

    #[test]
    fn positions_are_put_behind_each_other() {
        let mut both = TopTokens::new(2);
        let [a, b] = [[0.0, 1.0, 2.0], [5.0, 3.0, 1.0]].map(|logits: [f32; 3]| TopTokens::of_logits(&logits, 2));
        both.extend(&a.rows(0..1));
        both.extend(&b.rows(0..1));
        assert_eq!(both.positions(), 2);
        assert_eq!(both.rows(1..2).row(0), b.rows(0..1).row(0));
        assert_eq!(both.rows(0..2).row(0), a.rows(0..1).row(0));
    }
}

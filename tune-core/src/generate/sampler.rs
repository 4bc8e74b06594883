//! The choice of the next token.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::engine::Draw;
pub use crate::engine::SamplerOptions;

/// Draws tokens; the same seed and logits give the same tokens, on a card and on the processor.
///
/// A token is drawn with the probability that its logit, divided by the temperature, has by softmax among those that `top_k` and then
/// `top_p` keep. Probabilities are counted in integers, so that no order of adding them matters: the likeliest token counts as
/// `2^40`, and any other as many as its probability is of that one's, rounded down. So what is less likely than the likeliest token by a
/// factor of `2^40` (10^12) is never drawn. Beside that a probability is within a few millionths of itself, about what f32 leaves of logits.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler that starts from `seed`.
    pub fn new(options: SamplerOptions, seed: u64) -> Self {
        Self { options, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self::new(Draw::LIKELIEST.options, 0)
    }

    /// The temperature at which what it draws has its log-probability: the likeliest token is as likely as the model says.
    pub(crate) fn temperature_of_log_probs(&self) -> f64 {
        if self.options.temperature > 0.0 { self.options.temperature } else { 1.0 }
    }

    /// The next token to draw, by whatever logits come, and with its log-probability at a temperature if that is given.
    pub(crate) fn next(&mut self, scored: Option<f64>) -> Draw {
        let random = if self.options.temperature > 0.0 { self.rng.next_u64() } else { 0 };
        Draw { options: self.options, random, scored }
    }

    /// A token for `logits` `[vocab]`; among equals the lowest id counts as likelier.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.next(None).token(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> [usize; 4] {
        let mut sampler = Sampler::new(SamplerOptions { temperature, top_k, top_p }, 3);
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let mut counts = [0; 4];
        for _ in 0..10_000 {
            counts[sampler.sample(&logits) as usize] += 1;
        }
        counts
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let counts = draws(1.0, None, None);
        for (count, p) in counts.into_iter().zip([0.5, 0.3, 0.15, 0.05]) {
            assert!((count as f64 / 1e4 - p).abs() < 0.02, "{counts:?}");
        }
    }

    #[test]
    fn zero_temperature_takes_the_likeliest() {
        assert_eq!(draws(0.0, None, None), [10_000, 0, 0, 0]);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        assert_eq!(draws(1.0, Some(2), None)[2..], [0, 0]);
        assert_eq!(draws(1.0, None, Some(0.7))[2..], [0, 0]);
        assert_eq!(draws(1.0, Some(1), None), [10_000, 0, 0, 0]);
        let both = draws(1.0, Some(3), Some(0.79));
        assert!(both[1] > 0 && both[2..] == [0, 0], "{both:?}");
    }

    #[test]
    fn equal_logits_give_the_lowest_id() {
        assert_eq!(Sampler::greedy().sample(&[1.0, 2.0, 2.0]), 1);
    }
}

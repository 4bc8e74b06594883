//! The choice of the next token.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; at 0 the likeliest token is always taken.
    pub temperature: f64,
    /// Draws from the `k` likeliest tokens only.
    pub top_k: Option<usize>,
    /// Draws from the fewest likeliest tokens whose probabilities add up to `p`.
    pub top_p: Option<f64>,
}

/// Draws tokens; the same seed and logits give the same tokens.
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
        Self::new(SamplerOptions { temperature: 0.0, top_k: None, top_p: None }, 0)
    }

    /// A token for `logits` `[vocab]`; among equals the lowest id counts as likelier.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if self.options.temperature <= 0.0 {
            return order.into_iter().min_by(likelier).unwrap_or_default();
        }
        if let Some(k) = self.options.top_k.filter(|&k| k > 0 && k < order.len()) {
            order.select_nth_unstable_by(k - 1, likelier);
            order.truncate(k);
        }
        order.sort_unstable_by(likelier);
        let Some(&first) = order.first() else { return 0 };
        let max = f64::from(logits[first as usize]);
        let weight = |id: &u32| ((f64::from(logits[*id as usize]) - max) / self.options.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let kept = match self.options.top_p {
            Some(p) => {
                let mut sum = 0.0;
                let enough = weights.iter().position(|w| {
                    sum += w;
                    sum >= p * total
                });
                enough.map_or(weights.len(), |i| i + 1)
            }
            None => weights.len(),
        };
        let mass: f64 = weights[..kept].iter().sum();
        let mut left = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * mass;
        for (id, weight) in order[..kept].iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return *id;
            }
        }
        order[kept - 1]
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

//! The choice of the next token.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kernels::{exp, simd, sum};

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

impl SamplerOptions {
    /// By the model's own probabilities.
    pub const AS_THEY_ARE: Self = Self { temperature: 1.0, top_k: None, top_p: None };
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

    /// The temperature at which what it draws has its log-probability: the likeliest token is as likely as the model says.
    pub(crate) fn temperature_of_log_probs(&self) -> f64 {
        if self.options.temperature > 0.0 { self.options.temperature } else { 1.0 }
    }

    /// A token for `logits` `[vocab]`; among equals the lowest id counts as likelier.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let SamplerOptions { temperature, top_k, top_p } = self.options;
        let first = likeliest(logits);
        let Some(&max) = logits.get(first as usize).filter(|_| temperature > 0.0) else { return first };
        let max = f64::from(max);
        let most = top_k.filter(|&k| k > 0 && k < logits.len());
        let of_all = match most {
            None => total(logits, max, temperature),
            Some(_) => 0.0,
        };
        let drawn = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        // Mostly the token is among few that are likely: the others need not be put in order.
        for reach in REACHES {
            let least = max - reach * temperature;
            let is_last = reach.is_infinite();
            let near = |id: &u32| f64::from(logits[*id as usize]) >= least;
            let mut order: Vec<u32> = (0..logits.len() as u32).filter(near).collect();
            if !is_last && most.is_some_and(|k| order.len() < k) {
                continue;
            }
            order.sort_unstable_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            order.truncate(most.unwrap_or(order.len()));
            let weight = |id: &u32| ((f64::from(logits[*id as usize]) - max) / temperature).exp();
            let weights: Vec<f64> = order.iter().map(weight).collect();
            let total = if most.is_some() { weights.iter().sum() } else { of_all };
            let enough = top_p.and_then(|p| {
                let mut sum = 0.0;
                weights.iter().position(|w| {
                    sum += w;
                    sum >= p * total
                })
            });
            let kept = enough.map_or(weights.len(), |i| i + 1);
            let mass = if enough.is_some() { weights[..kept].iter().sum() } else { total };
            if enough.is_none() && top_p.is_some() && !is_last {
                continue;
            }
            let mut left = drawn * mass;
            for (id, weight) in order[..kept].iter().zip(&weights) {
                left -= weight;
                if left < 0.0 {
                    return *id;
                }
            }
            if enough.is_some() || is_last {
                return kept.checked_sub(1).map_or(first, |last| order[last]);
            }
        }
        first
    }
}

/// How far below the likeliest token's logit others are looked for, in units of the temperature.
const REACHES: [f64; 3] = [12.0, 40.0, f64::INFINITY];

/// The token with the largest logit, of equals the first.
fn likeliest(logits: &[f32]) -> u32 {
    // Numbers in the order of `f32::total_cmp`.
    let key = |x: f32| {
        let bits = x.to_bits() as i32;
        bits ^ (((bits >> 31) as u32) >> 1) as i32
    };
    let max = simd(
        #[inline(always)]
        || logits.iter().fold(i32::MIN, |max, &x| max.max(key(x))),
    );
    logits.iter().position(|&x| key(x) == max).unwrap_or_default() as u32
}

/// The sum of all weights.
fn total(logits: &[f32], max: f64, temperature: f64) -> f64 {
    let (max, factor) = (max as f32, (1.0 / temperature) as f32);
    simd(
        #[inline(always)]
        || {
            sum(
                [logits],
                #[inline(always)]
                |[l]| f64::from(exp((l - max) * factor)),
            )
        },
    )
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

    /// What [`Sampler::sample`] does, with all tokens in order.
    fn plainly(options: SamplerOptions, logits: &[f32], drawn: f64) -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(options.top_k.unwrap_or(order.len()));
        let weight = |&id: &usize| (f64::from(logits[id] - logits[order[0]]) / options.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let (total, mut sum) = (weights.iter().sum::<f64>(), 0.0);
        let enough = weights.iter().position(|w| {
            sum += w;
            sum >= options.top_p.unwrap_or(2.0) * total
        });
        weights.truncate(enough.map_or(weights.len(), |i| i + 1));
        let mut left = drawn * weights.iter().sum::<f64>();
        let place = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        order[place.unwrap_or(weights.len() - 1)] as u32
    }

    #[test]
    fn unlikely_tokens_are_drawn_as_if_all_were_in_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut seen = std::collections::BTreeSet::new();
        for spread in [0.01, 1.0, 30.0] {
            let logits: Vec<f32> =
                (0..3000).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 * spread).collect();
            for (temperature, top_k, top_p) in
                [(1.0, None, None), (0.7, Some(50), None), (1.3, None, Some(0.95)), (0.2, Some(2999), Some(0.999))]
            {
                let options = SamplerOptions { temperature, top_k, top_p };
                let (mut sampler, mut same) = (Sampler::new(options, 5), ChaCha8Rng::seed_from_u64(5));
                for _ in 0..300 {
                    let drawn = (same.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                    let token = sampler.sample(&logits);
                    assert_eq!(token, plainly(options, &logits, drawn), "{options:?} {spread}");
                    seen.insert(token);
                }
            }
        }
        assert!(seen.len() > 1000);
    }

    #[test]
    fn what_is_no_number_does_no_harm() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(SamplerOptions { temperature, top_k: None, top_p: None }, 0);
            assert_eq!(sampler.sample(&[]), 0);
            assert!(sampler.sample(&[f32::NAN; 3]) < 3);
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 0.0]), 1);
        }
    }
}

//! The choice of a token, in integers: a card draws the same ones by equal logits (`cuda/kernels/sample.cu`), in whatever order it adds.
//!
//! [`tune_reference::draw`] says how a token's weight comes of its logit, and both are compared with it.

use super::{simd, sum};

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

/// One token that is to be drawn: equal logits give the same token wherever it is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// How.
    pub options: SamplerOptions,
    /// What chance says: which part of the mass, of `2^64`. Not used at temperature 0.
    pub random: u64,
    /// The temperature above 0 at which the token's log-probability among all tokens is wanted, if it is.
    pub scored: Option<f64>,
}

/// What a token that is a fraction of the likeliest one's still has: `2^-42`, as a logarithm. Its weight is 0 by then.
const LEAST: f32 = -42.0;

/// How far below the likeliest token's logit others are looked for, as logarithms to base 2. The last has all that have a weight.
const REACHES: [f32; 2] = [-17.0, LEAST];

impl Draw {
    /// The likeliest token, and no log-probability.
    pub const LIKELIEST: Self =
        Self { options: SamplerOptions { temperature: 0.0, top_k: None, top_p: None }, random: 0, scored: None };

    /// Tokens of a vocabulary, at most: the sum of as many weights fits into 64 bits.
    pub const MOST_TOKENS: usize = tune_cuda::Draw::MOST_TOKENS;

    /// What differences of logits are multiplied by, if not always the likeliest token is taken.
    pub(crate) fn factor(&self) -> Option<f32> {
        Some(self.options.temperature).filter(|&temperature| temperature > 0.0).map(factor)
    }

    /// The factor of the temperature at which the log-probability is wanted.
    pub(crate) fn scored_factor(&self) -> Option<f32> {
        self.scored.map(factor)
    }

    /// How many of the likeliest tokens are kept, if not all of them are.
    pub(crate) fn most(&self) -> Option<usize> {
        self.options.top_k.filter(|&k| k > 0)
    }

    /// Which part of the mass the likeliest tokens have that are kept, of `2^64`, if not all of them are. A part of nothing is kept by one
    /// token.
    pub(crate) fn share(&self) -> Option<u64> {
        // The largest product is below 2^64, for there is no number of 53 bits between.
        self.options.top_p.filter(|&p| p < 1.0).map(|p| ((p * 2f64.powi(64)) as u64).max(1))
    }

    /// The token, by `logits` `[vocab]`; among equals the lowest id counts as likelier. Where the largest logit is not finite, its token is
    /// taken.
    ///
    /// # Panics
    /// If there are more than [`Draw::MOST_TOKENS`].
    #[must_use]
    pub fn token(&self, logits: &[f32]) -> u32 {
        assert!(logits.len() <= Self::MOST_TOKENS, "a token is to be drawn of {}", logits.len());
        let first = likeliest(logits);
        let finite = logits.get(first as usize).filter(|largest| largest.is_finite());
        let (Some(&largest), Some(factor)) = (finite, self.factor()) else { return first };
        let (most, share) = (self.most(), self.share());
        let power = |id: u32| (logits[id as usize] - largest) * factor;
        let of_all = if most.is_none() { total(logits, largest, factor) } else { 0 };
        // Mostly the token is among few that are likely: the others need not be put in order.
        for reach in REACHES {
            let is_last = reach == LEAST;
            let has_weight = |id: &u32| power(*id) >= reach && weight(power(*id)) > 0;
            let mut order: Vec<u32> = (0..logits.len() as u32).filter(has_weight).collect();
            if !is_last && most.is_some_and(|k| order.len() < k) {
                continue;
            }
            order.sort_unstable_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            order.truncate(most.unwrap_or(order.len()));
            let mut up_to = 0;
            let sums = order.iter().map(|&id| {
                up_to += weight(power(id));
                up_to
            });
            let sums: Vec<u64> = sums.collect();
            let mut mass = if most.is_some() { up_to } else { of_all };
            if let Some(share) = share {
                let enough = (u128::from(share) * u128::from(mass)).div_ceil(1 << 64);
                match sums.iter().find(|&&sum| u128::from(sum) >= enough) {
                    Some(&reached) => mass = reached,
                    None => continue,
                }
            }
            let at = ((u128::from(self.random) * u128::from(mass)) >> 64) as u64;
            if let Some(place) = sums.iter().position(|&sum| sum > at) {
                return order[place];
            }
        }
        first
    }
}

/// `log2(e) / temperature`, so that no difference of logits times it is a number that is none.
fn factor(temperature: f64) -> f32 {
    ((std::f64::consts::LOG2_E / temperature) as f32).clamp(f32::MIN_POSITIVE, f32::MAX)
}

/// `⌊2^(40 + z)⌋`, see [`tune_reference::draw::weight`]; `z` is not above 0.
#[inline(always)]
fn weight(z: f32) -> u64 {
    /// Adding and subtracting it rounds to an integer, which the low bits are.
    const ROUND: f32 = 12_582_912.0;
    let shifted = z + ROUND;
    let f = z - (shifted - ROUND);
    let mut y = 1.545_316_3e-4_f32;
    for c in [1.339_086_3e-3, 9.618_083e-3, 5.550_357e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0] {
        y = y * f + c;
    }
    let whole = (y * 16_777_216.0) as i32 as u64;
    let weight = (whole << 16) >> (ROUND.to_bits().wrapping_sub(shifted.to_bits()) & 63);
    if z >= LEAST { weight } else { 0 }
}

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
fn total(logits: &[f32], largest: f32, factor: f32) -> u64 {
    simd(
        #[inline(always)]
        || {
            sum(
                [logits],
                #[inline(always)]
                |[l]| weight((l - largest) * factor),
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use tune_reference::draw as reference;

    use super::*;

    /// Numbers that look random.
    fn mixed(i: u64) -> u64 {
        tune_reference::dropout::mix(17, i)
    }

    fn right(draw: &Draw, logits: &[f32]) -> u32 {
        let how = reference::Draw {
            random: draw.random,
            share: draw.share().unwrap_or(0),
            most: draw.most().unwrap_or(0),
            factor: draw.factor().unwrap_or(0.0),
        };
        reference::token(logits, how) as u32
    }

    #[test]
    fn weights_are_those_of_the_reference() {
        for i in 0..=430_000 {
            let z = -(i as f32) / 10_000.0;
            assert_eq!(weight(z), reference::weight(z), "{z}");
        }
        for z in [0.0, -0.0, f32::NEG_INFINITY, f32::NAN, f32::MIN, -f32::MIN_POSITIVE, -1e-40] {
            assert_eq!(weight(z), reference::weight(z), "{z}");
        }
    }

    #[test]
    fn tokens_are_those_of_the_reference() {
        let mut seen = std::collections::BTreeSet::new();
        for (seed, vocab) in [(1, 1), (2, 2), (3, 257), (4, 3000), (5, 20_000)] {
            for spread in [0.0f32, 0.01, 1.0, 30.0, 200.0] {
                let unit = |i: u64| (mixed(seed << 32 | i) >> 40) as f32 / (1 << 24) as f32;
                // Of each second row, many logits are equal.
                let step = if seed % 2 == 0 { 64.0 } else { 1e7 };
                let logits: Vec<f32> = (0..vocab).map(|i| (unit(i) * step).round() / step * spread).collect();
                let all = [None, Some(0), Some(1), Some(50), Some(vocab as usize - 1), Some(usize::MAX)];
                let shares = [None, Some(0.0), Some(0.3), Some(0.95), Some(0.999_999), Some(1.0), Some(f64::NAN)];
                for (i, temperature) in
                    [1.0, 0.7, 0.05, 1e-60, 4.0, 1e60, f64::INFINITY, 0.0, -1.0].into_iter().enumerate()
                {
                    for (j, top_k) in all.into_iter().enumerate() {
                        let chance = mixed((i * 6 + j) as u64 + seed);
                        let options =
                            SamplerOptions { temperature, top_k, top_p: shares[chance as usize % shares.len()] };
                        let random = [mixed(chance), u64::MAX, 0][chance as usize / 7 % 3];
                        let draw = Draw { options, random, scored: None };
                        let token = draw.token(&logits);
                        assert_eq!(token, right(&draw, &logits), "{draw:?} {vocab} {spread}");
                        seen.insert(token);
                    }
                }
            }
        }
        assert!(seen.len() > 100, "{}", seen.len());
    }

    #[test]
    fn what_is_no_number_does_no_harm() {
        let minus_nan = -f32::NAN.abs();
        let rows = [
            vec![f32::NAN; 3],
            vec![1.0, f32::NAN],
            vec![minus_nan, 1.0, 2.0],
            vec![f32::NEG_INFINITY, 0.0],
            vec![f32::NEG_INFINITY; 2],
            vec![1.0, f32::INFINITY, f32::INFINITY],
            vec![f32::MAX, f32::MIN, f32::MAX],
            vec![-0.0, 0.0],
        ];
        for temperature in [0.0, 1.0, 1e-60, f64::INFINITY, f64::NAN] {
            for (i, logits) in rows.iter().enumerate() {
                let options = SamplerOptions { temperature, top_k: None, top_p: Some(0.9) };
                let draw = Draw { options, random: mixed(i as u64), scored: None };
                assert_eq!(draw.token(logits), right(&draw, logits), "{draw:?} {logits:?}");
            }
            assert_eq!(Draw::LIKELIEST.token(&[]), 0);
        }
    }
}

//! The choice of a token, in integers: equal logits give the same token on every machine, in whatever order it adds.
//!
//! With `z = (logit - the largest) · factor` and `factor = log2(e) / temperature`, a token's weight is `⌊2^(40 + z)⌋`. `z` and `2^z` are
//! f32, by operations that round once each. So a weight differs from the exact one by at most a few millionths of itself, and by one of
//! the `2^40` that the likeliest token has; tokens that are less likely than that are never drawn.

/// How a token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Which part of the mass that is kept, of `2^64`: the token at which the running sum of weights passes it.
    pub random: u64,
    /// The fewest first tokens are kept that have this part of the mass, of `2^64`; 0 keeps all.
    pub share: u64,
    /// So many first tokens are kept, before `share` is asked for; 0 keeps all.
    pub most: usize,
    /// `log2(e) / temperature`; at 0 the likeliest token is drawn.
    pub factor: f32,
}

/// The token that is drawn by these logits. Tokens come in the order of `f32::total_cmp`, the larger first, of equal ones the lower
/// id. Where the largest is not finite, it is drawn.
///
/// # Panics
/// If there are no logits, or `2^24` and more.
pub fn token(logits: &[f32], how: Draw) -> usize {
    assert!((1..1 << 24).contains(&logits.len()), "token: {} logits", logits.len());
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let largest = logits[order[0]];
    if how.factor == 0.0 || !largest.is_finite() {
        return order[0];
    }
    let weight = |id: usize| u128::from(weight((logits[id] - largest) * how.factor));
    order.retain(|&id| weight(id) > 0);
    if how.most > 0 {
        order.truncate(how.most);
    }
    let sum = |order: &[usize]| order.iter().map(|&id| weight(id)).sum::<u128>();
    if how.share > 0 {
        let enough = u128::from(how.share) * sum(&order);
        let mut up_to = 0;
        let fewest = order.iter().position(|&id| {
            up_to += weight(id);
            up_to << 64 >= enough
        });
        order.truncate(fewest.map_or(order.len(), |last| last + 1));
    }
    let at = (u128::from(how.random) * sum(&order)) >> 64;
    let mut up_to = 0;
    let drawn = order.iter().find(|&&id| {
        up_to += weight(id);
        up_to > at
    });
    *drawn.unwrap_or(&order[0])
}

/// `⌊2^(40 + z)⌋` for `z` from -42 to 0, and 0 below and for what is no number. `2^z = 2^n · 2^f` with the nearest integer `n`, and
/// `2^f = 1 + f · q(f)`, where `q` of degree 5 takes on `(2^f - 1) / f` at the nodes of Chebyshev.
pub fn weight(z: f32) -> u64 {
    if z.is_nan() || z < -42.0 {
        return 0;
    }
    let n = z.round_ties_even();
    let f = z - n;
    let mut y = 1.545_316_3e-4_f32;
    for c in [1.339_086_3e-3, 9.618_083e-3, 5.550_357e-2, 0.240_226_5, std::f32::consts::LN_2, 1.0] {
        y = y * f + c;
    }
    ((y * 16_777_216.0) as u64) << 16 >> (-n) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probability of a token is that of the softmax, but for what is rounded.
    #[test]
    fn weights_are_those_of_the_softmax() {
        for temperature in [0.3, 1.0, 5.0] {
            let factor = (std::f64::consts::LOG2_E / temperature) as f32;
            let logits: Vec<f32> = (0..50_000).map(|i| ((i * 7919 % 50_000) as f32 / 50_000.0).ln() * 3.0).collect();
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact: Vec<f64> =
                logits.iter().map(|&x| ((f64::from(x) - f64::from(largest)) / temperature).exp()).collect();
            let found: Vec<f64> = logits.iter().map(|&x| weight((x - largest) * factor) as f64).collect();
            let (of_exact, of_found) = (exact.iter().sum::<f64>(), found.iter().sum::<f64>());
            let apart = exact.iter().zip(&found).map(|(e, f)| (e / of_exact - f / of_found).abs()).sum::<f64>() / 2.0;
            assert!(apart < 3e-7, "temperature {temperature}: the distributions are {apart:e} apart");
        }
    }

    #[test]
    fn the_ends_of_weights() {
        for (z, right) in [(0.0, 1 << 40), (-1.0, 1 << 39), (-40.0, 1), (-40.5, 0), (-43.0, 0), (f32::NAN, 0)] {
            assert_eq!(weight(z), right, "{z}");
        }
        assert_eq!(weight(f32::NEG_INFINITY), 0);
    }

    #[test]
    fn what_is_kept() {
        let logits = [0.15f32.ln(), 0.5f32.ln(), f32::NAN.copysign(-1.0), 0.3f32.ln(), 0.05f32.ln()];
        let factor = std::f32::consts::LOG2_E;
        let part = |p: f64| (p * 2f64.powi(64)) as u64;
        let all = |random| token(&logits, Draw { random: part(random), share: 0, most: 0, factor });
        assert_eq!([0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96].map(all), [1, 1, 3, 3, 0, 0, 4]);
        let first = |most, random| token(&logits, Draw { random: part(random), share: 0, most, factor });
        assert_eq!([first(1, 0.999), first(2, 0.62), first(2, 0.63), first(9, 0.999)], [1, 1, 3, 4]);
        let share = |p, random| token(&logits, Draw { random: part(random), share: part(p), most: 0, factor });
        assert_eq!([share(0.49, 0.999), share(0.51, 0.999), share(0.81, 0.999), share(1e-9, 0.999)], [1, 3, 0, 1]);
        let both = Draw { random: part(0.999), share: part(0.6), most: 2, factor };
        // Of the two first, 0.5 / 0.8 is enough.
        assert_eq!([token(&logits, both), token(&logits, Draw { most: 0, ..both })], [1, 3]);
        assert_eq!(token(&logits, Draw { factor: 0.0, ..both }), 1);
        assert_eq!(token(&[1.0, 2.0, 2.0], Draw { factor: 0.0, ..both }), 1);
        assert_eq!(token(&[1.0, f32::NAN], both), 1);
        assert_eq!(token(&[f32::NEG_INFINITY, 0.0], Draw { random: 0, share: 0, most: 0, factor }), 1);
    }
}

//! A mixture of experts: which experts a token goes to, and what comes back to it (Shazeer et al. 2017,
//! <https://arxiv.org/abs/1701.06538>).

use std::cmp::Reverse;

use super::view::{View, ViewMut};
use super::{Element, parallel, simd};

/// Rows that one task handles.
const ROWS: usize = 32;

/// Which experts each token goes to. The places are numbered expert by expert, and by token within each.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Routes {
    /// Experts that a token goes to.
    pub(crate) chosen: usize,
    /// The experts of each token, `[tokens, chosen]`.
    pub(crate) experts: Vec<u32>,
    /// How much each counts, `[tokens, chosen]`.
    pub(crate) weights: Vec<f64>,
    /// The place of each token at each of its experts, `[tokens, chosen]`.
    pub(crate) places: Vec<usize>,
    /// The token at each place.
    pub(crate) tokens: Vec<usize>,
    /// The first place of each expert, and the number of places at the end.
    pub(crate) starts: Vec<usize>,
}

impl Routes {
    /// Places for `experts` `[tokens, chosen]`, which are numbers below `count`.
    pub(crate) fn new(experts: Vec<u32>, weights: Vec<f64>, chosen: usize, count: usize) -> Self {
        let mut starts = vec![0; count + 1];
        for &expert in &experts {
            starts[expert as usize + 1] += 1;
        }
        for i in 0..count {
            starts[i + 1] += starts[i];
        }
        let (mut next, mut tokens) = (starts.clone(), vec![0; experts.len()]);
        let place = |(i, &expert): (usize, &u32)| {
            let place = next[expert as usize];
            next[expert as usize] += 1;
            tokens[place] = i / chosen;
            place
        };
        let places = experts.iter().enumerate().map(place).collect();
        Self { chosen, experts, weights, places, tokens, starts }
    }

    /// The weights in the order of the places.
    pub(crate) fn weights_of_places(&self) -> Vec<f64> {
        let mut weights = vec![0.0; self.places.len()];
        for (&place, &weight) in self.places.iter().zip(&self.weights) {
            weights[place] = weight;
        }
        weights
    }
}

/// The `chosen` most probable experts of each row of `logits` `[tokens, count]`, of equal ones the first. Their weights are
/// their probabilities over all experts, divided by their sum if `renormalized`. Experts are compared by their logits, so a card chooses
/// the same ones, whatever its exponential function rounds.
pub(crate) fn route(logits: &[f32], count: usize, chosen: usize, renormalized: bool) -> Routes {
    let (mut experts, mut weights) = (Vec::new(), Vec::new());
    for row in logits.chunks_exact(count) {
        let p = softmax(row);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&expert| Reverse(preference(row[expert])));
        order.truncate(chosen);
        let total = if renormalized { order.iter().map(|&e| p[e]).sum() } else { 1.0 };
        weights.extend(order.iter().map(|&e| p[e] / total));
        experts.extend(order.iter().map(|&e| e as u32));
    }
    Routes::new(experts, weights, chosen, count)
}

/// The order of logits as numbers: zeros of both signs are the same, and what is no number comes before all others.
fn preference(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    match logit.is_nan() {
        true => 0,
        false if bits >> 31 == 1 => !bits,
        false => bits | 1 << 31,
    }
}

/// The gradient of the logits for that of the weights, `g` of each place; which experts are chosen counts as fixed.
/// With `q` the gradient of the probabilities `p` it is `p (q - Σ q p)`; renormalized, `q` is `(g - Σ g w) / Σ p`, sums
/// being over the chosen ones.
pub(crate) fn route_back<T: Element>(
    logits: &[f32],
    count: usize,
    routes: &Routes,
    renormalized: bool,
    g: &[f32],
    y: &mut [T],
) {
    let chosen = routes.chosen;
    for (i, (row, y)) in logits.chunks_exact(count).zip(y.chunks_exact_mut(count)).enumerate() {
        let of_row = i * chosen..(i + 1) * chosen;
        let (experts, weights) = (&routes.experts[of_row.clone()], &routes.weights[of_row.clone()]);
        let g: Vec<f64> = routes.places[of_row].iter().map(|&place| f64::from(g[place])).collect();
        let p = softmax(row);
        let mut q = vec![0.0; count];
        let mean: f64 = g.iter().zip(weights).map(|(g, w)| g * w).sum();
        let total: f64 = experts.iter().map(|&e| p[e as usize]).sum();
        for (&expert, &g) in experts.iter().zip(&g) {
            q[expert as usize] = if renormalized { (g - mean) / total } else { g };
        }
        let mean: f64 = q.iter().zip(&p).map(|(q, p)| q * p).sum();
        for ((y, p), q) in y.iter_mut().zip(&p).zip(&q) {
            *y = T::from_f32((p * (q - mean)) as f32);
        }
    }
}

fn softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    let exp: Vec<f64> = x.iter().map(|&v| (f64::from(v) - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// `y[token] = onto[token] + Σ weight · x[place]` over the places of a token; without `weighted` all weights are one.
pub(crate) fn combine<T: Element>(
    x: View<'_, T>,
    routes: &Routes,
    weighted: bool,
    onto: Option<View<'_, T>>,
    y: ViewMut<'_, T>,
) {
    let chosen = routes.chosen;
    y.each_task(ROWS, |first, mut y| {
        let mut sums = vec![0f32; y.cols()];
        for row in 0..y.rows() {
            let token = first + row;
            match onto {
                Some(onto) => sums.iter_mut().zip(onto.row(token)).for_each(|(s, o)| *s = o.to_f32()),
                None => sums.fill(0.0),
            }
            for i in token * chosen..(token + 1) * chosen {
                let weight = if weighted { routes.weights[i] as f32 } else { 1.0 };
                let x = x.row(routes.places[i]);
                simd(
                    #[inline(always)]
                    || sums.iter_mut().zip(x).for_each(|(s, x)| *s += weight * x.to_f32()),
                );
            }
            y.row(row).iter_mut().zip(&sums).for_each(|(y, &s)| *y = T::from_f32(s));
        }
    });
}

/// Multiplies each row by a factor.
pub(crate) fn scale_rows<T: Element>(x: ViewMut<'_, T>, factors: &[f64]) {
    x.each_task(ROWS, |first, mut x| {
        for row in 0..x.rows() {
            let factor = factors[first + row] as f32;
            x.row(row).iter_mut().for_each(|x| *x = T::from_f32(x.to_f32() * factor));
        }
    });
}

/// The product of each row with the same row of another matrix, into `y`.
pub(crate) fn row_dots<T: Element>(a: View<'_, T>, b: View<'_, T>, y: &mut [f32]) {
    let dot = |row: usize| {
        simd(
            #[inline(always)]
            || {
                super::sum(
                    [a.row(row), b.row(row)],
                    #[inline(always)]
                    |[a, b]| a.to_f32() * b.to_f32(),
                )
            },
        )
    };
    parallel::each_chunk(y, ROWS, |chunk, y| {
        y.iter_mut().enumerate().for_each(|(i, y)| *y = dot(chunk * ROWS + i));
    });
}

/// Adds up the rows of `x` `[m, n]` into `y` `[n]`, in an order that depends on their number alone.
pub(crate) fn sum_rows<T: Element>(x: View<'_, T>, y: &mut [f32]) {
    const COLS: usize = 64;
    parallel::each_chunk(y, COLS, |chunk, y| {
        y.fill(0.0);
        for row in 0..x.rows() {
            y.iter_mut().zip(&x.row(row)[chunk * COLS..]).for_each(|(y, x)| *y += x.to_f32());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cuda/harness/tests/routes.cpp` asks the same of a card's kernel.
    #[test]
    fn of_equal_logits_the_first_is_chosen() {
        let (tiny, none) = (1e-20, f32::NEG_INFINITY);
        // All but the first and the last have the same probability to the last bit.
        let routes = route(&[none, -0.0, 0.0, tiny, -tiny, 1.0], 6, 6, true);
        assert_eq!(routes.experts, [5, 3, 1, 2, 4, 0]);
        // What is no number is the last choice, and only that.
        assert_eq!(route(&[f32::NAN, none, 2.0, -1.0], 4, 3, true).experts, [2, 3, 1]);
        assert_eq!(route(&[f32::NAN; 3], 3, 2, false).experts, [0, 1]);
    }

    #[test]
    fn places_are_those_of_experts_one_after_the_other() {
        let routes = route(&[0.0, 2.0, 1.0, 3.0, 0.0, 1.0, 0.0, 1.0, 2.0], 3, 2, true);
        assert_eq!((&routes.experts[..], &routes.starts[..]), (&[1, 2, 0, 2, 2, 1][..], &[0, 1, 3, 6][..]));
        assert_eq!((&routes.places[..], &routes.tokens[..]), (&[1, 3, 0, 4, 5, 2][..], &[1, 0, 2, 0, 1, 2][..]));
        for (place, weight) in routes.weights_of_places().into_iter().enumerate() {
            let choice = routes.places.iter().position(|&of| of == place).unwrap();
            assert_eq!(weight.to_bits(), routes.weights[choice].to_bits());
        }
    }
}

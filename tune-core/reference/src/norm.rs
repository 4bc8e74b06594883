//! Root-mean-square normalization (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>).

use crate::{View, ViewMut};

/// What a norm is told beside its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub eps: f64,
    /// The factor is `1 + weight`, as in Gemma, and not the weight itself.
    pub from_one: bool,
}

impl Norm {
    fn factor(&self, weight: f64) -> f64 {
        if self.from_one { 1.0 + weight } else { weight }
    }

    fn inverse_rms(&self, x: &[f64]) -> f64 {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        1.0 / (mean + self.eps).sqrt()
    }
}

/// `y = x / rms(x) · factor (+ onto)`, with `rms(x) = √(mean(x²) + eps)` of each row. `x`, `y`, `onto` `[m, c · width]`, `weight`
/// `[width]`: a row of `c` times the weight's length is `c` norms, one for each head.
pub fn forward(x: View<'_>, weight: &[f64], norm: Norm, onto: Option<View<'_>>, y: &mut ViewMut<'_>) {
    check(x, weight, (y.rows(), y.cols()));
    let width = weight.len();
    for i in 0..x.rows() {
        for (c, (x, y)) in x.row(i).chunks_exact(width).zip(y.row(i).chunks_exact_mut(width)).enumerate() {
            let r = norm.inverse_rms(x);
            for (j, y) in y.iter_mut().enumerate() {
                let other = onto.map_or(0.0, |o| o.row(i)[c * width + j]);
                *y = x[j] * r * norm.factor(weight[j]) + other;
            }
        }
    }
}

/// The gradients of [`forward`] for that of its result, `g`. With `r = 1 / rms` and `f` the factor, that of `x` is
/// `r (g f - x r² mean(g f x))`, added to `into`; that of the weight, the sum over rows of `g x r`, is added to `own`.
/// That of `onto` is `g`.
pub fn backward(
    x: View<'_>,
    weight: &[f64],
    norm: Norm,
    g: View<'_>,
    into: &mut ViewMut<'_>,
    mut own: Option<&mut [f64]>,
) {
    check(x, weight, (g.rows(), g.cols()));
    check(x, weight, (into.rows(), into.cols()));
    let width = weight.len();
    for i in 0..x.rows() {
        let heads = x.row(i).chunks_exact(width).zip(g.row(i).chunks_exact(width));
        for ((x, g), into) in heads.zip(into.row(i).chunks_exact_mut(width)) {
            let r = norm.inverse_rms(x);
            let mean = (0..width).map(|j| g[j] * norm.factor(weight[j]) * x[j]).sum::<f64>() / width as f64;
            for j in 0..width {
                into[j] += r * (g[j] * norm.factor(weight[j]) - x[j] * r * r * mean);
            }
            if let Some(own) = own.as_deref_mut() {
                (0..width).for_each(|j| own[j] += g[j] * x[j] * r);
            }
        }
    }
}

fn check(x: View<'_>, weight: &[f64], other: (usize, usize)) {
    let fits = (x.rows(), x.cols()) == other && x.cols().is_multiple_of(weight.len());
    assert!(fits, "norm: shapes that do not fit");
}

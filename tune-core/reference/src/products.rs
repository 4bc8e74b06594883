//! Products of matrices. Each is added to its result: a layer with an adapter and a bias is a sum of such terms, and
//! whoever wants one product alone clears the result first.

use crate::{View, ViewMut};

/// `y += factor · x · wᵀ`: a layer on the way up. `x` `[m, k]`, `w` `[n, k]`, `y` `[m, n]`.
pub fn up(x: View<'_>, w: View<'_>, factor: f64, y: &mut ViewMut<'_>) {
    assert!(x.cols() == w.cols() && y.rows() == x.rows() && y.cols() == w.rows(), "up: shapes that do not fit");
    for i in 0..x.rows() {
        for (j, y) in y.row(i).iter_mut().enumerate() {
            *y += factor * dot(x.row(i), w.row(j));
        }
    }
}

/// `y += factor · g · w`: a gradient on the way down. `g` `[m, n]`, `w` `[n, k]`, `y` `[m, k]`.
pub fn down(g: View<'_>, w: View<'_>, factor: f64, y: &mut ViewMut<'_>) {
    assert!(g.cols() == w.rows() && y.rows() == g.rows() && y.cols() == w.cols(), "down: shapes that do not fit");
    for i in 0..g.rows() {
        for (n, g) in g.row(i).iter().enumerate() {
            y.row(i).iter_mut().zip(w.row(n)).for_each(|(y, w)| *y += factor * g * w);
        }
    }
}

/// `y += factor · gᵀ · x`: the gradient of a weight. `g` `[m, n]`, `x` `[m, k]`, `y` `[n, k]`.
pub fn across(g: View<'_>, x: View<'_>, factor: f64, y: &mut ViewMut<'_>) {
    assert!(g.rows() == x.rows() && y.rows() == g.cols() && y.cols() == x.cols(), "across: shapes that do not fit");
    for i in 0..g.rows() {
        for (n, g) in g.row(i).iter().enumerate() {
            y.row(n).iter_mut().zip(x.row(i)).for_each(|(y, x)| *y += factor * g * x);
        }
    }
}

/// `y += 1 · bᵀ`: the same bias for every row. `b` `[n]`, `y` `[m, n]`.
pub fn bias(b: &[f64], y: &mut ViewMut<'_>) {
    assert_eq!(b.len(), y.cols(), "bias: shapes that do not fit");
    for i in 0..y.rows() {
        y.row(i).iter_mut().zip(b).for_each(|(y, b)| *y += b);
    }
}

/// The gradient of a bias, added to `own` `[n]`: the sum of the rows of `g` `[m, n]`.
pub fn bias_back(g: View<'_>, own: &mut [f64]) {
    assert_eq!(own.len(), g.cols(), "bias_back: shapes that do not fit");
    for i in 0..g.rows() {
        own.iter_mut().zip(g.row(i)).for_each(|(own, g)| *own += g);
    }
}

/// The sum of the products of two rows.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

//! Logits that stay below a cap (Gemma 2, <https://arxiv.org/abs/2408.00118>): `y = cap · tanh(x / cap)`.

use crate::ViewMut;

/// The capped value of `x`.
pub fn cap(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

/// The slope where the capped value is `y`: `1 - (y / cap)²`.
pub fn slope(y: f64, cap: f64) -> f64 {
    1.0 - (y / cap) * (y / cap)
}

/// Caps every element in place.
pub fn forward(x: &mut ViewMut<'_>, at: f64) {
    for i in 0..x.rows() {
        x.row(i).iter_mut().for_each(|x| *x = cap(*x, at));
    }
}

/// Turns the gradient `g` of capped values `y` into that of what was capped, in place.
pub fn backward(y: crate::View<'_>, at: f64, g: &mut ViewMut<'_>) {
    assert_eq!((y.rows(), y.cols()), (g.rows(), g.cols()), "softcap: shapes that do not fit");
    for i in 0..g.rows() {
        g.row(i).iter_mut().zip(y.row(i)).for_each(|(g, &y)| *g *= slope(y, at));
    }
}

//! Gated activations (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use crate::{View, ViewMut};

/// The activation of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`, with `σ(x) = 1 / (1 + e⁻ˣ)`.
    Silu,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))` (Hendrycks & Gimpel 2016, <https://arxiv.org/abs/1606.08415>).
    GeluTanh,
}

impl Activation {
    /// Its value at `x`, and its slope there.
    pub fn at(self, x: f64) -> (f64, f64) {
        match self {
            Self::Silu => {
                let s = 1.0 / (1.0 + (-x).exp());
                (x * s, s * (1.0 + x * (1.0 - s)))
            }
            Self::GeluTanh => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let t = (root * (x + 0.044_715 * x * x * x)).tanh();
                let inner = root * (1.0 + 3.0 * 0.044_715 * x * x);
                (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
            }
        }
    }
}

/// `y = act(gate) · up`, element by element; all `[m, n]`.
pub fn forward(act: Activation, gate: View<'_>, up: View<'_>, y: &mut ViewMut<'_>) {
    check(gate, up, (y.rows(), y.cols()));
    for i in 0..gate.rows() {
        for (j, y) in y.row(i).iter_mut().enumerate() {
            *y = act.at(gate.row(i)[j]).0 * up.row(i)[j];
        }
    }
}

/// Stores the gradients of `gate` and `up` for that of the result, `g`: `g · up · act'(gate)` and `g · act(gate)`.
pub fn backward(
    act: Activation,
    gate: View<'_>,
    up: View<'_>,
    g: View<'_>,
    of_gate: &mut ViewMut<'_>,
    of_up: &mut ViewMut<'_>,
) {
    for shape in [(g.rows(), g.cols()), (of_gate.rows(), of_gate.cols()), (of_up.rows(), of_up.cols())] {
        check(gate, up, shape);
    }
    for i in 0..gate.rows() {
        for j in 0..gate.cols() {
            let (value, slope) = act.at(gate.row(i)[j]);
            of_gate.row(i)[j] = g.row(i)[j] * up.row(i)[j] * slope;
            of_up.row(i)[j] = g.row(i)[j] * value;
        }
    }
}

fn check(gate: View<'_>, up: View<'_>, other: (usize, usize)) {
    let shapes = [(gate.rows(), gate.cols()), (up.rows(), up.cols())];
    assert_eq!(shapes, [other; 2], "gate: shapes that do not fit");
}

//! Fake quantization (Jacob et al. 2018, <https://arxiv.org/abs/1712.05877>): a group of numbers, rounded to levels that
//! depend on the group alone.

/// The levels `x = s (q - z)` of a group whose least number is `a` and whose largest is `b`, for integers `q`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// `-8 <= q <= 7`, `z = 0`, `s = max(|a|, |b|) / 7.5`.
    Int4,
    /// `0 <= q <= 15`, `x = s (q - 8) + c`, with `s = (b - a) / 15` and `c = a + 8 s`, both rounded to bf16.
    Int4Affine,
    /// `-128 <= q <= 127`, with zero between `a` and `b`: `s = (b - a) / 255` and `z = -128 - a / s`, rounded.
    Int8,
}

/// An integer that is nearest to a number of the group, the levels' ends, and what an integer stands for.
type Grid = (Box<dyn Fn(f64) -> f64>, [f64; 2], Box<dyn Fn(f64) -> f64>);

impl Levels {
    fn of(self, x: &[f64]) -> Grid {
        let a = x.iter().copied().fold(f64::INFINITY, f64::min);
        let b = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Self::Int4 => {
                let s = (a.abs().max(b.abs()) / 7.5).max(f32::MIN_POSITIVE.into());
                (Box::new(move |x: f64| (x * (1.0 / s)).round_ties_even()), [-8.0, 7.0], Box::new(move |q: f64| q * s))
            }
            Self::Int4Affine => {
                let exact = ((b - a) / 15.0).max(1e-6);
                let (s, c) = (bf16(exact), bf16(a + 8.0 * exact));
                let lowest = bf16(c - 8.0 * s);
                let integer = move |x: f64| ((x - lowest) / s).round_ties_even();
                (Box::new(integer), [0.0, 15.0], Box::new(move |q: f64| s * (q - 8.0) + c))
            }
            Self::Int8 => {
                let (a, b) = (a.min(0.0), b.max(0.0));
                let s = ((b - a) / 255.0).max(f32::EPSILON.into());
                let z = (-128.0 - (a / s).round_ties_even()).clamp(-128.0, 127.0);
                let integer = move |x: f64| (x * (1.0 / s)).round_ties_even() + z;
                (Box::new(integer), [-128.0, 127.0], Box::new(move |q: f64| s * (q - z)))
            }
        }
    }
}

/// To the nearest number that bf16 has, ties to even.
fn bf16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    f64::from(f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000))
}

/// The group `x` rounded, in its place.
pub fn round(levels: Levels, x: &mut [f64]) {
    let (integer, [lowest, highest], number) = levels.of(x);
    x.iter_mut().for_each(|x| *x = number(integer(*x).clamp(lowest, highest)));
}

/// The gradient of the group `x`, for that of the rounded one, in its place: as if nothing had been rounded, and zero for
/// numbers beyond the ends (Bengio et al. 2013, <https://arxiv.org/abs/1308.3432>).
pub fn backward(levels: Levels, x: &[f64], g: &mut [f64]) {
    assert_eq!(x.len(), g.len(), "fake quantization: shapes that do not fit");
    let (integer, [lowest, highest], _) = levels.of(x);
    for (g, x) in g.iter_mut().zip(x) {
        let q = integer(*x);
        if q < lowest || q > highest {
            *g = 0.0;
        }
    }
}

//! Dropout without a stored mask: every element's fate is computed from a key and its index.

use super::view::View;
use super::{Element, parallel, simd};

/// Drops each element with probability `p` and scales the others by `1 / (1 - p)`.
///
/// The same key and element index always give the same answer, so the backward
/// pass, a recomputed block and a resumed run see the mask of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dropout {
    /// Probability of dropping an element, in `[0, 1)`.
    p: f64,
    key: u64,
}

impl Dropout {
    /// Dropout with probability `p` under a key that the caller derives from
    /// seed, step, micro-batch and layer.
    pub(crate) fn new(p: f64, key: u64) -> Self {
        Self { p, key }
    }

    /// Mixes another number into a key (SplitMix64's finalizer).
    #[inline(always)]
    pub(crate) fn mix(key: u64, part: u64) -> u64 {
        let mut z = key ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Mixes a name into a key, byte by byte.
    pub(crate) fn mix_name(key: u64, name: &str) -> u64 {
        name.bytes().fold(key, |k, b| Self::mix(k, u64::from(b)))
    }

    /// The probability and the key.
    pub(crate) fn parts(&self) -> (f64, u64) {
        (self.p, self.key)
    }

    /// The factor of element `index`: `0` or `1 / (1 - p)`.
    #[inline(always)]
    pub(crate) fn factor(&self, index: usize) -> f64 {
        let uniform = (Self::mix(self.key, index as u64) >> 11) as f64 / (1u64 << 53) as f64;
        if uniform < self.p { 0.0 } else { 1.0 / (1.0 - self.p) }
    }

    /// `x` with dropout into `y`, whose rows follow each other. Row `i` of a selection counts as row `rows[i]`.
    pub(crate) fn apply<T: Element>(&self, x: View<'_, T>, rows: Option<&[usize]>, y: &mut [T]) {
        let width = x.cols();
        parallel::each_chunk(&mut y[..x.rows() * width], width.max(1), |i, y| {
            let first = rows.map_or(i, |rows| rows[i]) * width;
            simd(
                #[inline(always)]
                || {
                    for (j, (y, x)) in y.iter_mut().zip(x.row(i)).enumerate() {
                        *y = T::from_f32(x.to_f32() * self.factor(first + j) as f32);
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_stated_share_and_keeps_the_mean() {
        let dropout = Dropout::new(0.3, 7);
        let mut y = vec![0f32; 100_000];
        dropout.apply(View::new(&[1f32; 100_000], 100), None, &mut y);
        let dropped = y.iter().filter(|&&v| v == 0.0).count() as f64 / 1e5;
        let mean = y.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn another_key_gives_another_mask() {
        let mask = |key| {
            let mut y = [0f32; 64];
            Dropout::new(0.5, key).apply(View::new(&[1f32; 64], 8), None, &mut y);
            y
        };
        assert_eq!(mask(1), mask(1));
        assert_ne!(mask(1), mask(2));
    }
}

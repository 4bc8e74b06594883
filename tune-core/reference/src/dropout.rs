//! Dropout whose mask is computed from a key and an element's index (SplitMix64's finalizer, Steele, Lea & Flood 2014,
//! <https://doi.org/10.1145/2660193.2660195>): the backward pass and a recomputed block see the mask again.

use crate::{View, ViewMut};

/// Mixes another number into a key.
pub fn mix(key: u64, part: u64) -> u64 {
    let mut z = key ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The factor of element `index`: zero with probability `p`, else `1 / (1 - p)`.
pub fn factor(p: f64, key: u64, index: u64) -> f64 {
    let uniform = (mix(key, index) >> 11) as f64 / (1u64 << 53) as f64;
    if uniform < p { 0.0 } else { 1.0 / (1.0 - p) }
}

/// `y (+)= factor · x`, element by element: added if `add`, else stored. Row `i` of a selection counts as row `rows[i]`
/// of its whole, whose elements are numbered row by row.
pub fn apply(x: View<'_>, (p, key): (f64, u64), rows: Option<&[usize]>, add: bool, y: &mut ViewMut<'_>) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "dropout: shapes that do not fit");
    for i in 0..x.rows() {
        let first = rows.map_or(i, |rows| rows[i]) * x.cols();
        for (j, y) in y.row(i).iter_mut().enumerate() {
            let dropped = x.row(i)[j] * factor(p, key, (first + j) as u64);
            *y = if add { *y + dropped } else { dropped };
        }
    }
}

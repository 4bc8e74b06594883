use super::both;
use crate::buffer::{Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;
use crate::products::Onto;

static DROP: [Kernel; 2] = both("dropout", ["dropout_f32", "dropout_bf16"], "pppplllllfll");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&DROP];

/// Drops each element with probability `p` and scales the others by `1 / (1 - p)`; which ones depends on the key and the
/// element's index alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// In `[0, 1)`.
    pub p: f64,
    /// Of seed, step, micro-batch and layer.
    pub key: u64,
}

impl Context {
    /// `y = dropped(x) (+ onto)`. Row `i` of a selection counts as row `rows[i]` of its whole, `rows` `[1, m]`.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn dropped<T: Element>(
        &self,
        x: View<'_, T>,
        dropout: Dropout,
        rows: Option<View<'_, u32>>,
        onto: Onto<'_, T>,
        y: ViewMut<'_, T>,
    ) {
        let fits = x.shape() == y.shape() && rows.is_none_or(|rows| rows.shape() == (1, x.rows));
        let (other, other_stride, same) = match onto {
            Onto::Nothing => (0, 0, true),
            Onto::Itself => (y.address, y.stride, true),
            Onto::Other(other) => (other.address, other.stride, other.shape() == x.shape()),
        };
        assert!(fits && same, "dropout: shapes that do not fit");
        Launch::new(self, &DROP[T::INDEX])
            .pointer(y.address)
            .pointer(x.address)
            .pointer(other)
            .pointer(rows.map_or(0, |rows| rows.address))
            .long(x.rows)
            .long(x.cols)
            .long(y.stride)
            .long(x.stride)
            .long(other_stride)
            .float((1.0 / (1.0 - dropout.p)) as f32)
            // Of 53 random bits, as the processor compares them.
            .key((dropout.p * (1u64 << 53) as f64).ceil() as u64)
            .key(dropout.key)
            .go(Size::matrix(x.rows, x.cols, wide::<T>(), 256));
    }
}

use super::both;
use crate::buffer::{Buffer, Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

static COMBINE: [Kernel; 2] = both("experts", ["experts_combine_f32", "experts_combine_bf16"], "pppppllllli");
static SCALE: [Kernel; 2] = both("experts", ["experts_scale_f32", "experts_scale_bf16"], "pplll");
static DOTS: [Kernel; 2] = both("experts", ["experts_dots_f32", "experts_dots_bf16"], "pppllll");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&COMBINE, &SCALE, &DOTS];

impl Context {
    /// `y[token] = onto[token] + Σ weights[i] · x[places[i]]` over the places of a token, which are as many for each. Without `onto`
    /// from zero, without weights each counts as one. Nobody checks that there are those rows.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn combine<T: Element>(
        &self,
        x: View<'_, T>,
        places: &Buffer<u32>,
        weights: Option<&Buffer<f32>>,
        onto: Option<View<'_, T>>,
        y: ViewMut<'_, T>,
    ) {
        let chosen = places.len() / y.rows.max(1);
        let fits = places.len() == chosen * y.rows && x.cols == y.cols;
        let others =
            onto.is_none_or(|onto| onto.shape() == y.shape()) && weights.is_none_or(|w| w.len() == places.len());
        assert!(fits && others, "combine: shapes that do not fit");
        let of_onto = onto.map_or((0, 0), |onto| (onto.address, onto.stride));
        Launch::new(self, &COMBINE[T::INDEX])
            .pointer(y.address)
            .pointer(x.address)
            .pointer(of_onto.0)
            .pointer(places.address())
            .pointer(super::address(weights))
            .long(y.rows)
            .long(y.cols)
            .long(y.stride)
            .long(x.stride)
            .long(of_onto.1)
            .int(chosen)
            .go(Size::matrix(y.rows, y.cols, wide::<T>(), 256));
    }

    /// Multiplies each row by a factor.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn scale_rows<T: Element>(&self, x: ViewMut<'_, T>, factors: &Buffer<f32>) {
        assert_eq!(x.rows, factors.len(), "scale_rows: a factor for each row");
        Launch::new(self, &SCALE[T::INDEX])
            .pointer(x.address)
            .pointer(factors.address())
            .long(x.rows)
            .long(x.cols)
            .long(x.stride)
            .go(Size::matrix(x.rows, x.cols, wide::<T>(), 256));
    }

    /// The product of each row of `a` with the same row of `b`.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn row_dots<T: Element>(&self, a: View<'_, T>, b: View<'_, T>, y: &mut Buffer<f32>) {
        assert!(a.shape() == b.shape() && y.len() == a.rows, "row_dots: shapes that do not fit");
        Launch::new(self, &DOTS[T::INDEX])
            .pointer(y.address())
            .pointer(a.address)
            .pointer(b.address)
            .long(a.rows)
            .long(a.cols)
            .long(a.stride)
            .long(b.stride)
            .go(Size::row(a.rows.min(MOST_ROWS), 128, 16));
    }
}

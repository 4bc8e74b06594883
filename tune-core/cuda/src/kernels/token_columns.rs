use super::{both, one};
use crate::buffer::{Buffer, Element, ViewMut};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

const PARAMETERS: &str = "ppplll";
static PUT: [Kernel; 1] = [one("token_columns", "put_columns_f32", PARAMETERS)];
static TAKE: [Kernel; 2] = both("token_columns", ["take_columns_f32", "take_columns_bf16"], PARAMETERS);

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&PUT, &TAKE];

impl Context {
    /// `y[row, columns[i]] = x[row, i]`, of `x` `[m, columns]`. No column may be named twice, and nobody checks that there are those.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn put_columns(&self, x: &Buffer<f32>, columns: &Buffer<u32>, y: ViewMut<'_, f32>) {
        assert_eq!(x.len(), y.rows * columns.len(), "put_columns: shapes that do not fit");
        Launch::new(self, &PUT[0])
            .pointer(y.address)
            .pointer(x.address())
            .pointer(columns.address())
            .long(y.rows)
            .long(columns.len())
            .long(y.stride)
            .go(Size::matrix(y.rows, columns.len(), 1, 256));
    }

    /// `y[row, i] = x[row, columns[i]]`, into `y` `[m, columns]`, and leaves zeros there in `x`. No column may be named twice, and
    /// nobody checks that there are those.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn take_columns<T: Element>(&self, x: ViewMut<'_, T>, columns: &Buffer<u32>, y: &mut Buffer<T>) {
        assert_eq!(y.len(), x.rows * columns.len(), "take_columns: shapes that do not fit");
        Launch::new(self, &TAKE[T::INDEX])
            .pointer(y.address())
            .pointer(x.address)
            .pointer(columns.address())
            .long(x.rows)
            .long(columns.len())
            .long(x.stride)
            .go(Size::matrix(x.rows, columns.len(), 1, 256));
    }
}

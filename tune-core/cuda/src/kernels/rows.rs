use super::{both, one};
use crate::buffer::{Buffer, Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

static LOOKUP: [Kernel; 2] = both("rows", ["rows_lookup_f32", "rows_lookup_bf16"], "pppllllf");
static LOOKUP_BACK: [Kernel; 2] = both("rows", ["rows_lookup_backward_f32", "rows_lookup_backward_bf16"], "ppppplllf");
static GATHER: [Kernel; 2] = both("rows", ["rows_gather_f32", "rows_gather_bf16"], "pppllll");
static SCATTER: [Kernel; 2] = both("rows", ["rows_scatter_f32", "rows_scatter_bf16"], "ppplllli");
/// By the types of the result and of what is copied.
static COPY: [[Kernel; 2]; 2] = [
    [one("rows", "rows_copy_f32_f32", COPIED), one("rows", "rows_copy_f32_bf16", COPIED)],
    [one("rows", "rows_copy_bf16_f32", COPIED), one("rows", "rows_copy_bf16_bf16", COPIED)],
];
const COPIED: &str = "ppllllfi";
static COLUMN_PARTS: [Kernel; 2] = both("rows", ["rows_column_parts_f32", "rows_column_parts_bf16"], "ppllll");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&LOOKUP, &LOOKUP_BACK, &GATHER, &SCATTER, &COPY[0], &COPY[1], &COLUMN_PARTS];

/// Rows of which a block sums the columns, at least, and such parts, at most: they decide the order of sums.
const ROWS_OF_PART: usize = 64;
const PARTS: usize = 64;

fn rows_of_part(rows: usize) -> usize {
    rows.div_ceil(PARTS).max(ROWS_OF_PART)
}

/// Rows of a table and who asked for each, on the card: what the gradient of a lookup is summed by.
#[derive(Debug)]
pub struct Grouped {
    /// Distinct rows, ascending.
    ids: Buffer<u32>,
    /// Where each one's positions begin, and where the last one's end.
    starts: Buffer<u32>,
    /// Who asked, ascending for each row.
    positions: Buffer<u32>,
    count: usize,
    largest: usize,
}

/// The three lists of [`Grouped`].
fn grouped(ids: &[u32]) -> [Vec<u32>; 3] {
    let mut positions: Vec<u32> = (0..ids.len() as u32).collect();
    positions.sort_by_key(|&position| ids[position as usize]);
    let (mut distinct, mut starts) = (Vec::new(), Vec::new());
    for (i, &position) in positions.iter().enumerate() {
        let id = ids[position as usize];
        if distinct.last() != Some(&id) {
            distinct.push(id);
            starts.push(i as u32);
        }
    }
    starts.push(ids.len() as u32);
    [distinct, starts, positions]
}

/// Numbers of f32 that [`Context::sum_rows`] needs for such a matrix.
#[must_use]
pub fn sum_rows_workspace(rows: usize, cols: usize) -> usize {
    rows.div_ceil(rows_of_part(rows)) * cols
}

impl Context {
    /// The sum of the rows of `x` `[m, n]` into `y` `[1, n]`.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn sum_rows<T: Element>(&self, x: View<'_, T>, y: ViewMut<'_, f32>) {
        assert_eq!((1, x.cols), y.shape(), "sum_rows: shapes that do not fit");
        let partial = self.buffer::<f32>(sum_rows_workspace(x.rows, x.cols));
        let (rows, per_block) = (rows_of_part(x.rows), 32 * wide::<T>());
        Launch::new(self, &COLUMN_PARTS[T::INDEX])
            .pointer(partial.address())
            .pointer(x.address)
            .long(x.rows)
            .long(x.cols)
            .long(x.stride)
            .long(rows)
            .go(Size {
                grid: [x.cols.div_ceil(per_block), x.rows.div_ceil(rows), 1],
                threads: [32, 8],
                shared: 4 * 8 * per_block,
            });
        self.sum_columns(&partial, false, y);
    }

    /// Sorts the ids of a lookup for [`Context::lookup_back`].
    pub fn group(&self, ids: &[u32]) -> Grouped {
        let [distinct, starts, positions] = grouped(ids);
        Grouped {
            count: distinct.len(),
            largest: distinct.last().map_or(0, |&id| id as usize),
            ids: self.upload_ahead(&distinct),
            starts: self.upload_ahead(&starts),
            positions: self.upload_ahead(&positions),
        }
    }

    /// `y[i] = scale · table[ids[i]]`. Nobody checks that the table has those rows.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn lookup<T: Element>(&self, table: View<'_, T>, ids: &Buffer<u32>, scale: f32, y: ViewMut<'_, T>) {
        assert!(y.rows == ids.len() && y.cols == table.cols, "lookup: shapes that do not fit");
        Launch::new(self, &LOOKUP[T::INDEX])
            .pointer(y.address)
            .pointer(table.address)
            .pointer(ids.address())
            .long(y.rows)
            .long(y.cols)
            .long(y.stride)
            .long(table.stride)
            .float(scale)
            .go(Size::matrix(y.rows, y.cols, wide::<T>(), 256));
    }

    /// The gradient of the table of a lookup, added to `own`: `own[ids[i]] += scale · g[i]`.
    ///
    /// # Panics
    /// If shapes do not fit, or the table has not that many rows.
    pub fn lookup_back<T: Element>(&self, g: View<'_, T>, ids: &Grouped, scale: f32, own: ViewMut<'_, f32>) {
        let fits = g.rows == ids.positions.len() && g.cols == own.cols;
        assert!(fits && (ids.count == 0 || ids.largest < own.rows), "lookup_back: shapes that do not fit");
        for first in (0..ids.count).step_by(MOST_ROWS) {
            let at = (first * size_of::<u32>()) as u64;
            Launch::new(self, &LOOKUP_BACK[T::INDEX])
                .pointer(own.address)
                .pointer(g.address)
                .pointer(ids.ids.address() + at)
                .pointer(ids.starts.address() + at)
                .pointer(ids.positions.address())
                .long(g.cols)
                .long(own.stride)
                .long(g.stride)
                .float(scale)
                .go(Size::matrix(ids.count - first, g.cols, wide::<T>(), 256));
        }
    }

    /// `y[i] = x[rows[i]]`. Nobody checks that there are those rows.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn gather<T: Element>(&self, x: View<'_, T>, rows: &Buffer<u32>, y: ViewMut<'_, T>) {
        assert!(y.rows == rows.len() && y.cols == x.cols, "gather: shapes that do not fit");
        Launch::new(self, &GATHER[T::INDEX])
            .pointer(y.address)
            .pointer(x.address)
            .pointer(rows.address())
            .long(y.rows)
            .long(y.cols)
            .long(y.stride)
            .long(x.stride)
            .go(Size::matrix(y.rows, y.cols, wide::<T>(), 256));
    }

    /// `y[rows[i]] = x[i]`, or `+= x[i]` if `add`; other rows stay. No row may be named twice, and nobody checks that there are
    /// those rows.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn scatter<T: Element>(&self, x: View<'_, T>, rows: &Buffer<u32>, add: bool, y: ViewMut<'_, T>) {
        assert!(x.rows == rows.len() && y.cols == x.cols, "scatter: shapes that do not fit");
        Launch::new(self, &SCATTER[T::INDEX])
            .pointer(y.address)
            .pointer(x.address)
            .pointer(rows.address())
            .long(x.rows)
            .long(x.cols)
            .long(y.stride)
            .long(x.stride)
            .int(usize::from(add))
            .go(Size::matrix(x.rows, x.cols, wide::<T>(), 256));
    }

    /// `y = scale · x`, or `y += scale · x` if `add`, between types, too: a conversion, a sum, a scaling in place.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn convert<D: Element, T: Element>(&self, x: View<'_, T>, scale: f32, add: bool, y: ViewMut<'_, D>) {
        assert_eq!(x.shape(), y.shape(), "convert: shapes that do not fit");
        Launch::new(self, &COPY[D::INDEX][T::INDEX])
            .pointer(y.address)
            .pointer(x.address)
            .long(x.rows)
            .long(x.cols)
            .long(y.stride)
            .long(x.stride)
            .float(scale)
            .int(usize::from(add))
            .go(Size::matrix(x.rows, x.cols, wide::<T>().max(wide::<D>()), 256));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_grouped_by_row() {
        let [ids, starts, positions] = grouped(&[7, 2, 7, 0, 2, 7]);
        assert_eq!((ids, starts, positions), (vec![0, 2, 7], vec![0, 1, 3, 6], vec![3, 1, 4, 0, 2, 5]));
        assert_eq!(grouped(&[]), [vec![], vec![0], vec![]]);
    }
}

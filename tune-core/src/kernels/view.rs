//! Matrices in memory that may hold other things, too: the columns of queries in a product that is queries, keys and
//! values, say, or a gradient in the first half of each row of logits.

use std::marker::PhantomData;
use std::ops::Range;

use super::parallel::{self, Parts};

/// Some columns of some rows: `[rows, cols]`, `stride` elements from one row to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T> View<'a, T> {
    /// Rows of `cols` elements that follow each other without a gap.
    pub(crate) fn new(data: &'a [T], cols: usize) -> Self {
        Self::strided(data, (data.len() / cols.max(1), cols), cols)
    }

    /// `rows` rows of `cols` elements, the first of which is the first of `data`.
    pub(crate) fn strided(data: &'a [T], (rows, cols): (usize, usize), stride: usize) -> Self {
        assert!(fits(data.len(), (rows, cols), stride), "a view of more than there is");
        Self { data, rows, cols, stride }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.data.as_ptr()
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.stride..][..self.cols]
    }

    /// Some columns of some of its rows.
    #[inline(always)]
    pub(crate) fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a part outside of its whole");
        if rows.is_empty() || cols.is_empty() {
            return Self { data: &[], rows: rows.len(), cols: cols.len(), stride: self.stride };
        }
        let start = rows.start * self.stride + cols.start;
        Self { data: &self.data[start..], rows: rows.len(), cols: cols.len(), stride: self.stride }
    }
}

/// A [`View`] to be written.
#[derive(Debug)]
pub(crate) struct ViewMut<'a, T> {
    /// Of rows that others may hold other columns of.
    start: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a mutable borrow of elements that may be sent.
unsafe impl<T: Send> Send for ViewMut<'_, T> {}
// SAFETY: as above; whoever takes parts of a shared one promises to be alone there.
unsafe impl<T: Send> Sync for ViewMut<'_, T> {}

impl<'a, T> ViewMut<'a, T> {
    /// Rows of `cols` elements that follow each other without a gap.
    pub(crate) fn new(data: &'a mut [T], cols: usize) -> Self {
        let rows = data.len() / cols.max(1);
        Self::strided(data, (rows, cols), cols)
    }

    /// `rows` rows of `cols` elements, the first of which is the first of `data`.
    pub(crate) fn strided(data: &'a mut [T], (rows, cols): (usize, usize), stride: usize) -> Self {
        assert!(fits(data.len(), (rows, cols), stride), "a view of more than there is");
        Self { start: data.as_mut_ptr(), rows, cols, stride, borrowed: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// The columns before `col`, and the others.
    #[cfg(test)]
    pub(crate) fn split_cols(self, col: usize) -> (Self, Self) {
        assert!(col <= self.cols, "columns outside of a view");
        let at = if self.rows == 0 { 0 } else { col };
        // SAFETY: inside, as asserted; the two have no element in common.
        let start = unsafe { self.start.add(at) };
        (Self { cols: col, ..self }, Self { start, cols: self.cols - col, ..self })
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        // SAFETY: nobody else borrows it.
        unsafe { self.part(row, 0, self.cols) }
    }

    /// `len` elements of a row, from column `col` on.
    ///
    /// # Safety
    /// No two parts that live at a time overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, row: usize, col: usize, len: usize) -> &mut [T] {
        assert!(row < self.rows && col <= self.cols && len <= self.cols - col, "a part outside of its whole");
        // SAFETY: inside, as asserted, and nobody else's, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + col), len) }
    }

    /// Runs `task` for views of at most `rows` rows each, in parallel, given the number of each one's first row.
    pub(crate) fn each_task(self, rows: usize, task: impl Fn(usize, Self) + Sync)
    where
        T: Send,
    {
        parallel::each_part(self.tasks(rows), |i, some| task(i * rows, some));
    }

    /// Views of at most `rows` rows each, one for each task of a parallel loop.
    pub(crate) fn tasks(self, rows: usize) -> Tasks<'a, T> {
        Tasks { of: self, rows }
    }

    /// At most `count` rows from `first` on.
    ///
    /// # Safety
    /// No two that live at a time have a row in common.
    unsafe fn some_rows(&self, first: usize, count: usize) -> Self {
        let rows = count.min(self.rows - first);
        // SAFETY: the first of the rows is inside, for there is one.
        Self { start: unsafe { self.start.add(first * self.stride) }, rows, ..*self }
    }
}

/// See [`ViewMut::tasks`].
pub(crate) struct Tasks<'a, T> {
    of: ViewMut<'a, T>,
    rows: usize,
}

// SAFETY: they have no row in common.
unsafe impl<'a, T: Send> Parts for Tasks<'a, T> {
    type Part = ViewMut<'a, T>;

    fn count(&self) -> usize {
        self.of.rows.div_ceil(self.rows)
    }

    unsafe fn part(&self, number: usize) -> ViewMut<'a, T> {
        // SAFETY: as above, and the caller takes none twice.
        unsafe { self.of.some_rows(number * self.rows, self.rows) }
    }
}

impl<T: Copy> ViewMut<'_, T> {
    pub(crate) fn fill(&mut self, value: T) {
        (0..self.rows).for_each(|row| self.row(row).fill(value));
    }
}

/// Whether a view of that shape fits into this number of elements, and its rows do not overlap.
fn fits(len: usize, (rows, cols): (usize, usize), stride: usize) -> bool {
    rows == 0 || cols == 0 || ((rows == 1 || cols <= stride) && (rows - 1) * stride + cols <= len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_apart() {
        let mut data: Vec<u32> = (0..12).collect();
        let (mut left, mut right) = ViewMut::new(&mut data, 4).split_cols(1);
        left.fill(0);
        right.row(1)[0] = 99;
        assert_eq!(data, [0, 1, 2, 3, 0, 99, 6, 7, 0, 9, 10, 11]);
        let view = View::new(&data, 4).part(1..3, 1..3);
        assert_eq!((view.rows(), view.cols(), view.row(0), view.row(1)), (2, 2, &[99, 6][..], &[9, 10][..]));
    }

    #[test]
    #[should_panic(expected = "more than there is")]
    fn a_view_ends_where_its_memory_ends() {
        View::strided(&[0; 10], (3, 3), 4);
    }
}

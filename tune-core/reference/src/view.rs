//! Matrices in memory that may hold other things, too.

/// Some columns of some rows: `[rows, cols]`, `stride` elements from one row to the next.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f64],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `cols` elements without a gap.
    pub fn new(data: &'a [f64], cols: usize) -> Self {
        Self::strided(data, (data.len() / cols.max(1), cols), cols)
    }

    /// `rows` rows of `cols` elements, the first of which is the first of `data`.
    ///
    /// # Panics
    /// If `data` does not reach that far, or rows overlap.
    pub fn strided(data: &'a [f64], (rows, cols): (usize, usize), stride: usize) -> Self {
        assert!(fits(data.len(), (rows, cols), stride), "a view of more than there is");
        Self { data, rows, cols, stride }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&self, row: usize) -> &'a [f64] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        if self.cols == 0 { &[] } else { &self.data[row * self.stride..][..self.cols] }
    }
}

/// A [`View`] to be written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: &'a mut [f64],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> ViewMut<'a> {
    /// Rows of `cols` elements without a gap.
    pub fn new(data: &'a mut [f64], cols: usize) -> Self {
        let rows = data.len() / cols.max(1);
        Self::strided(data, (rows, cols), cols)
    }

    /// `rows` rows of `cols` elements, the first of which is the first of `data`.
    ///
    /// # Panics
    /// If `data` does not reach that far, or rows overlap.
    pub fn strided(data: &'a mut [f64], (rows, cols): (usize, usize), stride: usize) -> Self {
        assert!(fits(data.len(), (rows, cols), stride), "a view of more than there is");
        Self { data, rows, cols, stride }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&mut self, row: usize) -> &mut [f64] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        if self.cols == 0 { &mut [] } else { &mut self.data[row * self.stride..][..self.cols] }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f64) {
        (0..self.rows).for_each(|row| self.row(row).fill(value));
    }
}

/// Whether a view of that shape is within so many elements, and its rows do not overlap.
fn fits(len: usize, (rows, cols): (usize, usize), stride: usize) -> bool {
    rows == 0 || cols == 0 || ((rows == 1 || cols <= stride) && (rows - 1) * stride + cols <= len)
}

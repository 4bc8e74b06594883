//! Fetching what is packed next while something else is computed.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

use super::groups::MAX_TERMS;
use super::{Right, Side};
use crate::kernels::Element;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows of bytes in memory.
#[derive(Clone, Copy)]
struct Lines {
    start: *const u8,
    /// Bytes from one row to the next.
    stride: usize,
    rows: usize,
    /// Cache lines of each row.
    count: usize,
}

/// The sources of a panel, on their way into the second-level cache a share at a time.
///
/// They are in short pieces, one a row, which the processor does not foresee: packing would wait for memory. Asked
/// for all at once, they would fill the queue of misses, and the tiles would wait.
pub(super) struct Ahead {
    of: [Lines; MAX_TERMS],
    count: usize,
    /// The next to be fetched: which of `of`, and its row and line.
    at: (usize, usize, usize),
    /// Lines in a share.
    share: usize,
}

impl Ahead {
    /// Nothing.
    pub(super) fn none() -> Self {
        let none = Lines { start: std::ptr::null(), stride: 0, rows: 0, count: 0 };
        Self { of: [none; MAX_TERMS], count: 0, at: (0, 0, 0), share: 0 }
    }

    /// What packing these inner elements of right sides for columns `cols` reads, to be fetched in so many shares.
    pub(super) fn new<'a, T: Element + 'a>(
        sources: impl Iterator<Item = (Right<'a, T>, Range<usize>)>,
        cols: &Range<usize>,
        shares: usize,
    ) -> Self {
        let mut ahead = Self::none();
        for ((right, inner), of) in sources.zip(&mut ahead.of) {
            let (rows, within) = match right {
                Right::Stored(Side::Columns(_)) | Right::QuantizedColumns(_) => (cols.clone(), inner),
                Right::Stored(Side::Rows(_)) | Right::Quantized(_) => (inner, cols.clone()),
            };
            let (start, bytes, stride) = match right {
                Right::Stored(Side::Columns(r) | Side::Rows(r)) => {
                    let start = r.part(rows.clone(), within.clone()).as_ptr().cast();
                    (start, size_of::<T>() * within.len(), size_of::<T>() * r.stride())
                }
                Right::Quantized(w) | Right::QuantizedColumns(w) => w.place(rows.start, within.clone()),
            };
            *of = Lines { start, stride, rows: rows.len(), count: bytes / LINE + 1 };
            ahead.count += 1;
        }
        let lines: usize = ahead.of.iter().map(|of| of.rows * of.count).sum();
        ahead.share = lines.div_ceil(shares.max(1));
        ahead
    }

    /// Begins to fetch the next share.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn fetch(&mut self) {
        for _ in 0..self.share {
            let (of, row, line) = self.at;
            if of == self.count {
                return;
            }
            let lines = &self.of[of];
            // A hint, which may point anywhere.
            _mm_prefetch::<_MM_HINT_T1>(lines.start.wrapping_add(row * lines.stride + line * LINE).cast());
            self.at = if line + 1 < lines.count {
                (of, row, line + 1)
            } else if row + 1 < lines.rows {
                (of, row + 1, 0)
            } else {
                (of + 1, 0, 0)
            };
        }
    }
}

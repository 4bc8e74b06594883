//! Several samples in one row.

use std::ops::Range;

/// Fills rows of at most `max_len` tokens with samples of the given lengths in their order: a sample that
/// does not fit any more begins the next row. A sample longer than that has a row for itself.
pub(super) fn rows(lengths: impl ExactSizeIterator<Item = usize>, max_len: usize) -> Vec<Range<usize>> {
    let samples = lengths.len();
    let mut rows = Vec::new();
    let mut start = 0;
    let mut filled = 0;
    for (i, len) in lengths.enumerate() {
        if i > start && filled + len > max_len {
            rows.push(start..i);
            start = i;
            filled = 0;
        }
        filled += len;
    }
    if start < samples {
        rows.push(start..samples);
    }
    rows
}

//! Several samples in one row.

use std::ops::Range;

use super::batch::Sample;

/// Fills rows of at most `max_len` tokens with the samples in their order: a sample that does
/// not fit any more begins the next row. A sample longer than that has a row for itself.
pub(super) fn rows(samples: &[Sample], max_len: usize) -> Vec<Range<usize>> {
    let mut rows = Vec::new();
    let mut start = 0;
    let mut filled = 0;
    for (i, sample) in samples.iter().enumerate() {
        let len = sample.input_ids.len();
        if i > start && filled + len > max_len {
            rows.push(start..i);
            start = i;
            filled = 0;
        }
        filled += len;
    }
    if start < samples.len() {
        rows.push(start..samples.len());
    }
    rows
}

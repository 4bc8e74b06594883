//! Several samples in one row.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;

use super::ahead::Stored;
use crate::config::Config;

/// Whether and how several samples share a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Config)]
#[config(crate = crate::config)]
pub struct Rows {
    /// Put several samples into one row of up to `max_seq_len` tokens. Attention stays inside each sample.
    #[config(default = false)]
    pub packed: bool,
    /// Which samples share a row, where rows are `packed`.
    #[config(default = "greedy")]
    pub packing: Fit,
}

/// Which samples share a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Config)]
#[config(crate = crate::config)]
pub enum Fit {
    /// Neighbours: a sample that does not fit any more begins the next row.
    #[default]
    #[config(name = "greedy")]
    Greedy,
    /// Those that fill rows best, of 4096 records at a time: longest first, each into the fullest row with room for it.
    #[config(name = "best_fit")]
    BestFit,
}

/// What becomes of a sample that does not fit into what is left of its row, where several share one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Joins {
    /// It begins the next row. One that is longer than a row is cut.
    #[default]
    Whole,
    /// It goes on in the next row. Attention stays inside each sample, and inside each row.
    Split,
    /// It goes on in the next row. A row is one stretch of text: attention reaches over the borders of samples, and the last token of
    /// one predicts the first of the next.
    Across,
}

/// How samples share rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Packing {
    /// The tokens of a row; `None` is one sample, or one pair, a row.
    pub(super) to: Option<usize>,
    pub(super) joins: Joins,
    /// Which samples share a row, where rows are not one stretch of text.
    pub(super) fit: Fit,
}

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

/// Fills rows of `len` tokens (the last has what is left) with samples one behind the other, and cuts those that do not fit:
/// returns the pieces, and the pieces of each row. What is left of a sample when all of its predictions are made, its last token, is
/// no piece.
pub(super) fn split(samples: &[Stored], len: usize) -> (Vec<Stored>, Vec<Range<usize>>) {
    let (mut pieces, mut rows): (Vec<Stored>, Vec<Range<usize>>) = (Vec::with_capacity(samples.len()), Vec::new());
    let (mut first, mut free) = (0, len);
    for sample in samples {
        let (mut start, end) = (sample.start, sample.start + u64::from(sample.len));
        while start < end && (start == sample.start || end - start > 1) {
            let taken = (end - start).min(free as u64);
            pieces.push(Stored { start, len: taken as u32, ..*sample });
            start += taken;
            free -= taken as usize;
            if free == 0 {
                rows.push(first..pieces.len());
                (first, free) = (pieces.len(), len);
            }
        }
    }
    if first < pieces.len() {
        rows.push(first..pieces.len());
    }
    (pieces, rows)
}

/// The same where a row is one piece of all that is there, named after the sample that it begins in.
pub(super) fn across(samples: &[Stored], len: usize) -> (Vec<Stored>, Vec<Range<usize>>) {
    let end = samples.last().map_or(0, |last| last.start + u64::from(last.len));
    let mut pieces: Vec<Stored> = Vec::new();
    let mut start = samples.first().map_or(0, |first| first.start);
    // A single token predicts nothing.
    while start + 1 < end {
        let sample = samples[samples.partition_point(|sample| sample.start <= start) - 1];
        let taken = (end - start).min(len as u64);
        pieces.push(Stored { start, len: taken as u32, ..sample });
        start += taken;
    }
    let rows = (0..pieces.len()).map(|piece| piece..piece + 1).collect();
    (pieces, rows)
}

/// Puts samples into rows of at most `max_len` tokens, longest first, each into the fullest row with room for it (best-fit decreasing).
/// With `splits`, those that are longer than a row are cut into pieces before, as by [Ding et al. 2024](https://arxiv.org/abs/2404.10830).
/// Returns the pieces and the pieces of each row; rows are in the order of the first sample in each.
pub(super) fn best_fit(samples: &[Stored], max_len: usize, splits: bool) -> (Vec<Stored>, Vec<Range<usize>>) {
    let longest = if splits { max_len as u64 } else { u64::MAX };
    let mut pieces = Vec::with_capacity(samples.len());
    for sample in samples {
        let (mut start, end) = (sample.start, sample.start + u64::from(sample.len));
        // The last token of a sample that was split is predicted, and predicts nothing.
        while start < end && (start == sample.start || end - start > 1) {
            let taken = (end - start).min(longest);
            pieces.push(Stored { start, len: taken as u32, ..*sample });
            start += taken;
        }
    }
    let len = |piece: usize| pieces[piece].len as usize;
    let mut by_length: Vec<usize> = (0..pieces.len()).collect();
    // Of equal lengths the first comes first: the sort is stable.
    by_length.sort_by_key(|&piece| Reverse(len(piece)));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // The room of each row, and its number.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for piece in by_length {
        let fullest = rooms.range((len(piece), 0)..).next().copied();
        let (room, row) = fullest.unwrap_or((max_len, rows.len()));
        match fullest {
            Some(found) => drop(rooms.remove(&found)),
            None => rows.push(Vec::new()),
        }
        rows[row].push(piece);
        rooms.insert((room.saturating_sub(len(piece)), row));
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    rows.sort_unstable();
    let ranges = rows.iter().scan(0, |end, row| {
        *end += row.len();
        Some(*end - row.len()..*end)
    });
    (rows.iter().flatten().map(|&piece| pieces[piece]).collect(), ranges.collect())
}

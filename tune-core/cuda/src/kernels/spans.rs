//! Where attention stays within, and the tiles that kernels handle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytemuck::{Pod, Zeroable};

use crate::buffer::Buffer;
use crate::context::Context;

/// Consecutive positions of one sequence: the newest ones, that have queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The row of the first query.
    pub queries: usize,
    /// How many queries there are.
    pub len: usize,
    /// The row of the sequence's first key and value.
    pub keys: usize,
    /// How many keys come before that of the first query.
    pub past: usize,
}

impl Stretch {
    fn seen(&self) -> usize {
        self.past + self.len
    }

    /// The row of the first key, and how many keys there are.
    pub fn newest(&self) -> [i32; 2] {
        [self.keys as i32, self.seen() as i32]
    }
}

/// Where attention stays within: ranges of a batch's tokens. Made once for a batch, used by all of its layers.
#[derive(Debug)]
pub struct Spans {
    stretches: Vec<Stretch>,
    /// Rows of queries, and of keys and values.
    rows: [usize; 2],
    /// Whether there are queries outside of all stretches.
    gaps: bool,
    /// What was asked for so far.
    tiles: Mutex<Tiles>,
    newest: OnceLock<Buffer<[i32; 2]>>,
}

/// By size and order.
type Tiles = BTreeMap<(usize, Order), Arc<Buffer<Tile>>>;

/// Which tiles come first: those that take longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// The last queries see most keys.
    Queries,
    /// The first keys are seen by most queries.
    Keys,
}

/// Consecutive positions of a span.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Tile {
    /// The row of queries where position 0 of the span is, or would be.
    span: i32,
    length: i32,
    first: i32,
    /// How many rows further on its keys and values are.
    keys: i32,
}

impl Spans {
    /// Spans of a batch of this many tokens, each a sequence of its own.
    ///
    /// # Panics
    /// If a span is beyond them, or begins before the one in front of it has ended.
    pub fn new(spans: &[Range<usize>], tokens: usize) -> Self {
        let whole = |s: &Range<usize>| Stretch { queries: s.start, len: s.len(), keys: s.start, past: 0 };
        assert!(spans.iter().all(|s| s.start <= s.end), "attention: spans that do not fit");
        Self::behind(&spans.iter().map(whole).collect::<Vec<_>>(), tokens, tokens)
    }

    /// Stretches of sequences whose past is in rows of keys and values (a cache), for the forward pass alone.
    ///
    /// # Panics
    /// If a stretch is beyond this many rows of queries or of keys, or its queries begin before those in front of it have ended.
    pub fn behind(stretches: &[Stretch], queries: usize, keys: usize) -> Self {
        let in_order = stretches.windows(2).all(|pair| pair[0].queries + pair[0].len <= pair[1].queries);
        let inside = stretches.iter().all(|s| s.queries + s.len <= queries && s.keys + s.seen() <= keys);
        let numbers = [queries, keys].iter().all(|&n| i32::try_from(n).is_ok());
        assert!(in_order && inside && numbers, "attention: spans that do not fit");
        let covered: usize = stretches.iter().map(|s| s.len).sum();
        let stretches = stretches.to_vec();
        let (rows, gaps) = ([queries, keys], covered < queries);
        Self { stretches, rows, gaps, tiles: Mutex::default(), newest: OnceLock::new() }
    }

    /// The same stretches, of which a card has what [`Stretch::newest`] says of each already.
    #[must_use]
    pub fn with_newest(self, newest: Buffer<[i32; 2]>) -> Self {
        Self { newest: OnceLock::from(newest), ..self }
    }

    /// Of queries, and of keys and values.
    pub(super) fn rows(&self) -> [usize; 2] {
        self.rows
    }

    /// Whether there are queries outside of all stretches.
    pub(super) fn has_gaps(&self) -> bool {
        self.gaps
    }

    pub(super) fn count(&self) -> usize {
        self.stretches.len()
    }

    /// Keys of the longest sequence.
    pub(super) fn longest(&self) -> usize {
        self.stretches.iter().map(Stretch::seen).max().unwrap_or(0)
    }

    /// Whether each stretch has one query, the row of its own number.
    pub(super) fn is_newest(&self) -> bool {
        !self.gaps && self.stretches.iter().all(|s| s.len == 1)
    }

    /// [`Stretch::newest`] of each, on the card.
    pub(super) fn newest(&self, context: &Context) -> &Buffer<[i32; 2]> {
        self.newest.get_or_init(|| context.upload(&self.stretches.iter().map(Stretch::newest).collect::<Vec<_>>()))
    }

    /// Whether the keys are those of the queries, as in training.
    pub(super) fn is_whole(&self) -> bool {
        self.rows[0] == self.rows[1] && self.stretches.iter().all(|s| s.past == 0 && s.keys == s.queries)
    }

    /// All positions in tiles of at most `size`.
    pub(super) fn tiles(&self, context: &Context, size: usize, order: Order) -> Arc<Buffer<Tile>> {
        let mut known = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            known
                .entry((size, order))
                .or_insert_with(|| Arc::new(context.upload(&tiles(&self.stretches, size, order)))),
        )
    }
}

fn tiles(stretches: &[Stretch], size: usize, order: Order) -> Vec<Tile> {
    let of = |s: &Stretch| {
        let span = s.queries as i32 - s.past as i32;
        let (length, keys) = (s.seen() as i32, s.keys as i32 - span);
        (s.past..s.seen()).step_by(size).map(move |first| Tile { span, length, first: first as i32, keys })
    };
    let mut tiles: Vec<Tile> = stretches.iter().flat_map(of).collect();
    match order {
        Order::Queries => tiles.sort_by_key(|tile| -tile.first),
        Order::Keys => tiles.sort_by_key(|tile| tile.first),
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_that_take_longest_come_first() {
        let tile = |span, length, first| Tile { span, length, first, keys: 0 };
        let spans = Spans::new(&[0..5, 5..5, 7..9], 9).stretches;
        let queries = tiles(&spans, 2, Order::Queries);
        assert_eq!(queries, [tile(0, 5, 4), tile(0, 5, 2), tile(0, 5, 0), tile(7, 2, 0)]);
        let keys = tiles(&spans, 4, Order::Keys);
        assert_eq!(keys, [tile(0, 5, 0), tile(7, 2, 0), tile(0, 5, 4)]);
    }

    /// Rows of queries count from the past, which has none.
    #[test]
    fn tiles_behind_a_past_know_where_its_keys_are() {
        let stretch = Stretch { queries: 1, len: 3, keys: 40, past: 5 };
        let found = tiles(&[stretch], 2, Order::Queries);
        let tile = |first| Tile { span: -4, length: 8, first, keys: 44 };
        assert_eq!(found, [tile(7), tile(5)]);
        assert!(!Spans::behind(&[stretch], 4, 48).is_newest());
        assert!(Spans::behind(&[Stretch { queries: 0, len: 1, ..stretch }], 1, 48).is_newest());
    }

    #[test]
    #[should_panic(expected = "spans that do not fit")]
    fn spans_do_not_overlap() {
        Spans::new(&[0..4, 3..6], 8);
    }
}

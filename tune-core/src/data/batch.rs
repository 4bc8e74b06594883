//! What the model is fed: rows of token ids, and what is to be predicted at each position.

use std::ops::Range;

pub use crate::kernels::IGNORE;

/// One tokenized example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Token ids, already cut to the longest allowed length.
    pub input_ids: Vec<u32>,
    /// For each position the token to predict from it, that is the next one, or [`IGNORE`]; of a sample that is [`Sample::scored`], its label.
    pub targets: Vec<u32>,
    /// Where the example came from, for messages: `file.jsonl:17`.
    pub origin: String,
    /// Whether its answer is good, where answers are labelled.
    pub label: Option<bool>,
}

impl Sample {
    /// The same for a model that scores sequences: its one target is `label`, at its last token that is not `pad`, which is where
    /// transformers' models for sequence classification take the score. What comes behind that token is left out: nothing before it
    /// depends on it.
    #[must_use]
    pub fn scored(mut self, label: u32, pad: Option<u32>) -> Self {
        let last = self.input_ids.iter().rposition(|&id| Some(id) != pad).unwrap_or(0);
        self.input_ids.truncate(last + 1);
        self.targets = vec![IGNORE; self.input_ids.len()];
        if let Some(target) = self.targets.last_mut() {
            *target = label;
        }
        self
    }
}

/// A stretch of one row that belongs together: attention never leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The row, from 0.
    pub row: usize,
    /// The first position.
    pub start: usize,
    /// The number of positions.
    pub len: usize,
}

/// Rows of equal length. Positions outside every span are padding: they attend to
/// nothing, nothing attends to them, and they are not trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Positions in a row.
    pub len: usize,
    /// Token ids, `[rows * len]`, row by row.
    pub input_ids: Vec<u32>,
    /// The token to predict at each position or [`IGNORE`], `[rows * len]`.
    pub targets: Vec<u32>,
    /// The position of each token in its own sample (for rotary embeddings), `[rows * len]`.
    pub positions: Vec<u32>,
    /// The samples in the rows, by row and then by start.
    pub spans: Vec<Span>,
    /// Where each span's sample came from, in the order of `spans`.
    pub origins: Vec<String>,
    /// Whether each span's answer is good, in the order of `spans`; empty where answers are not labelled.
    pub labels: Vec<bool>,
}

impl Batch {
    /// The number of positions that are trained.
    pub fn trained_tokens(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE).count()
    }

    /// The number of tokens that are not padding.
    pub fn tokens(&self) -> usize {
        self.spans.iter().map(|s| s.len).sum()
    }

    /// Where a sample's positions are among those of all rows, `[rows * len]`.
    pub fn positions_of(&self, span: &Span) -> Range<usize> {
        let start = span.row * self.len + span.start;
        start..start + span.len
    }

    /// The number of a sample's positions that are trained.
    pub fn trained_tokens_of(&self, span: &Span) -> usize {
        self.targets[self.positions_of(span)].iter().filter(|&&target| target != IGNORE).count()
    }

    /// One token that is not trained: for a process that has nothing to compute while others compute together.
    pub(crate) fn idle() -> Self {
        Self {
            rows: 1,
            len: 1,
            input_ids: vec![0],
            targets: vec![IGNORE],
            positions: vec![0],
            spans: vec![Span { row: 0, start: 0, len: 1 }],
            origins: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// The same samples in one row, one behind the other: what is computed for padding is computed for nothing.
    pub(crate) fn without_padding(&self) -> Self {
        let gather = |values: &[u32]| -> Vec<u32> { self.places().map(|place| values[place]).collect() };
        let mut start = 0;
        let spans = self.spans.iter().map(|s| {
            start += s.len;
            Span { row: 0, start: start - s.len, len: s.len }
        });
        Self {
            rows: 1,
            spans: spans.collect(),
            len: self.tokens(),
            input_ids: gather(&self.input_ids),
            targets: gather(&self.targets),
            positions: gather(&self.positions),
            origins: self.origins.clone(),
            labels: self.labels.clone(),
        }
    }

    /// Where the tokens of [`Batch::without_padding`] are in this batch.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> {
        self.spans.iter().flat_map(|span| self.positions_of(span))
    }
}

//! From files of text to batches of token ids.

mod batch;

pub use batch::{Batch, IGNORE, Sample, Span};

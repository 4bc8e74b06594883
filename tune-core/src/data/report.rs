//! What became of the data on its way to the model.

use std::fmt;

/// How many origins of dropped samples are kept, for the message.
const SHOWN: usize = 3;

/// One dataset's account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetReport {
    /// The dataset's kind and its first file.
    pub name: String,
    /// Samples that will be trained on.
    pub samples: usize,
    /// Tokens in them, after cutting.
    pub tokens: usize,
    /// Tokens that are trained.
    pub trained_tokens: usize,
    /// Samples that were cut to the longest allowed length.
    pub truncated: usize,
    /// Samples left out because none of their tokens is trained.
    pub dropped: usize,
    /// The first of those.
    pub dropped_origins: Vec<String>,
    /// The longest sample's tokens, after cutting.
    pub longest: usize,
    /// What deserves attention.
    pub warnings: Vec<String>,
}

impl DatasetReport {
    pub(super) fn drop_sample(&mut self, origin: &str) {
        self.dropped += 1;
        if self.dropped_origins.len() < SHOWN {
            self.dropped_origins.push(origin.to_owned());
        }
    }
}

impl fmt::Display for DatasetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} samples, {} tokens of which {} are trained, the longest sample has {}",
            self.name, self.samples, self.tokens, self.trained_tokens, self.longest
        )?;
        if self.truncated > 0 {
            write!(f, "; {} cut", self.truncated)?;
        }
        if self.dropped > 0 {
            write!(f, "; {} dropped", self.dropped)?;
        }
        Ok(())
    }
}

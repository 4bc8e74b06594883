//! From files of text to batches of token ids.
//!
//! Batch `i` of epoch `e` is a function of the data, the seed, `e` and `i` alone ([`Loader::epoch`]): that is what makes a resumed run
//! exact. Each record's form is checked before anything is written.
//!
//! A kind of data that no [`DatasetConfig`] has comes in as [`Sample`]s, of which a recipe makes a loader of its own, and
//! puts it where [`Opened`](crate::recipe::Opened) has that of the config:
//!
//! ```
//! use tune_core::Result;
//! use tune_core::data::{IGNORE, Loader, LoaderOptions, Sample};
//!
//! /// A question whose answer alone is trained. From each position the next token is predicted.
//! fn sample(question: &[u32], answer: &[u32], origin: String) -> Sample {
//!     let input_ids = [question, answer].concat();
//!     let next = input_ids.iter().skip(1).copied().chain([IGNORE]);
//!     let targets = next.enumerate().map(|(i, id)| if i + 1 < question.len() { IGNORE } else { id }).collect();
//!     Sample { input_ids, targets, origin, label: None }
//! }
//!
//! let pairs = [([1, 2, 3].as_slice(), [4, 5].as_slice()), (&[1, 6], &[7])];
//! let samples = pairs.iter().enumerate().map(|(i, (q, a))| sample(q, a, format!("pairs:{}", i + 1))).collect();
//! let options = LoaderOptions { batch_size: 2, shuffle: true, seed: 1, ..LoaderOptions::default() };
//! let loader = Loader::new(samples, options)?;
//! let batch = loader.batch(0, 0)?.expect("the first epoch has one batch");
//! assert_eq!((batch.rows, batch.trained_tokens()), (2, 3));
//! # Ok::<(), tune_core::Error>(())
//! ```

mod advice;
mod ahead;
mod alpaca;
mod batch;
mod beside;
mod config;
mod content;
mod conversation;
mod corpus;
mod encoder;
mod faults;
mod files;
mod filter;
mod format;
mod held;
mod json_text;
mod kind;
mod loader;
mod maker;
mod mixture;
mod order;
mod pack;
mod pieces;
mod preference;
mod pretrain;
mod questions;
mod records;
mod report;
mod running_text;
mod scored;
mod scratch;
mod selected;
mod source;
mod split;
mod stand_in;
mod tokens;
mod trained;
mod unpaired;
mod unused;
mod write_tokens;

pub use batch::{Batch, IGNORE, Sample, Span};
pub use config::{
    AlpacaColumns, AlpacaDataset, ChatDataset, ConversationStyle, DatasetConfig, InstructColumns, InstructDataset,
    Mask, Masking, TextDataset,
};
pub use faults::{Faults, examples, faults};
pub use files::{Files, Source};
pub use filter::Filter;
pub use kind::DataConfig;
pub use loader::{Epoch, Loader, LoaderOptions, Padding};
pub use pack::{Fit, Joins, Rows};
pub use preference::{
    AnswerColumns, ConversationColumns, PreferenceConfig, PreferenceDataset, PreferenceInstructDataset,
};
pub use pretrain::{DocumentsDataset, PretrainData};
pub(crate) use questions::{Question, questions};
pub use report::{DatasetReport, Mixed};
pub use running_text::running_text;
pub use scored::{LabelledDataset, ScoredConfig};
pub(crate) use source::{EXTENSIONS, is_data};
pub(crate) use split::part;
pub use tokens::{Header, TokenWidth, TokensDataset};
pub use unpaired::{
    LabelledAnswerColumns, LabelledConversationColumns, UnpairedConfig, UnpairedDataset, UnpairedInstructDataset,
};
pub use write_tokens::write_tokens;

use crate::Result;
use crate::tokenizer::Tokenizer;
use corpus::Corpus;

/// Tokenized samples, in the order of the datasets, files and records.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The samples, each with at least one trained token.
    pub samples: Vec<Sample>,
    /// For [`LoaderOptions::pack_to`]: the length of a row, where the config asks for packing.
    pub pack_to: Option<usize>,
    /// One account for each dataset.
    pub reports: Vec<DatasetReport>,
}

impl Dataset {
    /// What deserves attention, of all datasets; the model is made for sequences of `max_positions` tokens.
    pub fn warnings(&self, max_positions: usize) -> Vec<String> {
        let unused = self.reports.iter().flat_map(|report| report.unused.iter().cloned());
        unused.chain(report::warnings(&self.reports, max_positions)).collect()
    }
}

/// Reads and tokenizes datasets, one after the other, into memory; [`Loader::open`] does not keep them there.
/// Samples are cut to `max_seq_len` tokens; those that then have no trained token are left out.
///
/// # Errors
/// A file that cannot be read, a record that is not what the dataset's kind expects (both name
/// the place), a chat template that cannot be trained with, and a dataset of which nothing is left.
pub fn load(
    configs: impl IntoIterator<Item = impl Into<DataConfig>>,
    tokenizer: &Tokenizer,
    max_seq_len: Option<usize>,
) -> Result<Dataset> {
    let configs: Vec<DataConfig> = configs.into_iter().map(Into::into).collect();
    let corpus = Corpus::open(&configs, tokenizer, max_seq_len, 0)?;
    let mut account = corpus.account();
    let all: Vec<usize> = (0..corpus.len()).collect();
    let samples = corpus.tokenize(&all, &mut account)?.into_iter().map(|(_, sample)| sample).collect();
    Ok(Dataset { samples, pack_to: corpus.packing().to, reports: corpus.reports(account)? })
}

#[cfg(test)]
mod testing;
#[cfg(test)]
#[path = "tests.rs"]
mod tests;

//! From files of text to batches of token ids.

mod batch;
mod config;
mod conversation;
mod format;
mod loader;
mod pack;
mod pieces;
mod report;
mod source;
mod split;

use std::collections::BTreeMap;

use rayon::prelude::*;

pub use batch::{Batch, IGNORE, Sample, Span};
pub use config::{
    AlpacaColumns, AlpacaDataset, ChatDataset, ConversationStyle, DatasetConfig, Files, InstructColumns,
    InstructDataset, Mask, Masking, TextDataset,
};
pub use loader::{Epoch, Loader, LoaderOptions};
pub use report::DatasetReport;

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use format::Formatter;
use pieces::Closing;

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
        let too_long = |r: &DatasetReport| {
            (r.longest > max_positions).then(|| {
                format!(
                    "{}: the longest sample has {} tokens, and the model is made for at most {max_positions}: \
                     set `tokenizer.max_seq_len`",
                    r.name, r.longest
                )
            })
        };
        self.reports.iter().flat_map(|r| r.warnings.iter().cloned().chain(too_long(r))).collect()
    }
}

/// Reads and tokenizes datasets, one after the other. Samples are cut to `max_seq_len` tokens;
/// those that then have no trained token are left out.
///
/// # Errors
/// A file that cannot be read, a record that is not what the dataset's kind expects (both name
/// the place), a chat template that cannot be trained with, and a dataset of which nothing is left.
pub fn load(configs: &[DatasetConfig], tokenizer: &Tokenizer, max_seq_len: Option<usize>) -> Result<Dataset> {
    let Some(first) = configs.first() else {
        return Err(Error::setup("there is no dataset"));
    };
    let packed = first.packed();
    if configs.iter().any(|c| c.packed() != packed) {
        return Err(Error::setup("of several datasets either all or none must be `packed`"));
    }
    if packed && max_seq_len.is_none() {
        return Err(Error::setup("a packed dataset needs `max_seq_len`, the length of a row"));
    }
    let mut dataset = Dataset { samples: Vec::new(), pack_to: max_seq_len.filter(|_| packed), reports: Vec::new() };
    for config in configs {
        let (samples, report) = load_one(config, tokenizer, max_seq_len)?;
        dataset.samples.extend(samples);
        dataset.reports.push(report);
    }
    Ok(dataset)
}

fn load_one(
    config: &DatasetConfig,
    tokenizer: &Tokenizer,
    max_seq_len: Option<usize>,
) -> Result<(Vec<Sample>, DatasetReport)> {
    let formatter = Formatter::new(config, tokenizer)?;
    let records = source::read(config.files(), config.first_column())?;

    let encoded: Vec<Result<(pieces::Encoded, Closing)>> = records
        .par_iter()
        .map(|record| {
            let (pieces, closing) = formatter.pieces(record)?;
            let origin = record.origin.to_string();
            let encoded =
                pieces::encode(tokenizer, &pieces, max_seq_len, origin).map_err(|e| record.origin.error(e))?;
            Ok((encoded, closing))
        })
        .collect();

    let mut report = DatasetReport { name: config.name(), ..DatasetReport::default() };
    let mut samples = Vec::with_capacity(encoded.len());
    let mut never_closed = 0;
    let mut closed_by: BTreeMap<u32, usize> = BTreeMap::new();
    // In order, so that of several broken records the first is named.
    for result in encoded {
        let (encoded, closing) = result?;
        let sample = encoded.sample;
        let len = sample.input_ids.len();
        report.truncated += usize::from(len < encoded.full_len);
        let trained = sample.targets.iter().filter(|&&t| t != IGNORE).count();
        if trained == 0 {
            report.drop_sample(&sample.origin);
            continue;
        }
        match closing {
            Closing::Stop => {}
            Closing::Other(id) => *closed_by.entry(id).or_default() += 1,
            Closing::Nothing => never_closed += 1,
        }
        report.samples += 1;
        report.tokens += len;
        report.trained_tokens += trained;
        report.longest = report.longest.max(len);
        samples.push(sample);
    }
    if samples.is_empty() {
        return Err(Error::setup(format!(
            "{}: none of the {} samples has a trained token within {} tokens: {}",
            report.name,
            report.dropped,
            max_seq_len.map_or_else(|| "all its".to_owned(), |n| format!("`max_seq_len` = {n}")),
            "raise `max_seq_len`, or look whether the answers are empty"
        )));
    }
    if report.dropped > 0 {
        report.warnings.push(format!(
            "{}: {} samples have no trained token (they are empty, or `max_seq_len` cuts their answers off) and are \
             left out: {}{}",
            report.name,
            report.dropped,
            report.dropped_origins.join(", "),
            if report.dropped > report.dropped_origins.len() { " …" } else { "" }
        ));
    }
    if never_closed > 0 {
        report.warnings.push(format!(
            "{}: in {never_closed} samples no stop token follows the answer, so that the model does not learn where \
             to stop",
            report.name
        ));
    }
    for (id, count) in closed_by {
        report.warnings.push(format!(
            "{}: in {count} samples the answer is closed by `{}`, which is not among the model's stop tokens: add its \
             id {id} to `eos_token_id` in generation_config.json",
            report.name,
            tokenizer.token(id).unwrap_or_default()
        ));
    }
    if formatter.template().is_some_and(|t| t.uses_date()) {
        report.warnings.push(format!("{}: the chat template writes the day's date into the conversation", report.name));
    }
    Ok((samples, report))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

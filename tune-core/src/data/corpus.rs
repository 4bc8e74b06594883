//! All records of a run's datasets, and the samples that they become.

use rayon::prelude::*;

use super::batch::Sample;
use super::config::DatasetConfig;
use super::faults;
use super::format::Formatter;
use super::records::{Record, Records};
use super::report::{DatasetReport, Tally};
use super::source;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The records of several datasets, one after the other: found and checked, but not kept in memory.
pub(super) struct Corpus {
    parts: Vec<Part>,
    tokenizer: Tokenizer,
    max_seq_len: Option<usize>,
    packed: bool,
    /// Whether what is cut off is tokenized, too, to count it.
    count_cut: bool,
}

struct Part {
    config: DatasetConfig,
    records: Records,
    /// The first record's index in the corpus.
    first: usize,
}

impl Corpus {
    /// Finds the records, reads each once, and checks that it is what its dataset expects. What takes long,
    /// rendering and tokenizing, is left for [`Corpus::tokenize`].
    pub(super) fn open(configs: &[DatasetConfig], tokenizer: &Tokenizer, max_seq_len: Option<usize>) -> Result<Self> {
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
        let mut corpus =
            Self { parts: Vec::new(), tokenizer: tokenizer.clone(), max_seq_len, packed, count_cut: false };
        for config in configs {
            let formatter = Formatter::new(config, tokenizer)?;
            let records = source::find(config.files(), config.first_column())?;
            let check = |i| records.read(i).and_then(|record| formatter.check(&record)).err();
            // Of several broken records the first is named, whichever thread met one first.
            if let Some(error) = (0..records.len()).into_par_iter().find_map_first(check) {
                return Err(error);
            }
            let first = corpus.len();
            corpus.parts.push(Part { config: config.clone(), records, first });
        }
        Ok(corpus)
    }

    /// The same, which counts all tokens that are cut off, if `count_cut`.
    pub(super) fn counting(self, count_cut: bool) -> Self {
        Self { count_cut, ..self }
    }

    /// Records, of all datasets.
    pub(super) fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first + part.records.len())
    }

    /// The length of a row, where samples are to be packed.
    pub(super) fn pack_to(&self) -> Option<usize> {
        self.max_seq_len.filter(|_| self.packed)
    }

    /// Where a record stands.
    pub(super) fn origin(&self, record: usize) -> String {
        let part = &self.parts[self.part_of(record)];
        part.records.origin(record - part.first).to_string()
    }

    /// The datasets with their number of records, in words.
    pub(super) fn summary(&self) -> Vec<String> {
        self.parts.iter().map(|part| format!("{}: {} records", part.config.name(), part.records.len())).collect()
    }

    fn part_of(&self, record: usize) -> usize {
        self.parts.partition_point(|part| part.first <= record) - 1
    }

    /// An account of nothing yet, one for each dataset.
    pub(super) fn account(&self) -> Vec<Tally> {
        self.parts.iter().map(|part| Tally::new(part.config.name())).collect()
    }

    /// Tokenizes records, on all threads. Returns those samples that have a trained token, each with its
    /// record, in the order of `records`.
    pub(super) fn tokenize(&self, records: &[usize], account: &mut [Tally]) -> Result<Vec<(usize, Sample)>> {
        let formatters = self.parts.iter().map(|part| Formatter::new(&part.config, &self.tokenizer));
        let formatters = formatters.collect::<Result<Vec<Formatter<'_>>>>()?;
        let encode = |&i: &usize| {
            let part = self.part_of(i);
            let record: Record = self.parts[part].records.read(i - self.parts[part].first)?;
            formatters[part].encode(&record, self.max_seq_len, self.count_cut)
        };
        let encoded: Vec<_> = records.par_iter().map(encode).collect();
        let mut samples = Vec::with_capacity(records.len());
        // In order, so that of several broken records the first is named.
        for (&i, encoded) in records.iter().zip(encoded) {
            let formatted = encoded?;
            if account[self.part_of(i)].count(i, &formatted) {
                samples.push((i, formatted.encoded.sample));
            }
        }
        Ok(samples)
    }

    /// The samples of the first `n` records of each dataset, also of those without a trained token.
    pub(super) fn examples(&self, n: usize) -> Vec<Sample> {
        let of_part =
            |part: &Part| faults::first_samples(&part.config, &part.records, &self.tokenizer, self.max_seq_len, n);
        self.parts.iter().flat_map(of_part).collect()
    }

    /// The reports, once all records are tokenized.
    pub(super) fn reports(&self, account: Vec<Tally>) -> Result<Vec<DatasetReport>> {
        let report = |(part, tally): (&Part, Tally)| {
            let formatter = Formatter::new(&part.config, &self.tokenizer)?;
            tally.report(self.max_seq_len, &self.tokenizer, &formatter, |i| self.origin(i))
        };
        self.parts.iter().zip(account).map(report).collect()
    }
}

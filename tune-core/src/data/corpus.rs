//! All records of a run's datasets, and the samples that they become.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::batch::Sample;
use super::faults::{self, Faults};
use super::kind::DataConfig;
use super::maker::Maker;
use super::pack::{Joins, Packing};
use super::records::Records;
use super::report::{DatasetReport, Tally};
use super::source;
use super::unused::Held;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The records of several datasets, one after the other: found and checked, but not kept in memory.
pub(super) struct Corpus {
    parts: Vec<Part>,
    tokenizer: Tokenizer,
    max_seq_len: Option<usize>,
    packed: bool,
    joins: Joins,
    /// Whether what is cut off is tokenized, too, to count it.
    count_cut: bool,
}

struct Part {
    config: DataConfig,
    records: Records,
    /// The first record's index in the corpus.
    first: usize,
    /// What its records hold and nobody reads, in words.
    unused: Vec<String>,
    /// Messages with calls whose arguments are JSON text.
    argument_texts: usize,
}

/// What one look at each record of a dataset tells.
#[derive(Default)]
struct Scan {
    held: Held,
    broken: usize,
    /// What is wrong with the first of the broken ones, whichever thread met one first.
    first: BTreeMap<usize, Error>,
}

impl Scan {
    fn of(maker: &Maker<'_>, records: &Records) -> Self {
        let look = |mut scan: Self, i| {
            match maker.read(records, i).and_then(|record| maker.check(&record).map(|()| record)) {
                Ok(record) => maker.note(i, &record, &mut scan.held),
                Err(error) => scan.fault(i, error),
            }
            scan
        };
        (0..records.len()).into_par_iter().fold(Self::default, look).reduce(Self::default, Self::and)
    }

    fn fault(&mut self, record: usize, error: Error) {
        self.broken += 1;
        self.first.insert(record, error);
        if self.first.len() > faults::KEPT {
            self.first.pop_last();
        }
    }

    fn and(mut self, other: Self) -> Self {
        let broken = self.broken + other.broken;
        other.first.into_iter().for_each(|(record, error)| self.fault(record, error));
        Self { held: self.held.and(other.held), broken, first: self.first }
    }

    fn faults(self, config: &DataConfig, records: usize) -> Faults {
        Faults { name: config.name(), records, broken: self.broken, first: self.first.into_values().collect() }
    }
}

impl Corpus {
    /// Finds the records, reads each once, and checks that it is what its dataset expects. What takes long,
    /// rendering and tokenizing, is left for [`Corpus::tokenize`].
    pub(super) fn open(configs: &[DataConfig], tokenizer: &Tokenizer, max_seq_len: Option<usize>) -> Result<Self> {
        let Some(first) = configs.first() else {
            return Err(Error::setup("there is no dataset"));
        };
        let packed = first.packed();
        if configs.iter().any(|c| c.packed() != packed) {
            return Err(Error::setup("of several datasets either all or none must be `packed`"));
        }
        if configs.iter().any(|c| c.joins != first.joins) {
            return Err(Error::setup(
                "of several datasets all must fill rows in the same way: `text` with one `attend_across`, or none of `text`",
            ));
        }
        if configs.iter().any(|c| c.is_of_pairs() != first.is_of_pairs()) {
            return Err(Error::setup("of several datasets either all or none must be of pairs of answers"));
        }
        if packed && max_seq_len.is_none() {
            return Err(Error::setup("a packed dataset needs `max_seq_len`, the length of a row"));
        }
        let mut faults = Vec::new();
        let mut corpus = Self {
            parts: Vec::new(),
            tokenizer: tokenizer.clone(),
            max_seq_len,
            packed,
            joins: first.joins,
            count_cut: false,
        };
        for config in configs {
            let found = Maker::new(config, tokenizer)
                .and_then(|maker| Ok((maker, source::find(config.files(), &config.all_columns())?)));
            let (maker, records) = match found {
                Ok(found) => found,
                Err(error) => {
                    faults.push(Faults::of_dataset(config, error));
                    continue;
                }
            };
            let scan = Scan::of(&maker, &records);
            if scan.broken > 0 {
                faults.push(scan.faults(config, records.len()));
                continue;
            }
            let mut held = scan.held;
            maker.keep_unused(&mut held, &records);
            let unused = held.warnings(&config.name());
            let first = corpus.len();
            let argument_texts = held.argument_texts.count;
            corpus.parts.push(Part { config: config.clone(), records, first, unused, argument_texts });
        }
        match faults::error(faults) {
            Some(error) => Err(error),
            None => Ok(corpus),
        }
    }

    /// The same, which counts all tokens that are cut off, if `count_cut`.
    pub(super) fn counting(self, count_cut: bool) -> Self {
        Self { count_cut, ..self }
    }

    /// Records, of all datasets.
    pub(super) fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first + part.records.len())
    }

    /// How samples share rows.
    pub(super) fn packing(&self) -> Packing {
        Packing { to: self.max_seq_len.filter(|_| self.packed), joins: self.joins }
    }

    /// The samples that each record becomes.
    pub(super) fn samples_per_record(&self) -> usize {
        self.parts.first().map_or(1, |part| part.config.sides.len())
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

    /// The dataset that a record is of.
    pub(super) fn part_of(&self, record: usize) -> usize {
        self.parts.partition_point(|part| part.first <= record) - 1
    }

    /// An account of nothing yet, one for each dataset.
    pub(super) fn account(&self) -> Vec<Tally> {
        self.parts.iter().map(|part| Tally::new(&part.config)).collect()
    }

    /// Tokenizes records, on all threads. Returns the samples of those that have a trained token in each, each sample with
    /// its record, in the order of `records`.
    pub(super) fn tokenize(&self, records: &[usize], account: &mut [Tally]) -> Result<Vec<(usize, Sample)>> {
        let makers = self.parts.iter().map(|part| Maker::new(&part.config, &self.tokenizer));
        let makers = makers.collect::<Result<Vec<Maker<'_>>>>()?;
        let encode = |&i: &usize| {
            let part = self.part_of(i);
            let record = makers[part].read(&self.parts[part].records, i - self.parts[part].first)?;
            makers[part].encode(&record, self.parts[part].config.cut_to(self.max_seq_len), self.count_cut)
        };
        let encoded: Vec<_> = records.par_iter().map(encode).collect();
        let mut samples = Vec::with_capacity(records.len());
        let mut scans: BTreeMap<usize, (usize, Scan)> = BTreeMap::new();
        for (&i, encoded) in records.iter().zip(encoded) {
            let part = self.part_of(i);
            let (looked_at, scan) = scans.entry(part).or_default();
            *looked_at += 1;
            match encoded {
                Ok(made) if account[part].count(i, &made) => {
                    samples.extend(made.into_iter().map(|formatted| (i, formatted.encoded.sample)));
                }
                Ok(_) => {}
                Err(error) => scan.fault(i, error),
            }
        }
        let broken = scans.into_iter().filter(|(_, (_, scan))| scan.broken > 0);
        let faults = broken.map(|(part, (looked_at, scan))| scan.faults(&self.parts[part].config, looked_at));
        match faults::error(faults.collect()) {
            Some(error) => Err(error),
            None => Ok(samples),
        }
    }

    /// What the records hold and nobody reads, in words.
    pub(super) fn unused(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flat_map(|part| &part.unused).map(String::as_str)
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
            let maker = Maker::new(&part.config, &self.tokenizer)?;
            let report = tally.report(self.max_seq_len, &self.tokenizer, maker.template(), |i| self.origin(i))?;
            Ok(DatasetReport { unused: part.unused.clone(), argument_texts: part.argument_texts, ..report })
        };
        self.parts.iter().zip(account).map(report).collect()
    }
}

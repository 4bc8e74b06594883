//! All records of a run's datasets, and the samples that they become.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::batch::Sample;
use super::faults::{self, Faults};
use super::files::Files;
use super::format::Formatted;
use super::kind::DataConfig;
use super::maker::Maker;
use super::mixture::Mixture;
use super::pack::{Joins, Packing, Rows};
use super::records::Records;
use super::report::{DatasetReport, Mixed, Tally};
use super::selected::{self, Selected};
use super::unused::Held;
use crate::tokenizer::Tokenizer;
use crate::words::count;
use crate::{Error, Result};

/// The records of several datasets, one after the other: found and checked, but not kept in memory.
pub(super) struct Corpus {
    parts: Vec<Part>,
    /// Which of the records an epoch is made of, where it is not all of them in their order.
    mixture: Option<Mixture>,
    tokenizer: Tokenizer,
    max_seq_len: Option<usize>,
    rows: Rows,
    joins: Joins,
    /// Whether what is cut off is tokenized, too, to count it.
    count_cut: bool,
}

struct Part {
    config: DataConfig,
    records: Records,
    /// The first record's index among those of all parts.
    first: usize,
    /// Records that its filter did not let through.
    filtered: usize,
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
    /// rendering and tokenizing, is left for [`Corpus::tokenize`]. The seed decides what is held out and drawn of them.
    pub(super) fn open(
        configs: &[DataConfig],
        tokenizer: &Tokenizer,
        max_seq_len: Option<usize>,
        seed: u64,
    ) -> Result<Self> {
        let Some(first) = configs.first() else {
            return Err(Error::setup("there is no dataset"));
        };
        if configs.iter().any(|config| config.tokens.is_some()) {
            return Err(Error::setup("of several datasets either all or none must be files of tokens"));
        }
        let rows = first.rows();
        if configs.iter().any(|c| c.packed() != rows.packed) {
            return Err(Error::setup("of several datasets either all or none must be `packed`"));
        }
        if rows.packed && configs.iter().any(|c| c.rows() != rows) {
            return Err(Error::setup("of several datasets all must have the same `packing`"));
        }
        if configs.iter().any(|c| c.joins != first.joins) {
            return Err(Error::setup(
                "of several datasets all must fill rows in the same way: all or none of them are texts that go on in the next row \
                 (`split_across_pack`), with one `attend_across`",
            ));
        }
        if configs.iter().any(|c| c.is_of_pairs() != first.is_of_pairs()) {
            return Err(Error::setup("of several datasets either all or none must be of pairs of answers"));
        }
        if rows.packed && max_seq_len.is_none() {
            return Err(Error::setup("a packed dataset needs `max_seq_len`, the length of a row"));
        }
        let mut faults = Vec::new();
        let mut corpus = Self {
            parts: Vec::new(),
            mixture: None,
            tokenizer: tokenizer.clone(),
            max_seq_len,
            rows,
            joins: first.joins,
            count_cut: false,
        };
        for config in configs {
            let found = Maker::new(config, tokenizer).and_then(|maker| Ok((maker, selected::find(config)?)));
            let (maker, Selected { records, filtered }) = match found {
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
            // Of what is held out, training data has told already.
            let unused = if config.is_held_out() { Vec::new() } else { held.warnings(&config.name()) };
            let argument_texts = held.argument_texts.count;
            match config.share.of(records, seed) {
                Ok(records) => {
                    let first = corpus.records();
                    let config = config.clone();
                    corpus.parts.push(Part { config, records, first, filtered, unused, argument_texts });
                }
                Err(error) => faults.push(Faults::of_dataset(config, error)),
            }
        }
        if let Some(error) = faults::error(faults) {
            return Err(error);
        }
        let datasets: Vec<_> = corpus.parts.iter().map(|part| (&part.config, part.records.len())).collect();
        corpus.mixture = Mixture::of(&datasets, seed)?;
        Ok(corpus)
    }

    /// The same, which counts all tokens that are cut off, if `count_cut`.
    pub(super) fn counting(self, count_cut: bool) -> Self {
        Self { count_cut, ..self }
    }

    /// Records of an epoch, of all datasets.
    pub(super) fn len(&self) -> usize {
        self.mixture.as_ref().map_or_else(|| self.records(), |mixture| mixture.records.len())
    }

    /// Records of all parts.
    fn records(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first + part.records.len())
    }

    /// The part with record `i` of an epoch, and the record's number in it.
    fn place(&self, i: usize) -> (usize, usize) {
        let record = self.mixture.as_ref().map_or(i, |mixture| mixture.records[i]);
        let part = self.parts.partition_point(|part| part.first <= record) - 1;
        (part, record - self.parts[part].first)
    }

    /// How samples share rows.
    pub(super) fn packing(&self) -> Packing {
        let Rows { packed, packing: fit } = self.rows;
        Packing { to: self.max_seq_len.filter(|_| packed), joins: self.joins, fit }
    }

    /// The samples that each record becomes.
    pub(super) fn samples_per_record(&self) -> usize {
        self.parts.first().map_or(1, |part| part.config.sides.len())
    }

    /// Where a record stands.
    pub(super) fn origin(&self, record: usize) -> String {
        let (part, record) = self.place(record);
        self.parts[part].records.origin(record).to_string()
    }

    /// The datasets with their number of records, in words.
    pub(super) fn summary(&self) -> Vec<String> {
        let taken =
            |i: usize, part: &Part| self.mixture.as_ref().map_or(part.records.len(), |mixture| mixture.taken[i]);
        let line = |(i, part): (usize, &Part)| format!("{}: {}", part.config.name(), count(taken(i, part), "record"));
        self.parts.iter().enumerate().map(line).collect()
    }

    /// The dataset that a record is of.
    pub(super) fn part_of(&self, record: usize) -> usize {
        self.place(record).0
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
            let (part, number) = self.place(i);
            let Part { config, records, .. } = &self.parts[part];
            let record = makers[part].read(records, number)?;
            let limit = config.cut_to(self.max_seq_len);
            // Whether a sample has a length that is wanted may show in what is cut off only.
            let is_beyond = |tokens: &usize| limit.is_some_and(|limit| limit < *tokens);
            let Files { min_tokens, max_tokens, .. } = config.files();
            let counts = [min_tokens, max_tokens].into_iter().flatten().any(is_beyond);
            makers[part].encode(&record, limit, self.count_cut || counts)
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
                    let finished = |made: Formatted| (i, makers[part].finished(made.encoded.sample));
                    samples.extend(made.into_iter().map(finished));
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
        let report = |(i, (part, tally)): (usize, (&Part, Tally))| {
            let maker = Maker::new(&part.config, &self.tokenizer)?;
            let report = tally.report(self.max_seq_len, &self.tokenizer, maker.template(), |i| self.origin(i))?;
            let mixed = |mixture: &Mixture| Mixed { taken: mixture.taken[i], of: part.records.len() };
            Ok(DatasetReport {
                filtered: part.filtered,
                mixed: self.mixture.as_ref().map(mixed),
                unused: part.unused.clone(),
                argument_texts: part.argument_texts,
                ..report
            })
        };
        self.parts.iter().zip(account).enumerate().map(report).collect()
    }
}

//! All that is wrong with datasets, where training stops at the first.

use std::fmt;

use rayon::prelude::*;

use super::batch::Sample;
use super::kind::DataConfig;
use super::maker::Maker;
use super::order::BLOCK;
use super::records::Records;
use super::selected;
use super::tokens::TokenFiles;
use crate::tokenizer::Tokenizer;
use crate::words::count;
use crate::{Error, Result};

/// How many errors of a dataset are kept; the others are counted.
pub(super) const KEPT: usize = 20;
/// Broken records that examples are looked for behind.
const PASSED_OVER: usize = 100;

/// What is wrong with a dataset.
#[derive(Debug)]
pub struct Faults {
    /// The dataset's kind and its first file.
    pub name: String,
    /// Its records; none where they cannot be found.
    pub records: usize,
    /// How many of them cannot be used.
    pub broken: usize,
    /// What is wrong with the first of them, or with the dataset as a whole.
    pub first: Vec<Error>,
}

impl Faults {
    /// Something that is wrong with a dataset as a whole.
    pub(super) fn of_dataset(config: &DataConfig, error: Error) -> Self {
        Self { name: config.name(), records: 0, broken: 0, first: vec![error] }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, records, broken, first } = self;
        if *broken == 0 {
            let errors: Vec<String> = first.iter().map(ToString::to_string).collect();
            return f.write_str(&errors.join("\n"));
        }
        write!(f, "{name}: {broken} of {} cannot be used", count(*records, "record"))?;
        first.iter().try_for_each(|error| write!(f, "\n  {error}"))?;
        match broken - first.len() {
            0 => Ok(()),
            more => write!(f, "\n  … and {more} more"),
        }
    }
}

/// All faults in one error; of a single fault its own.
pub(super) fn error(mut faults: Vec<Faults>) -> Option<Error> {
    if let [Faults { first, .. }] = faults.as_mut_slice()
        && first.len() == 1
    {
        return first.pop();
    }
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| Error::setup(texts.join("\n")))
}

/// Looks at every record of every dataset, and goes on behind a broken one. Datasets without a fault are left out.
/// Without a tokenizer, records are read, and neither rendered nor tokenized.
pub fn faults(
    configs: impl IntoIterator<Item = impl Into<DataConfig>>,
    tokenizer: Option<&Tokenizer>,
    max_seq_len: Option<usize>,
) -> Vec<Faults> {
    let of = configs.into_iter().map(|config| of_dataset(&config.into(), tokenizer, max_seq_len));
    of.filter(|faults| !faults.first.is_empty()).collect()
}

/// The samples of the first `n` records of each dataset that can be used, also of those without a trained token. Not
/// more than a few broken records are passed over.
pub fn examples(
    configs: impl IntoIterator<Item = impl Into<DataConfig>>,
    tokenizer: &Tokenizer,
    max_seq_len: Option<usize>,
    n: usize,
) -> Vec<Sample> {
    let of_dataset = |config: &DataConfig| match config.tokens.is_none().then(|| selected::find(config)) {
        Some(Ok(found)) => first_samples(config, &found.records, tokenizer, max_seq_len, n),
        Some(Err(_)) | None => Vec::new(),
    };
    configs.into_iter().flat_map(|config| of_dataset(&config.into())).collect()
}

/// Those of one dataset.
pub(super) fn first_samples(
    config: &DataConfig,
    records: &Records,
    tokenizer: &Tokenizer,
    max_seq_len: Option<usize>,
    n: usize,
) -> Vec<Sample> {
    let Ok(maker) = Maker::new(config, tokenizer) else { return Vec::new() };
    let made = |i| maker.encode(&maker.read(records, i).ok()?, max_seq_len, false).ok();
    let made = (0..records.len().min(n + PASSED_OVER)).filter_map(made).take(n);
    made.flatten().map(|formatted| formatted.encoded.sample).collect()
}

fn of_dataset(config: &DataConfig, tokenizer: Option<&Tokenizer>, row: Option<usize>) -> Faults {
    let max_seq_len = config.cut_to(row);
    let mut faults = Faults { name: config.name(), records: 0, broken: 0, first: Vec::new() };
    if config.tokens.is_some() {
        let opened = tokenizer.map(|tokenizer| TokenFiles::open(std::slice::from_ref(config), tokenizer, row));
        faults.first.extend(opened.and_then(Result::err));
        return faults;
    }
    let maker = tokenizer.map(|tokenizer| Maker::new(config, tokenizer)).transpose();
    let records = selected::find(config).map(|found| found.records);
    let (maker, records) = match (maker, records) {
        (Ok(maker), Ok(records)) => (maker, records),
        (maker, records) => {
            faults.first.extend(maker.err().into_iter().chain(records.err()));
            return faults;
        }
    };
    faults.records = records.len();
    let check = |i: usize| check(&records, i, maker.as_ref(), max_seq_len).err();
    for begin in (0..records.len()).step_by(BLOCK) {
        let errors: Vec<Error> = (begin..records.len().min(begin + BLOCK)).into_par_iter().filter_map(check).collect();
        faults.broken += errors.len();
        faults.first.extend(errors);
        faults.first.truncate(KEPT);
    }
    faults
}

fn check(records: &Records, i: usize, maker: Option<&Maker<'_>>, max_seq_len: Option<usize>) -> Result<()> {
    match maker {
        Some(maker) => maker.encode(&maker.read(records, i)?, max_seq_len, false).map(drop),
        None => records.read(i).map(drop),
    }
}

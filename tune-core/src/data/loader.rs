//! Batches, in an order that depends on the seed and the epoch and on nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::ahead::{Block, Origin, Tokenized};
use super::batch::{Batch, IGNORE, Sample, Span};
use super::corpus::Corpus;
use super::kind::DataConfig;
use super::order::{BLOCK, Order};
use super::pack::{Fit, Joins, Packing};
use super::report::{self, DatasetReport};
use super::tokens::TokenFiles;
use crate::tokenizer::Tokenizer;
use crate::words::{count, for_number};
use crate::{Error, Result};

/// Rows, over all epochs, that are looked at for the largest batch.
const MOST_ROWS: u64 = 1 << 20;

/// How samples become batches.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Rows in a batch.
    pub batch_size: usize,
    /// Put several samples into a row of up to this many tokens; `None` is one sample a row.
    pub pack_to: Option<usize>,
    /// What becomes of a sample that does not fit into what is left of such a row.
    pub joins: Joins,
    /// Which samples share such a row.
    pub fit: Fit,
    /// Take the rows in a new order in each epoch.
    pub shuffle: bool,
    /// Decides the orders.
    pub seed: u64,
    /// The token that fills rows up to the batch's longest.
    pub pad_id: u32,
    /// Leave out the last batch of an epoch where it is not full.
    pub drop_last: bool,
    /// Pad to a length that this divides.
    pub pad_to_multiple_of: usize,
    /// Tokenize what is cut off, too, for [`DatasetReport::cut_tokens`](super::DatasetReport::cut_tokens). The
    /// batches are the same.
    pub count_cut: bool,
    /// Refuse datasets of which the model would not learn to end its answers.
    pub must_stop: bool,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 1,
            pack_to: None,
            joins: Joins::Whole,
            fit: Fit::Greedy,
            shuffle: false,
            seed: 0,
            pad_id: 0,
            drop_last: false,
            pad_to_multiple_of: 1,
            count_cut: false,
            must_stop: false,
        }
    }
}

/// Samples in batches: which are in batch `index` of an epoch is a function of the data and the options, so
/// that a resumed run goes on exactly where it was stopped.
///
/// Packing is done once; it is the packs that are shuffled. Of data with more
/// than 4096 records, each 4096 are packed and shuffled together: the rest is tokenized while the first are
/// trained on. Samples are in a temporary file, not in memory.
pub struct Loader {
    tokenized: Arc<Tokenized>,
    order: Order,
    options: LoaderOptions,
    /// Whether everything was tokenized at once.
    at_once: bool,
    told: AtomicBool,
    told_of_records: AtomicBool,
}

impl Loader {
    /// A loader of samples that are there.
    ///
    /// # Errors
    /// Where there is not one batch, and where no temporary file can be written.
    pub fn new(samples: Vec<Sample>, options: LoaderOptions) -> Result<Self> {
        Self::with_blocks(Origin::Memory(samples), options, BLOCK)
    }

    /// A loader of datasets, which decide about [`LoaderOptions::pack_to`], [`LoaderOptions::joins`] and [`LoaderOptions::fit`]. Samples are cut to
    /// `max_seq_len` tokens; those that then have no trained token are left out.
    ///
    /// Every record is read and checked, and the first of them are tokenized; the others are on
    /// threads of their own, and what fails there is returned by whatever is asked next.
    ///
    /// # Errors
    /// As [`data::load`](super::load) and [`Loader::new`].
    pub fn open(
        configs: impl IntoIterator<Item = impl Into<DataConfig>>,
        tokenizer: &Tokenizer,
        max_seq_len: Option<usize>,
        mut options: LoaderOptions,
    ) -> Result<Self> {
        let configs: Vec<DataConfig> = configs.into_iter().map(Into::into).collect();
        if let Some(files) = TokenFiles::open(&configs, tokenizer, max_seq_len)? {
            options.pack_to = max_seq_len;
            options.joins = configs.first().map_or(Joins::Whole, |config| config.joins);
            return Self::with_blocks(Origin::Tokens(Box::new(files)), options, BLOCK);
        }
        let corpus = Corpus::open(&configs, tokenizer, max_seq_len, options.seed)?.counting(options.count_cut);
        Packing { to: options.pack_to, joins: options.joins, fit: options.fit } = corpus.packing();
        Self::with_blocks(Origin::Corpus(Box::new(corpus)), options, BLOCK)
    }

    fn with_blocks(origin: Origin, options: LoaderOptions, block: usize) -> Result<Self> {
        if options.batch_size == 0 || options.pad_to_multiple_of == 0 {
            return Err(Error::setup("`batch_size` and `pad_to_multiple_of` must be at least 1"));
        }
        let order = Order { shuffle: options.shuffle, seed: options.seed, block };
        let packing = Packing { to: options.pack_to, joins: options.joins, fit: options.fit };
        let tokenized = Tokenized::begin(origin, order, packing, options.must_stop)?;
        let at_once = tokenized.known_totals().is_some();
        let loader = Self {
            tokenized,
            order,
            options,
            at_once,
            told: AtomicBool::new(false),
            told_of_records: AtomicBool::new(false),
        };
        if loader.known_len() == Some(0) {
            let rows = loader.rows()?;
            return Err(Error::setup(format!(
                "{} of data {} not fill one batch of {}",
                count(rows, "row"),
                for_number(rows, "does", "do"),
                loader.options.batch_size
            )));
        }
        Ok(loader)
    }

    /// Batches in an epoch. Waits until all is tokenized, as everything below that returns an error.
    ///
    /// # Errors
    /// A record that cannot be tokenized.
    pub fn len(&self) -> Result<usize> {
        Ok(self.batches(self.tokenized.totals()?.rows))
    }

    /// Whether there is no batch.
    ///
    /// # Errors
    /// As [`Loader::len`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Batches in an epoch, if all is tokenized.
    pub fn known_len(&self) -> Option<usize> {
        self.tokenized.known_totals().map(|totals| self.batches(totals.rows))
    }

    /// Waits until all is tokenized, but no longer than this. Returns whether it is.
    ///
    /// # Errors
    /// As [`Loader::len`].
    pub(crate) fn wait(&self, longest: Duration) -> Result<bool> {
        self.tokenized.wait_for_all(longest)
    }

    fn batches(&self, rows: usize) -> usize {
        let size = self.options.batch_size;
        if self.options.drop_last { rows / size } else { rows.div_ceil(size) }
    }

    /// Rows in an epoch: samples, or packs of them.
    ///
    /// # Errors
    /// As [`Loader::len`].
    pub fn rows(&self) -> Result<usize> {
        Ok(self.tokenized.totals()?.rows)
    }

    /// A number that stands for the rows: with other samples, or rows of another length, it is another.
    ///
    /// # Errors
    /// As [`Loader::len`].
    pub fn fingerprint(&self) -> Result<u32> {
        Ok(self.tokenized.totals()?.fingerprint)
    }

    /// What became of each dataset.
    ///
    /// # Errors
    /// As [`Loader::len`].
    pub fn reports(&self) -> Result<&[DatasetReport]> {
        Ok(&self.tokenized.totals()?.reports)
    }

    /// The samples of the first `n` records of each dataset, also of those without a trained token; of samples that
    /// were in memory, the first `n`.
    pub fn examples(&self, n: usize) -> Vec<Sample> {
        match &self.tokenized.origin {
            Origin::Corpus(corpus) => corpus.examples(n),
            Origin::Memory(samples) => samples.iter().take(n).cloned().collect(),
            Origin::Tokens(files) => files.examples(n),
        }
    }

    /// The batches of a run's first `first` steps, and behind them those of its step with the largest batch, by
    /// tokens: `together` batches make a step, and each of the `epochs` epochs takes at most `per_epoch` of them.
    ///
    /// Where there are too many to look at each, or not all data is tokenized, it is one batch of the longest rows that
    /// are known: there may be none as large, or, in data that comes later, a larger one.
    ///
    /// # Errors
    /// A temporary file that cannot be read, and where there is no row.
    pub fn demanding_steps(
        &self,
        epochs: u64,
        per_epoch: usize,
        together: usize,
        first: usize,
    ) -> Result<Vec<Vec<Batch>>> {
        let size = self.options.batch_size;
        let rows = self.tokenized.known_totals().map(|totals| totals.rows as u64);
        let mut steps: Vec<Vec<(&Block, usize)>> = Vec::new();
        let mut worst: Vec<(&Block, usize)> = Vec::new();
        if rows.is_some_and(|rows| rows.saturating_mul(epochs) <= MOST_ROWS) {
            let tokens = |rows: &[(&Block, usize)]| rows.iter().map(|(block, row)| block.tokens(*row)).sum::<usize>();
            let mut largest = 0;
            for epoch in 0..epochs {
                let mut rows = self.epoch(epoch).rows().collect::<Result<Vec<_>>>()?;
                rows.truncate(per_epoch.saturating_mul(size));
                for step in rows.chunks(size.saturating_mul(together.max(1))) {
                    steps.extend((steps.len() < first).then(|| step.to_vec()));
                    let tokens = step.chunks(size).map(tokens).max().unwrap_or(0);
                    if tokens > largest {
                        (largest, worst) = (tokens, step.to_vec());
                    }
                }
            }
        } else {
            let blocks = self.tokenized.known_blocks();
            worst.extend(blocks.flat_map(|block| (0..block.rows.len()).map(move |row| (block, row))));
            worst.sort_by_key(|(block, row)| std::cmp::Reverse(block.tokens(*row)));
            worst.truncate(size);
        }
        if worst.is_empty() {
            return Err(Error::setup("there is no batch of data"));
        }
        steps.push(worst);
        steps.into_iter().map(|step| step.chunks(size).map(|rows| self.assemble(rows)).collect()).collect()
    }

    /// How much of the first epoch's batches is padding. `None` where there are too many rows to look at each.
    ///
    /// # Errors
    /// As [`Loader::len`].
    pub fn padding(&self) -> Result<Option<Padding>> {
        let rows = self.rows()?;
        if rows as u64 > MOST_ROWS {
            return Ok(None);
        }
        let epoch = self.epoch(0);
        let tokens = |row: Result<(&Block, usize)>| row.map(|(block, row)| block.tokens(row));
        let lens = epoch.rows().map(tokens).collect::<Result<Vec<usize>>>()?;
        let longest = |batch: &[usize]| batch.iter().max().map_or(0, |len| self.row_len(*len));
        let batches = lens.chunks(self.options.batch_size);
        Ok(Some(Padding {
            rows,
            row_len: self.options.pack_to,
            tokens: lens.iter().sum(),
            positions: batches.map(|batch| batch.len() * longest(batch)).sum(),
        }))
    }

    /// The length of a batch's rows, of which the longest has this many tokens.
    fn row_len(&self, longest: usize) -> usize {
        usize::next_multiple_of(longest, self.options.pad_to_multiple_of)
    }

    /// A line on each dataset: what became of it or, while it is being tokenized, how many records it has.
    pub fn summary(&self) -> Vec<String> {
        match (self.tokenized.known_totals(), &self.tokenized.origin) {
            (Some(totals), _) => totals.reports.iter().map(ToString::to_string).collect(),
            (None, Origin::Corpus(corpus)) => {
                corpus.summary().iter().map(|line| format!("{line}, tokenized while training runs")).collect()
            }
            (None, Origin::Tokens(files)) => {
                files.summary().iter().map(|line| format!("{line}, looked at while training runs")).collect()
            }
            (None, Origin::Memory(_)) => Vec::new(),
        }
    }

    /// What there is to say of the data, each line once: at first what the records hold and nobody reads, and once
    /// all is tokenized warnings and, where training had begun, what became of the datasets. The model is made for
    /// sequences of `max_positions` tokens.
    pub fn news(&self, max_positions: usize) -> Vec<String> {
        let mut news = Vec::new();
        if !self.told_of_records.swap(true, Ordering::Relaxed)
            && let Origin::Corpus(corpus) = &self.tokenized.origin
        {
            news.extend(corpus.unused().map(|unused| format!("warning: {unused}")));
        }
        let Some(totals) = self.tokenized.known_totals() else { return news };
        if self.told.swap(true, Ordering::Relaxed) {
            return news;
        }
        if !self.at_once {
            news.extend(self.summary());
        }
        let warnings = report::warnings(&totals.reports, max_positions);
        news.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
        news
    }

    /// The batches of an epoch (from 0).
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        Epoch { loader: self, epoch, blocks: self.order.of_blocks(self.tokenized.blocks(), epoch) }
    }

    /// One batch of an epoch, or `None` behind the last.
    ///
    /// # Errors
    /// As [`Epoch::batch`].
    pub fn batch(&self, epoch: u64, index: usize) -> Result<Option<Batch>> {
        self.epoch(epoch).batch(index)
    }

    fn assemble(&self, rows: &[(&Block, usize)]) -> Result<Batch> {
        let rows: Vec<_> = rows.iter().map(|&(block, row)| &block.samples[block.rows[row].clone()]).collect();
        let longest = rows.iter().map(|row| row.iter().map(|s| s.len as usize).sum()).max().unwrap_or(0);
        let len = self.row_len(longest);
        let size = rows.len() * len;
        let mut batch = Batch {
            rows: rows.len(),
            len,
            input_ids: Vec::with_capacity(size),
            targets: Vec::with_capacity(size),
            positions: Vec::with_capacity(size),
            spans: Vec::new(),
            origins: Vec::new(),
            labels: Vec::new(),
        };
        for (row, samples) in rows.into_iter().enumerate() {
            for &stored in samples {
                let sample = self.tokenized.sample(stored)?;
                batch.spans.push(Span { row, start: batch.input_ids.len() - row * len, len: sample.input_ids.len() });
                batch.origins.push(sample.origin);
                batch.labels.extend(sample.label);
                batch.input_ids.extend(&sample.input_ids);
                batch.targets.extend(&sample.targets);
                batch.positions.extend(0..sample.input_ids.len() as u32);
            }
            let end = (row + 1) * len;
            batch.input_ids.resize(end, self.options.pad_id);
            batch.targets.resize(end, IGNORE);
            batch.positions.resize(end, 0);
        }
        Ok(batch)
    }
}

/// How full the rows of an epoch's batches are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// Rows.
    pub rows: usize,
    /// The most tokens of a row that samples are packed into.
    pub row_len: Option<usize>,
    /// Tokens in the rows.
    pub tokens: usize,
    /// Positions of all batches, each of which has rows as long as its longest.
    pub positions: usize,
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.tokenized.abandon();
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The batches of one epoch.
#[derive(Debug)]
pub struct Epoch<'a> {
    loader: &'a Loader,
    epoch: u64,
    /// The epoch's order of blocks.
    blocks: Vec<usize>,
}

impl<'a> Epoch<'a> {
    /// A batch, or `None` behind the last. Waits until what it is made of is tokenized. Who wants many asks
    /// [`Epoch::batches`], which shuffles each block once.
    ///
    /// # Errors
    /// A record that cannot be tokenized, and a temporary file that cannot be read.
    pub fn batch(&self, index: usize) -> Result<Option<Batch>> {
        self.batches(index).next().transpose()
    }

    /// The batches from the `skip`th on (from 0), as [`Epoch::batch`] has them.
    pub fn batches(&self, skip: usize) -> impl Iterator<Item = Result<Batch>> {
        let LoaderOptions { batch_size, drop_last, .. } = self.loader.options;
        let mut left = skip.saturating_mul(batch_size);
        let mut rows = self.rows().filter(move |row| {
            let skipped = left > 0 && row.is_ok();
            left -= usize::from(skipped);
            !skipped
        });
        std::iter::from_fn(move || match rows.by_ref().take(batch_size).collect::<Result<Vec<_>>>() {
            Err(error) => Some(Err(error)),
            Ok(rows) if rows.is_empty() || (drop_last && rows.len() < batch_size) => None,
            Ok(rows) => Some(self.loader.assemble(&rows)),
        })
    }

    /// The epoch's rows in order: each with its block, which is waited for when it is reached.
    fn rows(&self) -> impl Iterator<Item = Result<(&'a Block, usize)>> {
        let Loader { tokenized, order, .. } = self.loader;
        self.blocks.iter().flat_map(move |&number| match tokenized.block(number) {
            Ok(block) => {
                let rows = order.of_rows(number, block.rows.len(), self.epoch);
                rows.into_iter().map(|row| Ok((block, row))).collect::<Vec<_>>()
            }
            Err(error) => vec![Err(error)],
        })
    }
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;

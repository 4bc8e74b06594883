//! Tokenizing ahead of the training: block after block into a temporary file, on threads of their own.

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rayon::prelude::*;

use super::batch::{IGNORE, Sample};
use super::corpus::Corpus;
use super::order::Order;
use super::pack::{self, Fit, Joins, Packing};
use super::report::{DatasetReport, Tally};
use super::scratch::{temporary_error, temporary_file};
use super::tokens::TokenFiles;
use crate::positions::{read_exact_at, write_all_at};
use crate::{Error, Result, panics};

/// Set in a stored token where the next one is trained. No vocabulary is that large.
const NEXT_IS_TRAINED: u32 = 1 << 31;

/// Where samples come from.
pub(super) enum Origin {
    Corpus(Box<Corpus>),
    Memory(Vec<Sample>),
    /// Rows of files of tokens, each a record.
    Tokens(Box<TokenFiles>),
}

impl Origin {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Corpus(corpus) => corpus.len(),
            Self::Memory(samples) => samples.len(),
            Self::Tokens(files) => files.len(),
        }
    }

    /// The samples that each record becomes.
    fn samples_per_record(&self) -> usize {
        match self {
            Self::Corpus(corpus) => corpus.samples_per_record(),
            Self::Memory(_) | Self::Tokens(_) => 1,
        }
    }

    fn name(&self, record: usize) -> String {
        match self {
            Self::Corpus(corpus) => corpus.origin(record),
            Self::Memory(samples) => samples[record].origin.clone(),
            Self::Tokens(files) => files.origin(record),
        }
    }
}

/// A sample in the temporary file, a piece of one, or a piece of a row in a file of tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) record: usize,
    /// In tokens, from the file's beginning.
    pub(super) start: u64,
    pub(super) len: u32,
    /// Whether its answer is good, where answers are labelled.
    pub(super) label: Option<bool>,
}

/// A block of samples in the order of the data, and the rows that neighbours among them make.
pub(super) struct Block {
    pub(super) samples: Vec<Stored>,
    pub(super) rows: Vec<Range<usize>>,
}

impl Block {
    /// Tokens in a row.
    pub(super) fn tokens(&self, row: usize) -> usize {
        self.samples[self.rows[row].clone()].iter().map(|s| s.len as usize).sum()
    }
}

/// What is known once all is tokenized.
pub(super) struct Totals {
    pub(super) rows: usize,
    pub(super) fingerprint: u32,
    pub(super) reports: Vec<DatasetReport>,
}

/// The samples that are tokenized so far.
pub(super) struct Tokenized {
    pub(super) origin: Origin,
    blocks: Vec<OnceLock<Block>>,
    totals: OnceLock<Totals>,
    file: File,
    failure: Mutex<Option<String>>,
    changed: Condvar,
    abandoned: AtomicBool,
}

impl Tokenized {
    /// Tokenizes the first block of the first epoch; the others follow in the background, if there are any. With
    /// `must_stop`, a dataset of which no sample teaches the model to stop is an error; where it looks like that in the
    /// first block, all are tokenized at once.
    pub(super) fn begin(origin: Origin, order: Order, packing: Packing, must_stop: bool) -> Result<Arc<Self>> {
        let members = order.members(origin.len());
        let account = match &origin {
            Origin::Corpus(corpus) => corpus.account(),
            Origin::Memory(_) | Origin::Tokens(_) => Vec::new(),
        };
        let reports = match &origin {
            Origin::Tokens(files) => files.reports(),
            Origin::Corpus(_) | Origin::Memory(_) => Vec::new(),
        };
        let tokenized = Arc::new(Self {
            origin,
            blocks: members.iter().map(|_| OnceLock::new()).collect(),
            totals: OnceLock::new(),
            file: temporary_file()?,
            failure: Mutex::new(None),
            changed: Condvar::new(),
            abandoned: AtomicBool::new(false),
        });
        let mut left = order.of_blocks(members.len(), 0).into_iter();
        let mut work = Work {
            tokenized: Arc::clone(&tokenized),
            members,
            packing,
            account,
            reports,
            end: 0,
            sums: Vec::new(),
            must_stop,
        };
        if let Some(first) = left.next() {
            work.block(first)?;
        }
        let is_suspect = must_stop && work.account.iter().any(Tally::never_stops);
        if left.len() == 0 || is_suspect || matches!(tokenized.origin, Origin::Memory(_)) {
            left.try_for_each(|block| work.block(block))?;
            work.finish()?;
            return Ok(tokenized);
        }
        let background = move || {
            let shared = Arc::clone(&work.tokenized);
            let all = || in_background(|| left.try_for_each(|block| work.block(block)).and_then(|()| work.finish()));
            let failure = match catch_unwind(AssertUnwindSafe(all)) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(format!(
                    "tokenizing the data ended in a panic, which is a mistake of this program: {}",
                    panics::message(&*panic)
                )),
            };
            *shared.lock() = failure;
            shared.changed.notify_all();
        };
        std::thread::Builder::new()
            .name("tokenize".to_owned())
            .spawn(background)
            .map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        Ok(tokenized)
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something that the background makes, or fails as it did, even where that was about other data:
    /// a run on broken data is stopped as soon as that is known.
    fn wait<'a, T>(&'a self, made: impl Fn(&'a Self) -> Option<&'a T>) -> Result<&'a T> {
        let mut failure = self.lock();
        loop {
            if let Some(message) = &*failure {
                return Err(Error::Data(message.clone()));
            }
            if let Some(made) = made(self) {
                return Ok(made);
            }
            failure = self.changed.wait(failure).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a block.
    pub(super) fn block(&self, index: usize) -> Result<&Block> {
        self.wait(|all| all.blocks[index].get())
    }

    /// The blocks that are there, in the order of the data.
    pub(super) fn known_blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter_map(OnceLock::get)
    }

    /// The number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Waits until all is tokenized.
    pub(super) fn totals(&self) -> Result<&Totals> {
        self.wait(|all| all.totals.get())
    }

    /// Waits for the same, but no longer than this. Returns whether all is tokenized.
    pub(super) fn wait_for_all(&self, longest: Duration) -> Result<bool> {
        let waits = |failure: &mut Option<String>| failure.is_none() && self.totals.get().is_none();
        let waited = self.changed.wait_timeout_while(self.lock(), longest, waits);
        let (failure, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &*failure {
            Some(message) => Err(Error::Data(message.clone())),
            None => Ok(self.totals.get().is_some()),
        }
    }

    /// The same, if all is tokenized.
    pub(super) fn known_totals(&self) -> Option<&Totals> {
        self.totals.get()
    }

    /// Reads a sample.
    pub(super) fn sample(&self, stored: Stored) -> Result<Sample> {
        if let Origin::Tokens(files) = &self.origin {
            return files.sample(stored);
        }
        let mut input_ids = vec![0u32; stored.len as usize];
        read_exact_at(&self.file, bytemuck::cast_slice_mut(&mut input_ids), 4 * stored.start)
            .map_err(|e| temporary_error(&e))?;
        let trained: Vec<bool> = input_ids.iter().map(|id| id & NEXT_IS_TRAINED != 0).collect();
        // A piece of a text goes on behind its row.
        let mut behind = [IGNORE];
        if trained.last() == Some(&true) {
            let end = stored.start + u64::from(stored.len);
            read_exact_at(&self.file, bytemuck::cast_slice_mut(&mut behind), 4 * end)
                .map_err(|e| temporary_error(&e))?;
        }
        let next = input_ids.iter().skip(1).copied().chain(behind).map(|id| id & !NEXT_IS_TRAINED);
        let next: Vec<u32> = next.collect();
        input_ids.iter_mut().for_each(|id| *id &= !NEXT_IS_TRAINED);
        let targets = next.into_iter().zip(trained).map(|(id, trained)| if trained { id } else { IGNORE }).collect();
        Ok(Sample { input_ids, targets, origin: self.origin.name(stored.record), label: stored.label })
    }

    /// Ends the work in the background: nobody waits for it any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

/// What makes the blocks, one after the other.
struct Work {
    tokenized: Arc<Tokenized>,
    /// The records of each block.
    members: Vec<Vec<usize>>,
    packing: Packing,
    account: Vec<Tally>,
    /// What was found in files of tokens.
    reports: Vec<DatasetReport>,
    /// Tokens in the file.
    end: u64,
    /// Each sample's checksum, by its record.
    sums: Vec<(usize, u32)>,
    must_stop: bool,
}

impl Work {
    fn block(&mut self, index: usize) -> Result<()> {
        if self.tokenized.abandoned.load(Ordering::Relaxed) {
            return Err(Error::setup("nobody needs the data any more"));
        }
        let members = std::mem::take(&mut self.members[index]);
        let tokenized = Arc::clone(&self.tokenized);
        if let Origin::Tokens(files) = &tokenized.origin {
            let block = self.of_files(files, &members)?;
            self.publish(index, block);
            return Ok(());
        }
        let each = self.tokenized.origin.samples_per_record();
        let made: Vec<(usize, Sample)> = match &self.tokenized.origin {
            Origin::Corpus(corpus) => corpus.tokenize(&members, &mut self.account)?,
            Origin::Memory(samples) => members.iter().map(|&i| (i, samples[i].clone())).collect(),
            Origin::Tokens(_) => Vec::new(),
        };
        let mut tokens: Vec<u32> = Vec::with_capacity(made.iter().map(|(_, s)| s.input_ids.len()).sum());
        let mut samples = Vec::with_capacity(made.len());
        for (record, sample) in made {
            let start = tokens.len();
            let mark = |target: u32| if target == IGNORE { 0 } else { NEXT_IS_TRAINED };
            tokens.extend(sample.input_ids.iter().zip(&sample.targets).map(|(&id, &target)| id | mark(target)));
            let len = u32::try_from(sample.input_ids.len())
                .map_err(|_| Error::setup(format!("{}: the sample has more than 2^32 tokens", sample.origin)))?;
            samples.push(Stored { record, start: self.end + start as u64, len, label: sample.label });
            // What the last token has as its target is no token of the sample: a label.
            tokens.extend(sample.targets.last().filter(|&&target| target != IGNORE));
        }
        if self.packing.joins == Joins::Across {
            self.join(&samples, &mut tokens);
        }
        let starts = samples.iter().map(|sample| (sample.start - self.end) as usize);
        let ends = starts.clone().skip(1).chain([tokens.len()]);
        for ((start, end), sample) in starts.zip(ends).zip(&samples) {
            let sum = crc32c::crc32c(bytemuck::cast_slice(&tokens[start..end]));
            let sum = sample.label.map_or(sum, |is_good| crc32c::crc32c_append(sum, &[u8::from(is_good)]));
            self.sums.push((sample.record, sum));
        }
        write_all_at(&self.tokenized.file, bytemuck::cast_slice(&tokens), 4 * self.end)
            .map_err(|e| temporary_error(&e))?;
        self.end += tokens.len() as u64;
        let (samples, rows) = match self.packing {
            Packing { to: Some(len), joins: Joins::Across, .. } => pack::across(&samples, len),
            Packing { to: Some(len), joins, fit: Fit::BestFit } => pack::best_fit(&samples, len, joins == Joins::Split),
            Packing { to: Some(len), joins: Joins::Split, .. } => pack::split(&samples, len),
            Packing { to: Some(max_len), joins: Joins::Whole, .. } => {
                let rows = pack::rows(samples.iter().map(|s| s.len as usize), max_len);
                (samples, rows)
            }
            // Answers of a pair share a row.
            Packing { to: None, .. } => {
                let rows = (0..samples.len()).step_by(each).map(|i| i..i + each).collect();
                (samples, rows)
            }
        };
        self.publish(index, Block { samples, rows });
        Ok(())
    }

    /// A block of rows of files of tokens, each of which is looked at.
    fn of_files(&mut self, files: &TokenFiles, numbers: &[usize]) -> Result<Block> {
        let found = numbers.par_iter().map(|&row| files.row(row)).collect::<Result<Vec<_>>>()?;
        let (mut samples, mut rows) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
        for (&number, row) in numbers.iter().zip(found) {
            self.sums.push((number, row.sum));
            row.count(&mut self.reports[files.part_of(number)]);
            let first = samples.len();
            samples.extend(row.pieces);
            // Of a row of nothing but ends nothing is left.
            rows.extend((first < samples.len()).then_some(first..samples.len()));
        }
        Ok(Block { samples, rows })
    }

    fn publish(&self, index: usize, block: Block) {
        let _ = self.tokenized.blocks[index].set(block);
        // Whoever is about to wait has the lock, and must not miss it.
        drop(self.tokenized.lock());
        self.tokenized.changed.notify_all();
    }

    /// Has each sample but the last end in a token that predicts the next sample's first.
    fn join(&mut self, samples: &[Stored], tokens: &mut [u32]) {
        for (sample, next) in samples.iter().zip(samples.iter().skip(1)) {
            tokens[(next.start - self.end) as usize - 1] |= NEXT_IS_TRAINED;
            if let Origin::Corpus(corpus) = &self.tokenized.origin {
                self.account[corpus.part_of(sample.record)].count_border();
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        // The samples of a record stay in their order.
        self.sums.sort_by_key(|(record, _)| *record);
        let Packing { to, joins, fit } = self.packing;
        let mut fingerprint = crc32c::crc32c(&(to.unwrap_or(0) as u64).to_le_bytes());
        // Rows of samples that are not cut are known by their samples.
        if joins != Joins::Whole {
            fingerprint = crc32c::crc32c_append(fingerprint, &[joins as u8]);
        }
        if fit != Fit::Greedy {
            fingerprint = crc32c::crc32c_append(fingerprint, b"best fit");
        }
        for (_, sum) in &self.sums {
            fingerprint = crc32c::crc32c_append(fingerprint, &sum.to_le_bytes());
        }
        let reports = match &self.tokenized.origin {
            Origin::Corpus(corpus) => corpus.reports(std::mem::take(&mut self.account))?,
            Origin::Memory(_) => Vec::new(),
            Origin::Tokens(_) => std::mem::take(&mut self.reports),
        };
        if let Some(why) = reports.iter().find_map(|report| report.never_stops.as_ref()).filter(|_| self.must_stop) {
            return Err(Error::Data(why.clone()));
        }
        let rows = self.tokenized.blocks.iter().filter_map(OnceLock::get).map(|block| block.rows.len()).sum();
        let _ = self.tokenized.totals.set(Totals { rows, fingerprint, reports });
        Ok(())
    }
}

/// Runs something on threads that yield to those of the training.
fn in_background(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .thread_name(|i| format!("tokenize-{i}"))
        .start_handler(|_| yield_to_others())
        .build()
        .map_err(|e| Error::setup(format!("cannot start threads: {e}")))?
        .install(work)
}

/// Gives the calling thread a low priority, where that can be done for one thread.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    // SAFETY: takes numbers only; on Linux, 0 means the calling thread. A refusal changes nothing.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS as _, 0, 10);
    }
}

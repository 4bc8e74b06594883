//! Batches, in an order that depends on the seed and the epoch and on nothing else.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::batch::{Batch, IGNORE, Sample, Span};
use super::pack;
use crate::{Error, Result};

/// How samples become batches.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Rows in a batch.
    pub batch_size: usize,
    /// Put several samples into a row of up to so many tokens; `None` is one sample a row.
    pub pack_to: Option<usize>,
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
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 1,
            pack_to: None,
            shuffle: false,
            seed: 0,
            pad_id: 0,
            drop_last: false,
            pad_to_multiple_of: 1,
        }
    }
}

/// Samples in batches: `batch(epoch, index)` is a function of the samples and the options, so
/// that a resumed run goes on exactly where it was stopped.
///
/// Packing is done once, in the order of the samples; it is the packs that are shuffled.
#[derive(Debug)]
pub struct Loader {
    samples: Vec<Sample>,
    /// The samples of each row: neighbours.
    rows: Vec<Range<usize>>,
    options: LoaderOptions,
}

impl Loader {
    /// Prepares the rows.
    ///
    /// # Errors
    /// Where there is not one batch.
    pub fn new(samples: Vec<Sample>, options: LoaderOptions) -> Result<Self> {
        if options.batch_size == 0 || options.pad_to_multiple_of == 0 {
            return Err(Error::setup("`batch_size` and `pad_to_multiple_of` must be at least 1"));
        }
        let rows = match options.pack_to {
            Some(max_len) => pack::rows(&samples, max_len),
            None => (0..samples.len()).map(|i| i..i + 1).collect(),
        };
        let loader = Self { samples, rows, options };
        if loader.is_empty() {
            return Err(Error::setup(format!(
                "{} rows of data do not fill one batch of {}",
                loader.rows.len(),
                loader.options.batch_size
            )));
        }
        Ok(loader)
    }

    /// Batches in an epoch.
    pub fn len(&self) -> usize {
        let (rows, size) = (self.rows.len(), self.options.batch_size);
        if self.options.drop_last { rows / size } else { rows.div_ceil(size) }
    }

    /// Never true: a loader has at least one batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows in an epoch: samples, or packs of them.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The samples, in the order of the data.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// A number that stands for the rows: with other samples, or others in one row, it is another.
    pub fn fingerprint(&self) -> u32 {
        let mut sum = 0;
        for row in &self.rows {
            for sample in &self.samples[row.clone()] {
                sum = crc32c::crc32c_append(sum, bytemuck::cast_slice(&sample.input_ids));
                sum = crc32c::crc32c_append(sum, bytemuck::cast_slice(&sample.targets));
            }
            sum = crc32c::crc32c_append(sum, &(row.len() as u64).to_le_bytes());
        }
        sum
    }

    /// The batches of an epoch (from 0).
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        let order = if self.options.shuffle {
            permutation(self.rows.len(), self.options.seed, epoch)
        } else {
            (0..self.rows.len()).collect()
        };
        Epoch { loader: self, order }
    }

    /// One batch of an epoch, or `None` behind the last. Who wants many asks [`Loader::epoch`],
    /// which makes the epoch's order once.
    pub fn batch(&self, epoch: u64, index: usize) -> Option<Batch> {
        self.epoch(epoch).batch(index)
    }

    fn assemble(&self, rows: &[usize]) -> Batch {
        let tokens =
            |row: usize| -> usize { self.samples[self.rows[row].clone()].iter().map(|s| s.input_ids.len()).sum() };
        let longest = rows.iter().map(|&row| tokens(row)).max().unwrap_or(0);
        let len = longest.next_multiple_of(self.options.pad_to_multiple_of);
        let size = rows.len() * len;
        let mut batch = Batch {
            rows: rows.len(),
            len,
            input_ids: Vec::with_capacity(size),
            targets: Vec::with_capacity(size),
            positions: Vec::with_capacity(size),
            spans: Vec::new(),
            origins: Vec::new(),
        };
        for (row, &index) in rows.iter().enumerate() {
            for sample in &self.samples[self.rows[index].clone()] {
                batch.spans.push(Span { row, start: batch.input_ids.len() - row * len, len: sample.input_ids.len() });
                batch.origins.push(sample.origin.clone());
                batch.input_ids.extend(&sample.input_ids);
                batch.targets.extend(&sample.targets);
                batch.positions.extend(0..sample.input_ids.len() as u32);
            }
            let end = (row + 1) * len;
            batch.input_ids.resize(end, self.options.pad_id);
            batch.targets.resize(end, IGNORE);
            batch.positions.resize(end, 0);
        }
        batch
    }
}

/// The batches of one epoch.
#[derive(Debug)]
pub struct Epoch<'a> {
    loader: &'a Loader,
    order: Vec<usize>,
}

impl Epoch<'_> {
    /// Batches in the epoch.
    pub fn len(&self) -> usize {
        self.loader.len()
    }

    /// Never true: a loader has at least one batch.
    pub fn is_empty(&self) -> bool {
        self.loader.is_empty()
    }

    /// A batch, or `None` behind the last.
    pub fn batch(&self, index: usize) -> Option<Batch> {
        if index >= self.len() {
            return None;
        }
        let start = index * self.loader.options.batch_size;
        let end = (start + self.loader.options.batch_size).min(self.order.len());
        Some(self.loader.assemble(&self.order[start..end]))
    }

    /// The batches from the `skip`th on (from 0).
    pub fn batches(&self, skip: usize) -> impl Iterator<Item = Batch> {
        (skip..self.len()).filter_map(|i| self.batch(i))
    }
}

/// The order of `n` rows in an epoch. Written out here, so that no library's idea of shuffling
/// can change what a seed means.
fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..23].copy_from_slice(b"shuffle");
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // The high half of a 64 by 64 bit product: uniform in 0..=i but for 1 in 2^64 / n.
        let j = (u128::from(random.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;

//! What a teacher says of some data, stored in files: its likeliest tokens at every trained position.
//!
//! A folder has `teacher.json`, a [`Header`], and files in the safetensors format. Each of these has some samples: their keys in
//! `sample` (U64, `[samples]`), the number of trained positions of each in `tokens` (U32, `[samples]`), and of all these positions, one
//! sample's behind the other's, the likeliest next tokens in `ids` (U32, `[positions, top_k]`), the logarithms of their probabilities
//! in `log_probs` (F32, `[positions, top_k]`) and of what all other tokens have together in `rest` (F32, `[positions]`; minus infinity
//! where there are none). A sample's key is the first 8 bytes, the lowest first, of the SHA-256 of its token ids and behind them its
//! targets, 4 bytes each, the lowest first; a position that is not trained has the target 0xffffffff.
//!
//! So what is stored does not depend on the order of samples, nor on which of them share a row. Files are read sample by sample as
//! training comes to them; memory holds 24 bytes a sample.

mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::{Mixture, TopTokens};
use crate::checkpoint::safetensors::{self, Entry};
use crate::checkpoint::{Sum, of_file, read_small};
use crate::data::{Batch, Loader, Span};
use crate::engine::{self, Distilled, RunOptions};
use crate::models::Decoder;
use crate::optim::GradientSink;
use crate::{Error, Result};

/// The file that is written last.
const HEADER: &str = "teacher.json";
/// What it is for, and its version.
const FORMAT: (&str, u32) = ("teacher_top_k", 1);

/// What the files of a folder are and what they were made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Always `teacher_top_k`.
    pub format: String,
    /// Always 1.
    pub version: u32,
    /// Tokens of each position.
    pub top_k: usize,
    /// Tokens that the teacher has logits of.
    pub vocab_size: usize,
    /// What these stand for: a checksum of their names, see [`Tokenizer::vocabulary_sum`](crate::tokenizer::Tokenizer::vocabulary_sum).
    #[serde(default)]
    pub vocabulary_crc32c: Option<u32>,
    /// Numbers that stand for the teacher's weights and its adapter, by these names.
    #[serde(default)]
    pub teacher: BTreeMap<String, u32>,
    /// A number that stands for the data, see [`Loader::fingerprint`].
    #[serde(default)]
    pub data: Option<u32>,
    /// The settings that decide what the samples are, by key.
    #[serde(default)]
    pub settings: BTreeMap<String, Json>,
    /// The files, by name.
    pub files: BTreeMap<String, Option<Sum>>,
}

/// A folder of files, opened.
#[derive(Debug)]
pub struct TeacherFiles {
    dir: PathBuf,
    header: Header,
    files: Vec<StoredFile>,
    /// By key.
    places: Vec<Place>,
}

#[derive(Debug)]
struct StoredFile {
    ids: Entry,
    log_probs: Entry,
    rest: Entry,
}

/// Where a sample is.
#[derive(Debug, Clone, Copy)]
struct Place {
    key: u64,
    /// The first of its positions in the file.
    position: u64,
    file: u32,
    positions: u32,
}

impl TeacherFiles {
    /// Whether a folder has such files, all of them.
    pub fn are_in(dir: &Path) -> bool {
        dir.join(HEADER).is_file()
    }

    /// What is in a folder.
    ///
    /// # Errors
    /// A folder without such files, or with those of another version.
    pub fn header(dir: &Path) -> Result<Header> {
        let path = dir.join(HEADER);
        let text = read_small(&path, 256 << 20)?;
        let header: Header = serde_json::from_slice(&text)
            .map_err(|e| Error::file(&path, format!("does not say what the files beside it are: {e}")))?;
        match (header.format.as_str(), header.version) {
            found if found == FORMAT && header.top_k > 0 => Ok(header),
            (format, version) => Err(Error::file(
                &path,
                format!(
                    "is `{format}` of version {version} with {} tokens a position; `{}` of version {} with one or more is expected",
                    header.top_k, FORMAT.0, FORMAT.1
                ),
            )),
        }
    }

    /// A number that stands for what is in a folder: for other files it is another.
    ///
    /// # Errors
    /// As [`TeacherFiles::header`], and a file that cannot be read.
    pub(crate) fn fingerprint(dir: &Path) -> Result<u32> {
        let header = Self::header(dir)?;
        let mut fingerprint = 0;
        for (name, sum) in &header.files {
            let Sum { bytes, crc32c } = match sum {
                Some(sum) => *sum,
                None => of_file(&dir.join(name))?,
            };
            for part in [name.as_bytes(), &bytes.to_le_bytes(), &crc32c.to_le_bytes()] {
                fingerprint = crc32c::crc32c_append(fingerprint, part);
            }
        }
        Ok(fingerprint)
    }

    /// Opens the files of a folder. What they say is read later.
    ///
    /// # Errors
    /// A file that is missing, damaged, or not as the header says.
    pub fn open(dir: &Path) -> Result<Self> {
        let header = Self::header(dir)?;
        let (mut files, mut places) = (Vec::new(), Vec::new());
        for (name, sum) in &header.files {
            let path = dir.join(name);
            let entries = safetensors::open(&path)?;
            let bytes = std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
            if let Some(sum) = sum.filter(|sum| sum.bytes != bytes) {
                return Err(Error::file(
                    &path,
                    format!("has {bytes} bytes, and {HEADER} beside it says {}: {AGAIN}", sum.bytes),
                ));
            }
            let tensor = |name: &str, dtype: &str, dims: usize| match entries.get(name) {
                Some(entry) if entry.is(dtype, dims) => Ok(entry.clone()),
                _ => Err(Error::file(&path, format!("has no tensor `{name}` of type {dtype} with {dims} dimensions"))),
            };
            let (keys, counts) = (tensor("sample", "U64", 1)?, tensor("tokens", "U32", 1)?);
            let file = StoredFile {
                ids: tensor("ids", "U32", 2)?,
                log_probs: tensor("log_probs", "F32", 2)?,
                rest: tensor("rest", "F32", 1)?,
            };
            let (mut of_keys, mut of_counts) = (vec![0u64; keys.shape()[0]], vec![0u32; counts.shape()[0]]);
            keys.read_raw(0, &mut of_keys)?;
            counts.read_raw(0, &mut of_counts)?;
            let positions: u64 = of_counts.iter().map(|&count| u64::from(count)).sum();
            let table = [positions as usize, header.top_k];
            let fits = of_keys.len() == of_counts.len()
                && [file.ids.shape(), file.log_probs.shape()] == [&table[..]; 2]
                && file.rest.shape() == &table[..1];
            if !fits {
                return Err(Error::file(
                    &path,
                    format!(
                        "has tensors whose shapes do not fit {positions} positions of {} tokens: {AGAIN}",
                        header.top_k
                    ),
                ));
            }
            let mut position = 0;
            for (key, positions) in of_keys.into_iter().zip(of_counts) {
                places.push(Place { key, position, file: files.len() as u32, positions });
                position += u64::from(positions);
            }
            files.push(file);
        }
        places.sort_unstable_by_key(|place| (place.key, place.file, place.position));
        places.dedup_by_key(|place| place.key);
        Ok(Self { dir: dir.to_owned(), header, files, places })
    }

    /// What the folder is made of.
    pub fn made_of(&self) -> &Header {
        &self.header
    }

    /// Samples.
    pub fn samples(&self) -> usize {
        self.places.len()
    }

    /// Reads all files on all cores, and compares their checksums with those of the header.
    ///
    /// # Errors
    /// The first file that is otherwise.
    pub fn check_sums(&self) -> Result<()> {
        for (name, expected) in &self.header.files {
            let path = self.dir.join(name);
            if let Some(expected) = expected
                && of_file(&path)? != *expected
            {
                return Err(Error::file(&path, format!("is damaged: its checksum is not that of {HEADER}; {AGAIN}")));
            }
        }
        Ok(())
    }

    /// Where the first sample of some data comes from that is not stored, if there is one. Waits until all is tokenized.
    ///
    /// # Errors
    /// A record that cannot be tokenized.
    pub fn first_missing(&self, data: &Loader) -> Result<Option<String>> {
        for batch in data.epoch(0).batches(0) {
            let batch = batch?;
            let mut samples = batch.spans.iter().zip(&batch.origins);
            let is_missing = |(span, _): &(&Span, &String)| {
                let trained = batch.trained_tokens_of(span);
                trained > 0 && self.place(&batch, span).is_none_or(|place| place.positions as usize != trained)
            };
            if let Some((_, origin)) = samples.find(is_missing) {
                return Ok(Some(origin.clone()));
            }
        }
        Ok(None)
    }

    /// What the teacher said of a batch, as [`engine::top_tokens`] has it.
    ///
    /// # Errors
    /// A sample that is not stored, files that cannot be read, and numbers in them that are no probabilities.
    pub fn top_tokens(&self, batch: &Batch) -> Result<TopTokens> {
        let k = self.header.top_k;
        let mut top = TopTokens::new(k);
        for (span, origin) in batch.spans.iter().zip(&batch.origins) {
            let trained = batch.trained_tokens_of(span);
            if trained == 0 {
                continue;
            }
            let place = self.place(batch, span).filter(|place| place.positions as usize == trained);
            let Some(Place { position, file, .. }) = place else {
                return Err(Error::Training(format!(
                    "{origin}: what the teacher says of this sample is not stored in {}",
                    self.dir.display()
                )));
            };
            let (file, position, old) = (&self.files[*file as usize], *position as usize, top.positions());
            top.ids.resize((old + trained) * k, 0);
            top.log_probs.resize((old + trained) * k, 0.0);
            top.rest.resize(old + trained, 0.0);
            file.ids.read_raw(position * k, &mut top.ids[old * k..])?;
            file.log_probs.read_raw(position * k, &mut top.log_probs[old * k..])?;
            file.rest.read_raw(position, &mut top.rest[old..])?;
            let known = top.ids[old * k..].iter().all(|&id| (id as usize) < self.header.vocab_size);
            let are_different = |ids: &[u32]| ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
            let known = known && top.ids[old * k..].chunks_exact(k).all(are_different);
            if !(known && top.are_log_probs(old, self.header.vocab_size)) {
                return Err(Error::Training(format!(
                    "{origin}: what {} has of this sample are no logarithms of probabilities of different tokens of {}; {AGAIN}",
                    self.dir.display(),
                    self.header.vocab_size
                )));
            }
        }
        Ok(top)
    }

    fn place(&self, batch: &Batch, span: &Span) -> Option<&Place> {
        let key = key(batch, span);
        self.places.binary_search_by_key(&key, |place| place.key).ok().map(|at| &self.places[at])
    }
}

/// The way out of files that are not as they should be.
const AGAIN: &str = "copy it again, or remove the folder and have it made anew";

/// What stands for a sample, see the [module](self).
pub(super) fn key(batch: &Batch, span: &Span) -> u64 {
    let positions = batch.positions_of(span);
    let mut hash = Sha256::new();
    for token in batch.input_ids[positions.clone()].iter().chain(&batch.targets[positions]) {
        hash.update(token.to_le_bytes());
    }
    hash.finalize().iter().take(8).rev().fold(0, |key, &byte| key << 8 | u64::from(byte))
}

/// Whom a student learns from.
#[derive(Debug)]
pub enum Teacher {
    /// A model that is asked at each step.
    Model(Box<Decoder>),
    /// What one said of the training data.
    Said(TeacherFiles),
}

impl Teacher {
    /// Runs a micro-batch of a student forward and back to bring it nearer to its teacher.
    ///
    /// # Errors
    /// As [`engine::distill`], [`engine::distill_by`] and [`TeacherFiles::top_tokens`].
    pub fn teach(
        &self,
        student: &Decoder,
        batch: &Batch,
        mixture: Mixture,
        options: RunOptions,
        sink: &mut dyn GradientSink,
    ) -> Result<Distilled> {
        match self {
            Self::Model(teacher) => engine::distill(student, teacher, batch, mixture, options, sink),
            Self::Said(files) => engine::distill_by(student, &files.top_tokens(batch)?, batch, mixture, options, sink),
        }
    }
}

#[cfg(test)]
mod tests;

//! A teacher is asked about all data, and what it says is stored.

use std::collections::BTreeSet;
use std::path::Path;

use super::{FORMAT, HEADER, Header, TeacherFiles, key};
use crate::artifact::Aside;
use crate::checkpoint::safetensors::{self, Raw};
use crate::checkpoint::{of_file, write_json};
use crate::data::Loader;
use crate::methods::TopTokens;
use crate::models::Decoder;
use crate::{Error, Result, engine};

/// Samples that are to be written.
struct Samples {
    keys: Vec<u64>,
    positions: Vec<u32>,
    top: TopTokens,
}

impl Samples {
    fn new(k: usize) -> Self {
        Self { keys: Vec::new(), positions: Vec::new(), top: TopTokens::new(k) }
    }

    fn bytes(&self) -> usize {
        self.top.positions() * TeacherFiles::bytes_of_position(self.top.k)
    }

    /// Writes them as a file.
    fn write(&self, path: &Path) -> Result<()> {
        let (samples, positions, k) = (self.keys.len(), self.top.positions(), self.top.k);
        let of = |name, dtype, shape: &[usize], bytes| Raw { name, dtype, shape: shape.to_vec(), bytes };
        safetensors::write_raw(
            path,
            &[
                of("sample", "U64", &[samples], bytemuck::cast_slice(&self.keys)),
                of("tokens", "U32", &[samples], bytemuck::cast_slice(&self.positions)),
                of("ids", "U32", &[positions, k], bytemuck::cast_slice(&self.top.ids)),
                of("log_probs", "F32", &[positions, k], bytemuck::cast_slice(&self.top.log_probs)),
                of("rest", "F32", &[positions], bytemuck::cast_slice(&self.top.rest)),
            ],
        )
    }
}

impl Header {
    /// That of what a teacher says, with `top_k` of `vocab_size` tokens a position, before its files are there.
    pub fn new(top_k: usize, vocab_size: usize) -> Self {
        Self {
            format: FORMAT.0.to_owned(),
            version: FORMAT.1,
            top_k: top_k.min(vocab_size),
            vocab_size,
            vocabulary_crc32c: None,
            teacher: Default::default(),
            data: None,
            settings: Default::default(),
            files: Default::default(),
        }
    }
}

impl TeacherFiles {
    /// Samples are written when this many bytes of them are there.
    pub(crate) const TOGETHER: usize = 64 << 20;

    /// Bytes that a trained position takes.
    pub(crate) fn bytes_of_position(k: usize) -> usize {
        8 * k + 4
    }

    /// Asks a teacher about all samples of some data, and stores what it says in a new folder, which has its name only when all is
    /// there. Waits until all is tokenized. Memory holds what is said of some samples at a time; `tell` is told of how many it was said
    /// whenever these are written.
    ///
    /// # Errors
    /// A folder that is there already, too little room, a record that cannot be tokenized, and as [`engine::top_tokens`].
    pub fn write(
        dir: &Path,
        mut header: Header,
        teacher: &Decoder,
        data: &Loader,
        tell: &mut dyn FnMut(usize),
    ) -> Result<()> {
        if teacher.config.vocab_size != header.vocab_size {
            return Err(Error::setup(format!(
                "the teacher has logits of {} tokens and the student of {}: they cannot be compared",
                teacher.config.vocab_size, header.vocab_size
            )));
        }
        let trained: usize = data.reports()?.iter().map(|report| report.trained_tokens).sum();
        let aside = Aside::begin(dir, (trained * Self::bytes_of_position(header.top_k)) as u64)?;
        let folder = aside.path();
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;

        let (mut samples, mut seen) = (Samples::new(header.top_k), BTreeSet::new());
        let mut write = |samples: &Samples| {
            let name = format!("top_k-{:05}.safetensors", header.files.len() + 1);
            samples.write(&folder.join(&name))?;
            let sum = of_file(&folder.join(&name))?;
            header.files.insert(name, Some(sum));
            Ok::<_, Error>(())
        };
        for batch in data.epoch(0).batches(0) {
            let batch = batch?;
            let top = engine::top_tokens(teacher, &batch, samples.top.k)?;
            if !top.are_log_probs(0, header.vocab_size) {
                return Err(Error::Training(format!(
                    "the teacher's logits are no finite numbers in {}: is it a model of text, and whole?",
                    batch.origins.join(", ")
                )));
            }
            let mut position = 0;
            for span in &batch.spans {
                let (first, count) = (position, batch.trained_tokens_of(span));
                position += count;
                // The same sample may come several times.
                if count == 0 || !seen.insert(key(&batch, span)) {
                    continue;
                }
                samples.keys.push(key(&batch, span));
                samples.positions.push(count as u32);
                samples.top.extend(&top.rows(first..position));
            }
            if samples.bytes() >= Self::TOGETHER {
                write(&samples)?;
                samples = Samples::new(samples.top.k);
                tell(seen.len());
            }
        }
        if !samples.keys.is_empty() {
            write(&samples)?;
        }
        write_json(&folder.join(HEADER), &header)?;
        aside.name()
    }
}

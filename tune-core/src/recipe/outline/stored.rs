//! What a teacher says of the training data, stored: what it was made of, and whether it fits the run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value as Json;
use tune_config::Config;

use super::{Compared, Outline};
use crate::artifact::Aside;
use crate::checkpoint::merge::{Merged, Part};
use crate::checkpoint::{Checkpoint, CheckpointConfig};
use crate::data::Loader;
use crate::methods::{Header, TeacherFiles};
use crate::models::ModelSpec;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What a teacher says of the training data, once and for all.
#[derive(Debug, Clone, Config)]
pub struct TeacherLogitsConfig {
    /// A folder. Where there is none, the teacher is asked about all training data before the first step, and this is where what it says is written. Where there is, the teacher is not loaded.
    #[config(may_change)]
    pub path: PathBuf,
    /// The likeliest tokens of each position that are kept; all others count as one.
    #[config(default = 64, range = 1..)]
    pub top_k: usize,
}

/// What a teacher says of the training data, which is stored or will be.
#[derive(Debug, Clone)]
pub struct StoredTeacher {
    /// Where it is, and how much.
    pub config: TeacherLogitsConfig,
    /// The teacher, if the config says which.
    pub teacher: Option<CheckpointConfig>,
}

impl StoredTeacher {
    /// Whether it is there already.
    pub fn is_there(&self) -> bool {
        TeacherFiles::are_in(&self.config.path)
    }
}

/// The number that stands for the chat template, among the settings that decide what the samples are.
const TEMPLATE: &str = "the chat template";

impl Outline {
    /// A folder with what the teacher says of the training data, where there is one; its checksums are not looked at.
    ///
    /// # Errors
    /// A place where it is not and cannot be made. It is of another teacher, tokenizer, number of tokens a position, or of other samples; files that are not as they should be.
    pub fn teacher_files(
        &self,
        shape: &ModelSpec,
        tokenizer: &Tokenizer,
        data: &Loader,
    ) -> Result<Option<TeacherFiles>> {
        let Some(stored) = &self.teacher_logits else { return Ok(None) };
        if !stored.is_there() {
            let trained = match data.known_len() {
                Some(_) => data.reports()?.iter().map(|report| report.trained_tokens).sum(),
                None => 0,
            };
            let of_position = TeacherFiles::bytes_of_position(stored.config.top_k.min(shape.vocab_size));
            Aside::check(&stored.config.path, (trained * of_position) as u64)?;
            return Ok(None);
        }
        let files = TeacherFiles::open(&stored.config.path)?;
        let (header, config) = (files.made_of(), &stored.config);
        let refused = |what: String| {
            Err(Error::file(
                &config.path,
                format!(
                    "what the teacher says is stored {what}; name another folder in teacher_logits.path, or remove this one to have \
                     the teacher asked again"
                ),
            ))
        };
        let top_k = config.top_k.min(shape.vocab_size);
        if header.vocab_size != shape.vocab_size {
            let (theirs, ours) = (header.vocab_size, shape.vocab_size);
            return refused(format!("for {theirs} tokens, and the student has logits of {ours}"));
        }
        if header.top_k != top_k {
            return refused(format!("with top_k={} (teacher_logits.top_k is {top_k})", header.top_k));
        }
        if header.vocabulary_crc32c.is_some_and(|sum| sum != tokenizer.vocabulary_sum()) {
            return refused("for another tokenizer".to_owned());
        }
        if let Some(teacher) = stored.teacher.as_ref().filter(|_| !header.teacher.is_empty()) {
            let now = teacher_fingerprints(teacher)?;
            if let Some(name) =
                header.teacher.keys().chain(now.keys()).find(|name| header.teacher.get(*name) != now.get(*name))
            {
                return refused(format!("by another teacher: {name} is not that of teacher_checkpointer"));
            }
        }
        // As long as data is being tokenized, each sample is looked for when its turn comes.
        if data.known_len().is_some()
            && let Some(origin) = files.first_missing(data)?
        {
            let why = self.differences(header, tokenizer);
            return refused(format!("for other data: {origin} is not among it, or not as it is now{why}"));
        }
        Ok(Some(files))
    }

    /// What is to stand beside what the teacher says.
    ///
    /// # Errors
    /// A teacher whose weights cannot be read, and a record that cannot be tokenized.
    pub(crate) fn teacher_header(
        &self,
        stored: &StoredTeacher,
        vocab_size: usize,
        tokenizer: &Tokenizer,
        data: &Loader,
    ) -> Result<Header> {
        Ok(Header {
            vocabulary_crc32c: Some(tokenizer.vocabulary_sum()),
            teacher: stored.teacher.as_ref().map_or(Ok(BTreeMap::new()), teacher_fingerprints)?,
            data: Some(data.fingerprint()?),
            settings: self.settings_of_samples(tokenizer),
            ..Header::new(stored.config.top_k, vocab_size)
        })
    }

    /// What decides which samples there are, and what they are.
    fn settings_of_samples(&self, tokenizer: &Tokenizer) -> BTreeMap<String, Json> {
        let of_samples =
            |key: &String| key == "dataset" || key.starts_with("dataset.") || key.starts_with("tokenizer.");
        let settings = self.settings.iter().filter(|(key, _)| of_samples(key));
        let template = tokenizer.chat_template().map(|template| crc32c::crc32c(template.source().as_bytes()).into());
        settings
            .map(|(key, value)| (key.clone(), value.clone()))
            .chain([(TEMPLATE.to_owned(), template.unwrap_or(Json::Null))])
            .collect()
    }

    /// Which of these are others than they were, in words.
    fn differences(&self, header: &Header, tokenizer: &Tokenizer) -> String {
        let now = self.settings_of_samples(tokenizer);
        let said = |key: &String| match (header.settings.get(key), now.get(key)) {
            (old, new) if old == new => None,
            _ if key == TEMPLATE => Some(format!("{key} is another one")),
            (Some(old), Some(new)) => Some(format!("{key} was {old} and is {new}")),
            (Some(old), None) => Some(format!("{key} was {old}")),
            (None, _) => Some(format!("{key} was not set")),
        };
        let keys = header.settings.keys().chain(now.keys().filter(|key| !header.settings.contains_key(*key)));
        let all: Vec<String> = keys.filter_map(said).collect();
        if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
    }

    /// What the model that the one in training is compared with is called.
    pub(crate) fn role_of_compared(&self) -> &'static str {
        match self.teacher_logits {
            Some(_) => "teacher",
            None => self.reference.as_ref().map_or("reference", Compared::role),
        }
    }

    /// What there is of the teacher, in words, where what it says is stored or will be; `teacher` is the model that will be asked.
    pub(super) fn describe_stored(&self, teacher: Option<String>) -> Option<String> {
        let TeacherLogitsConfig { path, top_k } = &self.teacher_logits.as_ref()?.config;
        Some(match teacher {
            None => format!("what it said of the training data, {top_k} tokens a position, in {}", path.display()),
            Some(teacher) => format!(
                "{teacher}, asked of all training data before the first step; {top_k} tokens a position are kept in {}",
                path.display()
            ),
        })
    }
}

/// Numbers that stand for a teacher's weights and its adapter, by what they are.
fn teacher_fingerprints(config: &CheckpointConfig) -> Result<BTreeMap<String, u32>> {
    let mut fingerprints = BTreeMap::from([("the teacher".to_owned(), config.open()?.fingerprint()?)]);
    if let Some(dir) = &config.adapter_checkpoint {
        let merged = adapted(config.open()?, dir.clone())?;
        fingerprints.insert("the teacher's adapter".to_owned(), merged.fingerprint_of_adapters()?);
    }
    Ok(fingerprints)
}

/// A teacher with its adapter, weights still on disk.
pub(super) fn adapted(base: Checkpoint, dir: PathBuf) -> Result<Merged> {
    Merged::open(base, &[Part { dir, weight: 1.0 }])
}

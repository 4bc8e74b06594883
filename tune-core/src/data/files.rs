//! The keys of a dataset that say where its records are and which of them are taken.

use std::path::PathBuf;

use super::filter::Filter;
use crate::config::{Config, Mismatch, Schema, Value};

/// The files of a dataset and the part of them that is taken.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct Files {
    /// `json`, `jsonl`, `parquet`, `arrow`, `csv` or `tsv`, where the files' names do not tell, or `text`: a file is one document; or a file, a folder or `hf://org/name`, in place of `data_files`.
    pub source: Option<Source>,
    /// The folder in `source` that holds one of its subsets.
    #[config(alias = "name")]
    pub subset: Option<String>,
    /// A file, several files, a pattern such as `data/*.jsonl`, or a folder, relative to the working directory; or `hf://org/name/path`.
    #[config(default, one_or_many)]
    pub data_files: Vec<PathBuf>,
    /// Which part to take: `train`, `train[:10%]`, `train[200:]`, `train[-50:]` ...
    #[config(default = "train")]
    pub split: String,
    /// Take only records of which this expression is true, such as `score > 0.5 and lang == 'en'`: Jinja, in which names are columns.
    pub filter: Option<Filter>,
    /// Leave out samples of fewer tokens.
    #[config(range = 1..)]
    pub min_tokens: Option<usize>,
    /// Leave out samples of more tokens, in place of cutting them to `max_seq_len`.
    #[config(range = 1..)]
    pub max_tokens: Option<usize>,
    /// Of several datasets, how much of an epoch is this one: its share of the sum of all weights. An epoch has as many records as all of
    /// them together; a dataset with too few repeats its records, and of one with too many a part is drawn, by the seed and once for all epochs.
    #[config(range = 1e-6..)]
    pub weight: Option<f64>,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            source: None,
            subset: None,
            data_files: Vec::new(),
            split: "train".to_owned(),
            filter: None,
            min_tokens: None,
            max_tokens: None,
            weight: None,
        }
    }
}

impl From<PathBuf> for Files {
    /// All of one file.
    fn from(file: PathBuf) -> Self {
        Self { data_files: vec![file], ..Self::default() }
    }
}

/// A format, or where a dataset is: a path, or a name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(String);

impl Config for Source {
    // A path begins with a home folder where it begins with `~`.
    const SCHEMA: Schema = Schema::Path;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.text().map(Self::from)
    }

    fn to_value(&self) -> Value {
        Value::from_text(&self.0)
    }
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::ops::Deref for Source {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

//! The `dataset` section of recipes that train a model which scores sequences: pairs of answers, or texts with labels.

use serde_json::Value;
use tune_config::nearest;

use super::config::{DatasetConfig, TextDataset};
use super::conversation::missing_column;
use super::files::Files;
use super::kind::DataConfig;
use super::pack::Rows;
use super::preference::{PreferenceConfig, PreferenceDataset, PreferenceInstructDataset};
use super::records::{Record, kind_of};
use crate::Result;
use crate::config::Config;
use crate::tokenizer::listed;

/// Where sequences come from that a model learns to score.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub enum ScoredConfig {
    /// Two conversations, in ShareGPT or OpenAI form, that differ in what the assistant answers.
    #[config(
        name = "preference",
        alias = "torchtune.datasets.preference_dataset",
        alias = "torchtune.datasets.hh_rlhf_helpful_dataset"
    )]
    Conversations(PreferenceDataset),
    /// One question and two answers, each a column.
    #[config(name = "preference_instruct", alias = "torchtune.datasets.stack_exchange_paired_dataset")]
    Instruct(PreferenceInstructDataset),
    /// Texts, each with the class that it is of.
    #[config(name = "labelled")]
    Labelled(LabelledDataset),
}

/// Texts, each with the class that it is of: the name of one of the recipe's `labels`, or its number, from 0.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct LabelledDataset {
    /// Where the text is.
    #[config(flatten)]
    pub files: Files,
    /// The column with the text.
    #[config(default = "text")]
    pub column: String,
    /// The column with the class.
    #[config(default = "label")]
    pub label_column: String,
    /// Close each text with the end-of-text token. transformers' tokenizers do not.
    #[config(default = false)]
    pub add_eos: bool,
    /// Whether and how samples share rows.
    #[config(flatten)]
    pub rows: Rows,
}

/// What a model that scores sequences learns of a sample.
#[derive(Debug, Clone)]
pub(super) enum Scored {
    /// The sides of a pair are compared: neither has a label.
    Pair,
    /// The class in a column, one of these.
    Class { column: String, labels: Vec<String> },
}

impl ScoredConfig {
    /// Whether its records are texts with labels.
    pub fn is_labelled(&self) -> bool {
        matches!(self, Self::Labelled(_))
    }

    /// The same with the names of its classes.
    pub(crate) fn with_labels(&self, labels: &[String]) -> DataConfig {
        let pairs = |pairs: &PreferenceConfig| DataConfig { scored: Some(Scored::Pair), ..DataConfig::from(pairs) };
        match self {
            Self::Conversations(config) => pairs(&PreferenceConfig::Conversations(config.clone())),
            Self::Instruct(config) => pairs(&PreferenceConfig::Instruct(config.clone())),
            Self::Labelled(config) => {
                let LabelledDataset { files, column, label_column, add_eos, rows } = config.clone();
                let text = TextDataset { files, column, add_eos, rows, split_across_pack: false };
                let scored = Scored::Class { column: label_column, labels: labels.to_vec() };
                DataConfig {
                    scored: Some(scored),
                    kind: Some("labelled"),
                    ..DataConfig::from(&DatasetConfig::Text(text))
                }
            }
        }
    }
}

impl Scored {
    /// The column with the label.
    pub(super) fn column(&self) -> Option<&str> {
        match self {
            Self::Pair => None,
            Self::Class { column, .. } => Some(column),
        }
    }

    /// The number of a record's class; `None` where it is a pair.
    pub(super) fn class(&self, record: &Record) -> Result<Option<u32>> {
        let Self::Class { column, labels } = self else { return Ok(None) };
        let Some(value) = record.columns.get(column) else {
            return Err(missing_column(record, column, ". `label_column` names the column"));
        };
        let number = |number: Option<u64>| number.filter(|&number| number < labels.len() as u64);
        let found = match value {
            Value::String(text) => {
                let named = labels.iter().position(|label| label == text).map(|position| position as u64);
                named.or_else(|| number(text.trim().parse().ok()))
            }
            Value::Bool(is) => labels.iter().position(|label| *label == is.to_string()).map(|position| position as u64),
            Value::Number(of) => {
                number(of.as_u64().or_else(|| of.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64)))
            }
            other => {
                let what = kind_of(other);
                return Err(record
                    .origin
                    .error(format_args!("column `{column}` must be a class's name or number, not {what}")));
            }
        };
        found.map(|class| Some(class as u32)).ok_or_else(|| {
            let meant = value.as_str().and_then(|text| nearest(text, labels.iter().map(String::as_str)));
            let meant = meant.map_or(String::new(), |meant| format!("; the nearest is `{meant}`"));
            record.origin.error(format_args!(
                "column `{column}` is {value}, which is no class: `labels` has {} (0 to {}){meant}",
                listed(labels),
                labels.len().saturating_sub(1)
            ))
        })
    }
}

//! Datasets of every kind: those whose records are samples, and those whose records are pairs of answers.

use super::config::DatasetConfig;
use super::files::Files;
use super::filter::Filter;
use super::pack::{Joins, Rows};
use super::preference::PreferenceConfig;
use super::pretrain::PretrainData;
use super::scored::Scored;
use super::selected::Share;
use super::source::Columns;
use super::tokens::TokensDataset;
use super::unpaired::UnpairedConfig;

/// A dataset of any kind. One of pairs is two datasets in one: each record is a sample of the one and of the other.
#[derive(Debug, Clone)]
pub struct DataConfig {
    /// One, or that of the preferred answers and that of the others; none where there is nothing to tokenize.
    pub(super) sides: Vec<DatasetConfig>,
    /// The kind, where it is not that of its side.
    pub(super) kind: Option<&'static str>,
    /// What a model that scores sequences learns of it; `None` where tokens are predicted.
    pub(super) scored: Option<Scored>,
    /// The column that says whether an answer is good, where answers are labelled.
    pub(super) label: Option<String>,
    /// The column whose messages stand before those of either side.
    pub(super) prompt: Option<String>,
    /// What becomes of a sample that does not fit into its row.
    pub(super) joins: Joins,
    /// Which of its records are taken.
    pub(super) share: Share,
    /// Files of tokens, in place of text.
    pub(super) tokens: Option<TokensDataset>,
}

impl From<&DatasetConfig> for DataConfig {
    fn from(config: &DatasetConfig) -> Self {
        let joins = if config.splits() { Joins::Split } else { Joins::Whole };
        Self {
            sides: vec![config.clone()],
            kind: None,
            scored: None,
            label: None,
            prompt: None,
            joins,
            share: Share::All,
            tokens: None,
        }
    }
}

impl From<&PreferenceConfig> for DataConfig {
    fn from(config: &PreferenceConfig) -> Self {
        let (kind, prompt) = (Some(config.kind()), config.prompt().map(str::to_owned));
        Self {
            sides: config.sides().to_vec(),
            kind,
            scored: None,
            label: None,
            prompt,
            joins: Joins::Whole,
            share: Share::All,
            tokens: None,
        }
    }
}

impl From<&UnpairedConfig> for DataConfig {
    fn from(config: &UnpairedConfig) -> Self {
        Self {
            kind: Some(config.kind()),
            prompt: config.prompt().map(str::to_owned),
            label: Some(config.label().to_owned()),
            ..Self::from(&config.answers())
        }
    }
}

impl From<&PretrainData> for DataConfig {
    fn from(config: &PretrainData) -> Self {
        let (of_samples, joins) = config.parts();
        let tokens = match config {
            PretrainData::Tokens(tokens) => Some(tokens.clone()),
            PretrainData::Text(_) | PretrainData::Chat(_) => None,
        };
        Self {
            sides: of_samples.into_iter().collect(),
            kind: None,
            scored: None,
            label: None,
            prompt: None,
            joins,
            share: Share::All,
            tokens,
        }
    }
}

impl From<&Self> for DataConfig {
    fn from(config: &Self) -> Self {
        config.clone()
    }
}

impl DataConfig {
    /// Whether each record is a pair of answers.
    pub fn is_of_pairs(&self) -> bool {
        self.sides.len() > 1
    }

    /// Whether each record is an answer that is labelled good or bad.
    pub fn is_labelled(&self) -> bool {
        self.label.is_some()
    }

    /// The dataset without the records that [`DataConfig::held_out`] has: a share of them below 1, or a number of them from 1 on.
    #[must_use]
    pub fn without_held_out(&self, size: f64) -> Self {
        Self { share: Share::Trained(size), ..self.clone() }
    }

    /// The records that [`DataConfig::without_held_out`] lacks, which are drawn by the seed.
    #[must_use]
    pub fn held_out(&self, size: f64) -> Self {
        Self { share: Share::HeldOut(size), ..self.clone() }
    }

    /// Whether its records are those that another dataset holds out.
    pub(crate) fn is_held_out(&self) -> bool {
        matches!(self.share, Share::HeldOut(_))
    }

    /// Whether several samples share a row.
    pub fn packed(&self) -> bool {
        self.tokens.is_some() || self.rows().packed
    }

    /// Whether and how samples share a row.
    pub(super) fn rows(&self) -> Rows {
        self.sides[0].rows()
    }

    /// How much of an epoch is to be this dataset, to those of others. What is held out is looked at as a whole, and once.
    pub(super) fn weight(&self) -> Option<f64> {
        self.files().weight.filter(|_| !self.is_held_out())
    }

    /// The tokens that a sample is cut to, of rows of this length: a sample that goes on in the next row is not cut.
    pub(super) fn cut_to(&self, max_seq_len: Option<usize>) -> Option<usize> {
        max_seq_len.filter(|_| self.joins == Joins::Whole)
    }

    /// Whether a sample is to end with a stop token that is trained: what is scored predicts none.
    pub(super) fn ends_samples(&self) -> bool {
        self.scored.is_none() && self.sides.iter().all(DatasetConfig::ends_samples)
    }

    /// The files, which both sides share.
    pub(super) fn files(&self) -> &Files {
        self.sides[0].files()
    }

    /// The columns that the filter reads.
    pub(super) fn filtered_by(&self) -> &[String] {
        self.files().filter.as_ref().map_or(&[], Filter::columns)
    }

    /// The columns that the config names for samples.
    pub(super) fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = self.sides.iter().flat_map(DatasetConfig::columns).collect();
        columns.extend(self.prompt.as_deref());
        columns.extend(self.scored.as_ref().and_then(Scored::column));
        columns.extend(self.label.as_deref());
        columns
    }

    /// The columns that its samples may be made of.
    pub(super) fn all_columns(&self) -> Columns<'_> {
        let Columns { first, mut read } = self.sides[0].all_columns();
        read.extend(self.columns());
        read.extend(self.filtered_by().iter().map(String::as_str));
        Columns { first, read }
    }

    /// The kind and the first file, for messages.
    pub(super) fn name(&self) -> String {
        if let Some(TokensDataset { data_files, .. }) = &self.tokens {
            let more = if data_files.len() > 1 { " …" } else { "" };
            return format!(
                "tokens {}{more}",
                data_files.first().map_or(String::new(), |file| file.display().to_string())
            );
        }
        self.sides[0].name_as(self.kind)
    }
}

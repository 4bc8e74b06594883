//! From a record to its samples: one, or the two answers of a pair.

use std::borrow::Cow;

use serde_json::Value;

use super::batch::Sample;
use super::config::DatasetConfig;
use super::conversation::missing_column;
use super::format::{Formatted, Formatter};
use super::json_text;
use super::kind::DataConfig;
use super::records::{Record, Records, kind_of};
use super::scored::Scored;
use super::unpaired;
use super::unused::Held;
use crate::Result;
use crate::tokenizer::{ChatTemplate, Tokenizer};

/// What messages call the sides of a pair.
const SIDES: [&str; 2] = ["chosen", "rejected"];

/// Makes the samples of a dataset's records.
pub(super) struct Maker<'a> {
    config: &'a DataConfig,
    sides: Vec<Formatter<'a>>,
    /// What fills rows up.
    pad: Option<u32>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(config: &'a DataConfig, tokenizer: &'a Tokenizer) -> Result<Self> {
        let sides = config.sides.iter().map(|side| Formatter::new(side, tokenizer)).collect::<Result<_>>()?;
        Ok(Self { config, sides, pad: tokenizer.pad() })
    }

    /// The chat template with which samples are rendered.
    pub(super) fn template(&self) -> Option<&ChatTemplate> {
        self.sides.first().and_then(Formatter::template)
    }

    /// Record `i` (from 0) of the dataset, its conversations whole.
    pub(super) fn read(&self, records: &Records, i: usize) -> Result<Record> {
        let mut record = records.read(i)?;
        self.config.sides.iter().for_each(|side| json_text::read_lists(&mut record, side));
        if let Some(prompt) = &self.config.prompt {
            self.put_before(&mut record, prompt)?;
        }
        Ok(record)
    }

    /// Puts the messages of the column `prompt` before those of either side.
    fn put_before(&self, record: &mut Record, prompt: &str) -> Result<()> {
        json_text::read_list(record, prompt);
        let before = match record.columns.get(prompt) {
            Some(Value::Array(messages)) => messages.clone(),
            Some(other) => {
                let what = kind_of(other);
                return Err(record.origin.error(format_args!(
                    "column `{prompt}` must be a list of messages or JSON text of one, not {what}"
                )));
            }
            None => return Err(self.lacks(record, prompt)),
        };
        for side in &self.config.sides {
            if let DatasetConfig::Chat(chat) = side
                && let Some(Value::Array(messages)) = record.columns.get_mut(&chat.conversation_column)
            {
                messages.splice(0..0, before.iter().cloned());
            }
        }
        Ok(())
    }

    /// Checks that a record has what this kind of dataset expects. It is far quicker than making the samples.
    pub(super) fn check(&self, record: &Record) -> Result<()> {
        self.check_columns(record)?;
        self.class(record)?;
        self.label(record)?;
        (0..self.sides.len()).try_for_each(|side| self.sides[side].check(&self.of_side(record, side)))
    }

    /// Checks that a pair, or an answer with a label, has all of its columns.
    fn check_columns(&self, record: &Record) -> Result<()> {
        let is_checked = self.config.is_of_pairs() || self.config.is_labelled();
        let mut columns = self.config.columns().into_iter().filter(|_| is_checked);
        match columns.find(|column| !record.columns.contains_key(*column)) {
            Some(column) => Err(self.lacks(record, column)),
            None => Ok(()),
        }
    }

    fn lacks(&self, record: &Record, column: &str) -> crate::Error {
        missing_column(record, column, ". `column_map` names the columns")
    }

    /// The samples of a record, see [`Formatter::encode`].
    pub(super) fn encode(
        &self,
        record: &Record,
        max_seq_len: Option<usize>,
        count_cut: bool,
    ) -> Result<Vec<Formatted>> {
        self.check_columns(record)?;
        let (class, label) = (self.class(record)?, self.label(record)?);
        let encode = |side: usize| {
            let mut made = self.sides[side].encode(&self.of_side(record, side), max_seq_len, count_cut)?;
            made.encoded.sample.label = label;
            if let Some(class) = class {
                made.encoded.sample = made.encoded.sample.scored(class, self.pad);
            }
            Ok(made)
        };
        (0..self.sides.len()).map(encode).collect()
    }

    /// The number of a record's class, if it has one.
    fn class(&self, record: &Record) -> Result<Option<u32>> {
        self.config.scored.as_ref().map_or(Ok(None), |scored| scored.class(record))
    }

    /// Whether a record's answer is good, if it says so.
    fn label(&self, record: &Record) -> Result<Option<bool>> {
        self.config.label.as_ref().map(|column| unpaired::label(record, column)).transpose()
    }

    /// A sample as it is trained: those of a pair that is scored have no target but their last token's, which says where the score is.
    pub(super) fn finished(&self, sample: Sample) -> Sample {
        match self.config.scored {
            Some(Scored::Pair) => sample.scored(0, self.pad),
            Some(Scored::Class { .. }) | None => sample,
        }
    }

    /// The record as one side sees it: messages name the side.
    fn of_side<'r>(&self, record: &'r Record, side: usize) -> Cow<'r, Record> {
        if !self.config.is_of_pairs() {
            return Cow::Borrowed(record);
        }
        let mut of_side = record.clone();
        of_side.origin.side = SIDES.get(side).copied();
        Cow::Owned(of_side)
    }

    /// Notes the columns of record `i` that are not used, and the keys of its messages.
    pub(super) fn note(&self, i: usize, record: &Record, held: &mut Held) {
        let mut named = self.config.columns();
        named.extend(self.config.filtered_by().iter().map(String::as_str));
        for (side, formatter) in self.sides.iter().enumerate() {
            if side == 0 {
                formatter.note_columns(i, record, &named, held);
            }
            formatter.note_messages(i, record, held);
        }
    }

    /// Takes away the keys that the chat template reads: those without which it renders another text.
    pub(super) fn keep_unused(&self, held: &mut Held, records: &Records) {
        self.sides.iter().for_each(|side| side.keep_unused(held, |i| self.read(records, i)));
    }
}

//! Alpaca's records: an instruction with an input, an output, and what was said before.

use serde_json::Value;

use super::config::AlpacaDataset;
use super::conversation::text_column;
use super::records::{Record, kind_of};
use crate::Result;

/// The columns that an Alpaca record may have besides those of [`AlpacaDataset::column_map`].
pub(super) const SYSTEM: &str = "system";
pub(super) const HISTORY: &str = "history";

/// A record, in the words that the model reads and says.
pub(super) struct Exchange {
    pub(super) system: Option<String>,
    /// Prompts and their answers, the last of which is the record's own.
    pub(super) turns: Vec<(String, String)>,
}

/// Alpaca's prompts, which have a section for the input if there is one, and the answers.
///
/// # Errors
/// A column that is missing or of another type.
pub(super) fn exchange(record: &Record, config: &AlpacaDataset) -> Result<Exchange> {
    let columns = &config.column_map;
    let instruction = text_column(record, &columns.instruction)?;
    let input = optional(record, &columns.input)?;
    let output = text_column(record, &columns.output)?;
    let is_free = |name: &str| ![&columns.instruction, &columns.input, &columns.output].iter().any(|own| *own == name);
    let mut turns = if is_free(HISTORY) { history(record)? } else { Vec::new() };
    turns.push((prompt(instruction, input), output.to_owned()));
    let system = if is_free(SYSTEM) { optional(record, SYSTEM)? } else { "" };
    let system = Some(system).filter(|system| !system.trim().is_empty());
    Ok(Exchange { system: system.map(str::to_owned), turns })
}

fn optional<'a>(record: &'a Record, name: &str) -> Result<&'a str> {
    match record.columns.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(_) => text_column(record, name),
    }
}

/// What was said before: `[[question, answer], ...]`.
fn history(record: &Record) -> Result<Vec<(String, String)>> {
    let wrong = |what: String| record.origin.error(format_args!("column `{HISTORY}` {what}"));
    let turns = match record.columns.get(HISTORY) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(turns)) => turns,
        Some(other) => {
            return Err(wrong(format!(
                "must be a list of [question, answer] pairs or JSON text of one, not {}",
                kind_of(other)
            )));
        }
    };
    let pair = |(i, turn): (usize, &Value)| match turn.as_array().map(Vec::as_slice) {
        Some([Value::String(question), Value::String(answer)]) => Ok((prompt(question, ""), answer.clone())),
        _ => Err(wrong(format!("must be a list of [question, answer] pairs; its item {} is none", i + 1))),
    };
    turns.iter().enumerate().map(pair).collect()
}

fn prompt(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
             ### Input:\n{input}\n\n### Response:\n"
        )
    }
}

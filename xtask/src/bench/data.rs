//! The rows that all programs train on, made once for each case.
//!
//! Our recipes read text; the other programs get the same rows as token ids, taken from our own
//! loader, so that every step of every program holds the same tokens.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tune_core::checkpoint::Checkpoint;
use tune_core::data::{self, Batch, ChatDataset, DatasetConfig, Fit, IGNORE, Loader, LoaderOptions, Rows, TextDataset};
use tune_core::tokenizer::Tokenizer;

use super::cases::{Case, Data};
use super::flops::Work;
use crate::Result;

/// What torch takes for an untrained label.
const UNTRAINED: i64 = -100;

/// A text that is cut off is at least so long, so that a row never ends in a sample of a token or two.
const SHORTEST: usize = 16;

/// The data of a case.
pub(super) struct Prepared {
    /// For our recipes: one record a line.
    pub text: PathBuf,
    /// For the others: one row of token ids a line.
    pub rows: PathBuf,
    /// What each step trains on.
    pub steps: Vec<Work>,
}

/// Makes the data of `case` for `steps` steps in `folder`, of the conversations in `source`.
pub(super) fn prepare(case: &Case, steps: usize, model: &Path, source: &Path, folder: &Path) -> Result<Prepared> {
    let tokenizer = Tokenizer::from_files(&Checkpoint::open(model)?.tokenizer_files()?)?;
    let conversations = fs::read_to_string(source)?;
    let (text, rows) = (folder.join("data.jsonl"), folder.join("rows.jsonl"));
    let batches = match case.data {
        Data::Text => {
            fs::write(&text, texts_that_fill(&tokenizer, &conversations, case.seq, steps * case.batch)?)?;
            load(case, &text, &tokenizer)?
        }
        // As often as it takes: how many fit into a row is known only when they are tokenized.
        Data::Chat => (0..10)
            .map(|doubled| {
                fs::write(&text, conversations.repeat(1 << doubled))?;
                load(case, &text, &tokenizer)
            })
            .find(|batches| batches.as_ref().map_or(true, |b| b.len() >= steps))
            .unwrap_or(Ok(Vec::new()))?,
    };
    let batches = batches.get(..steps).ok_or_else(|| format!("there is no data for {steps} steps of {case}"))?;
    let full = |b: &Batch| b.tokens() == case.batch * case.seq;
    if case.data == Data::Text && !batches.iter().all(full) {
        return Err(format!("the rows of {case} are not full").into());
    }
    let lines: Vec<String> = batches.iter().flat_map(rows_of).map(|row| format!("{row}\n")).collect();
    fs::write(&rows, lines.concat())?;
    let work = |b: &Batch| Work { samples: b.spans.iter().map(|s| s.len).collect(), trained: b.trained_tokens() };
    Ok(Prepared { text, rows, steps: batches.iter().map(work).collect() })
}

/// The batches that our recipe will make of the records in `text`.
fn load(case: &Case, text: &Path, tokenizer: &Tokenizer) -> Result<Vec<Batch>> {
    let dataset = data::load(&[dataset(case, text)], tokenizer, Some(case.seq))?;
    let options = LoaderOptions { batch_size: case.batch, pack_to: dataset.pack_to, ..Default::default() };
    Ok(Loader::new(dataset.samples, options)?.epoch(0).batches(0).collect::<tune_core::Result<_>>()?)
}

/// The overrides with which our recipes read the data.
pub(super) fn overrides(case: &Case, data: &Prepared) -> Vec<String> {
    let mut keys = match case.data {
        Data::Text => vec!["dataset=text".to_owned(), "dataset.add_eos=false".to_owned()],
        Data::Chat => vec!["dataset=chat".to_owned()],
    };
    keys.push(format!("dataset.data_files=[{}]", data.text.display()));
    keys.push("dataset.packed=true".to_owned());
    keys.push(format!("tokenizer.max_seq_len={}", case.seq));
    keys
}

/// The same as the overrides say.
fn dataset(case: &Case, text: &Path) -> DatasetConfig {
    let files = data::Files::from(text.to_owned());
    let rows = Rows { packed: true, packing: Fit::Greedy };
    match case.data {
        Data::Text => DatasetConfig::Text(TextDataset {
            files,
            column: "text".to_owned(),
            add_eos: false,
            rows,
            split_across_pack: false,
        }),
        Data::Chat => DatasetConfig::Chat(ChatDataset {
            files,
            conversation_column: "messages".to_owned(),
            conversation_style: data::ConversationStyle::Openai,
            role_key: None,
            content_key: None,
            new_system_prompt: None,
            mask: data::Mask::default(),
            rows,
        }),
    }
}

/// The rows of a batch as torch's programs take them: labels stand where their token stands, and the model shifts them.
fn rows_of(batch: &Batch) -> Vec<Value> {
    (0..batch.rows)
        .map(|row| {
            let lengths: Vec<usize> = batch.spans.iter().filter(|s| s.row == row).map(|s| s.len).collect();
            let cells = row * batch.len..row * batch.len + lengths.iter().sum::<usize>();
            let label = |&target: &u32| if target == IGNORE { UNTRAINED } else { i64::from(target) };
            let targets = &batch.targets[cells.clone()];
            let before = &targets[..targets.len().saturating_sub(1)];
            let labels: Vec<i64> = std::iter::once(UNTRAINED).chain(before.iter().map(label)).collect();
            json!({ "input_ids": batch.input_ids[cells], "labels": labels, "lengths": lengths })
        })
        .collect()
}

/// Records of text for `rows` rows of exactly `seq` tokens. The text is that of the conversations, over and
/// over; so are the lengths of the samples, but that the last sample of a row ends with the row.
fn texts_that_fill(tokenizer: &Tokenizer, conversations: &str, seq: usize, rows: usize) -> Result<String> {
    let mut lengths = Vec::new();
    let mut corpus = String::new();
    for line in conversations.lines() {
        let record: Value = serde_json::from_str(line)?;
        let messages = record["messages"].as_array().ok_or("a conversation has no `messages`")?;
        let text: Vec<&str> = messages.iter().filter_map(|m| m["content"].as_str()).collect();
        let text = text.join("\n");
        lengths.push(tokenizer.encode(&text)?.len().max(SHORTEST));
        corpus.push_str(&text);
        corpus.push('\n');
    }
    let mut next_length = lengths.iter().cycle();
    let mut place = 0;
    let mut records = String::new();
    for _ in 0..rows {
        let mut room = seq;
        while room > 0 {
            let natural = next_length.next().map_or(room, |&n| n.min(room));
            let length = if room - natural < SHORTEST { room } else { natural };
            let special = usize::from(tokenizer.begins_with_bos());
            let text = text_of_length(tokenizer, &corpus, &mut place, length - special)?;
            writeln!(records, "{}", json!({ "text": text }))?;
            room -= length;
        }
    }
    Ok(records)
}

/// The next text of the corpus that is exactly `length` tokens long, and alone again so many. Most
/// places will do; where a cut does not, one a character later is tried.
fn text_of_length(tokenizer: &Tokenizer, corpus: &str, place: &mut usize, length: usize) -> Result<String> {
    // A token is rarely longer than this, and the corpus is read in a circle.
    let window = 16 * length;
    for _ in 0..corpus.len() {
        if *place >= corpus.len() {
            *place = 0;
        }
        if let Some(rest) = corpus.get(*place..) {
            let text: String = rest.chars().chain(corpus.chars().cycle()).take(window).collect();
            let ids = tokenizer.encode(&text)?;
            if ids.len() >= length {
                let cut = tokenizer.decode(&ids[..length], false)?;
                if text.starts_with(&cut) && tokenizer.encode(&cut)?.len() == length {
                    *place += cut.len();
                    return Ok(cut);
                }
            }
        }
        *place += 1;
    }
    Err(format!("no piece of the text has exactly {length} tokens").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the tiny model's tokenizer and the conversations of the parity fixture.
    fn prepared(name: &str, steps: usize) -> (tempfile::TempDir, Prepared) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let source = root.join("tests/fixtures/torchtune/humaneval_messages.jsonl");
        let folder = tempfile::tempdir().unwrap();
        let data =
            prepare(&name.parse().unwrap(), steps, &root.join("recipes/tiny/model"), &source, folder.path()).unwrap();
        (folder, data)
    }

    fn rows(data: &Prepared) -> Vec<Value> {
        fs::read_to_string(&data.rows).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn text_fills_every_row_and_all_of_it_is_trained() {
        let (_folder, data) = prepared("lora_fp32_64", 4);
        for work in &data.steps {
            assert_eq!(work.samples.iter().sum::<usize>(), 2 * 64);
            assert_eq!(work.trained, 2 * 64 - work.samples.len());
        }
        for row in rows(&data) {
            let trained = row["labels"].as_array().unwrap().iter().filter(|label| **label != UNTRAINED);
            assert_eq!(row["input_ids"].as_array().unwrap().len(), 64);
            assert_eq!(trained.count(), 64 - row["lengths"].as_array().unwrap().len());
        }
    }

    #[test]
    fn a_label_is_the_token_in_its_place() {
        let (_folder, data) = prepared("full_fp32_1024_chat", 2);
        let rows = rows(&data);
        assert_eq!(rows.len(), 4);
        let mut trained = 0;
        for row in rows {
            let (ids, labels) = (row["input_ids"].as_array().unwrap(), row["labels"].as_array().unwrap());
            assert_eq!(ids.len(), labels.len());
            for (id, label) in ids.iter().zip(labels).filter(|(_, label)| **label != UNTRAINED) {
                assert_eq!(id, label);
                trained += 1;
            }
        }
        assert_eq!(trained, data.steps.iter().map(|w| w.trained).sum::<usize>());
        assert!(trained > 0);
    }
}

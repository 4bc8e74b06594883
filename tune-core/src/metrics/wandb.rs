//! Runs for Weights & Biases, without a network: a folder that `wandb sync FOLDER` uploads.
//!
//! The folder holds what wandb's own client writes in its offline mode: a transaction log, `run-ID.wandb`. The log is a header
//! of seven bytes and then LevelDB's log format (blocks of 32 KiB, records in pieces), with CRC-32 for checksums; each record is
//! a `Record` message of wandb's `wandb_internal.proto`, whose field numbers stand below.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::WandbLog;
use super::jsonl::{append, timed};
use super::proto::{Message, numbers, parts};
use super::{EvaluationMetrics, MetricLogger, Start, StepMetrics, ValidationMetrics, note_record};
use crate::{Error, Result};

/// `:W&B`, the format's number, its version.
const HEADER: [u8; 7] = *b":W&B\xe1\xbe\x00";
/// Records never begin, and pieces never end, across a multiple of it.
const BLOCK: usize = 32768;
/// Of a piece: checksum, length, kind.
const PIECE: usize = 7;
/// What a client of ours says that a reader must be able to do, as wandb's own does.
const MIN_CONSUMER: &str = "0.70.0";

/// Field numbers of `Record`.
mod record {
    pub(super) const HISTORY: u32 = 2;
    pub(super) const SUMMARY: u32 = 3;
    pub(super) const METRIC: u32 = 12;
    pub(super) const RUN: u32 = 17;
    pub(super) const EXIT: u32 = 18;
    pub(super) const HEADER: u32 = 21;
}
/// What is written into a field of a record, by the field's number.
type Content<'a> = (u32, &'a dyn Fn(&mut Message));

/// Field number of `value_json` in `HistoryItem`, `SummaryItem` and `ConfigItem`.
const VALUE_JSON: u32 = 16;

/// Which folder is the run's, as a resumed run finds it in `logs/wandb_run.json` of the output folder.
#[derive(Serialize, Deserialize)]
struct Remembered {
    id: String,
    folder: PathBuf,
}

/// Writes an offline run of Weights & Biases, which the real client uploads: `wandb sync FOLDER`.
///
/// Every step, validation and note is a row of the history under the JSON Lines log's names, and the newest value of each is
/// in the summary. `step` is the x-axis of all; wandb's own `_step` counts rows, because a step and its validation are two.
///
/// A resumed run goes on in the same file: rows of steps behind the checkpoint are cut off first. What was uploaded before is
/// uploaded anew by the next `wandb sync`.
pub struct WandbLogger {
    path: PathBuf,
    file: File,
    rows: u64,
    records: u64,
    begun: f64,
}

impl WandbLogger {
    /// Makes the run's folder in `folder`, with the `settings` as its config; or goes on with the one that `memory` (a file)
    /// names.
    ///
    /// # Errors
    /// A folder or file that cannot be made or written; on resuming, a file that is no transaction log.
    pub(super) fn open(
        config: &WandbLog,
        folder: &Path,
        memory: &Path,
        settings: &BTreeMap<String, Value>,
        start: Start,
    ) -> Result<Self> {
        let remembered: Option<Remembered> = match start {
            Start::Fresh => None,
            Start::Resumed(_) => fs::read(memory).ok().and_then(|text| serde_json::from_slice(&text).ok()),
        };
        if let (Start::Resumed(step), Some(run)) = (start, remembered) {
            let path = run.folder.join(format!("run-{}.wandb", run.id));
            if path.is_file() {
                return Self::go_on(path, step);
            }
        }
        let id = new_id();
        let now = now();
        let folder = folder.join(format!("offline-run-{}-{id}", stamp(now)));
        // As an absolute path: the run may be resumed from elsewhere.
        let folder = std::path::absolute(&folder).map_err(Error::io("create", &folder))?;
        fs::create_dir_all(folder.join("files")).map_err(Error::io("create", &folder))?;
        let path = folder.join(format!("run-{id}.wandb"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
        let mut logger = Self { path, file, rows: 0, records: 0, begun: now };
        append(&mut logger.file, &HEADER).map_err(Error::io("write", &logger.path))?;
        logger.begin(config, &id, settings)?;
        remember(memory, &Remembered { id, folder })?;
        Ok(logger)
    }

    fn go_on(path: PathBuf, step: u64) -> Result<Self> {
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let kept = kept(&bytes, step)
            .ok_or_else(|| Error::file(&path, "is not a log of wandb's; move it away and resume again"))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
        file.set_len(kept.length as u64).map_err(Error::io("write", &path))?;
        // The mark of an upload: what comes now is not in it.
        let _ = fs::remove_file(path.with_extension("wandb.synced"));
        Ok(Self { path, file, rows: kept.rows, records: kept.records, begun: kept.begun.unwrap_or_else(now) })
    }

    /// What stands before the first row: the versions, the run, and that `step` is the x-axis.
    fn begin(&mut self, config: &WandbLog, id: &str, settings: &BTreeMap<String, Value>) -> Result<()> {
        let begun = self.begun;
        self.write(&[
            (record::HEADER, &|header: &mut Message| {
                header.message(1, |version| {
                    version.text(1, concat!("tune ", env!("CARGO_PKG_VERSION")));
                    version.text(2, MIN_CONSUMER);
                });
            }),
            (record::RUN, &|run: &mut Message| {
                run.text(1, id);
                let texts = [(2, &config.entity), (6, &config.group), (7, &config.job_type), (8, &config.name)];
                for (field, text) in texts.into_iter().chain([(9, &config.notes)]) {
                    text.iter().for_each(|text| run.text(field, text));
                }
                run.text(3, &config.project);
                run.message(4, |of_run| {
                    for (key, value) in settings {
                        of_run.message(1, |item| {
                            item.text(1, key);
                            item.text(VALUE_JSON, &value.to_string());
                        });
                    }
                });
                config.tags.iter().for_each(|tag| run.text(10, tag));
                run.message(17, |time| {
                    time.varint(1, begun as u64);
                    time.varint(2, (begun.fract() * 1e9) as u64);
                });
            }),
            (record::METRIC, &|metric: &mut Message| {
                metric.text(1, "step");
                // Defined, though hidden: it is the axis.
                metric.message(6, |options| {
                    options.varint(2, 1);
                    options.varint(3, 1);
                });
            }),
            (record::METRIC, &|metric: &mut Message| {
                metric.text(2, "*");
                metric.text(4, "step");
                metric.message(6, |options| {
                    options.varint(1, 1);
                    options.varint(3, 1);
                });
            }),
        ])
    }

    fn row(&mut self, values: Map<String, Value>) -> Result<()> {
        let mut values = timed(values);
        let time = values.shift_remove("time").and_then(|time| time.as_f64()).unwrap_or_default();
        values.retain(|_, value| !value.is_null());
        values.insert("_timestamp".to_owned(), time.into());
        values.insert("_runtime".to_owned(), (time - self.begun).max(0.0).into());
        values.insert("_step".to_owned(), self.rows.into());
        let rows = self.rows;
        let items = |message: &mut Message| {
            for (name, value) in &values {
                message.message(1, |item| {
                    item.text(2, name);
                    item.text(VALUE_JSON, &value.to_string());
                });
            }
        };
        // The row first: where a log is cut, it is cut before a row.
        self.write(&[
            (record::HISTORY, &|history: &mut Message| {
                items(history);
                history.message(2, |step| step.varint(1, rows));
            }),
            (record::SUMMARY, &items),
        ])?;
        self.rows += 1;
        Ok(())
    }

    /// Appends records, all or none.
    fn write(&mut self, contents: &[Content<'_>]) -> Result<()> {
        let metadata = self.file.metadata().map_err(Error::io("write", &self.path))?;
        let mut bytes = Vec::new();
        for (i, (field, content)) in contents.iter().enumerate() {
            let mut message = Message::default();
            message.varint(1, self.records + i as u64 + 1);
            message.message(*field, |inner| content(inner));
            in_pieces(&message.0, metadata.len() as usize, &mut bytes);
        }
        append(&mut self.file, &bytes).map_err(Error::io("write", &self.path))?;
        self.records += contents.len() as u64;
        Ok(())
    }
}

impl MetricLogger for WandbLogger {
    fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.row(metrics.record())
    }

    fn log_validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        self.row(metrics.record())
    }

    fn log_evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        let mut row = metrics.record();
        row.extend(metrics.samples_text().map(|text| ("samples".to_owned(), text.into())));
        self.row(row)
    }

    fn log_note(&mut self, step: u64, note: &str) -> Result<()> {
        self.row(note_record(step, note))
    }

    fn close(&mut self) -> Result<()> {
        let runtime = (now() - self.begun).max(0.0) as u64;
        self.write(&[(record::EXIT, &|exit: &mut Message| exit.varint(2, runtime))])?;
        self.file.sync_all().map_err(Error::io("write", &self.path))
    }
}

/// Appends a record to `bytes`, which stand at `offset` of the file: in pieces that no border of a block divides.
fn in_pieces(mut data: &[u8], offset: usize, bytes: &mut Vec<u8>) {
    let mut is_first = true;
    loop {
        let left = BLOCK - (offset + bytes.len()) % BLOCK;
        if left < PIECE {
            bytes.resize(bytes.len() + left, 0);
            continue;
        }
        let (piece, rest) = data.split_at(data.len().min(left - PIECE));
        let kind: u8 = match (is_first, rest.is_empty()) {
            (true, true) => 1,
            (true, false) => 2,
            (false, false) => 3,
            (false, true) => 4,
        };
        bytes.extend(checksum(kind, piece).to_le_bytes());
        bytes.extend((piece.len() as u16).to_le_bytes());
        bytes.push(kind);
        bytes.extend(piece);
        (data, is_first) = (rest, false);
        if data.is_empty() {
            return;
        }
    }
}

/// CRC-32 of a piece's kind and content.
fn checksum(kind: u8, piece: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(&[kind]);
    crc.update(piece);
    crc.sum()
}

/// What a log keeps where a run is resumed.
#[derive(Debug, Default, PartialEq)]
struct Kept {
    length: usize,
    rows: u64,
    records: u64,
    begun: Option<f64>,
}

/// What of a log is kept: all before the first row of a later step, the end of the run, or what is not whole. `None` where
/// it is no log.
fn kept(bytes: &[u8], step: u64) -> Option<Kept> {
    if !bytes.starts_with(&HEADER) {
        return None;
    }
    let mut kept = Kept { length: HEADER.len(), ..Kept::default() };
    let (mut at, mut record) = (HEADER.len(), Vec::new());
    while let Some((kind, piece, next)) = piece_at(bytes, at) {
        if matches!(kind, 1 | 2) {
            record.clear();
        }
        record.extend(piece);
        at = next;
        if !matches!(kind, 1 | 4) {
            continue;
        }
        let Some(&(field, content)) = parts(&record)?.first() else { return Some(kept) };
        match u32::try_from(field).ok()? {
            record::EXIT => return Some(kept),
            record::HISTORY => {
                if step_of(content)? > step {
                    return Some(kept);
                }
                kept.rows += 1;
            }
            record::RUN => kept.begun = begun_of(content),
            _ => {}
        }
        kept.records += 1;
        kept.length = at;
    }
    Some(kept)
}

/// The piece at `at`, and where it ends; `None` where it is not whole.
fn piece_at(bytes: &[u8], at: usize) -> Option<(u8, &[u8], usize)> {
    let left = BLOCK - at % BLOCK;
    let at = if left < PIECE { at + left } else { at };
    let (head, rest) = bytes.get(at..)?.split_at_checked(PIECE)?;
    let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
    let piece = rest.get(..length)?;
    let sum = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    (checksum(head[6], piece) == sum).then_some((head[6], piece, at + PIECE + length))
}

/// `step` of a row.
fn step_of(history: &[u8]) -> Option<u64> {
    let items = parts(history)?.into_iter().filter(|(field, _)| *field == 1);
    let value = |item: &[u8]| -> Option<u64> {
        let parts = parts(item)?;
        let text = |number: u64| parts.iter().find(|(field, _)| *field == number).map(|(_, text)| *text);
        (text(2)? == b"step").then(|| serde_json::from_slice(text(u64::from(VALUE_JSON))?).ok())?
    };
    items.filter_map(|(_, item)| value(item)).next()
}

/// When a run began, in seconds since 1970.
fn begun_of(run: &[u8]) -> Option<f64> {
    let time = parts(run)?.into_iter().find(|(field, _)| *field == 17)?.1;
    numbers(time)?.into_iter().find(|(field, _)| *field == 1).map(|(_, seconds)| seconds as f64)
}

fn remember(memory: &Path, run: &Remembered) -> Result<()> {
    if let Some(folder) = memory.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let text = serde_json::to_string(run).map_err(|e| Error::setup(e.to_string()))?;
    fs::write(memory, text + "\n").map_err(Error::io("write", memory))
}

/// Eight letters and digits, as wandb's own.
fn new_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = RandomState::new().hash_one(now().to_bits());
    let mut digit = || {
        let digit = DIGITS[(random % 36) as usize];
        random /= 36;
        char::from(digit)
    };
    (0..8).map(|_| digit()).collect()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// `20261127_001430`, in UTC.
fn stamp(seconds: f64) -> String {
    let (mut days, of_day) = (seconds as u64 / 86_400, seconds as u64 % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{:02}_{hour:02}{minute:02}{second:02}", days + 1)
}

#[cfg(test)]
#[path = "wandb_tests.rs"]
mod tests;

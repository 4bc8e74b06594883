//! Comma-separated values.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::jsonl::{append, keep_aside, timed};
use super::{EvaluationMetrics, MetricLogger, Start, StepMetrics, ValidationMetrics, note_record};
use crate::{Error, Result};

/// Writes a table: a row for each step, validation and note, and a column for each of the JSON Lines log's names.
///
/// A record with a name that there is no column for yet (the first validation) adds a column: the file is written anew,
/// aside, and renamed. What does not exist or is not finite is an empty field.
///
/// A resumed run drops the rows of steps behind its checkpoint, and a row that was being written when the process was
/// killed.
pub struct CsvLogger {
    path: PathBuf,
    file: File,
    columns: Vec<String>,
}

impl CsvLogger {
    /// Opens the table at `path`, making its folder where needed. One that is in a fresh run's way is renamed.
    ///
    /// # Errors
    /// A folder or file that cannot be made or written; on resuming, a file that is no table with a `step`.
    pub fn open(path: &Path, start: Start) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let columns = match start {
            Start::Fresh => {
                keep_aside(path)?;
                Vec::new()
            }
            Start::Resumed(step) => cut_after(path, step)?,
        };
        Ok(Self { path: path.to_path_buf(), file: open(path)?, columns })
    }

    fn write(&mut self, record: Map<String, Value>) -> Result<()> {
        let record = timed(record);
        let new: Vec<&String> = record.keys().filter(|name| !self.columns.contains(name)).collect();
        if !new.is_empty() {
            let columns: Vec<String> = self.columns.iter().chain(new).cloned().collect();
            widen(&self.path, &columns)?;
            (self.columns, self.file) = (columns, open(&self.path)?);
        }
        let fields = self.columns.iter().map(|name| record.get(name).map_or_else(String::new, field));
        let row = row(fields).map_err(Error::io("write", &self.path))?;
        append(&mut self.file, &row).map_err(Error::io("write", &self.path))
    }
}

impl MetricLogger for CsvLogger {
    fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.write(metrics.record())
    }

    fn log_validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        self.write(metrics.record())
    }

    fn log_evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        self.write(metrics.record_with_samples())
    }

    fn log_note(&mut self, step: u64, note: &str) -> Result<()> {
        self.write(note_record(step, note))
    }

    fn close(&mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("write", path))
}

fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A line of the file.
fn row(fields: impl Iterator<Item = String>) -> std::io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields)?;
    writer.into_inner().map_err(|error| std::io::Error::other(error.to_string()))
}

/// The rows that are whole, the header first.
fn rows(path: &Path) -> Result<Vec<Vec<String>>> {
    let mut text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    // What was being written when the process was killed.
    text.truncate(text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&text[..]);
    let rows = reader.records().map(|row| Ok(row.map_err(|_| no_table(path))?.iter().map(str::to_owned).collect()));
    rows.collect()
}

fn no_table(path: &Path) -> Error {
    Error::file(path, "is not the table of a run (with a column `step`); move it away and resume again")
}

/// Writes the rows anew under these columns, of which the first are the file's.
fn widen(path: &Path, columns: &[String]) -> Result<()> {
    let mut all = rows(path)?;
    match all.first_mut() {
        Some(header) => *header = columns.to_vec(),
        None => all.push(columns.to_vec()),
    }
    for row in &mut all {
        row.resize(columns.len(), String::new());
    }
    write_all(path, all)
}

/// Drops the rows of later steps. Returns the columns.
fn cut_after(path: &Path, step: u64) -> Result<Vec<String>> {
    let mut all = rows(path)?;
    let Some(columns) = all.first().cloned() else { return Ok(Vec::new()) };
    let at = columns.iter().position(|name| name == "step").ok_or_else(|| no_table(path))?;
    let mut kept = vec![all.remove(0)];
    for row in all {
        let of: u64 = row.get(at).and_then(|field| field.parse().ok()).ok_or_else(|| no_table(path))?;
        if of <= step {
            kept.push(row);
        }
    }
    write_all(path, kept)?;
    Ok(columns)
}

fn write_all(path: &Path, rows: Vec<Vec<String>>) -> Result<()> {
    let aside = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&aside)?;
        for fields in rows {
            file.write_all(&row(fields.into_iter())?)?;
        }
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{step, validation};
    use super::*;

    fn train(path: &Path, start: Start, from: u64, to: u64) {
        let mut log = CsvLogger::open(path, start).unwrap();
        for n in from..=to {
            log.log_step(&step(n)).unwrap();
            if n.is_multiple_of(5) {
                log.log_validation(&validation(n)).unwrap();
                log.log_note(n, "saved \"it\",\nthere").unwrap();
            }
        }
    }

    /// Of each row by column, without the time.
    fn table(path: &Path) -> Vec<Vec<String>> {
        let mut all = rows(path).unwrap();
        let time = all[0].iter().position(|name| name == "time").unwrap();
        all.iter_mut().for_each(|row| drop(row.remove(time)));
        all
    }

    #[test]
    fn a_resumed_table_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole.csv");
        train(&whole, Start::Fresh, 1, 12);
        let all = table(&whole);
        assert_eq!(all.len(), 1 + 12 + 2 * 2);
        let column = |name: &str| all[0].iter().position(|column| column == name).unwrap();
        assert_eq!(all[1][column("loss")], "1.5");
        assert_eq!(all[1][column("val_loss")], "");
        assert_eq!(all[6][column("val_loss")], "2.25");
        assert_eq!(all[7][column("note")], "saved \"it\",\nthere");

        let parts = dir.path().join("deep/er/parts.csv");
        train(&parts, Start::Fresh, 1, 9);
        // Killed in the middle of a row.
        let mut file = OpenOptions::new().append(true).open(&parts).unwrap();
        file.write_all(b"10,0,1.").unwrap();
        train(&parts, Start::Resumed(5), 6, 12);
        assert_eq!(table(&parts), all);
        assert_eq!(fs::read_dir(parts.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_table_is_named_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        for text in ["a,b\n1,2\n", "step,loss\nx,2\n"] {
            fs::write(&path, text).unwrap();
            let error = CsvLogger::open(&path, Start::Resumed(2)).err().unwrap().to_string();
            assert!(error.contains("metrics.csv: is not the table of a run"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}

//! One JSON object a line.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{EvaluationMetrics, MetricLogger, Start, StepMetrics, ValidationMetrics, note_record};
use crate::files::move_aside;
use crate::{Error, Result};

/// Writes a text file with one JSON object a line; every object has a `step`.
///
/// Steps have `loss`, `lr`, `grad_norm`, …; validations `val_loss`, …; notes `note`. A
/// number that does not exist or is not finite is `null`. The last value, `time`, is when the
/// record was made, in seconds since 1970.
///
/// A resumed run goes on where its checkpoint was saved: records of later steps, and a
/// line that was being written when the process was killed, are cut off first, so that
/// the log in the end is that of a run that was never stopped, but for times.
pub struct JsonlLogger {
    path: PathBuf,
    file: File,
}

impl JsonlLogger {
    /// Opens the log at `path`, making its folder where needed. A log that is in a fresh
    /// run's way is renamed: `metrics.jsonl` to `metrics.1.jsonl`, and so on.
    ///
    /// # Errors
    /// A folder or file that cannot be made or written; on resuming, a line that is not a
    /// record.
    pub fn open(path: &Path, start: Start) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        match start {
            Start::Fresh => keep_aside(path)?,
            Start::Resumed(step) => cut_after(path, step)?,
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("write", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    fn write(&mut self, record: Map<String, Value>) -> Result<()> {
        let mut line = Value::Object(timed(record)).to_string();
        line.push('\n');
        append(&mut self.file, line.as_bytes()).map_err(Error::io("write", &self.path))
    }
}

impl MetricLogger for JsonlLogger {
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

/// The record with the time at which it was made, in seconds since 1970.
pub(super) fn timed(mut record: Map<String, Value>) -> Map<String, Value> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs_f64());
    record.insert("time".to_owned(), json!(time));
    record
}

/// Writes at the end of a file, or leaves it as it was: after a failure it can be tried again.
pub(super) fn append(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| {
        let _ = file.set_len(before);
    })
}

/// Gets an existing, non-empty file out of the way.
pub(super) fn keep_aside(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => move_aside(path),
        // Nothing to keep; if it cannot be written, opening it will say so.
        _ => Ok(()),
    }
}

/// Cuts off the records of steps after `step`. They are the file's tail, because steps
/// only grow, so cutting is one system call and cannot be done by half.
fn cut_after(path: &Path, step: u64) -> Result<()> {
    #[derive(Deserialize)]
    struct Record {
        step: u64,
    }

    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("write", path)(e)),
    };
    let mut reader = BufReader::new(&file);
    let mut keep = 0u64;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        if !line.ends_with(b"\n") {
            break;
        }
        if !line.trim_ascii().is_empty() {
            let record: Record = serde_json::from_slice(&line).map_err(|_| {
                Error::line(
                    path,
                    number,
                    "not a record of this log (a JSON object with a `step`); mend the line, or move the file away and resume again",
                )
            })?;
            if record.step > step {
                break;
            }
        }
        keep += read as u64;
    }
    file.set_len(keep).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{step, timeless, validation};
    use super::*;

    /// Logs steps `from..=to`, with a validation after every fifth.
    fn train(path: &Path, start: Start, from: u64, to: u64) {
        let mut log = JsonlLogger::open(path, start).unwrap();
        for n in from..=to {
            log.log_step(&step(n)).unwrap();
            if n.is_multiple_of(5) {
                log.log_validation(&validation(n)).unwrap();
                log.log_note(n, "saved").unwrap();
            }
        }
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole.jsonl");
        train(&whole, Start::Fresh, 1, 12);

        let parts = dir.path().join("deep/er/parts.jsonl");
        train(&parts, Start::Fresh, 1, 9);
        // Killed in the middle of a line.
        let mut file = OpenOptions::new().append(true).open(&parts).unwrap();
        file.write_all(b"{\"step\":10,\"epo").unwrap();
        train(&parts, Start::Resumed(5), 6, 12);
        assert_eq!(timeless(&whole), timeless(&parts));

        // Resumed from before the first step, and where the log is gone.
        train(&parts, Start::Resumed(0), 1, 12);
        assert_eq!(timeless(&whole), timeless(&parts));
        fs::remove_file(&parts).unwrap();
        train(&parts, Start::Resumed(12), 13, 13);
        assert_eq!(fs::read_to_string(&parts).unwrap().lines().count(), 1);
    }

    #[test]
    fn records_hold_every_value_and_null_for_what_is_not_finite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = JsonlLogger::open(&path, Start::Fresh).unwrap();
        log.log_step(&StepMetrics { loss: f64::NAN, ..step(3) }).unwrap();
        log.log_note(3, "a \"quoted\"\nnote").unwrap();
        log.close().unwrap();
        let mut lines = timeless(&path).into_iter();
        assert_eq!(
            lines.next().unwrap(),
            r#"{"step":3,"epoch":0,"loss":null,"lr":0.0003,"grad_norm":0.75,"tokens":1000,"trained_tokens":250,"step_seconds":0.5,"tokens_per_second":2000.0,"trained_tokens_per_second":500.0,"peak_memory_bytes":1610612736}"#
        );
        assert_eq!(lines.next().unwrap(), r#"{"step":3,"note":"a \"quoted\"\nnote"}"#);
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn a_fresh_run_keeps_the_log_of_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for last in 1..=3 {
            train(&path, Start::Fresh, 1, last);
        }
        let steps = |name: &str| {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            text.lines().count()
        };
        assert_eq!(steps("metrics.1.jsonl"), 1);
        assert_eq!(steps("metrics.2.jsonl"), 2);
        assert_eq!(steps("metrics.jsonl"), 3);
    }

    #[test]
    fn a_line_that_is_no_record_is_named_and_nothing_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let text = "{\"step\":1}\n{\"loss\":2}\n{\"step\":3}\n";
        fs::write(&path, text).unwrap();
        let error = JsonlLogger::open(&path, Start::Resumed(2)).err().unwrap().to_string();
        assert!(error.contains("metrics.jsonl:2: not a record"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_folder_in_the_files_place_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = JsonlLogger::open(dir.path(), Start::Fresh).err().unwrap().to_string();
        assert!(error.starts_with("cannot write "), "{error}");
    }
}

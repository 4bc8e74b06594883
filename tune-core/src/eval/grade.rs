//! A program that judges answers.

use std::io::{BufRead, BufReader, Write};
use std::ops::RangeInclusive;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::Item;
use crate::{Error, Result};

/// An answer that a program takes longer to judge ends the evaluation.
const LONGEST: Duration = Duration::from_secs(120);

/// A program that judges answers. For each it reads a line of JSON, `{"record": {...}, "prompt": "...", "answer": "..."}`,
/// and writes a line, `{"score": 0.5}`, with a number from 0 to 1 and, if it likes, `"why"`, a text.
pub struct Program {
    command: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<std::io::Result<String>>,
}

impl Program {
    /// Starts it, by the shell.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &str) -> Result<Self> {
        let (shell, option) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let failed = |error: std::io::Error| Error::setup(format!("cannot start the program `{command}`: {error}"));
        let mut child = Command::new(shell)
            .args([option, command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::setup(format!("the program `{command}` has no input or output")));
        };
        let (sender, lines) = channel();
        std::thread::Builder::new()
            .name("grader".to_owned())
            .spawn(move || BufReader::new(output).lines().try_for_each(|line| sender.send(line)))
            .map_err(failed)?;
        Ok(Self { command: command.to_owned(), child, input, lines })
    }

    /// The score of an answer, from 0 to 1, and what the program says of it.
    ///
    /// # Errors
    /// The program ends, takes too long, or writes something else.
    pub fn judge(&mut self, item: &Item, answer: &str) -> Result<(f64, String)> {
        let question = json!({ "record": item.record, "prompt": item.shown(), "answer": answer });
        self.score(&item.origin, &question, &(0.0..=1.0))
    }

    /// What the program writes to a line of JSON: its score, which must be within `range`, and what it says of it. `origin` is
    /// where the question came from.
    ///
    /// # Errors
    /// As [`Program::judge`].
    pub fn score(&mut self, origin: &str, question: &Value, range: &RangeInclusive<f64>) -> Result<(f64, String)> {
        let line = question.to_string() + "\n";
        let wrong = |what: String| Error::setup(format!("{origin}: the program `{}` {what}", self.command));
        // Who has ended may have said why before.
        let written = self.input.write_all(line.as_bytes()).and_then(|()| self.input.flush());
        let said = match self.lines.recv_timeout(LONGEST) {
            Ok(line) => line.map_err(|error| wrong(format!("cannot be read: {error}")))?,
            Err(RecvTimeoutError::Timeout) => return Err(wrong(format!("says nothing for {} s", LONGEST.as_secs()))),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(wrong(written.err().map_or_else(|| "ended".to_owned(), |error| format!("ended: {error}"))));
            }
        };
        let verdict: Value = serde_json::from_str(&said).unwrap_or(Value::Null);
        let score = verdict.get("score").and_then(Value::as_f64).filter(|score| range.contains(score));
        let limits =
            if range.end().is_finite() { format!(" from {} to {}", range.start(), range.end()) } else { String::new() };
        let expected = format!("where a line such as {{\"score\": 1}} was expected, with a number{limits}");
        let score = score.ok_or_else(|| wrong(format!("wrote `{said}`, {expected}")))?;
        Ok((score, verdict.get("why").and_then(Value::as_str).unwrap_or_default().to_owned()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

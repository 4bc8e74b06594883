//! Lines from a terminal, with editing and history, or from a pipe.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, ErrorKind, IsTerminal as _, Write as _};
use std::path::PathBuf;

use console::{Key, Term, measure_text_width};

use super::line::{Done, Edited};
use crate::{Result, paths};

const PROMPT: &str = "> ";
/// Of a line that goes on the one before.
const MORE: &str = ". ";
/// Lines that are remembered.
const REMEMBERED: usize = 1000;

/// What was typed.
pub(super) enum Line {
    Text(String),
    /// Nothing but spaces, or a line that was given up.
    Nothing,
    End,
}

/// Where lines come from.
pub(super) enum Editor {
    Terminal(Box<Terminal>),
    Pipe,
}

/// A terminal, and what was typed before.
pub(super) struct Terminal {
    term: Term,
    history: Vec<String>,
    file: Option<PathBuf>,
}

/// One line: what was typed, or how it ended otherwise.
enum Read {
    Typed(String),
    GivenUp,
    End,
}

impl Editor {
    /// The terminal if there is one, else the standard input as it comes.
    pub(super) fn open() -> Self {
        let term = Term::stderr();
        if !io::stdin().is_terminal() || !term.is_term() {
            return Self::Pipe;
        }
        let file = paths::cache().ok().map(|folder| folder.join("chat_history.txt"));
        // There is none at first.
        let text = file.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let history = lines[lines.len().saturating_sub(REMEMBERED)..].to_vec();
        Self::Terminal(Box::new(Terminal { term, history, file }))
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(..))
    }

    /// The next line, with those that it goes on in.
    ///
    /// # Errors
    /// Reading fails.
    pub(super) fn read(&mut self) -> Result<Line> {
        let mut text = String::new();
        loop {
            let read = match self {
                Self::Pipe => from_pipe()?,
                Self::Terminal(terminal) => terminal.read(if text.is_empty() { PROMPT } else { MORE })?,
            };
            match read {
                Read::End if text.is_empty() => return Ok(Line::End),
                Read::End | Read::GivenUp => return Ok(Line::Nothing),
                Read::Typed(line) => match line.strip_suffix('\\') {
                    Some(begun) => {
                        text += begun;
                        text.push('\n');
                    }
                    None => {
                        text += &line;
                        break;
                    }
                },
            }
        }
        Ok(if text.trim().is_empty() { Line::Nothing } else { Line::Text(text) })
    }
}

fn from_pipe() -> Result<Read> {
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Ok(Read::End);
    }
    Ok(Read::Typed(line.trim_end_matches(['\n', '\r']).to_owned()))
}

impl Terminal {
    fn read(&mut self, prompt: &str) -> Result<Read> {
        let mut edited = Edited::new(&self.history);
        let mut row = 0;
        loop {
            row = self.draw(prompt, &edited, row)?;
            let key = match self.term.read_key_raw() {
                Ok(key) => key,
                // The terminal is gone.
                Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::NotConnected) => {
                    Key::Char('\u{4}')
                }
                Err(error) => return Err(error.into()),
            };
            let Some(done) = edited.press(&key) else { continue };
            let line = edited.text();
            edited.go_to_end();
            self.draw(prompt, &edited, row)?;
            self.term.write_str("\n")?;
            return Ok(match done {
                Done::End => Read::End,
                Done::GivenUp => Read::GivenUp,
                Done::Typed => {
                    self.remember(&line);
                    Read::Typed(line)
                }
            });
        }
    }

    /// Writes the line over what was there; `row` is the one of its rows that the cursor was in, and the result is the one that
    /// it is in now.
    fn draw(&self, prompt: &str, edited: &Edited<'_>, row: usize) -> Result<usize> {
        let width = usize::from(self.term.size().1).max(1);
        let (before, text) = (edited.before(), edited.text());
        let [at, end] = [&before, &text].map(|text| measure_text_width(prompt) + measure_text_width(text));
        let up = |rows: usize| if rows > 0 { format!("\x1b[{rows}A") } else { String::new() };
        let mut out = format!("{}\r\x1b[J{prompt}{text}", up(row));
        // A line that ends at the edge leaves the cursor there: it is to be in the next row.
        if end > 0 && end % width == 0 {
            out += "\r\n";
        }
        out += &up(end / width - at / width);
        out.push('\r');
        if at % width > 0 {
            out += &format!("\x1b[{}C", at % width);
        }
        self.term.write_str(&out)?;
        Ok(at / width)
    }

    /// Keeps a line; a history that cannot be kept is no reason to stop talking.
    fn remember(&mut self, line: &str) {
        if line.trim().is_empty() || self.history.last().is_some_and(|last| last == line) {
            return;
        }
        self.history.push(line.to_owned());
        if let Some(file) = &self.file {
            let _ = file.parent().map(fs::create_dir_all);
            let open = OpenOptions::new().create(true).append(true).open(file);
            let _ = open.and_then(|mut file| writeln!(file, "{line}"));
        }
    }
}

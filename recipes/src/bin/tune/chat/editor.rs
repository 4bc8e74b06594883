//! Lines from a terminal, with editing and history, or from a pipe.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;

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
    Terminal(Box<DefaultEditor>, Option<PathBuf>),
    Pipe,
}

impl Editor {
    /// The terminal if there is one, else the standard input as it comes.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub(super) fn open() -> Result<Self> {
        if !io::stdin().is_terminal() || !tune_core::config::output::stdout_is_terminal() {
            return Ok(Self::Pipe);
        }
        let mut editor = DefaultEditor::new()?;
        editor.set_max_history_size(REMEMBERED)?;
        let history = paths::cache().ok().map(|folder| folder.join("chat_history.txt"));
        if let Some(file) = &history {
            // There is none at first.
            let _ = editor.load_history(file);
        }
        Ok(Self::Terminal(Box::new(editor), history))
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
            let prompt = if text.is_empty() { PROMPT } else { MORE };
            let Some(line) = self.line(prompt)? else {
                return Ok(if text.is_empty() { Line::End } else { Line::Nothing });
            };
            match line {
                None => return Ok(Line::Nothing),
                Some(line) => match line.strip_suffix('\\') {
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
        if text.trim().is_empty() {
            return Ok(Line::Nothing);
        }
        self.remember(&text);
        Ok(Line::Text(text))
    }

    /// One line: nothing at the end, and nothing in it if it was given up.
    #[allow(clippy::option_option)]
    fn line(&mut self, prompt: &str) -> Result<Option<Option<String>>> {
        match self {
            Self::Pipe => {
                let mut line = String::new();
                if io::stdin().lock().read_line(&mut line)? == 0 {
                    return Ok(None);
                }
                Ok(Some(Some(line.trim_end_matches(['\n', '\r']).to_owned())))
            }
            Self::Terminal(editor, _) => match editor.readline(prompt) {
                Ok(line) => Ok(Some(Some(line))),
                Err(ReadlineError::Interrupted) => Ok(Some(None)),
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn remember(&mut self, text: &str) {
        let Self::Terminal(editor, history) = self else { return };
        // A history that cannot be kept is no reason to stop talking.
        let _ = editor.add_history_entry(text);
        if let Some(file) = history {
            let _ = file.parent().map(std::fs::create_dir_all);
            let _ = editor.append_history(file);
        }
    }
}

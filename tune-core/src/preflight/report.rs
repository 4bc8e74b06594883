//! What a preflight found, as it is shown.

use std::fmt::Display;
use std::io::Write;

use tune_hub::plain;

use crate::Result;
use crate::words::{count, for_number};

/// Columns of the names of facts.
const WIDTH: usize = 11;

/// Colours and weights of a terminal.
#[derive(Debug, Clone, Copy)]
pub(super) enum Style {
    Bold,
    Dim,
    Red,
    Yellow,
    /// What is trained.
    Green,
    /// A special token.
    Cyan,
    /// A special token that is trained.
    GreenUnderlined,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "1;31",
            Self::Yellow => "1;33",
            Self::Green => "32",
            Self::Cyan => "36",
            Self::GreenUnderlined => "4;32",
        }
    }
}

/// Facts are shown as they are found, warnings and errors together at the end.
pub(super) struct Report<'a> {
    out: &'a mut dyn Write,
    color: bool,
    warnings: Vec<String>,
    errors: Vec<String>,
}

impl<'a> Report<'a> {
    pub(super) fn new(out: &'a mut dyn Write, color: bool) -> Self {
        Self { out, color, warnings: Vec::new(), errors: Vec::new() }
    }

    /// Writes a line. Who reads may have gone away.
    pub(super) fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    /// The text in a style, where there are styles.
    pub(super) fn paint(&self, style: Style, text: &str) -> String {
        match self.color {
            true => format!("\x1b[{}m{text}\x1b[0m", style.code()),
            false => text.to_owned(),
        }
    }

    /// Whether styles are shown.
    pub(super) fn color(&self) -> bool {
        self.color
    }

    /// Something that is known now.
    pub(super) fn fact(&mut self, name: &str, text: impl Display) {
        let text = plain(&text.to_string()).replace('\n', &format!("\n{:width$}", "", width = WIDTH + 1));
        let name = self.paint(Style::Bold, &format!("{name:WIDTH$}"));
        self.line(&format!("{name} {text}"));
    }

    /// Something that the run would do, and that may not be meant.
    pub(super) fn warning(&mut self, text: impl Display) {
        self.warnings.push(plain(&text.to_string()).into_owned());
    }

    /// Something that the run would fail at, or be of no use with.
    pub(super) fn error(&mut self, error: impl Display) {
        let error = plain(&error.to_string()).into_owned();
        // One mistake may be met on several ways.
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// The value; what there is in its place is an error of the run.
    pub(super) fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.error(error)).ok()
    }

    /// Shows what was found. Returns whether there is no error.
    pub(super) fn close(mut self) -> bool {
        let (warnings, errors) = (std::mem::take(&mut self.warnings), std::mem::take(&mut self.errors));
        for (style, word, findings) in [(Style::Yellow, "warning", &warnings), (Style::Red, "error", &errors)] {
            for finding in findings {
                let word = self.paint(style, &format!("{word}:"));
                self.line(&format!("\n{word} {finding}"));
            }
        }
        let verdict = match (errors.len(), warnings.len()) {
            (0, 0) => "Nothing stands in the way of this run.".to_owned(),
            (0, n) => format!("Nothing stands in the way of this run; there {} {}.", be(n), count(n, "warning")),
            (n, 0) => format!("This run would not succeed: there {} {}.", be(n), count(n, "error")),
            (n, m) => {
                format!(
                    "This run would not succeed: there {} {} and {}.",
                    be(n),
                    count(n, "error"),
                    count(m, "warning")
                )
            }
        };
        self.line(&format!("\n{verdict}"));
        errors.is_empty()
    }
}

fn be(n: usize) -> &'static str {
    for_number(n, "is", "are")
}

/// `12.3 %` of a whole.
pub(super) fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

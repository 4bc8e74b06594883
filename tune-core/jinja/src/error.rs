//! What a template can fail with.

use std::fmt;

/// Why a template fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is not valid Jinja.
    Syntax,
    /// It refuses what it was given (`raise_exception`): the message is its own.
    Refused,
    /// It does what Python has an error for.
    Runtime,
    /// It would take too long, or too much memory.
    Limit,
}

/// A template's failure.
#[derive(Debug, Clone)]
pub struct Error(Box<Failure>);

#[derive(Debug, Clone)]
struct Failure {
    kind: Kind,
    message: String,
    line: Option<usize>,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Failure { kind, message: message.into(), line: None }))
    }

    pub(crate) fn runtime(message: impl Into<String>) -> Self {
        Self::new(Kind::Runtime, message)
    }

    pub(crate) fn syntax(message: impl Into<String>, line: usize) -> Self {
        Self::new(Kind::Syntax, message).at(line)
    }

    /// The same, in this line unless a line is known.
    pub(crate) fn at(mut self, line: usize) -> Self {
        self.0.line.get_or_insert(line);
        self
    }

    /// Why.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What is wrong, without the line.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The line of the template, from 1.
    pub fn line(&self) -> Option<usize> {
        self.0.line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match self.0.line {
            Some(line) => write!(f, " (line {line} of the template)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

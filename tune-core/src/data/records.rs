//! Records of data files: where each is, and what it holds once it is read.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::advice;
use super::split::Split;
use super::stand_in;
use crate::positions::read_exact_at;
use crate::{Error, Result};

/// One object of a data file.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) columns: Map<String, Value>,
    pub(super) origin: Origin,
}

/// Where a record stands.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    path: Arc<Path>,
    /// From 1.
    number: u32,
    kind: Kind,
    /// Which of a pair's answers is meant.
    pub(super) side: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Line,
    Item,
    Row,
}

impl Origin {
    /// The record is not what it should be.
    pub(super) fn error(&self, message: impl fmt::Display) -> Error {
        let (path, number) = (&self.path, self.number);
        let message = match self.side {
            Some(side) => format!("{side}: {message}"),
            None => message.to_string(),
        };
        match self.kind {
            Kind::Line => Error::line(path, number as usize, message),
            Kind::Item => Error::file(path, format!("item {number}: {message}")),
            Kind::Row => Error::file(path, format!("row {number}: {message}")),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, number) = (self.path.display(), self.number);
        match self.kind {
            Kind::Line => write!(f, "{path}:{number}"),
            Kind::Item => write!(f, "{path}: item {number}"),
            Kind::Row => write!(f, "{path}: row {number}"),
        }?;
        self.side.map_or(Ok(()), |side| write!(f, ", {side}"))
    }
}

/// A file in which records are as JSON: the data file itself or, for a format that cannot be read at
/// a position, a temporary one.
struct Source {
    /// The data file, for messages.
    path: Arc<Path>,
    kind: Kind,
    file: File,
}

/// Where the JSON text of a record is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    source: u32,
    number: u32,
    len: u32,
    start: u64,
}

/// The records of a dataset, in the order of its files. Their places are kept, not what they hold.
#[derive(Default)]
pub(super) struct Records {
    sources: Vec<Source>,
    places: Vec<Place>,
}

impl Records {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Begins a file, whose records [`Records::push`] adds.
    pub(super) fn begin(&mut self, path: &Path, kind: Kind, file: File) {
        self.sources.push(Source { path: path.into(), kind, file });
    }

    /// Adds record `number` (from 1), `len` bytes from `start` on, of the file that was begun last.
    pub(super) fn push(&mut self, number: usize, start: u64, len: usize) -> Result<()> {
        let place = || {
            let source = u32::try_from(self.sources.len().checked_sub(1)?).ok()?;
            Some(Place { source, number: number.try_into().ok()?, len: len.try_into().ok()?, start })
        };
        let place = place().ok_or_else(|| {
            let path = self.sources.last().map_or(Path::new(""), |s| &s.path);
            Error::file(path, format!("record {number} has more than 4 GiB, or the file more than 2^32 records"))
        })?;
        self.places.push(place);
        Ok(())
    }

    /// Those of the split's range.
    pub(super) fn cut(mut self, split: &Split) -> Result<Self> {
        self.places = split.cut(self.places)?;
        Ok(self)
    }

    /// Those with these numbers (from 0).
    pub(super) fn only(mut self, numbers: &[usize]) -> Self {
        self.places = numbers.iter().map(|&i| self.places[i]).collect();
        self
    }

    /// Where record `i` (from 0) stands.
    pub(super) fn origin(&self, i: usize) -> Origin {
        let place = self.places[i];
        let source = &self.sources[place.source as usize];
        Origin { path: source.path.clone(), number: place.number, kind: source.kind, side: None }
    }

    /// Reads record `i` (from 0).
    pub(super) fn read(&self, i: usize) -> Result<Record> {
        let (place, origin) = (self.places[i], self.origin(i));
        let mut text = vec![0; place.len as usize];
        let file = &self.sources[place.source as usize].file;
        read_exact_at(file, &mut text, place.start).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::file(&origin.path, "became shorter while it was being read"),
            _ => Error::io("read", &origin.path)(e),
        })?;
        match tune_jinja::parse_record(&text) {
            Ok(Value::Object(columns)) => Ok(Record { columns, origin }),
            Err(_) if let Some((column, what)) = not_utf8(&text) => {
                Err(origin.error(format_args!("column {column}: {what}")))
            }
            Ok(other) => {
                let advice = match &other {
                    Value::Array(items) if origin.kind == Kind::Line && items.iter().all(Value::is_object) => {
                        "; a list of records is read with `source: json`"
                    }
                    _ => "",
                };
                Err(origin.error(format_args!("must be a JSON object, not {}{advice}", kind_of(&other))))
            }
            Err(e) if origin.kind == Kind::Line => {
                Err(json_error(&origin.path, origin.number as usize, &e, advice::of_a_line(&text, &e)))
            }
            Err(e) => Err(origin.error(format_args!("not valid JSON: {e}{}", advice::of(&text, &e)))),
        }
    }
}

/// Where text is not UTF-8, from 1, and what to do about it.
pub(super) fn not_utf8(text: &[u8]) -> Option<(usize, String)> {
    let valid = std::str::from_utf8(text).err()?.valid_up_to();
    let byte = text.get(valid)?;
    let advice = "save the file as UTF-8";
    Some((valid + 1, format!("the byte {byte:#04x} is not UTF-8; the encoding may be Windows-1252: {advice}")))
}

/// `path:line: column C: what is wrong; what to do`.
pub(super) fn json_error(path: &Path, line: usize, error: &serde_json::Error, advice: &str) -> Error {
    let message = error.to_string();
    let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    Error::line(path, line, format!("column {}: not valid JSON: {what}{advice}", error.column()))
}

/// What a value is, for messages.
pub(super) fn kind_of(value: &Value) -> &str {
    if let Some(what) = stand_in::what(value) {
        return what;
    }
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

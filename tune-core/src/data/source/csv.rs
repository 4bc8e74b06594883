//! Comma- and tab-separated values, as RFC 4180 has them: the first line names the columns, and every value is text.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::{Map, Value};

use super::unpacked::Unpacked;
use crate::data::records::{Kind, Records, not_utf8};
use crate::words::count;
use crate::{Error, Result};

/// The longest record. A quote that is not closed would take the rest of the file for one field.
const LONGEST: u64 = 1 << 30;

/// Finds the records of a file whose fields are separated by `separator`; they are written out as JSON.
pub(super) fn find(path: &Path, file: File, separator: u8, records: &mut Records) -> Result<()> {
    let quotes = Quotes::new(BufReader::with_capacity(1 << 20, file), separator);
    let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(quotes);
    let header = reader.byte_headers().cloned();
    let line = reader.get_mut().next_line();
    let columns = columns(path, line, &header.map_err(|e| broken(path, line, e))?, separator)?;
    let mut unpacked = Unpacked::begin(path, Kind::Line, records)?;
    let mut record = ByteRecord::new();
    loop {
        let read = reader.read_byte_record(&mut record);
        let line = reader.get_mut().next_line();
        if !read.map_err(|e| broken(path, line, e))? {
            return unpacked.finish();
        }
        let text = |(name, field): (&String, &[u8])| match std::str::from_utf8(field) {
            Ok(text) => Ok((name.clone(), Value::from(text))),
            Err(_) => Err(Error::line(path, line, format!("column `{name}`: {}", encoding_of(field)))),
        };
        let fields = columns.iter().zip(&record).map(text).collect::<Result<Map<_, _>>>()?;
        unpacked.push(line, &fields)?;
    }
}

/// The names in the first line.
fn columns(path: &Path, line: usize, header: &ByteRecord, separator: u8) -> Result<Vec<String>> {
    let wrong = |what: String| Error::line(path, line, what);
    let name = |field: &[u8]| {
        let name = std::str::from_utf8(field).map(str::to_owned);
        name.map_err(|_| wrong(format!("the name of a column: {}", encoding_of(field))))
    };
    let columns = header.iter().map(name).collect::<Result<Vec<_>>>()?;
    if let [only] = columns.as_slice() {
        let advice = match separator {
            b',' if only.contains('\t') => Some("fields are separated by tabs: set `source: tsv`"),
            b',' if only.contains(';') => Some("fields are separated by semicolons: write the file with commas"),
            b'\t' if only.contains(',') => Some("fields are separated by commas: set `source: csv`"),
            _ => None,
        };
        if let Some(advice) = advice {
            return Err(wrong(format!("the header names one column, `{only}`; it seems that {advice}")));
        }
    }
    // Columns without a name, such as the row numbers of pandas, are nobody's.
    let twice = columns.iter().enumerate().find(|(i, name)| !name.is_empty() && columns[..*i].contains(name));
    match twice {
        Some((_, name)) => Err(wrong(format!("two columns have the name `{name}`"))),
        None => Ok(columns),
    }
}

fn encoding_of(field: &[u8]) -> String {
    not_utf8(field).map_or_else(String::new, |(_, what)| what)
}

fn broken(path: &Path, line: usize, error: csv::Error) -> Error {
    match error.into_kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => Error::line(
            path,
            line,
            format!(
                "the record has {}, and the header has {expected_len}; a field that holds the separator or a line end is put in quotes",
                count(len, "field")
            ),
        ),
        ErrorKind::Io(error) => match error.get_ref().and_then(|error| error.downcast_ref::<Misquoted>()) {
            Some(Misquoted { line, what }) => Error::line(path, *line, *what),
            None => Error::io("read", path)(error),
        },
        other => Error::file(path, format!("not a file of comma-separated values: {other:?}")),
    }
}

/// Watches the quotes of what is read, for the `csv` crate takes any text for some record; and counts lines.
struct Quotes<R> {
    from: R,
    separator: u8,
    state: State,
    line: usize,
    /// Where the last quote opened.
    opened: usize,
    /// Bytes since the last record ended.
    length: u64,
    /// Where records begin that are read ahead. (The crate's own lines are wrong behind CRLF and empty lines.)
    begins: VecDeque<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A field begins.
    Begin,
    Plain,
    Quoted,
    /// A quote within a quoted field: its end, or the first of two.
    Closed,
}

/// A quote is where it must not be.
#[derive(Debug)]
struct Misquoted {
    line: usize,
    what: &'static str,
}

impl fmt::Display for Misquoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl std::error::Error for Misquoted {}

impl<R: Read> Quotes<R> {
    fn new(from: R, separator: u8) -> Self {
        Self { from, separator, state: State::Begin, line: 1, opened: 1, length: 0, begins: VecDeque::new() }
    }

    /// The line where the next record begins that was not asked for yet.
    fn next_line(&mut self) -> usize {
        self.begins.pop_front().unwrap_or(self.line)
    }

    fn pass(&mut self, byte: u8) -> Result<(), Misquoted> {
        let is_end = byte == b'\n' || byte == b'\r';
        if self.length == 0 && !is_end {
            self.begins.push_back(self.line);
        }
        self.state = match (self.state, byte) {
            (State::Begin, b'"') => {
                self.opened = self.line;
                State::Quoted
            }
            (State::Quoted, b'"') => State::Closed,
            (State::Closed, b'"') | (State::Quoted, _) => State::Quoted,
            (_, byte) if byte == self.separator || is_end => State::Begin,
            (State::Closed, _) => {
                let what = "text stands behind a closing quote; a quote within a quoted field is written twice (\"\")";
                return Err(Misquoted { line: self.line, what });
            }
            (State::Begin | State::Plain, _) => State::Plain,
        };
        self.length = if is_end && self.state == State::Begin { 0 } else { self.length + 1 };
        if self.length > LONGEST {
            let what = "a record of more than 1 GiB begins here, or a quote that is not closed";
            return Err(Misquoted { line: if self.state == State::Quoted { self.opened } else { self.line }, what });
        }
        self.line += usize::from(byte == b'\n');
        Ok(())
    }
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if count == 0 && !buffer.is_empty() && self.state == State::Quoted {
            return Err(wrong(Misquoted { line: self.opened, what: "the quote that opens here is not closed" }));
        }
        buffer[..count].iter().try_for_each(|&byte| self.pass(byte)).map_err(wrong)?;
        Ok(count)
    }
}

//! JSON lines: one object a line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::BYTE_ORDER_MARK;
use crate::data::records::{Kind, Records};
use crate::{Error, Result};

/// Finds the records of a file with one object a line; empty lines are none. No line is held in memory.
pub(super) fn find(path: &Path, file: File, records: &mut Records) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 20, file.try_clone().map_err(Error::io("read", path))?);
    records.begin(path, Kind::Line, file);
    let before = records.len();
    let mut line = Line::default();
    let mut at = 0;
    loop {
        let buffer = reader.fill_buf().map_err(Error::io("read", path))?;
        if buffer.is_empty() {
            break;
        }
        let (part, ends) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&buffer[..=end], true),
            None => (buffer, false),
        };
        // The mark stands in the file's first bytes, all of which are in the first buffer.
        let skipped = if at == 0 && part.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        line.add(at + skipped as u64, &part[skipped..]);
        let read = part.len();
        at += read as u64;
        if ends {
            line.end(records)?;
        }
        reader.consume(read);
    }
    line.end(records)?;
    if records.len() == before {
        return Err(Error::file(path, "the file is empty"));
    }
    Ok(())
}

/// What is known of a line so far.
#[derive(Default)]
struct Line {
    /// Lines before it.
    before: usize,
    /// Where the first and the last byte are that are no white space.
    text: Option<(u64, u64)>,
}

impl Line {
    /// Adds a stretch of the line, which begins at byte `at` of the file.
    fn add(&mut self, at: u64, part: &[u8]) {
        let is_text = |byte: &u8| !byte.is_ascii_whitespace();
        if let (Some(first), Some(last)) = (part.iter().position(is_text), part.iter().rposition(is_text)) {
            let begin = self.text.map_or(at + first as u64, |(begin, _)| begin);
            self.text = Some((begin, at + last as u64));
        }
    }

    fn end(&mut self, records: &mut Records) -> Result<()> {
        self.before += 1;
        match self.text.take() {
            // More than a record may have is refused there.
            Some((first, last)) => {
                records.push(self.before, first, usize::try_from(last - first + 1).unwrap_or(usize::MAX))
            }
            None => Ok(()),
        }
    }
}

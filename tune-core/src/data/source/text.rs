//! Plain text: a file is one document.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::unpacked::Unpacked;
use crate::data::records::{Kind, Records, not_utf8};
use crate::{Error, Result};

/// The largest document, in bytes: it is tokenized as a whole, in memory.
const LARGEST: u64 = 1 << 30;

/// Finds the one record of a file, whose text becomes the column of this name.
pub(super) fn find(path: &Path, file: File, column: &str, records: &mut Records) -> Result<()> {
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
    if text.len() as u64 > LARGEST {
        return Err(Error::file(path, "is a document of more than 1 GiB; divide it into several files"));
    }
    let text = match String::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let (at, what) = not_utf8(error.as_bytes()).unwrap_or_default();
            return Err(Error::file(path, format!("byte {at}: {what}")));
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut unpacked = Unpacked::begin(path, Kind::Item, records)?;
    if !text.trim().is_empty() {
        unpacked.push(1, &Map::from_iter([(column.to_owned(), Value::from(text))]))?;
    }
    unpacked.finish()
}

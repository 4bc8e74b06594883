//! JSON files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{BYTE_ORDER_MARK, lines};
use crate::checkpoint::human;
use crate::data::advice;
use crate::data::records::{Kind, Records, json_error, kind_of};
use crate::memory::available;
use crate::{Error, Result};

/// The first line is looked at alone if it is no longer.
const FIRST_LINE: u64 = 64 << 20;

/// Finds the records of a JSON file: an array of objects, an object that holds one such array, or, as Hugging Face's
/// `json` loader has it, one object a line.
pub(super) fn find(path: &Path, mut file: File, column: &str, records: &mut Records) -> Result<()> {
    let begins_with_a_line = begins_with_a_line(&file).map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("read", path))?;
    if begins_with_a_line {
        return lines::find(path, file, records);
    }
    let whole = whole(path, &file)?;
    let text = whole.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&whole);
    let broken = |e: serde_json::Error| json_error(path, e.line(), &e, advice::of(text, &e));
    let items: Vec<&RawValue> = match text.trim_ascii_start().first() {
        None => return Err(Error::file(path, "the file is empty")),
        Some(b'[') => serde_json::from_slice(text).map_err(broken)?,
        Some(b'{') => match serde_json::from_slice::<&RawValue>(text) {
            Ok(object) => items_of(object, column).map_err(broken)?,
            Err(e) => {
                // One object and then more text: lines. Broken inside the first object: a broken file,
                // unless that object is all there is on its line.
                let first_line = text.split(|&b| b == b'\n').find(|l| !l.trim_ascii().is_empty());
                let is_lines = e.to_string().starts_with("trailing characters")
                    || first_line.is_some_and(|l| l.trim_ascii().ends_with(b"}"));
                if !is_lines {
                    return Err(broken(e));
                }
                // One object behind the other, each of them over several lines, as `jq` writes them.
                match serde_json::Deserializer::from_slice(text).into_iter().collect() {
                    Ok(objects) => objects,
                    Err(_) => {
                        file.rewind().map_err(Error::io("read", path))?;
                        return lines::find(path, file, records);
                    }
                }
            }
        },
        Some(_) => {
            let other: Value = serde_json::from_slice(text).map_err(broken)?;
            return Err(Error::file(path, format!("must be an array of objects, not {}", kind_of(&other))));
        }
    };
    records.begin(path, Kind::Item, file);
    for (i, item) in items.into_iter().enumerate() {
        let start = item.get().as_ptr() as usize - whole.as_ptr() as usize;
        records.push(i + 1, start as u64, item.get().len())?;
    }
    Ok(())
}

/// Whether the first line is an object and another one follows: such a file is not read whole.
fn begins_with_a_line(file: &File) -> std::io::Result<bool> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    reader.by_ref().take(FIRST_LINE).read_until(b'\n', &mut line)?;
    let text = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line);
    if !text.starts_with(b"{") || serde_json::from_slice::<&RawValue>(text).is_err() {
        return Ok(false);
    }
    let mut second = [0];
    Ok(reader.read(&mut second)? == 1 && second == *b"{")
}

/// The file's bytes, if the memory is large enough for them.
fn whole(path: &Path, mut file: &File) -> Result<Vec<u8>> {
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let too_large = |room: &u64| size > room / 2;
    if let Some(room) = available()?.map(|available| available.bytes).filter(too_large) {
        return Err(Error::file(
            path,
            format!(
                "has {}, which is too much to read at once with {} of memory: a file of JSON lines (one object a line, \
                 `.jsonl`) is not read at once",
                human(size),
                human(room)
            ),
        ));
    }
    let mut whole = Vec::new();
    file.read_to_end(&mut whole).map_err(Error::io("read", path))?;
    Ok(whole)
}

/// The records in a file that is one object: those of its one array of objects, or the object itself.
fn items_of<'a>(object: &'a RawValue, column: &str) -> serde_json::Result<Vec<&'a RawValue>> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(object.get())?;
    // A file of JSON lines that has one line.
    if fields.contains_key(column) {
        return Ok(vec![object]);
    }
    let arrays = fields.values().filter(|field| field.get().starts_with('['));
    let mut arrays =
        arrays.map(|field| serde_json::from_str(field.get())).collect::<Result<Vec<Vec<&RawValue>>, _>>()?;
    arrays.retain(|items| items.iter().all(|item| item.get().starts_with('{')));
    Ok(if arrays.len() == 1 { arrays.remove(0) } else { vec![object] })
}

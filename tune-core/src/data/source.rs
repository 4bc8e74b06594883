//! Finds the records of data files: JSON, JSON lines and Parquet.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use serde_json::value::RawValue;

use super::config::Files;
use super::records::{Kind, Records, json_error, kind_of};
use super::split::Split;
use crate::tokenizer::listed;
use crate::{Error, Result, hub};

/// The formats of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    JsonLines,
    Parquet,
}

/// Finds all records of a dataset, in the order of the files and of the records in them.
///
/// `column` is one that every record of this dataset has.
pub(super) fn find(files: &Files, column: &str) -> Result<Records> {
    let split: Split = files.split.parse()?;
    let files = &local(files)?;
    let data_files = &files.data_files;
    let (format, paths) = match files.source.as_deref() {
        None => (None, data_files.clone()),
        Some("json") => (Some(Format::Json), data_files.clone()),
        Some("jsonl") => (Some(Format::JsonLines), data_files.clone()),
        Some("parquet") => (Some(Format::Parquet), data_files.clone()),
        Some(path) if data_files.is_empty() && Path::new(path).exists() => (None, vec![PathBuf::from(path)]),
        Some(other) => {
            return Err(Error::setup(format!(
                "dataset source `{other}` is no format (`json`, `jsonl`, `parquet`){}; write `hf://{other}` for the \
                 dataset of this name on the Hugging Face hub, or set `data_files`",
                if data_files.is_empty() { " and no file or folder" } else { "" }
            )));
        }
    };
    if paths.is_empty() {
        return Err(Error::setup("a dataset needs `data_files`: a file, a list of files or a folder"));
    }
    let mut records = Records::default();
    for path in &paths {
        for file in files_of(path, &split)? {
            let format = match format {
                Some(format) => format,
                None => by_extension(&file)?,
            };
            let before = records.len();
            match format {
                Format::Json => find_json(&file, column, &mut records)?,
                Format::JsonLines => find_lines(&file, &mut records)?,
                Format::Parquet => unpack_parquet(&file, &mut records)?,
            }
            if records.len() == before {
                return Err(Error::file(&file, "the file has no records"));
            }
        }
    }
    records.cut(&split)
}

/// The dataset with the files and folders on this machine that names on the hub (`hf://org/name`) stand for.
fn local(files: &Files) -> Result<Files> {
    let mut local = files.clone();
    if let Some(repo) = files.source.as_deref().filter(|source| source.starts_with(hub::SCHEME)) {
        let repo = repo.trim_end_matches('/');
        local.source = None;
        local.data_files = match files.data_files.is_empty() {
            true => vec![PathBuf::from(repo)],
            false => files.data_files.iter().map(|file| format!("{repo}/{}", file.display()).into()).collect(),
        };
    }
    for file in &mut local.data_files {
        *file = hub::dataset(file)?.into_owned();
    }
    Ok(local)
}

fn by_extension(path: &Path) -> Result<Format> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "json" => Ok(Format::Json),
        "jsonl" | "ndjson" => Ok(Format::JsonLines),
        "parquet" => Ok(Format::Parquet),
        _ => Err(Error::file(
            path,
            "the name does not tell the format (.json, .jsonl, .parquet); set `source` to `json`, `jsonl` or `parquet`",
        )),
    }
}

/// The path itself, or the data files of a folder in the order of their names. Where names of a
/// folder's files tell their split (`train-00000.parquet`, `test.jsonl`), those of `split` are taken.
fn files_of(path: &Path, split: &Split) -> Result<Vec<PathBuf>> {
    let meta = fs::metadata(path).map_err(Error::io("read", path))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        if file.is_file() && by_extension(&file).is_ok() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::file(path, "the folder has no .json, .jsonl or .parquet file"));
    }
    if files.iter().any(|f| Split::names_a_split(f)) {
        let names: Vec<String> =
            files.iter().filter_map(|f| Some(f.file_name()?.to_string_lossy().into_owned())).collect();
        files.retain(|f| split.is_named_by(f));
        if files.is_empty() {
            return Err(Error::file(
                path,
                format!("no file of the split `{}`; the folder has {}", split.name(), listed(names)),
            ));
        }
    }
    Ok(files)
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSON file: an array of objects, an object that holds one such array, or, as Hugging Face's
/// `json` loader has it, one object a line.
fn find_json(path: &Path, column: &str, records: &mut Records) -> Result<()> {
    let whole = fs::read(path).map_err(Error::io("read", path))?;
    let text = whole.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&whole);
    let broken = |e: serde_json::Error| json_error(path, e.line(), &e);
    let items = match text.trim_ascii_start().first() {
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
                return if is_lines { find_lines(path, records) } else { Err(broken(e)) };
            }
        },
        Some(_) => {
            let other: Value = serde_json::from_slice(text).map_err(broken)?;
            return Err(Error::file(path, format!("must be an array of objects, not {}", kind_of(&other))));
        }
    };
    records.begin(path, Kind::Item, File::open(path).map_err(Error::io("read", path))?);
    for (i, item) in items.into_iter().enumerate() {
        let start = item.get().as_ptr() as usize - whole.as_ptr() as usize;
        records.push(i + 1, start as u64, item.get().len())?;
    }
    Ok(())
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

/// A file with one object a line; empty lines are none.
fn find_lines(path: &Path, records: &mut Records) -> Result<()> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut reader = BufReader::with_capacity(1 << 20, file.try_clone().map_err(Error::io("read", path))?);
    records.begin(path, Kind::Line, file);
    let before = records.len();
    let mut line = Vec::new();
    let (mut number, mut start) = (0, 0);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        number += 1;
        let skipped = if number == 1 && line.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let text = line[skipped..].trim_ascii_end();
        let record = text.trim_ascii_start();
        if !record.is_empty() {
            let skipped = skipped + text.len() - record.len();
            records.push(number, start + skipped as u64, record.len())?;
        }
        start += read as u64;
    }
    if records.len() == before {
        return Err(Error::file(path, "the file is empty"));
    }
    Ok(())
}

/// A Parquet file, written out as JSON: its pages are compressed and cannot be read at a position.
fn unpack_parquet(path: &Path, records: &mut Records) -> Result<()> {
    let broken = |e: &dyn fmt::Display| Error::file(path, format!("not a Parquet file that can be read: {e}"));
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut unpacked = BufWriter::new(temporary_file()?);
    let mut ends = Vec::new();
    // The reader checks a file's structure, but asserts what its pages hold: damage there must
    // not end the program.
    let read = AssertUnwindSafe(|| parquet_rows(file, &mut unpacked, &mut ends));
    let rows = catch_unwind(read).map_err(|_| broken(&"its pages are damaged"))?;
    rows.map_err(|e| broken(&e))?;
    let unpacked = unpacked.into_inner().map_err(|e| temporary_error(e.error()))?;
    records.begin(path, Kind::Row, unpacked);
    let mut start = 0;
    for (i, &end) in ends.iter().enumerate() {
        records.push(i + 1, start, (end - start) as usize)?;
        start = end;
    }
    Ok(())
}

/// Writes the rows of a Parquet file one behind the other, and the end of each to `ends`.
fn parquet_rows(file: File, out: &mut BufWriter<File>, ends: &mut Vec<u64>) -> parquet::errors::Result<()> {
    let reader = SerializedFileReader::new(file)?;
    for column in reader.metadata().row_groups().iter().flat_map(|group| group.columns()) {
        let compression = column.compression();
        if compression == Compression::LZO {
            return Err(ParquetError::General(
                "it is compressed with LZO, which is not read: write it again with snappy or zstd".to_owned(),
            ));
        }
    }
    let mut end = 0;
    for row in reader.get_row_iter(None)? {
        let columns: serde_json::Map<String, Value> =
            row?.get_column_iter().map(|(name, field)| (name.clone(), json_of(field))).collect();
        let text = serde_json::to_vec(&columns).map_err(|e| ParquetError::General(e.to_string()))?;
        out.write_all(&text).map_err(|e| ParquetError::General(temporary_error(&e).to_string()))?;
        end += text.len() as u64;
        ends.push(end);
    }
    Ok(())
}

/// A file without a name: it is gone when it is closed, however the program ends.
pub(super) fn temporary_file() -> Result<File> {
    tempfile::tempfile().map_err(|e| temporary_error(&e))
}

/// Data cannot be kept aside.
pub(super) fn temporary_error(error: &std::io::Error) -> Error {
    let place = std::env::temp_dir();
    Error::setup(format!(
        "cannot keep data in a temporary file in {}: {error}; TMPDIR in the environment names another place",
        place.display()
    ))
}

/// A Parquet value as JSON. Bytes that are text are text: not every writer annotates strings.
fn json_of(field: &Field) -> Value {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::from(text),
            Err(_) => field.to_json_value(),
        },
        // A struct's missing fields are null in Parquet; in a message they are simply not there.
        Field::Group(row) => Value::Object(
            row.get_column_iter()
                .filter(|(_, field)| !matches!(field, Field::Null))
                .map(|(name, field)| (name.clone(), json_of(field)))
                .collect(),
        ),
        Field::ListInternal(list) => list.elements().iter().map(json_of).collect(),
        other => other.to_json_value(),
    }
}

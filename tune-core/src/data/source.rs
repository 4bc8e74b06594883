//! Records from files: JSON, JSON lines and Parquet, each with the place it came from.

use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::config::Files;
use super::split::Split;
use crate::tokenizer::listed;
use crate::{Error, Result, hub};

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
    number: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Line,
    Item,
    Row,
}

impl Origin {
    /// The record is not what it should be.
    pub(super) fn error(&self, message: impl fmt::Display) -> Error {
        let (path, number) = (&self.path, self.number);
        match self.kind {
            Kind::Line => Error::line(path, number, message.to_string()),
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
        }
    }
}

/// The formats of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    JsonLines,
    Parquet,
}

/// Reads all records of a dataset, in the order of the files and of the records in them.
///
/// `column` is one that every record of this dataset has.
pub(super) fn read(files: &Files, column: &str) -> Result<Vec<Record>> {
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
    let mut records = Vec::new();
    for path in &paths {
        for file in files_of(path, &split)? {
            let format = match format {
                Some(format) => format,
                None => by_extension(&file)?,
            };
            let before = records.len();
            match format {
                Format::Json => read_json(&file, column, &mut records)?,
                Format::JsonLines => read_lines(&file, &read_file(&file)?, &mut records)?,
                Format::Parquet => read_parquet(&file, &mut records)?,
            }
            if records.len() == before {
                return Err(Error::file(&file, "the file has no records"));
            }
        }
    }
    split.cut(records)
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

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = fs::read(path).map_err(Error::io("read", path))?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    Ok(bytes)
}

/// A JSON file: an array of objects, an object that holds one such array, or, as Hugging Face's
/// `json` loader has it, one object a line.
fn read_json(path: &Path, column: &str, records: &mut Vec<Record>) -> Result<()> {
    let bytes = read_file(path)?;
    let first = bytes.iter().copied().find(|b| !b.is_ascii_whitespace());
    let whole = serde_json::from_slice::<Value>(&bytes);
    let items = match (first, whole) {
        (None, _) => return Err(Error::file(path, "the file is empty")),
        (Some(b'{'), Err(e)) => {
            // One object and then more text: lines. Broken inside the first object: a broken file,
            // unless that object is all there is on its line.
            let first_line = bytes.split(|&b| b == b'\n').find(|l| !l.trim_ascii().is_empty());
            let is_lines = e.to_string().starts_with("trailing characters")
                || first_line.is_some_and(|l| l.trim_ascii().ends_with(b"}"));
            if is_lines {
                return read_lines(path, &bytes, records);
            }
            return Err(json_error(path, e.line(), &e));
        }
        (_, Err(e)) => return Err(json_error(path, e.line(), &e)),
        (_, Ok(Value::Array(items))) => items,
        // A file of JSON lines that has one line.
        (_, Ok(Value::Object(object))) if object.contains_key(column) => {
            vec![Value::Object(object)]
        }
        (_, Ok(Value::Object(mut object))) => {
            let arrays: Vec<String> = object
                .iter()
                .filter(|(_, v)| v.as_array().is_some_and(|a| a.iter().all(Value::is_object)))
                .map(|(k, _)| k.clone())
                .collect();
            match arrays.as_slice() {
                [one] => match object.remove(one) {
                    Some(Value::Array(items)) => items,
                    _ => Vec::new(),
                },
                _ => vec![Value::Object(object)],
            }
        }
        (_, Ok(other)) => {
            return Err(Error::file(path, format!("must be an array of objects, not {}", kind_of(&other))));
        }
    };
    let path: Arc<Path> = path.into();
    for (i, item) in items.into_iter().enumerate() {
        let origin = Origin { path: path.clone(), number: i + 1, kind: Kind::Item };
        records.push(record(item, origin)?);
    }
    Ok(())
}

fn read_lines(path: &Path, bytes: &[u8], records: &mut Vec<Record>) -> Result<()> {
    let lines: Vec<(usize, &[u8])> = bytes
        .split(|&b| b == b'\n')
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim_ascii()))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return Err(Error::file(path, "the file is empty"));
    }
    let shared: Arc<Path> = path.into();
    let parsed: Vec<Result<Record>> = lines
        .par_iter()
        .map(|&(number, line)| {
            let value = serde_json::from_slice(line).map_err(|e| json_error(path, number, &e))?;
            let origin = Origin { path: shared.clone(), number, kind: Kind::Line };
            record(value, origin)
        })
        .collect();
    // Of several broken lines the first is named, whichever thread met one first.
    for record in parsed {
        records.push(record?);
    }
    Ok(())
}

/// `path:line: column C: what is wrong`.
fn json_error(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    let message = error.to_string();
    let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    Error::line(path, line, format!("column {}: not valid JSON: {what}", error.column()))
}

fn record(value: Value, origin: Origin) -> Result<Record> {
    match value {
        Value::Object(columns) => Ok(Record { columns, origin }),
        other => Err(origin.error(format_args!("must be a JSON object, not {}", kind_of(&other)))),
    }
}

/// What a JSON value is, for messages.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn read_parquet(path: &Path, records: &mut Vec<Record>) -> Result<()> {
    let broken = |e: &dyn fmt::Display| Error::file(path, format!("not a Parquet file that can be read: {e}"));
    let file = fs::File::open(path).map_err(Error::io("read", path))?;
    // The reader checks a file's structure, but asserts what its pages hold: damage there must
    // not end the program.
    let read = AssertUnwindSafe(|| parquet_rows(file, path));
    let rows = catch_unwind(read).map_err(|_| broken(&"its pages are damaged"))?;
    records.extend(rows.map_err(|e| broken(&e))?);
    Ok(())
}

fn parquet_rows(file: fs::File, path: &Path) -> parquet::errors::Result<Vec<Record>> {
    let reader = SerializedFileReader::new(file)?;
    for column in reader.metadata().row_groups().iter().flat_map(|group| group.columns()) {
        let compression = column.compression();
        if !matches!(compression, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_)) {
            return Err(ParquetError::General(format!(
                "it is compressed as {compression}; snappy and zstd are read: write it again with one of these"
            )));
        }
    }
    let shared: Arc<Path> = path.into();
    let mut records = Vec::new();
    for (i, row) in reader.get_row_iter(None)?.enumerate() {
        let columns = row?.get_column_iter().map(|(name, field)| (name.clone(), json_of(field))).collect();
        let origin = Origin { path: shared.clone(), number: i + 1, kind: Kind::Row };
        records.push(Record { columns, origin });
    }
    Ok(records)
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

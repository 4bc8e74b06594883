//! Finds the records of data files: JSON, JSON lines, Parquet, Arrow, CSV, TSV and plain text, compressed with gzip or Zstandard or not.

mod arrow;
pub(super) mod compressed;
mod csv;
mod encoding;
mod json;
mod lines;
mod parquet;
mod pattern;
mod text;
mod unpacked;
mod values;

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tune_config::files::{self, Opened};

use super::files::Files;
use super::records::Records;
use super::scratch::Scratch;
use super::split::Split;
use crate::{Error, Result, hub};

/// What the names of data files end in, for messages.
pub(crate) const EXTENSIONS: &str = ".json, .jsonl, .parquet, .arrow, .csv, .tsv, each also with .gz or .zst behind it";

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The formats of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    JsonLines,
    Parquet,
    Arrow,
    Csv,
    Tsv,
    /// A file is one document. No name tells it: the text of a README is not meant.
    Text,
}

impl Format {
    /// By the name that `source` has for it.
    fn named(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json),
            "jsonl" => Some(Self::JsonLines),
            "parquet" => Some(Self::Parquet),
            "arrow" => Some(Self::Arrow),
            "csv" => Some(Self::Csv),
            "tsv" => Some(Self::Tsv),
            "text" => Some(Self::Text),
            _ => None,
        }
    }

    /// By a file's name.
    fn of(path: &Path) -> Option<Self> {
        let extension = compressed::plain_name(path).extension()?.to_str()?.to_ascii_lowercase();
        let name = match extension.as_str() {
            "ndjson" => "jsonl",
            "feather" => "arrow",
            other => other,
        };
        Self::named(name).filter(|format| *format != Self::Text)
    }
}

/// What is beside the folders of splits that `save_to_disk` of Python's `datasets` writes.
const SPLITS_OF_DATASETS: &str = "dataset_dict.json";

/// Whether the name of a file tells that it is one of records.
pub(crate) fn is_data(path: &Path) -> bool {
    Format::of(path).is_some()
}

/// Columns of records.
pub(super) struct Columns<'a> {
    /// One that every record of the dataset has.
    pub(super) first: &'a str,
    /// All that the dataset may read, this one among them. Of others no more is needed than whether they are there.
    pub(super) read: Vec<&'a str>,
}

/// Finds all records of a dataset, in the order of the files and of the records in them.
pub(super) fn find(files: &Files, columns: &Columns<'_>) -> Result<Records> {
    let split: Split = files.split.parse()?;
    let files = &local(&in_subset(files)?)?;
    let data_files = &files.data_files;
    let (format, paths) = match files.source.as_deref() {
        None => (None, data_files.clone()),
        Some(source) => match Format::named(source) {
            Some(format) => (Some(format), data_files.clone()),
            None if data_files.is_empty() && Path::new(source).exists() => (None, vec![PathBuf::from(source)]),
            None => {
                return Err(Error::setup(format!(
                    "dataset source `{source}` is no format (`json`, `jsonl`, `parquet`, `arrow`, `csv`, `tsv`, `text`){}; write \
                     `hf://{source}` for the dataset of this name on the Hugging Face hub, or set `data_files`",
                    if data_files.is_empty() { " and no file or folder" } else { "" }
                )));
            }
        },
    };
    if paths.is_empty() {
        return Err(Error::setup("a dataset needs `data_files`: a file, a list of files or a folder"));
    }
    let mut records = Records::default();
    for path in &paths {
        for file in files_of(path, format, &split)? {
            let format = match format {
                Some(format) => format,
                None => by_extension(&file)?,
            };
            let before = records.len();
            find_in(&file, format, columns, &mut records)?;
            if records.len() == before {
                return Err(Error::file(&file, "the file has no records"));
            }
        }
    }
    records.cut(&split)
}

/// Finds the records of one file.
fn find_in(path: &Path, format: Format, columns: &Columns<'_>, records: &mut Records) -> Result<()> {
    let file = compressed::unpacked(path, open(path)?)?;
    let text = |file| encoding::utf8(path, file);
    match format {
        Format::Parquet => parquet::find(path, file, columns, records),
        Format::Arrow => arrow::find(path, file, columns, records),
        Format::Json => json::find(path, text(file)?, columns.first, records),
        Format::JsonLines => lines::find(path, text(file)?, records),
        Format::Csv => csv::find(path, text(file)?, b',', records),
        Format::Tsv => csv::find(path, text(file)?, b'\t', records),
        Format::Text => text::find(path, text(file)?, columns.first, records),
    }
}

/// Opens a data file, at its beginning. What comes out of a pipe is kept for as long as the program runs: a dataset is
/// looked at more than once, and a pipe gives what it holds only once.
fn open(path: &Path) -> Result<File> {
    static PIPES: Mutex<Vec<(PathBuf, File)>> = Mutex::new(Vec::new());
    let mut pipes = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, kept)) = pipes.iter().find(|(pipe, _)| pipe == path) {
        return again(path, kept);
    }
    match files::open(path).map_err(Error::io("read", path))? {
        Opened::File(file) => Ok(file),
        Opened::Pipe(pipe) => {
            let kept = drain(path, pipe)?;
            pipes.push((path.to_owned(), again(path, &kept)?));
            Ok(kept)
        }
    }
}

/// The same file, at its beginning.
fn again(path: &Path, file: &File) -> Result<File> {
    let mut file = file.try_clone().map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("read", path))?;
    Ok(file)
}

/// Keeps what comes out of a pipe in a temporary file.
fn drain(path: &Path, mut pipe: File) -> Result<File> {
    let about = |error: Error| Error::file(path, error.to_string());
    let mut scratch = Scratch::new().map_err(about)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => scratch.write(&buffer[..count]).map_err(about)?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", path)(error)),
        }
    }
    let file = scratch.reader()?;
    scratch.finish()?;
    again(path, &file)
}

/// The dataset whose source is the folder of its subset.
fn in_subset(files: &Files) -> Result<Files> {
    let Some(subset) = &files.subset else { return Ok(files.clone()) };
    match files.source.as_deref() {
        Some(source) if Format::named(source).is_none() && files.data_files.is_empty() => {
            let source = format!("{}/{subset}", source.trim_end_matches('/'));
            Ok(Files { source: Some(source.as_str().into()), subset: None, ..files.clone() })
        }
        _ => Err(Error::setup(format!(
            "`subset: {subset}` is a folder of the dataset that `source` names, and `data_files` or a format stands there: \
             remove it, and name the files of the subset"
        ))),
    }
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
    let mut found = Vec::with_capacity(local.data_files.len());
    for file in local.data_files {
        match pattern::matches(&file)? {
            Some(files) => found.extend(files),
            None => found.push(hub::dataset(&file)?.into_owned()),
        }
    }
    Ok(Files { data_files: found, ..local })
}

fn by_extension(path: &Path) -> Result<Format> {
    Format::of(path).ok_or_else(|| {
        Error::file(
            path,
            format!("the name does not tell the format ({EXTENSIONS}); set `source` to `json`, `jsonl`, `parquet`, `arrow`, `csv` or `tsv`, or to `text`, if the file is one document"),
        )
    })
}

/// The path itself, if it has the split, or the data files of a folder that have it, in the order of their names. Where Python's
/// `datasets` has put each split into a folder of its own, those of that folder. Documents are in `.txt` files.
fn files_of(path: &Path, format: Option<Format>, split: &Split) -> Result<Vec<PathBuf>> {
    let meta = fs::metadata(path).map_err(Error::io("read", path))?;
    if !meta.is_dir() {
        split.check(path)?;
        return Ok(vec![path.to_path_buf()]);
    }
    if path.join(SPLITS_OF_DATASETS).is_file() {
        let folder = path.join(split.name());
        if !folder.is_dir() {
            return Err(Error::file(path, format!("no folder of the split `{}`; set `split`", split.name())));
        }
        return files_of(&folder, format, split);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        let is_meant = match format {
            Some(Format::Text) => compressed::plain_name(&file).extension().is_some_and(|extension| extension == "txt"),
            _ => by_extension(&file).is_ok(),
        };
        if file.is_file() && is_meant {
            files.push(file);
        }
    }
    files.sort();
    // `save_to_disk` of Python's `datasets` writes JSON about its data beside it.
    if format.is_none() && files.iter().any(|file| Format::of(file) == Some(Format::Arrow)) {
        files.retain(|file| Format::of(file) == Some(Format::Arrow));
    }
    if files.is_empty() {
        let expected = if format == Some(Format::Text) { ".txt" } else { EXTENSIONS };
        return Err(Error::file(path, format!("the folder has no data file ({expected})")));
    }
    split.among(path, files)
}

#[cfg(test)]
mod tests;

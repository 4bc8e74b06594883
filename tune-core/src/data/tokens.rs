//! Files of tokens that were made once: nothing is tokenized when training begins.
//!
//! `NAME.bin` has the ids of documents, one behind the other, in 2 or 4 bytes each, the lowest first, and each document ends with the
//! end-of-text token. `NAME.json` beside it is a [`Header`]. A file without one, such as nanoGPT's `train.bin`, is read where the
//! dataset says its `dtype`. Files are read at positions, row by row, as everything here is: a file that is mapped into memory and
//! becomes shorter ends the process, and one that is read is an error.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ahead::Stored;
use super::batch::{IGNORE, Sample};
use super::kind::DataConfig;
use super::report::DatasetReport;
use super::split::Split;
use crate::config::Config;
use crate::positions::read_exact_at;
use crate::tokenizer::Tokenizer;
use crate::words::count;
use crate::{Error, Result, hub};

/// What the name of a file of tokens ends in, and that of its header.
pub(super) const EXTENSIONS: [&str; 2] = ["bin", "json"];
/// What a header is for.
pub(super) const FORMAT: &str = "tokens";

/// Files of tokens, as `tune tokenize` makes them.
#[derive(Debug, Clone, Config)]
#[config(crate = crate::config)]
pub struct TokensDataset {
    /// A `.bin` file, several or a folder of them, relative to the working directory; or `hf://org/name/path`.
    #[config(one_or_many)]
    pub data_files: Vec<PathBuf>,
    /// Which part of the rows to take: `train`, `train[:99%]`, `train[-50:]` ...
    #[config(default = "train")]
    pub split: String,
    /// The width of ids in files that have no `.json` beside them.
    pub dtype: Option<TokenWidth>,
    /// The id that ends documents; where null, the one that the `.json` names or, of files without one, the tokenizer's end-of-text token.
    pub end_of_text: Option<u32>,
    /// Let attention reach over the borders of documents that share a row, as GPT-2 does; the end of a document then also predicts the beginning of the next. If false, attention stays inside each document.
    #[config(default = false)]
    pub attend_across: bool,
}

/// The bytes of an id in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config, Serialize, Deserialize)]
#[config(crate = crate::config)]
#[serde(rename_all = "lowercase")]
pub enum TokenWidth {
    /// Two bytes: up to 65,536 tokens.
    #[config(name = "uint16")]
    Uint16,
    /// Four bytes.
    #[config(name = "uint32")]
    Uint32,
}

impl TokenWidth {
    /// Its bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Uint16 => 2,
            Self::Uint32 => 4,
        }
    }

    /// The ids in some bytes of a file.
    fn ids(self, bytes: &[u8]) -> Vec<u32> {
        match self {
            Self::Uint16 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
            Self::Uint32 => bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }
}

/// What stands beside a file of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Always `tokens`.
    pub format: String,
    /// The width of an id.
    pub dtype: TokenWidth,
    /// How many ids the file has.
    pub tokens: u64,
    /// How many documents they are.
    pub documents: u64,
    /// The id that ends each document, if one does.
    pub end_of_text: Option<u32>,
    /// The tokens that the ids stand for: a checksum of their names, see [`Tokenizer::vocabulary_sum`].
    pub vocabulary_crc32c: u32,
}

impl Header {
    /// The header beside a file of tokens, if there is one.
    fn beside(path: &Path) -> Result<Option<Self>> {
        let path = path.with_extension(EXTENSIONS[1]);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let header: Self = serde_json::from_slice(&text)
            .map_err(|e| Error::file(&path, format!("does not say what is in the file of tokens beside it: {e}")))?;
        match header.format == FORMAT {
            true => Ok(Some(header)),
            false => Err(Error::file(&path, format!("`format` is `{}`, and `{FORMAT}` is expected", header.format))),
        }
    }
}

/// One file, opened.
struct TokenFile {
    path: PathBuf,
    file: File,
    width: TokenWidth,
    tokens: u64,
    /// The number of its first row in the dataset.
    first: usize,
}

/// The rows of one dataset.
struct Part {
    name: String,
    files: Vec<TokenFile>,
    /// The id that ends documents.
    end: Option<u32>,
    /// Those of its rows that are taken.
    taken: Range<usize>,
    /// The number of the first of these among the rows of all datasets.
    first: usize,
}

/// Files of tokens, cut into rows of which each position has a target: the last one's is the first token behind the row.
pub(super) struct TokenFiles {
    parts: Vec<Part>,
    /// Tokens of a row.
    row: usize,
    /// Whether attention reaches over the borders of documents.
    across: bool,
    tokenizer: Tokenizer,
}

/// What one look at a row tells.
pub(super) struct Row {
    /// The row cut at the borders of documents, where attention does not reach over them.
    pub(super) pieces: Vec<Stored>,
    pub(super) sum: u32,
    tokens: usize,
    trained: usize,
}

impl TokenFiles {
    /// Opens the files of datasets; `None` where these are no files of tokens.
    ///
    /// # Errors
    /// A file that is missing, is not what is said of it or was made with another tokenizer; and no length of a row.
    pub(super) fn open(
        configs: &[DataConfig],
        tokenizer: &Tokenizer,
        max_seq_len: Option<usize>,
    ) -> Result<Option<Self>> {
        let datasets: Vec<&TokensDataset> = configs.iter().filter_map(|config| config.tokens.as_ref()).collect();
        let Some(first) = datasets.first() else { return Ok(None) };
        if datasets.len() < configs.len() {
            return Err(Error::setup("of several datasets either all or none must be files of tokens"));
        }
        if datasets.iter().any(|dataset| dataset.attend_across != first.attend_across) {
            return Err(Error::setup("of several datasets all must have the same `attend_across`"));
        }
        let row = max_seq_len
            .ok_or_else(|| Error::setup("files of tokens need `tokenizer.max_seq_len`, the length of a row"))?;
        let across = first.attend_across;
        let mut all = Self { parts: Vec::new(), row, across, tokenizer: tokenizer.clone() };
        for (config, dataset) in configs.iter().zip(datasets) {
            let part = all.part(config.name(), dataset)?;
            all.parts.push(part);
        }
        Ok(Some(all))
    }

    fn part(&self, name: String, dataset: &TokensDataset) -> Result<Part> {
        let mut part = Part { name, files: Vec::new(), end: dataset.end_of_text, taken: 0..0, first: self.len() };
        let mut rows = 0;
        let split: Split = dataset.split.parse()?;
        for path in files_of(dataset, &split)? {
            let header = Header::beside(&path)?;
            let end = header.as_ref().map_or_else(|| self.tokenizer.eos(), |header| header.end_of_text);
            if let (None, Some(_), true) = (dataset.end_of_text, part.end, !part.files.is_empty() && part.end != end) {
                return Err(Error::file(&path, "ends documents with another token than the files before it"));
            }
            part.end = dataset.end_of_text.or(end);
            let file = self.file(&path, header, dataset.dtype, rows)?;
            rows += usize::try_from((file.tokens - 1).div_ceil(self.row as u64)).unwrap_or(usize::MAX);
            part.files.push(file);
        }
        if part.end.is_none() && !self.across {
            return Err(Error::setup(format!(
                "{}: nothing says which token ends a document: set `end_of_text`, or `attend_across: true`",
                part.name
            )));
        }
        let taken = split.cut((0..rows).collect())?;
        part.taken = taken.first().copied().unwrap_or(0)..taken.last().map_or(0, |last| last + 1);
        Ok(part)
    }

    fn file(&self, path: &Path, header: Option<Header>, dtype: Option<TokenWidth>, first: usize) -> Result<TokenFile> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let bytes = file.metadata().map_err(Error::io("read", path))?.len();
        let width = match (&header, dtype) {
            (Some(header), Some(dtype)) if header.dtype != dtype => {
                return Err(Error::file(
                    path,
                    "`dtype` is another than the .json beside the file says: remove the key",
                ));
            }
            (Some(header), _) => header.dtype,
            (None, Some(dtype)) => dtype,
            (None, None) => {
                return Err(Error::file(
                    path,
                    "has no .json beside it that says what it is: make the file with `tune tokenize`, or set `dtype` to \
                     `uint16` or `uint32`",
                ));
            }
        };
        let tokens = bytes / width.bytes();
        let expected = header.as_ref().map_or(tokens, |header| header.tokens);
        if expected.checked_mul(width.bytes()) != Some(bytes) {
            return Err(Error::file(
                path,
                format!(
                    "has {bytes} bytes, and {expected} tokens of {} bytes are expected: it is not whole",
                    width.bytes()
                ),
            ));
        }
        if tokens < 2 {
            return Err(Error::file(path, "has no two tokens, and so nothing to predict"));
        }
        if header.is_some_and(|header| header.vocabulary_crc32c != self.tokenizer.vocabulary_sum()) {
            return Err(Error::file(
                path,
                "was made with another tokenizer, whose ids stand for other tokens: make it again with the model's (`tune tokenize`)",
            ));
        }
        Ok(TokenFile { path: path.to_owned(), file, width, tokens, first })
    }

    /// Rows, of all datasets.
    pub(super) fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first + part.taken.len())
    }

    /// The dataset that a row is of.
    pub(super) fn part_of(&self, row: usize) -> usize {
        self.parts.partition_point(|part| part.first <= row) - 1
    }

    /// A report on nothing yet, one for each dataset.
    pub(super) fn reports(&self) -> Vec<DatasetReport> {
        self.parts.iter().map(|part| DatasetReport { name: part.name.clone(), ..DatasetReport::default() }).collect()
    }

    /// The datasets with their number of rows, in words.
    pub(super) fn summary(&self) -> Vec<String> {
        self.parts.iter().map(|part| format!("{}: {}", part.name, count(part.taken.len(), "row"))).collect()
    }

    /// The dataset and the file of a row, and where it begins in that.
    fn place(&self, row: usize) -> (&Part, &TokenFile, u64) {
        let part = &self.parts[self.part_of(row)];
        let in_dataset = row - part.first + part.taken.start;
        let file = &part.files[part.files.partition_point(|file| file.first <= in_dataset) - 1];
        (part, file, (in_dataset - file.first) as u64 * self.row as u64)
    }

    /// Where a row stands, for messages.
    pub(super) fn origin(&self, row: usize) -> String {
        let (_, file, start) = self.place(row);
        format!("{}: token {}", file.path.display(), start + 1)
    }

    /// Looks at a row: that the model knows its tokens, and where documents end.
    pub(super) fn row(&self, row: usize) -> Result<Row> {
        let (part, file, start) = self.place(row);
        let len = (file.tokens - 1 - start).min(self.row as u64) as usize;
        let ids = file.read(start, len + 1)?;
        self.tokenizer.check_ids(&ids).map_err(|e| Error::file(&file.path, format!("tokens {}…: {e}", start + 1)))?;
        let sum = crc32c::crc32c(bytemuck::cast_slice(&ids));
        let mut pieces = Vec::new();
        let (mut from, mut trained) = (0, 0);
        for to in 1..=len {
            let ends = !self.across && Some(ids[to - 1]) == part.end;
            if !ends && to < len {
                continue;
            }
            // The last token of a document predicts nothing, and alone it is no piece.
            let predictions = to - from - usize::from(ends);
            if predictions > 0 {
                pieces.push(Stored { record: row, start: start + from as u64, len: (to - from) as u32, label: None });
                trained += predictions;
            }
            from = to;
        }
        Ok(Row { pieces, sum, tokens: len, trained })
    }

    /// Reads a piece of a row.
    pub(super) fn sample(&self, stored: Stored) -> Result<Sample> {
        let (part, file, _) = self.place(stored.record);
        let ids = file.read(stored.start, stored.len as usize + 1)?;
        let (input_ids, next) = (&ids[..ids.len() - 1], &ids[1..]);
        let target = |(id, next): (&u32, &u32)| if !self.across && Some(*id) == part.end { IGNORE } else { *next };
        let targets = input_ids.iter().zip(next).map(target).collect();
        let origin = format!("{}: token {}", file.path.display(), stored.start + 1);
        Ok(Sample { input_ids: input_ids.to_vec(), targets, origin, label: None })
    }

    /// The first `n` rows of each dataset.
    pub(super) fn examples(&self, n: usize) -> Vec<Sample> {
        let rows = self.parts.iter().flat_map(|part| part.first..part.first + part.taken.len().min(n));
        let pieces = rows.filter_map(|row| self.row(row).ok()?.pieces.first().copied());
        pieces.filter_map(|piece| self.sample(piece).ok()).collect()
    }
}

impl Row {
    /// Counts it in the report of its dataset.
    pub(super) fn count(&self, report: &mut DatasetReport) {
        report.samples += self.pieces.len();
        report.tokens += self.tokens;
        report.trained_tokens += self.trained;
        report.longest = self.pieces.iter().map(|piece| piece.len as usize).fold(report.longest, usize::max);
    }
}

impl TokenFile {
    fn read(&self, start: u64, len: usize) -> Result<Vec<u32>> {
        let width = self.width.bytes();
        let mut bytes = vec![0; len * width as usize];
        read_exact_at(&self.file, &mut bytes, start * width).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::file(&self.path, "became shorter while it was being read"),
            _ => Error::io("read", &self.path)(e),
        })?;
        Ok(self.width.ids(&bytes))
    }
}

/// The files that a dataset names, those of a folder in the order of their names.
fn files_of(dataset: &TokensDataset, split: &Split) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in &dataset.data_files {
        let path = hub::dataset(path)?.into_owned();
        if !fs::metadata(&path).map_err(Error::io("read", &path))?.is_dir() {
            split.check(&path)?;
            files.push(path);
            continue;
        }
        let mut of_folder = Vec::new();
        for entry in fs::read_dir(&path).map_err(Error::io("read", &path))? {
            let file = entry.map_err(Error::io("read", &path))?.path();
            if file.is_file() && file.extension().is_some_and(|extension| extension == EXTENSIONS[0]) {
                of_folder.push(file);
            }
        }
        if of_folder.is_empty() {
            return Err(Error::file(&path, "the folder has no file of tokens (.bin)"));
        }
        of_folder.sort();
        files.extend(split.among(&path, of_folder)?);
    }
    match files.is_empty() {
        true => Err(Error::setup("a dataset needs `data_files`: a file, a list of files or a folder")),
        false => Ok(files),
    }
}

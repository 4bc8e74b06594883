//! Importance matrices: how much comes through each column of a weight, in the files of llama.cpp's `llama-imatrix`.
//!
//! Of each weight there are the squares of what its columns were given, summed over tokens, and the number of these. Blocks are then
//! made so that errors in columns that much comes through are small.

use std::collections::BTreeMap;
use std::path::Path;

use tune_config::files;

use super::header::{Header, Kind, TensorInfo};
use super::layout::{Placed, layer_name};
use super::metadata::Metadata;
use super::quantize::Format;
use super::write::{Head, Outgoing, Value};
use crate::checkpoint::source::DataFile;
use crate::engine::Inputs;
use crate::models::ModelSpec;
use crate::{Error, Result};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// What the names of the older files end in.
const OLDER: [&str; 2] = ["dat", "imatrix"];
/// No older file is longer, in bytes.
const LARGEST: u64 = 1 << 30;

/// How much comes through the columns of a model's weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// What it was made of.
    pub datasets: Vec<String>,
    /// How many chunks of text that was.
    pub chunks: u32,
    /// The tokens of a chunk; 0 where the file does not say.
    pub chunk_size: u32,
    /// By llama.cpp's names of weights.
    entries: BTreeMap<String, Entry>,
}

/// Of one weight, or of all experts' weights of a kind.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    /// Of squares, `[matrices, width]`.
    sums: Vec<f32>,
    /// How many rows each matrix was given; or one number for all matrices.
    counts: Vec<f32>,
}

/// How much the columns of weights count, by llama.cpp's names.
pub(super) type Columns = BTreeMap<String, Vec<f32>>;

impl Importance {
    /// Whether a file is an importance matrix, by its beginning or its name; what is no file is none.
    #[must_use]
    pub fn is_one(path: &Path) -> bool {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        OLDER.contains(&extension) || files::read_beginning(path, 4).is_ok_and(|beginning| beginning == b"GGUF")
    }

    /// Reads the file of `llama-imatrix`, in today's form or the older one (`.dat`, `.imatrix`).
    ///
    /// # Errors
    /// A file that cannot be read, is no importance matrix, or holds what is no sum of squares.
    pub fn read(path: &Path) -> Result<Self> {
        let beginning = files::read_beginning(path, 4).map_err(Error::io("read", path))?;
        let read = if beginning == b"GGUF" { Self::read_gguf(path)? } else { Self::read_older(path)? };
        if read.entries.is_empty() {
            return Err(Error::file(path, "holds no importance of any weight"));
        }
        for (name, entry) in &read.entries {
            let is_sound = |x: &f32| x.is_finite() && *x >= 0.0;
            if !entry.sums.iter().chain(&entry.counts).all(is_sound) {
                return Err(Error::file(
                    path,
                    format!("the importance of `{name}` has a number that is no sum of squares"),
                ));
            }
            if entry.counts.is_empty() || !entry.sums.len().is_multiple_of(entry.counts.len()) {
                return Err(Error::file(
                    path,
                    format!(
                        "the importance of `{name}` has {} sums and {} counts",
                        entry.sums.len(),
                        entry.counts.len()
                    ),
                ));
            }
        }
        Ok(read)
    }

    fn read_gguf(path: &Path) -> Result<Self> {
        let file = DataFile::open(path)?;
        let Header { metadata, tensors } = Header::read(&file)?;
        let metadata = Metadata::new(path, metadata);
        if metadata.text("general.type")?.is_some_and(|kind| kind != "imatrix") || metadata.u64(CHUNKS)?.is_none() {
            return Err(Error::file(
                path,
                "is a GGUF file, but no importance matrix: `llama-imatrix` or `--importance DATA` makes one",
            ));
        }
        let number = |key| Ok::<_, Error>(metadata.u64(key)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(0));
        let mut read = Self {
            datasets: metadata.texts(DATASETS)?.unwrap_or_default().into_iter().map(str::to_owned).collect(),
            chunks: number(CHUNKS)?,
            chunk_size: number(CHUNK_SIZE)?,
            entries: BTreeMap::new(),
        };
        let by_name: BTreeMap<&str, &TensorInfo> = tensors.iter().map(|info| (info.name.as_str(), info)).collect();
        for (tensor, info) in &by_name {
            let Some(name) = tensor.strip_suffix(SUMS) else { continue };
            let counts = format!("{name}{COUNTS}");
            let counts = by_name.get(counts.as_str()).ok_or_else(|| {
                Error::file(path, format!("has `{tensor}`, but not `{counts}`: the file is damaged, make it again"))
            })?;
            let entry = Entry { sums: numbers(&file, info)?, counts: numbers(&file, counts)? };
            read.entries.insert(name.to_owned(), entry);
        }
        Ok(read)
    }

    /// The older form: after the number of weights, for each the length of its name, the name, a count, how many sums follow, and
    /// these; at the end the number of chunks and the name of the data, where they are there.
    fn read_older(path: &Path) -> Result<Self> {
        let bytes = files::read(path, LARGEST).map_err(Error::io("read", path))?;
        let mut rest = bytes.as_slice();
        let damaged = || {
            let what = "is no importance matrix of llama.cpp, or it is damaged: it ends too early";
            Error::file(path, what)
        };
        fn take<'b>(rest: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
            let (taken, left) = rest.split_at_checked(count)?;
            *rest = left;
            Some(taken)
        }
        fn length(rest: &mut &[u8]) -> Option<usize> {
            let bytes = take(rest, 4)?.first_chunk()?;
            usize::try_from(i32::from_le_bytes(*bytes)).ok()
        }
        let entry = |rest: &mut &[u8]| {
            let name = length(rest)?;
            let name = String::from_utf8_lossy(take(rest, name)?).into_owned();
            let (count, sums) = (length(rest)?, length(rest)?);
            let sums = take(rest, sums.checked_mul(4)?)?.as_chunks::<4>().0;
            let sums = sums.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Some((name, Entry { sums, counts: vec![count as f32] }))
        };
        let mut read = Self::default();
        for _ in 0..length(&mut rest).ok_or_else(damaged)? {
            let (name, entry) = entry(&mut rest).ok_or_else(damaged)?;
            read.entries.insert(name, entry);
        }
        if let Some(chunks) = length(&mut rest) {
            read.chunks = u32::try_from(chunks).unwrap_or(0);
            let name = length(&mut rest).and_then(|length| take(&mut rest, length));
            read.datasets.extend(name.map(|name| String::from_utf8_lossy(name).into_owned()));
        }
        Ok(read)
    }

    /// That of what a model's layers were given.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub(crate) fn of_inputs(model: &ModelSpec, inputs: Inputs) -> Result<Self> {
        let mut squares = inputs.into_squares();
        let mut read = Self::default();
        for block in 0..model.blocks.len() {
            for layer in model.layers(block) {
                let name = format!("blk.{block}.{}.weight", layer_name(layer.site));
                // An expert that no token went to.
                let of_layer = squares.remove(&(block, layer.site)).unwrap_or_default();
                let mut sums: Vec<f32> = of_layer.sums.iter().map(|&sum| sum as f32).collect();
                sums.resize(layer.inner, 0.0);
                if sums.iter().any(|sum| !sum.is_finite()) {
                    return Err(Error::setup(format!(
                        "what `{name}` is given is not finite, or too large to be squared: there is no importance matrix of \
                         this model"
                    )));
                }
                // Experts follow each other.
                let entry = read.entries.entry(name).or_insert(Entry { sums: Vec::new(), counts: Vec::new() });
                entry.sums.extend(sums);
                entry.counts.push(of_layer.rows as f32);
            }
        }
        Ok(read)
    }

    /// Writes it as `llama-imatrix` does, synced.
    ///
    /// # Errors
    /// Where writing fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut head = Head::default();
        head.put("general.type", &Value::Text("imatrix".to_owned()));
        head.put(DATASETS, &Value::Texts(self.datasets.clone()));
        head.put(CHUNKS, &Value::U32(self.chunks));
        head.put(CHUNK_SIZE, &Value::U32(self.chunk_size));
        let mut tensors = Vec::new();
        for (name, Entry { sums, counts }) in &self.entries {
            let (matrices, width) = (counts.len(), sums.len() / counts.len());
            tensors.push(Outgoing::new(format!("{name}{SUMS}"), vec![matrices, width], Format::F32));
            tensors.push(Outgoing::new(format!("{name}{COUNTS}"), vec![matrices, 1], Format::F32));
        }
        let mut contents = self.entries.values().flat_map(|entry| [&entry.sums, &entry.counts]);
        head.write(path, &tensors, |_, put| match contents.next() {
            Some(numbers) => put(&Format::F32.encode(numbers)),
            None => Ok(()),
        })
    }

    /// For how many weights there is one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How much the columns of a model's weights count; those of which nothing is said are not among them.
    ///
    /// # Errors
    /// An importance matrix of another model.
    pub(super) fn columns<'p>(&self, tensors: impl IntoIterator<Item = &'p Placed>) -> Result<Columns> {
        let of_another = |what: String| Error::setup(format!("the importance matrix is of another model: {what}"));
        let shapes: BTreeMap<&str, &[usize]> =
            tensors.into_iter().map(|placed| (placed.gguf.as_str(), placed.shape.as_slice())).collect();
        let mut columns = Columns::new();
        for (name, entry) in &self.entries {
            let Some(shape) = shapes.get(name.as_str()) else {
                // Of what is in no block, files may say more than a model has.
                match name.starts_with("blk.") {
                    true => return Err(of_another(format!("it has `{name}`, which this model has not"))),
                    false => continue,
                }
            };
            let (matrices, width) = match **shape {
                [matrices, _, width] => (matrices, width),
                [.., width] => (1, width),
                [] => continue,
            };
            if entry.sums.len() != matrices * width || !matrices.is_multiple_of(entry.counts.len()) {
                return Err(of_another(format!(
                    "`{name}` has {} columns there and {} here",
                    entry.sums.len(),
                    matrices * width
                )));
            }
            columns.insert(name.clone(), entry.means());
        }
        match columns.is_empty() && !self.entries.is_empty() {
            true => Err(of_another("it says nothing of any weight of this model".to_owned())),
            false => Ok(columns),
        }
    }

    /// Notes in a file's metadata what it was quantized by, as llama.cpp's `quantize` does.
    pub(super) fn put(&self, head: &mut Head, name: &str) {
        head.put("quantize.imatrix.file", &Value::Text(name.to_owned()));
        if let Some(dataset) = self.datasets.first() {
            head.put("quantize.imatrix.dataset", &Value::Text(dataset.clone()));
        }
        head.put("quantize.imatrix.entries_count", &Value::U32(u32::try_from(self.len()).unwrap_or(u32::MAX)));
        head.put("quantize.imatrix.chunks_count", &Value::U32(self.chunks));
    }
}

impl Entry {
    /// The means of squares. Of a matrix that nothing came through, all columns count alike.
    fn means(&self) -> Vec<f32> {
        let width = self.sums.len() / self.counts.len();
        let mean = |(sums, &count): (&[f32], &f32)| -> Vec<f32> {
            sums.iter().map(|sum| if count > 0.0 { sum / count } else { 1.0 }).collect()
        };
        self.sums.chunks_exact(width.max(1)).zip(&self.counts).flat_map(mean).collect()
    }
}

/// The numbers of a tensor, which must be F32.
fn numbers(file: &DataFile, info: &TensorInfo) -> Result<Vec<f32>> {
    if info.kind != Kind::F32 {
        return Err(Error::file(file.path(), format!("`{}` is of type {:?}; F32 was expected", info.name, info.kind)));
    }
    let mut bytes = vec![0; usize::try_from(info.bytes).unwrap_or(usize::MAX)];
    file.read_at(&mut bytes, info.start)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
#[path = "importance_tests.rs"]
mod tests;

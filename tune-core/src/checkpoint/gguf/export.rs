//! A model as a GGUF file, written tensor by tensor.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::header::Header;
use super::importance::{Columns, Importance};
use super::layout::{Change, Names, Placed, layout};
use super::quantize::{FileKind, Format};
use super::write::{Head, Outgoing};
use super::{Model, describe, vocabulary};
use crate::checkpoint::merge::Merged;
use crate::checkpoint::source::DataFile;
use crate::models::{EmbeddingSpec, ModelSpec};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A file that can be written.
#[derive(Debug)]
pub struct Export<'m> {
    merged: &'m Merged,
    kind: FileKind,
    head: Head,
    /// In the order of the file: first what rotary frequencies are divided by, then the weights.
    tensors: Vec<Outgoing>,
    divisors: Vec<Vec<f32>>,
    placed: Vec<(Placed, Format)>,
    /// How much the columns of some weights count.
    columns: Columns,
}

/// How what was written compares with what was to be written.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// How many tensors are the same, byte for byte.
    pub same: usize,
    /// The names of those that are not.
    pub different: Vec<String>,
    /// The first setting in which the file describes another model.
    pub other: Option<String>,
    /// By the names of formats: the root of the mean square of the error, by that of the numbers.
    pub loss: BTreeMap<&'static str, f64>,
}

impl<'m> Export<'m> {
    /// Puts a file together in all but its numbers; `name` is what the model is called in it.
    ///
    /// # Errors
    /// A model or tokenizer that a GGUF file cannot hold: what is written would be another when it is read.
    pub fn new(merged: &'m Merged, kind: FileKind, name: &str) -> Result<Self> {
        Self::put_together(merged, kind, name, None)
    }

    /// The same with errors that count by their columns; `file` is what the importance matrix is called. One that says nothing yet
    /// makes a file of the same size.
    ///
    /// # Errors
    /// As [`Export::new`]; an importance matrix of another model.
    pub fn by_importance(
        merged: &'m Merged,
        kind: FileKind,
        name: &str,
        (importance, file): (&Importance, &str),
    ) -> Result<Self> {
        Self::put_together(merged, kind, name, Some((importance, file)))
    }

    fn put_together(
        merged: &'m Merged,
        kind: FileKind,
        name: &str,
        importance: Option<(&Importance, &str)>,
    ) -> Result<Self> {
        let spec = merged.spec();
        let mut head = Head::default();
        let (divisors, values): (Vec<_>, Vec<_>) =
            describe::put(&mut head, &spec, merged.base().config(), name, kind)?.into_iter().unzip();
        vocabulary::put(&mut head, merged.tokenizer(), merged.tokenizer_files(), spec.vocab_size)?;
        let interleaved = describe::family_of(&spec)?.interleaved;
        let choice = match importance {
            None => FileKind::of_tensor,
            Some(_) => FileKind::of_tensor_by_importance,
        };
        let format =
            |placed: &Placed| choice(kind, &placed.gguf, &placed.shape, spec.blocks.len(), !spec.tie_word_embeddings);
        let placed: Vec<(Placed, Format)> = layout(&spec, interleaved)
            .into_iter()
            .map(|placed| (format(&placed), placed))
            .map(|(f, p)| (p, f))
            .collect();
        let mut columns = Columns::new();
        if let Some((importance, file)) = importance {
            importance.put(&mut head, file);
            columns = importance.columns(placed.iter().map(|(placed, _)| placed))?;
        }
        let weights = placed.iter().map(|(p, format)| Outgoing::new(p.gguf.clone(), p.shape.clone(), *format));
        let tensors = divisors.into_iter().chain(weights).collect();
        let export = Self { merged, kind, head, tensors, divisors: values, placed, columns };
        export.check_form()?;
        Ok(export)
    }

    /// The kind of file.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.head.size(&self.tensors)
    }

    /// How many tensors have each format.
    #[must_use]
    pub fn formats(&self) -> BTreeMap<&'static str, usize> {
        let mut formats = BTreeMap::new();
        for (_, format) in &self.placed {
            *formats.entry(format.name()).or_insert(0) += 1;
        }
        formats
    }

    /// How many of its tensors are made so that errors count by their columns.
    #[must_use]
    pub fn by_columns(&self) -> usize {
        let counts =
            |(placed, format): &&(Placed, Format)| format.searches() && self.columns.contains_key(&placed.gguf);
        self.placed.iter().filter(counts).count()
    }

    /// Reads a file of the same head without numbers: it is the same model, and cuts text alike.
    fn check_form(&self) -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io("create a temporary folder", std::env::temp_dir()))?;
        let path = dir.path().join("form.gguf");
        let divisors = &self.tensors[..self.divisors.len()];
        // Every other tensor has holes for numbers: the file takes no room.
        let head = self.head.before(&self.tensors);
        let mut numbers = head;
        for (tensor, values) in divisors.iter().zip(&self.divisors) {
            numbers.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            numbers.resize(numbers.len().next_multiple_of(32), 0);
            debug_assert_eq!(tensor.bytes, 4 * values.len() as u64);
        }
        std::fs::write(&path, &numbers).map_err(Error::io("write", &path))?;
        let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?;
        file.set_len(self.bytes()).map_err(Error::io("write", &path))?;
        let read = Model::open(&path)?;
        let cannot = |what: String| Error::setup(format!("the model cannot be written as a GGUF file: {what}"));
        if let Some(other) = self.other(&read)? {
            return Err(cannot(format!("the format cannot say all of its settings: {other}")));
        }
        let tokenizer = Tokenizer::from_files(&read.tokenizer_files()?)?;
        match vocabulary::difference(self.merged.tokenizer(), &tokenizer, vocabulary::DIFFICULT)? {
            None => Ok(()),
            Some(text) => Err(cannot(format!("its tokenizer would cut {text:?} otherwise in llama.cpp"))),
        }
    }

    /// The first setting in which a file describes another model.
    fn other(&self, read: &Model) -> Result<Option<String>> {
        // Which token fills up rows is a matter of training.
        let meaning = |spec: ModelSpec| ModelSpec {
            model_type: String::new(),
            embedding: EmbeddingSpec { padding: None, ..spec.embedding },
            ..spec
        };
        let theirs = ModelSpec::from_json(read.config())?;
        Ok(first_difference(&meaning(self.merged.spec()), &meaning(theirs)))
    }

    /// Writes the file and syncs it.
    ///
    /// # Errors
    /// A weight that cannot be read, is no number or does not fit into its format; a full disk.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut divisors = self.divisors.iter();
        let mut placed = self.placed.iter();
        self.head.write(path, &self.tensors, |tensor, put| {
            if let Some(values) = divisors.next() {
                return put(&Format::F32.encode(values));
            }
            match placed.next() {
                Some((placed, format)) => self.pieces(placed, *format, put),
                None => Err(Error::setup(format!("there is nothing to write for tensor `{}`", tensor.name))),
            }
        })
    }

    /// The bytes of a tensor, expert by expert where it has several.
    fn pieces(&self, placed: &Placed, format: Format, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let names = match &placed.names {
            Names::One(name) => std::slice::from_ref(name),
            Names::Experts(names) => names.as_slice(),
        };
        let width = placed.shape.last().copied().unwrap_or(0);
        let columns = self.columns.get(&placed.gguf);
        names.iter().enumerate().try_for_each(|(i, name)| {
            let numbers = changed(&self.merged.tensor(name, DType::F32)?, placed.change)?;
            check_numbers(name, &numbers, format)?;
            match columns.map(|columns| &columns[i * width..][..width]) {
                Some(columns) => put(&format.encode_by_columns(&numbers, columns)),
                None => put(&format.encode(&numbers)),
            }
        })
    }

    /// Compares a file with what was to be written, tensor by tensor.
    ///
    /// # Errors
    /// It cannot be read, or the base cannot.
    pub fn compare(&self, path: &Path) -> Result<Comparison> {
        let file = DataFile::open(path)?;
        let header = Header::read(&file)?;
        let read = Model::open(path)?;
        let by_name: BTreeMap<&str, _> = header.tensors.iter().map(|info| (info.name.as_str(), info)).collect();
        let mut found = Comparison { other: self.other(&read)?, ..Comparison::default() };
        let mut squares: BTreeMap<&'static str, (f64, f64)> = BTreeMap::new();
        for (placed, format) in &self.placed {
            let Some(info) = by_name.get(placed.gguf.as_str()) else {
                found.different.push(placed.gguf.clone());
                continue;
            };
            let (mut at, mut same, mut there) = (info.start, true, Vec::new());
            self.pieces(placed, *format, &mut |bytes| {
                let end = at + bytes.len() as u64;
                if end > info.start + info.bytes {
                    same = false;
                    return Ok(());
                }
                there.resize(bytes.len(), 0);
                file.read_at(&mut there, at)?;
                same &= there == bytes;
                at = end;
                Ok(())
            })?;
            same &= at == info.start + info.bytes;
            match same {
                true => found.same += 1,
                false => found.different.push(placed.gguf.clone()),
            }
            if *format == Format::F32 || !same {
                continue;
            }
            let names = match &placed.names {
                Names::One(name) => std::slice::from_ref(name),
                Names::Experts(names) => names.as_slice(),
            };
            for name in names {
                let Some(stored) = read.tensors().get(name) else { continue };
                let (theirs, _) = stored.load(DType::F32, None, &Device::Cpu)?;
                let ours = self.merged.tensor(name, DType::F32)?;
                let square = |t: Tensor| -> Result<f64> {
                    Ok(f64::from(t.sqr()?.flatten_all()?.mean_all()?.to_scalar::<f32>()?) * t.elem_count() as f64)
                };
                let sums = squares.entry(format.name()).or_default();
                sums.0 += square((&ours - &theirs)?)?;
                sums.1 += square(ours)?;
            }
        }
        found.loss = squares
            .into_iter()
            .map(|(name, (error, all))| (name, (error / all.max(f64::MIN_POSITIVE)).sqrt()))
            .collect();
        let known = |name: &str| self.tensors.iter().any(|tensor| tensor.name == name);
        found.different.extend(by_name.keys().filter(|name| !known(name)).map(|name| (*name).to_owned()));
        Ok(found)
    }
}

/// A weight's numbers as a file has them.
pub(super) fn changed(weight: &Tensor, change: Change) -> Result<Vec<f32>> {
    let rows = weight.dim(0)?;
    let numbers: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    Ok(match change {
        Change::None => numbers,
        Change::PlusOne => numbers.into_iter().map(|x| x + 1.0).collect(),
        Change::Interleaved(heads) => {
            let (width, size) = (numbers.len() / rows, rows / heads);
            // Row `pair + half * (size / 2)` of a head is stored as row `2 * pair + half`.
            let from = |row: usize| {
                let (head, within) = (row / size, row % size);
                head * size + within / 2 + within % 2 * (size / 2)
            };
            (0..rows).flat_map(|row| numbers[from(row) * width..][..width].iter().copied()).collect()
        }
    })
}

/// Refuses what no format holds.
fn check_numbers(name: &str, numbers: &[f32], format: Format) -> Result<()> {
    let largest =
        numbers.iter().fold(0f32, |largest, x| if x.is_finite() { largest.max(x.abs()) } else { f32::INFINITY });
    if largest.is_infinite() {
        return Err(Error::setup(format!("the weight `{name}` holds a value that is no finite number")));
    }
    // Scales are in half precision, and so are the numbers themselves in F16.
    let limit = match format {
        Format::F32 | Format::Bf16 => return Ok(()),
        Format::F16 => 65504.0,
        _ => 65504.0 * 8.0,
    };
    match largest <= limit {
        true => Ok(()),
        false => Err(Error::setup(format!(
            "the weight `{name}` holds {largest:e}, which does not fit into {}; bf16 and f32 hold it",
            format.name()
        ))),
    }
}

/// The first setting in which two models differ, in words; nothing if they are the same to within 32 bits, in which a file has
/// its numbers.
fn first_difference(ours: &ModelSpec, theirs: &ModelSpec) -> Option<String> {
    let (ours, theirs) = (format!("{ours:#?}"), format!("{theirs:#?}"));
    let number = |line: &str| line.trim_end_matches(',').rsplit([' ', '(']).next().and_then(|n| n.parse::<f64>().ok());
    let same = |a: &str, b: &str| {
        a == b || matches!((number(a), number(b)), (Some(x), Some(y)) if (x - y).abs() <= 1e-6 * x.abs().max(y.abs()))
    };
    let shown = |line: &str| line.trim().trim_end_matches(',').to_owned();
    let different = ours.lines().zip(theirs.lines()).find(|(a, b)| !same(a, b));
    match different {
        Some((a, b)) => Some(format!("`{}` and `{}`", shown(a), shown(b))),
        None if ours.lines().count() != theirs.lines().count() => Some("one says more than the other".to_owned()),
        None => None,
    }
}

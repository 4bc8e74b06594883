//! Reading and writing the formats of the ecosystem, and checkpoints that are complete or absent.
//!
//! - [`Checkpoint`] reads a model: a Hugging Face folder or a GGUF file, under the same names.
//! - [`hf`] writes a folder that `transformers` loads, [`peft`] reads and writes adapters.
//! - [`run`] keeps a training run's folder: saved aside and renamed, found again, pruned.
//! - [`state`] is what a run needs besides weights to go on as if it had not stopped.

mod answers;
mod below;
mod config;
mod durable;
pub mod gguf;
pub mod hf;
pub mod merge;
mod moved;
pub mod peft;
pub mod run;
pub(crate) mod safetensors;
mod source;
pub mod state;
mod sums;
mod whole;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

pub(crate) use self::answers::KeptAnswers;
pub use self::below::Below;
pub use self::config::{CheckpointConfig, Size, WeightDtype};
pub use self::durable::human;
pub(crate) use self::durable::{free_bytes, sync_dir, write_json};
pub use self::moved::Moved;
pub(crate) use self::run::sync_tree;
pub(crate) use self::safetensors::same_bits;
pub(crate) use self::source::read_small;
pub use self::sums::Sum;
pub(crate) use self::sums::of_file;
use crate::models::{Format, HEAD, Quantized, SCORE, SCORES_SEQUENCES};
use crate::tokenizer::TokenizerFiles;
use crate::{Error, Result, hub};

/// How a checkpoint is opened, beyond its path.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Only these weight files of the folder, in place of those that it names itself.
    pub files: Option<Vec<String>>,
    /// Round every weight through this type as it is read.
    pub round_to: Option<DType>,
}

/// A model on disk, opened and checked; its tensors are read when they are asked for.
///
/// Names and shapes are those of Hugging Face, for GGUF files too.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// What the hub calls it, where it is from there.
    origin: Option<hub::Origin>,
    config: Value,
    /// See [`Self::part`].
    part: &'static str,
    generation_config: Option<Value>,
    weights: Weights,
    round_to: Option<DType>,
    /// Sums of the parameters that were read, by name.
    sums: Mutex<BTreeMap<String, u32>>,
    /// What deserves the user's attention without being an error.
    warnings: Vec<String>,
}

#[derive(Debug)]
enum Weights {
    Hf(BTreeMap<String, safetensors::Entry>),
    Gguf(Box<gguf::Model>),
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a `.gguf` file, or either on the hub (`hf://org/name`).
    ///
    /// # Errors
    ///
    /// Where something is missing, truncated, contradicts itself or is of a kind that is not
    /// supported; the message names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// [`Self::open`] with options.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; and where `options` name files that are not there.
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let given = path.as_ref();
        let path = &*hub::model(given, options.files.as_deref().unwrap_or_default())?;
        let origin = hub::origin(given, path);
        let meta = std::fs::metadata(path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::NotFound {
                Error::file(
                    path,
                    "does not exist; a checkpoint is a folder with config.json and *.safetensors files, or a .gguf file",
                )
            } else {
                Error::io("open", path)(e)
            }
        })?;
        if meta.is_dir() {
            return match gguf_in(path, options)? {
                Some(file) => Self::open_gguf(&file, origin, options),
                None => Self::open_hf(path, origin, options),
            };
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Self::open_gguf(path, origin, options);
        }
        Err(Error::file(path, "is neither a folder nor a .gguf file; give the folder that the weight files are in"))
    }

    fn open_hf(path: &Path, origin: Option<hub::Origin>, options: &OpenOptions) -> Result<Self> {
        let folder = hf::open(path, options.files.as_deref())?;
        Ok(Self {
            path: path.to_path_buf(),
            origin,
            config: folder.config,
            part: folder.part,
            generation_config: hf::generation_config(path)?,
            weights: Weights::Hf(folder.tensors),
            round_to: options.round_to,
            sums: Mutex::default(),
            warnings: folder.warnings,
        })
    }

    /// What a Hugging Face folder has besides weights: for a look at it where these are not as they should be.
    ///
    /// # Errors
    ///
    /// Where there is no `config.json` that can be read.
    pub(crate) fn without_weights(path: &Path) -> Result<Self> {
        let given = path;
        let path = &*hub::model(given, &[])?;
        let (config, part, _) = hf::text_part(source::read_json(&path.join("config.json"))?, BTreeMap::new());
        Ok(Self {
            path: path.to_path_buf(),
            origin: hub::origin(given, path),
            config,
            part,
            generation_config: hf::generation_config(path)?,
            weights: Weights::Hf(BTreeMap::new()),
            round_to: None,
            sums: Mutex::default(),
            warnings: Vec::new(),
        })
    }

    /// Opens a model of which no weights are read: a folder with `config.json` and a tokenizer may have none.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], but for weights in a folder; and a `config.json` that says that weights are quantized.
    pub fn open_without_weights(path: &Path) -> Result<Self> {
        if !path.join("config.json").exists() {
            return Self::open(path);
        }
        let checkpoint = Self::without_weights(path)?;
        hf::refuse_quantized(&checkpoint.config, &checkpoint.config_path())?;
        Ok(checkpoint)
    }

    fn open_gguf(path: &Path, origin: Option<hub::Origin>, options: &OpenOptions) -> Result<Self> {
        let model = gguf::Model::open(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            origin,
            config: model.config().clone(),
            part: "",
            generation_config: Some(model.generation_config()?),
            weights: Weights::Gguf(Box::new(model)),
            round_to: options.round_to,
            sums: Mutex::default(),
            warnings: Vec::new(),
        })
    }

    /// The folder or file that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the hub calls it, where it is from there.
    #[must_use]
    pub fn origin(&self) -> Option<&hub::Origin> {
        self.origin.as_ref()
    }

    /// What deserves the user's attention without being an error.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// `config.json`; for a GGUF file, the one that Hugging Face would have.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What stands in that file before the names of [`Self::config`]'s fields.
    pub(crate) fn part(&self) -> &'static str {
        self.part
    }

    /// The file that [`Self::config`] is read from.
    #[must_use]
    pub(crate) fn config_path(&self) -> PathBuf {
        match self.weights {
            Weights::Hf(_) => self.path.join("config.json"),
            Weights::Gguf(_) => self.path.clone(),
        }
    }

    /// The parameters' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (hf, gguf) = match &self.weights {
            Weights::Hf(tensors) => (Some(tensors.keys()), None),
            Weights::Gguf(model) => (None, Some(model.tensors().keys())),
        };
        hf.into_iter().flatten().chain(gguf.into_iter().flatten()).map(String::as_str)
    }

    /// The shape of a parameter, row-major.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.weights {
            Weights::Hf(tensors) => tensors.get(name).map(safetensors::Entry::shape),
            Weights::Gguf(model) => model.tensors().get(name).map(|t| t.shape()),
        }
    }

    /// The type that a parameter is stored in, where it is one that tensors can have
    /// (quantized ones have none).
    #[must_use]
    pub fn stored_dtype(&self, name: &str) -> Option<DType> {
        match &self.weights {
            Weights::Hf(tensors) => tensors.get(name).and_then(safetensors::Entry::dtype),
            Weights::Gguf(model) => model.tensors().get(name).and_then(|t| t.dtype()),
        }
    }

    /// A number that stands for the weights: of another model's, be it in a single bit, it is another. It is made of
    /// every parameter's name, type, shape and bytes. Those that have been loaded are not read again.
    ///
    /// # Errors
    ///
    /// Where reading fails.
    pub fn fingerprint(&self) -> Result<u32> {
        let mut fingerprint = 0;
        for name in self.names() {
            let read = self.sums.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
            let (kind, sum) = match &self.weights {
                Weights::Hf(tensors) => tensors.get(name).map(|t| (t.kind(), read.map_or_else(|| source::sum(t), Ok))),
                Weights::Gguf(model) => {
                    model.tensors().get(name).map(|t| (t.kind(), read.map_or_else(|| source::sum(t), Ok)))
                }
            }
            .ok_or_else(|| self.missing(name))?;
            for part in [name.as_bytes(), kind.as_bytes(), &sum?.to_le_bytes()] {
                fingerprint = crc32c::crc32c_append(fingerprint, part);
            }
        }
        Ok(fingerprint)
    }

    /// Reads one parameter as `dtype` onto `device`; quantized ones are dequantized.
    ///
    /// # Errors
    ///
    /// Where there is none of that name, its type is not a floating-point one, or reading fails.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = match &self.weights {
            Weights::Hf(tensors) => tensors.get(name).map(|t| t.load_summed(name, dtype, self.round_to, device)),
            Weights::Gguf(model) => model.tensors().get(name).map(|t| t.load(dtype, self.round_to, device)),
        };
        let (tensor, sum) = tensor.unwrap_or_else(|| Err(self.missing(name)))?;
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), sum);
        Ok(tensor)
    }

    /// Reads some rows of a parameter: of a Hugging Face folder, no other byte of it; what is in blocks is read as a whole first.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::tensor`].
    pub fn rows(&self, name: &str, rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        match &self.weights {
            Weights::Hf(tensors) => {
                let entry = tensors.get(name).ok_or_else(|| self.missing(name))?;
                entry.load_rows(name, rows, dtype, self.round_to, device)
            }
            Weights::Gguf(_) => {
                Ok(self.tensor(name, dtype, device)?.narrow(0, rows.start, rows.len())?.force_contiguous()?)
            }
        }
    }

    /// Reads a matrix in blocks: as they are in a GGUF file, or quantized to NF4.
    ///
    /// # Errors
    ///
    /// Where there is none of that name, it is not stored in that format, or reading fails.
    pub fn quantized(&self, name: &str, format: Format) -> Result<Quantized> {
        let found = match &self.weights {
            Weights::Hf(tensors) => tensors.get(name).map(|t| t.quantized(name, format, self.round_to)),
            Weights::Gguf(model) => model.tensors().get(name).map(|t| t.quantized(format, self.round_to)),
        };
        let (quantized, sum) = found.unwrap_or_else(|| Err(self.missing(name)))?;
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), sum);
        Ok(quantized)
    }

    /// The format of a parameter's blocks in a GGUF file, in which it can be kept.
    #[must_use]
    pub fn format(&self, name: &str) -> Option<Format> {
        match &self.weights {
            Weights::Hf(_) => None,
            Weights::Gguf(model) => model.tensors().get(name)?.format(),
        }
    }

    /// Whether weights are rounded through another type as they are read.
    pub(crate) fn rounds(&self) -> bool {
        self.round_to.is_some()
    }

    /// There is no tensor of this name.
    pub(crate) fn missing(&self, name: &str) -> Error {
        let what = match name == HEAD && self.shape(SCORE).is_some() {
            true => SCORES_SEQUENCES.to_owned(),
            false => format!("has no tensor `{name}`; it is not a checkpoint of the model that its config describes"),
        };
        Error::file(&self.path, what)
    }

    /// The tokenizer's files; for a GGUF file, made from its metadata.
    ///
    /// # Errors
    ///
    /// Where a file cannot be read, or a GGUF file's tokenizer is of a kind that is not supported.
    pub fn tokenizer_files(&self) -> Result<TokenizerFiles> {
        match &self.weights {
            Weights::Hf(_) => hf::tokenizer_files(&self.path),
            Weights::Gguf(model) => model.tokenizer_files(),
        }
    }

    /// `generation_config.json`, where there is one; for a GGUF file, the one that Hugging Face would have.
    #[must_use]
    pub fn generation_config(&self) -> Option<Value> {
        self.generation_config.clone()
    }
}

/// The GGUF file that a folder stands for: the one that `files` names, as torchtune's
/// `checkpoint_dir` and `checkpoint_files` do, or the only one in a folder without `config.json`.
fn gguf_in(dir: &Path, options: &OpenOptions) -> Result<Option<PathBuf>> {
    let is_gguf = |name: &Path| name.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if let Some(files) = &options.files {
        return match files.as_slice() {
            [one] if is_gguf(Path::new(one)) => Ok(Some(dir.join(one))),
            files if files.iter().any(|f| is_gguf(Path::new(f))) => Err(Error::setup(format!(
                "checkpoint_files names a GGUF file among others ({files:?}); a GGUF file holds a whole model: name it alone"
            ))),
            _ => Ok(None),
        };
    }
    if dir.join("config.json").exists() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        if is_gguf(&path) {
            found.push(path);
        }
    }
    if found.len() > 1 {
        return Err(Error::file(
            dir,
            format!("holds {} GGUF files; give the path of the one that is meant", found.len()),
        ));
    }
    Ok(found.pop())
}

//! What is written beside an artifact: what it is made of, its files with their checksums, and what was found when they were
//! read again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::proof::Proof;
use crate::checkpoint::gguf::Importance;
use crate::checkpoint::merge::Part;
use crate::checkpoint::{Sum, of_file, write_json};
use crate::{Error, Result};

/// The receipt of a folder, in it.
const IN_FOLDER: &str = "receipt.json";

/// What an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A folder as Hugging Face's libraries read it.
    Folder,
    /// A GGUF file with a model.
    Gguf,
    /// A GGUF file with an adapter.
    GgufAdapter,
}

/// What an artifact is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The base model, as it was named; made absolute if it is a path.
    pub base: PathBuf,
    /// A number that stands for the base's weights.
    pub base_fingerprint: u32,
    /// The adapters.
    pub adapters: Vec<OriginPart>,
    /// The importance matrix that it was quantized by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<OriginImportance>,
}

/// An importance matrix that an artifact was quantized by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OriginImportance {
    /// Its file.
    pub path: PathBuf,
    /// The file's length and checksum.
    pub sum: Sum,
    /// What it was made of, as far as it says.
    pub datasets: Vec<String>,
    /// How many chunks of text that was.
    pub chunks: u32,
}

impl OriginImportance {
    /// The matrix of a file that will be found at `path`, and is at `there` now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(matrix: &Importance, path: PathBuf, there: &Path) -> Result<Self> {
        Ok(Self { path, sum: of_file(there)?, datasets: matrix.datasets.clone(), chunks: matrix.chunks })
    }

    /// Reads the matrix again, from where it was or from beside the artifact.
    ///
    /// # Errors
    /// It is in neither place, or is another one.
    pub fn open(&self, artifact: &Path) -> Result<Importance> {
        let beside = self.path.file_name().map(|name| artifact.with_file_name(name));
        let place = [Some(self.path.clone()), beside].into_iter().flatten().find(|path| path.is_file());
        let place = place.ok_or_else(|| {
            Error::file(
                &self.path,
                "does not exist: it is the importance matrix that the file was quantized by; name it with `--importance`",
            )
        })?;
        match of_file(&place)? == self.sum {
            true => Importance::read(&place),
            false => {
                Err(Error::file(&place, "is another importance matrix than the one that the file was quantized by"))
            }
        }
    }
}

/// An adapter that an artifact is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OriginPart {
    /// Its folder or name on the hub.
    pub path: PathBuf,
    /// Factor on its update.
    pub weight: f64,
}

impl Origin {
    /// The adapters as they are opened.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        self.adapters.iter().map(|part| Part { dir: part.path.clone(), weight: part.weight }).collect()
    }
}

/// A receipt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The version of this format.
    pub version: u32,
    /// The program that wrote the artifact.
    pub program: String,
    /// What it is.
    pub kind: Kind,
    /// The type of its weights: `bf16`, `q4_k_m`.
    pub weights: String,
    /// What it is made of.
    pub made_of: Origin,
    /// Its files, by their paths from the artifact's folder.
    pub files: BTreeMap<String, Sum>,
    /// What was found.
    pub proof: Proof,
}

impl Receipt {
    /// Where the receipt of an artifact is.
    #[must_use]
    pub fn path_of(artifact: &Path) -> PathBuf {
        if artifact.is_dir() {
            return artifact.join(IN_FOLDER);
        }
        let mut name = artifact.file_name().unwrap_or_default().to_owned();
        name.push(".receipt.json");
        artifact.with_file_name(name)
    }

    /// Reads the receipt of an artifact.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn read(artifact: &Path) -> Result<Self> {
        let path = Self::path_of(artifact);
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::file(
                    &path,
                    "does not exist: the receipt says what an artifact is made of. Without it, name what it is to be compared \
                     with: `--base BASE` and `--adapter ADAPTER`",
                ));
            }
            bytes => bytes.map_err(Error::io("read", &path))?,
        };
        let receipt: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(&path, format!("is no receipt, or it is damaged: {e}")))?;
        match receipt.version {
            1 => Ok(receipt),
            other => Err(Error::file(&path, format!("is a receipt of version {other}; version 1 is read here"))),
        }
    }

    /// What the receipt of an artifact says, in a line, if it has one. Sizes of files are compared, their content is not: that
    /// would take as long as reading all of them.
    #[must_use]
    pub fn brief(artifact: &Path) -> Option<String> {
        let place = Self::path_of(artifact);
        if !place.is_file() {
            return None;
        }
        let verify = format!("`tune verify {}` says more", artifact.display());
        let receipt = match Self::read(artifact) {
            Ok(receipt) => receipt,
            Err(error) => return Some(format!("warning: {error}; {verify}")),
        };
        let folder = if artifact.is_dir() { artifact } else { artifact.parent().unwrap_or(Path::new("")) };
        let size = |name: &str| std::fs::metadata(folder.join(name)).map(|meta| meta.len()).ok();
        if let Some((name, _)) = receipt.files.iter().find(|(name, sum)| size(name) != Some(sum.bytes)) {
            return Some(format!("warning: {name} is not what its receipt says; {verify}"));
        }
        Some(match receipt.proof.from_trained {
            Some(distance) => format!(
                "verified when it was written: within {:.1e} nats of what was trained, and the same token is likeliest at \
                 {:.1} % of {} positions",
                distance.divergence,
                100.0 * distance.same_first,
                receipt.proof.positions
            ),
            None => format!("verified when it was written: {} tensors", receipt.proof.tensors),
        })
    }

    /// Writes it beside (or into) the artifact, synced.
    ///
    /// # Errors
    /// Where writing fails.
    pub fn write(&self, artifact: &Path) -> Result<()> {
        write_json(&Self::path_of(artifact), self)
    }

    /// Reads all files of an artifact for their sums.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn sums(artifact: &Path) -> Result<BTreeMap<String, Sum>> {
        let mut sums = BTreeMap::new();
        if !artifact.is_dir() {
            let name = artifact.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sums.insert(name, of_file(artifact)?);
            return Ok(sums);
        }
        for entry in std::fs::read_dir(artifact).map_err(Error::io("read", artifact))? {
            let path = entry.map_err(Error::io("read", artifact))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // What others put there, such as a cache, is theirs.
            if path.is_file() && name != IN_FOLDER && !name.starts_with('.') {
                sums.insert(name, of_file(&path)?);
            }
        }
        Ok(sums)
    }
}

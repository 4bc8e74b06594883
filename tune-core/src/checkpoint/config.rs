//! The keys of a config file that say which model is loaded and what is saved.

use std::path::PathBuf;
use std::str::FromStr;

use candle_core::DType;

use super::{Checkpoint, OpenOptions};
use crate::{Error, Result};

/// Which checkpoint is trained and how the results are saved.
#[derive(Debug, Clone)]
pub struct CheckpointConfig {
    /// The model: a Hugging Face folder or a .gguf file.
    pub checkpoint_dir: PathBuf,
    /// Only these weight files of checkpoint_dir; all that belong to the model where null.
    pub checkpoint_files: Option<Vec<String>>,
    /// A folder with a PEFT adapter to start from.
    pub adapter_checkpoint: Option<PathBuf>,
    /// Largest size of one weight file, like 5GB or 500MB.
    pub max_shard_size: String,
    /// How many checkpoints are kept, the newest ones; all where null.
    pub keep_last_n_checkpoints: Option<usize>,
    /// Save every so many optimizer steps, besides at the end of each epoch; at those alone where null.
    pub save_every_n_steps: Option<usize>,
    /// Round weights through this type as they are read.
    pub round_to: Option<WeightDtype>,
}

impl CheckpointConfig {
    /// Opens the base model.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open_with`].
    pub fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open_with(
            &self.checkpoint_dir,
            &OpenOptions { files: self.checkpoint_files.clone(), round_to: self.round_to.map(WeightDtype::dtype) },
        )
    }

    /// The largest size of one weight file.
    ///
    /// # Errors
    ///
    /// Where `max_shard_size` is not a size.
    pub fn max_shard_bytes(&self) -> Result<u64> {
        Ok(self.max_shard_size.parse::<Size>().map_err(|e| Error::setup(format!("max_shard_size: {e}")))?.0)
    }
}

/// A type that weights can be rounded through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// No rounding of what is stored in 32 bits or less.
    Fp32,
    /// bfloat16, the type that most models are published in.
    Bf16,
    /// IEEE half precision.
    Fp16,
}

impl WeightDtype {
    /// candle's name for it.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Fp16 => DType::F16,
        }
    }
}

/// A number of bytes, written as Hugging Face does: `5GB`, `500MB`, `1.5GiB`, `1000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size; write one like 5GB, 500MB, 2GiB or 1000000");
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor = match unit.trim().to_ascii_uppercase().as_str() {
            "" | "B" => 1.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "KIB" => 1024.0,
            "MIB" => 1024f64.powi(2),
            "GIB" => 1024f64.powi(3),
            "TIB" => 1024f64.powi(4),
            _ => return Err(wrong()),
        };
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor;
        if !(1.0..9e18).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

//! The keys of a config file that say which model is loaded and how the results are saved.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::DType;

use super::{Checkpoint, OpenOptions};
use crate::config::{Config, Mismatch, Schema, Value};
use crate::{Error, Result};

/// Which checkpoint is trained and how the results are saved.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    _component_ = "checkpoints are Hugging Face folders, GGUF files and PEFT adapters, whatever writes them",
    model_type = "the checkpoint's own config.json says what it is",
    output_dir = "the recipe's output_dir is meant",
    recipe_checkpoint = "resume_from_checkpoint finds the newest checkpoint in output_dir",
    safe_serialization = "weights are always written as safetensors",
    should_load_recipe_state = "resume_from_checkpoint says it"
))]
pub struct CheckpointConfig {
    /// The model: a Hugging Face folder, a .gguf file, or hf://org/name.
    pub checkpoint_dir: PathBuf,
    /// Only these weight files of checkpoint_dir; where null, those that it consists of.
    pub checkpoint_files: Option<Vec<String>>,
    /// A folder with a PEFT adapter to start from, or hf://org/name.
    pub adapter_checkpoint: Option<PathBuf>,
    /// Largest size of one weight file, such as 5GB or 500MB.
    #[config(default = "5GB", may_change)]
    pub max_shard_size: Size,
    /// How many checkpoints are kept, the newest ones; all where null.
    #[config(range = 1.., may_change)]
    pub keep_last_n_checkpoints: Option<usize>,
    /// Keep the best checkpoint, too: that with the lowest validation loss, unless best_by says otherwise. Each is measured before it is saved.
    #[config(default = false, may_change)]
    pub keep_best: bool,
    /// The metric that says which checkpoint is the best, such as `held_out/exact_match`; where null, that of early_stopping, or val_loss.
    #[config(may_change)]
    pub best_by: Option<String>,
    /// Save every N optimizer steps, too; where null, only at the end of each epoch.
    #[config(range = 1.., may_change)]
    pub save_every_n_steps: Option<u64>,
    /// Round weights through this type as they are read (dequantized ones through bf16, say).
    pub round_to: Option<WeightDtype>,
}

impl CheckpointConfig {
    /// Refuses what says how weights are read, where none are; `why` says why.
    ///
    /// # Errors
    ///
    /// Where there is such a key.
    pub fn refuse_reading(&self, why: &str) -> Result<()> {
        let keys = [("checkpoint_files", self.checkpoint_files.is_some()), ("round_to", self.round_to.is_some())];
        match keys.iter().find(|(_, written)| *written) {
            Some((key, _)) => Err(Error::setup(format!(
                "checkpointer.{key} says how weights are read, and {why}: remove one of the two"
            ))),
            None => Ok(()),
        }
    }

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

    /// Opens a model of which no weights are read: a folder with config.json and a tokenizer may have none.
    ///
    /// # Errors
    ///
    /// As [`CheckpointConfig::open`], but for weights in a folder; and a `config.json` that says that weights are quantized.
    pub fn open_without_weights(&self) -> Result<Checkpoint> {
        Checkpoint::open_without_weights(&self.checkpoint_dir)
    }

    /// The largest size of one weight file, in bytes.
    #[must_use]
    pub fn max_shard_bytes(&self) -> u64 {
        self.max_shard_size.0
    }
}

/// A type that weights can be rounded through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
pub enum WeightDtype {
    /// Rounds only what is stored in 64 bits.
    #[config(name = "fp32", alias = "float32")]
    Fp32,
    /// bfloat16, the type that most models are published in.
    #[config(name = "bf16", alias = "bfloat16")]
    Bf16,
    /// IEEE half precision.
    #[config(name = "fp16", alias = "float16")]
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

/// A number of bytes, written as Hugging Face does: `5GB`, `500MB`, `1.5GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// Units by name; the ones with round numbers first, as they are preferred in writing.
const UNITS: [(&str, u64); 9] = [
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit = if unit.is_empty() { "B" } else { unit.trim() };
        let factor = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, n)| *n as f64);
        factor
            .zip(number.parse::<f64>().ok())
            .map(|(factor, number)| number * factor)
            // Whole numbers of bytes that f64 holds exactly; the limit is far above any disk.
            .filter(|bytes| (1.0..9e15).contains(bytes))
            .map(|bytes| Self(bytes as u64))
            .ok_or_else(|| format!("`{text}` is not a size; write one such as 5GB, 500MB or 2GiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = UNITS.iter().find(|(_, n)| self.0.is_multiple_of(*n)).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl Config for Size {
    const SCHEMA: Schema = Schema::Text;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.text()?.parse().map_err(|message: String| value.refuse(message))
    }

    fn to_value(&self) -> Value {
        Value::from_text(self.to_string())
    }
}

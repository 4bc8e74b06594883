//! The `metric_logger` key.

use std::path::{Path, PathBuf};

use tune_config::Config;

use super::{JsonlLogger, MetricLogger, Start, TensorBoardLogger};
use crate::Result;

/// Where metrics are recorded. The console shows them in any case.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum MetricLoggerConfig {
    /// A text file with one JSON object a line.
    #[config(name = "jsonl", alias = "torchtune.training.metric_logging.DiskLogger", default)]
    Jsonl(DiskLog),
    /// Event files for TensorBoard.
    #[config(name = "tensorboard", alias = "torchtune.training.metric_logging.TensorBoardLogger")]
    TensorBoard(TensorBoardLog),
    /// The console alone.
    #[config(name = "stdout", alias = "torchtune.training.metric_logging.StdoutLogger")]
    Stdout(ElsewhereLog),
    /// Weights & Biases has no client here: a JSON Lines file is written instead.
    #[config(name = "wandb", alias = "torchtune.training.metric_logging.WandBLogger")]
    Wandb(ElsewhereLog),
    /// Comet has no client here: a JSON Lines file is written instead.
    #[config(name = "comet", alias = "torchtune.training.metric_logging.CometLogger")]
    Comet(ElsewhereLog),
}

/// A text file with one JSON object a line.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct DiskLog {
    /// Folder of the file; `logs` in the output directory by default.
    pub log_dir: Option<PathBuf>,
    /// Name of the file.
    #[config(default = "metrics.jsonl")]
    pub filename: String,
}

/// Event files for TensorBoard.
#[derive(Debug, Clone, Default, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct TensorBoardLog {
    /// Folder of the files; `logs` in the output directory by default.
    pub log_dir: Option<PathBuf>,
}

/// A logger that writes no file of its own kind.
#[derive(Debug, Clone, Default, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct ElsewhereLog {
    /// Folder of the file that is written in its place.
    pub log_dir: Option<PathBuf>,
}

impl Default for DiskLog {
    fn default() -> Self {
        Self { log_dir: None, filename: "metrics.jsonl".to_owned() }
    }
}

impl Default for MetricLoggerConfig {
    fn default() -> Self {
        Self::Jsonl(DiskLog::default())
    }
}

impl MetricLoggerConfig {
    /// The file or, for TensorBoard, the folder that is written.
    pub(crate) fn place(&self, output_dir: &Path) -> Option<PathBuf> {
        let folder = |log_dir: &Option<PathBuf>| log_dir.clone().unwrap_or_else(|| output_dir.join("logs"));
        match self {
            Self::Jsonl(c) => Some(folder(&c.log_dir).join(&c.filename)),
            Self::TensorBoard(c) => Some(folder(&c.log_dir)),
            Self::Stdout(_) => None,
            Self::Wandb(c) | Self::Comet(c) => Some(folder(&c.log_dir).join(DiskLog::default().filename)),
        }
    }

    /// What deserves the user's attention without being an error.
    pub(crate) fn warning(&self) -> Option<String> {
        let service = match self {
            Self::Wandb(_) => "Weights & Biases",
            Self::Comet(_) => "Comet",
            _ => return None,
        };
        Some(format!(
            "metric_logger: there is no client for {service} here; the metrics go to a JSON Lines file instead"
        ))
    }

    pub(super) fn open(&self, output_dir: &Path, start: Start) -> Result<Option<Box<dyn MetricLogger>>> {
        let Some(place) = self.place(output_dir) else {
            return Ok(None);
        };
        Ok(Some(match self {
            Self::TensorBoard(_) => Box::new(TensorBoardLogger::open(&place, start)?),
            _ => Box::new(JsonlLogger::open(&place, start)?),
        }))
    }
}

//! The `metric_logger` key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune_config::Config;

use super::{CsvLogger, JsonlLogger, MetricLogger, MlflowLogger, Start, TensorBoardLogger, WandbLogger};
use crate::{Error, Result};

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
    /// A table of comma-separated values.
    #[config(name = "csv")]
    Csv(CsvLog),
    /// The console alone.
    #[config(name = "stdout", alias = "torchtune.training.metric_logging.StdoutLogger")]
    Stdout(ElsewhereLog),
    /// An offline run of Weights & Biases: a folder that its own `wandb sync` uploads.
    #[config(name = "wandb", alias = "torchtune.training.metric_logging.WandBLogger")]
    Wandb(WandbLog),
    /// A run on an MLflow tracking server. Who asks is told by MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    /// MLFLOW_TRACKING_PASSWORD, in the environment.
    #[config(name = "mlflow")]
    Mlflow(MlflowLog),
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

/// A table of comma-separated values.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct CsvLog {
    /// Folder of the file; `logs` in the output directory by default.
    pub log_dir: Option<PathBuf>,
    /// Name of the file.
    #[config(default = "metrics.csv")]
    pub filename: String,
}

/// An offline run of Weights & Biases.
#[derive(Debug, Clone, Default, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct WandbLog {
    /// The run's folder is made in `wandb` in this folder; `logs` in the output directory by default.
    pub log_dir: Option<PathBuf>,
    /// The project that the run belongs to.
    #[config(default = "tune")]
    pub project: String,
    /// The user or team that the project belongs to; by default, that of whoever uploads the run.
    pub entity: Option<String>,
    /// Runs of one group are shown together.
    pub group: Option<String>,
    /// What kind of run it is, such as `train`.
    pub job_type: Option<String>,
    /// The run's name; by default, the server makes one up.
    pub name: Option<String>,
    /// A description of the run.
    pub notes: Option<String>,
    /// Words that the run can be found by.
    #[config(default)]
    pub tags: Vec<String>,
}

/// A run on an MLflow tracking server.
#[derive(Debug, Clone, Default, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct MlflowLog {
    /// Address of the server; by default, that of MLFLOW_TRACKING_URI in the environment, or else http://127.0.0.1:5000.
    pub tracking_uri: Option<String>,
    /// The experiment that the run belongs to; it is made where there is none of that name.
    #[config(default = "tune")]
    pub experiment_name: String,
    /// The run's name; by default, the server makes one up.
    pub run_name: Option<String>,
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
            Self::Csv(c) => Some(folder(&c.log_dir).join(&c.filename)),
            Self::Wandb(c) => Some(folder(&c.log_dir).join("wandb")),
            Self::Mlflow(_) | Self::Stdout(_) => None,
            Self::Comet(c) => Some(folder(&c.log_dir).join(DiskLog::default().filename)),
        }
    }

    /// Where the run's metrics can be found, in words; `None` for the console.
    pub(crate) fn describe(&self, output_dir: &Path) -> Option<String> {
        match self {
            Self::Mlflow(c) => Some(format!("MLflow, {}", c.address().ok()?)),
            Self::Wandb(_) => Some(format!("{} (for `wandb sync`)", self.place(output_dir)?.display())),
            _ => self.place(output_dir).map(|place| place.display().to_string()),
        }
    }

    /// What deserves the user's attention without being an error.
    pub(crate) fn warning(&self) -> Option<String> {
        match self {
            Self::Comet(_) => Some(
                "metric_logger: there is no client for Comet here; the metrics go to a JSON Lines file instead (others: \
                 wandb, mlflow, tensorboard, csv)"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// # Errors
    /// An address that is none.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Mlflow(c) => c.address().map(drop),
            _ => Ok(()),
        }
    }

    pub(super) fn open(
        &self,
        output_dir: &Path,
        settings: &BTreeMap<String, Value>,
        start: Start,
    ) -> Result<Option<Box<dyn MetricLogger>>> {
        let memory = |name: &str| output_dir.join("logs").join(name);
        let place = match self {
            Self::Mlflow(c) => {
                let logger = MlflowLogger::open(c, &memory("mlflow_run.json"), settings, start)?;
                return Ok(Some(Box::new(logger)));
            }
            _ => match self.place(output_dir) {
                Some(place) => place,
                None => return Ok(None),
            },
        };
        Ok(Some(match self {
            Self::TensorBoard(_) => Box::new(TensorBoardLogger::open(&place, start)?),
            Self::Csv(_) => Box::new(CsvLogger::open(&place, start)?),
            Self::Wandb(c) => Box::new(WandbLogger::open(c, &place, &memory("wandb_run.json"), settings, start)?),
            _ => Box::new(JsonlLogger::open(&place, start)?),
        }))
    }
}

impl MlflowLog {
    /// The server's address, without a slash at its end.
    ///
    /// # Errors
    /// One that is none, or that holds a password: it would be in the run's config.
    pub(super) fn address(&self) -> Result<String> {
        let variable = || std::env::var("MLFLOW_TRACKING_URI").ok().filter(|address| !address.is_empty());
        let (of, address) = match &self.tracking_uri {
            Some(address) => ("metric_logger.tracking_uri", address.clone()),
            None => ("MLFLOW_TRACKING_URI", variable().unwrap_or_else(|| "http://127.0.0.1:5000".to_owned())),
        };
        let rest = ["http://", "https://"].iter().find_map(|scheme| address.strip_prefix(scheme));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else {
            return Err(Error::setup(format!(
                "{of}: the address of an MLflow server was expected, such as http://127.0.0.1:5000 (`mlflow server` starts one)"
            )));
        };
        if rest.split('/').next().is_some_and(|host| host.contains('@')) {
            return Err(Error::setup(format!(
                "{of}: the address holds a name or password, which the run's config would show; set \
                 MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment instead"
            )));
        }
        Ok(address.trim_end_matches('/').to_owned())
    }
}

//! What a run reports while it trains: console, JSON lines, tables, TensorBoard, Weights & Biases, MLflow.
//!
//! A recipe opens [`Metrics`] from its `metric_logger` key, hands it one [`StepMetrics`] a
//! step, and closes it. Each destination is a [`MetricLogger`]. Training does not depend on any of them: one that fails is told of once,
//! and a full disk is waited for.

mod config;
mod console;
mod csv;
mod downloads;
mod format;
mod jsonl;
mod mlflow;
mod pace;
mod proto;
mod room;
mod tensorboard;
mod wandb;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Error, Result};

pub use crate::memory::{peak_memory, resident_memory};
pub use config::{CsvLog, DiskLog, ElsewhereLog, MetricLoggerConfig, MlflowLog, TensorBoardLog, WandbLog};
pub use console::Console;
pub use csv::CsvLogger;
pub use downloads::Downloads;
pub use jsonl::JsonlLogger;
pub use mlflow::MlflowLogger;
pub use pace::Pace;
pub(crate) use room::wait_for_room;
pub use tensorboard::TensorBoardLogger;
pub use wandb::WandbLogger;

/// The name of the loss on the validation data.
pub const VAL_LOSS: &str = "val_loss";

/// What one optimizer step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepMetrics {
    /// Optimizer steps done since the start of training, this one included: the first is 1.
    pub step: u64,
    /// The epoch that the step belongs to, from 0.
    pub epoch: u64,
    /// Mean loss per trained token over the whole step, in nats; or of what else the recipe minimizes.
    pub loss: f64,
    /// The learning rate that the step used.
    pub lr: f64,
    /// Global L2 norm of the gradient before clipping, where it was computed.
    pub grad_norm: Option<f64>,
    /// What the recipe says besides.
    pub extra: Vec<Extra>,
    /// Tokens and time.
    pub pace: Pace,
    /// The most memory that the process has held so far, in bytes: [`peak_memory`].
    pub peak_memory_bytes: Option<u64>,
}

/// What one pass over the validation set found.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidationMetrics {
    /// Optimizer steps done when the model was validated.
    pub step: u64,
    /// The epoch in which it was validated, from 0.
    pub epoch: u64,
    /// Mean loss per predicted token, in nats; or of what else the recipe minimizes.
    pub loss: f64,
    /// What the recipe says besides.
    pub extra: Vec<Extra>,
    /// Tokens and time of the pass.
    pub pace: Pace,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationMetrics {
    /// Optimizer steps done when the model was evaluated.
    pub step: u64,
    /// The epoch in which it was, from 0.
    pub epoch: u64,
    /// Names of tasks and metrics, `held_out/exact_match`, with their numbers.
    pub values: Vec<(String, f64)>,
    /// Prompts, and what the model answers.
    pub samples: Vec<(String, String)>,
    /// The time that it took.
    pub seconds: f64,
}

/// A number of a recipe's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extra {
    /// What it is logged as.
    pub name: &'static str,
    /// The number.
    pub value: f64,
    /// Whether the console shows it, by the last part of its name.
    pub on_console: bool,
}

impl Extra {
    /// A number for the logs alone.
    pub fn new(name: &'static str, value: f64) -> Self {
        Self { name, value, on_console: false }
    }

    /// A number that the console shows, too.
    pub fn shown(name: &'static str, value: f64) -> Self {
        Self { on_console: true, ..Self::new(name, value) }
    }
}

impl StepMetrics {
    /// Name and value of everything that is logged, `step` first. What is not a number (an
    /// absent norm, a NaN) is null.
    fn record(&self) -> Map<String, Value> {
        let mut record = object(json!({
            "step": self.step,
            "epoch": self.epoch,
            "loss": self.loss,
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "tokens": self.pace.tokens,
            "trained_tokens": self.pace.trained_tokens,
            "step_seconds": self.pace.seconds,
            "tokens_per_second": self.pace.tokens_per_second(),
            "trained_tokens_per_second": self.pace.trained_tokens_per_second(),
            "peak_memory_bytes": self.peak_memory_bytes,
        }));
        record.extend(self.extra.iter().map(|extra| (extra.name.to_owned(), json!(extra.value))));
        record
    }
}

impl ValidationMetrics {
    /// As [`StepMetrics::record`]; the names begin with `val_`, so that both fit one log.
    fn record(&self) -> Map<String, Value> {
        let mut record = object(json!({
            "step": self.step,
            "epoch": self.epoch,
            "val_loss": self.loss,
            "val_tokens": self.pace.tokens,
            "val_trained_tokens": self.pace.trained_tokens,
            "val_seconds": self.pace.seconds,
        }));
        record.extend(self.extra.iter().map(|extra| (format!("val_{}", extra.name), json!(extra.value))));
        record
    }
}

impl EvaluationMetrics {
    /// As [`StepMetrics::record`], without samples.
    fn record(&self) -> Map<String, Value> {
        let mut record = object(json!({ "step": self.step, "epoch": self.epoch }));
        record.extend(self.values.iter().map(|(name, value)| (name.clone(), json!(value))));
        record.insert("eval_seconds".to_owned(), json!(self.seconds));
        record
    }

    /// The same with the samples, a list of prompts and answers.
    fn record_with_samples(&self) -> Map<String, Value> {
        let mut record = self.record();
        if !self.samples.is_empty() {
            let sample = |(prompt, answer): &(String, String)| json!({ "prompt": prompt, "answer": answer });
            record.insert("samples".to_owned(), self.samples.iter().map(sample).collect());
        }
        record
    }

    /// Prompts and answers as a text; `None` where there are none.
    fn samples_text(&self) -> Option<String> {
        let sample = |(prompt, answer): &(String, String)| format!("{prompt}\n-> {answer}");
        let text = self.samples.iter().map(sample).collect::<Vec<_>>().join("\n\n");
        (!self.samples.is_empty()).then_some(text)
    }
}

fn note_record(step: u64, note: &str) -> Map<String, Value> {
    object(json!({ "step": step, "note": note }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A place that metrics go to. One of your own is [added](Metrics::add) to those of the config:
///
/// ```
/// use std::fmt::Write as _;
/// use std::sync::{Arc, Mutex};
/// use tune_core::metrics::{Console, EvaluationMetrics, MetricLogger, Metrics, Pace, Start, StepMetrics, ValidationMetrics};
/// use tune_core::Result;
///
/// /// Losses as comma-separated values.
/// struct Csv(Arc<Mutex<String>>);
///
/// impl MetricLogger for Csv {
///     fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
///         let mut text = self.0.lock().expect("nobody panics with it");
///         let _ = writeln!(text, "{},{}", metrics.step, metrics.loss);
///         Ok(())
///     }
///     fn log_validation(&mut self, _: &ValidationMetrics) -> Result<()> {
///         Ok(())
///     }
///     fn log_evaluation(&mut self, _: &EvaluationMetrics) -> Result<()> {
///         Ok(())
///     }
///     fn log_note(&mut self, _: u64, _: &str) -> Result<()> {
///         Ok(())
///     }
///     fn close(&mut self) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// let text = Arc::new(Mutex::new(String::new()));
/// // In a recipe: `self.run.metrics().add(Csv(...))`.
/// let mut metrics = Metrics::open(&[], "out".as_ref(), &Default::default(), Start::Fresh, 1, Console::silent())?;
/// metrics.add(Csv(Arc::clone(&text)));
/// let pace = Pace { tokens: 100, trained_tokens: 40, seconds: 0.5 };
/// let step = StepMetrics {
///     step: 1,
///     epoch: 0,
///     loss: 2.5,
///     lr: 1e-4,
///     grad_norm: None,
///     extra: Vec::new(),
///     pace,
///     peak_memory_bytes: None,
/// };
/// metrics.log_step(&step)?;
/// assert_eq!(*text.lock().expect("nobody panics with it"), "1,2.5\n");
/// # Ok::<(), tune_core::Error>(())
/// ```
///
/// What a method was given has reached the operating system when it returns: a process
/// that is killed loses no record.
pub trait MetricLogger: Send {
    /// Records an optimizer step.
    fn log_step(&mut self, metrics: &StepMetrics) -> Result<()>;
    /// Records a validation. Done before the checkpoint of the same step is saved, it is
    /// recorded exactly once in a run that is killed and resumed.
    fn log_validation(&mut self, metrics: &ValidationMetrics) -> Result<()>;
    /// Records an evaluation, as a validation is recorded.
    fn log_evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()>;
    /// Records something worth knowing that happened after `step` steps.
    fn log_note(&mut self, step: u64, note: &str) -> Result<()>;
    /// Ends the log. Nothing is recorded after it.
    fn close(&mut self) -> Result<()>;
}

/// Where a run begins, for logs that may exist already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At step 0. A log that is in the way is kept under another name.
    Fresh,
    /// After this step, which a checkpoint was loaded from. What was logged of later steps
    /// is dropped, for they are about to be done again.
    Resumed(u64),
}

/// All the places that a run's metrics go to.
pub struct Metrics {
    console: Console,
    loggers: Vec<Attached>,
    every: u64,
}

/// A place that metrics go to, and how it fared.
struct Attached {
    logger: Box<dyn MetricLogger>,
    /// Something failed, and that was said.
    has_failed: bool,
}

impl Metrics {
    /// Checks what can be known before anything is written.
    ///
    /// # Errors
    /// Two logs in one file; an address that is none.
    pub fn check(configs: &[MetricLoggerConfig], output_dir: &Path) -> Result<()> {
        configs.iter().try_for_each(MetricLoggerConfig::check)?;
        if configs.iter().filter(|config| matches!(config, MetricLoggerConfig::Mlflow(_))).count() > 1 {
            return Err(Error::setup("metric_logger: there are two of mlflow; a run goes to one server"));
        }
        let mut places = Vec::new();
        for place in configs.iter().filter_map(|config| config.place(output_dir)) {
            if places.contains(&place) {
                return Err(Error::setup(format!(
                    "metric_logger: two loggers write {}; give one of them another log_dir or filename",
                    place.display()
                )));
            }
            places.push(place);
        }
        Ok(())
    }

    /// The console, and the loggers that the config asks for. Their files are in
    /// `output_dir/logs` unless the config says otherwise. Every `every`-th step is
    /// recorded; a progress bar shows them all. `settings` are the config's, for services that show them beside a run.
    ///
    /// # Errors
    /// A folder or file that cannot be made or written, two logs in one file, a log of
    /// the resumed run that is not one.
    pub fn open(
        configs: &[MetricLoggerConfig],
        output_dir: &Path,
        settings: &BTreeMap<String, Value>,
        start: Start,
        every: u64,
        mut console: Console,
    ) -> Result<Self> {
        Self::check(configs, output_dir)?;
        let mut loggers = Vec::new();
        for config in configs {
            if let Some(warning) = config.warning() {
                console.warn(&warning);
            }
            loggers.extend(config.open(output_dir, settings, start)?.map(Attached::new));
        }
        Ok(Self { console, loggers, every: every.max(1) })
    }

    /// One more place that metrics go to.
    pub fn add(&mut self, logger: impl MetricLogger + 'static) {
        self.loggers.push(Attached::new(Box::new(logger)));
    }

    /// The console, for the report at the start and for warnings.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// The training loop begins: `done` of `total` steps are done. Where the total is not known yet,
    /// [`Console::set_total`] tells it later.
    pub fn begin(&mut self, done: u64, total: impl Into<Option<u64>>) {
        self.console.begin(done, total);
    }

    /// Writes to every logger; where the disk is full, it waits for room. A logger that fails is told of once: what is
    /// trained is worth more than what is written of it. It is given what comes later nevertheless, without patience.
    fn record(&mut self, mut write: impl FnMut(&mut dyn MetricLogger) -> Result<()>) {
        let Self { console, loggers, .. } = self;
        for Attached { logger, has_failed } in loggers {
            let result = match has_failed {
                true => write(logger.as_mut()),
                false => wait_for_room(console, || write(logger.as_mut())),
            };
            if let (Err(error), false) = (result, *has_failed) {
                *has_failed = true;
                console.warn(&format!("{error}. The run goes on; records may be missing from this log"));
            }
        }
    }
}

impl Attached {
    fn new(logger: Box<dyn MetricLogger>) -> Self {
        Self { logger, has_failed: false }
    }
}

/// A log that cannot be written stops no run: a warning names it, once.
impl MetricLogger for Metrics {
    fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.console.advance(metrics);
        if metrics.step.is_multiple_of(self.every) {
            self.console.log_step(metrics)?;
            self.record(|l| l.log_step(metrics));
        }
        Ok(())
    }

    fn log_validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        self.console.log_validation(metrics)?;
        self.record(|l| l.log_validation(metrics));
        Ok(())
    }

    fn log_evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        self.console.log_evaluation(metrics)?;
        self.record(|l| l.log_evaluation(metrics));
        Ok(())
    }

    fn log_note(&mut self, step: u64, note: &str) -> Result<()> {
        self.console.log_note(step, note)?;
        self.record(|l| l.log_note(step, note));
        Ok(())
    }

    /// Closes every log. What failed at the end is said, too.
    fn close(&mut self) -> Result<()> {
        self.console.close()?;
        for Attached { logger, .. } in &mut self.loggers {
            if let Err(error) = logger.close() {
                self.console.warn(&format!("{error}. Records may be missing from this log"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

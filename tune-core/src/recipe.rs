//! What fine-tuning recipes have in common: the order of their parts, and the arithmetic of a run.

mod end;
mod outline;
mod room;
mod save;
mod settings;
mod steps;
mod stop;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use tune_config::Config;

use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::run::{self, Saved};
use crate::checkpoint::state::TrainingState;
use crate::data::Batch;
use crate::kernels::Dropout;
use crate::metrics;
use crate::{Error, Result};

pub use end::{already_complete, end_of_run};
pub use outline::{Outline, Trained, inputs};
pub(crate) use room::wait_for_room;
pub use save::{Validations, save};
pub use settings::settings;
pub use steps::{Step, Steps};
pub use stop::check_stop;

/// A training run as a value: several can be run one after the other in one program.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no recipe",
    label = "does not implement `Recipe`",
    note = "`preflight` names the type whose `setup` and `train` the function calls"
)]
pub trait Recipe: Sized {
    /// What the recipe is told.
    type Config: Config;

    /// What the config says of a run, before anything is read: for [`Recipe::setup`], and for `--check` and `--plan`.
    ///
    /// # Errors
    /// Settings that do not fit together.
    fn outline(config: &Self::Config) -> Result<Outline<'_>>;

    /// Checks everything that can be checked, loads the model and the data, and finds the place to go on from.
    fn setup(config: Self::Config) -> Result<Self>;

    /// Trains from that place to the end, saving on the way.
    fn train(&mut self) -> Result<()>;

    /// Where the run is.
    fn position(&self) -> Position;

    /// The newest checkpoint of the run.
    fn last_saved(&self) -> Option<&Saved>;

    /// Saves the run as it is now, and returns the checkpoint.
    fn save_checkpoint(&mut self) -> Result<Saved>;

    /// For what [`Recipe::train`] returns where it ends before its last step: Ctrl-C, SIGTERM and a log that cannot be
    /// written end a run after a step, which is saved here if it is not yet.
    ///
    /// # Errors
    /// Always: the error that it was given, with what has been saved and how to go on.
    fn save_early(&mut self, why: Error) -> Result<()> {
        Err(stop::save_early(self, why))
    }

    /// Closes the logs and reports the results.
    fn cleanup(self) -> Result<()>;
}

/// Where a run is: what is done, and so what comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Optimizer steps done.
    pub step: u64,
    /// The epoch that the next batch belongs to, from 0.
    pub epoch: u64,
    /// Batches of that epoch that are done.
    pub batches_in_epoch: usize,
}

impl Position {
    /// The place that a checkpoint was saved at.
    pub fn of(state: &TrainingState) -> Self {
        Self { step: state.step as u64, epoch: state.epoch as u64, batches_in_epoch: state.batches_in_epoch }
    }

    /// The epoch that the last step belongs to, from 0.
    pub fn epoch_of_last_step(&self) -> usize {
        let epoch = if self.batches_in_epoch == 0 { self.epoch.saturating_sub(1) } else { self.epoch };
        epoch as usize
    }

    /// Whether a run saves here: at the end of each epoch, and after every so many steps.
    pub fn saves(&self, config: &CheckpointConfig) -> bool {
        self.step > 0 && (self.batches_in_epoch == 0 || every(config.save_every_n_steps.map(|n| n as u64), self.step))
    }

    /// Whether a run is validated here: before its first step, at the end of each epoch, after every `n` steps, and
    /// wherever it saves if it is to know the best of its checkpoints.
    pub fn validates(&self, n: Option<u64>, config: &CheckpointConfig) -> bool {
        self.batches_in_epoch == 0 || every(n, self.step) || (config.keep_best && self.saves(config))
    }

    /// Where logs begin.
    pub fn log_start(&self) -> metrics::Start {
        if self.step == 0 { metrics::Start::Fresh } else { metrics::Start::Resumed(self.step) }
    }
}

fn every(n: Option<u64>, step: u64) -> bool {
    n.is_some_and(|n| step.is_multiple_of(n))
}

/// How a run treats what lies in its output folder.
pub fn run_start(resume_from_checkpoint: bool, overwrite: bool) -> run::Start {
    match (resume_from_checkpoint, overwrite) {
        (true, _) => run::Start::Resume,
        (false, true) => run::Start::Overwrite,
        (false, false) => run::Start::Fresh,
    }
}

/// Writes the resolved config to `config.yaml` in the run's folder; it can be run again as it is.
/// Another config of that name is kept, as `config.1.yaml` and so on: someone may have written it by hand.
///
/// # Errors
/// Where it cannot be written. An older one is whole or replaced, never torn.
pub fn write_config(output_dir: &Path, yaml: &str) -> Result<()> {
    let path = output_dir.join("config.yaml");
    match fs::read(&path) {
        Ok(there) if there == yaml.as_bytes() => return Ok(()),
        Ok(_) => move_aside(&path)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("read", &path)(e)),
    }
    // Under a name that the next run clears away, should this one be killed here.
    let aside = output_dir.join(".partial-config.yaml");
    let mut file = File::create(&aside).map_err(Error::io("create", &aside))?;
    file.write_all(yaml.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io("write", &aside))?;
    fs::rename(&aside, &path).map_err(Error::io("write", &path))
}

/// Renames a file to the first free numbered name beside it: `metrics.jsonl` to `metrics.1.jsonl`, and so on.
pub(crate) fn move_aside(path: &Path) -> Result<()> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or_else(String::new, |e| format!(".{}", e.to_string_lossy()));
    let mut number = 1u64;
    let aside = loop {
        let aside = path.with_file_name(format!("{stem}.{number}{extension}"));
        if !aside.exists() {
            break aside;
        }
        number += 1;
    };
    fs::rename(path, aside).map_err(Error::io("rename", path))
}

/// How batches become steps and epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Batches whose gradients make one step; the last step of an epoch takes what is left.
    pub gradient_accumulation_steps: usize,
    /// Steps after which an epoch ends early.
    pub max_steps_per_epoch: Option<usize>,
    /// Passes over the data.
    pub epochs: u64,
}

impl Plan {
    /// Steps in an epoch of so many batches.
    pub fn steps_per_epoch(&self, batches_per_epoch: usize) -> u64 {
        let steps = batches_per_epoch.div_ceil(self.gradient_accumulation_steps);
        self.max_steps_per_epoch.map_or(steps, |max| max.min(steps)) as u64
    }

    /// Steps of the whole run.
    pub fn total_steps(&self, batches_per_epoch: usize) -> u64 {
        self.steps_per_epoch(batches_per_epoch).saturating_mul(self.epochs)
    }
}

/// The key of one micro-batch's dropout: the same in a run that was resumed.
pub fn dropout_key(seed: u64, step: u64, micro_batch: usize) -> u64 {
    Dropout::mix(Dropout::mix(seed, step), micro_batch as u64)
}

/// Stops a run whose loss or gradient is no number.
///
/// # Errors
/// Where it is not finite; the message names the step, its samples and what to try.
pub fn check_finite(
    step: u64,
    loss: f64,
    grad_norm: Option<f64>,
    batches: &[Batch],
    last: Option<&Path>,
) -> Result<()> {
    let what = match grad_norm {
        _ if !loss.is_finite() => format!("the loss is {loss}"),
        Some(norm) if !norm.is_finite() => format!("the norm of the gradient is {norm}"),
        _ => return Ok(()),
    };
    let mut samples: Vec<&str> = batches.iter().flat_map(|b| b.origins.iter().map(String::as_str)).collect();
    let more = samples.len().saturating_sub(8);
    samples.truncate(8);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let last = match last {
        Some(path) => format!("The last good checkpoint is {}.", path.display()),
        None => "No checkpoint had been saved yet.".to_string(),
    };
    Err(Error::Training(format!(
        "step {step}: {what}; nothing of this step is saved. Its samples: {}{more}. {last} \
         Try a lower optimizer.lr, clip_grad_norm=1.0, a longer warm-up or dtype=fp32, and look at these samples.",
        samples.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_make_steps() {
        let plan = Plan { gradient_accumulation_steps: 4, max_steps_per_epoch: None, epochs: 3 };
        assert_eq!((plan.steps_per_epoch(10), plan.total_steps(10)), (3, 9));
        assert_eq!(Plan { max_steps_per_epoch: Some(1), ..plan }.total_steps(10), 3);
        // More steps than can be counted are no overflow.
        assert_eq!(Plan { epochs: u64::MAX, ..plan }.total_steps(10), u64::MAX);
    }

    #[test]
    fn a_config_that_someone_wrote_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        fs::write(folder.path().join("config.yaml"), "# by hand\nepochs: 1\n").unwrap();
        for yaml in ["epochs: 1\n", "epochs: 1\n", "epochs: 2\n"] {
            write_config(folder.path(), yaml).unwrap();
            assert_eq!(read("config.yaml"), yaml);
        }
        assert_eq!(read("config.1.yaml"), "# by hand\nepochs: 1\n");
        assert_eq!(read("config.2.yaml"), "epochs: 1\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn whoever_may_read_the_checkpoints_may_read_the_config() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        fs::write(folder.path().join("other"), "").unwrap();
        write_config(folder.path(), "epochs: 1\n").unwrap();
        assert_eq!(mode("config.yaml"), mode("other"));
    }

    #[test]
    fn what_is_not_a_number_stops_the_run() {
        check_finite(3, 1.0, Some(2.0), &[], None).unwrap();
        check_finite(3, 1.0, None, &[], None).unwrap();
        let batch = Batch {
            rows: 1,
            len: 0,
            input_ids: vec![],
            targets: vec![],
            positions: vec![],
            spans: vec![],
            origins: vec!["data.jsonl:7".into()],
        };
        let error =
            check_finite(3, f64::NAN, None, &[batch], Some(Path::new("out/epoch_0_step_2"))).unwrap_err().to_string();
        assert!(error.contains("step 3: the loss is NaN") && error.contains("data.jsonl:7"), "{error}");
        assert!(error.contains("The last good checkpoint is out/epoch_0_step_2"), "{error}");
        assert!(check_finite(3, 1.0, Some(f64::INFINITY), &[], None).is_err());
    }
}

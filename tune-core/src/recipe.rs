//! What fine-tuning recipes have in common. A recipe's config holds keys in groups ([`RunKeys`], [`DataKeys`],
//! [`StepKeys`]); an [`Outline`] says what its run is about. [`Outline::open`] opens and checks all of that,
//! [`Opened::begin`] is where writing begins, and a [`Run`] is what goes on around the steps. It holds neither the model nor
//! the optimizer and calls nothing of the recipe's: what a step is made of is written in the recipe alone.

mod answers;
mod background;
mod end;
mod keys;
mod measured;
mod open;
mod outline;
mod position;
mod run;
mod save;
mod selection;
mod settings;
mod steps;
mod stop;
mod together;
mod value;
mod weights;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use tune_config::Config;

use crate::checkpoint::run::Saved;
use crate::kernels::Dropout;
use crate::{Error, Result};

pub use crate::metrics::VAL_LOSS;
pub use end::{Ending, already_complete, end_of_run};
pub use keys::{
    Data, DataKeys, EvaluationKeys, PreferenceKeys, PretrainKeys, RowKeys, RunKeys, ScoredKeys, StepKeys, UnpairedKeys,
};
pub use measured::{At, EarlyEnd, EarlyStoppingConfig, Measured, more_is_better};
pub use open::Opened;
pub(crate) use outline::fingerprints;
pub use outline::{Compared, Outline, StoredTeacher, TeacherLogitsConfig, Trained};
pub use position::{Plan, Position};
pub use run::Run;
pub use save::save;
pub use settings::{defaults, settings};
pub use steps::{Step, Steps};
pub use stop::check_stop;
pub use value::ValueModel;
pub use weights::Weights;

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
    fn outline(config: &Self::Config) -> Result<Outline>;

    /// Checks everything that can be checked, loads the model and the data, and finds the place to go on from.
    fn setup(config: Self::Config) -> Result<Self>;

    /// Trains from that place to the end, saving on the way.
    fn train(&mut self) -> Result<()>;

    /// What goes on around the steps.
    fn run(&self) -> &Run;

    /// Saves the run as it is now, and returns the checkpoint.
    fn save_checkpoint(&mut self) -> Result<Saved>;

    /// For what [`Recipe::train`] returns where it ends before its last step: Ctrl-C, SIGTERM and a record that cannot be
    /// used end a run after a step, which is saved here if it is not yet.
    ///
    /// # Errors
    /// Always: the error that it was given, with what has been saved and how to go on.
    fn save_early(&mut self, why: Error) -> Result<()> {
        Err(stop::save_early(self, why))
    }

    /// Closes the logs and reports the results.
    fn cleanup(self) -> Result<()>;
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
        Ok(_) => crate::files::move_aside(&path)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("read", &path)(e)),
    }
    // Under a name that the next run clears away, should this one be killed here.
    let aside = output_dir.join(".partial-config.yaml");
    let mut file = File::create(&aside).map_err(Error::io("create", &aside))?;
    file.write_all(yaml.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io("write", &aside))?;
    fs::rename(&aside, &path).map_err(Error::io("write", &path))
}

/// The key of one micro-batch's dropout: the same in a run that was resumed.
pub fn dropout_key(seed: u64, step: u64, micro_batch: usize) -> u64 {
    Dropout::mix(Dropout::mix(seed, step), micro_batch as u64)
}

/// The key of an answer that is drawn in a micro-batch of a step, by the numbers of its prompt and of the answer: the same in a run
/// that was resumed.
pub fn sampling_key(seed: u64, step: u64, micro_batch: usize, (prompt, sample): (usize, usize)) -> u64 {
    // Other than dropout's.
    let of_batch = Dropout::mix(dropout_key(seed, step, micro_batch), u64::MAX);
    Dropout::mix(Dropout::mix(of_batch, prompt as u64), sample as u64)
}

/// Stops a run whose loss or gradient is no number; `last` is its newest checkpoint.
///
/// # Errors
/// Where it is not finite; the message names the step, its samples and what to try.
pub fn check_finite(step: &Step, loss: f64, grad_norm: f64, last: Option<&Saved>) -> Result<()> {
    match loss.is_finite() && grad_norm.is_finite() {
        true => Ok(()),
        false => are_finite(step.number, &samples(step), (loss, grad_norm), last),
    }
}

/// Where a step's samples are from, the first few.
fn samples(step: &Step) -> String {
    let mut samples: Vec<&str> = step.batches.iter().flat_map(|b| b.origins.iter().map(String::as_str)).collect();
    // The two answers of a pair have one name.
    samples.dedup();
    let more = samples.len().saturating_sub(8);
    samples.truncate(8);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    samples.join(", ") + &more
}

/// Whether a step's loss and the norm of its gradient are finite.
fn are_finite(step: u64, samples: &str, (loss, grad_norm): (f64, f64), last: Option<&Saved>) -> Result<()> {
    let what = match (loss.is_finite(), grad_norm.is_finite()) {
        (false, _) => format!("the loss is {loss}"),
        (true, false) => format!("the norm of the gradient is {grad_norm}"),
        (true, true) => return Ok(()),
    };
    let last = match last {
        Some(saved) => format!("The last good checkpoint is {}.", saved.path.display()),
        None => "No checkpoint had been saved yet.".to_string(),
    };
    // The first step's loss is that of the model as it was read.
    let advice = match step {
        1 => {
            "No update was made before it, so the cause is in the model's weights (a damaged copy, or one that was made wrongly), in \
             dtype (try dtype=fp32), or in these samples."
        }
        _ => "Try a lower optimizer.lr, clip_grad_norm=1.0, a longer warm-up or dtype=fp32, and look at these samples.",
    };
    Err(Error::Training(format!(
        "step {step}: {what}; nothing of this step is saved. Its samples: {samples}. {last} {advice}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Batch;

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
        let batch = Batch {
            rows: 1,
            len: 0,
            input_ids: vec![],
            targets: vec![],
            positions: vec![],
            spans: vec![],
            origins: vec!["data.jsonl:7".into()],
            labels: Vec::new(),
        };
        let step = Step::of(3, vec![batch]);
        let last = Saved { path: "out/epoch_0_step_2".into(), step: 2, epoch: 0 };
        check_finite(&step, 1.0, 2.0, None).unwrap();
        let error = check_finite(&step, f64::NAN, 2.0, Some(&last)).unwrap_err().to_string();
        assert!(error.contains("step 3: the loss is NaN") && error.contains("data.jsonl:7"), "{error}");
        assert!(error.contains("The last good checkpoint is out/epoch_0_step_2"), "{error}");
        assert!(error.contains("Try a lower optimizer.lr"), "{error}");
        let mut first = step.clone();
        first.number = 1;
        let error = check_finite(&first, f64::NAN, 2.0, None).unwrap_err().to_string();
        assert!(error.contains("in the model's weights") && !error.contains("optimizer.lr"), "{error}");
        let error = check_finite(&step, 1.0, f64::INFINITY, None).unwrap_err().to_string();
        assert!(error.contains("the norm of the gradient is inf"), "{error}");
    }
}

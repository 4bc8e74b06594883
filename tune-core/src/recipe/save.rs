//! Saving in the course of a run: with patience, and with an eye to which checkpoints are kept.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::room::wait_for_room;
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::may_pass;
use crate::checkpoint::run::{self, RunDir, Saved};
use crate::checkpoint::state::TrainingState;
use crate::metrics::Console;
use crate::models::Piece;
use crate::{Error, Result};

/// Saves a checkpoint as [`RunDir::save`] does, and then deletes those that the config does not keep. Where there is no
/// room, those that will be deleted anyway go first; then the run waits for room, and after that it saves to the
/// system's folder for temporary files, rather than to lose what was trained.
///
/// # Errors
/// As [`RunDir::save`]. Where it was saved elsewhere, the error says where.
pub fn save(
    run_dir: &RunDir,
    config: &CheckpointConfig,
    state: &TrainingState,
    weight_bytes: u64,
    console: &mut Console,
    write: impl Fn(&Path) -> Result<()>,
) -> Result<Saved> {
    save_pieces(run_dir, config, (state, &state.pieces()), weight_bytes, console, write)
}

/// The same with tensors of the optimizer that are made as they are written.
pub(super) fn save_pieces(
    run_dir: &RunDir,
    config: &CheckpointConfig,
    (state, optimizer): (&TrainingState, &[Piece<'_>]),
    weight_bytes: u64,
    console: &mut Console,
    write: impl Fn(&Path) -> Result<()>,
) -> Result<Saved> {
    let save_to = |dir: &RunDir| dir.save_pieces(state, optimizer, weight_bytes, &write);
    let saved = match save_to(run_dir) {
        Err(error) if may_pass(&error) => {
            if let Some(keep) = config.keep_last_n_checkpoints.filter(|&keep| keep > 1) {
                prune(run_dir, config, keep - 1)?;
            }
            wait_for_room(console, || save_to(run_dir)).map_err(|error| match may_pass(&error) {
                true => elsewhere(&error, run_dir, save_to),
                false => error,
            })
        }
        result => result,
    }?;
    if let Some(keep) = config.keep_last_n_checkpoints {
        prune(run_dir, config, keep)?;
    }
    Ok(saved)
}

/// The last resort. Returns the error to end with.
fn elsewhere(full: &Error, run_dir: &RunDir, save_to: impl Fn(&RunDir) -> Result<Saved>) -> Error {
    let name = run_dir.path().file_name().unwrap_or_default().to_string_lossy();
    let folder = std::env::temp_dir().join(format!("tune-{name}-{}", std::process::id()));
    let saved = RunDir::elsewhere(&folder).and_then(|dir| save_to(&dir));
    match saved {
        Ok(saved) => Error::Training(format!(
            "{full}.\nStep {} was saved to {} instead: make room, move that folder into {}, and resume from it \
             (resume_from_checkpoint=true)",
            saved.step,
            saved.path.display(),
            run_dir.path().display()
        )),
        Err(error) => {
            // Of no use, and empty.
            let _ = std::fs::remove_dir(&folder);
            Error::Training(format!("{full}.\nThere is no room elsewhere either: {error}"))
        }
    }
}

fn prune(run_dir: &RunDir, config: &CheckpointConfig, keep: usize) -> Result<()> {
    let best = if config.keep_best { best(run_dir.path())? } else { None };
    run_dir.prune_but(keep, best.as_deref()).map(drop)
}

/// The checkpoint with the lowest validation loss; of equals, the newest.
fn best(output_dir: &Path) -> Result<Option<PathBuf>> {
    let mut best: Option<(f64, PathBuf)> = None;
    for saved in run::checkpoints(output_dir)? {
        if let Some(loss) = Validations::in_checkpoint(&saved.path)
            && best.as_ref().is_none_or(|(lowest, _)| loss <= *lowest)
        {
            best = Some((loss, saved.path));
        }
    }
    Ok(best.map(|(_, path)| path))
}

/// The validations of a run so far: what a checkpoint remembers of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Validations {
    /// The last one: the step, and the loss.
    pub last: Option<(u64, f64)>,
    /// The best one behind the first step.
    pub best: Option<(u64, f64)>,
}

const LAST: &str = "validation";
const BEST: &str = "best_validation";

impl Validations {
    /// Those of the run that a state was saved in.
    pub fn of(state: &TrainingState) -> Self {
        Self { last: state.extra.get(LAST).and_then(pair), best: state.extra.get(BEST).and_then(pair) }
    }

    /// One more, after so many steps.
    pub fn add(&mut self, step: u64, loss: f64) {
        self.last = Some((step, loss));
        // What is not a number is no better than anything.
        if step > 0 && self.best.is_none_or(|(_, best)| loss < best) {
            self.best = Some((step, loss));
        }
    }

    /// Whether there was one after this step.
    pub fn has(&self, step: u64) -> bool {
        self.last.is_some_and(|(last, _)| last == step)
    }

    /// For [`TrainingState::extra`].
    pub fn extra(&self) -> impl Iterator<Item = (String, Json)> {
        let entry = |name: &str, (step, loss): (u64, f64)| (name.to_owned(), serde_json::json!([step, loss]));
        self.last.map(|last| entry(LAST, last)).into_iter().chain(self.best.map(|best| entry(BEST, best)))
    }

    /// The loss of a checkpoint that was validated before it was saved.
    fn in_checkpoint(dir: &Path) -> Option<f64> {
        #[derive(serde::Deserialize)]
        struct State {
            step: u64,
            extra: std::collections::BTreeMap<String, Json>,
        }
        let bytes = std::fs::read(dir.join(crate::checkpoint::state::FILE)).ok()?;
        let state: State = serde_json::from_slice(&bytes).ok()?;
        let (step, loss) = pair(state.extra.get(LAST)?)?;
        (step == state.step && !loss.is_nan()).then_some(loss)
    }
}

fn pair(value: &Json) -> Option<(u64, f64)> {
    Some((value.get(0)?.as_u64()?, value.get(1)?.as_f64()?))
}

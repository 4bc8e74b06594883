//! Saving in the course of a run: with patience, and with an eye to which checkpoints are kept.

use std::path::Path;

use super::{Measured, VAL_LOSS};
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::run::{self, RunDir, Saved};
use crate::checkpoint::state::TrainingState;
use crate::metrics::{Console, wait_for_room};
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
    let by = config.best_by.as_deref().unwrap_or(VAL_LOSS);
    save_pieces(run_dir, config, by, (state, &state.pieces()), weight_bytes, Some(console), write)
}

/// The same with tensors of the optimizer that are made as they are written. The metric `by` says which checkpoint is the best. Without a
/// console, nobody waits for room.
pub(super) fn save_pieces(
    run_dir: &RunDir,
    config: &CheckpointConfig,
    by: &str,
    (state, optimizer): (&TrainingState, &[Piece<'_>]),
    weight_bytes: u64,
    console: Option<&mut Console>,
    write: impl Fn(&Path) -> Result<()>,
) -> Result<Saved> {
    let measured = Measured::of(state);
    let best = config.keep_best.then_some((&measured, by));
    let save_to = |dir: &RunDir| dir.save_pieces(state, optimizer, weight_bytes, &write);
    let saved = match save_to(run_dir) {
        Err(error) if error.may_pass() => {
            if let Some(keep) = config.keep_last_n_checkpoints.filter(|&keep| keep > 1) {
                prune(run_dir, keep - 1, best)?;
            }
            let Some(console) = console else { return save_to(run_dir) };
            wait_for_room(console, || save_to(run_dir)).map_err(|error| match error.may_pass() {
                true => elsewhere(&error, run_dir, save_to),
                false => error,
            })
        }
        result => result,
    }?;
    if let Some(keep) = config.keep_last_n_checkpoints {
        prune(run_dir, keep, best)?;
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

/// Deletes all checkpoints but the newest ones and, where it is to be kept, the best.
fn prune(run_dir: &RunDir, keep: usize, best: Option<(&Measured, &str)>) -> Result<()> {
    let saved = run::checkpoints(run_dir.path())?;
    let best =
        best.and_then(|(measured, by)| measured.best_of(by, |step| saved.iter().any(|saved| saved.step == step)));
    let best = best.and_then(|(step, _)| saved.iter().find(|saved| saved.step == step));
    run_dir.prune_but(keep, best.map(|saved| saved.path.as_path())).map(drop)
}

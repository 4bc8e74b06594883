//! The early end of a run that was asked to end.

use tune_config::cli::{Exit, quoted, signals, this_program};

use super::Recipe;
use crate::checkpoint::run::Saved;
use crate::{Error, Result};

/// An error where the run is to end: Ctrl-C or SIGTERM came since its [`Steps`](super::Steps) began. To be asked wherever
/// something takes long that need not be finished.
///
/// # Errors
/// [`Error::Stopped`], which [`Recipe::save_early`] handles.
pub fn check_stop() -> Result<()> {
    match signals::requested() {
        None => Ok(()),
        Some(signal) => Err(Error::Stopped(Exit { code: signal.exit_code(), message: format!("stopped by {signal}") })),
    }
}

/// What [`Recipe::save_early`] does.
pub(super) fn save_early<R: Recipe>(recipe: &mut R, why: Error) -> Error {
    if !matches!(why, Error::Stopped(_) | Error::Log { .. }) {
        return why;
    }
    let step = recipe.position().step;
    let is_saved = |recipe: &R| recipe.last_saved().is_some_and(|saved| saved.step as u64 == step);
    let failure = match step == 0 || is_saved(recipe) {
        true => None,
        false => recipe.save_checkpoint().err(),
    };
    match (why, failure) {
        (Error::Stopped(Exit { code, message }), None) => {
            let message = match recipe.last_saved() {
                None => format!("{message} before the first step was done: there is nothing to save"),
                Some(saved) => {
                    format!("{message} after step {step}; saved to {}\n{}", saved.path.display(), how_to_go_on(saved))
                }
            };
            Error::Stopped(Exit { code, message })
        }
        (Error::Stopped(Exit { code, message }), Some(failure)) => {
            Error::Stopped(Exit { code, message: format!("{message} after step {step}\nerror: {failure}") })
        }
        (why, failure) => {
            // A log's error names the checkpoint that is the newest now.
            let told = failure.map_or_else(|| why.to_string(), |failure| format!("{why}\n{failure}"));
            match signals::requested() {
                // While it waited for room.
                Some(signal) => Error::Stopped(Exit {
                    code: signal.exit_code(),
                    message: format!("stopped by {signal} after step {step}\nerror: {told}"),
                }),
                None => Error::Training(told),
            }
        }
    }
}

/// The command that goes on from a checkpoint in a run's folder.
fn how_to_go_on(saved: &Saved) -> String {
    let config = saved.path.with_file_name("config.yaml");
    format!("Go on with\n  {} --config {} resume_from_checkpoint=true", this_program(), quoted(config))
}

//! The early end of a run: one that was asked to end, or that cannot go on and whose steps so far are sound.

use tune_config::cli::{Exit, quoted, signals, this_program};

use super::Recipe;
use crate::checkpoint::run::{Saved, way_on};
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
    let step = recipe.run().position().step;
    let is_saved = recipe.run().last_saved().is_some_and(|saved| saved.step == step);
    let is_worth_saving = match why {
        Error::Stopped(_) => true,
        // Of several processes, one alone finds its data so: the others are elsewhere.
        Error::Data(_) => recipe.run().group().is_single(),
        _ => false,
    };
    recipe.run().ends();
    let failure = match is_worth_saving && step > 0 && !is_saved {
        true => recipe.save_checkpoint().err(),
        false => None,
    };
    let error = match (why, failure) {
        (Error::Stopped(Exit { code, message }), None) => {
            let message = match recipe.run().last_saved() {
                None => format!("{message} before the first step was done: there is nothing to save"),
                Some(saved) => {
                    format!("{message} after step {step}; saved to {}\n{}", saved.path.display(), how_to_go_on(saved))
                }
            };
            return Error::Stopped(Exit { code, message });
        }
        (Error::Stopped(_), Some(failure)) => failure,
        // The first mistake in the training data is also why nothing can be saved.
        (Error::Data(message), None | Some(Error::Data(_))) => {
            Error::Data(format!("{message}\n{}", way_on(recipe.run().output_dir(), "correct the data")))
        }
        (why, Some(failure)) => Error::Training(format!("{why}\n{failure}")),
        (why, None) => why,
    };
    // Whatever else went wrong, also while it waited for room: who asked it to end is told that it has.
    match signals::requested() {
        Some(signal) => Error::Stopped(Exit {
            code: signal.exit_code(),
            message: format!("stopped by {signal} after step {step}\nerror: {error}"),
        }),
        None => error,
    }
}

/// The command that goes on from a checkpoint in a run's folder.
fn how_to_go_on(saved: &Saved) -> String {
    let config = saved.path.with_file_name("config.yaml");
    format!("Go on with\n  {} --config {} resume_from_checkpoint=true", this_program(), quoted(config))
}

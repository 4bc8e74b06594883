//! What is said at the end of a run, and of one that is there already.

use std::path::Path;

use tune_config::cli::{other_program, quoted};

use super::{EarlyEnd, EarlyStoppingConfig, Measured, VAL_LOSS};
use crate::checkpoint::run::{self, Saved};

/// A prompt, where the run has no question of its own.
const PROMPT: &str = "Hello!";
/// Characters of a question that still fits into a command.
const SHORT: usize = 80;

/// How a run ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// What was measured in it.
    pub measured: &'a Measured,
    /// The metric that says which checkpoint is the best.
    pub best_by: &'a str,
    /// Why it ended before its last step, if it did.
    pub early: Option<&'a str>,
    /// Whether the model scores sequences, and does not answer.
    pub scores: bool,
}

/// Where the result is, how good it was, which step was the best, why the run ended early, if it did, and the command that asks
/// the result, if it answers. `base` is the model that an adapter is for; `question` is one that the run knows.
pub fn end_of_run(saved: &Saved, base: Option<&Path>, ending: &Ending<'_>, question: Option<&str>) -> String {
    let what = if base.is_some() { "Adapter" } else { "Model" };
    let mut text = format!("{what} saved to {}\n", saved.path.display());
    let merged = saved.path.join(super::weights::MERGED);
    if merged.is_dir() {
        text += &format!("Merged model saved to {}\n", merged.display());
    }
    let Ending { measured, best_by, early, scores } = ending;
    for name in [VAL_LOSS].into_iter().chain(Some(*best_by).filter(|name| *name != VAL_LOSS)) {
        if let (Some((step, value)), Some((best_step, best))) = (measured.last(name), measured.best(name)) {
            let shown = if name == VAL_LOSS { "Validation loss" } else { name };
            text += &format!("{shown} {value:.4} after step {step}");
            if best_step != step {
                text += &format!("; the best was {best:.4} after step {best_step}{}", checkpoint_of(best_step, saved));
            }
            text += "\n";
        }
    }
    if let Some(why) = early {
        text += &format!("Stopped early: {why}\n");
    }
    if *scores {
        return text.trim_end().to_owned();
    }
    let result = quoted(&saved.path);
    let model = match base {
        Some(base) => format!("checkpoint_dir={} adapter_dir={result}", quoted(base)),
        None => format!("checkpoint_dir={result}"),
    };
    let short = |question: &&str| question.chars().count() <= SHORT && !question.contains(char::is_control);
    let prompt = quoted(question.filter(short).unwrap_or(PROMPT));
    text + &format!("Ask it with\n  {} {model} prompt={prompt}", other_program("generate"))
}

/// `: FOLDER`, where that step's checkpoint is still there.
fn checkpoint_of(step: u64, newest: &Saved) -> String {
    let folder = newest.path.parent().unwrap_or(Path::new("."));
    let all = run::checkpoints(folder).unwrap_or_default();
    let found = all.into_iter().find(|saved| saved.step == step);
    found.map_or_else(String::new, |saved| format!(": {}", saved.path.display()))
}

/// Why a run ends early.
pub(super) fn early_words(config: &EarlyStoppingConfig, end: &EarlyEnd) -> String {
    let EarlyStoppingConfig { monitor, patience, min_delta } = config;
    let times = if *patience == 1 { "once".to_owned() } else { format!("{patience} times in a row") };
    let by = if *min_delta > 0.0 { format!(" by more than {min_delta}") } else { String::new() };
    match end.best {
        Some((step, value)) => {
            format!(
                "up to step {}, {monitor} was no better{by} {times} than the {value:.4} after step {step}",
                end.last.0
            )
        }
        None => format!("up to step {}, {monitor} was no number {times}", end.last.0),
    }
}

/// That early stopping has ended the run, and how it goes on nevertheless.
pub(super) fn stopped_before(saved: &Saved) -> String {
    format!(
        "Early stopping has ended this run after step {}. To train on, raise early_stopping.patience, or set early_stopping=null",
        saved.step
    )
}

/// That there is nothing left to train, and what can be done. `start` is the key that a new run begins from.
pub fn already_complete(saved: &Saved, start: &str) -> String {
    format!(
        "This run is already complete: {} done. To train more, begin another one from its result: \
         {start}={}, another output_dir and resume_from_checkpoint=false",
        match saved.step {
            1 => "its one step is".to_owned(),
            steps => format!("all of its {steps} steps are"),
        },
        quoted(&saved.path)
    )
}

//! What is said at the end of a run, and of one that is there already.

use std::path::Path;

use tune_config::cli::{other_program, quoted};

use super::Validations;
use crate::checkpoint::run::{self, Saved};

/// A prompt, where the run has no question of its own.
const PROMPT: &str = "Hello!";
/// Characters of a question that still fits into a command.
const SHORT: usize = 80;

/// Where the result is, how good it was, and the command that asks it. `base` is the model that an adapter is for;
/// `question` is one that the run knows.
pub fn end_of_run(saved: &Saved, base: Option<&Path>, validations: &Validations, question: Option<&str>) -> String {
    let what = if base.is_some() { "Adapter" } else { "Model" };
    let mut text = format!("{what} saved to {}\n", saved.path.display());
    let merged = saved.path.join(super::weights::MERGED);
    if merged.is_dir() {
        text += &format!("Merged model saved to {}\n", merged.display());
    }
    if let (Some((step, loss)), Some((best_step, best))) = (validations.last, validations.best) {
        text += &format!("Validation loss {loss:.4} after step {step}");
        if best_step != step {
            text += &format!("; the best was {best:.4} after step {best_step}{}", checkpoint_of(best_step, saved));
        }
        text += "\n";
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

/// That there is nothing left to train, and what can be done. `start` is the key that a new run begins from.
pub fn already_complete(saved: &Saved, start: &str) -> String {
    format!(
        "This run is already complete: all of its {} steps are done. To train more, begin another one from its result: \
         {start}={}, another output_dir and resume_from_checkpoint=false",
        saved.step,
        quoted(&saved.path)
    )
}

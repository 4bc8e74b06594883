//! What says which model is best, and when a run has learnt enough: whether a config's answers can be right.

use super::{EarlyStoppingConfig, Outline, Position, VAL_LOSS};
use crate::eval::{Answers, Evaluation, ExactMatch};
use crate::memory_plan::Asked;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, words};

/// Steps of a run that are gone through to count its measurements; a longer run is taken to have enough.
const MOST_STEPS: u64 = 1 << 22;

impl Outline {
    /// The tasks and samples of the config, read, for a model that reads up to `longest` tokens.
    ///
    /// # Errors
    /// As [`Evaluation::open`], and where what early stopping or the choice of the best checkpoint watches is never measured.
    pub fn evaluation(&self, tokenizer: &Tokenizer, longest: usize) -> Result<Evaluation> {
        let keys = &self.evaluation;
        let evaluation = Evaluation::open(&keys.evaluation, keys.samples.as_ref(), tokenizer, longest)?;
        if let Some(every) = keys.run_eval_every_n_steps.filter(|_| evaluation.is_empty()) {
            return Err(Error::setup(format!(
                "run_eval_every_n_steps is {every}, and there is nothing to evaluate: set evaluation or samples, too, or \
                 leave it out"
            )));
        }
        if let Some(EarlyStoppingConfig { monitor, .. }) = &keys.early_stopping {
            self.check_measured("early_stopping.monitor", monitor, &evaluation)?;
        }
        if self.run.checkpointer.keep_best {
            let name = self.best_by();
            if name == VAL_LOSS && self.data.dataset_val.is_empty() {
                return Err(Error::setup(
                    "checkpointer.keep_best keeps the checkpoint with the lowest validation loss: set dataset_val, too, or \
                     let another metric say it (checkpointer.best_by), or set checkpointer.keep_best=false",
                ));
            }
            self.check_measured("checkpointer.best_by", name, &evaluation)?;
        }
        Ok(evaluation)
    }

    /// The metric that says which checkpoint is the best.
    pub fn best_by(&self) -> &str {
        let monitor = self.evaluation.early_stopping.as_ref().map(|config| config.monitor.as_str());
        self.run.checkpointer.best_by.as_deref().or(monitor).unwrap_or(VAL_LOSS)
    }

    /// Refuses what is never measured.
    fn check_measured(&self, key: &str, name: &str, evaluation: &Evaluation) -> Result<()> {
        let of_validation = || self.validated.iter().copied();
        let mut measured = evaluation.metrics();
        if !self.data.dataset_val.is_empty() {
            measured.extend(of_validation().map(str::to_owned));
        }
        if measured.iter().any(|known| known == name) {
            return Ok(());
        }
        let why = match of_validation().any(|known| known == name) {
            true => "is never measured: there is no dataset_val".to_owned(),
            false => evaluation.why_not(name),
        };
        let what = match measured.is_empty() {
            true => "Nothing is measured yet: set dataset_val, or evaluation".to_owned(),
            false => format!("What is measured: {}", measured.join(", ")),
        };
        Err(Error::setup(format!("{key}: `{name}` {why}. {what}")))
    }

    /// Whether a metric comes of the validation data, and not of tasks.
    fn is_of_validation(&self, name: &str) -> bool {
        self.validated.contains(&name)
    }

    /// Whether a run that is here validates, or evaluates if `tasks`, where there is something to do it on.
    pub(super) fn measures(&self, position: Position, tasks: bool) -> bool {
        let every = match tasks {
            true => self.evaluation.run_eval_every_n_steps,
            false => self.data.run_val_every_n_steps,
        };
        let checkpointer = &self.run.checkpointer;
        let at_saves = checkpointer.keep_best && self.is_of_validation(self.best_by()) != tasks;
        position.measures(every, at_saves, checkpointer)
    }

    /// Settings of early stopping and of the best checkpoint that have no effect. `batches` are those of an epoch, if they are known.
    pub(super) fn selection_warnings(&self, batches: Option<usize>) -> Vec<String> {
        let mut warnings = Vec::new();
        let checkpointer = &self.run.checkpointer;
        if checkpointer.keep_best && checkpointer.keep_last_n_checkpoints.is_none() {
            warnings.push(
                "checkpointer.keep_best has no effect: every checkpoint is kept, because \
                 checkpointer.keep_last_n_checkpoints is not set"
                    .to_owned(),
            );
        }
        if let (Some(name), false) = (&checkpointer.best_by, checkpointer.keep_best) {
            warnings.push(format!(
                "checkpointer.best_by is {name}, and has no effect: set checkpointer.keep_best=true to keep the best checkpoint"
            ));
        }
        warnings.extend(batches.and_then(|batches| self.too_patient(batches)));
        warnings
    }

    /// Early stopping that cannot end the run, because there are too few measurements.
    fn too_patient(&self, batches: usize) -> Option<String> {
        let EarlyStoppingConfig { monitor, patience, .. } = self.evaluation.early_stopping.as_ref()?;
        let plan = self.plan();
        let (total, each) = (plan.total_steps(batches), plan.steps_per_epoch(batches));
        if total == 0 || total > MOST_STEPS {
            return None;
        }
        let of_validation = self.is_of_validation(monitor);
        // After the last step there is nothing left to end.
        let position = |step| Position { step, epoch: step / each, batches_in_epoch: usize::from(step % each != 0) };
        let count = (1..total).filter(|&step| self.measures(position(step), !of_validation)).count() as u64;
        let key = if of_validation { "run_val_every_n_steps" } else { "run_eval_every_n_steps" };
        (count <= *patience).then(|| {
            format!(
                "early_stopping cannot end this run: {monitor} is measured {} before the last of its {}, and early_stopping.patience is {patience}; set a smaller {key} or \
                 a smaller early_stopping.patience",
                words::count(count, "time"),
                words::count(total, "step")
            )
        })
    }

    /// What the model is asked in the course of a run, as far as it decides how much memory that takes.
    pub(crate) fn asked(&self, evaluation: Option<&Evaluation>, exact_match: Option<&ExactMatch>) -> Asked {
        let (texts, mut answers) = evaluation.map(Evaluation::demanding).unwrap_or_default();
        answers.extend(exact_match.and_then(ExactMatch::demanding));
        // Those with the most tokens, and those with the longest prompts.
        let largest = answers.iter().max_by_key(|answers| answers.tokens()).cloned();
        let longest = answers.iter().max_by_key(|answers| answers.prompts.iter().sum::<usize>()).cloned();
        let mut answers: Vec<Answers> = largest.into_iter().chain(longest).collect();
        answers.dedup();
        Asked { texts: texts.into_iter().max_by_key(|batch| batch.len).into_iter().collect(), answers }
    }
}

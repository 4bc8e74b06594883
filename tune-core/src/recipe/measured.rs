//! What was measured in the course of a run, what was best, and whether it goes on getting better.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tune_config::Config;

use crate::checkpoint::state::TrainingState;
use crate::eval;
use crate::metrics::VAL_LOSS;

/// In front of the names of what else a recipe finds there.
const VALIDATION: &str = "val_";
/// What preference optimization finds on its validation data, of which more is better.
const OF_PREFERENCES: [&str; 2] = ["val_rewards/accuracies", "val_rewards/margins"];

/// The end of a run where a metric no longer gets better.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct EarlyStoppingConfig {
    /// What is watched: `val_loss`, or a task and its metric, such as `held_out/exact_match`. Whether more of it is better follows from the metric.
    #[config(default = "val_loss")]
    pub monitor: String,
    /// End the run when N measurements in a row were no better than the best before them.
    #[config(default = 3, range = 1..)]
    pub patience: u64,
    /// What is better by no more than this counts as no better.
    #[config(default = 0.0, range = 0.0..)]
    pub min_delta: f64,
}

/// Whether more of what bears this name is better; `None` where nothing that says which model is better is called so.
pub fn more_is_better(name: &str) -> Option<bool> {
    match name {
        VAL_LOSS => Some(false),
        _ if OF_PREFERENCES.contains(&name) => Some(true),
        _ => eval::more_is_better(name.rsplit_once('/')?.1),
    }
}

/// What a checkpoint calls what was measured before it.
const MEASURED: &str = "measured";

/// A number that was measured, and the step after which it was.
pub type At = (u64, f64);

/// What was measured so far. Checkpoints remember it, so that a run that is resumed has the same best and the same patience.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// The step after which the model was last validated, and that of the last evaluation.
    validated: Option<u64>,
    evaluated: Option<u64>,
    /// By names, in the order of steps.
    values: BTreeMap<String, Vec<At>>,
}

/// Why a run ends before its last step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyEnd {
    /// The measurement that was one too many.
    pub last: At,
    /// The best one, from which patience is counted; `None` where none was a number.
    pub best: Option<At>,
}

impl Measured {
    /// That of the run that a state was saved in.
    pub fn of(state: &TrainingState) -> Self {
        state.extra.get(MEASURED).map_or_else(Self::default, Self::from_json)
    }

    /// The validation after a step: the loss, and what else the recipe found.
    pub(super) fn validation<'a>(&mut self, step: u64, loss: f64, more: impl Iterator<Item = (&'a str, f64)>) {
        self.validated = Some(step);
        self.add(VAL_LOSS, (step, loss));
        for (name, value) in more.map(|(name, value)| (format!("{VALIDATION}{name}"), value)) {
            if more_is_better(&name).is_some() {
                self.add(&name, (step, value));
            }
        }
    }

    /// The evaluation after a step.
    pub(super) fn evaluation(&mut self, step: u64, values: &[(String, f64)]) {
        self.evaluated = Some(step);
        values.iter().for_each(|(name, value)| self.add(name, (step, *value)));
    }

    fn add(&mut self, name: &str, at: At) {
        self.values.entry(name.to_owned()).or_default().push(at);
    }

    /// Whether the model was validated after this step.
    pub fn is_validated(&self, step: u64) -> bool {
        self.validated == Some(step)
    }

    /// Whether it was evaluated after this step.
    pub fn is_evaluated(&self, step: u64) -> bool {
        self.evaluated == Some(step)
    }

    /// The names of what was measured.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The measurements of one name, those of the untrained model left out.
    fn trained(&self, name: &str) -> impl Iterator<Item = At> {
        self.values.get(name).into_iter().flatten().copied().filter(|(step, _)| *step > 0)
    }

    /// The last measurement.
    pub fn last(&self, name: &str) -> Option<At> {
        self.values.get(name)?.last().copied()
    }

    /// The best measurement after any step; of equals, the first. What is not a number is no better than anything.
    pub fn best(&self, name: &str) -> Option<At> {
        self.best_of(name, |_| true)
    }

    /// The same of some steps.
    pub(super) fn best_of(&self, name: &str, is_meant: impl Fn(u64) -> bool) -> Option<At> {
        let more = more_is_better(name)?;
        let meant = self.trained(name).filter(|(step, value)| is_meant(*step) && !value.is_nan());
        meant.fold(None, |best, at| match best {
            Some((_, value)) if !is_better(more, at.1, value, 0.0) => best,
            _ => Some(at),
        })
    }

    /// The end of the run by what was measured, if it has come.
    pub fn early_end(&self, config: &EarlyStoppingConfig) -> Option<EarlyEnd> {
        let more = more_is_better(&config.monitor)?;
        let (mut best, mut no_better): (Option<At>, u64) = (None, 0);
        for last in self.trained(&config.monitor) {
            let is_better = match best {
                Some((_, value)) => is_better(more, last.1, value, config.min_delta),
                None => !last.1.is_nan(),
            };
            (best, no_better) = if is_better { (Some(last), 0) } else { (best, no_better + 1) };
            if no_better >= config.patience {
                return Some(EarlyEnd { last, best });
            }
        }
        None
    }

    /// For [`TrainingState::extra`].
    pub(super) fn extra(&self) -> (String, Json) {
        let values: BTreeMap<&String, Json> = self.values.iter().map(|(name, all)| (name, json!(all))).collect();
        let json = json!({ "validated": self.validated, "evaluated": self.evaluated, "values": values });
        (MEASURED.to_owned(), json)
    }

    fn from_json(json: &Json) -> Self {
        let step = |key: &str| json.get(key).and_then(Json::as_u64);
        // JSON writes what is not a number as null.
        let at = |pair: &Json| Some((pair.get(0)?.as_u64()?, pair.get(1)?.as_f64().unwrap_or(f64::NAN)));
        let all = |list: &Json| list.as_array().into_iter().flatten().filter_map(at).collect();
        let values = json.get("values").and_then(Json::as_object).into_iter().flatten();
        Self {
            validated: step("validated"),
            evaluated: step("evaluated"),
            values: values.map(|(name, list)| (name.clone(), all(list))).collect(),
        }
    }
}

/// Whether a number is better than another by more than `delta`.
fn is_better(more: bool, value: f64, other: f64, delta: f64) -> bool {
    if more { value > other + delta } else { value < other - delta }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(values: &[f64]) -> Measured {
        let mut measured = Measured::default();
        for (i, loss) in values.iter().enumerate() {
            measured.validation(10 * i as u64, *loss, std::iter::empty());
        }
        measured
    }

    fn patient(monitor: &str, patience: u64, min_delta: f64) -> EarlyStoppingConfig {
        EarlyStoppingConfig { monitor: monitor.to_owned(), patience, min_delta }
    }

    #[test]
    fn patience_is_counted_from_the_best() {
        // The untrained model's does not count, however good.
        let measured = losses(&[0.1, 3.0, 2.0, 2.5, 1.9, 2.0, 2.0, 1.0]);
        let end = |patience, delta| measured.early_end(&patient(VAL_LOSS, patience, delta));
        assert_eq!(end(1, 0.0), Some(EarlyEnd { last: (30, 2.5), best: Some((20, 2.0)) }));
        assert_eq!(end(2, 0.0), Some(EarlyEnd { last: (60, 2.0), best: Some((40, 1.9)) }));
        assert_eq!(end(3, 0.0), None);
        // 1.9 is better than 2.0, but by no more than a half.
        assert_eq!(end(4, 0.5), Some(EarlyEnd { last: (60, 2.0), best: Some((20, 2.0)) }));
        assert_eq!(measured.best(VAL_LOSS), Some((70, 1.0)));
        assert_eq!(measured.best_of(VAL_LOSS, |step| step <= 50), Some((40, 1.9)));
        assert_eq!(measured.last(VAL_LOSS), Some((70, 1.0)));
        assert_eq!(measured.early_end(&patient("other/exact_match", 1, 0.0)), None);
    }

    #[test]
    fn of_a_share_more_is_better_and_the_first_of_equals_is_the_best() {
        let mut measured = Measured::default();
        for (step, share) in [(0, 0.9), (1, 0.2), (2, 0.5), (3, 0.5), (4, f64::NAN), (5, 0.4)] {
            measured.evaluation(step, &[("q/exact_match".to_owned(), share), ("q/perplexity".to_owned(), 1.0 - share)]);
        }
        assert_eq!(measured.best("q/exact_match"), Some((2, 0.5)));
        assert_eq!(measured.best("q/perplexity"), Some((2, 0.5)));
        let end = measured.early_end(&patient("q/exact_match", 3, 0.0)).unwrap();
        assert_eq!((end.last, end.best), ((5, 0.4), Some((2, 0.5))));
        assert_eq!(measured.best("q/unknown"), None);
    }

    #[test]
    fn what_is_never_a_number_ends_a_run_too() {
        let measured = losses(&[1.0, f64::NAN, f64::NAN]);
        let end = measured.early_end(&patient(VAL_LOSS, 2, 0.0)).unwrap();
        assert_eq!((end.last.0, end.best), (20, None));
        assert_eq!(measured.best(VAL_LOSS), None);
    }

    #[test]
    fn a_checkpoint_remembers_all_of_it() {
        let mut measured = losses(&[1.5, 0.1 + 0.2]);
        measured.evaluation(10, &[("q/regex".to_owned(), f64::NAN)]);
        let more = [("rewards/margins", 0.25), ("log_probs/chosen", -3.0)];
        measured.validation(20, 1.0, more.into_iter());
        let (name, json) = measured.extra();
        let text = json.to_string();
        let state =
            TrainingState { extra: [(name, serde_json::from_str(&text).unwrap())].into(), ..Default::default() };
        let again = Measured::of(&state);
        assert!(again.is_validated(20) && again.is_evaluated(10) && !again.is_evaluated(20));
        assert_eq!(again.names().collect::<Vec<_>>(), ["q/regex", "val_loss", "val_rewards/margins"]);
        assert_eq!(again.extra().1.to_string(), text);
        assert_eq!(again.best(VAL_LOSS), Some((10, 0.1 + 0.2)));
        assert_eq!(Measured::of(&TrainingState::default()), Measured::default());
    }
}

//! What a run measures between its steps: the loss on the validation data, the config's tasks, and whether it is to end early by these.

use std::time::Instant;

use super::Run;
use crate::checkpoint::run::way_on;
use crate::eval::Measuring;
use crate::metrics::{EvaluationMetrics, Extra, MetricLogger, Pace, ValidationMetrics};
use crate::models::Decoder;
use crate::recipe::end::early_words;
use crate::recipe::{EarlyEnd, Plan, Position, Steps, check_stop, dropout_key};
use crate::{Error, Result, engine};

impl Run {
    /// Validates and evaluates the model where that is due now; says whether it was.
    ///
    /// # Errors
    /// As [`Run::validate`] and [`Run::evaluate`].
    pub fn measure(&mut self, model: &Decoder) -> Result<bool> {
        let (validates, evaluates) = (self.validates(), self.evaluates());
        if validates || evaluates {
            self.settle()?;
        }
        if validates {
            self.validate(model)?;
        }
        if evaluates {
            self.evaluate(model)?;
        }
        Ok(validates || evaluates)
    }

    /// Whether the model is to be validated now, where it is not yet.
    pub fn validates(&self) -> bool {
        self.validation_data.is_some()
            && self.outline.measures(self.position, false)
            && !self.measured.is_validated(self.position.step)
    }

    /// The loss on the validation data.
    ///
    /// # Errors
    /// A record that cannot be tokenized, a log that cannot be written;
    /// [`Error::Stopped`](crate::Error::Stopped) where the run is asked to end meanwhile.
    pub fn validate(&mut self, model: &Decoder) -> Result<()> {
        let Some(steps) = self.validation_steps()? else { return Ok(()) };
        let (mut sum, mut pace) = (0.0, Pace::default());
        for step in steps {
            let step = step?;
            for batch in &step.batches {
                sum += engine::evaluate(model, batch)?;
            }
            pace += step.pace();
        }
        self.finish_validation(sum / pace.trained_tokens as f64, pace, Vec::new())
    }

    /// The validation data once, of which each process that trains here gets its share; `None` where there is none.
    ///
    /// # Errors
    /// As [`Steps::ahead`].
    pub fn validation_steps(&self) -> Result<Option<Steps>> {
        let group = &self.outline.group;
        let plan = Plan::ONE_PASS.of_all(group.world_size());
        let steps = |data| Steps::of_rank(data, plan, Position::default(), group);
        self.validation_data.as_ref().map(steps).transpose()
    }

    /// A validation is done: it is logged, with numbers of the recipe's own, and remembered for the choice of the best
    /// checkpoint and for early stopping.
    ///
    /// # Errors
    /// A log that cannot be written.
    pub fn finish_validation(&mut self, loss: f64, pace: Pace, extra: Vec<Extra>) -> Result<()> {
        let (step, epoch) = (self.position.step, self.position.epoch_of_last_step());
        let stopped = self.early_end().is_some();
        self.measured.validation(step, loss, extra.iter().map(|extra| (extra.name, extra.value)));
        self.metrics.log_validation(&ValidationMetrics { step, epoch, loss, extra, pace })?;
        self.tell_of_early_end(stopped)
    }

    /// Whether the model is to be evaluated now, where it is not yet.
    pub fn evaluates(&self) -> bool {
        !self.evaluation.is_empty()
            && self.outline.measures(self.position, true)
            && !self.measured.is_evaluated(self.position.step)
    }

    /// Measures the model on the config's tasks and shows its samples. Where several processes train together, all do so.
    ///
    /// # Errors
    /// A program that judges and fails, a log that cannot be written; [`Error::Stopped`] where the run is asked to end meanwhile.
    pub fn evaluate(&mut self, model: &Decoder) -> Result<()> {
        let (step, epoch, begun) = (self.position.step, self.position.epoch_of_last_step(), Instant::now());
        let stopped = self.early_end().is_some();
        let is_single = self.outline.group.is_single();
        // Of several processes none goes away while the others go on.
        let go_on = || if is_single { check_stop() } else { Ok(()) };
        let how = Measuring { group: &self.outline.group, seed: dropout_key(self.seed, step, 0), go_on: &go_on };
        let found = self.evaluation.measure(model, &self.tokenizer, &how).map_err(|error| match error {
            Error::Setup(message) if step > 0 => {
                Error::Training(format!("{message}\n{}", way_on(&self.outline.run.output_dir, "set that right")))
            }
            error => error,
        })?;
        self.measured.evaluation(step, &found.values);
        let seconds = begun.elapsed().as_secs_f64();
        let (values, samples) = (found.values, found.samples);
        self.metrics.log_evaluation(&EvaluationMetrics { step, epoch, values, samples, seconds })?;
        self.tell_of_early_end(stopped)
    }

    /// Whether the run is to end here, before its last step, because what early stopping watches no longer gets better. It is
    /// to be saved first: [`Run::saves`] says so, too.
    pub fn stops_early(&self) -> bool {
        self.early_end().is_some()
    }

    pub(super) fn early_end(&self) -> Option<EarlyEnd> {
        let config = self.outline.evaluation.early_stopping.as_ref()?;
        // At its end a run ends anyway.
        let is_over = self.position.step > 0 && self.position.epoch >= self.outline.plan().epochs;
        self.measured.early_end(config).filter(|_| !is_over)
    }

    /// Where it was `stopped` before, it has been said.
    fn tell_of_early_end(&mut self, stopped: bool) -> Result<()> {
        match (self.early_end(), &self.outline.evaluation.early_stopping) {
            (Some(end), Some(config)) if !stopped => {
                let why = early_words(config, &end);
                self.metrics.log_note(self.position.step, &format!("early stopping: {why}"))
            }
            _ => Ok(()),
        }
    }
}

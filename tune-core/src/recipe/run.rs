//! A run that has begun: its data, its folder, its logs, and where it is.

mod measuring;
mod saving;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value as Json;

use super::background::Background;
use super::end::{Ending, early_words};
use super::{
    Measured, Outline, Position, Step, Steps, Trained, are_finite, check_finite, check_stop, end_of_run, samples, steps,
};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::run::{RunDir, Saved};
use crate::data::Loader;
use crate::distributed::{Group, Mesh};
use crate::eval::{Evaluation, ExactMatch};
use crate::metrics::{Console, Extra, MetricLogger, Metrics, Pace, StepMetrics, peak_memory};
use crate::models::ModelSpec;
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use crate::{Later, Result};

/// What goes on around the steps of a training run. It holds neither the model nor the optimizer and decides nothing about
/// a step: the recipe's loop does, and hands the model over where it is needed, to be validated or saved.
pub struct Run {
    pub(super) outline: Outline,
    /// Where this process writes checkpoints, if it does.
    pub(super) run_dir: Option<Arc<RunDir>>,
    pub(super) mesh: Mesh,
    pub(super) metrics: Metrics,
    pub(super) base: Arc<Checkpoint>,
    pub(super) weight_fingerprints: BTreeMap<String, u32>,
    pub(super) shape: ModelSpec,
    pub(super) tokenizer: Tokenizer,
    pub(super) tokenizer_files: Arc<TokenizerFiles>,
    pub(super) train_data: Arc<Loader>,
    pub(super) validation_data: Option<Arc<Loader>>,
    pub(super) exact_match: Option<ExactMatch>,
    pub(super) evaluation: Evaluation,
    pub(super) seed: u64,
    pub(super) position: Position,
    pub(super) measured: Measured,
    pub(super) last_saved: Option<Saved>,
    /// The newest step, where its numbers are not read yet.
    pub(super) unread: Option<Unread>,
    /// When such numbers were read last.
    pub(super) settled: Option<Instant>,
    /// The checkpoint that is being written while training goes on.
    pub(super) background: Option<Background>,
    /// Whether what is saved now is saved before anything else is done.
    pub(super) is_ending: Cell<bool>,
    /// What the recipe itself remembers, by name: checkpoints have it, and it is here again in a run that is resumed.
    pub extra: BTreeMap<String, Json>,
}

/// A step that is taken, and whose loss and gradient's norm a card may still be computing.
pub(super) struct Unread {
    step: u64,
    epoch: u64,
    /// Where its samples are from.
    samples: String,
    loss: Later,
    grad_norm: Later,
    lr: f64,
    extra: Vec<Extra>,
    pace: Pace,
    begun: Instant,
}

/// A run that ends by an error has logged all of its steps.
impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.settle();
    }
}

impl Run {
    /// The steps that are left, and the beginning of the progress bar. From here on, Ctrl-C and SIGTERM make the next step
    /// an error, for [`Recipe::save_early`](super::Recipe::save_early). None are left of a run that early stopping has ended.
    ///
    /// # Errors
    /// As [`Steps::ahead`].
    pub fn steps(&mut self) -> Result<Steps> {
        let plan = self.outline.plan();
        self.metrics.begin(self.position.step, self.train_data.known_len().map(|n| plan.total_steps(n)));
        let from = match self.stops_early() {
            true => Position { epoch: plan.epochs, batches_in_epoch: 0, ..self.position },
            false => self.position,
        };
        Steps::of_rank(&self.train_data, plan, from, &self.outline.group)
    }

    /// Steps of the whole run. Waits until all data is tokenized.
    ///
    /// # Errors
    /// A record that cannot be tokenized; [`Error::Stopped`](crate::Error::Stopped) where the run is asked to end
    /// meanwhile.
    pub fn total_steps(&self) -> Result<u64> {
        while !self.train_data.wait(steps::PATIENCE)? {
            check_stop()?;
        }
        Ok(self.outline.plan().total_steps(self.train_data.len()?))
    }

    /// A step is done: the run is behind it, and it is logged. `loss` is the mean over the step's trained tokens, in nats,
    /// `grad_norm` the gradient's norm before clipping.
    ///
    /// # Errors
    /// A log that cannot be written.
    pub fn finish(&mut self, step: &Step, loss: f64, lr: f64, grad_norm: Option<f64>) -> Result<()> {
        self.finish_with(step, loss, lr, grad_norm, Vec::new())
    }

    /// The same with numbers of the recipe's own; `loss` is what it minimizes.
    ///
    /// # Errors
    /// As [`Run::finish`].
    pub fn finish_with(
        &mut self,
        step: &Step,
        loss: f64,
        lr: f64,
        grad_norm: Option<f64>,
        extra: Vec<Extra>,
    ) -> Result<()> {
        self.finish_paced(step, loss, lr, grad_norm, extra, step.pace())
    }

    /// The same of a step that trained on other batches than its own, of which `pace` tells.
    ///
    /// # Errors
    /// As [`Run::finish`].
    pub fn finish_paced(
        &mut self,
        step: &Step,
        loss: f64,
        lr: f64,
        grad_norm: Option<f64>,
        mut extra: Vec<Extra>,
        pace: Pace,
    ) -> Result<()> {
        extra.extend(step.communication());
        self.settle()?;
        if self.background.as_ref().is_some_and(Background::is_over) {
            self.finish_saving()?;
        }
        self.position = Position::after(step);
        self.metrics.log_step(&StepMetrics {
            step: step.number,
            epoch: step.epoch,
            loss,
            lr,
            grad_norm,
            extra,
            pace,
            peak_memory_bytes: peak_memory(),
        })?;
        self.tell_of_data()
    }

    /// Stops a run whose loss or gradient is known to be no number, before its step is taken. What is not known yet is looked at when it
    /// is read, before anything is saved.
    ///
    /// # Errors
    /// As [`check_finite`](super::check_finite).
    pub fn check_known(&self, step: &Step, loss: &Later, grad_norm: &Later) -> Result<()> {
        let [loss, grad_norm] = [loss, grad_norm].map(|number| number.known().unwrap_or(0.0));
        check_finite(step, loss, grad_norm, self.last_saved())
    }

    /// [`Run::finish`] for a step whose numbers a card may still be computing: they are read and logged when the next step is under way, or
    /// when the model is measured or saved.
    ///
    /// # Errors
    /// A log that cannot be written; a loss or a gradient of the step before that is no number, and what failed on the card.
    pub fn finish_later(&mut self, step: &Step, loss: Later, lr: f64, grad_norm: Later) -> Result<()> {
        if let (Some(loss), Some(grad_norm)) = (loss.known(), grad_norm.known()) {
            return self.finish(step, loss, lr, Some(grad_norm));
        }
        self.settle()?;
        if self.background.as_ref().is_some_and(Background::is_over) {
            self.finish_saving()?;
        }
        self.position = Position::after(step);
        let (number, epoch, samples, pace, begun) = (step.number, step.epoch, samples(step), step.pace(), step.begun());
        let extra = step.communication();
        self.unread = Some(Unread { step: number, epoch, samples, loss, grad_norm, lr, extra, pace, begun });
        self.tell_of_data()
    }

    /// Reads the numbers of the newest step, if nobody has yet, and logs them.
    ///
    /// # Errors
    /// As [`Run::finish_later`].
    pub fn settle(&mut self) -> Result<()> {
        let Some(Unread { step, epoch, samples, loss, grad_norm, lr, extra, pace, begun }) = self.unread.take() else {
            return Ok(());
        };
        let (loss, grad_norm) = (loss.wait()?, grad_norm.wait()?);
        are_finite(step, &samples, (loss, grad_norm), self.last_saved())?;
        // The step was queued while the one before was computed: its own time is that since the other's end.
        let now = Instant::now();
        let seconds = now.duration_since(self.settled.map_or(begun, |settled| settled.max(begun))).as_secs_f64();
        self.settled = Some(now);
        let pace = Pace { seconds, ..pace };
        self.metrics.log_step(&StepMetrics {
            step,
            epoch,
            loss,
            lr,
            grad_norm: Some(grad_norm),
            extra,
            pace,
            peak_memory_bytes: peak_memory(),
        })
    }

    /// Says what is known of large data once all of it is tokenized, some steps after the beginning.
    fn tell_of_data(&mut self) -> Result<()> {
        let longest = self.shape.max_position_embeddings;
        let mut news = self.train_data.news(longest);
        if !news.is_empty() {
            let total = self.total_steps()?;
            self.console().set_total(total);
            let warnings = self.outline.schedule_warnings(self.train_data.known_len());
            news.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
        }
        news.extend(self.validation_data.iter().flat_map(|data| data.news(longest)));
        news.iter().for_each(|line| self.console().note(line));
        Ok(())
    }

    /// Closes the logs, and waits until all processes of the run have come to its end.
    ///
    /// # Errors
    /// A checkpoint that could not be written, a log that cannot be written to its end, and another process that is gone.
    pub fn close(&mut self) -> Result<()> {
        self.settle()?;
        self.finish_saving()?;
        self.metrics.close()?;
        self.outline.group.finish()
    }

    /// Where the result is, how good it is, and the command that asks it, with a `question` that is known to the run; `None`
    /// where nothing was saved.
    pub fn results(&self, question: Option<&str>) -> Option<String> {
        let base = match self.outline.trained {
            Trained::Adapters { .. } => Some(self.base.path()),
            Trained::Weights => None,
        };
        let early = self.outline.evaluation.early_stopping.as_ref().zip(self.early_end());
        let early = early.map(|(config, end)| early_words(config, &end));
        let ending = Ending {
            measured: &self.measured,
            best_by: self.outline.best_by(),
            early: early.as_deref(),
            scores: self.outline.head.is_some(),
        };
        self.last_saved.as_ref().map(|saved| end_of_run(saved, base, &ending, question))
    }

    /// What was measured so far.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Where the run is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Who trains together.
    pub fn group(&self) -> &Group {
        &self.outline.group
    }

    /// Its folder.
    pub fn output_dir(&self) -> &Path {
        &self.outline.run.output_dir
    }

    /// The newest checkpoint of the run that is complete, as far as it has been seen.
    pub fn last_saved(&self) -> Option<&Saved> {
        self.last_saved.as_ref()
    }

    /// Where all randomness starts.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Text to tokens, as the data was made with it.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Questions that the model is asked, if there are any.
    pub fn exact_match(&self) -> Option<&ExactMatch> {
        self.exact_match.as_ref()
    }

    /// The training data in batches.
    pub fn train_data(&self) -> &Arc<Loader> {
        &self.train_data
    }

    /// The validation data in batches, if there is any.
    pub fn validation_data(&self) -> Option<&Arc<Loader>> {
        self.validation_data.as_ref()
    }

    /// Where the run's metrics go; a recipe may [add](Metrics::add) a place.
    pub fn metrics(&mut self) -> &mut Metrics {
        &mut self.metrics
    }

    /// For notes and warnings.
    pub fn console(&mut self) -> &mut Console {
        self.metrics.console()
    }
}

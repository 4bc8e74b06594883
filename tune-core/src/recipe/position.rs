//! The arithmetic of a run: steps, epochs, and what is due where.

use crate::checkpoint::CheckpointConfig;
pub use crate::checkpoint::state::Position;
use crate::metrics;

use super::Step;

impl Position {
    /// Where a run is once a step is done.
    #[must_use]
    pub fn after(step: &Step) -> Self {
        let (epoch, batches_in_epoch) = match step.ends_epoch {
            true => (step.epoch + 1, 0),
            false => (step.epoch, step.batches_in_epoch),
        };
        Self { step: step.number, epoch, batches_in_epoch }
    }

    /// Whether a run saves here: at the end of each epoch, and every `save_every_n_steps` steps.
    pub fn saves(&self, config: &CheckpointConfig) -> bool {
        self.step > 0 && (self.batches_in_epoch == 0 || every(config.save_every_n_steps, self.step))
    }

    /// Whether a model is measured here: before its first step, at the end of each epoch, after every `n` steps, and wherever the
    /// run saves if `at_saves`, as where it is to know the best of its checkpoints.
    pub fn measures(&self, n: Option<u64>, at_saves: bool, config: &CheckpointConfig) -> bool {
        self.batches_in_epoch == 0 || every(n, self.step) || (at_saves && self.saves(config))
    }

    /// Where logs begin.
    pub fn log_start(&self) -> metrics::Start {
        if self.step == 0 { metrics::Start::Fresh } else { metrics::Start::Resumed(self.step) }
    }
}

fn every(n: Option<u64>, step: u64) -> bool {
    n.is_some_and(|n| step.is_multiple_of(n))
}

/// How batches become steps and epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Batches whose gradients make one step; the last step of an epoch takes what is left.
    pub gradient_accumulation_steps: usize,
    /// Steps after which an epoch ends early.
    pub max_steps_per_epoch: Option<u64>,
    /// Passes over the data.
    pub epochs: u64,
}

impl Plan {
    /// Every batch once, each for itself: a pass over data that nothing is trained on.
    pub const ONE_PASS: Self = Self { gradient_accumulation_steps: 1, max_steps_per_epoch: None, epochs: 1 };

    /// The plan of some processes together, each of which takes the batches of this plan in a step.
    #[must_use]
    pub fn of_all(self, processes: usize) -> Self {
        Self { gradient_accumulation_steps: self.gradient_accumulation_steps.max(1).saturating_mul(processes), ..self }
    }

    /// Batches after which an epoch ends early.
    pub fn most_batches_per_epoch(&self) -> usize {
        let steps = self.max_steps_per_epoch.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        steps.saturating_mul(self.gradient_accumulation_steps.max(1))
    }

    /// Steps in an epoch whose data is this number of batches.
    pub fn steps_per_epoch(&self, batches: usize) -> u64 {
        batches.min(self.most_batches_per_epoch()).div_ceil(self.gradient_accumulation_steps.max(1)) as u64
    }

    /// Steps of the whole run.
    pub fn total_steps(&self, batches_per_epoch: usize) -> u64 {
        self.steps_per_epoch(batches_per_epoch).saturating_mul(self.epochs)
    }

    /// The steps in words, where the number of batches may not be known yet.
    pub(crate) fn describe(&self, batches_per_epoch: Option<usize>) -> String {
        match batches_per_epoch {
            Some(n) if self.epochs == 1 => format!("{} in one epoch", self.total_steps(n)),
            Some(n) => format!("{} in {} epochs of {}", self.total_steps(n), self.epochs, self.steps_per_epoch(n)),
            None if self.epochs == 1 => "one epoch; the steps are counted while training runs".to_owned(),
            None => format!("{} epochs; the steps are counted while training runs", self.epochs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_make_steps() {
        let plan = Plan { gradient_accumulation_steps: 4, max_steps_per_epoch: None, epochs: 3 };
        assert_eq!((plan.steps_per_epoch(10), plan.total_steps(10)), (3, 9));
        assert_eq!(Plan { max_steps_per_epoch: Some(1), ..plan }.total_steps(10), 3);
        assert_eq!(Plan { max_steps_per_epoch: Some(u64::MAX), ..plan }.total_steps(10), 9);
        // More steps than can be counted are no overflow.
        assert_eq!(Plan { epochs: u64::MAX, ..plan }.total_steps(10), u64::MAX);
    }
}

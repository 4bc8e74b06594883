//! The batches of the coming steps, put together ahead on a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tune_config::cli::signals::Listening;

use super::{Plan, Position, check_stop};
use crate::data::{Batch, Loader};
use crate::metrics::Pace;
use crate::{Error, Result};

/// What one optimizer step trains on.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number, from 1.
    pub number: u64,
    /// The step's micro-batches.
    pub batches: Vec<Batch>,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Batches of the epoch that are done after this step.
    pub batches_in_epoch: usize,
    /// Whether this is the epoch's last step.
    pub ends_epoch: bool,
    /// When it was asked for.
    begun: Instant,
}

impl Step {
    /// Of these micro-batches, in the middle of the first epoch.
    #[cfg(test)]
    pub(super) fn of(number: u64, batches: Vec<Batch>) -> Self {
        let batches_in_epoch = batches.len();
        Self { number, batches, epoch: 0, batches_in_epoch, ends_epoch: false, begun: Instant::now() }
    }

    /// Tokens whose next one is trained, in all micro-batches.
    pub fn trained_tokens(&self) -> usize {
        self.batches.iter().map(Batch::trained_tokens).sum()
    }

    /// Rows of all micro-batches: samples, packs of them, or pairs.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(|batch| batch.rows).sum()
    }

    /// Its tokens, and the time since it was asked for: waiting for data counts.
    pub fn pace(&self) -> Pace {
        Pace {
            tokens: self.batches.iter().map(|batch| batch.tokens() as u64).sum(),
            trained_tokens: self.trained_tokens() as u64,
            seconds: self.begun.elapsed().as_secs_f64(),
        }
    }
}

/// The steps of a run from a position on. The next one is put together while the last is trained on; where a
/// run is, is told by the steps that were taken from here.
///
/// While this lives, Ctrl-C and SIGTERM do not end the program: the next step is [`Error::Stopped`] then.
#[derive(Debug)]
pub struct Steps {
    receiver: Receiver<Result<Step>>,
    _listening: Listening,
}

/// How often a step that is waited for gives way to a signal.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

impl Steps {
    /// Begins to read.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn ahead(data: &Arc<Loader>, plan: Plan, from: Position) -> Result<Self> {
        // One lies ready and the next is in the making.
        let (sender, receiver) = sync_channel(1);
        let data = Arc::clone(data);
        let read = move || {
            if let Err(error) = send_steps(&data, plan, from, &sender) {
                let _ = sender.send(Err(error));
            }
        };
        std::thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(read)
            .map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        Ok(Self { receiver, _listening: Listening::begin() })
    }
}

impl Iterator for Steps {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        let begun = Instant::now();
        loop {
            if let Err(stopped) = check_stop() {
                return Some(Err(stopped));
            }
            match self.receiver.recv_timeout(PATIENCE) {
                Ok(step) => return Some(step.map(|step| Step { begun, ..step })),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Sends one step after the other until all are sent or nobody wants more.
fn send_steps(data: &Loader, plan: Plan, from: Position, sender: &SyncSender<Result<Step>>) -> Result<()> {
    let accumulated = plan.gradient_accumulation_steps.max(1);
    let mut number = from.step;
    for epoch in from.epoch..plan.epochs {
        let done = if epoch == from.epoch { from.batches_in_epoch } else { 0 };
        let all = data.epoch(epoch);
        let mut batches = all.batches(done).take(plan.most_batches_per_epoch().saturating_sub(done)).peekable();
        let mut done = done;
        while batches.peek().is_some() {
            let batches_of_step = batches.by_ref().take(accumulated).collect::<Result<Vec<Batch>>>()?;
            done += batches_of_step.len();
            number += 1;
            let step = Step {
                number,
                batches: batches_of_step,
                epoch,
                batches_in_epoch: done,
                ends_epoch: batches.peek().is_none(),
                begun: Instant::now(),
            };
            if sender.send(Ok(step)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{IGNORE, LoaderOptions, Sample};

    fn loader(samples: u32) -> Arc<Loader> {
        let sample = |i| Sample { input_ids: vec![i, i], targets: vec![i, IGNORE], origin: format!("d:{i}") };
        let options = LoaderOptions { batch_size: 2, shuffle: true, seed: 3, ..LoaderOptions::default() };
        Arc::new(Loader::new((0..samples).map(sample).collect(), options).unwrap())
    }

    fn steps(data: &Arc<Loader>, plan: Plan, from: Position) -> Vec<Step> {
        Steps::ahead(data, plan, from).unwrap().collect::<Result<_>>().unwrap()
    }

    const PLAN: Plan = Plan { gradient_accumulation_steps: 3, max_steps_per_epoch: None, epochs: 2 };

    #[test]
    fn the_last_step_of_an_epoch_takes_what_is_left() {
        let data = loader(16);
        let all = steps(&data, PLAN, Position::default());
        let shape = |s: &Step| (s.epoch, s.batches.len(), s.batches_in_epoch, s.ends_epoch);
        let shapes: Vec<_> = all.iter().map(shape).collect();
        let epoch = |e| [(e, 3, 3, false), (e, 3, 6, false), (e, 2, 8, true)];
        assert_eq!(shapes, [epoch(0), epoch(1)].concat());
        assert!(all.iter().map(|s| s.number).eq(1..=6));
        let batches: Vec<Batch> = all.iter().flat_map(|s| s.batches.clone()).collect();
        let expected: Result<Vec<Batch>> = (0..2).flat_map(|e| data.epoch(e).batches(0).collect::<Vec<_>>()).collect();
        assert_eq!(batches, expected.unwrap());
    }

    #[test]
    fn a_run_goes_on_behind_the_steps_that_were_taken() {
        let data = loader(16);
        let all = steps(&data, PLAN, Position::default());
        let same = |a: &Step, b: &Step| {
            (a.number, a.epoch, a.batches_in_epoch, a.ends_epoch, &a.batches)
                == (b.number, b.epoch, b.batches_in_epoch, b.ends_epoch, &b.batches)
        };
        for taken in 1..all.len() {
            let rest = steps(&data, PLAN, Position::after(&all[taken - 1]));
            assert!(rest.len() == all.len() - taken && rest.iter().zip(&all[taken..]).all(|(a, b)| same(a, b)));
        }
    }

    #[test]
    fn an_epoch_can_end_early() {
        let data = loader(16);
        let plan = Plan { max_steps_per_epoch: Some(2), ..PLAN };
        let ends: Vec<_> =
            steps(&data, plan, Position::default()).iter().map(|s| (s.batches_in_epoch, s.ends_epoch)).collect();
        assert_eq!(ends, [(3, false), (6, true), (3, false), (6, true)]);
    }

    #[test]
    fn who_stops_taking_stops_the_reading() {
        let data = loader(16);
        let mut steps = Steps::ahead(&data, PLAN, Position::default()).unwrap();
        steps.next().unwrap().unwrap();
        drop(steps);
        let begun = Instant::now();
        while Arc::strong_count(&data) > 1 {
            assert!(begun.elapsed().as_secs() < 60, "the thread still reads");
            std::thread::yield_now();
        }
    }
}

//! The batches of the coming steps, put together ahead on a thread of their own.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tune_config::cli::Exit;
use tune_config::cli::signals::Listening;

use super::{Plan, Position, check_stop};
use crate::data::{Batch, Loader};
use crate::distributed::{Group, Spent, others_failed};
use crate::metrics::{Extra, Pace};
use crate::{Error, Result};

/// What one optimizer step trains on.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number, from 1.
    pub number: u64,
    /// The step's micro-batches; where several processes train together, those of this one, and as many in each.
    pub batches: Vec<Batch>,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Batches of the epoch that are done after this step.
    pub batches_in_epoch: usize,
    /// Whether this is the epoch's last step.
    pub ends_epoch: bool,
    /// When it was asked for, and how long this process had communicated until then.
    begun: Instant,
    spent: Spent,
    /// Of all processes.
    counts: Counts,
    group: Group,
}

/// What all micro-batches of a step have.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    tokens: usize,
    trained_tokens: usize,
    rows: usize,
}

impl Counts {
    fn of(batches: &[Batch]) -> Self {
        Self {
            tokens: batches.iter().map(Batch::tokens).sum(),
            trained_tokens: batches.iter().map(Batch::trained_tokens).sum(),
            rows: batches.iter().map(|batch| batch.rows).sum(),
        }
    }
}

/// Of a step's micro-batches those of a process: the first, and each that is a multiple of their number behind it. Processes
/// that would have one less than others get one of which nothing is learnt, for all take part in what they do together.
fn of_rank(batches: Vec<Batch>, group: &Group) -> Vec<Batch> {
    if group.is_single() {
        return batches;
    }
    let each = batches.len().div_ceil(group.world_size());
    let mut mine: Vec<Batch> = batches.into_iter().skip(group.rank()).step_by(group.world_size()).collect();
    mine.resize_with(each, Batch::idle);
    mine
}

impl Step {
    /// Of these micro-batches, in the middle of the first epoch.
    #[cfg(test)]
    pub(super) fn of(number: u64, batches: Vec<Batch>) -> Self {
        let (batches_in_epoch, counts) = (batches.len(), Counts::of(&batches));
        let (begun, spent, group) = (Instant::now(), Spent::default(), Group::single());
        Self { number, batches, epoch: 0, batches_in_epoch, ends_epoch: false, begun, spent, counts, group }
    }

    /// The micro-batches with their numbers in the step, over all processes.
    pub fn micro_batches(&self) -> impl Iterator<Item = (usize, &Batch)> {
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        self.batches.iter().enumerate().map(move |(i, batch)| (i * world_size + rank, batch))
    }

    /// The numbers of the micro-batches that all processes have at the same time as this one has micro-batch `number`. Of those behind a
    /// step's last one nothing is learnt.
    pub fn beside(&self, number: usize) -> Range<usize> {
        let world_size = self.group.world_size();
        let first = number - number % world_size;
        first..first + world_size
    }

    /// Tokens whose next one is trained, in all micro-batches of all processes.
    pub fn trained_tokens(&self) -> usize {
        self.counts.trained_tokens
    }

    /// Rows of all micro-batches of all processes: samples, packs of them, or pairs.
    pub fn rows(&self) -> usize {
        self.counts.rows
    }

    /// When it was asked for.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Its tokens, and the time since it was asked for: waiting for data counts.
    pub fn pace(&self) -> Pace {
        Pace {
            tokens: self.counts.tokens as u64,
            trained_tokens: self.trained_tokens() as u64,
            seconds: self.begun.elapsed().as_secs_f64(),
        }
    }

    /// Which shares of the time since it was asked for this process waited for others, and collectives were under way. Nothing where
    /// there are no others.
    pub(super) fn communication(&self) -> Vec<Extra> {
        let seconds = self.begun.elapsed().as_secs_f64();
        if self.group.is_single() || seconds == 0.0 {
            return Vec::new();
        }
        let now = self.group.spent();
        let share = |now: Duration, then: Duration| (now - then).as_secs_f64() / seconds;
        vec![
            Extra::shown("processes/waiting", share(now.waiting, self.spent.waiting)),
            Extra::new("processes/communicating", share(now.under_way, self.spent.under_way)),
        ]
    }

    /// [`Step::pace`] of a step that trains on other batches than its own, `batches` in this process.
    ///
    /// # Errors
    /// Another process that is gone.
    pub fn pace_of<'b>(&self, batches: impl IntoIterator<Item = &'b Batch>) -> Result<Pace> {
        let (mut tokens, mut trained_tokens) = (0, 0);
        // One that is there so that all processes have as many says of no sample where it came from.
        for batch in batches.into_iter().filter(|batch| !batch.origins.is_empty()) {
            tokens += batch.tokens() as u64;
            trained_tokens += batch.trained_tokens() as u64;
        }
        let sums = self.group.all_reduce("the tokens of a step", vec![tokens, trained_tokens]).wait()?;
        Ok(Pace { tokens: sums[0], trained_tokens: sums[1], ..self.pace() })
    }
}

/// The steps of a run from a position on. The next one is put together while the last is trained on; where a
/// run is, is told by the steps that were taken from here.
///
/// While this lives, Ctrl-C and SIGTERM do not end the program: the next step is [`Error::Stopped`] then.
#[derive(Debug)]
pub struct Steps {
    receiver: Receiver<Result<Step>>,
    group: Group,
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
        Self::of_rank(data, plan, from, &Group::single())
    }

    /// The same for a process of a group: `plan` is that of all of them together, and each takes its share of every step. Where
    /// one is to end, all do.
    ///
    /// # Errors
    /// As [`Steps::ahead`].
    pub fn of_rank(data: &Arc<Loader>, plan: Plan, from: Position, group: &Group) -> Result<Self> {
        // One is ready and the next is in the making.
        let (sender, receiver) = sync_channel(1);
        let (data, of_thread) = (Arc::clone(data), group.clone());
        let read = move || {
            if let Err(error) = send_steps(&data, plan, from, &of_thread, &sender) {
                let _ = sender.send(Err(error));
            }
        };
        std::thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(read)
            .map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        Ok(Self { receiver, group: group.clone(), _listening: Listening::begin() })
    }

    /// What comes next here, once it is known of all processes: where one is to end or has failed, all end here.
    fn agreed(&self, mine: Option<Result<Step>>) -> Option<Result<Step>> {
        let stopped = matches!(mine, Some(Err(Error::Stopped(_))));
        let failed = matches!(mine, Some(Err(_))) && !stopped;
        let of_all = match self.group.all_reduce("what comes next", vec![u32::from(stopped), u32::from(failed)]).wait()
        {
            Ok(of_all) => of_all,
            Err(error) => return Some(Err(error)),
        };
        match (mine, of_all[0], of_all[1]) {
            (Some(Err(error)), ..) => Some(Err(error)),
            (_, _, failed @ 1..) => Some(Err(others_failed(failed))),
            (_, 1.., _) => Some(Err(Error::Stopped(Exit {
                code: 1,
                message: "stopped with another process of the run".to_owned(),
            }))),
            (mine, ..) => mine,
        }
    }
}

impl Iterator for Steps {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        let mine = self.next_here();
        if self.group.is_single() { mine } else { self.agreed(mine) }
    }
}

impl Steps {
    fn next_here(&mut self) -> Option<Result<Step>> {
        let (begun, spent) = (Instant::now(), self.group.spent());
        loop {
            if let Err(stopped) = check_stop() {
                return Some(Err(stopped));
            }
            match self.receiver.recv_timeout(PATIENCE) {
                Ok(step) => return Some(step.map(|step| Step { begun, spent, ..step })),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Sends one step after the other until all are sent or nobody wants more.
fn send_steps(
    data: &Loader,
    plan: Plan,
    from: Position,
    group: &Group,
    sender: &SyncSender<Result<Step>>,
) -> Result<()> {
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
                counts: Counts::of(&batches_of_step),
                batches: of_rank(batches_of_step, group),
                epoch,
                batches_in_epoch: done,
                ends_epoch: batches.peek().is_none(),
                begun: Instant::now(),
                spent: Spent::default(),
                group: group.clone(),
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
    use crate::distributed::threads;

    fn loader(samples: u32) -> Arc<Loader> {
        let sample =
            |i| Sample { input_ids: vec![i, i], targets: vec![i, IGNORE], origin: format!("d:{i}"), label: None };
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
    fn all_know_which_micro_batches_come_at_the_same_time() {
        let beside = |group: Group| {
            let batches = of_rank(vec![Batch::idle(); 8], &group);
            let step = Step { group, ..Step::of(1, batches) };
            step.micro_batches().map(|(i, _)| (i, step.beside(i))).collect::<Vec<_>>()
        };
        let all = threads::run(3, Duration::from_secs(60), beside).unwrap();
        for (rank, of_rank) in all.into_iter().enumerate() {
            assert_eq!(of_rank, [(rank, 0..3), (3 + rank, 3..6), (6 + rank, 6..9)]);
        }
        assert_eq!(Step::of(1, vec![Batch::idle(); 2]).beside(1), 1..2);
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

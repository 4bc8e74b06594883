//! The thread that computes, and the queue before it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tune_core::generate::{Continuous, End, Event, Request};

use crate::error::Fault;
use crate::metrics::Metrics;

/// One sequence that is asked for.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) caller: Caller,
}

/// Who asked for it.
pub(crate) struct Caller {
    /// Which of a request's answers it is.
    pub(crate) choice: usize,
    /// Where what happens is told; nobody listens when the client has hung up.
    pub(crate) reply: UnboundedSender<Update>,
    /// Whether its answer is no longer wanted.
    pub(crate) is_over: Arc<AtomicBool>,
    /// When its time is over.
    pub(crate) deadline: Instant,
}

impl Caller {
    fn is_unwanted(&self) -> bool {
        self.reply.is_closed() || self.is_over.load(Ordering::Relaxed)
    }

    /// Whether its time is over, or that of all.
    fn is_late(&self, now: Instant, ending: Option<Instant>) -> bool {
        now >= ending.map_or(self.deadline, |ending| ending.min(self.deadline))
    }

    fn tell(&self, what: Result<Event, Fault>) {
        // Who has hung up is found in the next step.
        let _ = self.reply.send(Update { choice: self.choice, what });
    }
}

/// What happened to a sequence.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) choice: usize,
    pub(crate) what: Result<Event, Fault>,
}

/// Sequences that wait.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// At most this many wait.
    most: usize,
}

struct State {
    /// By model, each with its number in the order of arrival.
    waiting: Vec<VecDeque<(u64, Job)>>,
    arrived: u64,
    /// When all must have ended, once the server is to end.
    ending: Option<Instant>,
}

impl State {
    fn count(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }
}

impl Queue {
    pub(crate) fn new(models: usize, most: usize) -> Self {
        let waiting = (0..models).map(|_| VecDeque::new()).collect();
        Self { state: Mutex::new(State { waiting, arrived: 0, ending: None }), changed: Condvar::new(), most }
    }

    /// At most this many sequences wait.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the sequences of a request wait, all of them or none.
    ///
    /// # Errors
    /// Too many are waiting, or the server is to end.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), Fault> {
        let mut state = self.state();
        if state.ending.is_some() {
            return Err(Fault::ending());
        }
        if state.count() + jobs.len() > self.most {
            return Err(Fault::busy(state.count()));
        }
        for job in jobs {
            let number = state.arrived;
            state.arrived += 1;
            state.waiting[job.request.model].push_back((number, job));
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes no more; what is there has so long to end.
    pub(crate) fn end(&self, grace: Duration) {
        self.state().ending.get_or_insert(Instant::now() + grace);
        self.changed.notify_one();
    }

    /// Nobody computes any more: whoever waits is told.
    pub(crate) fn abandon(&self) {
        self.end(Duration::ZERO);
        let left: Vec<(u64, Job)> = self.state().waiting.iter_mut().flat_map(std::mem::take).collect();
        left.iter().for_each(|(_, job)| job.caller.tell(Err(Fault::ending())));
    }

    /// Whether the server is to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.state().ending.is_some()
    }
}

/// Computes until the queue is to end and nothing is left; returns why it could not go on, if so.
pub(crate) fn work(mut batch: Continuous<'_>, queue: &Queue, most: usize, metrics: &Metrics) -> Result<(), String> {
    let mut running: BTreeMap<usize, Caller> = BTreeMap::new();
    loop {
        let mut state = queue.state();
        forget_late(&mut state);
        while running.is_empty() && state.count() == 0 {
            if state.ending.is_some() {
                return Ok(());
            }
            state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        admit(&mut state, &mut batch, &mut running, most);
        let ending = state.ending;
        metrics.now(running.len(), state.count());
        drop(state);
        match batch.step() {
            Ok(events) => events.into_iter().for_each(|(sequence, event)| deliver(&mut running, sequence, event)),
            Err(error) => {
                let fault = Fault::internal(format!("the model cannot be computed: {error}"));
                running.values().for_each(|caller| caller.tell(Err(fault.clone())));
                return Err(error.to_string());
            }
        }
        let now = Instant::now();
        running.retain(|&sequence, caller| {
            let is_late = caller.is_late(now, ending);
            if is_late {
                caller.tell(Ok(Event::End(End::Interrupted)));
            }
            let goes = is_late || caller.is_unwanted();
            if goes {
                batch.leave(sequence);
            }
            !goes
        });
        metrics.now(running.len(), queue.state().count());
    }
}

fn deliver(running: &mut BTreeMap<usize, Caller>, sequence: usize, event: Event) {
    let has_ended = matches!(event, Event::End(_));
    if let Some(caller) = running.get(&sequence) {
        caller.tell(Ok(event));
    }
    if has_ended {
        running.remove(&sequence);
    }
}

/// Drops what nobody waits for any more, and tells those whose time is over.
fn forget_late(state: &mut State) {
    let (now, ending) = (Instant::now(), state.ending);
    for waiting in &mut state.waiting {
        waiting.retain(|(_, Job { caller, .. })| {
            let is_late = caller.is_late(now, ending);
            if is_late {
                caller.tell(Err(if ending.is_some() { Fault::ending() } else { Fault::late() }));
            }
            !is_late && !caller.is_unwanted()
        });
    }
}

/// Has sequences join while there is room. Whose model has the fewest running comes first, so that no model's requests wait for
/// a flood of another's; of these, who came first. Who finds no memory holds up those behind, and so gets it.
fn admit(state: &mut State, batch: &mut Continuous<'_>, running: &mut BTreeMap<usize, Caller>, most: usize) {
    while running.len() < most {
        let first = state.waiting.iter().enumerate().filter_map(|(model, waiting)| Some((model, waiting.front()?.0)));
        let Some((model, _)) = first.min_by_key(|&(model, number)| (batch.of_model(model), number)) else { return };
        let Some((number, job)) = state.waiting[model].pop_front() else { return };
        let Job { request, caller } = job;
        match batch.join(request) {
            Ok(Ok(sequence)) => {
                running.insert(sequence, caller);
            }
            Ok(Err(request)) => {
                state.waiting[model].push_front((number, Job { request, caller }));
                return;
            }
            Err(error) => caller.tell(Err(Fault::value("prompt", error.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tune_core::generate::Sampler;

    use super::*;

    fn job(deadline: Instant) -> (Job, UnboundedReceiver<Update>) {
        let (reply, updates) = unbounded_channel();
        let request = Request {
            model: 0,
            prompt: vec![1],
            sampler: Sampler::greedy(),
            max_new_tokens: 1,
            stop_tokens: Vec::new(),
            scores: None,
            scores_prompt: false,
        };
        let caller = Caller { choice: 0, reply, is_over: Arc::default(), deadline };
        (Job { request, caller }, updates)
    }

    #[test]
    fn who_waits_too_long_or_hangs_up_is_forgotten() {
        let queue = Queue::new(1, 4);
        let later = Instant::now() + Duration::from_secs(100);
        let [(late, mut of_late), (gone, of_gone), (waits, mut of_waiting)] =
            [job(Instant::now()), job(later), job(later)];
        queue.submit(vec![late, gone, waits]).unwrap();
        drop(of_gone);
        forget_late(&mut queue.state());
        assert_eq!(queue.state().count(), 1);
        assert_eq!(of_late.try_recv().unwrap().what.unwrap_err(), Fault::late());
        assert!(of_waiting.try_recv().is_err());
        // All or none.
        let more = || (0..4).map(|_| job(later).0).collect();
        assert_eq!(queue.submit(more()).unwrap_err(), Fault::busy(1));
        assert_eq!(queue.state().count(), 1);
        queue.abandon();
        assert_eq!(of_waiting.try_recv().unwrap().what.unwrap_err(), Fault::ending());
        assert_eq!(queue.submit(more()).unwrap_err(), Fault::ending());
    }
}

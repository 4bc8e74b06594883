//! A group of processes: who is in it, how a collective is begun and waited for.
//!
//! A process has one thread that communicates: it takes collectives in the order in which they were begun, and the others
//! compute meanwhile. That order is the same in all processes, because they run the same program.

mod collectives;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::transport::{Transport, Transports};
use crate::engine::Card;
use crate::{Error, Result};

/// Why a process ends that could go on, where so many others cannot.
pub(crate) fn others_failed(count: u32) -> Error {
    Error::Training(format!("{count} of the other processes cannot go on, and say why"))
}

/// The processes that train together, as one of them sees it. A clone is the same group.
///
/// Alone, a process communicates with nobody: every collective is done at once, and there is no thread.
#[derive(Clone, Default)]
pub struct Group(Option<Member>);

/// This process as one of a group.
#[derive(Clone)]
struct Member {
    joined: Arc<Joined>,
    place: Place,
    /// Which of the communicating thread's [`Transports`] the group communicates by.
    by: usize,
}

/// A group that does not live for this.
#[derive(Default)]
pub(super) struct WeakGroup(Weak<Joined>);

impl WeakGroup {
    pub(super) const fn new() -> Self {
        Self(Weak::new())
    }

    pub(super) fn upgrade(&self) -> Option<Group> {
        self.0.upgrade().map(|joined| Group(Some(Member { place: joined.place, joined, by: 0 })))
    }
}

/// Who a process is among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
    /// Its number among those of the same machine, from 0.
    pub local_rank: usize,
    /// How many there are on that machine.
    pub local_world_size: usize,
}

/// How long a process has communicated since it joined the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// It waited for collectives, and did nothing else.
    pub waiting: Duration,
    /// Collectives were under way, while it computed or waited: bytes were moved, or others not there yet.
    pub under_way: Duration,
}

/// [`Spent`], in nanoseconds, as it is counted.
#[derive(Default)]
struct Counted {
    waiting: AtomicU64,
    under_way: AtomicU64,
}

/// Calls `f`, and adds the time that it takes to `sum`.
fn timed<R>(sum: &AtomicU64, f: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = f();
    sum.fetch_add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    result
}

/// A collective on the communicating thread.
type Job = Box<dyn FnOnce(&mut Transports) + Send>;

struct Joined {
    /// Who this process is among all.
    place: Place,
    /// The card by which this process is connected to the others, where that is so.
    card: Option<Arc<Card>>,
    /// How long a collective is waited for.
    limit: Duration,
    jobs: Mutex<Option<Sender<Job>>>,
    /// Why nothing is communicated any more.
    failed: Mutex<Option<Failure>>,
    /// Whether all have come to the end of what they do together.
    finished: AtomicBool,
    /// How many collectives were begun.
    begun: AtomicU64,
    spent: Arc<Counted>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Why nothing is communicated any more.
#[derive(Clone)]
enum Failure {
    /// A collective was waited for until the time limit.
    Lost(String),
    /// A collective is an error.
    Wrong(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(why) => Self::lost(why),
            Failure::Wrong(why) => Self::Training(why),
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        lock(&self.jobs).take();
        let thread = lock(&self.thread).take();
        // Before the end the others may be anywhere, and it would wait for them.
        if let (Some(thread), true) = (thread, self.finished.load(Ordering::Relaxed)) {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({} of {})", self.rank(), self.world_size())
    }
}

/// A collective that has begun, and what it will give.
#[must_use = "a collective is over when it is waited for"]
pub struct Pending<R>(State<R>);

enum State<R> {
    Done(Result<R>),
    Running { result: Receiver<Result<R>>, joined: Arc<Joined>, what: String },
}

impl<R> fmt::Debug for Pending<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            State::Done(_) => f.write_str("Pending(done)"),
            State::Running { what, .. } => write!(f, "Pending({what})"),
        }
    }
}

impl<R> Pending<R> {
    fn done(result: R) -> Self {
        Self(State::Done(Ok(result)))
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// Another process is gone or in another collective, or the time limit is over: the message names this process, the collective and what
    /// it is about.
    pub fn wait(self) -> Result<R> {
        let (result, joined, what) = match self.0 {
            State::Done(result) => return result,
            State::Running { result, joined, what } => (result, joined, what),
        };
        let Place { rank, world_size, .. } = joined.place;
        match timed(&joined.spent.waiting, || result.recv_timeout(joined.limit)) {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => {
                let said = format!("rank {rank} of {world_size}, {what}: {error}");
                Err(joined.fail(match error {
                    Error::Lost(_) => Failure::Lost(said),
                    _ => Failure::Wrong(said),
                }))
            }
            Err(RecvTimeoutError::Disconnected) => Err(joined.why_ended()),
            Err(RecvTimeoutError::Timeout) => Err(joined.fail(Failure::Lost(format!(
                "rank {rank} of {world_size} has waited {} s in the {what}: another process has died, hangs, or is slower \
                 than that; its own log tells which. A longer limit is set by {LIMIT} (seconds)",
                joined.limit.as_secs()
            )))),
        }
    }
}

/// The variable that sets the time limit of a collective, in seconds.
pub(super) const LIMIT: &str = "TUNE_COLLECTIVE_TIMEOUT";

fn ended() -> Error {
    Error::Training("the thread that communicates with the other processes has ended".to_owned())
}

impl Joined {
    /// The first failure is the one to tell; from then on nothing is communicated.
    fn fail(&self, why: Failure) -> Error {
        lock(&self.failed).get_or_insert(why).clone().into()
    }

    fn why_ended(&self) -> Error {
        lock(&self.failed).clone().map_or_else(ended, Error::from)
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// This process alone.
    #[must_use]
    pub fn single() -> Self {
        Self(None)
    }

    /// Joins others: `open` is called on the thread that will communicate, and says by what and who this process is. No
    /// collective is waited for longer than `limit`.
    ///
    /// # Errors
    /// Those of `open`, and where no thread can be started.
    pub fn join(
        limit: Duration,
        open: impl FnOnce() -> Result<(Box<dyn Transport>, Place)> + Send + 'static,
    ) -> Result<Self> {
        Self::join_by(limit, None, open)
    }

    /// The same of processes that are connected by this card of each, if one is named.
    pub(super) fn join_by(
        limit: Duration,
        card: Option<Arc<Card>>,
        open: impl FnOnce() -> Result<(Box<dyn Transport>, Place)> + Send + 'static,
    ) -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (sender, place) = channel();
        let communicate = move || match open() {
            Ok((transport, place)) => {
                let _ = sender.send(Ok(place));
                let mut transports = Transports(vec![transport]);
                queue.into_iter().for_each(|job| job(&mut transports));
            }
            Err(error) => _ = sender.send(Err(error)),
        };
        let thread = std::thread::Builder::new()
            .name("communicate".to_owned())
            .spawn(communicate)
            .map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        let place: Place = place.recv().unwrap_or_else(|_| Err(ended()))?;
        if place.world_size == 1 {
            return Ok(Self::single());
        }
        let (jobs, thread) = (Mutex::new(Some(jobs)), Mutex::new(Some(thread)));
        let (failed, finished, begun) = (Mutex::new(None), AtomicBool::new(false), AtomicU64::new(0));
        let joined =
            Arc::new(Joined { place, card, limit, jobs, failed, finished, begun, spent: Arc::default(), thread });
        Ok(Self(Some(Member { joined, place, by: 0 })))
    }

    /// The groups that those processes are which name the same `color`: the one that this process is in. It has its own ranks, in the
    /// order of those here, and its collectives are done by the same thread, in the order in which all were begun. All processes are to
    /// ask at the same time.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn split(&self, of: &str, color: usize) -> Result<Self> {
        let Some(Member { joined, place, by }) = &self.0 else { return Ok(Self::single()) };
        let (by, rank, counts) = (*by, place.rank, vec![size_of::<u64>(); place.world_size]);
        let split = self.begin_among("split", of, move |transports| {
            let mut colors = vec![0; counts.iter().sum()];
            let mine = (color as u64).to_le_bytes();
            transports.of(by).all_gather(&mine, &counts, &mut colors)?;
            let part = transports.of(by).split(color)?;
            transports.0.push(part);
            let is_same = |of: &&[u8]| **of == mine;
            let mut colors = colors.chunks_exact(size_of::<u64>());
            let before = colors.by_ref().take(rank).filter(is_same).count();
            Ok((transports.0.len() - 1, before, before + colors.filter(is_same).count()))
        });
        Ok(match split.wait()? {
            (_, _, 1) => Self::single(),
            (by, rank, world_size) => {
                Self(Some(Member { joined: Arc::clone(joined), place: Place { rank, world_size, ..*place }, by }))
            }
        })
    }

    /// How many collectives this process has begun since it joined the others, in groups that were split off, too.
    #[must_use]
    pub fn collectives(&self) -> u64 {
        self.0.as_ref().map_or(0, |member| member.joined.begun.load(Ordering::Relaxed))
    }

    /// How long this process has communicated, in groups that were split off, too.
    #[must_use]
    pub fn spent(&self) -> Spent {
        let Some(Member { joined, .. }) = &self.0 else { return Spent::default() };
        let of = |sum: &AtomicU64| Duration::from_nanos(sum.load(Ordering::Relaxed));
        Spent { waiting: of(&joined.spent.waiting), under_way: of(&joined.spent.under_way) }
    }

    /// Who this process is.
    #[must_use]
    pub fn place(&self) -> Place {
        let alone = Place { rank: 0, world_size: 1, local_rank: 0, local_world_size: 1 };
        self.0.as_ref().map_or(alone, |member| member.place)
    }

    /// The number of this process, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.place().rank
    }

    /// How many processes there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.place().world_size
    }

    /// Whether there is no other process.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this process writes logs and checkpoints.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// The card by which this process is connected to the others: the one that it is to compute on. `None` where something else connects
    /// them.
    pub(crate) fn card(&self) -> Option<&Arc<Card>> {
        self.0.as_ref().and_then(|member| member.joined.card.as_ref())
    }

    /// How long a collective is waited for.
    pub(super) fn limit(&self) -> Duration {
        self.0.as_ref().map_or(Duration::MAX, |member| member.joined.limit)
    }

    /// Those of `rows` rows that belong to a process: as many as to any other, or one more.
    #[must_use]
    pub fn share_of(&self, rank: usize, rows: usize) -> Range<usize> {
        let (each, more) = (rows / self.world_size(), rows % self.world_size());
        let start = rank * each + rank.min(more);
        start..start + each + usize::from(rank < more)
    }

    /// The rows that belong to this process.
    #[must_use]
    pub fn share(&self, rows: usize) -> Range<usize> {
        self.share_of(self.rank(), rows)
    }

    /// The elements of each process's share of a matrix `[rows, cols]`.
    #[must_use]
    pub fn counts(&self, rows: usize, cols: usize) -> Vec<usize> {
        (0..self.world_size()).map(|rank| self.share_of(rank, rows).len() * cols).collect()
    }

    /// Begins a collective, `kind` of `of`.
    pub(crate) fn begin<R: Send + 'static>(
        &self,
        kind: &str,
        of: &str,
        collective: impl FnOnce(&mut dyn Transport) -> Result<R> + Send + 'static,
    ) -> Pending<R> {
        let by = self.0.as_ref().map_or(0, |member| member.by);
        self.begin_among(kind, of, move |transports| collective(transports.of(by)))
    }

    /// The same of what several groups of this process have a part in.
    fn begin_among<R: Send + 'static>(
        &self,
        kind: &str,
        of: &str,
        collective: impl FnOnce(&mut Transports) -> Result<R> + Send + 'static,
    ) -> Pending<R> {
        let Some(Member { joined, .. }) = &self.0 else {
            return Pending(State::Done(Err(Error::Training(format!("a {kind} of {of} by a single process")))));
        };
        joined.begun.fetch_add(1, Ordering::Relaxed);
        if let Some(why) = lock(&joined.failed).clone() {
            return Pending(State::Done(Err(why.into())));
        }
        let (sender, result) = channel();
        let spent = Arc::clone(&joined.spent);
        let job: Job = Box::new(move |transports| {
            let _ = sender.send(timed(&spent.under_way, || collective(transports)));
        });
        if let Some(jobs) = &*lock(&joined.jobs) {
            // A thread that has ended is found by who waits.
            let _ = jobs.send(job);
        }
        Pending(State::Running { result, joined: Arc::clone(joined), what: format!("{kind} of {of}") })
    }

    /// Waits until all have come to the end of the run. When the last clone is dropped after that, the processes part in peace; if one is dropped
    /// before, whoever started them is to end the others.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn finish(&self) -> Result<()> {
        self.barrier("the end of the run").wait()?;
        if !self.is_single() {
            self.begin("parting", "all processes", |transport| {
                transport.part();
                Ok(())
            })
            .wait()?;
        }
        if let Some(Member { joined, .. }) = &self.0 {
            joined.finished.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(super) fn downgrade(&self) -> WeakGroup {
        WeakGroup(self.0.as_ref().map_or_else(Weak::new, |member| Arc::downgrade(&member.joined)))
    }
}

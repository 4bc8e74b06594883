//! The stream of collectives, and who watches over it.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUevent, CUresult, CUstream};

use crate::context::{Context, Shared};
use crate::error::{Error, Result};
use crate::nccl::{Comm, IN_PROGRESS, Nccl, SUCCESS};

/// How often it is looked whether collectives are done.
const LOOK: Duration = Duration::from_millis(50);
/// How long a call in the midst of which collectives are to be ended may still take.
const CALL: Duration = Duration::from_secs(1);
/// How long collectives that were begun and are over everywhere may still take where all is well.
const LAST: Duration = Duration::from_secs(5);

/// NCCL's handle of a communicator, which any thread may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passed(Comm);

// SAFETY: a handle; NCCL's calls for one communicator are made under a lock, but for what ends it.
unsafe impl Send for Passed {}
// SAFETY: as above.
unsafe impl Sync for Passed {}

impl Passed {
    pub(super) fn get(self) -> Comm {
        self.0
    }
}

/// A stream of collectives, of all communicators of a process.
pub(super) struct Lane {
    context: Context,
    nccl: &'static Nccl,
    stream: CUstream,
    limit: Duration,
    /// All communicators.
    comms: Mutex<Vec<Passed>>,
    /// Those that are not known to be over.
    begun: Mutex<VecDeque<Begun>>,
    /// Held while NCCL is called.
    calls: Mutex<()>,
    /// Whether communicators are there no more.
    ended: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread, see `Shared`.
unsafe impl Send for Lane {}
// SAFETY: as above.
unsafe impl Sync for Lane {}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lane")
    }
}

/// A collective on its way.
struct Begun {
    what: String,
    /// What it waits for, and its end.
    places: [Arc<Place>; 2],
    /// When it could go on.
    since: Option<Instant>,
}

/// A place in a stream.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    event: CUevent,
}

// SAFETY: as for `Lane`.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// The place behind all that is in a stream; `None` if something has failed.
    fn behind(shared: &Arc<Shared>, stream: CUstream) -> Option<Arc<Self>> {
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let made = shared.run("marking a place in the work", || {
            // SAFETY: writes one handle.
            unsafe { sys::cuEventCreate(&raw mut event, flags) }
        });
        let place = Arc::new(Self { shared: Arc::clone(shared), event });
        let recorded = made
            && shared.run("marking a place in the work", || {
                // SAFETY: made just now.
                unsafe { sys::cuEventRecord(event, stream) }
            });
        recorded.then_some(place)
    }

    /// Has a stream wait for it.
    fn wait_in(&self, stream: CUstream) -> bool {
        self.shared.run("waiting for other cards", || {
            // SAFETY: recorded by `behind`.
            unsafe { sys::cuStreamWaitEvent(stream, self.event, 0) }
        })
    }

    /// Whether it is passed. What has failed is.
    pub(super) fn is_passed(&self) -> bool {
        self.shared.bind();
        // SAFETY: recorded by `behind`.
        unsafe { sys::cuEventQuery(self.event) != CUresult::CUDA_ERROR_NOT_READY }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.event.is_null() {
            self.shared.bind();
            // SAFETY: created by `behind`; the driver keeps it until it is passed.
            unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

/// Where a collective ends; nothing, if it was not begun because something has failed. Dropped, it has the card's work wait for it.
#[derive(Debug)]
pub(super) struct Done(Option<Arc<Place>>);

impl Done {
    pub(super) fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(|place| place.is_passed())
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(place) = &self.0 {
            place.wait_in(place.shared.stream);
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// A stream beside that of a context. Nothing in it takes longer than `limit`.
    pub(super) fn new(context: &Context, nccl: &'static Nccl, limit: Duration) -> Result<Arc<Self>> {
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        context.0.run("making a stream for collectives", || {
            // SAFETY: writes one handle.
            unsafe { sys::cuStreamCreate(&raw mut stream, flags) }
        });
        context.check()?;
        let lane = Arc::new(Self {
            context: context.clone(),
            nccl,
            stream,
            limit,
            comms: Mutex::default(),
            begun: Mutex::default(),
            calls: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let watched = Arc::downgrade(&lane);
        std::thread::Builder::new()
            .name("collectives".to_owned())
            .spawn(move || watch(&watched))
            .map_err(|e| Error::Failed(format!("cannot start a thread: {e}")))?;
        Ok(lane)
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn nccl(&self) -> &'static Nccl {
        self.nccl
    }

    pub(super) fn stream(&self) -> CUstream {
        self.stream
    }

    /// The communicator that `call` makes together with other processes. It is called on a thread of its own, for it waits for them
    /// without end.
    pub(super) fn joined(&self, doing: &str, call: impl FnOnce(*mut Comm) -> c_int + Send + 'static) -> Result<Passed> {
        self.context.check()?;
        let (sender, answer) = channel();
        let shared = Arc::clone(&self.context.0);
        let connect = move || {
            shared.bind();
            let mut comm = std::ptr::null_mut();
            let code = call(&raw mut comm);
            let _ = sender.send((code, Passed(comm)));
        };
        std::thread::Builder::new()
            .name("connect".to_owned())
            .spawn(connect)
            .map_err(|e| Error::Failed(format!("cannot start a thread: {e}")))?;
        let begun = Instant::now();
        let (code, comm) = loop {
            if let Ok(answered) = answer.recv_timeout(LOOK) {
                break answered;
            }
            // Another process may be known to be gone.
            self.context.check()?;
            if begun.elapsed() >= self.limit {
                return Err(Error::Lost(format!(
                    "{doing} has taken {} s: another process has died, hangs, or cannot be reached; NCCL_DEBUG=INFO in the \
                     environment has NCCL say more",
                    self.limit.as_secs()
                )));
            }
        };
        self.nccl.check(code, doing, std::ptr::null_mut())?;
        lock(&self.comms).push(comm);
        Ok(comm)
    }

    /// Queues a collective behind the context's work so far. What cannot be queued is the context's error.
    pub(super) fn queue(&self, what: impl FnOnce() -> String, calls: impl FnOnce() -> Result<()>) -> Done {
        let ready = |lane: &Self| {
            Place::behind(&lane.context.0, lane.context.0.stream).filter(|ready| ready.wait_in(lane.stream))
        };
        Done(self.queue_behind(ready, what, calls))
    }

    /// The same beside the context's work, which neither waits for the other. Returned is the end of it.
    pub(super) fn queue_apart(
        &self,
        what: impl FnOnce() -> String,
        calls: impl FnOnce() -> Result<()>,
    ) -> Option<Arc<Place>> {
        self.queue_behind(|lane| Place::behind(&lane.context.0, lane.stream), what, calls)
    }

    fn queue_behind(
        &self,
        ready: impl FnOnce(&Self) -> Option<Arc<Place>>,
        what: impl FnOnce() -> String,
        calls: impl FnOnce() -> Result<()>,
    ) -> Option<Arc<Place>> {
        let shared = &self.context.0;
        let calling = lock(&self.calls);
        if self.ended.load(Ordering::Acquire) || shared.failed() {
            return None;
        }
        let ready = ready(self)?;
        if let Err(error) = calls() {
            shared.remember(error);
            return None;
        }
        let done = Place::behind(shared, self.stream)?;
        drop(calling);
        let places = [ready, Arc::clone(&done)];
        lock(&self.begun).push_back(Begun { what: what(), places, since: None });
        Some(done)
    }

    /// Looks whether all goes on: ends everything if not.
    fn look(&self) {
        if self.context.0.failed() {
            // Nothing is queued any more, and what was may wait for a process that is gone.
            self.end();
        } else if let Some(why) = self.is_wrong() {
            self.lose(why);
        }
    }

    /// Why collectives will not end.
    fn is_wrong(&self) -> Option<String> {
        let mut begun = lock(&self.begun);
        while begun.front().is_some_and(|first| first.places[1].is_passed()) {
            begun.pop_front();
        }
        let first = begun.front_mut()?;
        for comm in lock(&self.comms).iter() {
            let mut code = SUCCESS;
            // SAFETY: the communicator is there until `lose`, which this thread calls; writes one number.
            let asked = unsafe { (self.nccl.async_error)(comm.get(), &raw mut code) };
            if let Some(code) = [asked, code].into_iter().find(|code| ![SUCCESS, IN_PROGRESS].contains(code)) {
                let words = self.nccl.words(code, comm.get());
                return Some(format!("NCCL has lost another process in the {}: {words}", first.what));
            }
        }
        if first.since.is_none() && first.places[0].is_passed() {
            first.since = Some(Instant::now());
        }
        let is_late = first.since.is_some_and(|since| since.elapsed() > self.limit);
        is_late.then(|| {
            format!(
                "the card has waited {} s in the {}: another process has died, hangs, or is slower than that",
                self.limit.as_secs(),
                first.what
            )
        })
    }

    /// Ends all collectives, which others may wait for in vain.
    pub(super) fn lose(&self, why: String) {
        self.context.0.remember(Error::Lost(why));
        self.end();
    }

    /// Gives the communicators back. Collectives that go on end without a result.
    fn end(&self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        // A call that waits itself ends by this.
        let begun = Instant::now();
        let _calling = loop {
            match self.calls.try_lock() {
                Ok(calling) => break Some(calling),
                Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if begun.elapsed() > CALL => break None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        self.context.0.bind();
        for comm in lock(&self.comms).drain(..) {
            // SAFETY: made by `joined`; used no more, for `ended` is set.
            unsafe { (self.nccl.abort)(comm.get()) };
        }
        lock(&self.begun).clear();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let begun = Instant::now();
        let is_over = || lock(&self.begun).iter().all(|begun| begun.places[1].is_passed());
        while !self.context.0.failed() && !is_over() && begun.elapsed() < LAST {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.end();
        self.context.0.bind();
        // SAFETY: nothing is left in it that does not end.
        unsafe {
            sys::cuStreamSynchronize(self.stream);
            sys::cuStreamDestroy_v2(self.stream);
        }
    }
}

/// Watches over a stream for as long as it is there.
fn watch(lane: &Weak<Lane>) {
    loop {
        std::thread::sleep(LOOK);
        let Some(lane) = lane.upgrade() else { return };
        lane.look();
    }
}

//! Work that is recorded once and then done again and again, by one call: a graph of the driver's.
//!
//! A step that generates a token is some hundred kernels of a few microseconds each, and to queue one of them takes about as long. A
//! graph has the kernels with their arguments as they were when it was recorded: addresses, sizes and factors. So whatever it reads
//! must be at the same addresses each time, and what differs from time to time is written there before ([`Lists`](crate::Lists)).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use cudarc::driver::sys::{self, CUgraph, CUgraphExec};

use crate::context::{Context, Shared};
use crate::error::{Error, Result};

/// The environment variable that keeps work from being recorded, if it is `none`.
pub const GRAPHS: &str = "TUNE_CUDA_GRAPHS";

/// Whether work may be recorded, as the environment has it.
pub(crate) fn wanted() -> Result<AtomicBool> {
    match std::env::var(GRAPHS).as_deref() {
        Err(_) | Ok("") => Ok(AtomicBool::new(true)),
        Ok("none") => Ok(AtomicBool::new(false)),
        Ok(other) => Err(Error::Unavailable(format!("{GRAPHS} is {other:?}; it can be none, or unset"))),
    }
}

/// Memory for the buffers of recorded work. It stays its own until it is dropped, and its last buffer and graph. Works that are
/// recorded in the same memory overwrite each other's buffers, but for those that live ([`Buffer::lent`](crate::Buffer::lent)).
#[derive(Debug, Clone)]
pub struct KeptMemory(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    shared: Arc<Shared>,
    pool: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.shared.memory().end_pool(self.pool);
    }
}

/// Work that was recorded.
#[derive(Debug)]
pub struct Graph {
    memory: KeptMemory,
    graph: CUgraphExec,
}

// SAFETY: a handle, which may be used from any thread.
unsafe impl Send for Graph {}
// SAFETY: as above; it is launched in the order of the context's one stream.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        self.memory.0.shared.bind();
        // SAFETY: made by `record`; the driver keeps it until launches that are under way are done.
        unsafe { sys::cuGraphExecDestroy(self.graph) };
    }
}

/// Whether somebody records what is queued.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    is_under_way: AtomicBool,
    recorder: Mutex<Option<Recorder>>,
}

/// Who does.
#[derive(Debug)]
struct Recorder {
    thread: ThreadId,
    /// Why nothing comes of it.
    failed: Option<Error>,
    /// Parts of the ring of copies that nobody has any more.
    given_ahead: Vec<u64>,
}

impl Recording {
    fn lock(&self) -> MutexGuard<'_, Option<Recorder>> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the recorder, if it is this thread.
    fn here<R>(&self, ask: impl FnOnce(&mut Recorder) -> R) -> Option<R> {
        if !self.is_under_way.load(Ordering::Relaxed) {
            return None;
        }
        self.lock().as_mut().filter(|recorder| recorder.thread == std::thread::current().id()).map(ask)
    }

    /// Whether what this thread records has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.here(|recorder| recorder.failed.is_some()) == Some(true)
    }

    /// Notes why it fails, if this thread records; gives the reason back if not.
    pub(crate) fn fail(&self, why: Error) -> Option<Error> {
        let mut why = Some(why);
        self.here(|recorder| recorder.failed = recorder.failed.take().or_else(|| why.take()));
        self.here(|_| ()).is_none().then_some(why).flatten()
    }

    /// Keeps a part of the ring of copies for later, if this thread records.
    pub(crate) fn give_ahead(&self, part: u64) -> bool {
        self.here(|recorder| recorder.given_ahead.push(part)).is_some()
    }
}

impl Shared {
    /// Whether this thread records, so that something else than work of the one stream cannot be done: nothing comes of the recording then.
    pub(crate) fn cannot_record(&self, what: &str) -> bool {
        let records = self.recording.here(|_| ()).is_some();
        if records {
            self.remember(Error::Failed(format!("{what} cannot be recorded")));
        }
        records
    }

    /// Ends a recording; returns what was recorded.
    fn recorded(&self) -> Result<CUgraph> {
        let mut graph = std::ptr::null_mut();
        self.bind();
        // SAFETY: begun by `record`; writes one handle.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream, &raw mut graph) }.result();
        let recorder = self.recording.lock().take();
        self.recording.is_under_way.store(false, Ordering::Relaxed);
        let (failed, given) = recorder.map_or((None, Vec::new()), |recorder| (recorder.failed, recorder.given_ahead));
        given.into_iter().for_each(|part| self.give_ahead(part));
        let failed = failed.or_else(|| ended.err().map(|e| Error::of_driver(e.0, "recording work")));
        let Some(why) = failed else { return Ok(graph) };
        if !graph.is_null() {
            // SAFETY: written above, and used by nobody.
            unsafe { sys::cuGraphDestroy(graph) };
        }
        Err(why)
    }
}

/// Ends a recording whose work panics.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Ok(graph) = self.0.recorded() {
            // SAFETY: recorded just now, and used by nobody.
            unsafe { sys::cuGraphDestroy(graph) };
        }
    }
}

/// Has buffers be taken from where they were taken before.
struct Back<'a>(&'a Shared, Option<u64>);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.0.memory().use_pool(self.1);
    }
}

impl Context {
    /// Whether work is to be recorded: not if [`GRAPHS`] or [`Context::use_graphs`] says so, and not while times are asked for, which
    /// are those of kernels.
    pub fn uses_graphs(&self) -> bool {
        self.0.graphs.load(Ordering::Relaxed) && !self.0.times.is_wanted()
    }

    /// Has work be recorded from now on, or not.
    pub fn use_graphs(&self, yes: bool) {
        self.0.graphs.store(yes, Ordering::Relaxed);
    }

    /// How often recorded work was done.
    pub fn launched(&self) -> u64 {
        self.0.launched.load(Ordering::Relaxed)
    }

    /// Memory for recorded work, none at first.
    pub fn kept_memory(&self) -> KeptMemory {
        let pool = self.0.memory().begin_pool();
        KeptMemory(Arc::new(Kept { shared: Arc::clone(&self.0), pool }))
    }

    /// Does work whose buffers are of `memory`, as they are when it is recorded: whatever it takes long to make or to load is there then,
    /// and the memory is as large as it must be.
    pub fn within<R>(&self, memory: &KeptMemory, work: impl FnOnce() -> R) -> R {
        let _back = Back(&self.0, self.0.memory().use_pool(Some(memory.0.pool)));
        work()
    }

    /// Does work whose buffers are of no such memory, for what is kept when the memory is not needed any more.
    pub(crate) fn apart<R>(&self, work: impl FnOnce() -> R) -> R {
        let _back = Back(&self.0, self.0.memory().use_pool(None));
        work()
    }

    /// Records what `work` queues, without doing it. Its buffers are of `memory`. All else that it reads and writes must be there,
    /// at the same addresses, whenever it is done: nobody checks that. The same work should have been done before in this memory.
    ///
    /// # Errors
    /// The context's first error. Work that waits for the card, or brings something there or back: nothing is left of the recording then,
    /// and the context is as it was.
    pub fn record<R>(&self, memory: &KeptMemory, work: impl FnOnce() -> R) -> Result<(Graph, R)> {
        self.check()?;
        self.0.bind();
        let failed = |e: cudarc::driver::DriverError| Error::of_driver(e.0, "recording work");
        // Other threads may do what they want.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is there.
        unsafe { sys::cuStreamBeginCapture_v2(self.0.stream, mode) }.result().map_err(failed)?;
        let recorder = Recorder { thread: std::thread::current().id(), failed: None, given_ahead: Vec::new() };
        *self.0.recording.lock() = Some(recorder);
        self.0.recording.is_under_way.store(true, Ordering::Relaxed);
        let open = Open(&self.0);
        let result = self.within(memory, work);
        std::mem::forget(open);
        let recorded = self.0.recorded()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: recorded just now; writes one handle, which needs what was recorded no more.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&raw mut graph, recorded, 0);
            sys::cuGraphDestroy(recorded);
            made
        };
        made.result().map_err(failed)?;
        Ok((Graph { memory: memory.clone(), graph }, result))
    }

    /// Queues recorded work.
    pub fn launch(&self, graph: &Graph) {
        let queued = self.0.queue("recorded work", || {
            // SAFETY: it is of this context, whose stream is there.
            unsafe { sys::cuGraphLaunch(graph.graph, self.0.stream) }
        });
        self.0.launched.fetch_add(u64::from(queued), Ordering::Relaxed);
    }
}

//! Runs on an MLflow tracking server, by its REST interface (2.0).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::config::MlflowLog;
use super::{EvaluationMetrics, MetricLogger, Start, StepMetrics, ValidationMetrics};
use crate::words::count;
use crate::{Error, Result};

mod client;

use client::{Client, Refusal, Remembered};

/// So many records wait for a server that does not answer; what comes after them is lost.
const QUEUE: usize = 4096;
/// So many of them are sent in one request, which may have 1000 numbers.
const TOGETHER: usize = 32;
/// Between two attempts, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the end of a run waits for what is not yet sent.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is sent.
enum Entry {
    Numbers {
        step: u64,
        time: u64,
        values: Map<String, Value>,
    },
    /// Kept as a tag, `name.step`.
    Text {
        name: &'static str,
        step: u64,
        text: String,
    },
}

/// What both threads know.
#[derive(Default)]
struct Shared {
    /// Why something could not be sent, until it is said.
    failure: Mutex<Option<String>>,
    /// Records that never arrive.
    lost: AtomicU64,
    /// Until when there are attempts, once the run is at its end.
    deadline: Mutex<Option<Instant>>,
}

impl Shared {
    fn fail(&self, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn is_over(&self) -> bool {
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Sends steps, validations and notes (tags `note.STEP`) to a run on a tracking server, from a thread of its own: a server
/// that is slow, hangs or is gone costs training nothing. What cannot be sent is tried again, and waits meanwhile, up to a
/// limit; the first failure is said once, as the error of whatever is logged next.
///
/// A resumed run goes on with the same run. MLflow cannot delete points, so steps behind the checkpoint, which are done again,
/// are there twice.
pub struct MlflowLogger {
    address: String,
    sender: Option<SyncSender<Entry>>,
    done: Receiver<()>,
    status: Arc<Mutex<&'static str>>,
    shared: Arc<Shared>,
    is_told: bool,
}

impl MlflowLogger {
    /// Starts the thread, which begins or goes on with a run; `memory` is the file that says which one it is. `settings` are
    /// its parameters.
    ///
    /// # Errors
    /// An address that is none, and where no thread can be started. A server that does not answer is no error.
    pub(super) fn open(
        config: &MlflowLog,
        memory: &Path,
        settings: &BTreeMap<String, Value>,
        start: Start,
    ) -> Result<Self> {
        let address = config.address()?;
        let remembered = match start {
            Start::Fresh => None,
            Start::Resumed(_) => Remembered::read(memory, &address),
        };
        let client = Client::new(&address, config, memory, settings, remembered);
        let (sender, entries) = sync_channel(QUEUE);
        let (tell, done) = channel();
        let shared = Arc::new(Shared::default());
        let status = Arc::new(Mutex::new("KILLED"));
        let (of_thread, end) = (Arc::clone(&shared), Arc::clone(&status));
        let work = move || {
            send_all(client, &entries, &of_thread, &end);
            let _ = tell.send(());
        };
        std::thread::Builder::new()
            .name("mlflow".to_owned())
            .spawn(work)
            .map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        Ok(Self { address, sender: Some(sender), done, status, shared, is_told: false })
    }

    fn send(&mut self, entry: Entry) -> Result<()> {
        if let Some(sender) = &self.sender
            && sender.try_send(entry).is_err()
        {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match failure {
            Some(why) if !self.is_told => {
                self.is_told = true;
                Err(self.error(&why))
            }
            _ => Ok(()),
        }
    }

    fn error(&self, why: &str) -> Error {
        Error::setup(format!("MLflow at {}: {why}", self.address))
    }

    /// Waits for what is not yet sent, a while.
    fn end(&mut self, patience: Duration) -> Result<()> {
        if self.sender.is_none() {
            return Ok(());
        }
        *self.shared.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + patience);
        self.sender = None;
        // A request that hangs ends by its own limit; nobody waits for that.
        let is_done = self.done.recv_timeout(patience + Duration::from_secs(1)).is_ok();
        let lost = self.shared.lost.load(Ordering::Relaxed);
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = failure.unwrap_or_else(|| "it does not answer".to_owned());
        match (is_done, lost) {
            (true, 0) => Ok(()),
            (true, lost) => Err(self.error(&format!("{} did not arrive: {why}", count(lost, "record")))),
            (false, _) => Err(self.error(&format!("not all records arrived: {why}"))),
        }
    }
}

impl MetricLogger for MlflowLogger {
    fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.send(Entry::Numbers { step: metrics.step, time: milliseconds(), values: metrics.record() })
    }

    fn log_validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        self.send(Entry::Numbers { step: metrics.step, time: milliseconds(), values: metrics.record() })
    }

    fn log_evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        let step = metrics.step;
        if let Some(text) = metrics.samples_text() {
            self.send(Entry::Text { name: "samples", step, text })?;
        }
        self.send(Entry::Numbers { step, time: milliseconds(), values: metrics.record() })
    }

    fn log_note(&mut self, step: u64, note: &str) -> Result<()> {
        self.send(Entry::Text { name: "note", step, text: note.to_owned() })
    }

    fn close(&mut self) -> Result<()> {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = "FINISHED";
        self.end(PATIENCE)
    }
}

/// A run that ends early is `KILLED`.
impl Drop for MlflowLogger {
    fn drop(&mut self) {
        let _ = self.end(Duration::from_secs(3));
    }
}

/// Sends what comes until nothing comes any more, and then how the run ended.
fn send_all(mut client: Client, entries: &Receiver<Entry>, shared: &Shared, status: &Mutex<&'static str>) {
    let mut is_open = true;
    // The run begins before its first record.
    deliver(shared, 0, || client.begin());
    while is_open {
        let mut batch = Vec::new();
        match entries.recv() {
            Ok(entry) => batch.push(entry),
            Err(_) => is_open = false,
        }
        while batch.len() < TOGETHER && is_open {
            match entries.try_recv() {
                Ok(entry) => batch.push(entry),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => is_open = false,
            }
        }
        if !batch.is_empty() {
            deliver(shared, batch.len() as u64, || client.log(&batch));
        }
    }
    let status = *status.lock().unwrap_or_else(PoisonError::into_inner);
    deliver(shared, 0, || client.end(status, milliseconds()));
}

/// Tries until it is done, the server refuses it, or the run is over. `records` are lost otherwise.
fn deliver(shared: &Shared, records: u64, mut attempt: impl FnMut() -> Result<(), Refusal>) {
    let (mut pause, longest) = PAUSES;
    loop {
        let Err(Refusal { why, is_final }) = attempt() else { return };
        shared.fail(why);
        if is_final || shared.is_over() {
            shared.lost.fetch_add(records, Ordering::Relaxed);
            return;
        }
        let until = Instant::now() + pause;
        while Instant::now() < until && !shared.is_over() {
            std::thread::sleep(Duration::from_millis(50));
        }
        pause = (pause * 2).min(longest);
    }
}

fn milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

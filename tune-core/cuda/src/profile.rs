//! What the card's time goes to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{self, CUevent};

use crate::context::{Context, Shared};
use crate::error::{Error, Result};

/// The time of one kind of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    /// A kernel's name, or a product's shape (rows, columns and what is summed over).
    pub what: String,
    /// How often it was done.
    pub count: usize,
    /// Milliseconds of the card, in all.
    pub milliseconds: f64,
}

/// The work that was queued while somebody asked, and marks before and behind each.
#[derive(Debug, Default)]
pub(crate) struct Times {
    wanted: AtomicBool,
    marks: Mutex<Vec<(String, [CUevent; 2])>>,
}

impl Times {
    /// Whether somebody asks.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Queues work by `call`; notes its time if somebody asks for it.
    pub(crate) fn timed<R>(&self, name: impl FnOnce() -> String, call: impl FnOnce() -> R) -> R {
        if !self.times.is_wanted() {
            return call();
        }
        let mark = || {
            let mut event = std::ptr::null_mut();
            // SAFETY: writes one handle, and queues it.
            unsafe {
                if sys::cuEventCreate(&raw mut event, 0).result().is_ok() {
                    _ = sys::cuEventRecord(event, self.stream);
                }
            }
            event
        };
        self.bind();
        let before = mark();
        let result = call();
        self.times.marks.lock().unwrap_or_else(PoisonError::into_inner).push((name(), [before, mark()]));
        result
    }
}

impl Context {
    /// Does some work and says what the card's time went to, the longest first. Only one thread may ask at a time.
    ///
    /// # Errors
    /// The context's first error.
    pub fn profile(&self, work: impl FnOnce()) -> Result<Vec<Spent>> {
        self.synchronize()?;
        self.0.times.wanted.store(true, Ordering::Relaxed);
        work();
        self.0.times.wanted.store(false, Ordering::Relaxed);
        let marks = std::mem::take(&mut *self.0.times.marks.lock().unwrap_or_else(PoisonError::into_inner));
        let waited = self.synchronize();
        let mut spent: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        let mut failed = None;
        for (what, [from, to]) in marks {
            let mut time = 0f32;
            // SAFETY: both were recorded, and are passed; writes one number.
            let read = unsafe { sys::cuEventElapsedTime_v2(&raw mut time, from, to) };
            failed = failed.or(read.result().err());
            for event in [from, to].into_iter().filter(|event| !event.is_null()) {
                // SAFETY: created by `timed`, and used no more.
                unsafe { sys::cuEventDestroy_v2(event) };
            }
            let entry = spent.entry(what).or_default();
            *entry = (entry.0 + 1, entry.1 + f64::from(time));
        }
        waited?;
        if let Some(error) = failed {
            return Err(Error::of_driver(error.0, "reading times"));
        }
        let mut spent: Vec<Spent> =
            spent.into_iter().map(|(what, (count, milliseconds))| Spent { what, count, milliseconds }).collect();
        spent.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Ok(spent)
    }
}

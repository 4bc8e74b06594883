//! Marks in a stream of work, and the time between them.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent};

use crate::context::{Context, Shared};
use crate::error::Result;

/// A place in a context's work.
#[derive(Debug)]
pub struct Event {
    shared: Arc<Shared>,
    event: CUevent,
}

impl Context {
    /// Marks the place behind all work so far.
    pub fn mark(&self) -> Event {
        let mut event = std::ptr::null_mut();
        self.0.run("marking a place in the work", || {
            // SAFETY: writes one handle, and queues it.
            unsafe {
                match sys::cuEventCreate(&raw mut event, 0) {
                    sys::CUresult::CUDA_SUCCESS => sys::cuEventRecord(event, self.0.stream),
                    failed => failed,
                }
            }
        });
        Event { shared: Arc::clone(&self.0), event }
    }

    /// Milliseconds that the card spent between two marks; waits for the second.
    ///
    /// # Errors
    /// The context's first error.
    pub fn milliseconds(&self, from: &Event, to: &Event) -> Result<f32> {
        let mut time = 0.0;
        self.0.run("reading a time", || {
            // SAFETY: both were recorded; writes one number.
            unsafe {
                match sys::cuEventSynchronize(to.event) {
                    sys::CUresult::CUDA_SUCCESS => sys::cuEventElapsedTime_v2(&raw mut time, from.event, to.event),
                    failed => failed,
                }
            }
        });
        self.check()?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.event.is_null() {
            self.shared.bind();
            // SAFETY: created by `mark`; the driver keeps it until it is passed.
            unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

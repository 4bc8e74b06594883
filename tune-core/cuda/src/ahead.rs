//! What is copied to the card ahead of its use: a batch's tokens, places and angles, while earlier work is still being done.
//!
//! The card's other memory is given away in the order of its one stream of work, so nothing may be written there ahead of that work.
//! These copies have a stream and a ring of memory of their own. Work waits for the copy that it reads; a copy waits for the work
//! that read what was there before.

use std::collections::VecDeque;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUresult, CUstream};

use crate::buffer::Buffer;
use crate::context::{Context, Shared};
use crate::error::{Error, Result};
use crate::ranges::Ranges;

/// Bytes of the ring.
pub const AHEAD: usize = 32 << 20;

/// The ring: parts are taken one behind the other, and are free again in that order.
#[derive(Debug)]
pub(crate) struct Ahead {
    stream: CUstream,
    start: CUdeviceptr,
    parts: VecDeque<Part>,
    /// Bytes that were ever passed over: the next part begins at that place, modulo the ring.
    passed: u64,
    next: u64,
    /// Events that mark nothing any more.
    unused: Vec<CUevent>,
}

#[derive(Debug)]
struct Part {
    id: u64,
    /// Counted as [`Ahead::passed`].
    begin: u64,
    /// The place behind the last work that reads it, once nobody has it.
    read: Option<CUevent>,
}

// SAFETY: handles and addresses may be used from any thread.
unsafe impl Send for Ahead {}

impl Ahead {
    /// A ring of [`AHEAD`] bytes, and the stream of the copies into it. The card's context must be current.
    pub(crate) fn new(start: CUdeviceptr) -> Result<Self> {
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        unsafe { sys::cuStreamCreate(&raw mut stream, flags) }
            .result()
            .map_err(|e| Error::of_driver(e.0, "opening a stream of copies"))?;
        Ok(Self { stream, start, parts: VecDeque::new(), passed: 0, next: 0, unused: Vec::new() })
    }

    /// A part of the ring: its number and its address. `None` if it is too large, or there is no room: what was taken a ring before is
    /// still there, or the driver fails.
    fn take(&mut self, bytes: u64) -> Option<(u64, CUdeviceptr)> {
        let (ring, bytes) = (AHEAD as u64, Ranges::rounded(bytes));
        // What is large would keep the ring from all others.
        if bytes > ring / 4 {
            return None;
        }
        let rest = ring - self.passed % ring;
        let begin = if bytes > rest { self.passed + rest } else { self.passed };
        while let Some(first) = self.parts.front().filter(|first| begin + bytes > first.begin + ring) {
            let read = first.read?;
            // SAFETY: both are there.
            if unsafe { sys::cuStreamWaitEvent(self.stream, read, 0) } != CUresult::CUDA_SUCCESS {
                return None;
            }
            self.parts.pop_front();
            self.unused.push(read);
        }
        self.passed = begin + bytes;
        self.next += 1;
        self.parts.push_back(Part { id: self.next, begin, read: None });
        Some((self.next, self.start + begin % ring))
    }

    /// Gives a part back: work of this stream so far may read it.
    fn give(&mut self, id: u64, stream: CUstream) {
        let Some(event) = self.marked(stream) else { return };
        match self.parts.iter_mut().find(|part| part.id == id) {
            Some(part) => part.read = Some(event),
            None => self.unused.push(event),
        }
    }

    /// Marks the place behind all work of a stream so far.
    fn marked(&mut self, stream: CUstream) -> Option<CUevent> {
        let mut event = self.unused.pop().unwrap_or(std::ptr::null_mut());
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes a handle, and queues it.
        let marked = unsafe {
            (!event.is_null() || sys::cuEventCreate(&raw mut event, untimed) == CUresult::CUDA_SUCCESS)
                && sys::cuEventRecord(event, stream) == CUresult::CUDA_SUCCESS
        };
        marked.then_some(event)
    }

    /// Gives back what the driver has of it. The card's context must be current, and all other work done.
    pub(crate) fn close(&mut self) {
        let events = self.parts.drain(..).filter_map(|part| part.read).chain(self.unused.drain(..));
        // SAFETY: created above; nothing uses them any more.
        unsafe {
            events.for_each(|event| _ = sys::cuEventDestroy_v2(event));
            sys::cuStreamSynchronize(self.stream);
            sys::cuStreamDestroy_v2(self.stream);
        }
    }
}

impl Context {
    /// A copy of numbers that are here, as by [`Context::upload`], which does not wait until earlier work is done. For what is small and
    /// soon dropped; for all else it is the same.
    pub fn upload_ahead<T: Pod>(&self, numbers: &[T]) -> Buffer<T> {
        if self.0.failed() || numbers.is_empty() || self.0.cannot_record("a copy to the card") {
            return self.upload(numbers);
        }
        self.0.bind();
        let mut ring = self.0.ahead();
        let taken = ring.as_mut().and_then(|ring| Some((ring.take(size_of_val(numbers) as u64)?, ring)));
        let Some(((id, address), ahead)) = taken else {
            drop(ring);
            return self.upload(numbers);
        };
        let buffer = Buffer::in_ring(&self.0, id, address, numbers.len());
        self.0.stage(address, bytemuck::cast_slice(numbers), ahead.stream);
        self.0.run("having work wait for a copy", || match ahead.marked(ahead.stream) {
            Some(copied) => {
                // SAFETY: both are there. The event may mark another place when the call returns.
                let waits = unsafe { sys::cuStreamWaitEvent(self.0.stream, copied, 0) };
                ahead.unused.push(copied);
                waits
            }
            None => CUresult::CUDA_ERROR_UNKNOWN,
        });
        buffer
    }
}

impl Shared {
    /// Gives a part of the ring back; what was queued so far may read it.
    pub(crate) fn give_ahead(&self, id: u64) {
        // The mark would be a part of what is recorded.
        if self.recording.give_ahead(id) {
            return;
        }
        self.bind();
        if let Some(ahead) = self.ahead().as_mut() {
            ahead.give(id, self.stream);
        }
    }
}

//! What is copied from the card while nobody waits: small numbers behind the work that makes them, and large ones beside later work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUevent, CUresult, CUstream};

use crate::buffer::Buffer;
use crate::context::{Context, Shared};
use crate::error::{Error, Result};
use crate::staging::Block;

/// A stream of copies beside the work.
#[derive(Debug)]
pub(crate) struct Aside {
    stream: CUstream,
    /// Where the two streams wait for each other.
    meeting: CUevent,
    /// Whether there are copies that later work does not wait for yet.
    is_copying: AtomicBool,
}

// SAFETY: handles may be used from any thread.
unsafe impl Send for Aside {}
// SAFETY: as above.
unsafe impl Sync for Aside {}

/// Numbers on their way from the card.
#[derive(Debug)]
pub struct Reading<T> {
    shared: Arc<Shared>,
    len: usize,
    from: From<T>,
}

#[derive(Debug)]
enum From<T> {
    /// Memory that the card writes; always there until it is given back.
    Block(Option<Block>),
    /// They are here: there was no such memory, or they are none.
    Here(Result<Vec<T>>),
}

impl Aside {
    /// The card's context must be current.
    pub(crate) fn new() -> Result<Self> {
        let (mut stream, mut meeting) = (std::ptr::null_mut(), std::ptr::null_mut());
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let failed = |e: cudarc::driver::DriverError| Error::of_driver(e.0, "opening a stream of copies");
        // SAFETY: each writes one handle.
        unsafe {
            sys::cuStreamCreate(&raw mut stream, flags).result().map_err(failed)?;
            sys::cuEventCreate(&raw mut meeting, untimed).result().map_err(failed)?;
        }
        Ok(Self { stream, meeting, is_copying: AtomicBool::new(false) })
    }

    /// Has one stream wait for all work of the other so far.
    fn meet(&self, waits: CUstream, works: CUstream) -> CUresult {
        // SAFETY: all are there. The event may mark another place when the calls return.
        unsafe {
            match sys::cuEventRecord(self.meeting, works) {
                CUresult::CUDA_SUCCESS => sys::cuStreamWaitEvent(waits, self.meeting, 0),
                failed => failed,
            }
        }
    }

    /// The card's context must be current, and its work done.
    pub(crate) fn close(self) {
        // SAFETY: created by `new`, and used no more.
        unsafe {
            sys::cuStreamSynchronize(self.stream);
            sys::cuEventDestroy_v2(self.meeting);
            sys::cuStreamDestroy_v2(self.stream);
        }
    }
}

impl Context {
    /// The numbers of a buffer as they are when all work so far is done. Does not wait for that.
    pub fn read_later<T: Pod>(&self, buffer: &Buffer<T>) -> Reading<T> {
        self.reading(buffer, self.0.stream)
    }

    /// The same by a stream of its own, while later work is done: for much, which would hold that up. The buffer must stay, and as it
    /// is, until [`Context::join`] is called.
    pub fn read_aside<T: Pod>(&self, buffer: &Buffer<T>) -> Reading<T> {
        let Some(aside) = self.0.aside.get() else { return self.read_later(buffer) };
        self.0.run("having a copy wait for work", || aside.meet(aside.stream, self.0.stream));
        aside.is_copying.store(true, Ordering::Relaxed);
        self.reading(buffer, aside.stream)
    }

    /// Has later work wait for the copies of [`Context::read_aside`] so far. To be called before what they copy is changed or dropped.
    pub fn join(&self) {
        let Some(aside) = self.0.aside.get() else { return };
        if aside.is_copying.swap(false, Ordering::Relaxed) {
            self.0.run("having work wait for a copy", || aside.meet(self.0.stream, aside.stream));
        }
    }

    fn reading<T: Pod>(&self, buffer: &Buffer<T>, stream: CUstream) -> Reading<T> {
        let (len, bytes) = (buffer.len(), buffer.len() * size_of::<T>());
        if len == 0 {
            return Reading { shared: Arc::clone(&self.0), len, from: From::Here(Ok(Vec::new())) };
        }
        let block =
            if self.0.failed() || self.0.cannot_record("a copy from the card") { None } else { self.0.block(bytes) };
        let Some(block) = block else {
            return Reading { shared: Arc::clone(&self.0), len, from: From::Here(self.download(buffer)) };
        };
        // SAFETY: both have that many bytes; the block is not read before the copy is done, and not given away.
        let copy = || unsafe { sys::cuMemcpyDtoHAsync_v2(block.address().cast(), buffer.address(), bytes, stream) };
        match stream == self.0.stream {
            true => self.0.queue("copying from the card", copy),
            false => self.0.run("copying from the card", copy),
        };
        self.0.run("marking a place in the work", || block.mark(stream));
        Reading { shared: Arc::clone(&self.0), len, from: From::Block(Some(block)) }
    }
}

impl<T: Pod> Reading<T> {
    /// The numbers, when they are here.
    ///
    /// # Errors
    /// The context's first error.
    pub fn wait(&self) -> Result<Vec<T>> {
        let block = match &self.from {
            From::Here(numbers) => return numbers.clone(),
            From::Block(block) => block,
        };
        let mut numbers = vec![T::zeroed(); self.len];
        self.shared.run("doing the work that was queued", || {
            let Some(block) = block else { return CUresult::CUDA_ERROR_INVALID_HANDLE };
            let waited = block.wait();
            if waited == CUresult::CUDA_SUCCESS {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut numbers);
                // SAFETY: the block is as long, and the copy into it is done.
                unsafe { std::ptr::copy_nonoverlapping(block.address(), bytes.as_mut_ptr(), bytes.len()) };
            }
            waited
        });
        Context(Arc::clone(&self.shared)).check()?;
        Ok(numbers)
    }
}

impl<T> Drop for Reading<T> {
    fn drop(&mut self) {
        if let From::Block(block) = &mut self.from
            && let Some(block) = block.take()
        {
            self.shared.give_block(block);
        }
    }
}

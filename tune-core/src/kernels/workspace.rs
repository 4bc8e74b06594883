//! The memory that a kernel needs while it works. Each kernel says how much (a function called `workspace` beside it), and
//! whoever calls it takes so much and hands it over: so all memory can be counted before there is any.

use super::shared::Shared;

/// Elements of a cache line: pieces begin at one.
const LINE: usize = 16;

/// Room for a piece of `len` elements.
pub(super) const fn room(len: usize) -> usize {
    len.next_multiple_of(LINE)
}

/// Memory of any content, to be handed out piece by piece.
pub(super) struct Workspace<'a>(&'a mut [f32]);

impl<'a> Workspace<'a> {
    pub(super) fn new(memory: &'a mut [f32]) -> Self {
        Self(memory)
    }

    /// A piece of `len` elements.
    ///
    /// # Panics
    /// Where the kernel said that it needs less than it takes.
    pub(super) fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(room(len));
        self.0 = rest;
        &mut piece[..len]
    }

    /// A piece of `len` elements for each of this number of threads.
    pub(super) fn per_thread(&mut self, threads: usize, len: usize) -> PerThread<'a> {
        let len = room(len);
        PerThread { pieces: Shared::new(self.take(threads * len)), threads, len }
    }
}

/// A piece of memory for each thread of the pool; one alone is that of the thread that made it.
pub(super) struct PerThread<'a> {
    pieces: Shared<'a, f32>,
    threads: usize,
    len: usize,
}

impl PerThread<'_> {
    /// The piece of this thread.
    ///
    /// # Safety
    /// The thread has no other reference to it: a task takes it once, and waits for no other task while it uses it.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn mine(&self) -> &mut [f32] {
        let thread = if self.threads == 1 { 0 } else { rayon::current_thread_index().unwrap_or(0) };
        // SAFETY: no other thread has that number, and this one has no other reference, as the caller promises.
        unsafe { self.pieces.part(thread * self.len, self.len) }
    }
}

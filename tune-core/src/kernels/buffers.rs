//! Memory for activations, used again and again.
//!
//! A training step asks for the same sizes as the one before. Handing the same memory out spares
//! the system a page fault for every 4 KiB of it, and the zeros that a fresh page is filled with.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Element;

/// A cache line: buffers begin at one, so that vectors never straddle two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: sixteen floats without padding; any bits are a value.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: VecDeque::new(), idle_lines: 0, live_lines: 0, most_live: 0 });

/// Memory that was used and may be used again.
///
/// It is kept as long as it and what is in use stay close to the most that was ever in use at a time.
/// Beyond that, what has waited longest goes: sizes that are not asked for any more do not pile up.
struct Pool {
    /// The longest waiting first.
    idle: VecDeque<Vec<Line>>,
    idle_lines: usize,
    live_lines: usize,
    most_live: usize,
}

impl Pool {
    /// Lines that may be idle besides those that the most demanding moment needed (16 MiB).
    const SLACK: usize = 1 << 18;

    fn lock() -> MutexGuard<'static, Self> {
        POOL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest idle memory of a size that is wanted, the latest of several.
    fn find(&mut self, sizes: &RangeInclusive<usize>) -> Option<Vec<Line>> {
        let fitting = (0..self.idle.len()).rev().filter(|&i| sizes.contains(&self.idle[i].len()));
        let best = fitting.min_by_key(|&i| self.idle[i].len())?;
        let found = self.idle.remove(best)?;
        self.idle_lines -= found.len();
        self.live_lines += found.len();
        Some(found)
    }

    /// Counts `lines` that are about to be allocated; returns what is to be freed before.
    fn make_room(&mut self, lines: usize) -> Vec<Vec<Line>> {
        self.live_lines += lines;
        self.most_live = self.most_live.max(self.live_lines);
        let mut given_up = Vec::new();
        while self.live_lines + self.idle_lines > self.most_live + self.most_live / 32 + Self::SLACK
            && let Some(oldest) = self.idle.pop_front()
        {
            self.idle_lines -= oldest.len();
            given_up.push(oldest);
        }
        given_up
    }

    fn give_back(&mut self, lines: Vec<Line>) {
        self.live_lines -= lines.len();
        self.idle_lines += lines.len();
        self.idle.push_back(lines);
    }
}

/// The longest batch so far, in rows: what is made for each token has room for as many.
static ROWS: AtomicUsize = AtomicUsize::new(0);

/// Announces a batch of `rows` tokens. Memory that is too small for it is given up.
pub(crate) fn expect_rows(rows: usize) {
    let rows = rows.next_multiple_of(64);
    if ROWS.fetch_max(rows, Ordering::Relaxed) < rows {
        let mut pool = Pool::lock();
        pool.idle_lines = 0;
        pool.idle.clear();
    }
}

/// Elements of any content; the memory goes back to the pool when this is dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T: Element> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// `len` elements, each of which the caller will write before it reads it.
    pub(crate) fn new(len: usize) -> Self {
        let lines = Self::lines(len);
        // Sizes a sixteenth apart: those that differ a little with each batch become the same.
        let lines = lines.next_multiple_of((lines.next_power_of_two() / 16).max(1));
        Self { lines: take(lines..=2 * lines), len, element: PhantomData }
    }

    /// The same for `rows` tokens of `width` elements, a size that changes with every batch.
    pub(crate) fn rows(rows: usize, width: usize) -> Self {
        let lines = Self::lines(rows.max(ROWS.load(Ordering::Relaxed)) * width);
        Self { lines: take(lines..=lines), len: rows * width, element: PhantomData }
    }

    fn lines(len: usize) -> usize {
        (len * size_of::<T>()).div_ceil(size_of::<Line>())
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::new(len);
        buffer.fill(T::from_f32(0.0));
        buffer
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if !lines.is_empty() {
            Pool::lock().give_back(lines);
        }
    }
}

/// Idle memory of a size that is wanted, or fresh memory of the smallest such size.
fn take(sizes: RangeInclusive<usize>) -> Vec<Line> {
    let lines = *sizes.start();
    if lines == 0 {
        return Vec::new();
    }
    let mut pool = Pool::lock();
    if let Some(found) = pool.find(&sizes) {
        return found;
    }
    let given_up = pool.make_room(lines);
    drop(pool);
    drop(given_up);
    give_back_at_once();
    let mut fresh = vec![Line([0.0; 16]); lines];
    want_huge_pages(&mut fresh);
    fresh
}

/// Has glibc return large memory to the system when it is freed. Left to itself it learns, from the
/// first large block that it sees freed, to keep the like in its heaps, where blocks of other sizes do not fit.
fn give_back_at_once() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        // SAFETY: sets a number of the allocator, which it guards with its own lock.
        ONCE.call_once(|| _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) });
    }
}

/// Zeros that are too many for the processor's address cache in pages of 4 KiB.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let mut zeros = vec![0f32; len];
    want_huge_pages(&mut zeros);
    zeros
}

/// Asks for pages of 2 MiB where the system has them: fewer faults, fewer misses. A wish, no more.
fn want_huge_pages<T>(memory: &mut [T]) {
    const HUGE: usize = 1 << 21;
    #[cfg(target_os = "linux")]
    if size_of_val(memory) >= 2 * HUGE {
        let range = memory.as_mut_ptr_range();
        let start = (range.start as usize).next_multiple_of(HUGE);
        let end = range.end as usize / HUGE * HUGE;
        // SAFETY: whole pages inside memory that is ours; the advice does not change what they hold.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (memory, HUGE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_aligned() {
        // Larger than what other tests take at the same time.
        let len = 12_345_678;
        let first = Buffer::<f32>::new(len);
        let place = first.as_ptr();
        drop(first);
        let again = Buffer::<f32>::new(len);
        assert_eq!((again.as_ptr(), again.len()), (place, len));
        assert_eq!(place.align_offset(64), 0);
        expect_rows(1000);
        let rows = Buffer::<f32>::rows(900, 5000);
        let place = rows.as_ptr();
        drop(rows);
        let fewer = Buffer::<f32>::rows(100, 5000);
        assert_eq!((fewer.as_ptr(), fewer.len()), (place, 500_000));
        assert!(Buffer::<half::bf16>::zeros(77).iter().all(|x| x.to_f32() == 0.0));
    }
}

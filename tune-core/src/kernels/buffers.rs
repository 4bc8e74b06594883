//! Memory for activations, used again and again.
//!
//! A training step asks for the same sizes as the one before. Handing the same memory out spares
//! the system a page fault for every 4 KiB of it, and the zeros that a fresh page is filled with.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Element;

/// A cache line: buffers begin at one, so that vectors never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: sixteen floats without padding; any bits are a value.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

static IDLE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// The longest batch so far, in rows: what is made for each token has room for as many.
static ROWS: AtomicUsize = AtomicUsize::new(0);

/// Announces a batch of `rows` tokens. Memory that is too small for it is given up.
pub(crate) fn expect_rows(rows: usize) {
    let rows = rows.next_multiple_of(64);
    if ROWS.fetch_max(rows, Ordering::Relaxed) < rows {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Elements of any content; the memory goes back to the pool when this is dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T: Element> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<T>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Element> Buffer<T> {
    /// `len` elements, each of which the caller will write before it reads it.
    pub(crate) fn new(len: usize) -> Self {
        let lines = Self::lines(len);
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
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(lines);
        }
    }
}

/// The smallest idle memory of a size that is wanted, or fresh memory of the smallest such size. As
/// much idle memory is then given up as is allocated: sizes that are not used any more do not pile up.
fn take(sizes: std::ops::RangeInclusive<usize>) -> Vec<Line> {
    let lines = *sizes.start();
    let mut given_up = Vec::new();
    {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let best = (0..idle.len()).rev().filter(|&i| sizes.contains(&idle[i].len())).min_by_key(|&i| idle[i].len());
        if let Some(best) = best {
            return idle.swap_remove(best);
        }
        let mut freed = 0;
        while freed < lines
            && let Some(v) = idle.pop()
        {
            freed += v.len();
            given_up.push(v);
        }
    }
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
        let len = 123_457;
        let first = Buffer::<f32>::new(len);
        let place = first.as_ptr();
        drop(first);
        let again = Buffer::<f32>::new(len);
        assert_eq!((again.as_ptr(), again.len()), (place, len));
        assert_eq!(place.align_offset(64), 0);
        expect_rows(1000);
        let rows = Buffer::<f32>::rows(900, 50);
        let place = rows.as_ptr();
        drop(rows);
        let fewer = Buffer::<f32>::rows(100, 50);
        assert_eq!((fewer.as_ptr(), fewer.len()), (place, 5000));
        assert!(Buffer::<half::bf16>::zeros(77).iter().all(|x| x.to_f32() == 0.0));
    }
}

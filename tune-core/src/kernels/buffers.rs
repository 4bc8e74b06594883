//! Memory for activations and gradients, used again and again.
//!
//! A training step asks for the same sizes as the one before. Handing the same memory out spares the
//! system a page fault for every page of it, and the zeros that a fresh page is filled with. Activations and
//! gradients share it: the ones go as the others come.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Element, parallel};

/// A cache line: buffers begin at one, so that vectors never straddle two.
const LINE: usize = 64;
/// A page of the kind that is asked for: fewer faults, fewer misses of the processor's address cache.
pub(crate) const HUGE: usize = 1 << 21;
/// Memory asked of the system at once. What was never written to costs nothing, unless addresses are limited.
const SLAB: usize = 256 << 20;
/// As a share of a limit of addresses.
const SLABS_OF_LIMIT: usize = 64;

static ARENA: Mutex<Arena<System>> = Mutex::new(Arena::new(System));

/// Where an arena gets fresh memory.
pub(super) trait Source {
    /// A fresh piece of at least `size` bytes: its address and its size.
    fn grow(&mut self, size: usize) -> (usize, usize);
}

/// The memory of this process.
struct System;

impl Source for System {
    fn grow(&mut self, size: usize) -> (usize, usize) {
        give_back_at_once();
        let size = slab(size);
        // The allocator gets this many zeros from the system without writing them.
        let slab = vec![0u8; size + HUGE].leak();
        let start = slab.as_mut_ptr().expose_provenance().next_multiple_of(HUGE);
        want_huge_pages(start, size);
        (start, size)
    }
}

/// Memory from a source.
struct Slab {
    range: Range<usize>,
    /// Where the part ends that was handed out before, and may have been written to.
    used: usize,
}

/// The number of a slab and an address in it: older memory comes first.
type Place = (usize, usize);

/// Memory that is not in use, for the life of the program: the most demanding moment decides how much there is.
pub(super) struct Arena<S> {
    /// Bytes by place. Neighbours are one, and at the end of a step each slab is.
    idle: BTreeMap<Place, usize>,
    /// What came from the source, in the order in which it came.
    slabs: Vec<Slab>,
    source: S,
}

impl Arena<System> {
    fn lock() -> MutexGuard<'static, Self> {
        ARENA.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Arena<S> {
    pub(super) const fn new(source: S) -> Self {
        Self { idle: BTreeMap::new(), slabs: Vec::new(), source }
    }

    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// Takes `size` bytes and returns their address: from the smallest piece that was in use before, else
    /// from the first that has them. So little is touched that never was.
    pub(super) fn take(&mut self, size: usize) -> usize {
        let used = |&(slab, start): &Place| start + size <= self.slabs[slab].used;
        let fitting = || self.idle.iter().filter(|&(_, &idle)| idle >= size);
        let found = fitting().filter(|(place, _)| used(place)).min_by_key(|&(_, &idle)| idle);
        let found = found.or_else(|| fitting().next()).map(|(&place, &idle)| (place, idle));
        let ((slab, start), idle) = found.unwrap_or_else(|| self.grow(size));
        self.idle.remove(&(slab, start));
        if idle > size {
            self.idle.insert((slab, start + size), idle - size);
        }
        let used = &mut self.slabs[slab].used;
        *used = (*used).max(start + size);
        start
    }

    fn grow(&mut self, size: usize) -> (Place, usize) {
        let (start, size) = self.source.grow(size);
        self.slabs.push(Slab { range: start..start + size, used: start });
        ((self.slabs.len() - 1, start), size)
    }

    pub(super) fn give_back(&mut self, mut start: usize, mut size: usize) {
        let slab = self.slabs.iter().position(|slab| slab.range.contains(&start)).unwrap_or_default();
        if let Some((&(of, before), &idle)) = self.idle.range(..(slab, start)).next_back()
            && of == slab
            && before + idle == start
        {
            self.idle.remove(&(slab, before));
            (start, size) = (before, idle + size);
        }
        if let Some(idle) = self.idle.remove(&(slab, start + size)) {
            size += idle;
        }
        self.idle.insert((slab, start), size);
    }
}

/// Elements of any content; the memory goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T: Element> {
    start: NonNull<T>,
    len: usize,
    element: PhantomData<T>,
}

// SAFETY: it owns its elements, which may be sent and shared.
unsafe impl<T: Element> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for Buffer<T> {}

impl<T: Element> Buffer<T> {
    /// `len` elements, each of which the caller will write before it reads it.
    pub(crate) fn new(len: usize) -> Self {
        if len == 0 {
            return Self { start: NonNull::dangling(), len, element: PhantomData };
        }
        let start = Arena::lock().take(bytes::<T>(len));
        #[cfg(test)]
        super::recorder::taken(start, bytes::<T>(len));
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut(start)).unwrap_or(NonNull::dangling());
        Self { start, len, element: PhantomData }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::new(len);
        buffer.clear();
        buffer
    }

    /// Makes all elements zeros.
    pub(crate) fn clear(&mut self) {
        parallel::each_chunk(self, 1 << 20, |_, part| part.fill(T::from_f32(0.0)));
    }

    /// The same memory with elements of another type, as many as there is room for.
    pub(crate) fn reused<U: Element>(self) -> Buffer<U> {
        let this = std::mem::ManuallyDrop::new(self);
        let len = this.len * size_of::<T>() / size_of::<U>();
        assert_eq!(bytes::<T>(this.len), bytes::<U>(len), "memory that would not go back as a whole");
        Buffer { start: this.start.cast(), len, element: PhantomData }
    }
}

/// The bytes that a buffer of `len` elements takes.
pub(super) fn bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(LINE)
}

/// The bytes asked of the system where a buffer of `size` bytes finds no room.
pub(super) fn slab(size: usize) -> usize {
    static UNIT: OnceLock<usize> = OnceLock::new();
    size.next_multiple_of(*UNIT.get_or_init(|| unit(crate::memory::address_limit())))
}

/// What slabs are multiples of, where a process may have no more than `limit` bytes of addresses.
fn unit(limit: Option<usize>) -> usize {
    limit.map_or(SLAB, |limit| (limit / SLABS_OF_LIMIT).next_multiple_of(HUGE).clamp(HUGE, SLAB))
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: this many elements of memory that is this buffer's alone, zeros or what an earlier buffer left there;
        // any bits are a value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            let start = self.start.as_ptr().expose_provenance();
            #[cfg(test)]
            super::recorder::given_back(start);
            Arena::lock().give_back(start, bytes::<T>(self.len));
        }
    }
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

/// Asks for large pages for memory that nothing was written to yet: for the whole ones in it, so that it takes no more than before. A
/// product of one row is as fast as memory is read, and small pages are read at half the speed.
pub(crate) fn prefer_huge_pages<T>(memory: &mut [T]) {
    let range = memory.as_mut_ptr_range();
    let start = range.start.expose_provenance().next_multiple_of(HUGE);
    let end = range.end.addr() / HUGE * HUGE;
    if start < end {
        want_huge_pages(start, end - start);
    }
}

/// Asks for pages of 2 MiB where the system has them. A wish, no more.
fn want_huge_pages(start: usize, size: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: whole pages inside memory that is ours; the advice does not change what they hold.
    unsafe {
        libc::madvise(std::ptr::with_exposed_provenance_mut(start), size, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, size);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_line() {
        let buffers: Vec<_> = [1, 77, 0, 100_000].map(Buffer::<half::bf16>::zeros).into();
        for buffer in &buffers {
            assert_eq!(buffer.as_ptr().align_offset(if buffer.is_empty() { 2 } else { LINE }), 0);
            assert!(buffer.iter().all(|x| x.to_f32() == 0.0));
        }
    }

    #[test]
    fn slabs_are_small_where_addresses_are_few() {
        assert_eq!(unit(None), SLAB);
        assert_eq!(unit(Some(1 << 40)), SLAB);
        assert_eq!(unit(Some(512 << 20)), 8 << 20);
        assert_eq!(unit(Some(0)), HUGE);
    }

    /// Slabs at falling addresses.
    struct Falling(usize);

    impl Source for Falling {
        fn grow(&mut self, size: usize) -> (usize, usize) {
            self.0 -= 20 * LINE;
            (self.0, size.max(10 * LINE))
        }
    }

    #[test]
    fn neighbours_become_one() {
        let mut arena = Arena::new(Falling(40 * LINE));
        let at = |line: usize| (20 + line) * LINE;
        let (a, b, c) = (arena.take(2 * LINE), arena.take(3 * LINE), arena.take(LINE));
        assert_eq!((a, b, c), (at(0), at(2), at(5)));
        arena.give_back(a, 2 * LINE);
        arena.give_back(c, LINE);
        assert_eq!(arena.idle, BTreeMap::from([((0, at(0)), 2 * LINE), ((0, at(5)), 5 * LINE)]));
        arena.give_back(b, 3 * LINE);
        assert_eq!(arena.idle, BTreeMap::from([((0, at(0)), 10 * LINE)]));
    }

    #[test]
    fn what_was_in_use_is_taken_first() {
        let mut arena = Arena::new(Falling(40 * LINE));
        let [a, _, c, _] = [2, 1, 4, 1].map(|lines| arena.take(lines * LINE));
        arena.give_back(a, 2 * LINE);
        arena.give_back(c, 4 * LINE);
        assert_eq!(arena.take(LINE), a, "the smallest that fits");
        assert_eq!(arena.take(2 * LINE), c, "not the last two lines, though they would just do");
        assert_eq!(arena.take(3 * LINE), 0, "memory that was not there before");
        assert_eq!(arena.take(3 * LINE), 3 * LINE);
        assert_eq!(arena.take(2 * LINE), c + 2 * LINE);
        assert_eq!(arena.take(2 * LINE), c + 5 * LINE, "older memory first");
    }
}

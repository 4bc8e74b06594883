//! A result that several tasks write to, each its own part.

use std::marker::PhantomData;

/// A slice whose parts may be written from several threads.
pub(crate) struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a mutable borrow of elements that may be sent; whoever takes a part promises to be alone there.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrowed: PhantomData }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// No two parts that live at a time overlap.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part outside of its whole");
        // SAFETY: inside, as asserted, and nobody else's, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

//! Numbers on the card.

// A view to be written is given away: the memory is not the caller's until the call is over.
#![allow(clippy::needless_pass_by_value)]

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdeviceptr};
use half::bf16;

use crate::context::{Context, Shared};
use crate::error::Result;
use crate::graph::KeptMemory;

/// A type of numbers that kernels compute with. Sums are always in f32.
pub trait Element: Pod + PartialEq + std::fmt::Debug + Send + Sync + private::Sealed {
    /// Its name.
    const NAME: &str;
    /// Its place in the tables of kernels.
    #[doc(hidden)]
    const INDEX: usize;
}

/// Numbers of a type that 16 bytes hold: what a thread reads at once.
pub(crate) const fn wide<T>() -> usize {
    16 / size_of::<T>()
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const NAME: &str = "f32";
    const INDEX: usize = 0;
}

impl Element for bf16 {
    const NAME: &str = "bf16";
    const INDEX: usize = 1;
}

/// Numbers in a row in the card's memory. Dropped, the memory is free for later work.
#[derive(Debug)]
pub struct Buffer<T> {
    shared: Arc<Shared>,
    /// Zero if there was no memory: then nothing is launched any more.
    address: CUdeviceptr,
    len: usize,
    home: Home,
    of: PhantomData<T>,
}

/// Where a buffer's memory goes when it is dropped.
#[derive(Debug, Clone)]
enum Home {
    /// So many bytes of the arena, or of one of its pools.
    Arena(u64, Option<u64>),
    /// A part of the ring of what is copied ahead.
    Ring(u64),
    /// A part of another buffer, which lives as long.
    Within(#[expect(dead_code, reason = "it is kept, and asked nothing")] Arc<Buffer<u32>>),
    /// Memory of recorded work, which others of its works may have, too.
    Lent(#[expect(dead_code, reason = "it is kept, and asked nothing")] KeptMemory),
}

// SAFETY: an address; whoever has the buffer has the numbers.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl Context {
    /// Memory for this many numbers, of any content. If the card has none left, that is the context's error.
    pub fn buffer<T: Pod>(&self, len: usize) -> Buffer<T> {
        let bytes = (len * size_of::<T>()) as u64;
        let (mut address, mut pool) = (0, None);
        if !self.0.failed() {
            self.0.bind();
            let taken = self.0.memory().take_for_buffer(bytes);
            match taken {
                Ok(taken) => (address, pool) = taken,
                Err(error) => self.0.remember(error),
            }
        }
        Buffer { shared: Arc::clone(&self.0), address, len, home: Home::Arena(bytes, pool), of: PhantomData }
    }

    /// Memory for this many numbers, all of whose bytes are zero.
    pub fn zeros<T: Pod>(&self, len: usize) -> Buffer<T> {
        let mut buffer = self.buffer(len);
        self.fill(&mut buffer, 0);
        buffer
    }

    /// A copy of numbers that are here. Returns when they may be changed again.
    pub fn upload<T: Pod>(&self, numbers: &[T]) -> Buffer<T> {
        let mut buffer = self.buffer(numbers.len());
        self.write(&mut buffer, numbers);
        buffer
    }

    /// Replaces the numbers of a buffer by as many others. Returns when those may be changed again.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn write<T: Pod>(&self, buffer: &mut Buffer<T>, numbers: &[T]) {
        assert_eq!(buffer.len, numbers.len(), "write: sizes that do not fit");
        if numbers.is_empty() {
            return;
        }
        self.0.stage(buffer.address, bytemuck::cast_slice(numbers), self.0.stream);
    }

    /// Sets every byte.
    pub fn fill<T: Pod>(&self, buffer: &mut Buffer<T>, byte: u8) {
        if buffer.len == 0 {
            return;
        }
        self.0.queue("filling memory", || {
            // SAFETY: as long as the buffer.
            unsafe { sys::cuMemsetD8Async(buffer.address, byte, buffer.len * size_of::<T>(), self.0.stream) }
        });
    }

    /// Sets every number of a view to zero.
    pub fn clear<T: Pod>(&self, view: ViewMut<'_, T>) {
        if view.rows == 0 || view.cols == 0 {
            return;
        }
        let (stride, width) = (view.stride.max(view.cols) * size_of::<T>(), view.cols * size_of::<T>());
        self.0.queue("clearing memory", || {
            // SAFETY: rows and columns of memory that the view has.
            unsafe { sys::cuMemsetD2D8Async(view.address, stride, 0, width, view.rows, self.0.stream) }
        });
    }

    /// Copies one buffer into another.
    ///
    /// # Panics
    /// If they differ in length.
    pub fn copy<T: Pod>(&self, from: &Buffer<T>, to: &mut Buffer<T>) {
        assert_eq!(from.len, to.len, "copy: sizes that do not fit");
        if from.len == 0 {
            return;
        }
        self.0.queue("copying on the card", || {
            // SAFETY: both are as long.
            unsafe { sys::cuMemcpyDtoDAsync_v2(to.address, from.address, from.len * size_of::<T>(), self.0.stream) }
        });
    }

    /// The numbers of a buffer, when all work so far is done.
    ///
    /// # Errors
    /// The context's first error.
    pub fn download<T: Pod>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        let mut numbers = vec![T::zeroed(); buffer.len];
        if buffer.len > 0 && !self.0.cannot_record("a copy from the card") {
            self.0.queue("copying from the card", || {
                // SAFETY: as long as the buffer; the wait below ends before they are read.
                unsafe {
                    sys::cuMemcpyDtoHAsync_v2(
                        numbers.as_mut_ptr().cast(),
                        buffer.address,
                        buffer.len * size_of::<T>(),
                        self.0.stream,
                    )
                }
            });
        }
        self.synchronize()?;
        Ok(numbers)
    }
}

impl<T> Buffer<T> {
    /// Numbers in a part of the ring of what is copied ahead.
    pub(crate) fn in_ring(shared: &Arc<Shared>, id: u64, address: CUdeviceptr, len: usize) -> Self {
        Self { shared: Arc::clone(shared), address, len, home: Home::Ring(id), of: PhantomData }
    }

    /// Some of the numbers of another buffer, which is not given back before this one is.
    pub(crate) fn within(all: &Arc<Buffer<u32>>, at: usize, len: usize) -> Buffer<u32> {
        assert!(at + len <= all.len, "a part of more than there is");
        let address = if all.address == 0 { 0 } else { all.address + (at * size_of::<u32>()) as u64 };
        Buffer { shared: Arc::clone(&all.shared), address, len, home: Home::Within(Arc::clone(all)), of: PhantomData }
    }

    /// A result of recorded work, in the memory that was recorded with it. Nothing else keeps that: the numbers are those of the newest
    /// launch until other work is done in the same memory.
    #[must_use]
    pub fn lent(self, memory: &KeptMemory) -> Self {
        let (address, len) = (self.address, self.len);
        Self { shared: Arc::clone(&self.shared), address, len, home: Home::Lent(memory.clone()), of: PhantomData }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same memory for numbers of another type, as many as fit into it.
    pub fn reused<D>(mut self) -> Buffer<D> {
        let (bytes, address) = (self.len * size_of::<T>(), std::mem::take(&mut self.address));
        Buffer {
            shared: Arc::clone(&self.shared),
            address,
            home: self.home.clone(),
            len: bytes / size_of::<D>(),
            of: PhantomData,
        }
    }

    pub(crate) fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// As rows of `cols` numbers.
    pub fn view(&self, cols: usize) -> View<'_, T> {
        self.part(0, (self.len / cols.max(1), cols), cols)
    }

    /// `rows` rows of `cols` numbers from number `at` on, `stride` from one row to the next.
    ///
    /// # Panics
    /// If that is more than there is, or rows overlap.
    pub fn part(&self, at: usize, (rows, cols): (usize, usize), stride: usize) -> View<'_, T> {
        check(self.len, at, (rows, cols), stride);
        let address = self.address + (at * size_of::<T>()) as u64;
        View { address, rows, cols, stride, of: PhantomData }
    }

    /// As [`Buffer::view`], to be written.
    pub fn view_mut(&mut self, cols: usize) -> ViewMut<'_, T> {
        self.part_mut(0, (self.len / cols.max(1), cols), cols)
    }

    /// As [`Buffer::part`], to be written.
    ///
    /// # Panics
    /// If that is more than there is, or rows overlap.
    pub fn part_mut(&mut self, at: usize, (rows, cols): (usize, usize), stride: usize) -> ViewMut<'_, T> {
        check(self.len, at, (rows, cols), stride);
        let address = self.address + (at * size_of::<T>()) as u64;
        ViewMut { address, rows, cols, stride, of: PhantomData }
    }
}

fn check(len: usize, at: usize, (rows, cols): (usize, usize), stride: usize) {
    let fits = rows == 0 || cols == 0 || ((rows == 1 || cols <= stride) && at + (rows - 1) * stride + cols <= len);
    assert!(fits, "a view of more than there is");
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            match &self.home {
                Home::Arena(bytes, pool) => self.shared.memory().give_buffer(self.address, *bytes, *pool),
                Home::Ring(id) => self.shared.give_ahead(*id),
                Home::Within(_) | Home::Lent(_) => {}
            }
        }
    }
}

/// Some columns of some rows of a buffer: `[rows, cols]`, `stride` numbers from one row to the next.
#[derive(Debug)]
pub struct View<'a, T> {
    pub(crate) address: CUdeviceptr,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    of: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

/// A [`View`] to be written.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    pub(crate) address: CUdeviceptr,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    of: PhantomData<&'a mut T>,
}

impl<T> View<'_, T> {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// `count` of its columns, from `first` on.
    ///
    /// # Panics
    /// If there are not that many.
    #[must_use]
    pub fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.cols, "columns outside of a view");
        Self { address: self.address + (first * size_of::<T>()) as u64, cols: count, ..self }
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The same, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { of: PhantomData, ..*self }
    }

    /// `count` of its columns, from `first` on.
    ///
    /// # Panics
    /// If there are not that many.
    #[must_use]
    pub fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.cols, "columns outside of a view");
        Self { address: self.address + (first * size_of::<T>()) as u64, cols: count, ..self }
    }

    /// The columns before `col`, and the others.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn split_cols(self, col: usize) -> (Self, Self) {
        assert!(col <= self.cols, "columns outside of a view");
        let address = self.address + (col * size_of::<T>()) as u64;
        (Self { cols: col, ..self }, ViewMut { address, cols: self.cols - col, ..self })
    }
}

//! Memory of the machine that a card copies from and to while nobody waits: pinned, in blocks that are used again and again.

use std::collections::{BTreeMap, VecDeque};

use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUresult, CUstream};

use crate::context::Shared;

/// What is copied to the card goes in parts of at most that many bytes.
const PART: usize = 4 << 20;
/// No block is smaller.
const LEAST: usize = 4 << 10;
/// Blocks for what is copied to the card have no more bytes together: whoever needs more waits for the oldest copy.
const MOST: usize = 128 << 20;

/// A part of the machine's memory that is pinned. One that is free is its next user's once the copy before is done.
#[derive(Debug)]
pub(crate) struct Block {
    at: *mut u8,
    size: usize,
    copied: CUevent,
}

// SAFETY: an address that nobody else has, and a handle, which may be used from any thread.
unsafe impl Send for Block {}
// SAFETY: as above; it is written by its owner and by the card alone.
unsafe impl Sync for Block {}

/// All blocks of a context that are free, by size, the one that was used first in front.
#[derive(Debug, Default)]
pub(crate) struct Pinned {
    free: BTreeMap<usize, VecDeque<Block>>,
    held: usize,
}

/// What a block for this many bytes has: sizes come again and again.
fn size_for(bytes: usize) -> usize {
    if bytes <= PART { bytes.next_power_of_two().max(LEAST) } else { bytes.next_multiple_of(PART) }
}

impl Block {
    pub(crate) fn address(&self) -> *mut u8 {
        self.at
    }

    /// Marks the place in a stream behind the copy that uses it.
    pub(crate) fn mark(&self, stream: CUstream) -> CUresult {
        // SAFETY: both are there.
        unsafe { sys::cuEventRecord(self.copied, stream) }
    }

    /// Waits for that copy.
    pub(crate) fn wait(&self) -> CUresult {
        // SAFETY: the event is there; one that was never recorded is passed.
        unsafe { sys::cuEventSynchronize(self.copied) }
    }

    fn is_copied(&self) -> bool {
        // SAFETY: as above.
        unsafe { sys::cuEventQuery(self.copied) == CUresult::CUDA_SUCCESS }
    }

    fn close(self) {
        // SAFETY: allocated by `Pinned::add`, and used no more.
        unsafe {
            sys::cuEventDestroy_v2(self.copied);
            sys::cuMemFreeHost(self.at.cast());
        }
    }
}

impl Pinned {
    /// A block of at least this many bytes that no copy uses any more; `None` where the machine has none. The card's context must be
    /// current. Where `most` bytes are held already, an older block of the size is waited for.
    fn take(&mut self, bytes: usize, most: usize) -> Option<Block> {
        let size = size_for(bytes);
        let free = self.free.entry(size).or_default();
        let waits = self.held + size > most;
        match free.front() {
            Some(oldest) if oldest.is_copied() => free.pop_front(),
            Some(_) if waits => free.pop_front().filter(|oldest| oldest.wait() == CUresult::CUDA_SUCCESS),
            _ => self.add(size),
        }
    }

    fn add(&mut self, size: usize) -> Option<Block> {
        let (mut at, mut copied) = (std::ptr::null_mut(), std::ptr::null_mut());
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes an address and a handle.
        unsafe {
            if sys::cuMemHostAlloc(&raw mut at, size, sys::CU_MEMHOSTALLOC_PORTABLE) != CUresult::CUDA_SUCCESS {
                return None;
            }
            if sys::cuEventCreate(&raw mut copied, untimed) != CUresult::CUDA_SUCCESS {
                sys::cuMemFreeHost(at);
                return None;
            }
        }
        self.held += size;
        Some(Block { at: at.cast(), size, copied })
    }

    /// Takes a block back; a copy may still use it.
    fn give(&mut self, block: Block) {
        self.free.entry(block.size).or_default().push_back(block);
    }

    /// Gives all back to the system. The card's context must be current, and its work done.
    pub(crate) fn close(&mut self) {
        std::mem::take(&mut self.free).into_values().flatten().for_each(Block::close);
    }
}

impl Shared {
    /// A block for a copy from the card.
    pub(crate) fn block(&self, bytes: usize) -> Option<Block> {
        self.bind();
        self.pinned().take(bytes, usize::MAX)
    }

    pub(crate) fn give_block(&self, block: Block) {
        self.pinned().give(block);
    }

    /// Queues a copy of `bytes` to the card's memory in a stream. They may be changed when it returns; it does not wait for the card,
    /// unless very much is under way.
    pub(crate) fn stage(&self, to: CUdeviceptr, bytes: &[u8], stream: CUstream) {
        for (i, part) in bytes.chunks(PART).enumerate() {
            if self.failed() || self.cannot_record("a copy to the card") {
                return;
            }
            self.bind();
            let to = to + (i * PART) as u64;
            let block = self.pinned().take(part.len(), MOST);
            let from = block.as_ref().map_or(part.as_ptr(), |block| {
                // SAFETY: as long as the part; no copy reads it any more.
                unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), block.at, part.len()) };
                block.at.cast_const()
            });
            // SAFETY: the caller has that much memory there; what is not pinned was read when the call returns.
            let copy = || unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), part.len(), stream) };
            match stream == self.stream {
                true => self.queue("copying to the card", copy),
                false => self.run("copying to the card", copy),
            };
            if let Some(block) = block {
                self.run("marking a place in the work", || block.mark(stream));
                self.give_block(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_sizes_that_come_again() {
        let sizes = [1, LEAST, LEAST + 1, PART - 1, PART, PART + 1, 3 * PART].map(size_for);
        assert_eq!(sizes, [LEAST, LEAST, 2 * LEAST, PART, PART, 2 * PART, 3 * PART]);
    }
}

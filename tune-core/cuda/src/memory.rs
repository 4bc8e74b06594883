//! The card's memory: reserved addresses, filled with memory as far as they are used.
//!
//! Work on a card is queued in a stream. A part that is given back is free at once *for later work of the same stream*, which
//! the card does not begin before the earlier work is done: nothing waits. Addresses for all of the card's memory are
//! reserved at the beginning, so that the range in use can grow without gaps between its pieces.

use std::collections::BTreeMap;

use cudarc::driver::sys::{self, CUdevice, CUdeviceptr, CUmemGenericAllocationHandle, CUresult};

use crate::error::{Error, Result};
use crate::ranges::{Pool, Ranges};

/// Memory is taken from the driver in pieces of at least that many bytes: each call takes long, and a piece costs a page.
pub const PIECE: u64 = 32 << 20;

/// How much memory is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of buffers that live.
    pub used: u64,
    /// Bytes of buffers that lived at a time, at most.
    pub most: u64,
    /// Bytes taken from the driver. They are kept until the context is closed.
    pub held: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Memory {
    device: CUdevice,
    start: CUdeviceptr,
    reserved: u64,
    pieces: Vec<(CUmemGenericAllocationHandle, u64)>,
    held: u64,
    piece: u64,
    ranges: Ranges,
    pools: BTreeMap<u64, Kept>,
    /// The one that buffers are taken from.
    in_use: Option<u64>,
    last_pool: u64,
}

/// Memory that belongs to recorded work.
#[derive(Debug, Default)]
struct Kept {
    pool: Pool,
    /// Buffers that live in it.
    buffers: usize,
    /// Whether nobody asks it for more: it ends with its last buffer.
    is_over: bool,
}

impl Memory {
    /// Reserves addresses. The device's context must be current.
    pub(crate) fn new(device: CUdevice, total: u64) -> Result<Self> {
        let mut granularity = 0;
        let properties = properties(device);
        // SAFETY: reads the properties, writes one number.
        unsafe {
            sys::cuMemGetAllocationGranularity(
                &raw mut granularity,
                &raw const properties,
                sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
            )
        }
        .result()
        .map_err(|e| Error::of_driver(e.0, "asking for the size of memory's pages"))?;
        let piece = PIECE.next_multiple_of((granularity as u64).max(1));
        let reserved = total.next_multiple_of(piece);
        let mut start = 0;
        // SAFETY: writes one address; nothing is mapped there yet.
        unsafe { sys::cuMemAddressReserve(&raw mut start, reserved as usize, 0, 0, 0) }
            .result()
            .map_err(|e| Error::of_driver(e.0, "reserving addresses for the card's memory"))?;
        Ok(Self {
            device,
            start,
            reserved,
            pieces: Vec::new(),
            held: 0,
            piece,
            ranges: Ranges::default(),
            pools: BTreeMap::new(),
            in_use: None,
            last_pool: 0,
        })
    }

    /// Takes a part; returns its address. The device's context must be current.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<CUdeviceptr> {
        let (bytes, before) = (Ranges::rounded(bytes), self.ranges.end());
        let at = self.ranges.take(bytes);
        if let Err(error) = self.hold(self.ranges.end()) {
            self.ranges.give(at, bytes);
            self.ranges.cut(before);
            return Err(match error {
                Some(code) => Error::of_driver(code, "taking memory of the card"),
                None => self.full(bytes),
            });
        }
        Ok(self.start + at)
    }

    /// Gives a part back. Later work of the stream may have it at once.
    pub(crate) fn give(&mut self, address: CUdeviceptr, bytes: u64) {
        self.ranges.give(address - self.start, Ranges::rounded(bytes));
    }

    /// Begins a pool; returns its number.
    pub(crate) fn begin_pool(&mut self) -> u64 {
        self.last_pool += 1;
        self.pools.insert(self.last_pool, Kept::default());
        self.last_pool
    }

    /// Has buffers be taken from a pool from now on, or from none; returns what they were taken from before.
    pub(crate) fn use_pool(&mut self, pool: Option<u64>) -> Option<u64> {
        std::mem::replace(&mut self.in_use, pool)
    }

    /// Nobody uses a pool any more: its memory is free when its last buffer is gone.
    pub(crate) fn end_pool(&mut self, pool: u64) {
        if let Some(kept) = self.pools.get_mut(&pool) {
            kept.is_over = true;
            self.close_pool(pool);
        }
    }

    fn close_pool(&mut self, pool: u64) {
        if self.pools.get(&pool).is_some_and(|kept| kept.is_over && kept.buffers == 0)
            && let Some(kept) = self.pools.remove(&pool)
        {
            kept.pool.into_given().into_iter().for_each(|(at, bytes)| self.ranges.give(at, bytes));
        }
    }

    /// Takes a part for a buffer; returns its address, and the pool that it is of. The device's context must be current.
    pub(crate) fn take_for_buffer(&mut self, bytes: u64) -> Result<(CUdeviceptr, Option<u64>)> {
        let Some((pool, mut kept)) = self.in_use.and_then(|pool| self.pools.remove_entry(&pool)) else {
            return Ok((self.take(bytes)?, None));
        };
        let start = self.start;
        let taken = kept.pool.take(Ranges::rounded(bytes), |bytes| self.take(bytes).map(|address| address - start));
        kept.buffers += usize::from(taken.is_ok());
        self.pools.insert(pool, kept);
        Ok((start + taken?, Some(pool)))
    }

    /// Gives a buffer's part back. Later work of the stream may have it at once, or later work of its pool.
    pub(crate) fn give_buffer(&mut self, address: CUdeviceptr, bytes: u64, pool: Option<u64>) {
        let Some(pool) = pool else { return self.give(address, bytes) };
        if let Some(kept) = self.pools.get_mut(&pool) {
            kept.pool.give(address - self.start, Ranges::rounded(bytes));
            kept.buffers -= 1;
            self.close_pool(pool);
        }
    }

    /// Takes memory from the driver until this many bytes are held. The device's context must be current.
    pub(crate) fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.hold(bytes).map_err(|code| match code {
            Some(code) => Error::of_driver(code, "taking memory of the card"),
            None => self.full(bytes.saturating_sub(self.held)),
        })
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { used: self.ranges.used(), most: self.ranges.most(), held: self.held }
    }

    pub(crate) fn forget_most(&mut self) {
        self.ranges.forget_most();
    }

    /// The code of a call that failed, or none if the memory is full.
    fn hold(&mut self, end: u64) -> Result<(), Option<CUresult>> {
        while self.held < end {
            if self.held + self.piece > self.reserved {
                return Err(None);
            }
            self.add_piece().map_err(|code| Some(code).filter(|&c| c != CUresult::CUDA_ERROR_OUT_OF_MEMORY))?;
        }
        Ok(())
    }

    fn add_piece(&mut self) -> Result<(), CUresult> {
        let (properties, bytes, at) = (properties(self.device), self.piece as usize, self.start + self.held);
        let mut handle = 0;
        // SAFETY: reads the properties, writes one handle.
        unsafe { sys::cuMemCreate(&raw mut handle, bytes, &raw const properties, 0) }.result().map_err(|e| e.0)?;
        let access = sys::CUmemAccessDesc {
            location: properties.location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the addresses are reserved and nothing is mapped there; the handle is of that size.
        let mapped = unsafe { sys::cuMemMap(at, bytes, 0, handle, 0) }.result().and_then(|()| {
            // SAFETY: mapped just now.
            unsafe { sys::cuMemSetAccess(at, bytes, &raw const access, 1) }.result().inspect_err(|_| {
                // SAFETY: as above; nothing uses it.
                unsafe { sys::cuMemUnmap(at, bytes) };
            })
        });
        if let Err(error) = mapped {
            // SAFETY: created above and mapped nowhere.
            unsafe { sys::cuMemRelease(handle) };
            return Err(error.0);
        }
        self.pieces.push((handle, self.held));
        self.held += self.piece;
        Ok(())
    }

    fn full(&self, wanted: u64) -> Error {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers; where it fails, they stay zero.
        unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        Error::OutOfMemory { wanted, used: self.ranges.used(), free: free as u64, total: total as u64 }
    }

    /// Gives all memory back to the driver. The device's context must be current, and its work done.
    pub(crate) fn close(&mut self) {
        for (handle, at) in self.pieces.drain(..) {
            // SAFETY: mapped there by `add_piece`; no work is left that could use it.
            unsafe {
                sys::cuMemUnmap(self.start + at, self.piece as usize);
                sys::cuMemRelease(handle);
            }
        }
        self.held = 0;
        // SAFETY: reserved by `new`; nothing is mapped there any more.
        unsafe { sys::cuMemAddressFree(self.start, self.reserved as usize) };
    }
}

fn properties(device: CUdevice) -> sys::CUmemAllocationProp {
    sys::CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

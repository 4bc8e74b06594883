//! The few instructions of Intel's matrix units (AMX) that products need. Everything else is written for any [`Tiles`],
//! and [`super::plain::Plain`] computes the same without the units.

use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a tile.
pub(super) const TILE: usize = 16;
/// Bytes of a row of a tile: sixteen words, each an f32 or two neighbouring bf16.
pub(super) const TILE_ROW: usize = 64;

/// Eight tiles, which hold any numbers at first.
pub(super) trait Tiles {
    /// # Safety
    /// The processor has the instructions, this process may use them, and the thread uses no other tiles as long as these live.
    unsafe fn new() -> Self;

    /// Makes a tile zeros.
    fn zero<const TO: usize>(&mut self);

    /// Reads a tile whose rows are `stride` bytes apart.
    ///
    /// # Safety
    /// All of its rows can be read.
    unsafe fn load<const TO: usize>(&mut self, from: *const u8, stride: usize);

    /// The same for what is better not kept in the first-level cache.
    ///
    /// # Safety
    /// As above.
    unsafe fn load_once<const TO: usize>(&mut self, from: *const u8, stride: usize);

    /// Writes a tile to rows that are `stride` bytes apart.
    ///
    /// # Safety
    /// All of these rows can be written.
    unsafe fn store<const FROM: usize>(&self, to: *mut u8, stride: usize);

    /// Adds to each element of `C`, an f32, the dot product of a row of `A`, 32 bf16, with a column of `B`, 16 pairs of bf16.
    ///
    /// Elements with even numbers and those with odd ones are summed apart, in order, by fused multiply-adds from zero on; the two
    /// sums are added, and their sum is added to `C`. Denormal numbers count as zeros wherever they appear.
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// The tiles of this thread's core, in use from [`Tiles::new`] until this is dropped.
///
/// Between two of the instructions below the compiler knows nothing of what tiles hold; it has no use for them itself. They
/// stay with their thread.
pub(super) struct Units(PhantomData<*const ()>);

/// What tiles look like: the operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles, each as large as can be.
static WHOLE: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (TILE_ROW as u16, TILE as u8);
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// An instruction that changes tiles: all of them count as changed.
macro_rules! tiles {
    ($($argument:tt)*) => {
        asm!(
            $($argument)*,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        )
    };
}

impl Tiles for Units {
    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: the operand is 64 bytes that describe tiles of palette 1. Who calls this promises that the processor has the
        // instruction; it changes tiles alone.
        unsafe { tiles!("ldtilecfg [{0}]", in(reg) &raw const WHOLE, options(nostack, preserves_flags, readonly)) };
        Self(PhantomData)
    }

    #[inline(always)]
    fn zero<const TO: usize>(&mut self) {
        // SAFETY: tiles are configured as long as this lives; it changes one, and no memory.
        unsafe { tiles!("tilezero tmm{to}", to = const TO, options(nostack, preserves_flags, nomem)) };
    }

    #[inline(always)]
    unsafe fn load<const TO: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: tiles are configured; sixteen rows of 64 bytes can be read, as the caller promises, at any alignment.
        unsafe {
            tiles!(
                "tileloadd tmm{to}, [{from} + {stride}]",
                to = const TO, from = in(reg) from, stride = in(reg) stride,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    #[inline(always)]
    unsafe fn load_once<const TO: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: as of `load`.
        unsafe {
            tiles!(
                "tileloaddt1 tmm{to}, [{from} + {stride}]",
                to = const TO, from = in(reg) from, stride = in(reg) stride,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const FROM: usize>(&self, to: *mut u8, stride: usize) {
        // SAFETY: tiles are configured; sixteen rows of 64 bytes can be written, as the caller promises, at any alignment. It
        // changes no tile.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}], tmm{from}",
                from = const FROM, to = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        const { assert!(C != A && C != B && A != B, "the instruction wants three tiles") };
        // SAFETY: tiles are configured as long as this lives; it changes one, and no memory.
        unsafe {
            tiles!(
                "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem)
            );
        }
    }
}

impl Drop for Units {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: what tiles hold is of no use any more; it changes no memory.
        unsafe { tiles!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

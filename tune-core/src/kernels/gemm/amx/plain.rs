//! What the matrix units compute, without them: so everything around them is tested on processors that have none.

use super::tiles::{TILE, TILE_ROW, Tiles};

/// Words of a row of a tile.
const WORDS: usize = TILE_ROW / 4;

type Tile = [[u32; WORDS]; TILE];

/// Eight tiles in memory.
pub(super) struct Plain([Tile; 8]);

impl Tiles for Plain {
    #[inline(always)]
    unsafe fn new() -> Self {
        // Not a number, whether it is read as f32 or as bf16.
        Self([[[u32::MAX; WORDS]; TILE]; 8])
    }

    #[inline(always)]
    fn zero<const TO: usize>(&mut self) {
        self.0[TO] = [[0; WORDS]; TILE];
    }

    #[inline(always)]
    unsafe fn load<const TO: usize>(&mut self, from: *const u8, stride: usize) {
        for (i, row) in self.0[TO].iter_mut().enumerate() {
            // SAFETY: sixteen such rows can be read, as the caller promises.
            *row = unsafe { from.add(i * stride).cast::<[u32; WORDS]>().read_unaligned() };
        }
    }

    #[inline(always)]
    unsafe fn load_once<const TO: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: as the caller promises.
        unsafe { self.load::<TO>(from, stride) };
    }

    #[inline(always)]
    unsafe fn store<const FROM: usize>(&self, to: *mut u8, stride: usize) {
        for (i, row) in self.0[FROM].iter().enumerate() {
            // SAFETY: sixteen such rows can be written, as the caller promises.
            unsafe { to.add(i * stride).cast::<[u32; WORDS]>().write_unaligned(*row) };
        }
    }

    #[inline(always)]
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let columns = self.0[B].map(|row| (row.map(even), row.map(odd)));
        let (mut sums, left) = (self.0[C], self.0[A]);
        for (sums, left) in sums.iter_mut().zip(&left) {
            let (mut evens, mut odds) = ([0f32; WORDS], [0f32; WORDS]);
            for (&pair, (column_evens, column_odds)) in left.iter().zip(&columns) {
                for i in 0..WORDS {
                    evens[i] = flushed(even(pair).mul_add(column_evens[i], evens[i]));
                    odds[i] = flushed(odd(pair).mul_add(column_odds[i], odds[i]));
                }
            }
            for i in 0..WORDS {
                let before = flushed(f32::from_bits(sums[i]));
                sums[i] = flushed(before + flushed(evens[i] + odds[i])).to_bits();
            }
        }
        self.0[C] = sums;
    }
}

/// The element with the even number of a pair of bf16.
#[inline(always)]
fn even(pair: u32) -> f32 {
    flushed(f32::from_bits(pair << 16))
}

#[inline(always)]
fn odd(pair: u32) -> f32 {
    flushed(f32::from_bits(pair & 0xffff_0000))
}

/// The number, or zero with its sign if it is denormal.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & (1 << 31)) } else { x }
}

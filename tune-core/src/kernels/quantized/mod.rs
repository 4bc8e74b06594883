//! Weights in few bits that are frozen: they stay in their blocks, as a file has them, and a product dequantizes the piece
//! that it packs.
//!
//! A block is a number of neighbouring elements of a row with scales of their own. All formats have blocks of a multiple of
//! [`UNIT`] elements, and can dequantize one unit at a time, so a piece may begin at any unit.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod floats;
mod format;
mod k;
pub(crate) mod nf4;
mod share;
mod small;

#[cfg(target_arch = "x86_64")]
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub use format::Format;
pub use share::Share;

use self::format::Decode;
use self::nf4::{Nf4, Scales};
use self::share::Bytes;
#[cfg(target_arch = "x86_64")]
use super::Isa;
use super::{Element, simd};

/// Elements that are dequantized at a time: a vector of f32.
pub(crate) const UNIT: usize = 16;

/// A matrix `[rows, cols]` in blocks.
#[derive(Debug, Clone)]
pub struct Quantized {
    id: QuantizedId,
    format: Format,
    rows: usize,
    cols: usize,
    /// One block behind the other.
    bytes: Bytes,
    /// The scales of [`Format::Nf4`], whose blocks are codes alone.
    scales: Scales,
}

/// Tells a matrix in blocks, and its copies, from all others of this process: it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct QuantizedId(u64);

impl QuantizedId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Quantized {
    /// A matrix `[rows, cols]` of the blocks that a file has of it.
    ///
    /// # Panics
    /// If they are not as many bytes as such a matrix has, or of a format that is not a file's.
    #[must_use]
    pub fn of_file(format: Format, (rows, cols): (usize, usize), bytes: Vec<u8>) -> Self {
        assert!(format != Format::Nf4, "no file has blocks of {format}");
        assert_eq!(
            Some(bytes.len() as u64),
            format.bytes(rows, cols),
            "blocks of {format} for {rows} by {cols} elements"
        );
        Self { id: QuantizedId::new(), format, rows, cols, bytes: Bytes::Own(bytes), scales: Scales::default() }
    }

    /// What tells it from others.
    pub(crate) fn id(&self) -> QuantizedId {
        self.id
    }

    /// Its blocks, and the codes, the factors and the mean of its scales where these are apart.
    pub(crate) fn parts(&self) -> (&[u8], Option<nf4::Parts<'_>>) {
        (&self.bytes, (self.format == Format::Nf4).then(|| self.scales.parts()))
    }

    /// How it is stored.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows and columns.
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The memory that it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.bytes.len() + self.scales.bytes()) as u64
    }

    /// All of it in f32, `[rows * cols]`: for comparisons, for it takes the memory that blocks save.
    #[must_use]
    pub fn dequantized(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows * self.cols];
        all.chunks_exact_mut(self.cols.max(1)).enumerate().for_each(|(row, out)| self.row(row, 0, out));
        all
    }

    /// Elements of a row from column `from` on, in the type of activations.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn row<T: Element>(&self, row: usize, from: usize, out: &mut [T]) {
        #[cfg(target_arch = "x86_64")]
        if Isa::get().has_avx512() {
            // SAFETY: the processor has AVX-512.
            unsafe { avx512::dequantize(self, row, from, out) };
            return;
        }
        simd(
            #[inline(always)]
            || self.dequantize(row, from, out),
        );
    }

    #[inline(always)]
    fn dequantize<T: Element>(&self, row: usize, from: usize, out: &mut [T]) {
        assert!(row < self.rows && from + out.len() <= self.cols, "a part outside of its whole");
        dequantize(self.format, &self.bytes, &self.scales, row * self.cols + from, out);
    }
}

impl Format {
    /// Dequantizes blocks of a file.
    ///
    /// # Panics
    /// If there are fewer than `out` has room for, or no file has such.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        simd(
            #[inline(always)]
            || dequantize(self, bytes, &Scales::default(), 0, out),
        );
    }
}

/// Elements from number `first` on, counted row by row.
#[inline(always)]
fn dequantize<T: Element>(format: Format, bytes: &[u8], scales: &Scales, first: usize, out: &mut [T]) {
    match format {
        Format::F16 => fill::<floats::F16, T>(bytes, scales, first, out),
        Format::Bf16 => fill::<floats::Bf16, T>(bytes, scales, first, out),
        Format::Q4_0 => fill::<small::Q4_0, T>(bytes, scales, first, out),
        Format::Q4_1 => fill::<small::Q4_1, T>(bytes, scales, first, out),
        Format::Q5_0 => fill::<small::Q5_0, T>(bytes, scales, first, out),
        Format::Q5_1 => fill::<small::Q5_1, T>(bytes, scales, first, out),
        Format::Q8_0 => fill::<small::Q8_0, T>(bytes, scales, first, out),
        Format::Iq4Nl => fill::<small::Iq4Nl, T>(bytes, scales, first, out),
        Format::Q2K => fill::<k::Q2K, T>(bytes, scales, first, out),
        Format::Q3K => fill::<k::Q3K, T>(bytes, scales, first, out),
        Format::Q4K => fill::<k::Q4K, T>(bytes, scales, first, out),
        Format::Q5K => fill::<k::Q5K, T>(bytes, scales, first, out),
        Format::Q6K => fill::<k::Q6K, T>(bytes, scales, first, out),
        Format::Nf4 => fill::<Nf4, T>(bytes, scales, first, out),
    }
}

#[inline(always)]
fn fill<D: Decode, T: Element>(bytes: &[u8], scales: &Scales, first: usize, mut out: &mut [T]) {
    let units = D::ELEMENTS / UNIT;
    let (mut unit, mut within) = (first / UNIT, first % UNIT);
    while !out.is_empty() {
        let number = unit / units;
        let block = &bytes[number * D::BYTES..][..D::BYTES];
        let head = D::head(block, scales, number);
        for of_block in unit % units..units {
            let mut wide = [0f32; UNIT];
            D::unit(&head, block, of_block, &mut wide);
            let count = out.len().min(UNIT - within);
            let (piece, rest) = std::mem::take(&mut out).split_at_mut(count);
            match piece.first_chunk_mut::<UNIT>() {
                Some(whole) => *whole = wide.map(T::from_f32),
                None => piece.iter_mut().zip(&wide[within..]).for_each(|(out, &x)| *out = T::from_f32(x)),
            }
            (out, within) = (rest, 0);
            if out.is_empty() {
                return;
            }
        }
        unit = (number + 1) * units;
    }
}

/// Some rows of a matrix in blocks: a weight in a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    of: &'a Quantized,
    first: usize,
    rows: usize,
}

impl<'a> Rows<'a> {
    /// `rows` rows of `of` from `first` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn new(of: &'a Quantized, first: usize, rows: usize) -> Self {
        assert!(first + rows <= of.rows, "rows outside of their matrix");
        Self { of, first, rows }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.of.cols
    }

    /// See [`Quantized::row`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    #[inline]
    pub(crate) fn dequantize<T: Element>(&self, row: usize, from: usize, out: &mut [T]) {
        avx512::dequantize(self.of, self.first + row, from, out);
    }

    /// The same in f32, rounded to `T` on the way.
    pub(crate) fn widened<T: Element>(&self, row: usize, from: usize, out: &mut [f32]) {
        self.of.row(self.first + row, from, out);
        if T::IS_BF16 {
            out.iter_mut().for_each(|x| *x = T::from_f32(*x).to_f32());
        }
    }

    /// Where the blocks of some columns of a row are, how many bytes they have, and how many there are from one row to the next:
    /// for hints to the processor.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn place(&self, row: usize, cols: Range<usize>) -> (*const u8, usize, usize) {
        let (block, bytes) = self.of.format.block();
        let at = |col: usize| ((self.first + row) * self.of.cols + col) / block * bytes;
        let (start, end) = (at(cols.start), at(cols.end) + bytes);
        (self.of.bytes.as_ptr().wrapping_add(start), end - start, self.of.cols * bytes / block)
    }
}

#[cfg(test)]
mod tests;

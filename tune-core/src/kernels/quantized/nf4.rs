//! 4-bit NormalFloat with scales that are quantized themselves (QLoRA, Dettmers et al. 2023,
//! <https://arxiv.org/abs/2305.14314>), in the sizes and with the values of torchao's `NF4Tensor`, which torchtune trains on.

use std::ops::Range;

use super::format::{Decode, Format};
use super::share::Bytes;
use super::{Quantized, QuantizedId, UNIT};
use crate::kernels::{parallel, simd};

/// The values that a code stands for: quantiles of the normal distribution, from -1 to 1.
pub(super) const VALUES: [f32; 16] = [
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
    0.723, 1.0,
];

/// Elements of a block, which share a scale.
pub(crate) const BLOCK: usize = 64;
/// Blocks whose scales share a factor.
const SCALES: usize = 256;

/// The scales of all blocks: `code / factor + mean`.
#[derive(Debug, Clone, Default)]
pub(super) struct Scales {
    codes: Vec<i8>,
    /// One for each [`SCALES`] blocks.
    factors: Vec<f32>,
    mean: f32,
}

/// Codes, factors and mean of scales.
pub(crate) type Parts<'a> = (&'a [i8], &'a [f32], f32);

impl Scales {
    /// Blocks whose scales belong together.
    pub(super) const TOGETHER: usize = SCALES;

    /// Those of some blocks, with their factors.
    pub(super) fn part(&self, codes: Range<usize>, factors: Range<usize>) -> Self {
        Self { codes: self.codes[codes].to_vec(), factors: self.factors[factors].to_vec(), mean: self.mean }
    }

    /// So many codes and factors, of which these are a part: `gather` fills in what all have, codes as part 1, factors as part 2.
    pub(super) fn gathered<E>(
        &self,
        (codes, factors): (usize, usize),
        mut gather: impl FnMut(usize, &[u8], &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut all = Self { codes: vec![0; codes], factors: vec![0.0; factors], mean: self.mean };
        gather(1, bytemuck::cast_slice(&self.codes), bytemuck::cast_slice_mut(&mut all.codes))?;
        gather(2, bytemuck::cast_slice(&self.factors), bytemuck::cast_slice_mut(&mut all.factors))?;
        Ok(all)
    }

    /// Quantizes the scales of blocks.
    fn new(scales: &[f32]) -> Self {
        let mean = (scales.iter().map(|&scale| f64::from(scale)).sum::<f64>() / scales.len().max(1) as f64) as f32;
        let (mut codes, mut factors) = (Vec::with_capacity(scales.len()), Vec::new());
        for scales in scales.chunks(SCALES) {
            let largest = scales.iter().fold(0f32, |largest, scale| largest.max((scale - mean).abs()));
            // Where all are the mean, any factor does.
            let factor = if largest > 0.0 { 256.0 / (2.0 * largest) } else { 1.0 };
            let code = |scale: &f32| ((scale - mean) * factor).round_ties_even().clamp(-128.0, 127.0) as i8;
            codes.extend(scales.iter().map(code));
            factors.push(factor);
        }
        Self { codes, factors, mean }
    }

    #[inline(always)]
    fn of(&self, block: usize) -> f32 {
        f32::from(self.codes[block]) / self.factors[block / SCALES] + self.mean
    }

    /// What they consist of.
    pub(super) fn parts(&self) -> Parts<'_> {
        (&self.codes, &self.factors, self.mean)
    }

    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(&self.factors[..])
    }

    /// The bytes that those of this many blocks take.
    pub(super) fn bytes_of(blocks: usize) -> usize {
        blocks + size_of::<f32>() * blocks.div_ceil(SCALES)
    }
}

/// `scale · value` of the code; the first of two codes is the upper half of a byte.
pub(super) struct Nf4;

impl Decode for Nf4 {
    const FORMAT: Format = Format::Nf4;
    type Head = f32;

    #[inline(always)]
    fn head(_: &[u8], scales: &Scales, number: usize) -> f32 {
        scales.of(number)
    }

    #[inline(always)]
    fn unit(scale: &f32, block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let bytes: &[u8; 8] = match block[8 * unit..].first_chunk() {
            Some(bytes) => bytes,
            None => unreachable!("a block has eight bytes a unit"),
        };
        for (pair, &byte) in out.chunks_exact_mut(2).zip(bytes) {
            pair[0] = VALUES[usize::from(byte >> 4)] * scale;
            pair[1] = VALUES[usize::from(byte & 15)] * scale;
        }
    }
}

/// A piece of a matrix that is being quantized: whole blocks.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Piece {
    /// Quantizes neighbouring elements, a multiple of [`BLOCK`].
    pub(crate) fn new(values: &[f32]) -> Self {
        let (mut codes, mut scales) = (Vec::with_capacity(values.len() / 2), Vec::with_capacity(values.len() / BLOCK));
        simd(
            #[inline(always)]
            || {
                for block in values.chunks_exact(BLOCK) {
                    let scale = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                    scales.push(scale);
                    // Of a block of zeros all are nearest to zero.
                    let divisor = if scale > 0.0 { scale } else { 1.0 };
                    let mut within = [0f32; BLOCK];
                    within.iter_mut().zip(block).for_each(|(within, x)| *within = x / divisor);
                    let (mut nearest, mut distances) = ([0u8; BLOCK], [f32::INFINITY; BLOCK]);
                    for (code, value) in VALUES.iter().enumerate() {
                        for ((x, nearest), distance) in within.iter().zip(&mut nearest).zip(&mut distances) {
                            let here = (x - value).abs();
                            let is_nearer = here < *distance;
                            *nearest = if is_nearer { code as u8 } else { *nearest };
                            *distance = if is_nearer { here } else { *distance };
                        }
                    }
                    codes.extend(nearest.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]));
                }
            },
        );
        Self { codes, scales }
    }
}

impl Quantized {
    /// A matrix `[rows, cols]` of the pieces that it consists of, in order.
    ///
    /// # Panics
    /// If they are not as many elements.
    pub(crate) fn of_pieces((rows, cols): (usize, usize), pieces: &[Piece]) -> Self {
        let mut bytes = Vec::with_capacity(rows * cols / 2);
        let mut scales = Vec::with_capacity(rows * cols / BLOCK);
        for piece in pieces {
            bytes.extend_from_slice(&piece.codes);
            scales.extend_from_slice(&piece.scales);
        }
        assert_eq!(2 * bytes.len(), rows * cols, "pieces of {rows} by {cols} elements");
        let (id, bytes, scales) = (QuantizedId::new(), Bytes::Own(bytes), Scales::new(&scales));
        Self { id, format: Format::Nf4, rows, cols, bytes, scales }
    }

    /// Quantizes a matrix `[rows, cols]` to [`Format::Nf4`]; its elements are a multiple of 64.
    #[must_use]
    pub fn nf4(rows: usize, cols: usize, values: &[f32]) -> Self {
        let pieces = parallel::map_chunks(values, BLOCK << 10, |_, values| Piece::new(values));
        Self::of_pieces((rows, cols), &pieces)
    }
}

//! Matrices in blocks of which each of some processes has a part.

use std::ops::{Deref, DerefMut, Range};

use half::bf16;

use super::nf4::{Parts, Scales};
use super::{Format, Quantized, QuantizedId};
use crate::kernels::buffers::Buffer;

/// The bytes of blocks: in memory of their own, or in that which steps use again and again.
#[derive(Debug)]
pub(super) enum Bytes {
    Own(Vec<u8>),
    Pooled(Buffer<bf16>, usize),
}

impl Bytes {
    /// So many bytes for the time of a step, of any content.
    fn pooled(len: usize) -> Self {
        Self::Pooled(Buffer::new(len.div_ceil(size_of::<bf16>())), len)
    }
}

impl Clone for Bytes {
    fn clone(&self) -> Self {
        Self::Own(self.to_vec())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Pooled(bytes, len) => &bytemuck::cast_slice(bytes)[..*len],
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Pooled(bytes, len) => &mut bytemuck::cast_slice_mut(bytes)[..*len],
        }
    }
}

impl Format {
    /// Elements that stay together where a matrix is divided: a block, or the blocks whose scales share a factor.
    const fn unit(self) -> usize {
        match self {
            Self::Nf4 => self.block().0 * Scales::TOGETHER,
            _ => self.block().0,
        }
    }

    /// How many units a matrix has.
    pub(crate) const fn units(self, (rows, cols): (usize, usize)) -> usize {
        (rows * cols).div_ceil(self.unit())
    }

    /// The elements of this many units of a matrix, and their bytes.
    pub(crate) fn size_of_units(self, (rows, cols): (usize, usize), units: usize) -> (u64, u64) {
        let elements = (units * self.unit()).min(rows * cols);
        let [codes, scales, factors] = self.part_sizes(elements);
        (elements as u64, (codes + scales + factors) as u64)
    }

    /// The bytes of this many elements, by part: blocks, and the codes and the factors of scales that are apart.
    fn part_sizes(self, elements: usize) -> [usize; 3] {
        let (block, bytes) = self.block();
        let blocks = elements / block;
        match self {
            Self::Nf4 => [blocks * bytes, blocks, blocks.div_ceil(Scales::TOGETHER) * size_of::<f32>()],
            _ => [blocks * bytes, 0, 0],
        }
    }
}

/// The part of a matrix in blocks that one of some processes has: neighbouring units, as they are stored.
#[derive(Debug)]
pub struct Share {
    id: QuantizedId,
    format: Format,
    /// Of the whole matrix.
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    /// With the mean of all scales of the matrix.
    scales: Scales,
}

impl Share {
    /// These units of a matrix.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn of(whole: &Quantized, units: Range<usize>) -> Self {
        let Quantized { format, rows, cols, bytes, scales, .. } = whole;
        let place = |unit: usize| format.part_sizes((unit * format.unit()).min(rows * cols));
        let (first, end) = (place(units.start), place(units.end));
        Self {
            id: QuantizedId::new(),
            format: *format,
            rows: *rows,
            cols: *cols,
            bytes: bytes[first[0]..end[0]].to_vec(),
            scales: scales.part(first[1]..end[1], first[2] / size_of::<f32>()..end[2] / size_of::<f32>()),
        }
    }

    /// What tells it from all others, and from whole matrices.
    pub(crate) fn id(&self) -> QuantizedId {
        self.id
    }

    /// The blocks that are here.
    pub(crate) fn blocks(&self) -> &[u8] {
        &self.bytes
    }

    /// The codes and the factors of its scales, and the mean of those of the whole matrix, where scales are apart.
    pub(crate) fn scales(&self) -> Option<Parts<'_>> {
        (self.format == Format::Nf4).then(|| self.scales.parts())
    }

    /// How it is stored.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows and columns of the whole matrix.
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The memory that the part takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.bytes.len() + self.scales.bytes()) as u64
    }

    /// The bytes of each process's part, for each of the three parts that a matrix is stored in; `shares` are their units.
    pub(crate) fn counts(&self, shares: impl Iterator<Item = Range<usize>>) -> [Vec<usize>; 3] {
        let mut counts = [const { Vec::new() }; 3];
        for units in shares {
            let place = |unit: usize| self.format.part_sizes((unit * self.format.unit()).min(self.rows * self.cols));
            let (first, end) = (place(units.start), place(units.end));
            (0..3).for_each(|part| counts[part].push(end[part] - first[part]));
        }
        counts
    }

    /// The whole matrix, of whose three parts `gather` brings together what all processes have: it is given the number of the part,
    /// what is here, and where all of it goes.
    pub(crate) fn gathered<E>(
        &self,
        mut gather: impl FnMut(usize, &[u8], &mut [u8]) -> Result<(), E>,
    ) -> Result<Quantized, E> {
        let [codes, scales, factors] = self.format.part_sizes(self.rows * self.cols);
        let mut bytes = Bytes::pooled(codes);
        gather(0, &self.bytes, &mut bytes)?;
        let scales = match scales {
            0 => Scales::default(),
            _ => {
                self.scales.gathered((scales, factors / size_of::<f32>()), |part, mine, all| gather(part, mine, all))?
            }
        };
        Ok(Quantized { id: QuantizedId::new(), format: self.format, rows: self.rows, cols: self.cols, bytes, scales })
    }
}

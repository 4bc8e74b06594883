//! From numbers to the blocks of GGUF files, bit for bit as llama.cpp's reference functions make them.
//!
//! A block is a few numbers of a row with a scale of their own: 32 in the older formats (`short`), 256 in parts of 16 or 32
//! in the K formats (`long`). Their layouts are described in ggml's `ggml-common.h`. Errors may count by their columns, as an
//! importance matrix says.

mod kind;
mod long;
mod search;
mod short;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

pub use self::kind::FileKind;
use self::short::Columns;
use crate::kernels::parallel;
use crate::models::Format as Stored;

/// How numbers are stored in a file that is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    /// Its name, its number in files, the numbers of a block, and the block's bytes.
    const fn row(self) -> (&'static str, u32, usize, usize) {
        match self {
            Self::F32 => ("F32", 0, 1, 4),
            Self::F16 => ("F16", 1, 1, 2),
            Self::Bf16 => ("BF16", 30, 1, 2),
            Self::Q8_0 => ("Q8_0", 8, 32, 34),
            Self::Q4_0 => ("Q4_0", 2, 32, 18),
            Self::Q4_1 => ("Q4_1", 3, 32, 20),
            Self::Q5_0 => ("Q5_0", 6, 32, 22),
            Self::Q5_1 => ("Q5_1", 7, 32, 24),
            Self::Q4K => ("Q4_K", 12, 256, 144),
            Self::Q5K => ("Q5_K", 13, 256, 176),
            Self::Q6K => ("Q6_K", 14, 256, 210),
        }
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        self.row().0
    }

    /// Its number in files.
    pub(crate) fn id(self) -> u32 {
        self.row().1
    }

    /// How many numbers a block has; rows are made of whole blocks.
    pub(crate) fn block(self) -> usize {
        self.row().2
    }

    /// The bytes that this many numbers take.
    pub(crate) fn bytes(self, numbers: usize) -> usize {
        numbers / self.block() * self.row().3
    }

    /// The numbers as they are stored, on all cores. Their count is a multiple of [`Format::block`].
    pub(crate) fn encode(self, numbers: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes(numbers.len())];
        let many = self.block() * (4096 / self.block());
        parallel::each_chunk(&mut bytes, self.bytes(many), |i, bytes| self.encode_into(&numbers[i * many..], bytes));
        bytes
    }

    /// The same into memory that is there, without other cores.
    pub(crate) fn encode_into(self, numbers: &[f32], bytes: &mut [u8]) {
        let (_, _, block, size) = self.row();
        let encode: fn(&[f32], &mut [u8]) = match self {
            Self::F32 => |x, out| out.copy_from_slice(&x[0].to_le_bytes()),
            Self::F16 => |x, out| out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
            Self::Bf16 => |x, out| out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
            Self::Q8_0 => short::q8_0,
            Self::Q4_0 => short::q4_0,
            Self::Q4_1 => short::q4_1,
            Self::Q5_0 => short::q5_0,
            Self::Q5_1 => short::q5_1,
            Self::Q4K => |x, out| long::q4_k(x, None, out),
            Self::Q5K => |x, out| long::q5_k(x, None, out),
            Self::Q6K => |x, out| long::q6_k(x, None, out),
        };
        for (x, out) in numbers.chunks_exact(block).zip(bytes.chunks_exact_mut(size)) {
            encode(x, out);
        }
    }

    /// Whether scales are searched for, so that it matters which errors count how much.
    pub(crate) fn searches(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Q8_0)
    }

    /// The numbers of rows as they are stored where their errors count by their columns: as much as the numbers of `columns`,
    /// one for each of a row, say. Formats that search for no scale are as [`Format::encode`] has them.
    pub(crate) fn encode_by_columns(self, numbers: &[f32], columns: &[f32]) -> Vec<u8> {
        let encode: fn(&[f32], Columns<'_>, &mut [u8]) = match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::Q8_0 => return self.encode(numbers),
            Self::Q4_0 => short::q4_0_by_columns,
            Self::Q4_1 => short::q4_1_by_columns,
            Self::Q5_0 => short::q5_0_by_columns,
            Self::Q5_1 => short::q5_1_by_columns,
            Self::Q4K => |x, columns, out| long::q4_k(x, Some(columns.of), out),
            Self::Q5K => |x, columns, out| long::q5_k(x, Some(columns.of), out),
            Self::Q6K => |x, columns, out| long::q6_k(x, Some(columns.of), out),
        };
        let ((_, _, block, size), width) = (self.row(), columns.len());
        let mut bytes = vec![0; self.bytes(numbers.len())];
        parallel::each_chunk(&mut bytes, self.bytes(width), |row, bytes| {
            let x = &numbers[row * width..][..width];
            let spread = x.iter().fold(0.0, |sum, x| sum + x * x) / width as f32;
            let blocks = x.chunks_exact(block).zip(columns.chunks_exact(block)).zip(bytes.chunks_exact_mut(size));
            blocks.for_each(|((x, of), out)| encode(x, Columns { of, spread }, out));
        });
        bytes
    }
}

impl Format {
    /// What is read of numbers that are stored so, as many as `numbers` has room for.
    pub(crate) fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        let format = match self {
            Self::F32 => {
                let all = numbers.iter_mut().zip(bytes.as_chunks::<4>().0);
                return all.for_each(|(x, bytes)| *x = f32::from_le_bytes(*bytes));
            }
            Self::F16 => Stored::F16,
            Self::Bf16 => Stored::Bf16,
            Self::Q8_0 => Stored::Q8_0,
            Self::Q4_0 => Stored::Q4_0,
            Self::Q4_1 => Stored::Q4_1,
            Self::Q5_0 => Stored::Q5_0,
            Self::Q5_1 => Stored::Q5_1,
            Self::Q4K => Stored::Q4K,
            Self::Q5K => Stored::Q5K,
            Self::Q6K => Stored::Q6K,
        };
        format.dequantize(bytes, numbers);
    }
}

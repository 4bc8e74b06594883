//! From numbers to the blocks of GGUF files, bit for bit as llama.cpp's reference functions make them.
//!
//! A block is a few numbers of a row with a scale of their own: 32 in the older formats (`short`), 256 in parts of 16 or 32
//! in the K formats (`long`). Their layouts are described in ggml's `ggml-common.h`. Errors may count by their columns, as an
//! importance matrix says.

mod long;
mod search;
mod short;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

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

    /// The bytes that so many numbers take.
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

/// The kinds of files that are written: most tensors have one format, some a better one, as llama.cpp's own choice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// 32-bit floating point.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits and a scale for 32 numbers.
    Q8_0,
    /// 4 bits and a scale for 32 numbers.
    Q4_0,
    /// 4 bits with scales and offsets in 6 bits; some tensors in 6 bits.
    Q4KM,
    /// 5 bits with scales and offsets in 6 bits; some tensors in 6 bits.
    Q5KM,
    /// 6 bits with scales in 8.
    Q6K,
}

impl FileKind {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4KM, Self::Q5KM, Self::Q6K];

    /// What people call it, in small letters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4KM => "q4_k_m",
            Self::Q5KM => "q5_k_m",
            Self::Q6K => "q6_k",
        }
    }

    /// The one of a name, in letters of any size.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// `general.file_type`.
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// Whether numbers are stored in blocks.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.main().block() > 1
    }

    /// What most tensors are stored in.
    fn main(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::F16 => Format::F16,
            Self::Bf16 => Format::Bf16,
            Self::Q8_0 => Format::Q8_0,
            Self::Q4_0 => Format::Q4_0,
            Self::Q4KM => Format::Q4K,
            Self::Q5KM => Format::Q5K,
            Self::Q6K => Format::Q6K,
        }
    }

    /// What a tensor of this name and (row-major) shape is stored in, in a model of so many `blocks` that has an output
    /// layer of its own or not. This is the choice that llama.cpp's `quantize` makes without an importance matrix.
    pub(crate) fn of_tensor(self, name: &str, shape: &[usize], blocks: usize, has_output: bool) -> Format {
        let is_matrix = shape.len() > 1 && name.ends_with(".weight");
        // Few numbers, and much depends on each.
        if !is_matrix || name.ends_with("_norm.weight") || name.ends_with("ffn_gate_inp.weight") {
            return Format::F32;
        }
        let width = shape.last().copied().unwrap_or(0);
        let mut format = self.main();
        if self.is_quantized() {
            format = self.mixed(format, name, width, blocks, has_output);
            format = fitting(format, width);
        }
        format
    }

    /// The same with an importance matrix: llama.cpp then stores what puts out of the MLP in the first eighth of all blocks with an
    /// offset, where the file is one of `q4_0`.
    pub(crate) fn of_tensor_by_importance(
        self,
        name: &str,
        shape: &[usize],
        blocks: usize,
        has_output: bool,
    ) -> Format {
        match (self.of_tensor(name, shape, blocks, has_output), block_of(name)) {
            (Format::Q4_0, Some(block)) if name.contains("ffn_down") && block < blocks / 8 => Format::Q4_1,
            (format, _) => format,
        }
    }

    /// Whether an importance matrix makes a difference.
    #[must_use]
    pub fn takes_importance(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q4KM | Self::Q5KM | Self::Q6K)
    }

    fn mixed(self, main: Format, name: &str, width: usize, blocks: usize, has_output: bool) -> Format {
        let is_output = name == "output.weight" || (!has_output && name == "token_embd.weight");
        if is_output {
            return match main {
                Format::Q8_0 => main,
                _ if !width.is_multiple_of(Format::Q6K.block()) => Format::Q8_0,
                _ => Format::Q6K,
            };
        }
        let (Some(block), Self::Q4KM | Self::Q5KM) = (block_of(name), self) else { return main };
        if name.ends_with("attn_v.weight") || name.contains("ffn_down") {
            return if has_more_bits(block, blocks) { Format::Q6K } else { main };
        }
        match (name.ends_with("attn_qkv.weight"), self) {
            (true, Self::Q4KM) => Format::Q5K,
            (true, _) => Format::Q6K,
            (false, _) => main,
        }
    }
}

/// The block that a tensor is in.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Whether the values and the MLP's output of a block are stored in more bits: those of the first and the last eighth of
/// all blocks, and of each third one between.
fn has_more_bits(block: usize, blocks: usize) -> bool {
    let eighth = blocks / 8;
    block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2
}

/// The format where rows are made of whole blocks of it, else the next one of which they are.
fn fitting(format: Format, width: usize) -> Format {
    let fits = |format: Format| width.is_multiple_of(format.block());
    let second = match format {
        Format::Q4K => Format::Q5_0,
        Format::Q5K => Format::Q5_1,
        Format::Q6K => Format::Q8_0,
        other => other,
    };
    [format, second].into_iter().find(|format| fits(*format)).unwrap_or(Format::F16)
}

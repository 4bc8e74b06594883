//! Which of a file's tensors is stored how, as llama.cpp's `quantize` chooses.

use tune_config::Config;

use super::Format;

/// The kinds of files that are written: most tensors have one format, some a better one, as llama.cpp's own choice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum FileKind {
    /// 32-bit floating point.
    #[config(name = "f32")]
    F32,
    /// Half precision.
    #[config(name = "f16")]
    F16,
    /// bfloat16.
    #[config(name = "bf16")]
    Bf16,
    /// 8 bits and a scale for 32 numbers.
    #[config(name = "q8_0")]
    Q8_0,
    /// 4 bits and a scale for 32 numbers.
    #[config(name = "q4_0", default)]
    Q4_0,
    /// 4 bits with scales and offsets in 6 bits; some tensors in 6 bits.
    #[config(name = "q4_k_m")]
    Q4KM,
    /// 5 bits with scales and offsets in 6 bits; some tensors in 6 bits.
    #[config(name = "q5_k_m")]
    Q5KM,
    /// 6 bits with scales in 8.
    #[config(name = "q6_k")]
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

use super::both;
use crate::buffer::{Buffer, Element, View, ViewMut};
use crate::context::Context;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

static WEIGHT: [Kernel; 2] = both("fake_quant", ["fake_quant_weight_f32", "fake_quant_weight_bf16"], "pplli");
static WEIGHT_BACKWARD: [Kernel; 2] =
    both("fake_quant", ["fake_quant_weight_backward_f32", "fake_quant_weight_backward_bf16"], "pplli");
static TOKENS: [Kernel; 2] = both("fake_quant", ["fake_quant_tokens_f32", "fake_quant_tokens_bf16"], "ppllll");
static TOKENS_BACKWARD: [Kernel; 2] =
    both("fake_quant", ["fake_quant_tokens_backward_f32", "fake_quant_tokens_backward_bf16"], "ppplllll");
static SHORT_BLOCKS: [Kernel; 2] = both("fake_blocks", ["fake_short_blocks_f32", "fake_short_blocks_bf16"], "ppli");
static EIGHTHS: [Kernel; 2] = both("fake_blocks", ["fake_eighths_f32", "fake_eighths_bf16"], "ppli");
static SIXTEENTHS: [Kernel; 2] = both("fake_blocks", ["fake_sixteenths_f32", "fake_sixteenths_bf16"], "ppl");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] =
    &[&WEIGHT, &WEIGHT_BACKWARD, &TOKENS, &TOKENS_BACKWARD, &SHORT_BLOCKS, &EIGHTHS, &SIXTEENTHS];

const THREADS: usize = 256;

/// The levels that the numbers of a weight are rounded to, as the processor has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// Sixteen about zero, for each group of this many neighbours.
    Int4 {
        /// Numbers of a group.
        group: usize,
    },
    /// Sixteen from the least to the largest number of a group.
    Int4Affine {
        /// Numbers of a group.
        group: usize,
    },
    /// What a GGUF file stores.
    File(FileFormat),
}

/// Formats of GGUF files, each with its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FileFormat {
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q4K = 12,
    Q5K = 13,
    Q6K = 14,
    Bf16 = 30,
}

impl FileFormat {
    /// How many numbers a block has.
    #[must_use]
    pub const fn block(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 1,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
        }
    }
}

impl Levels {
    /// How many neighbours have levels of their own.
    #[must_use]
    pub const fn group(self) -> usize {
        match self {
            Self::Int4 { group } | Self::Int4Affine { group } => group,
            Self::File(format) => format.block(),
        }
    }
}

impl Context {
    /// `y = x`, each number rounded to the nearest of its levels.
    ///
    /// # Panics
    /// If they differ in length, or are not made of whole groups.
    pub fn round_weight<T: Element>(&self, levels: Levels, x: &Buffer<T>, y: &mut Buffer<T>) {
        let n = x.len();
        assert!(y.len() == n && n.is_multiple_of(levels.group()), "round_weight: sizes that do not fit");
        let launch = |kernels: &'static [Kernel; 2]| {
            Launch::new(self, &kernels[T::INDEX]).pointer(y.address()).pointer(x.address())
        };
        let blocks = |each: usize| Size::row(n.div_ceil(each * THREADS).min(MOST_ROWS), THREADS, 0);
        match levels {
            Levels::Int4 { group } | Levels::Int4Affine { group } => {
                let affine = usize::from(matches!(levels, Levels::Int4Affine { .. }));
                launch(&WEIGHT).long(n / group).long(group).int(affine).go(groups(n / group));
            }
            Levels::File(format @ (FileFormat::Q4K | FileFormat::Q5K)) => {
                launch(&EIGHTHS).long(n).int(usize::from(format == FileFormat::Q5K)).go(blocks(32));
            }
            Levels::File(FileFormat::Q6K) => launch(&SIXTEENTHS).long(n).go(blocks(16)),
            Levels::File(format) => launch(&SHORT_BLOCKS).long(n).int(format as usize).go(blocks(1)),
        }
    }

    /// The gradient of the weight `x`, for that of the rounded one, in its place: zero where a number is beyond the outermost level. What
    /// a file stores has no such.
    ///
    /// # Panics
    /// If they differ in length, or are not made of whole groups.
    pub fn round_weight_back<T: Element>(&self, levels: Levels, x: &Buffer<T>, g: &mut Buffer<f32>) {
        let n = x.len();
        assert!(g.len() == n && n.is_multiple_of(levels.group()), "round_weight_back: sizes that do not fit");
        let (Levels::Int4 { group } | Levels::Int4Affine { group }) = levels else { return };
        Launch::new(self, &WEIGHT_BACKWARD[T::INDEX])
            .pointer(g.address())
            .pointer(x.address())
            .long(n / group)
            .long(group)
            .int(usize::from(matches!(levels, Levels::Int4Affine { .. })))
            .go(groups(n / group));
    }

    /// The rows of `x` `[m, n]`, each rounded to 8 bits between its own least and largest number, into `y`.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn round_rows<T: Element>(&self, x: View<'_, T>, y: ViewMut<'_, T>) {
        assert_eq!(x.shape(), y.shape(), "round_rows: shapes that do not fit");
        Launch::new(self, &TOKENS[T::INDEX])
            .pointer(y.address)
            .pointer(x.address)
            .long(x.rows)
            .long(x.cols)
            .long(y.stride)
            .long(x.stride)
            .go(rows::<T>(x.rows, x.cols));
    }

    /// The gradient of such rows, for that of the rounded ones, in its place, and what is in `onto` added to it.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn round_rows_back<T: Element>(&self, x: View<'_, T>, onto: Option<View<'_, T>>, g: ViewMut<'_, T>) {
        let fits = x.shape() == g.shape() && onto.is_none_or(|onto| onto.shape() == x.shape());
        assert!(fits, "round_rows_back: shapes that do not fit");
        Launch::new(self, &TOKENS_BACKWARD[T::INDEX])
            .pointer(g.address)
            .pointer(x.address)
            .pointer(onto.map_or(0, |onto| onto.address))
            .long(x.rows)
            .long(x.cols)
            .long(g.stride)
            .long(x.stride)
            .long(onto.map_or(0, |onto| onto.stride))
            .go(rows::<T>(x.rows, x.cols));
    }
}

/// A warp for each group.
fn groups(count: usize) -> Size {
    Size::row(count.div_ceil(THREADS / 32).min(MOST_ROWS), THREADS, 0)
}

/// A block for each row.
fn rows<T>(rows: usize, cols: usize) -> Size {
    let threads = cols.div_ceil(crate::buffer::wide::<T>()).next_multiple_of(32).clamp(32, THREADS);
    Size::row(if cols == 0 { 0 } else { rows.min(MOST_ROWS) }, threads, 4 * threads / 32)
}

//! Fake quantization: numbers are rounded to the few levels that a quantized model has, and are numbers still. A model that is
//! trained so learns to live with the rounding (Jacob et al. 2018, <https://arxiv.org/abs/1712.05877>).
//!
//! On the way back a gradient passes as if nothing had been rounded (the straight-through estimator, Bengio et al. 2013,
//! <https://arxiv.org/abs/1308.3432>), but for numbers beyond the outermost level, whose gradient is zero. Scales count as
//! constants. This is what torchao's `torchao.quantization.qat` does in versions 0.12 to 0.18, by torch's clamp, whose gradient is 1
//! at its bounds in PyTorch's source; in torch 2.15.0 it was measured to be 0 there, so that numbers at the outermost level get no
//! gradient. Numbers are rounded in f32 also where they are stored in bf16.

use half::f16;

use super::view::{View, ViewMut};
use super::{Element, parallel, simd};
use crate::checkpoint::gguf::TensorFormat;

/// Elements that one task handles, about.
const TASK: usize = 1 << 14;

/// Elements of blocks that are encoded at a time.
const PIECE: usize = 4096;

/// Lanes of which each finds its own extremes.
const LANES: usize = 16;

/// The levels that the numbers of a weight are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Levels {
    /// `x = s q`, `-8 <= q <= 7`, with `s` two fifteenths of the largest magnitude of each group of this many elements of a row.
    Int4 { group: usize },
    /// `x = s (q - 8) + z`, `0 <= q <= 15`, from the least to the largest number of a group; `s` and `z` are rounded to bf16.
    Int4Affine { group: usize },
    /// What a GGUF file stores, bit for bit.
    Blocks(TensorFormat),
}

impl Levels {
    /// How many neighbouring elements of a row have levels of their own.
    pub(crate) fn group(self) -> usize {
        match self {
            Self::Int4 { group } | Self::Int4Affine { group } => group,
            Self::Blocks(format) => format.block(),
        }
    }

    /// Whether numbers may be beyond the outermost level and get no gradient.
    pub(crate) fn are_limited(self) -> bool {
        !matches!(self, Self::Blocks(_))
    }
}

/// How numbers of a group become integers and numbers again.
trait Grid: Copy + Send + Sync {
    /// The least integer, and the largest.
    const ENDS: (f32, f32);

    /// For numbers of which these are the least and the largest.
    fn new(least: f32, largest: f32) -> Self;

    /// The nearest integer, be it beyond the ends.
    fn integer(self, x: f32) -> f32;

    /// The number that an integer stands for.
    fn number(self, q: f32) -> f32;
}

/// See [`Levels::Int4`].
#[derive(Clone, Copy)]
struct Int4 {
    scale: f32,
    inverse: f32,
}

impl Grid for Int4 {
    const ENDS: (f32, f32) = (-8.0, 7.0);

    #[inline(always)]
    fn new(least: f32, largest: f32) -> Self {
        let scale = (-least.min(0.0)).max(largest.max(0.0)) / 7.5;
        // As in torchao 0.18; versions 0.12 to 0.17 have the epsilon of the weights' type.
        let scale = scale.max(f32::MIN_POSITIVE);
        Self { scale, inverse: 1.0 / scale }
    }

    #[inline(always)]
    fn integer(self, x: f32) -> f32 {
        (x * self.inverse).round_ties_even()
    }

    #[inline(always)]
    fn number(self, q: f32) -> f32 {
        q * self.scale
    }
}

/// See [`Levels::Int4Affine`].
#[derive(Clone, Copy)]
struct Int4Affine {
    scale: f32,
    zero: f32,
    least: f32,
}

impl Int4Affine {
    /// The least scale.
    const LEAST: f32 = 1e-6;
}

impl Grid for Int4Affine {
    const ENDS: (f32, f32) = (0.0, 15.0);

    #[inline(always)]
    fn new(least: f32, largest: f32) -> Self {
        let exact = ((largest - least) / 15.0).max(Self::LEAST);
        let (scale, zero) = (to_bf16(exact), to_bf16(least + exact * 8.0));
        Self { scale, zero, least: to_bf16(zero - scale * 8.0) }
    }

    #[inline(always)]
    fn integer(self, x: f32) -> f32 {
        ((x - self.least) / self.scale).round_ties_even()
    }

    #[inline(always)]
    fn number(self, q: f32) -> f32 {
        (q - 8.0) * self.scale + self.zero
    }
}

#[inline(always)]
fn to_bf16(x: f32) -> f32 {
    <half::bf16 as Element>::from_f32(x).to_f32()
}

/// `x = s (q - z)`, `-128 <= q <= 127`, such that zero is exact: what the elements of a token become.
#[derive(Clone, Copy)]
struct Int8 {
    scale: f32,
    inverse: f32,
    zero: f32,
}

impl Grid for Int8 {
    const ENDS: (f32, f32) = (-128.0, 127.0);

    #[inline(always)]
    fn new(least: f32, largest: f32) -> Self {
        let (least, largest) = (least.min(0.0), largest.max(0.0));
        let scale = ((largest - least) / 255.0).max(f32::EPSILON);
        let zero = (Self::ENDS.0 - (least / scale).round_ties_even()).clamp(Self::ENDS.0, Self::ENDS.1);
        Self { scale, inverse: 1.0 / scale, zero }
    }

    #[inline(always)]
    fn integer(self, x: f32) -> f32 {
        (x * self.inverse).round_ties_even() + self.zero
    }

    #[inline(always)]
    fn number(self, q: f32) -> f32 {
        (q - self.zero) * self.scale
    }
}

/// The least and the largest of some numbers.
#[inline(always)]
fn extremes<T: Element>(x: &[T]) -> (f32, f32) {
    let (mut least, mut largest) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (parts, rest) = x.as_chunks::<LANES>();
    for part in parts {
        see(part, &mut least, &mut largest);
    }
    see(rest, &mut least, &mut largest);
    (least.into_iter().fold(f32::INFINITY, f32::min), largest.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// Each number in a lane of its own.
#[inline(always)]
fn see<T: Element>(x: &[T], least: &mut [f32; LANES], largest: &mut [f32; LANES]) {
    for ((least, largest), x) in least.iter_mut().zip(largest).zip(x) {
        let x = x.to_f32();
        *least = if x < *least { x } else { *least };
        *largest = if x > *largest { x } else { *largest };
    }
}

/// Rounds the numbers of a group.
#[inline(always)]
fn round<G: Grid, T: Element>(x: &[T], y: &mut [T]) {
    let (least, largest) = extremes(x);
    let grid = G::new(least, largest);
    for (y, x) in y.iter_mut().zip(x) {
        *y = T::from_f32(grid.number(grid.integer(x.to_f32()).clamp(G::ENDS.0, G::ENDS.1)));
    }
}

/// The gradients of a group's numbers, which are those of the rounded ones within the ends.
#[inline(always)]
fn limit<G: Grid, T: Element, S: Element>(x: &[T], g: &mut [S]) {
    let (least, largest) = extremes(x);
    let grid = G::new(least, largest);
    for (g, x) in g.iter_mut().zip(x) {
        let q = grid.integer(x.to_f32());
        *g = if q >= G::ENDS.0 && q <= G::ENDS.1 { *g } else { S::from_f32(0.0) };
    }
}

/// The weight `x`, whose rows are made of whole groups, rounded into `y`.
pub(crate) fn weight<T: Element>(levels: Levels, x: &[T], y: &mut [T]) {
    match levels {
        Levels::Int4 { group } => in_groups(group, x, y, round::<Int4, T>),
        Levels::Int4Affine { group } => in_groups(group, x, y, round::<Int4Affine, T>),
        // Of any count: what is read of files comes in blocks of sixteen.
        Levels::Blocks(TensorFormat::F16) => each(x, y, |x| f16::from_f32(x).to_f32()),
        Levels::Blocks(TensorFormat::Bf16) => each(x, y, to_bf16),
        Levels::Blocks(format) => in_blocks(format, x, y),
    }
}

/// Rounds each number by itself.
fn each<T: Element>(x: &[T], y: &mut [T], of: impl Fn(f32) -> f32 + Sync) {
    parallel::each_chunk(y, TASK, |i, y| {
        y.iter_mut().zip(&x[i * TASK..]).for_each(|(y, x)| *y = T::from_f32(of(x.to_f32())));
    });
}

/// The gradient of the weight `x`, for that of the rounded one, in its place.
pub(crate) fn weight_back<T: Element>(levels: Levels, x: &[T], g: &mut [f32]) {
    match levels {
        Levels::Int4 { group } => in_groups(group, x, g, limit::<Int4, T, f32>),
        Levels::Int4Affine { group } => in_groups(group, x, g, limit::<Int4Affine, T, f32>),
        Levels::Blocks(_) => {}
    }
}

/// Does something to each group.
fn in_groups<T: Element, S: Element>(group: usize, x: &[T], y: &mut [S], of_group: impl Fn(&[T], &mut [S]) + Sync) {
    let many = group * (TASK / group).max(1);
    parallel::each_chunk(y, many, |i, y| {
        let x = &x[i * many..][..y.len()];
        simd(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(group).zip(x.chunks_exact(group)) {
                    of_group(x, y);
                }
            },
        );
    });
}

/// Encodes numbers as a file has them, and reads them again.
fn in_blocks<T: Element>(format: TensorFormat, x: &[T], y: &mut [T]) {
    let many = format.block() * (PIECE / format.block());
    parallel::each_chunk(y, many, |i, y| {
        let x = &x[i * many..][..y.len()];
        let (mut wide, mut bytes) = ([0f32; PIECE], [0u8; 4 * PIECE]);
        let (wide, bytes) = (&mut wide[..x.len()], &mut bytes[..format.bytes(x.len())]);
        super::widen(x, wide);
        format.encode_into(wide, bytes);
        format.decode(bytes, wide);
        y.iter_mut().zip(wide).for_each(|(y, x)| *y = T::from_f32(*x));
    });
}

/// Rows that one task handles.
fn rows(cols: usize) -> usize {
    (TASK / cols.max(1)).max(1)
}

/// The tokens `x` `[m, n]`, each rounded to 8 bits between its own least and largest element, into `y`.
pub(crate) fn tokens<T: Element>(x: View<'_, T>, y: ViewMut<'_, T>) {
    let rows = rows(x.cols());
    y.each_task(rows, |first, mut y| {
        simd(
            #[inline(always)]
            || (0..y.rows()).for_each(|row| round::<Int8, T>(x.row(first + row), y.row(row))),
        );
    });
}

/// The gradient of the tokens `x`, for that of the rounded ones, in its place, and what is in `onto` added to it.
pub(crate) fn tokens_back<T: Element>(x: View<'_, T>, onto: Option<View<'_, T>>, g: ViewMut<'_, T>) {
    let rows = rows(x.cols());
    g.each_task(rows, |first, mut g| {
        simd(
            #[inline(always)]
            || {
                for row in 0..g.rows() {
                    limit::<Int8, T, T>(x.row(first + row), g.row(row));
                    if let Some(onto) = onto {
                        let sums = g.row(row).iter_mut().zip(onto.row(first + row));
                        sums.for_each(|(g, more)| *g = T::from_f32(g.to_f32() + more.to_f32()));
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests;

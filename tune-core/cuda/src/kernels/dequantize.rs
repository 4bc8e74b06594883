use super::one;
use crate::buffer::{Buffer, Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;
use crate::products::{Onto, Term};

/// How weights in blocks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// llama.cpp's, by its names.
    Q4_0,
    /// As above.
    Q4_1,
    /// As above.
    Q5_0,
    /// As above.
    Q5_1,
    /// As above.
    Q8_0,
    /// As above.
    Iq4Nl,
    /// As above.
    Q2K,
    /// As above.
    Q3K,
    /// As above.
    Q4K,
    /// As above.
    Q5K,
    /// As above.
    Q6K,
    /// 4-bit NormalFloat in blocks of 64, whose scales are quantized themselves.
    Nf4,
}

const PARAMETERS: &str = "ppppplllllf";

/// The kernels of a format, for f32 and bf16.
macro_rules! kernels {
    ($($name:literal),*) => {
        [$([
            one("dequantize", concat!("dequantize_", $name, "_f32"), PARAMETERS),
            one("dequantize", concat!("dequantize_", $name, "_bf16"), PARAMETERS),
        ]),*]
    };
}

/// In the order of [`BlockFormat`].
static DEQUANTIZE: [[Kernel; 2]; 14] = kernels![
    "f16", "brain16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "nf4"
];

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[DEQUANTIZE.as_flattened()];

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Iq4Nl,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Nf4,
    ];

    /// Elements of a block, and its bytes.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F16 | Self::Bf16 => (16, 32),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Nf4 => (64, 32),
        }
    }
}

/// Blocks whose scales share a factor, in [`BlockFormat::Nf4`].
const TOGETHER: usize = 256;

/// A matrix `[rows, cols]` in blocks, on the card, as it is in a file or in memory.
#[derive(Debug)]
pub struct Blocks {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    bytes: Buffer<u8>,
    scales: Option<BlockScales>,
}

/// The scales of [`BlockFormat::Nf4`]: `code / factor + mean` for each block, a factor for each 256.
#[derive(Debug)]
struct BlockScales {
    codes: Buffer<i8>,
    factors: Buffer<f32>,
    mean: f32,
}

impl Blocks {
    /// A matrix whose blocks are on the card, for [`BlockFormat::Nf4`] with the codes, the factors and the mean of its scales.
    ///
    /// # Panics
    /// If they are not as many bytes as such a matrix has.
    pub fn new(
        format: BlockFormat,
        (rows, cols): (usize, usize),
        bytes: Buffer<u8>,
        scales: Option<(Buffer<i8>, Buffer<f32>, f32)>,
    ) -> Self {
        let (elements, size) = format.block();
        let blocks = rows * cols / elements;
        let are_whole = blocks * elements == rows * cols && bytes.len() == blocks * size;
        let have_scales = match &scales {
            Some((codes, factors, _)) => codes.len() == blocks && factors.len() == blocks.div_ceil(TOGETHER),
            None => true,
        };
        let fits = are_whole && have_scales && (format == BlockFormat::Nf4) == scales.is_some();
        assert!(fits, "a matrix in blocks: sizes that do not fit");
        let scales = scales.map(|(codes, factors, mean)| BlockScales { codes, factors, mean });
        Self { format, rows, cols, bytes, scales }
    }

    /// Rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// `rows` of its rows, from `first` on: a weight in a product.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn rows(&self, first: usize, rows: usize) -> BlockRows<'_> {
        assert!(first + rows <= self.rows, "rows outside of a matrix in blocks");
        BlockRows { of: self, first, rows }
    }
}

/// Some rows of a matrix in blocks.
#[derive(Debug, Clone, Copy)]
pub struct BlockRows<'a> {
    of: &'a Blocks,
    first: usize,
    rows: usize,
}

/// What a weight in blocks is multiplied with, by the product's part in a layer.
#[derive(Debug, Clone, Copy)]
pub enum Beside<'a, T> {
    /// `x` `[m, k]`, in `x · wᵀ` for `w` `[n, k]`.
    Up(View<'a, T>),
    /// `g` `[m, n]`, in `g · w` for `w` `[n, k]`.
    Down(View<'a, T>),
}

/// Parts of a side of this many rows or columns, each of which has `most` elements at most where the other side has `other`, if that can be:
/// where they begin, and how long they are. All are about as long, and begin where a card reads well.
pub fn panels(len: usize, other: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = len.div_ceil((most / other.max(1)).max(1)).max(1);
    let each = len.div_ceil(count).next_multiple_of(64).max(64);
    (0..len).step_by(each).map(move |first| (first, each.min(len - first)))
}

impl Context {
    /// Copies a matrix in blocks to the card, for [`BlockFormat::Nf4`] with the codes, the factors and the mean of its scales. Returns
    /// when the originals may be changed again.
    ///
    /// # Panics
    /// If they are not as many bytes as such a matrix has.
    pub fn upload_blocks(
        &self,
        format: BlockFormat,
        (rows, cols): (usize, usize),
        bytes: &[u8],
        scales: Option<(&[i8], &[f32], f32)>,
    ) -> Blocks {
        let scales = scales.map(|(codes, factors, mean)| (self.upload(codes), self.upload(factors), mean));
        Blocks::new(format, (rows, cols), self.upload(bytes), scales)
    }

    /// The elements of some rows and columns of a matrix, those from `(row, col)` on: as many as `y` `[rows, cols]` has.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn dequantize<T: Element>(&self, of: &Blocks, (row, col): (usize, usize), y: ViewMut<'_, T>) {
        let (rows, cols) = y.shape();
        assert!(row + rows <= of.rows && col + cols <= of.cols, "dequantize: shapes that do not fit");
        let first = row * of.cols + col;
        // Whole rows without gaps are one row.
        match cols == of.cols && (y.stride == cols || rows == 1) {
            true => self.dequantize_rows(of, None, (1, rows * cols), first, y),
            false => self.dequantize_rows(of, None, (rows, cols), first, y),
        }
    }

    /// Rows `ids` of a table in blocks: `y[i] = table[ids[i]]`. Nobody checks that the table has those rows.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn lookup_blocks<T: Element>(&self, table: &Blocks, ids: &Buffer<u32>, y: ViewMut<'_, T>) {
        let shape = y.shape();
        assert!(shape == (ids.len(), table.cols), "lookup_blocks: shapes that do not fit");
        self.dequantize_rows(table, Some(ids), shape, 0, y);
    }

    fn dequantize_rows<T: Element>(
        &self,
        of: &Blocks,
        ids: Option<&Buffer<u32>>,
        (rows, cols): (usize, usize),
        first: usize,
        y: ViewMut<'_, T>,
    ) {
        if rows == 0 || cols == 0 {
            return;
        }
        // A row may begin and end within what a thread stores.
        let pieces = cols / wide::<T>() + 2;
        let threads = pieces.next_multiple_of(32).min(256);
        let grid = Size::matrix(rows, pieces, 1, threads).grid;
        let scales = of.scales.as_ref();
        Launch::new(self, &DEQUANTIZE[of.format as usize][T::INDEX])
            .pointer(y.address)
            .pointer(of.bytes.address())
            .pointer(scales.map_or(0, |scales| scales.codes.address()))
            .pointer(scales.map_or(0, |scales| scales.factors.address()))
            .pointer(super::address(ids))
            .long(rows)
            .long(cols)
            .long(y.stride)
            .long(of.cols)
            .long(first)
            .float(scales.map_or(0.0, |scales| scales.mean))
            .go(Size { grid, threads: [threads, 1], shared: 16 * size_of::<f32>() });
    }

    /// A product with a weight in blocks, see [`Context::multiply`]. Of the weight `most` elements are numbers at a time, if a row or a
    /// column has no more; a result's sums are made at once all the same, for it is parted where results are.
    ///
    /// # Panics
    /// If shapes do not fit.
    // A view to be written is given away.
    #[allow(clippy::needless_pass_by_value)]
    pub fn multiply_blocks<T: Element, D: Element>(
        &self,
        beside: Beside<'_, T>,
        w: BlockRows<'_>,
        most: usize,
        factor: f32,
        onto: Onto<'_, D>,
        mut y: ViewMut<'_, D>,
    ) {
        let width = w.of.cols;
        let (of_results, inner) = match beside {
            Beside::Up(_) => (w.rows, width),
            Beside::Down(_) => (width, w.rows),
        };
        assert_eq!(y.shape().1, of_results, "multiply_blocks: shapes that do not fit");
        if y.shape().0 == 0 {
            return;
        }
        for (first, count) in panels(of_results, inner, most) {
            let mut panel = self.buffer::<T>(count * inner);
            let (at, cols) = match beside {
                Beside::Up(_) => ((w.first + first, 0), width),
                Beside::Down(_) => ((w.first, first), count),
            };
            self.dequantize(w.of, at, panel.view_mut(cols));
            let term = match beside {
                Beside::Up(x) => Term::Up { x, w: panel.view(cols) },
                Beside::Down(g) => Term::Down { g, w: panel.view(cols) },
            };
            let onto = match onto {
                Onto::Other(other) => Onto::Other(other.columns(first, count)),
                onto => onto,
            };
            self.multiply(term, factor, None, onto, y.reborrow().columns(first, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_all_of_a_side_and_no_larger_than_may_be() {
        for (len, other, most) in [(128_256, 4096, 1 << 27), (4096, 128_256, 1 << 27), (14_336, 4096, 1 << 27)] {
            let parts: Vec<_> = panels(len, other, most).collect();
            let mut next = 0;
            for &(first, count) in &parts {
                assert!(first == next && first % 64 == 0 && count * other <= most + 64 * other);
                next += count;
            }
            assert_eq!((next, parts.len() == 1), (len, len * other <= most), "{parts:?}");
        }
        assert_eq!(panels(200, 100, 1).collect::<Vec<_>>(), [(0, 64), (64, 64), (128, 64), (192, 8)]);
        assert_eq!(panels(0, 5, 10).count(), 0);
    }
}

//! Operands brought into tiles. A tile of a left side is sixteen rows of 32 elements; one of a right side is sixteen columns of
//! 32 elements, in sixteen rows of pairs. What is missing at the edges is zeros.

use std::arch::x86_64::{
    __m512i, __mmask32, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi16,
    _mm512_permutex2var_epi64, _mm512_setr_epi64, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_unpackhi_epi16,
    _mm512_unpacklo_epi16,
};
use std::ops::Range;

use super::tiles::TILE;
use super::{BLOCK, INNER, TILE_WORDS};
use crate::kernels::Element;
use crate::kernels::gemm::pack::transpose;
use crate::kernels::gemm::{Right, Side};
use crate::kernels::view::View;

/// Elements of a row in blocks that are dequantized at a time.
const SPAN: usize = 4 * INNER;

/// Elements `inner` of columns `cols` of a right side into `dst`: for each step the tiles of sixteen columns each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn right<T: Element>(of: &Right<'_, T>, cols: &Range<usize>, inner: Range<usize>, dst: &mut [f32]) {
    let step = cols.len().div_ceil(TILE) * TILE_WORDS;
    let zero = T::from_f32(0.0);
    match of {
        Right::Stored(Side::Columns(r)) => columns(r.part(cols.clone(), inner), dst),
        Right::Stored(Side::Rows(r)) => rows(r.part(inner, cols.clone()), dst),
        Right::QuantizedColumns(w) => {
            let mut lines = [zero; BLOCK * SPAN];
            for (from, dst) in inner.clone().step_by(SPAN).zip(dst.chunks_mut(SPAN / INNER * step)) {
                let len = SPAN.min(inner.end - from);
                for (row, line) in cols.clone().zip(lines.chunks_exact_mut(SPAN)) {
                    w.dequantize(row, from, &mut line[..len]);
                }
                columns(View::strided(&lines, (cols.len(), len), SPAN), dst);
            }
        }
        Right::Quantized(w) => {
            let mut lines = [zero; INNER * BLOCK];
            for (from, dst) in inner.clone().step_by(INNER).zip(dst.chunks_exact_mut(step)) {
                let len = INNER.min(inner.end - from);
                for (row, line) in (from..from + len).zip(lines.chunks_exact_mut(BLOCK)) {
                    w.dequantize(row, cols.start, &mut line[..cols.len()]);
                }
                rows(View::strided(&lines, (len, cols.len()), BLOCK), dst);
            }
        }
    }
}

/// At most [`BLOCK`] rows of a left side that is stored as it is: for each step two tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn left<T: Element>(from: View<'_, T>, dst: &mut [f32]) {
    for (step, tiles) in dst.chunks_exact_mut(2 * TILE_WORDS).enumerate() {
        for (row, line) in tiles.chunks_exact_mut(TILE).enumerate() {
            store(if row < from.rows() { load(from.row(row), step * INNER) } else { _mm512_setzero_si512() }, line);
        }
    }
}

/// At most [`BLOCK`] rows of a left side whose transpose is stored: for each step two tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn left_of_columns<T: Element>(from: View<'_, T>, dst: &mut [f32]) {
    if from.cols() <= TILE {
        // One tile a step, where two have room.
        for (first, tiles) in (0..from.rows()).step_by(INNER).zip(dst.chunks_exact_mut(2 * TILE_WORDS)) {
            let (tile, rest) = tiles.split_at_mut(TILE_WORDS);
            rows(from.part(first..from.rows().min(first + INNER), 0..from.cols()), tile);
            rest.fill(0.0);
        }
    } else {
        rows(from, dst);
    }
    for tile in dst.chunks_exact_mut(TILE_WORDS) {
        let mut lines = [_mm512_setzero_si512(); TILE];
        for (line, words) in lines.iter_mut().zip(tile.chunks_exact(TILE)) {
            // SAFETY: sixteen words are there.
            *line = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        }
        store_all(lines, tile);
    }
}

/// Rows of elements as columns: for each step the tiles of sixteen rows each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn columns<T: Element>(from: View<'_, T>, dst: &mut [f32]) {
    let tiles = from.rows().div_ceil(TILE);
    for (step, of_step) in dst.chunks_exact_mut(tiles * TILE_WORDS).enumerate() {
        for (half, tile) in of_step.chunks_exact_mut(TILE_WORDS).enumerate() {
            let mut lines = [_mm512_setzero_si512(); TILE];
            for (line, row) in lines.iter_mut().zip(half * TILE..from.rows()) {
                *line = load(from.row(row), step * INNER);
            }
            store_all(lines, tile);
        }
    }
}

/// Rows of elements as rows of pairs: for each step of 32 rows the tiles of sixteen columns each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn rows<T: Element>(from: View<'_, T>, dst: &mut [f32]) {
    let tiles = from.cols().div_ceil(TILE);
    // Unpacking leaves the pairs of four columns here, those of the next four there.
    let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (step, of_step) in dst.chunks_exact_mut(tiles * TILE_WORDS).enumerate() {
        let row = |k: usize| if k < from.rows() { load(from.row(k), 0) } else { _mm512_setzero_si512() };
        for pair in 0..TILE {
            let k = step * INNER + 2 * pair;
            let (even, odd) = (row(k), row(k + 1));
            let (low, high) = (_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
            store(_mm512_permutex2var_epi64(low, first, high), &mut of_step[pair * TILE..][..TILE]);
            if let Some(line) = of_step.get_mut(TILE_WORDS + pair * TILE..).and_then(|rest| rest.get_mut(..TILE)) {
                store(_mm512_permutex2var_epi64(low, second, high), line);
            }
        }
    }
}

/// 32 elements of a row from `from` on; where it ends before, zeros.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load<T: Element>(row: &[T], from: usize) -> __m512i {
    assert!(T::IS_BF16, "tiles hold bf16");
    let rest = &row[from.min(row.len())..];
    let mask: __mmask32 = if rest.len() >= INNER { !0 } else { (1 << rest.len()) - 1 };
    // SAFETY: the elements of `rest` are two bytes each, and no others are read.
    unsafe { _mm512_maskz_loadu_epi16(mask, rest.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(words: __m512i, to: &mut [f32]) {
    assert!(to.len() == TILE, "a row of a tile");
    // SAFETY: it has sixteen words.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
}

/// The transpose of sixteen rows of words.
#[target_feature(enable = "avx512f")]
#[inline]
fn store_all(lines: [__m512i; TILE], tile: &mut [f32]) {
    let columns = transpose(lines.map(|line| _mm512_castsi512_ps(line)));
    for (column, to) in columns.iter().zip(tile.chunks_exact_mut(TILE)) {
        store(_mm512_castps_si512(*column), to);
    }
}

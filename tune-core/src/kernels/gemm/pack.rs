//! Operands brought into the order in which tiles read them.

use std::arch::x86_64::{
    __m256i, __m512, __m512d, __mmask16, _mm256_loadu_epi16, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
    _mm512_unpacklo_ps,
};
use std::ops::Range;

use super::{COLS, LANES, ROWS, Right, Side, Term};
use crate::kernels::isa::Isa;
use crate::kernels::quantized::{Rows, UNIT};
use crate::kernels::view::View;
use crate::kernels::workspace::Workspace;
use crate::kernels::{Element, Shared, parallel, simd, widen};

/// Rows below which a right side is read where it is: packing it would cost as much as using it.
const FEW_ROWS: usize = 64;

/// What a word of the inner dimension is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// An f32.
    F32,
    /// A bf16, widened to f32 on the way.
    Widened,
    /// Two neighbouring bf16.
    Pair,
}

impl Word {
    pub(super) fn of<T: Element>(isa: Isa) -> Self {
        match (T::IS_BF16, isa) {
            (false, _) => Self::F32,
            (true, Isa::Avx512Bf16) => Self::Pair,
            (true, _) => Self::Widened,
        }
    }

    /// Elements in a word.
    pub(super) fn elements(self) -> usize {
        if self == Self::Pair { 2 } else { 1 }
    }

    /// Words of an inner dimension of `k` elements.
    pub(super) fn steps(self, k: usize) -> usize {
        k.div_ceil(self.elements())
    }
}

/// How a left side is rewritten where tiles cannot read it as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewriting {
    Widened,
    InTiles,
    Interleaved,
    PaddedPairs,
}

impl Rewriting {
    /// Words of f32 that it takes for a left side `[m, k]`.
    pub(super) fn words(self, m: usize, k: usize) -> usize {
        match self {
            Self::Widened => m * k,
            Self::InTiles => m.next_multiple_of(ROWS) * k,
            Self::Interleaved | Self::PaddedPairs => m * k.div_ceil(2),
        }
    }
}

/// How a left side `[m, k]` is rewritten, if it has to be; `width` is that of its rows, `None` if the transpose is stored.
pub(super) fn rewriting(word: Word, width: Option<usize>, m: usize, k: usize) -> Option<Rewriting> {
    match (word, width) {
        (Word::F32, Some(_)) => None,
        (Word::F32, None) if m <= FEW_ROWS => None,
        (Word::Pair, Some(width)) if k.is_multiple_of(2) && width.is_multiple_of(2) => None,
        (Word::Pair, Some(_)) => Some(Rewriting::PaddedPairs),
        (Word::Pair, None) => Some(Rewriting::Interleaved),
        (Word::Widened, Some(_)) => Some(Rewriting::Widened),
        (Word::F32 | Word::Widened, None) => Some(Rewriting::InTiles),
    }
}

/// A term whose left side can be read by tiles.
pub(super) struct Ready<'a, T> {
    pub(super) word: Word,
    /// Inner steps, in words.
    pub(super) steps: usize,
    pub(super) inner: usize,
    pub(super) left: *const f32,
    /// Distance between two rows of a tile.
    pub(super) left_row: usize,
    /// Distance between the beginnings of two tiles, for each row of a tile.
    pub(super) left_tile: usize,
    /// Distance between two inner steps.
    pub(super) left_step: usize,
    pub(super) right: Right<'a, T>,
    /// Whether the right side is read where it is, see [`FEW_ROWS`].
    pub(super) in_place: bool,
}

// SAFETY: the pointer is to elements that are borrowed or owned for as long as the term lives, and only read.
unsafe impl<T: Sync> Sync for Ready<'_, T> {}

impl<'a, T: Element> Ready<'a, T> {
    /// A left side that has to be rewritten is rewritten into `workspace`.
    pub(super) fn new(term: &Term<'a, T>, m: usize, isa: Isa, parallel: bool, workspace: &mut Workspace<'a>) -> Self {
        let k = term.inner();
        let word = Word::of::<T>(isa);
        let steps = word.steps(k);
        let (stored, width) = match term.left() {
            Side::Rows(l) => (l, Some(l.stride())),
            Side::Columns(l) => (l, None),
        };
        let right = term.right();
        let how = rewriting(word, width, m, k);
        let left = match how {
            None => stored.as_ptr().cast(),
            Some(how) => {
                let dst = workspace.take(how.words(m, k));
                match how {
                    Rewriting::Widened => widened(stored, parallel, dst),
                    Rewriting::InTiles => in_tiles(stored, parallel, dst),
                    Rewriting::Interleaved => interleaved(stored, parallel, dst),
                    Rewriting::PaddedPairs => padded_pairs(stored, parallel, dst),
                }
                dst.as_ptr()
            }
        };
        // The distances, see `Ready`.
        let (left_row, left_tile, left_step) = match (how, width) {
            (None, None) => (1, 1, stored.stride()),
            (None, Some(width)) if word == Word::Pair => (width / 2, width / 2, 1),
            (None, Some(width)) => (width, width, 1),
            (Some(Rewriting::Widened | Rewriting::PaddedPairs), _) => (steps, steps, 1),
            (Some(Rewriting::Interleaved), _) => (1, 1, m),
            // Tiles are one behind the other, `steps` words for each of their rows.
            (Some(Rewriting::InTiles), _) => (1, steps, ROWS),
        };
        let in_place = word == Word::F32 && m <= FEW_ROWS && matches!(right, Right::Stored(Side::Rows(_)));
        Self { word, steps, inner: k, left, left_row, left_tile, left_step, right, in_place }
    }

    /// Brings inner steps `steps` of columns `cols` of the right side into `dst`, `[steps, width]` words.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) fn pack(&self, cols: &Range<usize>, steps: Range<usize>, width: usize, dst: &mut [f32]) {
        let elements = self.word.elements();
        let inner = self.inner.min(steps.end * elements) - steps.start * elements;
        let first = steps.start * elements;
        match self.right {
            Right::Stored(Side::Columns(r)) => {
                let from = r.part(cols.clone(), first..first + inner);
                match self.word {
                    Word::F32 | Word::Pair => transpose_words(self.word, from, width, dst),
                    Word::Widened => transpose_widened(from, width, dst),
                }
            }
            Right::Stored(Side::Rows(r)) => {
                let row = |k: usize| &r.row(k)[cols.start..cols.end];
                for (step, dst) in steps.zip(dst.chunks_exact_mut(width)) {
                    match self.word {
                        Word::F32 if cols.len() == width => copy_vectors(row(step), dst),
                        Word::F32 | Word::Widened => widen(row(step), dst),
                        Word::Pair if 2 * step + 1 < self.inner => pair(row(2 * step), row(2 * step + 1), dst),
                        Word::Pair => pair(row(2 * step), &[], dst),
                    }
                    dst[cols.len()..].fill(0.0);
                }
            }
            Right::QuantizedColumns(w) => dequantize_columns::<T>(self.word, w, cols, first..first + inner, width, dst),
            Right::Quantized(w) => {
                let mut even = [T::from_f32(0.0); COLS];
                let mut odd = even;
                let (even, odd) = (&mut even[..cols.len()], &mut odd[..cols.len()]);
                for (step, dst) in steps.zip(dst.chunks_exact_mut(width)) {
                    w.dequantize(step * elements, cols.start, even);
                    match self.word {
                        Word::F32 | Word::Widened => widen(even, dst),
                        Word::Pair if 2 * step + 1 < self.inner => {
                            w.dequantize(2 * step + 1, cols.start, odd);
                            pair(even, odd, dst);
                        }
                        Word::Pair => pair(even, &[], dst),
                    }
                    dst[cols.len()..].fill(0.0);
                }
            }
        }
    }
}

/// Elements of a row in blocks that are dequantized before they are transposed: they stay in the first-level cache.
const SPAN: usize = 128;

/// Rows `rows` of a weight in blocks, as columns of words: elements `inner` of them into `dst`, `[.., width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn dequantize_columns<T: Element>(
    word: Word,
    w: Rows<'_>,
    rows: &Range<usize>,
    inner: Range<usize>,
    width: usize,
    dst: &mut [f32],
) {
    let zero = T::from_f32(0.0);
    for group in (0..width).step_by(LANES) {
        let mut lines = [[zero; SPAN]; LANES];
        let mut at = inner.start;
        while at < inner.end {
            // From the second on pieces begin where a unit does.
            let len = (SPAN - at % UNIT).min(inner.end - at);
            let of_group = (rows.start + group..rows.end).take(LANES);
            for (row, line) in of_group.zip(&mut lines) {
                w.dequantize(row, at, &mut line[..len]);
                // The other half of the last word.
                line[len..len.next_multiple_of(word.elements())].fill(zero);
            }
            let step = (at - inner.start) / word.elements();
            let words = len.div_ceil(word.elements());
            for k in (0..words).step_by(LANES) {
                let count = (words - k).min(LANES);
                let columns = transpose(std::array::from_fn(|i| vector(word, &lines[i], k)));
                put(&columns, count, dst, width, step + k, group);
            }
            at += len;
        }
    }
}

/// Sixteen words of a row from word `k` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn vector<T: Element>(word: Word, row: &[T; SPAN], k: usize) -> __m512 {
    let from = &row[k * word.elements()..][..LANES * word.elements()];
    match word {
        // SAFETY: sixteen words of four bytes are there.
        Word::F32 | Word::Pair => unsafe { _mm512_loadu_ps(from.as_ptr().cast()) },
        Word::Widened => {
            // SAFETY: sixteen bf16 are there.
            let words: __m256i = unsafe { _mm256_loadu_epi16(from.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
        }
    }
}

/// Copies one to three vectors: rows are too short for a call of `memcpy`, which is what a loop would become.
#[target_feature(enable = "avx512f")]
#[inline]
fn copy_vectors<T: Element>(from: &[T], to: &mut [f32]) {
    assert!(size_of_val(from) == size_of_val(to) && to.len() <= COLS && to.len().is_multiple_of(LANES));
    let (from, dst) = (from.as_ptr().cast::<f32>(), to.as_mut_ptr());
    // SAFETY: both have that many words.
    unsafe {
        match to.len() / LANES {
            3 => {
                let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES)));
                let c = _mm512_loadu_ps(from.add(2 * LANES));
                _mm512_storeu_ps(dst, a);
                _mm512_storeu_ps(dst.add(LANES), b);
                _mm512_storeu_ps(dst.add(2 * LANES), c);
            }
            2 => {
                let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(LANES)));
                _mm512_storeu_ps(dst, a);
                _mm512_storeu_ps(dst.add(LANES), b);
            }
            1 => _mm512_storeu_ps(dst, _mm512_loadu_ps(from)),
            _ => {}
        }
    }
}

/// Two rows of bf16 as one row of pairs; a short second row counts as zeros.
#[inline(always)]
fn pair<T: Element>(even: &[T], odd: &[T], dst: &mut [f32]) {
    let bits = |x: T| x.to_f32().to_bits();
    if odd.is_empty() {
        dst.iter_mut().zip(even).for_each(|(d, &e)| *d = f32::from_bits(bits(e) >> 16));
        return;
    }
    for ((d, &e), &o) in dst.iter_mut().zip(even).zip(odd) {
        *d = f32::from_bits(bits(o) | (bits(e) >> 16));
    }
}

fn each_row(dst: &mut [f32], width: usize, parallel: bool, f: impl Fn(usize, &mut [f32]) + Sync) {
    let (count, rows) = (dst.len() / width, Shared::new(dst));
    let f = |i: usize| {
        // SAFETY: each row is taken once.
        let row = unsafe { rows.part(i * width, width) };
        simd(
            #[inline(always)]
            || f(i, row),
        );
    };
    if parallel {
        parallel::each_together(count, 16..=usize::MAX, f);
    } else {
        (0..count).for_each(f);
    }
}

/// Rows as f32, without gaps.
fn widened<T: Element>(from: View<'_, T>, parallel: bool, dst: &mut [f32]) {
    each_row(
        dst,
        from.cols().max(1),
        parallel,
        #[inline(always)]
        |i, row| widen(from.row(i), row),
    );
}

/// `k` rows of `m` elements as tiles `[m / 8, k, 8]` of f32: a weight's gradient reads them from top to bottom, and
/// rows that are pages apart would cost a miss for each step. Two tiles at a time share a cache line of f32.
fn in_tiles<T: Element>(from: View<'_, T>, parallel: bool, dst: &mut [f32]) {
    let (k, m) = (from.rows(), from.cols());
    let pair = |i: usize, tiles: &mut [f32]| {
        simd(
            #[inline(always)]
            || {
                let (first, second) = tiles.split_at_mut(ROWS * k);
                for step in 0..k {
                    let row = &from.row(step)[2 * i * ROWS..m.min(2 * (i + 1) * ROWS)];
                    let (left, right) = row.split_at(row.len().min(ROWS));
                    widen_some(left, &mut first[step * ROWS..][..ROWS]);
                    if !right.is_empty() {
                        widen_some(right, &mut second[step * ROWS..][..ROWS]);
                    }
                }
            },
        );
    };
    let size = (2 * ROWS * k).max(1);
    if parallel {
        parallel::each_chunk(dst, size, pair);
    } else {
        dst.chunks_mut(size).enumerate().for_each(|(i, tiles)| pair(i, tiles));
    }
}

/// At most [`ROWS`] elements in f32, without a call where there are just as many.
#[inline(always)]
fn widen_some<T: Element>(from: &[T], to: &mut [f32]) {
    match (from.first_chunk::<ROWS>(), to.first_chunk_mut::<ROWS>()) {
        (Some(from), Some(to)) => *to = from.map(T::to_f32),
        _ => widen(from, to),
    }
}

/// `k` rows of `m` elements as `[k / 2, m]` pairs of rows.
fn interleaved<T: Element>(from: View<'_, T>, parallel: bool, dst: &mut [f32]) {
    let (k, m) = (from.rows(), from.cols());
    each_row(
        dst,
        m.max(1),
        parallel,
        #[inline(always)]
        |i, pairs| {
            let odd = if 2 * i + 1 < k { from.row(2 * i + 1) } else { &[] };
            pair(from.row(2 * i), odd, pairs);
        },
    );
}

/// `m` rows of an odd number `k` of elements, or of elements that pairs do not fit, as rows of pairs.
fn padded_pairs<T: Element>(from: View<'_, T>, parallel: bool, dst: &mut [f32]) {
    let steps = from.cols().div_ceil(2);
    each_row(
        dst,
        steps.max(1),
        parallel,
        #[inline(always)]
        |i, pairs| {
            for (d, p) in pairs.iter_mut().zip(from.row(i).chunks(2)) {
                pair(&p[..1], &p[1..], std::slice::from_mut(d));
            }
        },
    );
}

/// Sixteen rows of words to sixteen columns.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transpose(r: [__m512; 16]) -> [__m512; 16] {
    let pd = |x: __m512| -> __m512d { _mm512_castps_pd(x) };
    let mut t = r;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    let mut u = t;
    for i in (0..16).step_by(4) {
        u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i]), pd(t[i + 2])));
        u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i]), pd(t[i + 2])));
        u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i + 1]), pd(t[i + 3])));
        u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i + 1]), pd(t[i + 3])));
    }
    // Now lane l of u[4 q + c] is rows 4 q .. 4 q + 4 of column 4 l + c.
    let mut out = u;
    for c in 0..4 {
        let low01 = _mm512_shuffle_f32x4::<0x44>(u[c], u[4 + c]);
        let high01 = _mm512_shuffle_f32x4::<0xee>(u[c], u[4 + c]);
        let low23 = _mm512_shuffle_f32x4::<0x44>(u[8 + c], u[12 + c]);
        let high23 = _mm512_shuffle_f32x4::<0xee>(u[8 + c], u[12 + c]);
        out[c] = _mm512_shuffle_f32x4::<0x88>(low01, low23);
        out[4 + c] = _mm512_shuffle_f32x4::<0xdd>(low01, low23);
        out[8 + c] = _mm512_shuffle_f32x4::<0x88>(high01, high23);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(high01, high23);
    }
    out
}

/// Stores the first `count` of 16 columns into rows `at..` of `[steps, width]`, at column `col`.
#[target_feature(enable = "avx512f")]
#[inline]
fn put(columns: &[__m512; 16], count: usize, dst: &mut [f32], width: usize, at: usize, col: usize) {
    assert!(count <= 16 && col + LANES <= width && (at + count) * width <= dst.len());
    for (i, column) in columns.iter().enumerate().take(count) {
        // SAFETY: inside, as asserted.
        unsafe { _mm512_storeu_ps(dst.as_mut_ptr().add((at + i) * width + col), *column) };
    }
}

/// Rows of f32 or bf16, as columns of words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn transpose_words<T: Element>(word: Word, from: View<'_, T>, width: usize, dst: &mut [f32]) {
    let (rows, inner) = (from.rows(), from.cols());
    // A row of bf16 ends in half a word where `inner` is odd; that one is written by hand below.
    let whole = if word == Word::Pair { inner / 2 } else { inner };
    for group in (0..width).step_by(LANES) {
        let mut k = 0;
        while k < whole {
            let count = (whole - k).min(16);
            let mask: __mmask16 = ((1u32 << count) - 1) as u16;
            let mut lines = [_mm512_setzero_ps(); 16];
            for (i, line) in lines.iter_mut().enumerate().take(rows.saturating_sub(group)) {
                let row = from.row(group + i);
                // SAFETY: `k + count` words are inside the row; masked words are not read.
                *line = unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr().cast::<f32>().add(k)) };
            }
            put(&transpose(lines), count, dst, width, k, group);
            k += count;
        }
    }
    if word == Word::Pair && !inner.is_multiple_of(2) {
        let last = &mut dst[whole * width..][..width];
        last.fill(0.0);
        for (i, d) in last.iter_mut().enumerate().take(rows) {
            pair(&from.row(i)[inner - 1..], &[], std::slice::from_mut(d));
        }
    }
}

/// Rows of bf16, as columns of f32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn transpose_widened<T: Element>(from: View<'_, T>, width: usize, dst: &mut [f32]) {
    let (rows, inner) = (from.rows(), from.cols());
    for group in (0..width).step_by(LANES) {
        for k in (0..inner).step_by(16) {
            let count = (inner - k).min(16);
            let mut lines = [_mm512_setzero_ps(); 16];
            for (i, line) in lines.iter_mut().enumerate().take(rows.saturating_sub(group)) {
                let row = &from.row(group + i)[k..][..count];
                let mut short = [T::from_f32(0.0); 16];
                let source: *const T = if count == 16 {
                    row.as_ptr()
                } else {
                    short[..count].copy_from_slice(row);
                    short.as_ptr()
                };
                // SAFETY: sixteen bf16 can be read at `source`.
                let words: __m256i = unsafe { _mm256_loadu_epi16(source.cast()) };
                *line = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)));
            }
            put(&transpose(lines), count, dst, width, k, group);
        }
    }
}

//! Causal attention over packed sequences, tile by tile with an online softmax
//! (FlashAttention-2, Dao 2023, <https://arxiv.org/abs/2307.08691>).
//!
//! Scores are made transposed, a row for each key and a column for each query of a tile: keys,
//! values and gradients are then read where they lie, only a tile's queries are rearranged, and the
//! softmax goes down the columns, a vector at a time. Nothing is kept but the output and the
//! logarithm of each query's normalizer. Everything is computed in f32.

use rayon::prelude::*;

use super::buffers::Buffer;
use super::gemm::{At, Left, Right, Rows, Term, add, multiply_here, set};
use super::math::{exp, sum};
use super::shared::Shared;
use super::{Element, Wide, simd};
use crate::data::Span;
use crate::ops::AttentionShape;

/// Queries of a tile: as many columns as a tile of a matrix product has.
const QUERIES: usize = 48;
/// Keys handled at once: their scores stay in the second-level cache.
const KEYS: usize = 256;
/// Queries whose share of the gradients of keys and values is summed by one task, at least.
const CHUNK: usize = 10 * QUERIES;

/// The arguments that the forward and the backward pass share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) shape: AttentionShape,
    /// Attention never leaves a span.
    pub(crate) spans: &'a [Span],
    /// Positions in a row of the batch.
    pub(crate) len: usize,
}

/// Consecutive queries of one head in one span.
#[derive(Clone, Copy)]
struct Task<'a> {
    span: &'a Span,
    head: usize,
    /// Positions in the span.
    first: usize,
    queries: usize,
}

impl Attention<'_> {
    fn widths(&self) -> (usize, usize) {
        (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim)
    }

    /// The rows of `x` from `position` of a span on, beginning at the head's first column.
    fn rows<'x>(&self, x: &'x [f32], width: usize, span: &Span, position: usize, head: usize) -> Rows<'x, f32> {
        let start = (span.row * self.len + span.start + position) * width + head * self.shape.head_dim;
        Rows { data: &x[start..], width }
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.shape.heads / self.shape.kv_heads)
    }

    /// All queries in tasks of `size`, the longest-running first.
    fn tasks(&self, size: impl Fn(&Span) -> usize) -> Vec<Task<'_>> {
        let mut tasks = Vec::new();
        for span in self.spans {
            let size = size(span);
            for head in 0..self.shape.heads {
                tasks.extend((0..span.len).step_by(size).map(|first| Task {
                    span,
                    head,
                    first,
                    queries: size.min(span.len - first),
                }));
            }
        }
        tasks.sort_by_key(|t| std::cmp::Reverse(t.first + t.queries));
        tasks
    }

    /// The keys that queries `first..first + queries` see, in blocks.
    fn key_blocks(&self, first: usize, queries: usize) -> impl Iterator<Item = (usize, usize)> {
        let (start, end) = (self.shape.first_key(first), first + queries);
        (start..end).step_by(KEYS).map(move |k| (k, KEYS.min(end - k)))
    }

    /// Which of a tile's `queries` see `key`.
    #[inline(always)]
    fn seeing(&self, first: usize, queries: usize, key: usize) -> std::ops::Range<usize> {
        let end = self.shape.window.map_or(queries, |w| (key + w).saturating_sub(first).min(queries));
        key.saturating_sub(first).min(end)..end
    }

    /// Attention for `q` `[tokens, heads * head_dim]` and `k`, `v` `[tokens, kv_heads * head_dim]` into `out`, shaped as
    /// `q`, and the logarithm of each query's normalizer into `lse` `[heads, tokens]`. Positions outside every
    /// span give zero.
    pub(crate) fn forward<T: Element>(&self, q: &[T], k: &[T], v: &[T], out: &mut [T], lse: &mut [f32]) {
        let (q_width, kv_width) = self.widths();
        let (q, k, v) = (Wide::new(q), Wide::new(k), Wide::new(v));
        let tokens = q.len() / q_width;
        let dim = self.shape.head_dim;
        if self.spans.iter().map(|s| s.len).sum::<usize>() < tokens {
            out.fill(T::from_f32(0.0));
            lse.fill(0.0);
        }
        let tasks = self.tasks(|_| QUERIES);
        let (out, lse) = (Shared::new(out), Shared::new(lse));
        tasks.par_iter().with_max_len(4).for_each(|t| {
            let kv_head = self.kv_head(t.head);
            let queries = self.rows(&q, q_width, t.span, t.first, t.head);
            let mut scores = [0f32; KEYS * QUERIES];
            let mut sums = Buffer::<f32>::zeros(t.queries * dim);
            let (mut max, mut total) = ([f32::NEG_INFINITY; QUERIES], [0f32; QUERIES]);
            for (key, keys) in self.key_blocks(t.first, t.queries) {
                let scores = &mut scores[..keys * QUERIES];
                let left = Left::Rows(self.rows(&k, kv_width, t.span, key, kv_head));
                let term = Term { left, right: Right::Columns(queries), inner: dim };
                multiply_here((keys, t.queries), &[term], scores, QUERIES, set);
                let keep = simd(
                    #[inline(always)]
                    || self.online_softmax(scores, t, key, &mut max, &mut total),
                );
                let term = Term {
                    left: Left::Columns(Rows::new(scores, QUERIES)),
                    right: Right::Rows(self.rows(&v, kv_width, t.span, key, kv_head)),
                    inner: keys,
                };
                multiply_here(
                    (t.queries, dim),
                    &[term],
                    &mut sums,
                    dim,
                    #[inline(always)]
                    |at: At, new: &[f32], old: &mut [f32]| {
                        for (o, n) in old.iter_mut().zip(new) {
                            *o = *o * keep[at.row] + n;
                        }
                    },
                );
            }
            let token = t.span.row * self.len + t.span.start + t.first;
            for (i, sums) in sums.chunks_exact(dim).enumerate() {
                // SAFETY: each query of each head belongs to one task.
                let (out, lse) = unsafe {
                    (out.part((token + i) * q_width + t.head * dim, dim), lse.part(t.head * tokens + token + i, 1))
                };
                let inverse = 1.0 / total[i];
                out.iter_mut().zip(sums).for_each(|(o, s)| *o = T::from_f32(s * inverse));
                lse[0] = max[i] + total[i].ln();
            }
        });
    }

    /// Scores become `e^(score - max)`, with the maximum and the sum so far kept for each query.
    /// Returns by what earlier sums are to be multiplied.
    #[inline(always)]
    fn online_softmax(
        &self,
        scores: &mut [f32],
        t: &Task<'_>,
        key: usize,
        max: &mut [f32; QUERIES],
        total: &mut [f32; QUERIES],
    ) -> [f32; QUERIES] {
        let scale = self.shape.scale as f32;
        let mut new = *max;
        for (j, row) in scores.chunks_exact_mut(QUERIES).enumerate() {
            let seeing = self.seeing(t.first, t.queries, key + j);
            row[..seeing.start].fill(f32::NEG_INFINITY);
            row[seeing.end..].fill(f32::NEG_INFINITY);
            for (s, m) in row.iter_mut().zip(&mut new) {
                *s *= scale;
                *m = if *s > *m { *s } else { *m };
            }
        }
        // A query that has seen no key yet has no maximum; its scores stay at e^-inf.
        let shift = new.map(|m| if m == f32::NEG_INFINITY { 0.0 } else { m });
        let mut keep = [0f32; QUERIES];
        for i in 0..QUERIES {
            keep[i] = exp(max[i] - shift[i]);
            total[i] *= keep[i];
        }
        for row in scores.chunks_exact_mut(QUERIES) {
            for i in 0..QUERIES {
                row[i] = exp(row[i] - shift[i]);
                total[i] += row[i];
            }
        }
        *max = new;
        keep
    }

    /// The gradients of `q`, `k` and `v`, for the gradient `grad` of the output `out` of [`Attention::forward`].
    ///
    /// With probabilities `P`: `dV = Pᵀ G`, `dS = scale · P ∘ (G Vᵀ - rowsum(G ∘ O))`, `dQ = dS K`, `dK = dSᵀ Q`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn backward<T: Element>(
        &self,
        (q, k, v): (&[T], &[T], &[T]),
        (out, lse): (&[T], &[f32]),
        grad: &[T],
        (gq, gk, gv): (&mut [T], &mut [T], &mut [T]),
    ) {
        let (q_width, kv_width) = self.widths();
        let (dim, group) = (self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        let tokens = q.len() / q_width;
        let (q, k, v, out, grad) = (Wide::new(q), Wide::new(k), Wide::new(v), Wide::new(out), Wide::new(grad));
        let tasks = self.tasks(|s| CHUNK.max(s.len.div_ceil(4).next_multiple_of(QUERIES)));
        let all = Operands { q: &q, k: &k, v: &v, out: &out, grad: &grad, lse, tokens };
        let parts: Vec<Part> = tasks.par_iter().with_max_len(1).map(|t| self.backward_part(&all, t)).collect();

        // Back into rows, each key's and value's parts in the order of the tasks.
        let mut order: Vec<Vec<usize>> = vec![Vec::new(); self.spans.len() * self.shape.heads];
        for (i, t) in tasks.iter().enumerate() {
            let span = self.spans.iter().position(|s| std::ptr::eq(s, t.span)).unwrap_or_default();
            order[span * self.shape.heads + t.head].push(i);
        }
        if self.spans.iter().map(|s| s.len).sum::<usize>() < tokens {
            for g in [&mut *gq, &mut *gk, &mut *gv] {
                g.fill(T::from_f32(0.0));
            }
        }
        let (gq, gk, gv) = (Shared::new(gq), Shared::new(gk), Shared::new(gv));
        let kv_heads: Vec<(usize, usize)> =
            (0..self.spans.len()).flat_map(|s| (0..self.shape.kv_heads).map(move |h| (s, h))).collect();
        kv_heads.par_iter().for_each(|&(span, kv_head)| {
            let s = &self.spans[span];
            let row = |position: usize| s.row * self.len + s.start + position;
            let (mut sum_k, mut sum_v) = (Buffer::<f32>::zeros(s.len * dim), Buffer::<f32>::zeros(s.len * dim));
            for head in kv_head * group..(kv_head + 1) * group {
                for &i in &order[span * self.shape.heads + head] {
                    let (t, part) = (&tasks[i], &parts[i]);
                    for (p, values) in part.q.chunks_exact(dim).enumerate() {
                        // SAFETY: each query of each head belongs to one task, each head to one of this loop's.
                        let dst = unsafe { gq.part(row(t.first + p) * q_width + head * dim, dim) };
                        dst.iter_mut().zip(values).for_each(|(d, &v)| *d = T::from_f32(v));
                    }
                    for (sum, part) in [(&mut sum_k, &part.k), (&mut sum_v, &part.v)] {
                        let sum = &mut sum[part.first * dim..];
                        sum.iter_mut().zip(part.values.iter()).for_each(|(s, v)| *s += v);
                    }
                }
            }
            for (g, sums) in [(&gk, &sum_k), (&gv, &sum_v)] {
                for (p, values) in sums.chunks_exact(dim).enumerate() {
                    // SAFETY: each key head of each span belongs to one of this loop's.
                    let dst = unsafe { g.part(row(p) * kv_width + kv_head * dim, dim) };
                    dst.iter_mut().zip(values).for_each(|(d, &v)| *d = T::from_f32(v));
                }
            }
        });
    }

    fn backward_part(&self, all: &Operands<'_>, t: &Task<'_>) -> Part {
        let (q_width, kv_width) = self.widths();
        let (dim, kv_head, scale) = (self.shape.head_dim, self.kv_head(t.head), self.shape.scale as f32);
        let first_key = self.shape.first_key(t.first);
        let seen = t.first + t.queries - first_key;
        let mut gq = Buffer::<f32>::zeros(t.queries * dim);
        let (mut gk, mut gv) = (Buffer::<f32>::zeros(seen * dim), Buffer::<f32>::zeros(seen * dim));
        let (mut p, mut ds) = (Buffer::<f32>::new(KEYS * QUERIES), Buffer::<f32>::new(KEYS * QUERIES));
        for first in (t.first..t.first + t.queries).step_by(QUERIES) {
            let queries = QUERIES.min(t.first + t.queries - first);
            let q = self.rows(all.q, q_width, t.span, first, t.head);
            let g = self.rows(all.grad, q_width, t.span, first, t.head);
            let o = self.rows(all.out, q_width, t.span, first, t.head);
            let token = t.span.row * self.len + t.span.start + first;
            let lse = &all.lse[t.head * all.tokens + token..][..queries];
            let mut delta = [0f32; QUERIES];
            simd(
                #[inline(always)]
                || {
                    for (i, delta) in delta.iter_mut().enumerate().take(queries) {
                        let (o, g) = (&o.data[i * q_width..][..dim], &g.data[i * q_width..][..dim]);
                        *delta = sum(
                            dim,
                            #[inline(always)]
                            |j| o[j] * g[j],
                        );
                    }
                },
            );
            for (key, keys) in self.key_blocks(first, queries) {
                let k = self.rows(all.k, kv_width, t.span, key, kv_head);
                let v = self.rows(all.v, kv_width, t.span, key, kv_head);
                let nt = |left, right| [Term { left: Left::Rows(left), right: Right::Columns(right), inner: dim }];
                multiply_here(
                    (keys, queries),
                    &nt(k, q),
                    &mut p,
                    QUERIES,
                    #[inline(always)]
                    |at: At, scores: &[f32], p: &mut [f32]| {
                        let seeing = self.seeing(first, queries, key + at.row);
                        for ((p, s), l) in p.iter_mut().zip(scores).zip(lse) {
                            *p = exp(s * scale - l);
                        }
                        p[..seeing.start].fill(0.0);
                        p[seeing.end..].fill(0.0);
                    },
                );
                let p = &p[..keys * QUERIES];
                multiply_here(
                    (keys, queries),
                    &nt(v, g),
                    &mut ds,
                    QUERIES,
                    #[inline(always)]
                    |at: At, dp: &[f32], ds: &mut [f32]| {
                        let p = &p[at.row * QUERIES..][..dp.len()];
                        for (((ds, dp), p), delta) in ds.iter_mut().zip(dp).zip(p).zip(&delta) {
                            *ds = scale * p * (dp - delta);
                        }
                    },
                );
                let ds = &ds[..keys * QUERIES];

                let at = (key - first_key) * dim;
                let nn = |left, right| {
                    [Term { left: Left::Rows(Rows::new(left, QUERIES)), right: Right::Rows(right), inner: queries }]
                };
                multiply_here((keys, dim), &nn(p, g), &mut gv[at..], dim, add);
                multiply_here((keys, dim), &nn(ds, q), &mut gk[at..], dim, add);
                let term = Term { left: Left::Columns(Rows::new(ds, QUERIES)), right: Right::Rows(k), inner: keys };
                multiply_here((queries, dim), &[term], &mut gq[(first - t.first) * dim..], dim, add);
            }
        }
        Part { q: gq, k: KeyPart { first: first_key, values: gk }, v: KeyPart { first: first_key, values: gv } }
    }
}

/// The operands of the backward pass in f32.
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    grad: &'a [f32],
    lse: &'a [f32],
    tokens: usize,
}

/// What one task adds to the gradients.
struct Part {
    /// `[queries, head_dim]`.
    q: Buffer<f32>,
    k: KeyPart,
    v: KeyPart,
}

/// `[keys, head_dim]` from key `first` of the span on.
struct KeyPart {
    first: usize,
    values: Buffer<f32>,
}

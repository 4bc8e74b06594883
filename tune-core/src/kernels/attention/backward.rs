use rayon::prelude::*;

use super::{Attention, COLS, KEYS, Tile};
use crate::kernels::buffers::Buffer;
use crate::kernels::gemm::{At, Term, add, multiply_here};
use crate::kernels::math::{exp, sum};
use crate::kernels::view::{View, ViewMut};
use crate::kernels::{Element, Wide, simd};

/// Parts of a tile whose share of the gradients of keys and values is summed by one task, at least.
const PARTS: usize = 10;

/// What the backward pass reads.
struct Operands<'a, T> {
    q: View<'a, T>,
    k: View<'a, f32>,
    v: View<'a, f32>,
    out: View<'a, T>,
    grad: View<'a, T>,
    lse: &'a [f32],
}

/// What a tile adds to the gradients of keys and values, `[keys, head_dim]` from key `first` of the span on.
struct KeysAndValues {
    first: usize,
    k: Buffer<f32>,
    v: Buffer<f32>,
}

impl Attention<'_> {
    /// The gradients of `q`, `k` and `v`, for the gradient `grad` of the output `out` of [`Attention::forward`].
    ///
    /// With probabilities `P`: `dV = Pᵀ G`, `dS = scale · P ∘ (G Vᵀ - rowsum(G ∘ O))`, `dQ = dS K`, `dK = dSᵀ Q`.
    pub(crate) fn backward<T: Element>(
        &self,
        [q, k, v]: [View<'_, T>; 3],
        (out, lse): (View<'_, T>, &[f32]),
        grad: View<'_, T>,
        [mut gq, mut gk, mut gv]: [ViewMut<'_, T>; 3],
    ) {
        let (dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let (k, v) = (Wide::new(k), Wide::new(v));
        if self.has_gaps(q.rows()) {
            for g in [&mut gq, &mut gk, &mut gv] {
                g.fill(T::from_f32(0.0));
            }
        }
        let tiles = self.backward_tiles();
        let all = Operands { q, k: k.view(), v: v.view(), out, grad, lse };
        let shares: Vec<_> = tiles.par_iter().with_max_len(1).map(|tile| self.backward_tile(&all, tile, &gq)).collect();

        // Keys and values get the shares of their tiles, in the order of these.
        let mut order: Vec<Vec<usize>> = vec![Vec::new(); self.spans.len() * kv_heads];
        for (i, tile) in tiles.iter().enumerate() {
            order[tile.span * kv_heads + tile.kv_head].push(i);
        }
        order.par_iter().enumerate().for_each(|(i, order)| {
            let (span, kv_head) = (i / kv_heads, i % kv_heads);
            let len = self.spans[span].len;
            for (of, gradient) in [(0, &gk), (1, &gv)] {
                let mut sums = Buffer::<f32>::zeros(len * dim);
                for share in order.iter().map(|&i| &shares[i]) {
                    let share_of = if of == 0 { &share.k } else { &share.v };
                    sums[share.first * dim..].iter_mut().zip(share_of.iter()).for_each(|(s, v)| *s += v);
                }
                for (position, sums) in sums.chunks_exact(dim).enumerate() {
                    // SAFETY: each key head of each span belongs to one turn of this loop.
                    let dst = unsafe { gradient.part(self.token(span, position), kv_head * dim, dim) };
                    dst.iter_mut().zip(sums).for_each(|(d, &s)| *d = T::from_f32(s));
                }
            }
        });
    }

    /// Large tiles: each leaves a share of the gradients of all keys that it sees.
    pub(super) fn backward_tiles(&self) -> Vec<Tile> {
        self.tiles(|len, queries| (PARTS * queries).max(len.div_ceil(4).next_multiple_of(queries)))
    }

    /// Stores the gradients of a tile's queries, and returns its share of those of keys and values.
    fn backward_tile<T: Element>(&self, all: &Operands<'_, T>, tile: &Tile, gq: &ViewMut<'_, T>) -> KeysAndValues {
        let dim = self.shape.head_dim;
        let first_key = self.shape.first_key(tile.first);
        let seen = tile.first + tile.queries - first_key;
        let (mut gk, mut gv) = (Buffer::<f32>::zeros(seen * dim), Buffer::<f32>::zeros(seen * dim));
        let (mut p, mut ds) = (Buffer::<f32>::new(KEYS * COLS), Buffer::<f32>::new(KEYS * COLS));
        for part in tile.parts() {
            let (q, grad) = (self.gather(all.q, &part), self.gather(all.grad, &part));
            let mut gq_part = Buffer::<f32>::zeros(q.len());
            let (lse, delta) = self.normalizers(all, &part);
            for (key, keys) in self.key_blocks(&part) {
                let (p, ds) = (&mut p[..keys * COLS], &mut ds[..keys * COLS]);
                self.scores(all, &part, (key, keys), (&q, &grad), (&lse, &delta), (p, ds));
                let (cols, at) = (part.cols(), (key - first_key) * dim);
                let down = |g, w| [Term::Down { g: View::strided(g, (keys, cols), COLS), w: View::new(w, dim) }];
                let of_keys = at..at + keys * dim;
                multiply_here(&down(&*p, &*grad), &ViewMut::new(&mut gv[of_keys.clone()], dim), add);
                multiply_here(&down(&*ds, &*q), &ViewMut::new(&mut gk[of_keys], dim), add);
                let ds = View::strided(&*ds, (keys, cols), COLS);
                let across = Term::Across { g: ds, x: self.rows(all.k, &part, key, keys) };
                multiply_here(&[across], &ViewMut::new(&mut gq_part, dim), add);
            }
            for (i, row) in gq_part.chunks_exact(part.heads * dim).enumerate() {
                let (token, columns) = self.at(&part, i);
                // SAFETY: each query of each head belongs to one tile.
                let dst = unsafe { gq.part(token, columns.start, row.len()) };
                dst.iter_mut().zip(row).for_each(|(d, &g)| *d = T::from_f32(g));
            }
        }
        KeysAndValues { first: first_key, k: gk, v: gv }
    }

    /// For each column the logarithm of its normalizer, and the product of its output and that one's gradient.
    fn normalizers<T: Element>(&self, all: &Operands<'_, T>, part: &Tile) -> ([f32; COLS], [f32; COLS]) {
        let dim = self.shape.head_dim;
        let (mut lse, mut delta) = ([0f32; COLS], [0f32; COLS]);
        simd(
            #[inline(always)]
            || {
                for col in 0..part.cols() {
                    let (i, h) = (col / part.heads, col % part.heads);
                    let (token, columns) = self.at(part, i);
                    let at = columns.start + h * dim;
                    delta[col] = sum(
                        [&all.out.row(token)[at..at + dim], &all.grad.row(token)[at..at + dim]],
                        #[inline(always)]
                        |[o, g]| o.to_f32() * g.to_f32(),
                    );
                    lse[col] = all.lse[(part.head + h) * all.q.rows() + token];
                }
            },
        );
        (lse, delta)
    }

    /// Probabilities of `keys` keys from `key` on, and the gradients of their scores, `[keys, COLS]` each.
    fn scores<T>(
        &self,
        all: &Operands<'_, T>,
        part: &Tile,
        (key, keys): (usize, usize),
        (q, grad): (&[f32], &[f32]),
        (lse, delta): (&[f32; COLS], &[f32; COLS]),
        (p, ds): (&mut [f32], &mut [f32]),
    ) {
        let (dim, cols, scale) = (self.shape.head_dim, part.cols(), self.shape.scale as f32);
        let up = |x, w| [Term::Up { x: self.rows(x, part, key, keys), w: View::new(w, dim) }];
        multiply_here(
            &up(all.k, q),
            &ViewMut::strided(p, (keys, cols), COLS),
            #[inline(always)]
            |at: At, scores: &[f32], p: &mut [f32]| {
                for ((p, s), l) in p.iter_mut().zip(scores).zip(lse) {
                    *p = exp(s * scale - l);
                }
                let seeing = self.seeing(part, key + at.row);
                p[..seeing.start].fill(0.0);
                p[seeing.end..].fill(0.0);
            },
        );
        let p = &*p;
        multiply_here(
            &up(all.v, grad),
            &ViewMut::strided(ds, (keys, cols), COLS),
            #[inline(always)]
            |at: At, dp: &[f32], ds: &mut [f32]| {
                let p = &p[at.row * COLS..][..dp.len()];
                for (((ds, dp), p), delta) in ds.iter_mut().zip(dp).zip(p).zip(delta) {
                    *ds = scale * p * (dp - delta);
                }
            },
        );
    }
}

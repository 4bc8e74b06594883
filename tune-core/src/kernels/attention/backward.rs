use std::ops::Range;

use super::workspace::{Memory, shares};
use super::{Attention, COLS, KEYS, Keys, Tile, Which};
use crate::kernels::gemm::{At, Term, add, multiply_here};
use crate::kernels::math::{exp, sum, tanh};
use crate::kernels::view::{View, ViewMut};
use crate::kernels::workspace::{PerThread, Workspace};
use crate::kernels::{Element, Shared, parallel, simd};

/// Parts of a tile whose share of the gradients of keys and values is summed by one task, at least.
const PARTS: usize = 10;

/// What the backward pass reads.
struct Operands<'a, T> {
    q: View<'a, T>,
    keys: Keys<'a>,
    out: View<'a, T>,
    grad: View<'a, T>,
    lse: &'a [f32],
}

/// What is known of a tile's columns.
struct Columns<'a> {
    /// Queries and the gradients of their outputs, `[cols, head_dim]` each.
    q: &'a [f32],
    grad: &'a [f32],
    /// The logarithm of each normalizer.
    lse: [f32; COLS],
    /// The product of each output and its gradient.
    delta: [f32; COLS],
}

/// What a tile adds to the gradients of keys and values, `[keys, head_dim]` each, from key `first` of the sequence on.
struct Share<'a> {
    first: usize,
    k: &'a mut [f32],
    v: &'a mut [f32],
}

impl Attention<'_> {
    /// The gradients of `q`, `k` and `v`, for the gradient `grad` of the output `out` of [`Attention::forward`].
    /// `workspace` is to have as many elements as [`Attention::backward_workspace`] says.
    ///
    /// With probabilities `P`: `dV = Pᵀ G`, `dS = scale · P ∘ (G Vᵀ - rowsum(G ∘ O))`, `dQ = dS K`, `dK = dSᵀ Q`.
    pub(crate) fn backward<T: Element>(
        &self,
        [q, k, v]: [View<'_, T>; 3],
        (out, lse): (View<'_, T>, &[f32]),
        grad: View<'_, T>,
        [mut gq, mut gk, mut gv]: [ViewMut<'_, T>; 3],
        workspace: &mut [f32],
    ) {
        let tiles = self.backward_tiles();
        let memory = self.backward_memory::<T>(rayon::current_num_threads());
        assert!(self.stretches.iter().all(|s| s.past == 0), "the past has no gradient");
        let mut workspace = Workspace::new(workspace);
        let widened = [workspace.take(memory.widened), workspace.take(memory.widened)];
        let keys = Keys::new(self.stretches, [k, v], widened);
        if self.has_gaps(q.rows()) {
            for g in [&mut gq, &mut gk, &mut gv] {
                g.fill(T::from_f32(0.0));
            }
        }
        let (places, len) = shares(&self.shape, &tiles);
        let of_tiles = workspace.take(len);
        let of_threads = workspace.per_thread(memory.threads, memory.of_thread());
        {
            let of_tiles = Shared::new(of_tiles);
            let all = Operands { q, keys, out, grad, lse };
            parallel::each_together(tiles.len(), 1..=1, |i| {
                let (tile, place) = (&tiles[i], &places[i]);
                // SAFETY: each tile has a place of its own.
                let (k, v) = unsafe { of_tiles.part(place.start, place.len()) }.split_at_mut(place.len() / 2);
                let share = Share { first: self.shape.first_key(tile.first), k, v };
                self.backward_tile(&all, tile, &gq, share, &of_threads, &memory);
            });
        }
        self.sum_shares(&tiles, &places, of_tiles, [&gk, &gv], &of_threads);
    }

    /// Gives keys and values the shares of their tiles, in the order of these.
    fn sum_shares<T: Element>(
        &self,
        tiles: &[Tile],
        places: &[Range<usize>],
        of_tiles: &[f32],
        gradients: [&ViewMut<'_, T>; 2],
        of_threads: &PerThread<'_>,
    ) {
        let (dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let mut order: Vec<Vec<usize>> = vec![Vec::new(); self.stretches.len() * kv_heads];
        for (i, tile) in tiles.iter().enumerate() {
            order[tile.stretch * kv_heads + tile.kv_head].push(i);
        }
        parallel::each(order.len(), |i| {
            let (order, stretch, kv_head) = (&order[i], &self.stretches[i / kv_heads], i % kv_heads);
            // SAFETY: a task takes it once, and waits for nothing.
            let sums = unsafe { of_threads.mine() };
            for (of, gradient) in gradients.iter().enumerate() {
                for start in (0..stretch.len).step_by(KEYS) {
                    let end = stretch.len.min(start + KEYS);
                    let sums = &mut sums[..(end - start) * dim];
                    sums.fill(0.0);
                    for &i in order {
                        let first = self.shape.first_key(tiles[i].first);
                        let half = places[i].len() / 2;
                        let share = &of_tiles[places[i].start + of * half..][..half];
                        let (from, to) = (start.max(first), end.min(first + half / dim));
                        if from < to {
                            let share = &share[(from - first) * dim..(to - first) * dim];
                            sums[(from - start) * dim..].iter_mut().zip(share).for_each(|(s, v)| *s += v);
                        }
                    }
                    for (position, sums) in (start..end).zip(sums.chunks_exact(dim)) {
                        // SAFETY: each key head of each stretch belongs to one turn of this loop.
                        let dst = unsafe { gradient.part(stretch.keys + position, kv_head * dim, dim) };
                        dst.iter_mut().zip(sums).for_each(|(d, &s)| *d = T::from_f32(s));
                    }
                }
            }
        });
    }

    /// Large tiles: each leaves a share of the gradients of all keys that it sees.
    pub(super) fn backward_tiles(&self) -> Vec<Tile> {
        self.tiles(|len, queries| (PARTS * queries).max(len.div_ceil(4).next_multiple_of(queries)))
    }

    /// Stores the gradients of a tile's queries, and its share of those of keys and values.
    fn backward_tile<T: Element>(
        &self,
        all: &Operands<'_, T>,
        tile: &Tile,
        gq: &ViewMut<'_, T>,
        share: Share<'_>,
        of_threads: &PerThread<'_>,
        memory: &Memory,
    ) {
        let dim = self.shape.head_dim;
        let Share { first: first_key, k: gk, v: gv } = share;
        gk.fill(0.0);
        gv.fill(0.0);
        // SAFETY: a task takes it once, and waits for nothing.
        let mut of_thread = Workspace::new(unsafe { of_threads.mine() });
        let (p, ds) = (of_thread.take(KEYS * COLS), of_thread.take(KEYS * COLS));
        let of_columns = [(); 3].map(|()| of_thread.take(COLS * dim));
        let of_product = of_thread.take(memory.product);
        let [q, grad, gq_part] = of_columns;
        for part in tile.parts() {
            let len = part.cols() * dim;
            let (q, grad) = (self.gather(all.q, &part, &mut q[..len]), self.gather(all.grad, &part, &mut grad[..len]));
            let (lse, delta) = self.normalizers(all, &part);
            let columns = Columns { q, grad, lse, delta };
            let gq_part = &mut gq_part[..len];
            gq_part.fill(0.0);
            for (key, keys) in self.key_blocks(&part) {
                let (p, ds) = (&mut p[..keys * COLS], &mut ds[..keys * COLS]);
                self.scores(all, &part, (key, keys), &columns, (p, ds), of_product);
                let (cols, at) = (part.cols(), (key - first_key) * dim);
                let down = |g, w| [Term::Down { g: View::strided(g, (keys, cols), COLS), w: View::new(w, dim) }];
                let of_keys = at..at + keys * dim;
                multiply_here(&down(&*p, grad), &ViewMut::new(&mut gv[of_keys.clone()], dim), add, of_product);
                multiply_here(&down(&*ds, q), &ViewMut::new(&mut gk[of_keys], dim), add, of_product);
                let ds = View::strided(&*ds, (keys, cols), COLS);
                let across = Term::Across { g: ds, x: self.rows(&all.keys, Which::Keys, &part, key, keys) };
                multiply_here(&[across], &ViewMut::new(gq_part, dim), add, of_product);
            }
            for (i, row) in gq_part.chunks_exact(part.heads * dim).enumerate() {
                let (token, columns) = self.at(&part, i);
                // SAFETY: each query of each head belongs to one tile.
                let dst = unsafe { gq.part(token, columns.start, row.len()) };
                dst.iter_mut().zip(row).for_each(|(d, &g)| *d = T::from_f32(g));
            }
        }
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
        columns: &Columns<'_>,
        (p, ds): (&mut [f32], &mut [f32]),
        of_product: &mut [f32],
    ) {
        if let Some(cap) = self.shape.softcap {
            return self.capped_scores(all, part, (key, keys), columns, (p, ds), of_product, cap as f32);
        }
        let Columns { q, grad, lse, delta } = columns;
        let (dim, cols, scale) = (self.shape.head_dim, part.cols(), self.shape.scale as f32);
        let up = |which, w| [Term::Up { x: self.rows(&all.keys, which, part, key, keys), w: View::new(w, dim) }];
        multiply_here(
            &up(Which::Keys, q),
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
            of_product,
        );
        let p = &*p;
        multiply_here(
            &up(Which::Values, grad),
            &ViewMut::strided(ds, (keys, cols), COLS),
            #[inline(always)]
            |at: At, dp: &[f32], ds: &mut [f32]| {
                let p = &p[at.row * COLS..][..dp.len()];
                for (((ds, dp), p), delta) in ds.iter_mut().zip(dp).zip(p).zip(delta) {
                    *ds = scale * p * (dp - delta);
                }
            },
            of_product,
        );
    }

    /// The same where scores are capped. Until the gradients are there, `p` has the capped scores, whose slope these need.
    #[allow(clippy::too_many_arguments)]
    fn capped_scores<T>(
        &self,
        all: &Operands<'_, T>,
        part: &Tile,
        (key, keys): (usize, usize),
        columns: &Columns<'_>,
        (p, ds): (&mut [f32], &mut [f32]),
        of_product: &mut [f32],
        cap: f32,
    ) {
        let Columns { q, grad, lse, delta } = columns;
        let (dim, cols, scale) = (self.shape.head_dim, part.cols(), self.shape.scale as f32);
        let up = |which, w| [Term::Up { x: self.rows(&all.keys, which, part, key, keys), w: View::new(w, dim) }];
        multiply_here(
            &up(Which::Keys, q),
            &ViewMut::strided(p, (keys, cols), COLS),
            #[inline(always)]
            |_: At, scores: &[f32], capped: &mut [f32]| {
                for (c, s) in capped.iter_mut().zip(scores) {
                    *c = cap * tanh(s * scale / cap);
                }
            },
            of_product,
        );
        let capped = &*p;
        multiply_here(
            &up(Which::Values, grad),
            &ViewMut::strided(ds, (keys, cols), COLS),
            #[inline(always)]
            |at: At, dp: &[f32], ds: &mut [f32]| {
                let capped = &capped[at.row * COLS..][..dp.len()];
                for ((((ds, dp), c), l), delta) in ds.iter_mut().zip(dp).zip(capped).zip(lse).zip(delta) {
                    let slope = 1.0 - (c / cap) * (c / cap);
                    *ds = scale * exp(c - l) * (dp - delta) * slope;
                }
                let seeing = self.seeing(part, key + at.row);
                ds[..seeing.start].fill(0.0);
                ds[seeing.end..].fill(0.0);
            },
            of_product,
        );
        simd(
            #[inline(always)]
            || {
                for (j, row) in p.chunks_exact_mut(COLS).enumerate() {
                    for (p, l) in row[..cols].iter_mut().zip(lse) {
                        *p = exp(*p - l);
                    }
                    let seeing = self.seeing(part, key + j);
                    row[..seeing.start].fill(0.0);
                    row[seeing.end..cols].fill(0.0);
                }
            },
        );
    }
}

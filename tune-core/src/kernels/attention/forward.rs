use super::{Attention, COLS, KEYS, Keys, Tile, Which};
use crate::kernels::gemm::{At, Term, multiply_here, store};
use crate::kernels::math::{exp, tanh};
use crate::kernels::view::{View, ViewMut};
use crate::kernels::workspace::Workspace;
use crate::kernels::{Element, Shared, parallel, simd};

impl Attention<'_> {
    /// Attention for `q` `[tokens, heads * head_dim]` and `k`, `v` `[.., kv_heads * head_dim]` into `out`, shaped as
    /// `q`, and the logarithm of each query's normalizer into `lse` `[heads, tokens]`. Rows outside every
    /// stretch give zero. `workspace` is to have as many elements as [`Attention::forward_workspace`] says.
    pub(crate) fn forward<T: Element>(
        &self,
        [q, k, v]: [View<'_, T>; 3],
        mut out: ViewMut<'_, T>,
        lse: &mut [f32],
        workspace: &mut [f32],
    ) {
        let memory = self.forward_memory::<T>(rayon::current_num_threads());
        let mut workspace = Workspace::new(workspace);
        let widened = [workspace.take(memory.widened), workspace.take(memory.widened)];
        let keys_and_values = Keys::new(self.stretches, [k, v], widened);
        let of_threads = workspace.per_thread(memory.threads, memory.of_thread());
        let tokens = q.rows();
        let dim = self.shape.head_dim;
        if self.has_gaps(tokens) {
            out.fill(T::from_f32(0.0));
            lse.fill(0.0);
        }
        let tiles = self.tiles(|_, queries| queries);
        let lse = Shared::new(lse);
        parallel::each_together(tiles.len(), 1..=4, |i| {
            let tile = &tiles[i];
            let cols = tile.cols();
            // SAFETY: a task takes it once, and waits for nothing.
            let mut of_thread = Workspace::new(unsafe { of_threads.mine() });
            let queries = self.gather(q, tile, of_thread.take(cols * dim));
            let mut scores = [0f32; KEYS * COLS];
            let sums = of_thread.take(cols * dim);
            sums.fill(0.0);
            let of_product = of_thread.take(memory.product);
            let (mut max, mut total) = ([f32::NEG_INFINITY; COLS], [0f32; COLS]);
            for (key, keys) in self.key_blocks(tile) {
                let scores = &mut scores[..keys * COLS];
                let term = Term::Up {
                    x: self.rows(&keys_and_values, Which::Keys, tile, key, keys),
                    w: View::new(queries, dim),
                };
                multiply_here(&[term], &ViewMut::strided(scores, (keys, cols), COLS), store, of_product);
                let keep = simd(
                    #[inline(always)]
                    || self.online_softmax(scores, tile, key, &mut max, &mut total),
                );
                let weights = View::strided(scores, (keys, cols), COLS);
                multiply_here(
                    &[Term::Across { g: weights, x: self.rows(&keys_and_values, Which::Values, tile, key, keys) }],
                    &ViewMut::new(sums, dim),
                    #[inline(always)]
                    |at: At, new: &[f32], old: &mut [f32]| {
                        for (o, n) in old.iter_mut().zip(new) {
                            *o = *o * keep[at.row] + n;
                        }
                    },
                    of_product,
                );
            }
            for (i, sums) in sums.chunks_exact(tile.heads * dim).enumerate() {
                let (token, columns) = self.at(tile, i);
                // SAFETY: each query of each head belongs to one tile.
                let out = unsafe { out.part(token, columns.start, sums.len()) };
                for (h, (out, sums)) in out.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).enumerate() {
                    let col = i * tile.heads + h;
                    let inverse = 1.0 / total[col];
                    out.iter_mut().zip(sums).for_each(|(o, s)| *o = T::from_f32(s * inverse));
                    // SAFETY: as above.
                    let lse = unsafe { lse.part((tile.head + h) * tokens + token, 1) };
                    lse[0] = max[col] + total[col].ln();
                }
            }
        });
    }

    /// Scores become `e^(score - max)`, with the maximum and the sum so far kept for each column.
    /// Returns by what earlier sums are to be multiplied.
    #[inline(always)]
    fn online_softmax(
        &self,
        scores: &mut [f32],
        tile: &Tile,
        key: usize,
        max: &mut [f32; COLS],
        total: &mut [f32; COLS],
    ) -> [f32; COLS] {
        let mut scale = self.shape.scale as f32;
        if let Some(cap) = self.shape.softcap {
            let cap = cap as f32;
            scores.iter_mut().for_each(|s| *s = cap * tanh(*s * scale / cap));
            scale = 1.0;
        }
        let mut new = *max;
        for (j, row) in scores.chunks_exact_mut(COLS).enumerate() {
            let seeing = self.seeing(tile, key + j);
            row[..seeing.start].fill(f32::NEG_INFINITY);
            row[seeing.end..].fill(f32::NEG_INFINITY);
            for (s, m) in row.iter_mut().zip(&mut new) {
                *s *= scale;
                *m = if *s > *m { *s } else { *m };
            }
        }
        // A query that has seen no key yet has no maximum; its scores stay at e^-inf.
        let shift = new.map(|m| if m == f32::NEG_INFINITY { 0.0 } else { m });
        let mut keep = [0f32; COLS];
        for i in 0..COLS {
            keep[i] = exp(max[i] - shift[i]);
            total[i] *= keep[i];
        }
        for row in scores.chunks_exact_mut(COLS) {
            for i in 0..COLS {
                row[i] = exp(row[i] - shift[i]);
                total[i] += row[i];
            }
        }
        *max = new;
        keep
    }
}

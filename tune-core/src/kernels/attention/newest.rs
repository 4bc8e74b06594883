//! Attention of new tokens, one of each sequence, to all that came before: a sweep over keys and one over values, where they
//! are.

use super::{Attention, Stretch};
use crate::kernels::math::{exp, sum, tanh};
use crate::kernels::team::Team;
use crate::kernels::view::{View, ViewMut};
use crate::kernels::workspace::{Workspace, room};
use crate::kernels::{Element, Shared, simd, widen};

/// Sums that are kept apart until the end, see [`sum`].
const LANES: usize = 64;

impl Attention<'_> {
    /// Whether each stretch is one token.
    pub(crate) fn is_of_newest(&self) -> bool {
        self.stretches.iter().all(|stretch| stretch.len == 1)
    }

    /// The elements that [`Attention::newest`] needs on this many threads.
    pub(crate) fn newest_workspace(&self, threads: usize) -> usize {
        threads * room(self.of_one())
    }

    /// Of one sequence and head of keys: queries, sums of values, and scores.
    fn of_one(&self) -> usize {
        let heads = self.shape.heads / self.shape.kv_heads;
        let longest = self.stretches.iter().map(|stretch| stretch.past + 1).max().unwrap_or(0);
        2 * room(heads * self.shape.head_dim) + room(longest)
    }

    /// As [`Attention::forward`], for stretches of one token. `workspace` is to have as many elements as
    /// [`Attention::newest_workspace`] says.
    pub(crate) fn newest<T: Element>(
        &self,
        [q, k, v]: [View<'_, T>; 3],
        out: &ViewMut<'_, T>,
        lse: &mut [f32],
        workspace: &mut [f32],
        team: &Team,
    ) {
        let (tokens, kv_heads) = (q.rows(), self.shape.kv_heads);
        let (heads, dim) = (self.shape.heads / kv_heads, self.shape.head_dim);
        assert_eq!(self.stretches.len(), tokens, "attention of new tokens: one of each sequence");
        let of_threads = Workspace::new(workspace).per_thread(rayon::current_num_threads(), self.of_one());
        let lse = Shared::new(lse);
        team.run(tokens * kv_heads, |part| {
            let (stretch, kv_head) = (&self.stretches[part / kv_heads], part % kv_heads);
            // SAFETY: a part of the work takes it once, and waits for nothing.
            let mut memory = Workspace::new(unsafe { of_threads.mine() });
            let columns = kv_head * heads * dim..(kv_head + 1) * heads * dim;
            let queries = memory.take(heads * dim);
            widen(&q.row(stretch.queries)[columns.clone()], queries);
            let sums = memory.take(heads * dim);
            let scores = memory.take(stretch.past + 1);
            let of_keys = kv_head * dim..(kv_head + 1) * dim;
            let rows = stretch.keys..stretch.keys + stretch.past + 1;
            let (k, v) = (k.part(rows.clone(), of_keys.clone()), v.part(rows, of_keys));
            // SAFETY: parts of the work have no token and head in common.
            let out = unsafe { out.part(stretch.queries, columns.start, columns.len()) };
            simd(
                #[inline(always)]
                || {
                    for head in 0..heads {
                        let (query, sums) = (&queries[head * dim..][..dim], &mut sums[head * dim..][..dim]);
                        let (max, total) = self.of_head(stretch, query, [k, v], scores, sums);
                        let inverse = 1.0 / total;
                        let out = &mut out[head * dim..][..dim];
                        out.iter_mut().zip(&*sums).for_each(|(o, s)| *o = T::from_f32(s * inverse));
                        // SAFETY: as above.
                        let of_head = unsafe { lse.part((kv_head * heads + head) * tokens + stretch.queries, 1) };
                        of_head[0] = max + total.ln();
                    }
                },
            );
        });
    }

    /// Of one query: the sum of values, each times `e^(score - max)`, into `sums`; returns the maximum and the sum of these.
    #[inline(always)]
    fn of_head<T: Element>(
        &self,
        stretch: &Stretch,
        query: &[f32],
        [k, v]: [View<'_, T>; 2],
        scores: &mut [f32],
        sums: &mut [f32],
    ) -> (f32, f32) {
        let first = self.shape.first_key(stretch.past);
        let scores = &mut scores[..stretch.past + 1 - first];
        let scale = self.shape.scale as f32;
        for (i, score) in scores.iter_mut().enumerate() {
            *score = dot(query, k.row(first + i)) * scale;
        }
        if let Some(cap) = self.shape.softcap {
            let cap = cap as f32;
            scores.iter_mut().for_each(|s| *s = cap * tanh(*s / cap));
        }
        let max = scores.iter().fold(f32::NEG_INFINITY, |max, &s| if s > max { s } else { max });
        scores.iter_mut().for_each(|s| *s = exp(*s - max));
        let total = sum(
            [scores],
            #[inline(always)]
            |[s]| s,
        );
        sums.fill(0.0);
        for (i, &weight) in scores.iter().enumerate() {
            sums.iter_mut().zip(v.row(first + i)).for_each(|(sum, v)| *sum += weight * v.to_f32());
        }
        (max, total)
    }
}

/// The product of two rows, in an order that depends on their length alone.
#[inline(always)]
fn dot<T: Element>(a: &[f32], b: &[T]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane].to_f32();
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * b.to_f32();
    }
    let mut count = LANES;
    while count > 1 {
        count /= 2;
        let (low, high) = lanes.split_at_mut(count);
        low.iter_mut().zip(high).for_each(|(l, h)| *l += *h);
    }
    lanes[0]
}

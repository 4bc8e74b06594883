//! Attention of the newest token of each sequence: the parts of its keys on many multiprocessors, then the parts together.

use super::attention::{Attention, Qkv};
use super::spans::Spans;
use super::{both, one};
use crate::buffer::{Buffer, Element, ViewMut};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

const OF_PARTS: &str = "pppppllliiiiff";
/// For one, two and four heads that share their keys, at once.
static PARTS: [[Kernel; 3]; 2] = [
    parts(["attention_decode_f32_g1", "attention_decode_f32_g2", "attention_decode_f32_g4"]),
    parts(["attention_decode_bf16_g1", "attention_decode_bf16_g2", "attention_decode_bf16_g4"]),
];
static JOIN: [Kernel; 2] = both("attention_decode", ["attention_join_f32", "attention_join_bf16"], "pppliii");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&PARTS[0], &PARTS[1], &JOIN];

/// Blocks that fill a card: two for each multiprocessor of the largest. The same on every card, for they decide the order of sums.
const BLOCKS: usize = 264;
/// Keys that a part has at least.
const KEYS: usize = 64;

const fn parts([one_head, two, four]: [&'static str; 3]) -> [Kernel; 3] {
    const MODULE: &str = "attention_decode";
    [one(MODULE, one_head, OF_PARTS), one(MODULE, two, OF_PARTS), one(MODULE, four, OF_PARTS)]
}

impl Attention {
    /// Whether [`Context::attend_newest`] can do it.
    pub(super) fn reads_pairs<T: Element>(&self, qkv: &Qkv<'_, T>) -> bool {
        let pair = 2 * size_of::<T>() as u64;
        let even = |address: u64, stride: usize| address.is_multiple_of(pair) && stride.is_multiple_of(2);
        self.head_dim.is_multiple_of(2) && [&qkv.q, &qkv.k, &qkv.v].iter().all(|x| even(x.address, x.stride))
    }

    /// The logarithm of how many heads that share their keys a block computes.
    fn heads_at_once(&self) -> usize {
        let group = self.heads / self.kv_heads;
        [4, 2, 1].into_iter().position(|n| group.is_multiple_of(n)).map_or(0, |at| 2 - at)
    }

    /// In how many parts the keys of each of `count` sequences are read where each has one query, and the longest has `longest` keys:
    /// the one thing of such a call, beside numbers in memory, that lengths decide.
    #[must_use]
    pub fn parts_of_newest(&self, count: usize, longest: usize) -> usize {
        let blocks = (self.heads >> self.heads_at_once()) * count.max(1);
        let longest = self.window.unwrap_or(usize::MAX).min(longest);
        BLOCKS.div_ceil(blocks).min(longest.div_ceil(KEYS)).max(1)
    }

    /// Numbers of f32 that such a call needs.
    #[must_use]
    pub fn workspace_of_newest(&self, count: usize, longest: usize) -> usize {
        count * self.heads * self.parts_of_newest(count, longest) * (self.head_dim + 2)
    }
}

impl Context {
    /// [`Context::attend`] where every stretch has one query.
    pub(super) fn attend_newest<T: Element>(
        &self,
        how: &Attention,
        spans: &Spans,
        qkv: Qkv<'_, T>,
        out: ViewMut<'_, T>,
        lse: &mut Buffer<f32>,
    ) {
        let sequences = spans.newest(self);
        let (count, at_once, row) = (spans.count(), how.heads_at_once(), how.head_dim + 2);
        let parts = how.parts_of_newest(count, spans.longest());
        let scratch = self.buffer::<f32>(how.workspace_of_newest(count, spans.longest()));
        Launch::new(self, &PARTS[T::INDEX][at_once])
            .pointer(scratch.address())
            .pointer(qkv.q.address)
            .pointer(qkv.k.address)
            .pointer(qkv.v.address)
            .pointer(sequences.address())
            .long(qkv.q.stride)
            .long(qkv.k.stride)
            .long(qkv.v.stride)
            .int(how.heads)
            .looks(how)
            .go(Size { grid: [how.heads >> at_once, count, parts], threads: [128, 1], shared: 16 * (row << at_once) });
        Launch::new(self, &JOIN[T::INDEX])
            .pointer(out.address)
            .pointer(lse.address())
            .pointer(scratch.address())
            .long(out.stride)
            .int(how.heads)
            .int(parts)
            .int(how.head_dim)
            .go(Size { grid: [how.heads, count, 1], threads: [128, 1], shared: 0 });
    }
}

use super::spans::{Order, Spans, Tile};
use super::{both, one};
use crate::buffer::{Buffer, Element, View, ViewMut};
use crate::context::{Context, Units};
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

const OF_FORWARD: &str = "ppppppllllliiiff";
const OF_QUERIES: &str = "pppppppplllllliiiff";
const OF_KEYS: &str = "pppppppppllllllliiiff";

/// A kernel for one pass: the longest head that it can have, the positions of a tile, threads, and bytes of shared memory.
struct Fast {
    kernel: Kernel,
    head_dim: usize,
    tile: usize,
    threads: usize,
    shared: usize,
}

/// With the products of warpgroups, which Hopper alone has: output, gradient of queries, gradients of keys and values.
static HOPPER: [[Fast; 2]; 3] = [
    [
        fast("attention_forward_sm90a", "attention_forward_bf16_d64_sm90a", OF_FORWARD, (64, 128, 384, 82_048)),
        fast("attention_forward_sm90a", "attention_forward_bf16_d128_sm90a", OF_FORWARD, (128, 128, 384, 163_968)),
    ],
    [
        fast("attention_backward_sm90a", "attention_queries_bf16_d64_sm90a", OF_QUERIES, (64, 128, 256, 98_304)),
        fast("attention_backward_sm90a", "attention_queries_bf16_d128_sm90a", OF_QUERIES, (128, 128, 256, 131_072)),
    ],
    [
        fast("attention_backward_sm90a", "attention_keys_bf16_d64_sm90a", OF_KEYS, (64, 128, 256, 100_352)),
        fast("attention_backward_sm90a", "attention_keys_bf16_d128_sm90a", OF_KEYS, (128, 128, 256, 132_096)),
    ],
];
/// The last of them in parts, in the same order, with one more parameter: how many parts a head of keys has.
static IN_PARTS: [Kernel; 2] = [
    one("attention_backward_sm90a", "attention_keys_in_parts_d64_sm90a", "pppppppppllllllliiiffi"),
    one("attention_backward_sm90a", "attention_keys_in_parts_d128_sm90a", "pppppppppllllllliiiffi"),
];
static JOIN_PARTS: Kernel = one("attention_backward_sm90a", "attention_join_keys_sm90a", "pplliii");
/// With the products of warps, which every card has; in the same order.
static TENSOR: [[Fast; 4]; 3] = [
    [
        fast("attention_forward", "attention_forward_bf16_d64", OF_FORWARD, (64, 128, 128, 55_296)),
        fast("attention_forward", "attention_forward_bf16_d96", OF_FORWARD, (96, 128, 128, 53_248)),
        fast("attention_forward", "attention_forward_bf16_d128", OF_FORWARD, (128, 128, 128, 69_632)),
        fast("attention_forward", "attention_forward_bf16_d256", OF_FORWARD, (256, 64, 128, 101_376)),
    ],
    [
        fast("attention_backward", "attention_queries_bf16_d64", OF_QUERIES, (64, 128, 128, 55_296)),
        fast("attention_backward", "attention_queries_bf16_d96", OF_QUERIES, (96, 128, 128, 79_872)),
        fast("attention_backward", "attention_queries_bf16_d128", OF_QUERIES, (128, 64, 128, 69_632)),
        fast("attention_backward", "attention_queries_bf16_d256", OF_QUERIES, (256, 64, 128, 101_376)),
    ],
    [
        fast("attention_backward", "attention_keys_bf16_d64", OF_KEYS, (64, 64, 128, 56_320)),
        fast("attention_backward", "attention_keys_bf16_d96", OF_KEYS, (96, 64, 128, 53_760)),
        fast("attention_backward", "attention_keys_bf16_d128", OF_KEYS, (128, 64, 128, 70_144)),
        fast("attention_backward", "attention_keys_bf16_d256", OF_KEYS, (256, 48, 192, 84_736)),
    ],
];
/// For f32, and what tensor cores cannot do.
static PLAIN: [[Kernel; 3]; 2] = [
    plain(["attention_plain_forward_f32", "attention_plain_queries_f32", "attention_plain_keys_f32"]),
    plain(["attention_plain_forward_bf16", "attention_plain_queries_bf16", "attention_plain_keys_bf16"]),
];
static DELTA: [Kernel; 2] = both("attention_plain", ["attention_delta_f32", "attention_delta_bf16"], "ppplllii");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&PLAIN[0], &PLAIN[1], &DELTA];
/// Kernels for every card, and those for Hopper alone.
#[cfg(test)]
pub(super) fn fast_kernels() -> (Vec<&'static Kernel>, Vec<&'static Kernel>) {
    let all = TENSOR.iter().flatten().map(|fast| &fast.kernel).collect();
    (all, HOPPER.iter().flatten().map(|fast| &fast.kernel).collect())
}

/// Hopper's kernels that stand in for no others.
#[cfg(test)]
pub(super) fn in_parts() -> impl Iterator<Item = &'static Kernel> {
    IN_PARTS.iter().chain([&JOIN_PARTS])
}

const fn fast(
    module: &'static str,
    name: &'static str,
    parameters: &'static str,
    (head_dim, tile, threads, shared): (usize, usize, usize, usize),
) -> Fast {
    Fast { kernel: one(module, name, parameters), head_dim, tile, threads, shared }
}

const fn plain(names: [&'static str; 3]) -> [Kernel; 3] {
    let [forward, queries, keys] = names;
    [
        one("attention_plain", forward, OF_FORWARD),
        one("attention_plain", queries, OF_QUERIES),
        one("attention_plain", keys, OF_KEYS),
    ]
}

/// The heads of an attention layer and how they look back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head, at most 256.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// How many positions a token sees, itself included; all earlier ones if `None`.
    pub window: Option<usize>,
    /// The cap of the scores.
    pub softcap: Option<f32>,
}

/// Queries, keys and values: `[tokens, heads · head_dim]` and twice `[tokens, kv_heads · head_dim]`.
#[derive(Debug)]
pub struct Qkv<'a, T> {
    /// Queries.
    pub q: View<'a, T>,
    /// Keys.
    pub k: View<'a, T>,
    /// Values.
    pub v: View<'a, T>,
}

/// The gradients of [`Qkv`], to be written.
#[derive(Debug)]
pub struct QkvMut<'a, T> {
    /// Of queries.
    pub q: ViewMut<'a, T>,
    /// Of keys.
    pub k: ViewMut<'a, T>,
    /// Of values.
    pub v: ViewMut<'a, T>,
}

impl<T> Clone for Qkv<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Qkv<'_, T> {}

/// Blocks of the pass for keys and values that keep a card busy to the end: those of the first keys take twice the mean, so that each
/// multiprocessor of the largest card should have two. The same on every card, for they decide the order of sums.
const BLOCKS: usize = 256;

/// How one pass is computed.
struct Way {
    kernel: &'static Kernel,
    /// Gradients of keys and values in parts.
    in_parts: Option<&'static Kernel>,
    tile: usize,
    threads: usize,
    shared: usize,
}

impl Attention {
    /// How a pass (0 to 2, see [`HOPPER`]) over these memories is computed.
    fn way<T: Element>(&self, context: &Context, pass: usize, memories: &[(u64, usize)]) -> Way {
        let aligned =
            memories.iter().all(|(address, stride)| (*address | (stride * size_of::<T>()) as u64).is_multiple_of(16));
        let (card, units) = (context.card(), context.0.units());
        if T::INDEX == 1 && aligned && self.head_dim.is_multiple_of(8) {
            // Warpgroups' gradients know no cap.
            let hopper =
                units == Units::Warpgroups && card.capability.major == 9 && (pass == 0 || self.softcap.is_none());
            let first: &[Fast] = if hopper { &HOPPER[pass] } else { &[] };
            let second: &[Fast] = if units == Units::None { &[] } else { &TENSOR[pass] };
            let fits = |fast: &&Fast| self.head_dim <= fast.head_dim && fast.shared <= card.shared_memory as usize;
            if let Some((i, fast)) = first.iter().chain(second).enumerate().find(|(_, fast)| fits(fast)) {
                let in_parts = IN_PARTS.get(i).filter(|_| pass == 2 && i < first.len());
                let Fast { kernel, tile, threads, shared, .. } = fast;
                return Way { kernel, in_parts, tile: *tile, threads: *threads, shared: *shared };
            }
        }
        let rows = if pass == 0 { 72 } else { 80 };
        let kernel = &PLAIN[T::INDEX][pass];
        Way { kernel, in_parts: None, tile: 8, threads: 256, shared: 4 * (self.head_dim + 1) * rows }
    }

    /// In how many parts of its query heads a head of keys is computed, where there are this many tiles of keys.
    fn parts(&self, tiles: usize) -> usize {
        let group = self.heads / self.kv_heads;
        let enough = |parts: &usize| group.is_multiple_of(*parts) && self.kv_heads * tiles * parts >= BLOCKS;
        (1..group).find(enough).unwrap_or(group)
    }

    /// Numbers of f32 that [`Context::attend_back`] needs for this many tokens in sequences of these lengths, of bf16 (`narrow`) or f32: as
    /// many as the card takes that takes the most.
    #[must_use]
    pub fn workspace(&self, narrow: bool, tokens: usize, lens: impl Iterator<Item = usize>) -> usize {
        let parts = self.parts(lens.map(|len| len.div_ceil(HOPPER[2][0].tile)).sum());
        let in_parts =
            narrow && parts > 1 && self.softcap.is_none() && HOPPER[2].iter().any(|f| self.head_dim <= f.head_dim);
        tokens * (self.heads + if in_parts { 2 * parts * self.kv_heads * self.head_dim } else { 0 })
    }

    fn check<T>(&self, qkv: &Qkv<'_, T>, spans: &Spans, lse: &Buffer<f32>) {
        let [queries, keys] = spans.rows();
        let kv = (keys, self.kv_heads * self.head_dim);
        let fits = qkv.q.shape() == (queries, self.heads * self.head_dim) && [qkv.k.shape(), qkv.v.shape()] == [kv; 2];
        let heads = self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads) && self.head_dim <= 256;
        assert!(fits && heads && self.window != Some(0), "attention: shapes that do not fit");
        assert_eq!(lse.len(), self.heads * queries, "attention: a normalizer for each head and query");
    }
}

impl Context {
    /// Attention into `out`, shaped as the queries, and the logarithm of each query's normalizer into `lse` `[heads, tokens]`.
    /// Queries outside every span give zero.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn attend<T: Element>(
        &self,
        how: &Attention,
        spans: &Spans,
        qkv: Qkv<'_, T>,
        mut out: ViewMut<'_, T>,
        lse: &mut Buffer<f32>,
    ) {
        how.check(&qkv, spans, lse);
        assert_eq!(out.shape(), qkv.q.shape(), "attention: shapes that do not fit");
        if spans.has_gaps() {
            self.clear(out.reborrow());
            self.fill(lse, 0);
        }
        if spans.is_newest() && how.reads_pairs(&qkv) {
            return self.attend_newest(how, spans, qkv, out, lse);
        }
        let memories = [&qkv.q, &qkv.k, &qkv.v].map(|x| (x.address, x.stride));
        let way = how.way::<T>(self, 0, &[&memories[..], &[(out.address, out.stride)]].concat());
        let tiles = spans.tiles(self, way.tile, Order::Queries);
        Launch::new(self, way.kernel)
            .pointer(out.address)
            .pointer(lse.address())
            .pointer(qkv.q.address)
            .pointer(qkv.k.address)
            .pointer(qkv.v.address)
            .pointer(tiles.address())
            .long(spans.rows()[0])
            .long(out.stride)
            .long(qkv.q.stride)
            .long(qkv.k.stride)
            .long(qkv.v.stride)
            .looks(how)
            .go(way.size(how.heads, tiles.len()));
    }

    /// The gradients of queries, keys and values for `g`, that of the output, from what [`Context::attend`] gave.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn attend_back<T: Element>(
        &self,
        how: &Attention,
        spans: &Spans,
        qkv: Qkv<'_, T>,
        (out, lse): (View<'_, T>, &Buffer<f32>),
        g: View<'_, T>,
        mut into: QkvMut<'_, T>,
    ) {
        how.check(&qkv, spans, lse);
        assert!(spans.is_whole(), "attention: no gradient behind a past");
        let queries = [out.shape(), g.shape(), into.q.shape()] == [qkv.q.shape(); 3];
        assert!(queries && [into.k.shape(), into.v.shape()] == [qkv.k.shape(); 2], "attention: shapes that do not fit");
        if spans.has_gaps() {
            for view in [&mut into.q, &mut into.k, &mut into.v] {
                self.clear(view.reborrow());
            }
        }
        let tokens = spans.rows()[0];
        let delta = self.buffer::<f32>(how.heads * tokens);
        Launch::new(self, &DELTA[T::INDEX])
            .pointer(delta.address())
            .pointer(out.address)
            .pointer(g.address)
            .long(tokens)
            .long(out.stride)
            .long(g.stride)
            .int(how.heads)
            .int(how.head_dim)
            .go(Size::row((tokens * how.heads).div_ceil(8), 256, 0));
        let read = [qkv.q, qkv.k, qkv.v, g].map(|x| (x.address, x.stride));
        let way = |number: usize, written: &[(u64, usize)]| how.way::<T>(self, number, &[&read[..], written].concat());
        let pass = |kernel, written: &[(u64, usize)], tiles: &Buffer<Tile>, how: &Attention| {
            Launch::new(self, kernel)
                .addresses(written)
                .addresses(&read)
                .pointer(lse.address())
                .pointer(delta.address())
                .pointer(tiles.address())
                .long(tokens)
                .strides(written)
                .strides(&read)
                .looks(how)
        };
        let of_queries = [(into.q.address, into.q.stride)];
        let first = way(1, &of_queries);
        let tiles = spans.tiles(self, first.tile, Order::Queries);
        pass(first.kernel, &of_queries, &tiles, how).go(first.size(how.heads, tiles.len()));

        let of_keys = [&into.k, &into.v].map(|x| (x.address, x.stride));
        let second = way(2, &of_keys);
        let tiles = spans.tiles(self, second.tile, Order::Keys);
        let parts = how.parts(tiles.len());
        let Some(in_parts) = second.in_parts.filter(|_| parts > 1) else {
            return pass(second.kernel, &of_keys, &tiles, how).go(second.size(how.kv_heads, tiles.len()));
        };
        let wide = how.kv_heads * parts * how.head_dim;
        let mut sums = [(); 2].map(|()| self.buffer::<f32>(tokens * wide));
        if spans.has_gaps() {
            sums.iter_mut().for_each(|sums| self.fill(sums, 0));
        }
        // To the kernel each part is a head of keys.
        let heads = Attention { kv_heads: how.kv_heads * parts, ..*how };
        let written = [(sums[0].address(), wide), (sums[1].address(), wide)];
        pass(in_parts, &written, &tiles, &heads).int(parts).go(second.size(heads.kv_heads, tiles.len()));
        for (sums, (address, stride)) in sums.iter().zip(of_keys) {
            Launch::new(self, &JOIN_PARTS)
                .pointer(address)
                .pointer(sums.address())
                .long(tokens)
                .long(stride)
                .int(how.kv_heads)
                .int(parts)
                .int(how.head_dim)
                .go(Size::row((tokens * how.kv_heads * how.head_dim / 8).div_ceil(256), 256, 0));
        }
    }
}

impl Way {
    fn size(&self, heads: usize, tiles: usize) -> Size {
        Size { grid: [heads, tiles, 1], threads: [self.threads, 1], shared: self.shared }
    }
}

impl Launch<'_> {
    fn addresses(self, memories: &[(u64, usize)]) -> Self {
        memories.iter().fold(self, |launch, (address, _)| launch.pointer(*address))
    }

    fn strides(self, memories: &[(u64, usize)]) -> Self {
        memories.iter().fold(self, |launch, (_, stride)| launch.long(*stride))
    }

    /// What all kernels of attention are told of the layer.
    pub(super) fn looks(self, how: &Attention) -> Self {
        self.int(how.heads / how.kv_heads)
            .int(how.head_dim)
            .int(how.window.unwrap_or(0))
            .float(how.scale)
            .float(how.softcap.unwrap_or(0.0))
    }
}

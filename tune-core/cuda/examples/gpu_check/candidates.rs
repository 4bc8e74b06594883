//! Whether cuBLASLt has a faster algorithm for a product than the one that it names first: the shapes of five models' training.

use half::bf16;
use tune_config::say;
use tune_cuda::{Candidate, Context, Onto, Result, Term};

use super::numbers::Number;
use super::times::filled;

/// Algorithms that are tried for each shape.
const MOST: usize = 16;
/// A gain that is told: less is noise.
const GAIN: f32 = 0.02;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Up,
    UpOnto,
    /// To sums of f32.
    UpSums,
    Down,
    DownOnto,
    /// Added to sums of f32, as gradients of weights are.
    Across,
}

/// Rows, columns and what is summed over, and how often a micro-batch has such a product.
type Product = (Kind, [usize; 3], usize);

/// A model's products in training: tokens, width, width between, query width, key width, vocabulary and rows of logits, layers.
struct Model {
    name: &'static str,
    tokens: usize,
    hidden: usize,
    inner: usize,
    queries: usize,
    keys: usize,
    vocab: usize,
    logits: usize,
    layers: usize,
    /// The rank of adapters; all weights are trained where there are none.
    rank: Option<usize>,
}

const MODELS: [Model; 4] = [
    Model {
        name: "1.5 B, all",
        tokens: 8192,
        hidden: 1536,
        inner: 8960,
        queries: 1536,
        keys: 256,
        vocab: 151_936,
        logits: 2736,
        layers: 28,
        rank: None,
    },
    Model {
        name: "8 B, adapters",
        tokens: 8192,
        hidden: 4096,
        inner: 14_336,
        queries: 4096,
        keys: 1024,
        vocab: 128_256,
        logits: 2048,
        layers: 32,
        rank: Some(16),
    },
    Model {
        name: "1.7 B, adapters",
        tokens: 4096,
        hidden: 2048,
        inner: 6144,
        queries: 2048,
        keys: 1024,
        vocab: 151_936,
        logits: 1368,
        layers: 28,
        rank: Some(16),
    },
    Model {
        name: "0.6 B, adapters",
        tokens: 4096,
        hidden: 1024,
        inner: 3072,
        queries: 2048,
        keys: 1024,
        vocab: 151_936,
        logits: 1368,
        layers: 28,
        rank: Some(16),
    },
];

impl Model {
    fn products(&self) -> Vec<Product> {
        let Self { tokens, hidden, inner, queries, keys, vocab, logits, layers, .. } = *self;
        let mut all = Vec::new();
        for (into, out, count) in [
            (hidden, queries, layers),
            (hidden, keys, 2 * layers),
            (queries, hidden, layers),
            (hidden, inner, 2 * layers),
            (inner, hidden, layers),
        ] {
            let to_stream = out == hidden && into != hidden;
            all.push((if to_stream { Kind::UpOnto } else { Kind::Up }, [tokens, out, into], count));
            all.push((if to_stream { Kind::Down } else { Kind::DownOnto }, [tokens, into, out], count));
            if let Some(rank) = self.rank {
                all.push((Kind::Up, [tokens, rank, into], count));
                all.push((Kind::Up, [tokens, out, rank], count));
                all.push((Kind::Down, [tokens, rank, out], count));
                all.push((Kind::DownOnto, [tokens, into, rank], count));
                all.push((Kind::Across, [rank, into, tokens], count));
                all.push((Kind::Across, [out, rank, tokens], count));
            } else {
                all.push((Kind::Across, [out, into, tokens], count));
            }
        }
        let chunks = tokens.div_ceil(logits);
        all.push((Kind::UpSums, [logits, vocab, hidden], chunks));
        all.push((Kind::Down, [logits, hidden, vocab], chunks));
        if self.rank.is_none() {
            all.push((Kind::Across, [vocab, hidden, logits], chunks));
            // What several layers at once would be: queries, keys and values; gate and up.
            for (at_once, kinds) in [
                (queries + 2 * keys, [Kind::Up, Kind::Down, Kind::Across]),
                (2 * keys, [Kind::Up, Kind::DownOnto, Kind::Across]),
                (2 * inner, [Kind::Up, Kind::Down, Kind::Across]),
            ] {
                for kind in kinds {
                    let shape = match kind {
                        Kind::Down | Kind::DownOnto => [tokens, hidden, at_once],
                        Kind::Across => [at_once, hidden, tokens],
                        _ => [tokens, at_once, hidden],
                    };
                    all.push((kind, shape, 0));
                }
            }
        }
        all
    }
}

fn tried(context: &Context, kind: Kind, [m, n, k]: [usize; 3]) -> Result<Vec<Candidate>> {
    fn with<D: Number>(context: &Context, kind: Kind, [m, n, k]: [usize; 3]) -> Result<Vec<Candidate>> {
        let (left, right) = (filled::<bf16>(context, m * k), filled::<bf16>(context, n * k));
        let mut y = filled::<D>(context, m * n);
        let onto = match kind {
            Kind::UpOnto | Kind::DownOnto | Kind::Across => Onto::Itself,
            _ => Onto::Nothing,
        };
        let term = match kind {
            Kind::Up | Kind::UpOnto | Kind::UpSums => Term::Up { x: left.view(k), w: right.view(k) },
            Kind::Down | Kind::DownOnto => Term::Down { g: left.view(k), w: right.view(n) },
            Kind::Across => Term::Across { g: left.view(m), x: right.view(n) },
        };
        context.candidates(term, onto, y.view_mut(n), MOST)
    }
    match kind {
        Kind::UpSums | Kind::Across => with::<f32>(context, kind, [m, n, k]),
        _ => with::<bf16>(context, kind, [m, n, k]),
    }
}

/// Times all candidates of all shapes: a line for each shape, and where another than the first is faster, which one. With `all`, all.
pub(crate) fn measure(context: &Context, all: bool) -> Result<()> {
    for model in &MODELS {
        let mut products = model.products();
        products.sort();
        products.dedup_by(|later, first| {
            let same = later.0 == first.0 && later.1 == first.1;
            first.2 += if same { later.2 } else { 0 };
            same
        });
        let (mut now, mut best) = (0.0, 0.0);
        for (kind, shape, count) in products {
            let found = tried(context, kind, shape)?;
            let first = found[0].milliseconds;
            let (at, fastest) = found
                .iter()
                .enumerate()
                .min_by(|(_, a), (_, b)| a.milliseconds.total_cmp(&b.milliseconds))
                .unwrap_or((0, &found[0]));
            now += count as f32 * first;
            best += count as f32 * fastest.milliseconds;
            let [m, n, k] = shape;
            let rate = 2e-9 * m as f32 * n as f32 * k as f32 / first;
            let gain = 1.0 - fastest.milliseconds / first;
            let faster = match gain > GAIN {
                true => format!(
                    "; {at} of {} {:.1} us, {:.1} % less",
                    found.len(),
                    1e3 * fastest.milliseconds,
                    100.0 * gain
                ),
                false => String::new(),
            };
            say!("{count:>3} x {kind:?} {m} x {n} x {k}: {:.1} us, {rate:.0} TF/s{faster}", 1e3 * first);
            for (i, one) in found.iter().enumerate().filter(|_| all) {
                say!(
                    "      {i}: {:.1} us, {} waves, {} KiB: {}",
                    1e3 * one.milliseconds,
                    one.waves,
                    one.workspace >> 10,
                    one.what
                );
            }
        }
        say!("{}: {now:.2} ms a micro-batch by the first, {best:.2} ms by the fastest of each", model.name);
    }
    Ok(())
}

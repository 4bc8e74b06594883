//! Memory of a card.

use super::{Cluster, Job, Kept, Logits, Sharding, Trained};

/// Bytes of an element of an activation or a gathered weight.
const BF16: f64 = 2.0;
const F32: f64 = 4.0;
/// The optimizer's two moments.
const STATE: f64 = 8.0;
/// Bytes of an element in NF4 with its scales.
const NF4: f64 = 0.5 + 1.0 / 64.0;
/// Tokens whose logits exist at a time, where not all do.
const TOKENS_AT_ONCE: f64 = 2048.0;
/// Bytes of the programs of a card and the workspace of products.
const PROGRAM: f64 = 0.25 * GIB;
const GIB: f64 = 1073741824.0;

/// What a card holds when it holds most, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// Its share of the weights, and of adapters.
    pub weights: f64,
    /// Its share of the gradients, f32.
    pub gradients: f64,
    /// Its share of the optimizer's state, f32.
    pub optimizer: f64,
    /// Weights that are gathered at a time, and gradients that are not divided yet.
    pub gathered: f64,
    /// What the forward pass keeps, and what a block takes on its way.
    pub activations: f64,
    /// Logits with what becomes of them.
    pub logits: f64,
    /// Programs of the card.
    pub program: f64,
}

impl Job {
    /// Bytes of an element of a block's weights, as they are gathered.
    pub(super) fn bytes_in_blocks(&self) -> f64 {
        if matches!(self.trained, Trained::AdaptersOnNf4(_)) { NF4 } else { BF16 }
    }
}

impl Memory {
    /// That of each of some cards.
    #[must_use]
    pub fn of(job: &Job, cluster: &Cluster) -> Self {
        let cards = match job.sharding {
            Sharding::None => 1.0,
            _ => cluster.cards as f64,
        };
        let (parameters, trained, tables) = (job.parameters(), job.trained(), job.tables());
        let of_blocks: f64 = job.blocks().sum();
        let (frozen, adapters) = match job.trained {
            Trained::All => (job.weight_bytes * parameters, 0.0),
            Trained::Adapters(_) => (BF16 * parameters, F32 * trained),
            Trained::AdaptersOnNf4(_) => (NF4 * of_blocks + BF16 * (parameters - of_blocks), F32 * trained),
        };
        // Of a block that is gathered, with the next one; the tables are gathered for all of a step.
        let largest = job.blocks().fold(0.0, f64::max);
        let trains = matches!(job.trained, Trained::All);
        let in_blocks = job.bytes_in_blocks();
        let is_whole = cluster.cards == 1 || job.sharding == Sharding::None;
        let gathered = match job.sharding {
            // What is computed with is there.
            _ if is_whole && !(trains && job.weight_bytes > BF16) => 0.0,
            Sharding::Steps => in_blocks * of_blocks + BF16 * tables,
            _ => 2.0 * in_blocks * largest + BF16 * tables,
        };
        let tokens = job.tokens() as f64;
        let blocks = job.model.blocks.len();
        let kept: f64 = (0..blocks).map(|block| BF16 * tokens * job.kept(block)).sum();
        let on_its_way = (0..blocks).map(|block| {
            let again = if job.kept == Kept::All { 0.0 } else { job.activations(block) };
            BF16 * tokens * (again + 2.0 * (job.inner(block) + job.model.hidden_size as f64))
        });
        let on_its_way = on_its_way.fold(0.0, f64::max);
        let vocab = job.model.vocab_size as f64;
        let logits = match job.logits {
            Logits::Some => vocab * tokens.min(TOKENS_AT_ONCE) * (F32 + BF16),
            Logits::All => vocab * tokens * (BF16 + 3.0 * F32),
        };
        // Most is held at the loss, with the output layer's gradient, or in the last block, with its gradient and that of the
        // layer above, one of them in f32 on its way.
        let (table, divides) = (job.model.output().elements() as f64, trains && !is_whole);
        let at_loss = logits + if divides { BF16 * table } else { 0.0 };
        let of_gradients = if divides { BF16 * table + (2.0 * BF16 + F32) * largest } else { 0.0 };
        let in_block = on_its_way + of_gradients;
        let (activations, logits, gathered) = match at_loss >= in_block {
            true => (kept, logits, gathered + at_loss - logits),
            false => (kept + on_its_way, 0.0, gathered + of_gradients),
        };
        Self {
            weights: (frozen + adapters) / cards,
            gradients: F32 * trained / cards,
            optimizer: STATE * trained / cards,
            gathered,
            activations,
            logits,
            program: PROGRAM,
        }
    }

    /// The parts by name, in bytes.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, f64); 7] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("gathered for a while", self.gathered),
            ("activations", self.activations),
            ("logits and loss", self.logits),
            ("kernels and workspace", self.program),
        ]
    }

    /// All of it, in GiB.
    #[must_use]
    pub fn gib(&self) -> f64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum::<f64>() / GIB
    }
}

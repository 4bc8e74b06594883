//! What a run would take on cards that need not be here: memory of each, bytes that move between them, time and cost.
//!
//! This is a forecast from published rates, for sizes at which nobody tries first. Nothing is replayed, as it is in
//! [`memory_plan`](crate::memory_plan): parameters are counted exactly, activations are those of the usual fused kernels, and the time
//! of a step is what its operations take at the rates that such kernels reach. What it says is held to what others have published
//! of their runs (`tests/planner.rs`).
//!
//! Parameters, gradients and the optimizer's state are divided among all cards, and a block's weights are gathered in bf16 when the block
//! runs (ZeRO stage 3, Rajbhandari et al. 2019, <https://arxiv.org/abs/1910.02054>; FSDP, Zhao et al. 2023,
//! <https://arxiv.org/abs/2304.11277>).

mod cards;
mod memory;
mod table;
mod time;

pub use cards::{CARDS, Card};
pub use memory::Memory;
pub use table::Forecast;
pub use time::Time;

use crate::models::{LayerSpec, ModelSpec};

/// What is trained on each card.
#[derive(Debug, Clone)]
pub struct Job {
    /// The model's shape.
    pub model: ModelSpec,
    /// What is trained.
    pub trained: Trained,
    /// Bytes of a weight as it is kept: 2 or 4. It is gathered, and computed with, in bf16.
    pub weight_bytes: f64,
    /// Sequences of a micro-batch, on each card.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Micro-batches of a step, on each card.
    pub micro_batches: usize,
    /// What is kept of the forward pass.
    pub kept: Kept,
    /// When gathered weights are dropped.
    pub sharding: Sharding,
    /// How many logits there are at a time.
    pub logits: Logits,
    /// Tokens a second that one card was seen to train alone, in place of what its rates would give.
    pub measured: Option<f64>,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trained {
    /// All weights.
    All,
    /// Adapters with this many parameters.
    Adapters(u64),
    /// The same on weights in NF4.
    AdaptersOnNf4(u64),
}

/// What the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Everything that is needed.
    All,
    /// The attention's results and every second product, as torchtitan's selective checkpointing by operations.
    Selected,
    /// The inputs of blocks, which are run again.
    Inputs,
}

/// What is divided among the cards, and when gathered weights are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharding {
    /// Behind each block, forward and back.
    Blocks,
    /// Behind the backward pass alone (`reshard_after_forward: false`, SHARD_GRAD_OP).
    Steps,
    /// Nothing is divided: plain data parallel.
    None,
}

/// How many logits there are at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Those of a few thousand tokens, with one f32 each.
    Some,
    /// All, in bf16 and three times in f32: what cross-entropy takes that is not fused.
    All,
}

/// The cards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cluster {
    /// Each of them.
    pub card: Card,
    /// How many there are.
    pub cards: usize,
    /// How many of them are in a machine.
    pub in_a_machine: usize,
    /// Bytes a second, each way, from each card to other machines.
    pub network: f64,
}

impl Cluster {
    /// How many machines there are.
    #[must_use]
    pub fn machines(&self) -> usize {
        self.cards.div_ceil(self.in_a_machine.max(1)).max(1)
    }
}

impl Job {
    /// Tokens of a micro-batch, on each card.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.sequences * self.length
    }

    /// The elements of all weights.
    fn parameters(&self) -> f64 {
        self.model.weights().iter().map(|(_, shape)| shape.iter().product::<usize>() as f64).sum()
    }

    /// The elements of each block's layers.
    fn blocks(&self) -> impl Iterator<Item = f64> {
        (0..self.model.blocks.len())
            .map(|block| self.model.layers(block).iter().map(LayerSpec::elements).sum::<u64>() as f64)
    }

    /// The elements of a block's layers that compute with a token: of experts those that it goes to.
    fn active(&self, block: usize) -> f64 {
        use crate::models::MlpSpec::{Experts, Gated};
        let share = match self.model.blocks[block].mlp {
            Gated { .. } => 1.0,
            Experts { count, chosen, .. } => chosen as f64 / count.max(1) as f64,
        };
        let of = |layer: &LayerSpec| layer.elements() as f64 * if layer.site.expert.is_some() { share } else { 1.0 };
        self.model.layers(block).iter().map(of).sum()
    }

    /// The elements of the embedding table, and of the output layer where it is another one.
    fn tables(&self) -> f64 {
        let table = self.model.output().elements() as f64;
        if self.model.tie_word_embeddings { table } else { 2.0 * table }
    }

    /// What a forward pass makes of a token in a block and a backward pass needs, in elements: the inputs of norms and of products,
    /// queries, keys, values and the attention's results, and both sides of the gate with what becomes of them.
    fn activations(&self, block: usize) -> f64 {
        let (hidden, inner) = (self.model.hidden_size as f64, self.inner(block));
        let (queries, keys) = self.model.blocks[block].attention.widths();
        4.0 * hidden + 2.0 * (queries + keys) as f64 + 4.0 * inner
    }

    /// What is kept of them.
    fn kept(&self, block: usize) -> f64 {
        let hidden = self.model.hidden_size as f64;
        let (queries, keys) = self.model.blocks[block].attention.widths();
        match self.kept {
            Kept::All => self.activations(block),
            // The input, the attention's results; of the products those of queries, values, gate and what goes out.
            Kept::Selected => 2.0 * hidden + (2 * queries + keys) as f64 + self.inner(block),
            Kept::Inputs => hidden,
        }
    }

    /// The width of a block's network as a token sees it.
    fn inner(&self, block: usize) -> f64 {
        use crate::models::MlpSpec::{Experts, Gated};
        match self.model.blocks[block].mlp {
            Gated { inner, .. } => inner as f64,
            Experts { inner, chosen, .. } => (inner * chosen) as f64,
        }
    }

    /// Parameters that are trained.
    fn trained(&self) -> f64 {
        match self.trained {
            Trained::All => self.parameters(),
            Trained::Adapters(parameters) | Trained::AdaptersOnNf4(parameters) => parameters as f64,
        }
    }
}

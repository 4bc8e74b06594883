//! The time of a step.
//!
//! Products run at a share of the card's rate that grows with the model's width, attention at that of FlashAttention 2, everything else
//! as fast as memory gives it. The shares are fitted to the eight-card runs of llm-foundry and hold within 15 % for the other runs of
//! `tests/planner.rs`.

use super::{Cluster, Job, Kept, Sharding, Trained};

/// The share of a card's products a second that wide products reach in a training step.
const PRODUCTS: f64 = 0.655;
/// The width at which they reach half of it.
const HALF_WIDTH: f64 = 690.0;
/// The same for attention, forward and back: 294 of 989 TFLOP/s (FlashAttention 2 on an H100, head size 64 to 128, causal).
const ATTENTION: f64 = 0.3;
/// Of the bandwidth of memory and of links.
const MEMORY: f64 = 0.8;
const LINKS: f64 = 0.8;
/// Seconds that a collective takes before its first byte, and for each machine that it goes through.
const BEGIN: f64 = 2e-5;
const HOP: f64 = 5e-6;
/// What waiting for the slowest costs for each machine besides the first, as a share of a step: as llm-foundry's runs on 128 to 512 cards
/// have it. Of more machines nothing is published that tells it from other losses.
const SLOWEST: f64 = 0.0015;
const MOST_MACHINES: f64 = 64.0;
/// Times that an activation is read or written, forward and back, by kernels that are not fused across operations; and forward alone.
const TRAFFIC: f64 = 6.0;
const AGAIN: f64 = 2.0;

/// Where the time of a step goes, and what moves, for each card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Time {
    /// Seconds of computing.
    pub compute: f64,
    /// Seconds of communication, most of them while something is computed.
    pub communication: f64,
    /// Seconds in which nothing is computed: communication that is not hidden, and waiting for the slowest card.
    pub waiting: f64,
    /// Bytes that come to a card from others, or go from it.
    pub moved: f64,
    /// How many of them go through the network, shared by the cards of a machine.
    pub through_network: f64,
    /// Tokens of a step on each card.
    pub tokens: f64,
}

impl Time {
    /// That of a step.
    #[must_use]
    pub fn of(job: &Job, cluster: &Cluster) -> Self {
        let micro_batches = job.micro_batches.max(1) as f64;
        let tokens = job.tokens() as f64 * micro_batches;
        let optimizer = 28.0 * job.trained()
            / if job.sharding == Sharding::None { 1.0 } else { cluster.cards as f64 }
            / (MEMORY * cluster.card.bandwidth);
        let each = job.measured.map_or_else(|| of_token(job, cluster), |rate| 1.0 / rate);
        let compute = tokens * each + optimizer;
        let mut time = Self { compute, communication: 0.0, waiting: 0.0, moved: 0.0, through_network: 0.0, tokens };
        if cluster.cards > 1 {
            time.communicate(job, cluster, micro_batches);
        }
        time
    }

    /// Adds what cards say to each other.
    fn communicate(&mut self, job: &Job, cluster: &Cluster, micro_batches: f64) {
        let (cards, machines) = (cluster.cards as f64, cluster.machines() as f64);
        let others = (cards - 1.0) / cards;
        let in_blocks: f64 = job.blocks().sum();
        let weights = (job.bytes_in_blocks() * in_blocks + 2.0 * (job.parameters() - in_blocks)) * others;
        let gradients = 4.0 * job.trained() * others;
        let (gathers, gathered, reduced) = match job.sharding {
            Sharding::Blocks => (2.0, 2.0 * weights, gradients),
            Sharding::Steps => (1.0, weights, gradients),
            // Once a step, there and back.
            Sharding::None => (0.0, 0.0, 2.0 * gradients / micro_batches),
        };
        let seconds = |bytes: f64| {
            let within = bytes / (LINKS * cluster.card.link);
            let between = bytes * (1.0 - 1.0 / machines) / (LINKS * cluster.network * cluster.in_a_machine as f64);
            within.max(between)
        };
        let blocks = job.model.blocks.len() as f64;
        let begin = (gathers + 1.0) * (blocks + 1.0) * (BEGIN + HOP * machines);
        let (gathering, reducing) = (seconds(gathered), seconds(reduced));
        let of_micro_batch = gathering + reducing + begin;
        self.communication = micro_batches * of_micro_batch;
        self.moved = micro_batches * (gathered + reduced);
        self.through_network = self.moved * (1.0 - 1.0 / machines) / cluster.in_a_machine as f64;
        // The first block is waited for, and so is the last gradient; a third of the computing is forward.
        let computing = self.compute / micro_batches;
        let forward = (gathering / gathers.max(1.0) - computing / 3.0).max(0.0);
        let backward = gathering * (gathers - 1.0).max(0.0) / gathers.max(1.0) + reducing + begin;
        let backward = (backward - computing * 2.0 / 3.0).max(0.0);
        let ends = (gathering / gathers.max(1.0) + reducing) / (blocks + 1.0);
        let slowest = SLOWEST * (machines - 1.0).min(MOST_MACHINES);
        self.waiting = micro_batches * (forward + backward + ends) + slowest * self.compute;
    }

    /// Seconds of a step.
    #[must_use]
    pub fn step(&self) -> f64 {
        self.compute + self.waiting
    }

    /// Tokens a second on each card.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.tokens / self.step()
    }
}

/// Seconds that a card computes for a token.
fn of_token(job: &Job, cluster: &Cluster) -> f64 {
    let (card, hidden) = (&cluster.card, job.model.hidden_size as f64);
    // Forward, and back to inputs and to weights; frozen weights have no gradient.
    let passes = if job.trained == Trained::All { 6.0 } else { 4.0 };
    let again = match job.kept {
        Kept::All => 0.0,
        Kept::Selected => 1.0,
        Kept::Inputs => 2.0,
    };
    let blocks = 0..job.model.blocks.len();
    let in_blocks: f64 = blocks.clone().map(|block| job.active(block)).sum();
    let adapters = if job.trained == Trained::All { 0.0 } else { 6.0 * job.trained() };
    let products = (passes + again) * in_blocks + passes * job.model.output().elements() as f64 + adapters;
    let products = products / (PRODUCTS * hidden / (hidden + HALF_WIDTH) * card.flops);
    // A query sees half of the others on average; the way back is five products where the way there is two.
    let attention = blocks.clone().map(|block| {
        let (queries, _) = job.model.blocks[block].attention.widths();
        let there = 4.0 * queries as f64 * job.length as f64 / 2.0;
        there * if job.kept == Kept::Inputs { 4.5 } else { 3.5 }
    });
    let attention = attention.sum::<f64>() / (ATTENTION * card.flops);
    let times = TRAFFIC + if job.kept == Kept::All { 0.0 } else { AGAIN };
    let bytes: f64 = blocks.map(|block| 2.0 * times * job.activations(block)).sum();
    let logits = 28.0 * job.model.vocab_size as f64;
    products + attention + (bytes + logits) / (MEMORY * card.bandwidth)
}

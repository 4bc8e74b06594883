//! Forecasts of runs on cards, against what others have published of theirs.
//!
//! Read on 2026-11-26 in the repositories named: torchtitan b5bcd76 (`benchmarks/llama3_h100_202412_torchtitan.md`), llm-foundry 8c8dd48
//! (`scripts/train/benchmarking/README.md`), LLM.Q b77d969 (`README.md`, `benchmarks/`), NeMo Automodel 36044ad
//! (`docs/performance-summary.mdx`), fms-fsdp 5a296af (`README.md`). None was run here.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use serde_json::json;
use tune_core::models::{Architecture, ModelSpec};
use tune_core::planner::{Card, Cluster, Forecast, Job, Kept, Logits, Memory, Sharding, Time, Trained};

fn cluster(card: Card, cards: usize, gbits: f64) -> Cluster {
    Cluster { card, cards, in_a_machine: 8.min(cards), network: gbits / 8.0 * 1e9 }
}

fn h100(cards: usize) -> Cluster {
    cluster(Card::named("h100-80g").unwrap(), cards, 400.0)
}

fn job(model: ModelSpec, sequences: usize, length: usize) -> Job {
    Job {
        model,
        trained: Trained::All,
        weight_bytes: 4.0,
        sequences,
        length,
        micro_batches: 1,
        kept: Kept::All,
        sharding: Sharding::Blocks,
        logits: Logits::All,
        measured: None,
    }
}

fn named(name: &str) -> ModelSpec {
    Architecture::named(name).unwrap().spec().unwrap()
}

/// A model of MosaicML's: its feed-forward part has two matrices of four times the width, here three with as many elements.
fn mpt(hidden: usize, layers: usize, heads: usize) -> ModelSpec {
    let config = json!({
        "model_type": "llama", "vocab_size": 50368, "max_position_embeddings": 2048, "hidden_size": hidden,
        "intermediate_size": hidden * 8 / 3, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "tie_word_embeddings": true,
    });
    ModelSpec::from_json(&config).unwrap()
}

/// torchtitan's Llama 3.1 8B: FSDP2, local batch 2, 8192 tokens, selective checkpointing by operations, f32 parameters, on H100 of 96 GB
/// and 500 W.
fn torchtitan() -> Job {
    Job { kept: Kept::Selected, ..job(named("llama3_1_8b"), 2, 8192) }
}

fn of_torchtitan(cards: usize) -> Cluster {
    cluster(Card::named("h100-96g").unwrap().held_to(500.0), cards, 400.0)
}

/// Numbers as they were published and as they are forecast, line by line.
struct Table {
    lines: String,
    worst: f64,
}

impl Table {
    fn new() -> Self {
        Self { lines: String::new(), worst: 0.0 }
    }

    fn add(&mut self, what: &str, published: f64, forecast: f64) {
        let off = forecast / published - 1.0;
        self.worst = self.worst.max(off.abs());
        self.lines.push_str(&format!("{what:<44}{published:>12.1}{forecast:>12.1}{:>+8.1} %\n", 100.0 * off));
    }

    fn check(&self, within: f64) {
        println!("{:<44}{:>12}{:>12}\n{}", "", "published", "forecast", self.lines);
        assert!(self.worst <= within, "\n{}", self.lines);
    }
}

/// GiB of a card, eager and compiled: one forecast for both.
#[test]
fn memory_is_that_of_torchtitans_runs() {
    let of = |cards: usize| Memory::of(&torchtitan(), &of_torchtitan(cards)).gib();
    let mut table = Table::new();
    for (what, cards, gib) in [
        ("8 cards, eager", 8, 82.4),
        ("8 cards, compiled", 8, 77.0),
        ("128 cards, eager", 128, 67.0),
        ("128 cards, compiled", 128, 62.0),
    ] {
        table.add(what, gib, of(cards));
    }
    table.check(0.07);
    // 16 bytes of 8.03e9 parameters are 14.96 GiB on 8 cards and 0.93 on 128.
    let of_state = |cards: usize| {
        let memory = Memory::of(&torchtitan(), &of_torchtitan(cards));
        (memory.weights + memory.gradients + memory.optimizer) / f64::from(1 << 30)
    };
    assert!((of_state(8) - of_state(128) - 14.0).abs() < 0.05, "{} {}", of_state(8), of_state(128));
    assert!((of(8) - of(128) - 14.0).abs() < 0.05);
}

/// Tokens a second and card. llm-foundry's runs on eight cards are what the planner's rates were fitted to, and its runs on more what
/// waiting for the slowest was; the other programs' were not.
#[test]
fn rates_are_those_of_published_runs() {
    let mut table = Table::new();
    let rate = |job: &Job, cluster: &Cluster| Time::of(job, cluster).rate();
    let of_7b = job(mpt(4096, 32, 32), 6, 2048);
    for (cards, published) in [(8, 10_643.0), (128, 10_475.0), (256, 10_119.0), (512, 9_670.0)] {
        table.add(&format!("llm-foundry 6.7B, FULL_SHARD, {cards}"), published, rate(&of_7b, &h100(cards)));
    }
    let of_1b = Job { sharding: Sharding::Steps, ..job(mpt(2048, 24, 16), 14, 2048) };
    for (cards, published) in [(8, 45_455.0), (128, 44_123.0), (256, 42_555.0), (512, 39_837.0)] {
        table.add(&format!("llm-foundry 1.3B, SHARD_GRAD_OP, {cards}"), published, rate(&of_1b, &h100(cards)));
    }
    let of_70b = Job { kept: Kept::Inputs, ..job(mpt(8192, 80, 64), 8, 2048) };
    for (cards, published) in [(128, 1_058.0), (256, 1_035.0), (512, 1_007.0)] {
        table.add(&format!("llm-foundry 70B, FULL_SHARD, {cards}"), published, rate(&of_70b, &h100(cards)));
    }
    // Between the eager and the compiled run.
    for (cards, eager, compiled) in [(8, 5_762.0, 6_667.0), (128, 5_605.0, 6_514.0)] {
        let published: f64 = (eager + compiled) / 2.0;
        table.add(&format!("torchtitan 8B, {cards}"), published, rate(&torchtitan(), &of_torchtitan(cards)));
    }
    let of_7b = Job { logits: Logits::All, ..job(named("llama2_7b"), 2, 4096) };
    let fms = cluster(Card::named("h100-80g").unwrap(), 96, 800.0);
    table.add("fms-fsdp 7B, HSDP, 96", 9_600.0, rate(&of_7b, &fms));
    let adapters =
        Job { trained: Trained::Adapters(41_900_000), weight_bytes: 2.0, ..job(named("llama3_1_8b"), 2, 4096) };
    table.add("NeMo 8B, LoRA, 1", 12_473.0, rate(&adapters, &h100(1)));
    table.check(0.15);
}

/// LLM.Q's rate of one card is its own; what eight of them reach together follows.
#[test]
fn eight_cards_reach_what_llm_q_published() {
    let mut table = Table::new();
    for (name, sequences, alone, together) in [
        ("qwen2_5_0_5b", 32, 149_000.0, 1_186_000.0),
        ("qwen2_5_1_5b_base", 16, 59_000.0, 457_000.0),
        ("qwen2_5_3b", 8, 31_000.0, 240_000.0),
        ("qwen2_5_7b_base", 4, 14_000.0, 112_000.0),
    ] {
        let micro_batches = 524_288 / (8 * 1024 * sequences);
        let sharding = Sharding::Steps;
        let base = job(named(name), sequences, 1024);
        let job = Job { measured: Some(alone), weight_bytes: 2.0, micro_batches, sharding, ..base };
        table.add(&format!("LLM.Q {name}, all of 8"), together, 8.0 * Time::of(&job, &h100(8)).rate());
    }
    table.check(0.15);
}

#[test]
fn a_forecast_says_what_fits_and_whether_fewer_would_do() {
    let of = |name: &str, cards: usize, trained: Trained| {
        let base = job(named(name), 1, 4096);
        let job = Job { trained, weight_bytes: 2.0, logits: Logits::Some, kept: Kept::Inputs, ..base };
        Forecast::new(job, h100(cards), Some(2.5), Some(1e9))
    };
    // 405 billion parameters of 14 bytes are 5.2 TiB; a block of 3.2 billion is gathered at a time, and so is its gradient.
    let large = of("llama3_1_405b", 64, Trained::All);
    let said = large.to_string();
    assert!(!large.is_possible() && large.least() == Some(1024), "{said}");
    for part in [
        "405.85 billion parameters",
        "it does not fit",
        "1024 have the memory for it",
        "a million tokens",
        "1,000 million",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(of("llama3_1_405b", 1024, Trained::All).is_possible());
    // Where one card has the room, more of them are faster and no cheaper.
    let small = of("qwen2_5_0_5b", 8, Trained::All);
    let said = small.to_string();
    assert!(small.least() == Some(1) && said.contains("1 card would"), "{said}");
    // Adapters on a quantized base need an eighth.
    let (on_bf16, on_nf4) = (Trained::Adapters(200_000_000), Trained::AdaptersOnNf4(200_000_000));
    let least = |trained| of("llama3_1_70b", 64, trained).least();
    assert!(least(on_bf16) > least(on_nf4) && least(on_nf4) == Some(1), "{:?} {:?}", least(on_bf16), least(on_nf4));
}

/// Eight cards that speak over PCI Express about a model that fits one, with little to compute between: no faster than one.
#[test]
fn cards_that_only_wait_for_each_other_are_told() {
    let base = job(named("llama3_2_1b"), 1, 128);
    let job = Job { weight_bytes: 2.0, logits: Logits::Some, ..base };
    let slow = cluster(Card::named("rtx4090-24g").unwrap(), 8, 25.0);
    let forecast = Forecast::new(job, Cluster { in_a_machine: 1, ..slow }, None, None);
    let said = forecast.to_string();
    assert!(said.contains("1 card would do: they train") && said.contains("and 8 together no more"), "{said}");
}

#[test]
fn a_card_held_to_less_power_computes_less() {
    let card = Card::named("H100-80G").unwrap();
    let less = card.held_to(350.0);
    assert!((less.flops / card.flops - 0.5f64.cbrt()).abs() < 1e-12 && less.power == 350.0);
    assert_eq!(card.held_to(900.0), card, "no card has more than its full power");
    assert!(Card::named("h1000").is_none());
}

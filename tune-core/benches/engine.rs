//! A training step of the engine on four blocks of SmolLM2-135M's sizes: 2 rows of 512 tokens, every one trained.
//!
//!     cargo bench -p tune-core --bench engine
//!
//! `item/s` is tokens a second. The output layer's vocabulary is small, so that the blocks are what is measured.
//! Threads: `RAYON_NUM_THREADS`.

#[path = "support/candle.rs"]
mod candle;

use candle::Plain;
use candle_core::DType;
use divan::Bencher;
use divan::counter::ItemsCount;
use serde_json::json;
use tune_core::Result;
use tune_core::data::{Batch, Span};
use tune_core::device::Compute;
use tune_core::engine::{Gradient, GradientSink, RunOptions, forward_backward};
use tune_core::models::{Decoder, LoadOptions, ModelSpec, Parameter, RandomWeights};
use tune_core::peft::{LoraModule, LoraOptions};

const ROWS: usize = 2;
const SEQ: usize = 512;
const TOKENS: usize = ROWS * SEQ;
const VOCAB: usize = 1024;
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn main() {
    divan::main();
}

/// Drops gradients as they come.
struct Nowhere;

impl GradientSink for Nowhere {
    fn take(&mut self, _: &Parameter, _: Gradient) -> Result<()> {
        Ok(())
    }
}

fn model(dtype: DType, lora: bool) -> Result<Decoder> {
    use LoraModule::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
    let config = json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": SEQ, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    let adapters = LoraOptions {
        modules: vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj],
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        seed: 1,
        ..Default::default()
    };
    let options =
        LoadOptions { dtype, device: Compute::Processor, train_weights: !lora, lora: lora.then_some(adapters) };
    Decoder::load(ModelSpec::from_json(&config)?, &RandomWeights { seed: 1, std: 0.02 }, &options)
}

fn batch() -> Batch {
    let ids = |shift: usize| (0..TOKENS).map(|i| ((i + shift) * 31 % VOCAB) as u32).collect();
    Batch {
        rows: ROWS,
        len: SEQ,
        input_ids: ids(0),
        targets: ids(1),
        positions: (0..TOKENS).map(|i| (i % SEQ) as u32).collect(),
        spans: (0..ROWS).map(|row| Span { row, start: 0, len: SEQ }).collect(),
        origins: vec![String::new(); ROWS],
        labels: Vec::new(),
    }
}

fn step(bencher: Bencher, dtype: DType, lora: bool, activation_checkpointing: bool) {
    let (model, batch) = (model(dtype, lora).expect("the sizes are a model's"), batch());
    let options = RunOptions { scale: 1.0 / TOKENS as f64, activation_checkpointing, ..RunOptions::PLAIN };
    bencher
        .counter(ItemsCount::new(TOKENS))
        .bench_local(|| forward_backward(&model, &batch, options, &mut Nowhere).expect("the batch fits the model"));
}

#[divan::bench(args = DTYPES)]
fn lora(bencher: Bencher, dtype: DType) {
    step(bencher, dtype, true, false);
}

#[divan::bench(args = DTYPES)]
fn lora_with_checkpointing(bencher: Bencher, dtype: DType) {
    step(bencher, dtype, true, true);
}

#[divan::bench(args = DTYPES)]
fn full(bencher: Bencher, dtype: DType) {
    step(bencher, dtype, false, false);
}

/// The same by candle's own operations and its graph ([`Plain`]): what the engine must not be slower than, whatever
/// the processor (`TUNE_ISA=portable`).
#[divan::bench(args = DTYPES)]
fn lora_by_candle(bencher: Bencher, dtype: DType) {
    step_by_candle(bencher, dtype, true);
}

#[divan::bench(args = DTYPES)]
fn full_by_candle(bencher: Bencher, dtype: DType) {
    step_by_candle(bencher, dtype, false);
}

fn step_by_candle(bencher: Bencher, dtype: DType, lora: bool) {
    let (model, batch) = (Plain::new(VOCAB, dtype, lora).expect("tensors fit the memory"), batch());
    bencher.counter(ItemsCount::new(TOKENS)).bench_local(|| {
        let loss = model.loss(&batch).expect("the batch fits the model");
        loss.backward().expect("every operation has a gradient")
    });
}

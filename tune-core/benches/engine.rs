//! A training step of the engine on four blocks of SmolLM2-135M's sizes: 2 rows of 512 tokens, every one trained.
//!
//!     cargo bench -p tune-core --bench engine
//!
//! `item/s` is tokens a second. The output layer's vocabulary is small, so that the blocks are what is measured.
//! Threads: `RAYON_NUM_THREADS`.

use candle_core::{DType, Device, Tensor, Var};
use divan::Bencher;
use divan::counter::ItemsCount;
use serde_json::json;
use tune_core::Result;
use tune_core::data::{Batch, Span};
use tune_core::engine::{Gradient, GradientSink, RunOptions, forward_backward};
use tune_core::models::{Decoder, DecoderConfig, LoadOptions, RandomWeights};
use tune_core::ops::{AttentionShape, LoraFactors, OutputHead, Rotary, reference};
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
    fn take(&mut self, _: &str, _: &Var, _: Gradient) -> Result<()> {
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
    };
    let options = LoadOptions { dtype, device: Device::Cpu, train_weights: !lora, lora: lora.then_some(adapters) };
    Decoder::load(DecoderConfig::from_json(&config)?, &RandomWeights { seed: 1, std: 0.02 }, &options)
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
    }
}

fn step(bencher: Bencher, dtype: DType, lora: bool, activation_checkpointing: bool) {
    let (model, batch) = (model(dtype, lora).expect("the sizes are a model's"), batch());
    let options = RunOptions { scale: 1.0 / TOKENS as f64, activation_checkpointing, dropout: None };
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

/// The same by candle's own operations and its graph ([`reference`]): what the engine must not be slower than, whatever
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
    let (model, batch) = (Plain::new(dtype, lora).expect("tensors fit the memory"), batch());
    bencher.counter(ItemsCount::new(TOKENS)).bench_local(|| {
        let loss = model.loss(&batch).expect("the batch fits the model");
        loss.backward().expect("every operation has a gradient")
    });
}

/// The model of [`model`], put together from plain tensors.
struct Plain {
    embedding: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
}

struct Layer {
    norms: [Tensor; 2],
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    gate: Projection,
    up: Projection,
    down: Projection,
}

struct Projection {
    weight: Tensor,
    lora: Option<LoraFactors>,
}

impl Projection {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.lora {
            Some(lora) => reference::lora_linear(x, &self.weight, lora),
            None => reference::linear(x, &self.weight),
        }
    }
}

impl Plain {
    fn new(dtype: DType, lora: bool) -> candle_core::Result<Self> {
        let variable = |dims: &[usize], dtype: DType| -> candle_core::Result<Tensor> {
            let values = Tensor::randn(0f32, 0.02, dims, &Device::Cpu)?.to_dtype(dtype)?;
            Ok(Var::from_tensor(&values)?.into_inner())
        };
        let weight = |dims: &[usize]| {
            let weight = variable(dims, dtype)?;
            candle_core::Result::Ok(if lora { weight.detach() } else { weight })
        };
        let projection = |out: usize, inner: usize| {
            let (a, b) = (variable(&[8, inner], DType::F32)?, variable(&[out, 8], DType::F32)?);
            let factors = LoraFactors { a, b, scale: 2.0, dropout: None };
            candle_core::Result::Ok(Projection { weight: weight(&[out, inner])?, lora: lora.then_some(factors) })
        };
        let layer = || {
            candle_core::Result::Ok(Layer {
                norms: [weight(&[576])?, weight(&[576])?],
                q: projection(576, 576)?,
                k: projection(192, 576)?,
                v: projection(192, 576)?,
                o: projection(576, 576)?,
                gate: projection(1536, 576)?,
                up: projection(1536, 576)?,
                down: projection(576, 1536)?,
            })
        };
        let layers = (0..4).map(|_| layer()).collect::<candle_core::Result<_>>()?;
        Ok(Self { embedding: weight(&[VOCAB, 576])?, norm: weight(&[576])?, layers })
    }

    fn loss(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let shape = AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, window: None };
        let frequencies: Vec<f32> = (0..32).map(|i| 10000f32.powf(-i as f32 / 32.0)).collect();
        let rotary = Rotary::new(&batch.positions, &frequencies);
        let mut x = reference::embedding(&batch.input_ids, batch.rows, &self.embedding)?;
        for layer in &self.layers {
            let normed = reference::rms_norm(&x, &layer.norms[0], 1e-5)?;
            let q = reference::rope(&layer.q.forward(&normed)?, &rotary)?;
            let k = reference::rope(&layer.k.forward(&normed)?, &rotary)?;
            let attended = reference::attention(&q, &k, &layer.v.forward(&normed)?, shape, &batch.spans)?;
            x = (x + layer.o.forward(&attended)?)?;
            let normed = reference::rms_norm(&x, &layer.norms[1], 1e-5)?;
            let activated = reference::swiglu(&layer.gate.forward(&normed)?, &layer.up.forward(&normed)?)?;
            x = (x + layer.down.forward(&activated)?)?;
        }
        let head = OutputHead { weight: self.embedding.clone(), lora: None };
        reference::cross_entropy(&reference::rms_norm(&x, &self.norm, 1e-5)?, &head, &batch.targets)
    }
}

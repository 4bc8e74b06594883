//! How fast large models are trained, and what they take of the card's memory; weights are made up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use serde_json::{Value, json};
use tune_core::config::say;
use tune_core::data::{Batch, Span};
use tune_core::device::Compute;
use tune_core::engine::{Card, RunOptions, Sequences, evaluate, forward_backward};
use tune_core::memory_plan::{Asked, MemoryPlan, PlannedCard, Processes, Setting};
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::optim::{AdamW, AdamWConfig, Gradients, InBackward, OptimizerConfig};
use tune_core::peft::{LoraModule, LoraOptions};

use super::card;

/// Qwen3 of some sizes: width, width between, layers, heads.
fn qwen3(wide: usize, inner: usize, layers: usize, heads: usize) -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": wide, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
}

fn llama3_8b() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "hidden_act": "silu",
        "tie_word_embeddings": false,
    })
}

/// Qwen2.5-1.5B.
fn qwen2_5_1_5b() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    })
}

/// A model with made-up weights in bf16, by its parameters' names and shapes.
fn model(config: &Value, lora: Option<LoraOptions>, card: &Arc<Card>) -> Decoder {
    let spec = ModelSpec::from_json(config).unwrap();
    let some: Vec<bf16> = (0..1_000_003u64)
        .map(|i| bf16::from_f32((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 2f32.powi(28) - 0.03))
        .collect();
    let mut weights = BTreeMap::new();
    let mut put = |name: String, shape: &[usize]| {
        let mut left: usize = shape.iter().product();
        let mut numbers = Vec::with_capacity(left);
        while left > 0 {
            // As a copy of memory: there are billions of them.
            numbers.extend_from_slice(&some[..left.min(some.len())]);
            left -= left.min(some.len());
        }
        weights.insert(name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap());
    };
    put("model.embed_tokens.weight".into(), &[spec.vocab_size, spec.hidden_size]);
    put("model.norm.weight".into(), &[spec.hidden_size]);
    if !spec.tie_word_embeddings {
        put("lm_head.weight".into(), &[spec.vocab_size, spec.hidden_size]);
    }
    for (block, of_block) in spec.blocks.iter().enumerate() {
        let prefix = format!("model.layers.{block}");
        for layer in spec.layers(block) {
            put(format!("{prefix}.{}.weight", layer.site.path()), &[layer.out, layer.inner]);
            if layer.bias {
                put(format!("{prefix}.{}.bias", layer.site.path()), &[layer.out]);
            }
        }
        for (norm, width) in spec.norms(block) {
            put(format!("{prefix}.{}.weight", norm.path(of_block.norms)), &[width]);
        }
    }
    let device = Compute::Card(Arc::clone(card));
    let options = LoadOptions { dtype: DType::BF16, device, train_weights: lora.is_none(), lora };
    Decoder::load(spec, &weights, &options).unwrap()
}

fn batch(rows: usize, len: usize) -> Batch {
    let ids: Vec<u32> = (0..rows * len).map(|i| ((i * 7919) % 128_256) as u32).collect();
    Batch {
        rows,
        len,
        targets: ids[1..].iter().copied().chain([7]).collect(),
        input_ids: ids,
        positions: (0..rows).flat_map(|_| 0..len as u32).collect(),
        spans: (0..rows).map(|row| Span { row, start: 0, len }).collect(),
        origins: vec!["made up".into(); rows],
    }
}

/// The last of `times` runs, in seconds.
fn last(times: usize, mut run: impl FnMut()) -> f64 {
    (0..times).fold(0.0, |_, _| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// What the plan says of such a run, part by part.
fn planned(config: &Value, lora: Option<LoraOptions>, card: &Arc<Card>, batch: &Batch, checkpointing: bool) -> String {
    let setting = Setting {
        model: ModelSpec::from_json(config).unwrap(),
        dtype: DType::BF16,
        lora,
        optimizer: OptimizerConfig::AdamW(AdamWConfig {
            lr: 1e-5,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            groups: Default::default(),
        }),
        optimizer_state_held: 0,
        optimizer_in_backward: None,
        activation_checkpointing: checkpointing,
        gradient_accumulation_steps: 2,
        clips_gradients: false,
        packed: true,
        by_log_probs: false,
        asked: Asked::default(),
        drawing: None,
        reference: None,
        in_blocks: Default::default(),
        processes: Processes::ONE,
        batch_size: batch.rows,
        card: Some(PlannedCard::new(Some(card)).unwrap()),
        steps: vec![vec![batch.clone(), batch.clone()]],
        validation_steps: Vec::new(),
    };
    let plan = MemoryPlan::new(&setting).unwrap();
    let parts = plan.parts().into_iter().filter(|(_, bytes)| *bytes > 0);
    let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {:.2}", gib(bytes))).collect();
    format!("{:.2} GiB planned: {}", gib(plan.peak()), parts.join(", "))
}

/// A case: a model, adapters or all of it, rows and tokens of a batch, and how many batches a step has.
struct Case {
    what: &'static str,
    config: Value,
    adapters: bool,
    batch: (usize, usize),
    accumulated: usize,
    /// Lines of the profile of a step.
    lines: usize,
}

/// Trains for some steps, and says what each part of one takes. Returns the model.
fn measure(case: &Case, card: &Arc<Card>) -> Decoder {
    use LoraModule::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
    let modules = vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj];
    let lora = LoraOptions { modules, rank: 16, alpha: 32.0, dropout: 0.0, seed: 5, ..Default::default() };
    let lora = case.adapters.then_some(lora);
    let (accumulated, batch) = (case.accumulated, batch(case.batch.0, case.batch.1));
    let plan = planned(&case.config, lora.clone(), card, &batch, false);
    let model = &model(&case.config, lora, card);
    let tokens = (batch.rows * batch.len) as f64;
    let scale = 1.0 / (batch.trained_tokens() * accumulated) as f64;
    let options = RunOptions { scale, activation_checkpointing: false, dropout: None, noise: None };
    let forward = last(3, || assert!(evaluate(model, &batch).unwrap().is_finite()));
    let both = last(4, || {
        let mut gradients = Gradients::default();
        forward_backward(model, &batch, options, &mut gradients).unwrap();
        // Waits for all of it.
        assert!(gradients.norm().unwrap().is_finite());
    });
    let (mut optimizer, mut number) = (AdamW::new(1e-5, [0.9, 0.999], 1e-8, 0.01), 0);
    let mut step = || {
        let mut gradients = Gradients::default();
        let losses = (0..accumulated).map(|_| forward_backward(model, &batch, options, &mut gradients).unwrap());
        let loss: f64 = losses.sum();
        number += 1;
        assert!((loss * scale).is_finite() && gradients.norm().unwrap().is_finite());
        gradients.apply(model, &mut optimizer, 1e-5, 1.0, number).unwrap();
    };
    let whole = last(4, &mut step);
    let usage = card.usage();
    let speed = |seconds: f64, tokens: f64| format!("{:.1} ms, {:.0} tokens/s", 1e3 * seconds, tokens / seconds);
    say!("{}, {} x {}: forward {:.1} ms", case.what, batch.rows, batch.len, 1e3 * forward);
    say!("  with backward {}", speed(both, tokens));
    say!("  a step of {accumulated} with AdamW {}", speed(whole, accumulated as f64 * tokens));
    say!("  {plan}");
    let (most, held, free) = (gib(usage.most), gib(usage.held), gib(card.available() - usage.held));
    say!("  {most:.2} GiB in use at most, {held:.2} held, {free:.2} free on the card");
    for line in card.profile(step).unwrap().lines().take(case.lines) {
        say!("    {line}");
    }
    model.clone()
}

#[test]
#[ignore = "a measurement"]
fn adapters_of_large_models() {
    let Some(card) = card() else { return };
    let case =
        |what, config, batch, accumulated, lines| Case { what, config, adapters: true, batch, accumulated, lines };
    measure(&case("Qwen3 0.6 B, LoRA r16", qwen3(1024, 3072, 28, 16), (2, 2048), 4, 6), &card);
    let model = measure(&case("Qwen3 1.7 B, LoRA r16", qwen3(2048, 6144, 28, 16), (2, 2048), 4, 16), &card);
    // Sequences that grow by a token each, all logits read.
    let (count, past) = (16, 128);
    let mut sequences = Sequences::new(&model, &vec![past + 40; count], tune_core::engine::Kernels::Fast).unwrap();
    let prompt: Vec<u32> = (0..past as u32).collect();
    let first: Vec<(usize, &[u32])> = (0..count).map(|i| (i, &prompt[..])).collect();
    sequences.extend(&first).unwrap();
    let next: Vec<(usize, &[u32])> = (0..count).map(|i| (i, &prompt[i..=i])).collect();
    let time = last(32, || assert_eq!(sequences.extend(&next).unwrap().len(), count));
    say!("  {count} sequences of {past} and more tokens grow by one each in {:.1} ms", 1e3 * time);
}

#[test]
#[ignore = "a measurement"]
fn adapters_of_an_8b_model() {
    let Some(card) = card() else { return };
    let (what, config) = ("Llama 3 8 B, LoRA r16", llama3_8b());
    measure(&Case { what, config, adapters: true, batch: (2, 4096), accumulated: 1, lines: 10 }, &card);
}

#[test]
#[ignore = "a measurement"]
fn all_of_a_large_model() {
    let Some(card) = card() else { return };
    let (what, config, batch) = ("Qwen2.5 1.5 B, all weights", qwen2_5_1_5b(), (8, 1024));
    let model = measure(&Case { what, config, adapters: false, batch, accumulated: 8, lines: 20 }, &card);
    let batch = self::batch(batch.0, batch.1);
    let (mut optimizer, mut number) = (AdamW::new(1e-5, [0.9, 0.999], 1e-8, 0.01), 0);
    let options = RunOptions {
        scale: 1.0 / batch.trained_tokens() as f64,
        activation_checkpointing: false,
        dropout: None,
        noise: None,
    };
    let time = last(3, || {
        number += 1;
        let mut sink = InBackward::new(&mut optimizer, 1e-5, number);
        forward_backward(&model, &batch, options, &mut sink).unwrap();
        assert!(sink.squared_norm().unwrap().is_finite());
    });
    let tokens = (batch.rows * batch.len) as f64;
    say!("  the optimizer in the backward pass: a step of 1 {:.1} ms, {:.0} tokens/s", 1e3 * time, tokens / time);
}

//! A card computes what the plain loops in f64 compute: losses and the gradient of every parameter, of every family, fully
//! trained and with adapters. Without a card there is nothing to compare; where one must be, `TUNE_TEST_CARD=1` says so.

#![allow(clippy::unwrap_used)]

#[path = "common/families.rs"]
mod families;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use families::Fixture;
use half::bf16;
use tune_core::config::{complain, say};
use tune_core::data::{Batch, Span};
use tune_core::device::Compute;
use tune_core::engine::{self, Card, Objective, RunOptions, Sequences, forward_backward};
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::optim::{AdamW, Gradients};
use tune_core::peft::{LoraModule, LoraOptions};

use LoraModule::{DownProj, GateProj, KProj, LmHead, OProj, QProj, UpProj, VProj};

const FAMILIES: [&str; 10] = [
    "llama_tied",
    "llama3_1_rope_scaled",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "phi3",
];

/// In which types a family is compared, and how far gradients may be off.
fn types(family: &str) -> &'static [(DType, f64)] {
    match family {
        // A router may choose other experts where numbers are rounded.
        "qwen3_moe" => &[(DType::F32, 2e-5)],
        // Its biases make the sums behind the gradients of queries and keys cancel: the processor's are off by 6e-2, too.
        "qwen2" => &[(DType::F32, 2e-5), (DType::BF16, 0.12)],
        _ => &[(DType::F32, 2e-5), (DType::BF16, 5e-2)],
    }
}

/// The card, if there is one.
fn card() -> Option<Arc<Card>> {
    static CARD: OnceLock<Option<Arc<Card>>> = OnceLock::new();
    let open = || match Card::open(0) {
        Ok(card) => Some(card),
        Err(error) => {
            assert!(std::env::var_os("TUNE_TEST_CARD").is_none(), "{error}");
            complain!("NOTHING WAS COMPARED, for there is no card: {error}");
            None
        }
    };
    CARD.get_or_init(open).clone()
}

/// Adapters on all layers; experts cannot carry any.
fn lora(family: &str) -> LoraOptions {
    let all = [QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj, LmHead];
    let modules = if family == "qwen3_moe" { all[..4].to_vec() } else { all.to_vec() };
    LoraOptions { modules, rank: 3, alpha: 6.0, dropout: 0.1, seed: 5, layers: Default::default() }
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Fresh adapters leave `A` without a gradient: `B` is moved away from zero, to numbers that bf16 has.
fn shake(model: &Decoder) {
    for parameter in model.trainable().iter().filter(|parameter| parameter.name().ends_with("lora_B.weight")) {
        let var = parameter.var();
        let values: Vec<f32> = (0..var.elem_count()).map(|i| ((i * 7919) % 17) as f32 / 128.0 - 0.0625).collect();
        let values = Tensor::from_vec(values, var.shape(), var.device()).unwrap();
        var.set(&values.to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

/// The weights as bf16 has them, so that every type computes with the same numbers.
fn fixture(family: &str) -> Fixture {
    let mut fixture = Fixture::read(family);
    for tensor in fixture.weights.values_mut() {
        *tensor = tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    }
    fixture
}

fn run(model: &Decoder, batch: &Batch, checkpointing: bool) -> (f64, Gradients) {
    let mut gradients = Gradients::default();
    let scale = 1.0 / batch.trained_tokens() as f64;
    let options = RunOptions { scale, activation_checkpointing: checkpointing, dropout: Some(11) };
    let loss = forward_backward(model, batch, options, &mut gradients).unwrap() * scale;
    (loss, gradients)
}

/// The norm of the difference over the norm of what is right.
fn error(found: &[f64], right: &[f64]) -> f64 {
    assert_eq!(found.len(), right.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(right).map(|(f, r)| f - r)) / norm(&mut right.iter().copied()).max(1e-12)
}

/// All that is wrong, told at the end: time on a card is scarce.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn unless(&mut self, well: bool, what: impl FnOnce() -> String) {
        if !well {
            self.0.push(what());
        }
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let some = &self.0[..self.0.len().min(30)];
            assert!(self.0.is_empty(), "{} failures:\n{}", self.0.len(), some.join("\n"));
        }
    }
}

fn compare(lora: impl Fn(&str) -> Option<LoraOptions>) {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    for family in FAMILIES {
        let fixture = fixture(family);
        let (batch, model) = (fixture.batch(), |dtype| {
            let model = fixture.model(dtype, lora(family));
            shake(&model);
            model
        });
        let (right, right_gradients) = run(&model(DType::F64), &batch, false);
        for &(dtype, tolerance) in types(family) {
            let mut on_card = model(dtype);
            on_card.compute_on(&Compute::Card(Arc::clone(&card)));
            let (loss, gradients) = run(&on_card, &batch, false);
            let what = format!("{family} {dtype:?}");
            failures.unless((loss - right).abs() <= tolerance * right, || format!("{what}: loss {loss}, not {right}"));
            let mut worst = (0.0, "");
            for (name, gradient) in gradients.iter() {
                let right = right_gradients.get(name).unwrap().to_tensor().unwrap();
                let error = error(&values(&gradient.to_tensor().unwrap()), &values(&right));
                failures.unless(error <= tolerance, || format!("{what}: the gradient of {name} is off by {error:.1e}"));
                if error > worst.0 {
                    worst = (error, name);
                }
            }
            assert_eq!(gradients.iter().count(), right_gradients.iter().count(), "{what}");
            say!(
                "{family} {dtype:?}: loss {loss:.6} ({right:.6}), gradients off by {:.1e} at most ({})",
                worst.0,
                worst.1
            );
            // The same bits again, with activation checkpointing, too.
            for checkpointing in [false, true] {
                let (again, others) = run(&on_card, &batch, checkpointing);
                failures.unless(again.to_bits() == loss.to_bits(), || format!("{what}: another loss, {checkpointing}"));
                for (name, gradient) in gradients.iter() {
                    let [a, b] = [gradient, others.get(name).unwrap()].map(|g| values(&g.to_tensor().unwrap()));
                    failures.unless(a == b, || format!("{what}: other bits of {name}, checkpointing {checkpointing}"));
                }
            }
        }
    }
}

#[test]
fn full_training() {
    compare(|_| None);
}

#[test]
fn adapters_with_dropout() {
    compare(|family| Some(lora(family)));
}

#[test]
fn objectives_and_log_probabilities() {
    let Some(card) = card() else { return };
    let fixture = fixture("llama_tied");
    let batch = fixture.batch();
    let (plain, mut on_card) = (fixture.model(DType::F64, None), fixture.model(DType::F32, None));
    on_card.compute_on(&Compute::Card(card));
    let close = |what: &str, a: &[f64], b: &[f64]| assert!(error(a, b) < 2e-5, "{what}: {:e}", error(a, b));
    close("loss", &[engine::evaluate(&on_card, &batch).unwrap()], &[engine::evaluate(&plain, &batch).unwrap()]);
    close(
        "log-probabilities",
        &engine::log_probs(&on_card, &batch).unwrap(),
        &engine::log_probs(&plain, &batch).unwrap(),
    );
    let logits = |model| values(&engine::logits(model, &batch).unwrap());
    close("logits", &logits(&on_card), &logits(&plain));
    let minimized = |model: &Decoder| {
        let options = RunOptions { scale: 0.5, activation_checkpointing: false, dropout: None };
        let mut gradients = Gradients::default();
        let value = engine::minimize(model, &batch, options, &mut gradients, |l| {
            let weight = |i: usize| (i % 3) as f64 - 1.0;
            let value = l.iter().enumerate().map(|(i, l)| weight(i) * l).sum();
            Ok(Objective { value, gradient: (0..l.len()).map(weight).collect() })
        });
        let mut all = vec![value.unwrap()];
        gradients.iter().for_each(|(_, g)| all.extend(values(&g.to_tensor().unwrap())));
        all
    };
    close("an objective", &minimized(&on_card), &minimized(&plain));
}

/// Sequences that grow: some by many tokens, some by one, which other kernels compute.
#[test]
fn sequences_that_grow() {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    for family in FAMILIES {
        let fixture = fixture(family);
        let plain = fixture.model(DType::F64, None);
        for &(dtype, tolerance) in types(family) {
            let mut on_card = fixture.model(dtype, None);
            on_card.compute_on(&Compute::Card(Arc::clone(&card)));
            let [mut here, mut there] = [&plain, &on_card].map(|model| Sequences::new(model, &[20, 20]).unwrap());
            let steps: [&[(usize, &[u32])]; 4] =
                [&[(0, &[1, 5, 9, 3]), (1, &[7])], &[(0, &[2]), (1, &[4])], &[(1, &[8, 3, 6, 2, 5])], &[(0, &[9])]];
            for new in steps {
                let [a, b] = [&mut there, &mut here].map(|s| s.extend(new).unwrap().concat());
                let [a, b] = [a, b].map(|logits| logits.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                let error = error(&a, &b);
                failures.unless(error < tolerance, || format!("{family} {dtype:?} {new:?}: off by {error:.1e}"));
            }
        }
    }
}

/// Twenty steps on the processor and on the card, side by side.
#[test]
fn the_same_training() {
    let Some(card) = card() else { return };
    let fixture = fixture("llama_tied");
    let batch = fixture.batch();
    for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 2e-2)] {
        let losses = [None, Some(&card)].map(|card| {
            let mut model = fixture.model(dtype, Some(lora("llama_tied")));
            if let Some(card) = card {
                model.compute_on(&Compute::Card(Arc::clone(card)));
            }
            let mut optimizer = AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.01);
            let step = |step| {
                let (loss, mut gradients) = run(&model, &batch, false);
                gradients.apply(&model, &mut optimizer, 1e-2, 1.0, step).unwrap();
                loss
            };
            (1..=20).map(step).collect::<Vec<f64>>()
        });
        let [here, there] = &losses;
        say!("{dtype:?}: processor {:.5} .. {:.5}, card {:.5} .. {:.5}", here[0], here[19], there[0], there[19]);
        assert!(here[19] < 0.9 * here[0], "nothing was learnt: {here:?}");
        assert!(error(there, here) < tolerance, "{dtype:?}: {there:?} instead of {here:?}");
    }
}

/// How fast a model of 1.7 billion weights with adapters on all layers is trained; weights are made up.
#[test]
#[ignore = "a measurement"]
fn speed_of_a_large_model() {
    let Some(card) = card() else { return };
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    let config = ModelSpec::from_json(&config).unwrap();
    let some: Vec<bf16> = (0..1_000_003u64)
        .map(|i| bf16::from_f32((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 2f32.powi(28) - 0.03))
        .collect();
    let weight = |rows: usize, cols: usize| {
        let numbers: Vec<bf16> = some.iter().copied().cycle().take(rows * cols).collect();
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    };
    let (wide, inner, kv) = (2048, 6144, 1024);
    let mut weights = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), weight(151_936, wide)),
        ("model.norm.weight".to_owned(), weight(1, wide)),
    ]);
    for block in 0..28 {
        let mut put = |name: &str, rows, cols| {
            weights.insert(format!("model.layers.{block}.{name}.weight"), weight(rows, cols));
        };
        for (name, rows, cols) in [
            ("self_attn.q_proj", wide, wide),
            ("self_attn.k_proj", kv, wide),
            ("self_attn.v_proj", kv, wide),
            ("self_attn.o_proj", wide, wide),
            ("mlp.gate_proj", inner, wide),
            ("mlp.up_proj", inner, wide),
            ("mlp.down_proj", wide, inner),
            ("input_layernorm", 1, wide),
            ("post_attention_layernorm", 1, wide),
        ] {
            put(name, rows, cols);
        }
    }
    let modules = vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj];
    let lora = LoraOptions { modules, rank: 16, alpha: 32.0, dropout: 0.0, seed: 5, layers: Default::default() };
    let options =
        LoadOptions { dtype: DType::BF16, device: Compute::Card(card), train_weights: false, lora: Some(lora) };
    let model = Decoder::load(config, &weights, &options).unwrap();
    let (rows, len) = (2, 2048);
    let ids: Vec<u32> = (0..rows * len).map(|i| ((i * 7919) % 151_936) as u32).collect();
    let batch = Batch {
        rows,
        len,
        targets: ids[1..].iter().copied().chain([7]).collect(),
        input_ids: ids,
        positions: (0..rows).flat_map(|_| 0..len as u32).collect(),
        spans: (0..rows).map(|row| Span { row, start: 0, len }).collect(),
        origins: vec!["made up".into(); rows],
    };
    for checkpointing in [false, true] {
        let mut times = Vec::new();
        for _ in 0..4 {
            let start = std::time::Instant::now();
            let (loss, _) = run(&model, &batch, checkpointing);
            assert!(loss.is_finite());
            times.push(start.elapsed().as_secs_f64());
        }
        let speed = (rows * len) as f64 / times[3];
        say!("1.7 B, LoRA r16, 2 x 2048, checkpointing {checkpointing}: {speed:.0} tokens/s; runs of {times:.3?} s");
    }
}

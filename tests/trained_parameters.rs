//! Everything that should train has the right gradient, and nothing else has any:
//! over models and choices of adapters, against finite differences and against f64.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/families.rs"]
mod families;

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use families::Fixture;
use tune_core::data::Batch;
use tune_core::engine::{self, EmbeddingNoise, RunOptions, forward_backward};
use tune_core::methods::TokenLoss;
use tune_core::models::Decoder;
use tune_core::optim::Gradients;
use tune_core::peft::{LoraModule, LoraOptions, TrainedTokens};

const FAMILIES: [&str; 3] = ["llama_tied", "llama3_1_rope_scaled", "mistral"];
const OTHER_FAMILIES: [&str; 14] = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama_biases",
    "llama_dynamic",
    "olmo2",
    "phi3",
    "phi3_longrope",
    "qwen2",
    "qwen2_windows",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe_dense",
    "smollm3",
];

/// Layers that are named for a family's adapters with magnitudes: nothing holds these for a mixture's MLPs.
fn all_layers_with_magnitudes(family: &str) -> &'static [LoraModule] {
    if family.starts_with("qwen3_moe") { &ALL[..4] } else { &ALL }
}

use LoraModule::{DownProj, GateProj, KProj, LmHead, OProj, QProj, Router, UpProj, VProj};

/// All layers of all families but those that are several in one.
const ALL: [LoraModule; 9] = [QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj, LmHead, Router];

const ADAPTERS: [&[LoraModule]; 6] = [
    &[QProj, VProj],
    &[QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj],
    &[LmHead],
    &[DownProj, LmHead],
    &[OProj],
    &ALL,
];

fn lora(modules: &[LoraModule]) -> LoraOptions {
    LoraOptions { modules: modules.to_vec(), rank: 3, alpha: 6.0, dropout: 0.1, seed: 5, ..Default::default() }
}

/// The same with magnitudes.
fn dora(modules: &[LoraModule]) -> LoraOptions {
    LoraOptions { dora: true, ..lora(modules) }
}

/// Fresh adapters leave the model as it is, and `A` without a gradient: move `B` away from zero.
fn shake(model: &Decoder) {
    for parameter in model.trainable().iter().filter(|parameter| parameter.name().ends_with("lora_B.weight")) {
        let (name, var) = (parameter.name(), parameter.var());
        let key = name.bytes().fold(3u64, |key, byte| key.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let value = |i: u64| ((key + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 1000;
        let values: Vec<f64> = (0..var.elem_count() as u64).map(|i| value(i) as f64 / 5e3 - 0.1).collect();
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        var.set(&values.to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

fn run(model: &Decoder, batch: &Batch) -> (f64, Gradients) {
    let mut gradients = Gradients::default();
    let trained = batch.trained_tokens() as f64;
    let options =
        RunOptions { scale: 1.0 / trained, activation_checkpointing: false, dropout: Some(11), ..RunOptions::PLAIN };
    let loss = forward_backward(model, batch, options, &mut gradients).unwrap() / trained;
    (loss, gradients)
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The lengths of the rows of a layer's weight with its adapter's update.
fn lengths(fixture: &Fixture, model: &Decoder, layer: &str) -> Tensor {
    let stored = if layer == "lm_head" && model.config.tie_word_embeddings { "model.embed_tokens" } else { layer };
    let exact = |t: &Tensor| t.detach().to_dtype(DType::F64).unwrap();
    let of = |part: &str| exact(model.trainable().get(&format!("{layer}.lora_{part}.weight")).unwrap().var());
    let update = (of("B").matmul(&of("A")).unwrap() * 2.0).unwrap();
    let sum = (exact(&fixture.weights[&format!("{stored}.weight")]) + update).unwrap();
    sum.sqr().unwrap().sum(1).unwrap().sqrt().unwrap()
}

/// The slope of the loss along one element of a parameter. The norms of DoRA are constants to its gradients: where one changes,
/// the magnitude is changed with it.
fn slope(fixture: &Fixture, model: &Decoder, batch: &Batch, name: &str, index: usize, step: f64) -> f64 {
    let layer = name.split(".lora_").next().unwrap();
    let magnitude = model.trainable().get(&format!("{layer}.lora_magnitude_vector")).map(|p| p.var());
    let before = magnitude.filter(|_| name.ends_with(".weight")).map(|magnitude| {
        (magnitude, magnitude.to_dtype(DType::F64).unwrap().copy().unwrap(), lengths(fixture, model, layer))
    });
    let var = model.trainable().get(name).unwrap().var();
    let base = values(var);
    let at = |delta: f64| {
        let mut moved = base.clone();
        moved[index] += delta;
        let moved = Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap();
        var.set(&moved.to_dtype(var.dtype()).unwrap()).unwrap();
        if let Some((magnitude, was, lengths_before)) = &before {
            let ratio = (lengths(fixture, model, layer) / lengths_before).unwrap();
            magnitude.set(&(was * ratio).unwrap().to_dtype(magnitude.dtype()).unwrap()).unwrap();
        }
        run(model, batch).0
    };
    let slope = (at(step) - at(-step)) / (2.0 * step);
    at(0.0);
    slope
}

/// `coarse` differences in f32 are for models whose loss is straight enough. Prints how far f32 is off at most.
fn check(family: &str, fixture: &Fixture, modules: Option<&[LoraModule]>, coarse: bool) {
    let worst = check_with(fixture, modules.map(lora).as_ref(), coarse);
    let what = modules.map_or_else(|| "all weights".to_owned(), |modules| format!("adapters on {modules:?}"));
    println!("{family}, {what}: gradients in f32 are off by {worst:.1e} of the largest value at most");
}

/// Returns how far a gradient in f32 is off at most, relative to its largest value.
fn check_with(fixture: &Fixture, adapters: Option<&LoraOptions>, coarse: bool) -> f64 {
    let batch = fixture.batch();
    let models = [DType::F32, DType::F64].map(|dtype| fixture.model(dtype, adapters.cloned()));
    models.iter().for_each(shake);
    let [single, double] = &models;
    let names: BTreeSet<&str> = double.trainable().iter().map(|parameter| &**parameter.name()).collect();
    let blocks = 0..single.config.blocks.len();
    let layers: Vec<_> = blocks.clone().flat_map(|i| single.config.layers(i)).chain([single.config.output()]).collect();
    let expected = match adapters {
        None => {
            let norms: usize = blocks.map(|i| single.config.norms(i).len()).sum();
            let biases = layers.iter().filter(|layer| layer.bias).count();
            norms + biases + layers.len() + if single.config.tie_word_embeddings { 1 } else { 2 }
        }
        Some(lora) => {
            let lora = lora.resolved(&single.config).unwrap();
            let tables = [&lora.tokens, &lora.output_tokens].into_iter().filter(|tokens| !tokens.is_empty());
            (2 + usize::from(lora.dora)) * lora.layers.len() + lora.whole.len() + tables.count()
        }
    };
    assert_eq!(names.len(), expected);

    let (single_gradients, double_gradients) = (run(single, &batch).1, run(double, &batch).1);
    assert_eq!(single_gradients.iter().map(|(n, _)| n).collect::<BTreeSet<_>>(), names);
    assert_eq!(double_gradients.iter().map(|(n, _)| n).collect::<BTreeSet<_>>(), names);
    let mut furthest = 0f64;
    for name in names {
        let exact = values(&double_gradients.get(name).unwrap().to_tensor().unwrap());
        let ours = values(&single_gradients.get(name).unwrap().to_tensor().unwrap());
        let scale = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
        if name.contains(".experts.") && scale == 0.0 {
            // No token went there.
            continue;
        }
        assert!(scale > 0.0, "{name} has a gradient of zero");
        let worst = ours.iter().zip(&exact).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 1e-4 * scale, "{name}: f32 is off by {worst:e} of {scale:e}");
        furthest = furthest.max(worst / scale);

        // Where the gradient is largest the difference quotient is least blurred.
        let (largest, _) = exact.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
        let fine = slope(fixture, double, &batch, name, largest, 1e-5);
        assert!((fine - exact[largest]).abs() <= 1e-4 * scale, "{name}: {} instead of {fine} (f64)", exact[largest]);
        if !coarse {
            continue;
        }
        let coarse = slope(fixture, single, &batch, name, largest, 1e-2);
        assert!(
            (coarse - ours[largest]).abs() <= 1e-2 * scale.max(1e-3),
            "{name}: {} instead of {coarse} (f32)",
            ours[largest]
        );
    }
    furthest
}

#[test]
fn other_families() {
    for family in OTHER_FAMILIES {
        let mut fixture = Fixture::read(family);
        // The gradient of padding is left out, as torch does, and a difference quotient knows nothing of that.
        fixture.config["pad_token_id"] = serde_json::Value::Null;
        check(family, &fixture, None, false);
        check(family, &fixture, Some(&ALL), false);
        check(family, &fixture, Some(&[QProj, VProj]), false);
        if family.starts_with("qwen3_moe") {
            check(family, &fixture, Some(&[DownProj]), false);
            check(family, &fixture, Some(&[Router]), false);
        }
    }
}

#[test]
fn full_fine_tuning() {
    for family in FAMILIES {
        check(family, &Fixture::read(family), None, true);
    }
}

#[test]
fn adapters_of_every_kind() {
    for family in FAMILIES {
        let fixture = Fixture::read(family);
        for modules in ADAPTERS {
            check(family, &fixture, Some(modules), true);
        }
    }
}

/// Weights that are trained whole beside adapters: tables, norms, and layers without an adapter, with their biases.
#[test]
fn modules_trained_whole() {
    for family in ["llama_tied", "llama_biases"] {
        let fixture = Fixture::read(family);
        for save in [&["embed_tokens"][..], &["norm"], &["lm_head", "up_proj"]] {
            let save = save.iter().map(|&name| name.to_owned()).collect();
            check_with(&fixture, Some(&LoraOptions { save, ..lora(&[QProj, DownProj]) }), false);
        }
    }
}

/// Rows of single tokens, with an adapter on an output layer of its own, too, or rows of that. Of gemma's tables embeddings are scaled.
#[test]
fn rows_of_tokens() {
    for family in ["llama_tied", "mistral", "gemma", "gemma2", "phi3"] {
        let mut fixture = Fixture::read(family);
        // See `other_families`.
        fixture.config["pad_token_id"] = serde_json::Value::Null;
        let batch = fixture.batch();
        let tokens = TrainedTokens::of(&[batch.input_ids[3], 2, batch.input_ids[17]]);
        let is_tied = fixture.model(DType::F32, None).config.tie_word_embeddings;
        for modules in [&[QProj][..], if is_tied { &[DownProj] } else { &[DownProj, LmHead] }] {
            check_with(&fixture, Some(&LoraOptions { tokens: tokens.clone(), ..lora(modules) }), false);
        }
        if !is_tied {
            let output_tokens = TrainedTokens::of(&[batch.input_ids[4], 7, 1]);
            for tokens in [tokens, TrainedTokens::default()] {
                let output_tokens = output_tokens.clone();
                check_with(&fixture, Some(&LoraOptions { tokens, output_tokens, ..lora(&[DownProj]) }), false);
            }
        }
    }
}

/// With biases, norms on heads and layers that make several results, too.
#[test]
fn magnitudes() {
    for family in ["llama_tied", "mistral", "llama_biases", "phi3", "qwen3", "gemma2"] {
        let fixture = Fixture::read(family);
        for modules in ADAPTERS {
            check_with(&fixture, Some(&dora(modules)), false);
        }
    }
}

/// The gradients of a run under other circumstances, by name.
fn gradients(model: &Decoder, batch: &Batch, activation_checkpointing: bool) -> Vec<(String, Vec<f64>)> {
    let mut gradients = Gradients::default();
    let scale = 1.0 / batch.trained_tokens() as f64;
    let options = RunOptions { scale, activation_checkpointing, dropout: Some(11), ..RunOptions::PLAIN };
    forward_backward(model, batch, options, &mut gradients).unwrap();
    gradients.iter().map(|(name, g)| (name.to_string(), values(&g.to_tensor().unwrap()))).collect()
}

/// Neither the number of threads nor activation checkpointing changes a bit.
#[test]
fn threads_and_checkpointing_change_nothing() {
    let with_tokens = || LoraOptions { tokens: TrainedTokens::of(&[9, 0, 23]), ..lora(&[DownProj]) };
    let kinds = |family| [None, Some(lora(&ALL)), Some(dora(all_layers_with_magnitudes(family))), Some(with_tokens())];
    let of = |family| kinds(family).map(|modules| (family, modules));
    for (family, modules) in ["mistral"].into_iter().chain(OTHER_FAMILIES).flat_map(of) {
        let fixture = Fixture::read(family);
        for dtype in [DType::F32, DType::BF16] {
            let model = fixture.model(dtype, modules.clone());
            shake(&model);
            let on = |threads: usize, checkpointing: bool| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| gradients(&model, &fixture.batch(), checkpointing))
            };
            let reference = on(1, false);
            assert!(reference == on(2, false) && reference == on(3, true), "{family} {dtype:?}");
        }
    }
}

/// bf16 keeps eight bits: its gradients are those of f64, to a few hundredths of their length.
#[test]
fn bf16_gradients_point_the_right_way() {
    for family in FAMILIES.into_iter().chain(OTHER_FAMILIES) {
        for modules in [None, Some(lora(&ALL)), Some(dora(all_layers_with_magnitudes(family)))] {
            let mut fixture = Fixture::read(family);
            if family.starts_with("qwen3_moe") {
                // In bf16 a token may go to another expert, and what comes of it is another. Where it goes to all of them,
                // each with its weight, there is no other.
                fixture.config["num_experts_per_tok"] = fixture.config["num_local_experts"].clone();
            }
            let [narrow, wide] = [DType::BF16, DType::F64].map(|dtype| fixture.model(dtype, modules.clone()));
            shake(&narrow);
            shake(&wide);
            let mut furthest = 0f64;
            let ours = gradients(&narrow, &fixture.batch(), false);
            for ((name, ours), (_, exact)) in ours.iter().zip(gradients(&wide, &fixture.batch(), false)) {
                let square = |x: f64| x * x;
                let length = exact.iter().copied().map(square).sum::<f64>().sqrt();
                let off = ours.iter().zip(&exact).map(|(a, b)| square(a - b)).sum::<f64>().sqrt();
                // Attention sees little of a bias that all keys have, so that its gradient is small.
                // Results that are scaled are rounded once more.
                let is_scaled = modules.as_ref().is_some_and(|lora| lora.dora);
                let most = match name.ends_with("k_proj.bias") {
                    true => 0.12,
                    false if is_scaled => 0.09,
                    false => 0.06,
                };
                assert!(off <= most * length, "{family} {name}: off by {:.3} of its length", off / length);
                furthest = furthest.max(off / length);
            }
            let what = match &modules {
                None => "all weights",
                Some(lora) if lora.dora => "adapters with magnitudes",
                Some(_) => "adapters",
            };
            println!("{family}, {what}: gradients in bf16 are off by {furthest:.3} of their length at most");
        }
    }
}

/// The gradients of a mixture of experts in bf16 as far as tokens go to the same experts: as a whole they point where those of
/// f64 do.
#[test]
fn bf16_gradients_of_chosen_experts_point_the_right_way() {
    for modules in [None, Some(lora(&ALL))] {
        let fixture = Fixture::read("qwen3_moe");
        let [narrow, wide] = [DType::BF16, DType::F64].map(|dtype| fixture.model(dtype, modules.clone()));
        shake(&narrow);
        shake(&wide);
        let ours = gradients(&narrow, &fixture.batch(), false);
        let exact = gradients(&wide, &fixture.batch(), false);
        let pairs = || ours.iter().zip(&exact).flat_map(|((_, ours), (_, exact))| ours.iter().zip(exact));
        let dot: f64 = pairs().map(|(a, b)| a * b).sum();
        let [length, exact_length] =
            [pairs().map(|(a, _)| a * a).sum::<f64>().sqrt(), pairs().map(|(_, b)| b * b).sum::<f64>().sqrt()];
        let cosine = dot / (length * exact_length);
        println!("cosine {cosine:.5}, length {:.4}", length / exact_length);
        assert!(cosine > 0.99 && (length / exact_length - 1.0).abs() < 0.05, "{cosine}, {}", length / exact_length);
    }
}

#[test]
fn merged_weights_give_the_logits_of_the_adapters() {
    merged_weights(lora(&[QProj, DownProj, LmHead]));
    merged_weights(dora(&[QProj, DownProj, LmHead]));
}

fn merged_weights(lora: LoraOptions) {
    let fixture = Fixture::read("llama_tied");
    let model = fixture.model(DType::F64, Some(lora));
    shake(&model);
    let (weights, tied) = model.merged_weights().unwrap();
    assert!(!tied, "an adapter on a tied output layer unties it");
    let mut merged = Fixture::read("llama_tied");
    merged.config["tie_word_embeddings"] = tied.into();
    merged.weights = weights;
    let batch = fixture.batch();
    let (a, b) = (
        values(&engine::logits(&model, &batch).unwrap()),
        values(&engine::logits(&merged.model(DType::F64, None), &batch).unwrap()),
    );
    let worst = a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst < 1e-4, "{worst}");
}

/// A mean loss, and its gradients by name.
type Found = (f64, Vec<(String, Vec<f64>)>);

fn run_with(model: &Decoder, batch: &Batch, options: RunOptions) -> Found {
    let mut gradients = Gradients::default();
    let scale = 1.0 / batch.trained_tokens() as f64;
    let options = RunOptions { scale, activation_checkpointing: true, ..options };
    let loss = scale * forward_backward(model, batch, options, &mut gradients).unwrap();
    let gradients = gradients.iter().map(|(name, g)| (name.to_string(), values(&g.to_tensor().unwrap())));
    (loss, gradients.collect())
}

/// f32 and bf16 compute what f64 does with these options, and its gradient of the embedding table is the slope of its loss.
fn is_computed_alike(family: &str, fixture: &Fixture, options: RunOptions) {
    let batch = fixture.batch();
    let [exact, single, narrow] = [DType::F64, DType::F32, DType::BF16].map(|dtype| fixture.model(dtype, None));
    let (loss, gradients) = run_with(&exact, &batch, options);
    let (in_f32, gradients_in_f32) = run_with(&single, &batch, options);
    assert!((in_f32 - loss).abs() < 1e-5 * loss, "{family}: {in_f32} instead of {loss}");
    for ((name, ours), (_, exact)) in gradients_in_f32.iter().zip(&gradients) {
        let most = exact.iter().fold(0f64, |most, g| most.max(g.abs()));
        let off = ours.iter().zip(exact).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= 1e-4 * most, "{family} {name}: off by {off:e} of {most:e}");
    }
    let in_bf16 = run_with(&narrow, &batch, options).0;
    assert!((in_bf16 - loss).abs() < 0.01 * loss, "{family}: {in_bf16} instead of {loss}");

    let (name, of_table) = gradients.iter().find(|(name, _)| name.ends_with("embed_tokens.weight")).unwrap();
    let var = exact.trainable().get(name).unwrap().var();
    let table = values(var);
    let index = (0..of_table.len()).max_by(|&a, &b| of_table[a].abs().total_cmp(&of_table[b].abs())).unwrap();
    let at = |delta: f64| {
        let mut moved = table.clone();
        moved[index] += delta;
        var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
        run_with(&exact, &batch, options).0
    };
    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
    assert!((slope - of_table[index]).abs() < 1e-5 * slope.abs(), "{family}: {slope} and {}", of_table[index]);
}

/// Noise on embeddings is the same in every type and changes with its key; gradients are those at the noisy embeddings.
#[test]
fn noise_on_embeddings() {
    let with = |alpha, key| RunOptions { noise: Some(EmbeddingNoise { alpha, key }), ..RunOptions::PLAIN };
    for family in ["mistral", "gemma2"] {
        let fixture = Fixture::read(family);
        let (model, batch) = (fixture.model(DType::F64, None), fixture.batch());
        let loss = |options| run_with(&model, &batch, options).0;
        let [noisy, plain] = [loss(with(5.0, 1)), loss(RunOptions::PLAIN)];
        assert!((noisy - plain).abs() > 1e-3 && (noisy - loss(with(5.0, 2))).abs() > 1e-3, "{family}");
        assert_eq!(plain, loss(with(0.0, 1)));
        is_computed_alike(family, &fixture, with(5.0, 1));
    }
}

/// Label smoothing and z-loss, of logits that are capped, too.
#[test]
fn what_is_beside_cross_entropy() {
    let with =
        |label_smoothing, z_loss| RunOptions { loss: TokenLoss { label_smoothing, z_loss }, ..RunOptions::PLAIN };
    for family in ["mistral", "gemma2"] {
        let fixture = Fixture::read(family);
        let (model, batch) = (fixture.model(DType::F64, None), fixture.batch());
        let loss = |options| run_with(&model, &batch, options).0;
        let plain = loss(RunOptions::PLAIN);
        let mean = engine::evaluate(&model, &batch).unwrap() / batch.trained_tokens() as f64;
        assert!((plain - mean).abs() < 1e-12 * mean, "{family}");
        for options in [with(0.1, 0.0), with(0.0, 0.01), with(0.1, 0.01)] {
            assert!((loss(options) - plain).abs() > 1e-3, "{family}");
            is_computed_alike(family, &fixture, options);
        }
    }
}

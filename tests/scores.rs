//! A head that scores sequences, on families of models: scores and gradients of transformers' sequence classification
//! (`fixtures/scores/generate.py`), finite differences in f64, and what peft's files have of it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/families.rs"]
mod families;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use families::Fixture;
use tune_core::Result;
use tune_core::checkpoint::{Checkpoint, peft as files};
use tune_core::data::{Batch, IGNORE, Loader, LoaderOptions, Sample, Span};
use tune_core::device::Compute;
use tune_core::engine::{self, Objective, RunOptions};
use tune_core::methods::{Clipped, PpoLoss, classification};
use tune_core::models::{Decoder, LoadOptions, ModelSpec, WithHead};
use tune_core::optim::Gradients;
use tune_core::peft::{LoraModule, LoraOptions, adapter_weights};
use tune_core::tokenizer::TokenizerFiles;

/// The head of the fixtures, and the token that fills their rows up.
const SCORES: usize = 3;
const PAD: u32 = 5;
/// Every family that there is.
const FAMILIES: [&str; 12] = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama_biases",
    "llama_tied",
    "mistral",
    "olmo2",
    "phi3_longrope",
    "qwen2_windows",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

/// A family with the head and the batch that `generate.py` made.
struct Case {
    base: Fixture,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    fn read(family: &str) -> Self {
        let file = Fixture::folder(family).join(format!("../../scores/{family}.safetensors"));
        let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap().into_iter().collect();
        Self { base: Fixture::read(family), expected }
    }

    fn spec(&self) -> ModelSpec {
        ModelSpec::from_json(&self.base.config).unwrap().with_scores(SCORES)
    }

    fn model(&self, dtype: DType, lora: Option<LoraOptions>) -> Decoder {
        let mut weights = self.base.weights.clone();
        weights.insert("score.weight".into(), self.expected["score"].clone());
        let options = LoadOptions { dtype, device: Compute::Processor, train_weights: lora.is_none(), lora };
        let spec = self.spec();
        Decoder::load(spec.clone(), &WithHead::new(&weights, &spec, &self.base.config, 1).unwrap(), &options).unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<i64> {
        self.expected[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn samples(&self) -> Vec<Sample> {
        let rows: Vec<Vec<i64>> = self.expected["input_ids"].to_vec2().unwrap();
        let each = rows.iter().zip(self.numbers("lengths")).zip(self.numbers("classes"));
        let sample = |((row, len), class): ((&Vec<i64>, i64), i64)| {
            let input_ids: Vec<u32> = row[..len as usize].iter().map(|&id| id as u32).collect();
            let targets = vec![IGNORE; input_ids.len()];
            Sample { input_ids, targets, origin: "fixture".into(), label: None }.scored(class as u32, Some(PAD))
        };
        each.map(sample).collect()
    }

    /// Each sample in a row of its own, padded.
    fn batch(&self) -> Batch {
        let options = LoaderOptions { batch_size: 4, pad_id: PAD, ..LoaderOptions::default() };
        Loader::new(self.samples(), options).unwrap().batch(0, 0).unwrap().unwrap()
    }
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest value.
fn difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// The mean cross-entropy of a batch and its gradients.
fn train(model: &Decoder, batch: &Batch, activation_checkpointing: bool) -> Result<(f64, Gradients)> {
    let mut gradients = Gradients::default();
    let count = batch.trained_tokens() as f64;
    let options = RunOptions { scale: 1.0 / count, activation_checkpointing, dropout: Some(3), ..RunOptions::PLAIN };
    let loss = engine::minimize_scores(model, batch, options, &mut gradients, |scores| {
        Ok(classification(batch, scores).objective)
    })?;
    Ok((loss / count, gradients))
}

fn named(gradients: &Gradients) -> BTreeMap<String, Vec<f64>> {
    gradients.iter().map(|(name, gradient)| (name.to_string(), values(&gradient.to_tensor().unwrap()))).collect()
}

#[test]
fn scores_and_gradients_are_those_of_transformers() {
    for family in FAMILIES {
        let case = Case::read(family);
        let (model, batch) = (case.model(DType::F32, None), case.batch());
        let of_scores = difference(&engine::scores(&model, &batch).unwrap(), &values(&case.expected["scores"]));
        let (loss, gradients) = train(&model, &batch, false).unwrap();
        let theirs = values(&case.expected["loss"])[0];
        assert!((loss - theirs).abs() <= 1e-5 * theirs, "{family}: loss {loss} instead of {theirs}");
        let ours = named(&gradients);
        let expected = case.expected.iter().filter_map(|(name, t)| Some((name.strip_prefix("gradient.")?, values(t))));
        let expected: Vec<_> = expected.collect();
        assert!(expected.len() >= 5, "{family}");
        let worst = expected.iter().map(|(name, theirs)| difference(&ours[*name], theirs)).fold(0f64, f64::max);
        println!("{family}: scores differ by {of_scores:.1e}, gradients by {worst:.1e} of the largest value at most");
        assert!(of_scores <= 1e-4 && worst <= 1e-4, "{family}: {of_scores:e} {worst:e}");
        // Every parameter is trained, the head among them, and no output layer for tokens is left.
        assert_eq!(ours.len(), model.trainable().len());
        assert!(ours.contains_key("score.weight") && !ours.contains_key("lm_head.weight"));
        let (_, again) = train(&model, &batch, true).unwrap();
        assert_eq!(ours, named(&again), "{family}: activation checkpointing must not change a bit");
    }
}

/// The slope of the loss along an element of each parameter, in f64, on the backend that is plain loops.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let lora = LoraOptions {
        modules: vec![LoraModule::QProj, LoraModule::DownProj],
        rank: 3,
        alpha: 6.0,
        dropout: 0.1,
        seed: 5,
        ..Default::default()
    };
    for (family, adapters) in [("llama_biases", None), ("gemma2", Some(lora.clone())), ("qwen2_windows", Some(lora))] {
        let case = Case::read(family);
        let is_lora = adapters.is_some();
        let model = case.model(DType::F64, adapters.map(LoraOptions::with_head));
        // Fresh adapters leave `A` without a gradient.
        for parameter in model.trainable().iter().filter(|parameter| parameter.name().ends_with("lora_B.weight")) {
            let all =
                (0..parameter.elem_count()).map(|i| ((i * 37 + 11) % 100) as f64 / 500.0 - 0.1).collect::<Vec<_>>();
            let var = parameter.var();
            var.set(&Tensor::from_vec(all, var.shape(), &Device::Cpu).unwrap().to_dtype(var.dtype()).unwrap()).unwrap();
        }
        let batch = case.batch();
        let (_, gradients) = train(&model, &batch, false).unwrap();
        let gradients = named(&gradients);
        assert!(gradients.contains_key("score.weight"));
        assert_eq!(gradients.len(), model.trainable().len(), "{family}");
        let mut worst = 0f64;
        for parameter in model.trainable() {
            let (gradient, var) = (&gradients[&**parameter.name()], parameter.var());
            // The steepest element, so that rounding is small beside it.
            let index = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
            let base = values(var);
            // Adapters are f32, which takes a larger step.
            let step = if var.dtype() == DType::F64 { 1e-5 } else { 1e-3 };
            let at = |delta: f64| {
                let mut moved = base.clone();
                moved[index] += delta;
                let moved = Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap();
                var.set(&moved.to_dtype(var.dtype()).unwrap()).unwrap();
                (train(&model, &batch, false).unwrap().0, values(var)[index])
            };
            let ((up, x_up), (down, x_down)) = (at(step), at(-step));
            let slope = (up - down) / (x_up - x_down);
            at(0.0);
            let off = (slope - gradient[index]).abs() / gradient[index].abs().max(1e-6);
            let tolerance = if var.dtype() == DType::F64 { 1e-4 } else { 1e-3 };
            assert!(off <= tolerance, "{family} {}: slope {slope}, gradient {}", parameter.name(), gradient[index]);
            worst = worst.max(off);
        }
        println!("{family}, adapters {is_lora}: slopes and gradients differ by {worst:.1e} at most");
    }
}

/// The same of a value model, which has a score at each token of an answer: PPO's loss of values, of which some are clipped.
#[test]
fn gradients_of_values_are_the_slopes_of_their_loss() {
    let case = Case::read("qwen2_windows");
    let spec = ModelSpec::from_json(&case.base.config).unwrap().with_scores(1);
    let options = LoadOptions { dtype: DType::F64, device: Compute::Processor, train_weights: true, lora: None };
    let source = WithHead::new(&case.base.weights, &spec, &case.base.config, 1).unwrap();
    let model = Decoder::load(spec.clone(), &source, &options).unwrap();
    // Of each row, the tokens behind the first are an answer.
    let mut batch = case.batch();
    let spans = batch.spans.clone();
    batch.targets.fill(IGNORE);
    for span in &spans {
        let at = batch.positions_of(span);
        batch.targets[at.start + 1..at.end].fill(0);
    }
    let values_now = engine::scores(&model, &batch).unwrap();
    assert_eq!(values_now.len(), batch.tokens() - spans.len());
    // Off by more than the range and by less, and what is aimed at on either side.
    let old: Vec<f64> = values_now.iter().enumerate().map(|(i, now)| now + [0.05, -0.4, 0.3][i % 3]).collect();
    let returns: Vec<f64> = values_now.iter().enumerate().map(|(i, now)| now + [1.0, -0.7, 0.5, -0.2][i % 4]).collect();
    let loss = PpoLoss { epsilon: 0.2, value_clip_range: 0.2, value_coeff: 1.0 };
    let train = || {
        let (mut gradients, mut clipped) = (Gradients::default(), 0);
        let value = engine::minimize_scores(&model, &batch, RunOptions::PLAIN, &mut gradients, |values| {
            let Clipped { loss, slopes, clipped: here } = loss.of_values(values, &old, &returns);
            clipped = here;
            Ok(Objective { value: loss, gradient: slopes })
        });
        (value.unwrap(), gradients, clipped)
    };
    let (_, gradients, clipped) = train();
    assert!(clipped > 0 && clipped < values_now.len(), "{clipped} of {}", values_now.len());
    let gradients = named(&gradients);
    assert_eq!(gradients.len(), model.trainable().len());
    for parameter in model.trainable() {
        let (gradient, var) = (&gradients[&**parameter.name()], parameter.var());
        let index = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
        let base = values(var);
        let at = |delta: f64| {
            let mut moved = base.clone();
            moved[index] += delta;
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
            train().0
        };
        let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
        at(0.0);
        let off = (slope - gradient[index]).abs() / gradient[index].abs().max(1e-3);
        assert!(off <= 1e-4, "{}: slope {slope}, gradient {}", parameter.name(), gradient[index]);
    }
}

/// Rows that several samples share, the same samples one by one, and rows with padding.
#[test]
fn a_sample_is_scored_by_itself() {
    let case = Case::read("qwen2_windows");
    let model = case.model(DType::F32, None);
    let padded = engine::scores(&model, &case.batch()).unwrap();
    let options = LoaderOptions { batch_size: 1, pack_to: Some(64), ..LoaderOptions::default() };
    let packed = Loader::new(case.samples(), options).unwrap().batch(0, 0).unwrap().unwrap();
    assert_eq!((packed.rows, packed.spans.len()), (1, 4));
    assert_eq!(padded, engine::scores(&model, &packed).unwrap());
    // The label of each is that of its sample, and none is a token of its neighbour.
    let targets: Vec<u32> = packed.targets.iter().copied().filter(|&target| target != IGNORE).collect();
    assert_eq!(targets, case.numbers("classes").iter().map(|&class| class as u32).collect::<Vec<_>>());
    let one = |sample: Sample| {
        let options = LoaderOptions { batch_size: 1, ..LoaderOptions::default() };
        let batch = Loader::new(vec![sample], options).unwrap().batch(0, 0).unwrap().unwrap();
        engine::scores(&model, &batch).unwrap()
    };
    // Products of other sizes are summed in another order.
    let alone: Vec<f64> = case.samples().into_iter().flat_map(one).collect();
    assert!(difference(&alone, &padded) <= 1e-6, "{alone:?} {padded:?}");
}

#[test]
fn a_score_is_at_the_last_token_that_is_no_padding() {
    let sample = |input_ids: &[u32]| Sample {
        input_ids: input_ids.into(),
        targets: Vec::new(),
        origin: String::new(),
        label: None,
    };
    let scored = sample(&[7, 5, 8, 5, 5]).scored(2, Some(PAD));
    assert_eq!((scored.input_ids, scored.targets), (vec![7, 5, 8], vec![IGNORE, IGNORE, 2]));
    assert_eq!(sample(&[7, 5]).scored(0, None).targets, [IGNORE, 0]);
    // As transformers: the first token where all are padding.
    assert_eq!(sample(&[5, 5]).scored(1, Some(PAD)).targets, [1]);
    assert!(sample(&[]).scored(1, Some(PAD)).targets.is_empty());
}

/// What was not scored before has a fresh head, the same for a seed; what has one keeps it.
#[test]
fn a_fresh_head_is_drawn_as_transformers_draws_it() {
    let base = Fixture::read("llama_tied");
    let spec = ModelSpec::from_json(&base.config).unwrap().with_scores(64);
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: true, lora: None };
    let head = |weights: &BTreeMap<String, Tensor>, seed: u64| -> Result<Vec<f64>> {
        let source = WithHead::new(weights, &spec, &base.config, seed).unwrap();
        let model = Decoder::load(spec.clone(), &source, &options)?;
        Ok(values(model.trainable().get("score.weight").unwrap().var()))
    };
    let fresh = head(&base.weights, 1).unwrap();
    assert_eq!(fresh, head(&base.weights, 1).unwrap());
    assert_ne!(fresh, head(&base.weights, 2).unwrap());
    let n = fresh.len() as f64;
    let (mean, std) = (fresh.iter().sum::<f64>() / n, (fresh.iter().map(|x| x * x).sum::<f64>() / n).sqrt());
    let wanted = base.config["initializer_range"].as_f64().unwrap();
    assert!((std / wanted - 1.0).abs() < 0.05 && mean.abs() < 5.0 * wanted / n.sqrt(), "{mean} {std}");
    let mut own = base.weights.clone();
    own.insert("score.weight".into(), Tensor::ones((64, spec.hidden_size), DType::F32, &Device::Cpu).unwrap());
    assert!(head(&own, 1).unwrap().iter().all(|&x| x == 1.0));
    own.insert("score.weight".into(), Tensor::ones((2, spec.hidden_size), DType::F32, &Device::Cpu).unwrap());
    let error = head(&own, 1).unwrap_err().to_string();
    assert!(error.contains("a head of its own") && error.contains("64 scores"), "{error}");
    // Who wants tokens is told what such a model is.
    let plain = ModelSpec::from_json(&base.config).unwrap();
    let error = Decoder::load(plain, &own, &options).unwrap_err().to_string();
    assert!(error.contains("a head that scores sequences") && error.contains("`reward`"), "{error}");
}

#[test]
fn an_adapter_brings_its_head_along() {
    let case = Case::read("qwen2_windows");
    let lora = LoraOptions { modules: vec![LoraModule::QProj], rank: 2, alpha: 4.0, seed: 1, ..Default::default() };
    let lora = lora.with_head();
    let model = case.model(DType::F32, Some(lora.clone()));
    let base = Checkpoint::open(Fixture::folder("qwen2_windows")).unwrap();
    let config = lora.adapter_config_of(&base, &case.spec()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    files::write(folder.path(), &config, &adapter_weights(&model).unwrap(), &TokenizerFiles::default()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["task_type"], &json["modules_to_save"]), (&"SEQ_CLS".into(), &serde_json::json!(["score"])));
    let file = candle_core::safetensors::load(folder.path().join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(file["base_model.model.score.weight"].dims(), [SCORES, case.spec().hidden_size]);
    // Another model takes it from there.
    let other = case.model(DType::F32, Some(LoraOptions { seed: 2, ..lora.clone() }));
    let head = other.trainable().get("score.weight").unwrap().var();
    head.set(&head.zeros_like().unwrap()).unwrap();
    lora.load_into(&other, folder.path()).unwrap();
    let batch = case.batch();
    assert_eq!(engine::scores(&model, &batch).unwrap(), engine::scores(&other, &batch).unwrap());
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let case = Case::read("llama_biases");
    let model = case.model(DType::F32, None);
    let batch = case.batch();
    let options = RunOptions::PLAIN;
    let mut gradients = Gradients::default();
    let short = engine::minimize_scores(&model, &batch, options, &mut gradients, |_| {
        Ok(Objective { value: 0.0, gradient: vec![0.0] })
    });
    let error = short.unwrap_err().to_string();
    assert!(error.contains("1 numbers") && error.contains("12 scores"), "{error}");
    // A class that the head has no score for.
    let other = Batch { targets: batch.targets.iter().map(|&t| if t == 2 { 3 } else { t }).collect(), ..batch };
    assert!(train(&model, &other, false).is_err());
}

#[test]
fn a_sequence_without_a_target_is_not_scored() {
    let case = Case::read("llama_biases");
    let model = case.model(DType::F32, None);
    let mut batch = case.batch();
    let Span { row, start, len } = batch.spans[1];
    let last = row * batch.len + start + len - 1;
    batch.targets[last] = IGNORE;
    assert_eq!(engine::scores(&model, &batch).unwrap().len(), 3 * SCORES);
}

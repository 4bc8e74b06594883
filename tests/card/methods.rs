//! Magnitudes (DoRA), distillation, capped logits, smoothed labels and heads that score on a card, beside plain loops in f64.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tune_core::config::say;
use tune_core::data::{Batch, IGNORE};
use tune_core::device::Compute;
use tune_core::engine::{self, Card, Distilled, Objective, RunOptions, Sequences};
use tune_core::methods::{DivergenceLoss, GeneralizedJsd, Mixture, TokenLoss, TopTokens};
use tune_core::models::{Decoder, LoadOptions, ModelSpec, RandomWeights, WithHead};
use tune_core::optim::{AdamW, Gradients};
use tune_core::peft::{LoraModule, LoraOptions};

use super::{Failures, card, error, fixture, lora, run, shake, values};

/// Adapters with magnitudes, some of which are no longer the lengths of rows.
fn dora(model: &Decoder) {
    shake(model);
    for parameter in model.trainable().iter().filter(|p| p.name().ends_with("lora_magnitude_vector")) {
        let var = parameter.var();
        let factors: Vec<f32> = (0..var.elem_count()).map(|i| 0.75 + ((i * 31) % 9) as f32 / 16.0).collect();
        let factors = Tensor::from_vec(factors, var.shape(), var.device()).unwrap().to_dtype(var.dtype()).unwrap();
        var.set(&(var.as_tensor() * factors).unwrap()).unwrap();
    }
}

fn on(card: &Arc<Card>, mut model: Decoder) -> Decoder {
    model.compute_on(&Compute::Card(Arc::clone(card))).unwrap();
    model
}

/// Each gradient, of magnitudes too, and the same bits again, with checkpointing, too. After a step the factors are others, and
/// sequences that grow have those.
#[test]
fn magnitudes() {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    for (family, types) in [
        ("llama_tied", &[(DType::F32, 2e-5), (DType::BF16, 5e-2)][..]),
        // Layers whose results are parts, and biases.
        ("phi3", &[(DType::F32, 2e-5)]),
        ("qwen2", &[(DType::F32, 2e-5)]),
    ] {
        let (fixture, options) = (fixture(family), LoraOptions { dora: true, ..lora() });
        let (batch, make) = (fixture.batch(), |dtype| {
            let model = fixture.model(dtype, Some(options.clone()));
            dora(&model);
            model
        });
        let (right, right_gradients) = run(&make(DType::F64), &batch, false);
        assert!(right_gradients.iter().any(|(name, _)| name.ends_with("lora_magnitude_vector")));
        for &(dtype, tolerance) in types {
            let (model, what) = (on(&card, make(dtype)), format!("{family} {dtype:?}"));
            let (loss, gradients) = run(&model, &batch, false);
            failures.unless((loss - right).abs() <= tolerance * right, || format!("{what}: loss {loss}, not {right}"));
            let (again, others) = run(&model, &batch, true);
            failures.unless(again.to_bits() == loss.to_bits(), || format!("{what}: another loss with checkpointing"));
            let mut worst = 0f64;
            for (name, gradient) in gradients.iter() {
                let [found, other] = [gradient, others.get(name).unwrap()].map(|g| values(&g.to_tensor().unwrap()));
                let off = error(&found, &values(&right_gradients.get(name).unwrap().to_tensor().unwrap()));
                worst = worst.max(off);
                failures.unless(off <= tolerance, || format!("{what}: the gradient of {name} is off by {off:.1e}"));
                failures.unless(found == other, || format!("{what}: other bits of {name} with checkpointing"));
            }
            say!("{what} with magnitudes: loss {loss:.6} ({right:.6}), gradients off by {worst:.1e} at most");
        }
    }
}

/// A step on the card, and then the loss and the logits of a growing sequence, which are those of the processor after its step.
#[test]
fn magnitudes_after_a_step() {
    let Some(card) = card() else { return };
    let fixture = fixture("llama_tied");
    let (batch, options) = (fixture.batch(), LoraOptions { dora: true, dropout: 0.0, ..lora() });
    let [here, there] = [None, Some(&card)].map(|card| {
        let model = fixture.model(DType::F32, Some(options.clone()));
        dora(&model);
        let model = match card {
            None => model,
            Some(card) => on(card, model),
        };
        let mut optimizer = AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.01);
        let mut found = Vec::new();
        for step in 1..=3 {
            let (loss, mut gradients) = run(&model, &batch, false);
            gradients.apply(&model, &mut optimizer, 1e-2, 1.0, step).unwrap();
            found.push(loss);
        }
        let mut sequences = Sequences::new(&model, &[8], engine::Kernels::OfTraining).unwrap();
        for new in [&[1, 5, 9][..], &[7]] {
            found.extend(sequences.extend(&[(0, new)]).unwrap().concat().iter().map(|&x| f64::from(x)));
        }
        found
    });
    assert!(here[2] < here[0], "nothing was learnt: {:?}", &here[..3]);
    assert!(
        error(&there, &here) < 1e-4,
        "off by {:e}: {:?} instead of {:?}",
        error(&there, &here),
        &there[..3],
        &here[..3]
    );
}

/// A llama, or a gemma whose logits are capped.
fn small(family: &str, hidden: usize, (seed, dtype): (u64, DType), trained: bool) -> Decoder {
    let mut config = json!({
        "model_type": family, "vocab_size": 97, "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    if family == "gemma2" {
        let more = json!({
            "final_logit_softcapping": 2.0, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 8,
            "sliding_window": 32, "hidden_activation": "gelu_pytorch_tanh",
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    let options = LoadOptions { dtype, device: Compute::Processor, train_weights: trained, lora: None };
    let (spec, weights) = (ModelSpec::from_json(&config).unwrap(), RandomWeights { seed, std: 0.3 });
    Decoder::load(spec, &weights, &options).unwrap()
}

fn jensen(beta: f64) -> DivergenceLoss {
    DivergenceLoss::JensenShannon(GeneralizedJsd { beta })
}

#[test]
fn distillation() {
    let Some(card) = card() else { return };
    let mut batch = fixture("llama_tied").batch();
    batch.input_ids.iter_mut().for_each(|id| *id %= 97);
    batch.targets.iter_mut().filter(|id| **id != IGNORE).for_each(|id| *id %= 97);
    let mut failures = Failures::default();
    // In bf16 the first attention of so small a gemma2 decides otherwise between two keys, on the processor, too.
    for (student, teacher, mixture, types) in [
        ("llama", "llama", Mixture::new(0.7, 1.0), &[(DType::F32, 5e-5), (DType::BF16, 0.12)][..]),
        ("llama", "gemma2", Mixture::new(0.5, 0.25), &[(DType::F32, 5e-5), (DType::BF16, 0.12)]),
        ("gemma2", "llama", Mixture::new(1.0, 0.0), &[(DType::F32, 5e-5)]),
        ("llama", "llama", Mixture::new(0.7, 0.25).at(2.0), &[(DType::F32, 5e-5), (DType::BF16, 0.12)]),
        ("gemma2", "llama", jensen(0.5).mixed(1.0), &[(DType::F32, 5e-5)]),
        ("llama", "gemma2", jensen(0.1).mixed(0.25).at(0.5), &[(DType::F32, 5e-5), (DType::BF16, 0.12)]),
    ] {
        let learn = |dtype: DType, card: Option<&Arc<Card>>| {
            let mut pair = [small(student, 16, (2, dtype), true), small(teacher, 48, (5, dtype), false)];
            if let Some(card) = card {
                pair = pair.map(|model| on(card, model));
            }
            let options = RunOptions { scale: 0.25, ..RunOptions::PLAIN };
            let mut gradients = Gradients::default();
            let losses = engine::distill(&pair[0], &pair[1], &batch, mixture, options, &mut gradients).unwrap();
            let gradients: BTreeMap<String, Vec<f64>> =
                gradients.iter().map(|(name, g)| (name.to_string(), values(&g.to_tensor().unwrap()))).collect();
            (losses, gradients)
        };
        let (right, right_gradients) = learn(DType::F64, None);
        for &(dtype, tolerance) in types {
            let what = format!("{student} from {teacher}, {mixture:?}, {dtype:?}");
            let (found, gradients) = learn(dtype, Some(&card));
            let both = |of: &Distilled| [of.cross_entropy, of.divergence];
            let off = error(&both(&found), &both(&right));
            failures.unless(off <= tolerance, || format!("{what}: {found:?} instead of {right:?}"));
            let mut worst = 0f64;
            for (name, right) in &right_gradients {
                let off = error(&gradients[name], right);
                worst = worst.max(off);
                failures.unless(off <= tolerance, || format!("{what}: the gradient of {name} is off by {off:.1e}"));
            }
            say!("{what}: losses off by {off:.1e}, gradients by {worst:.1e} at most");
        }
    }
}

/// Capped logits are those of plain loops, and stay below the cap; at a temperature they are divided when they are capped.
#[test]
fn capped_logits() {
    let Some(card) = card() else { return };
    let fixture = fixture("gemma2");
    let batch = fixture.batch();
    let logits = |model: &Decoder| values(&engine::logits(model, &batch).unwrap());
    let right = logits(&fixture.model(DType::F64, None));
    let found = logits(&on(&card, fixture.model(DType::F32, None)));
    assert!(error(&found, &right) < 2e-5, "off by {:e}", error(&found, &right));
    let tempered = |model: &Decoder| engine::log_probs_at(model, &batch, 0.7).unwrap();
    let right = tempered(&fixture.model(DType::F64, None));
    let found = tempered(&on(&card, fixture.model(DType::F32, None)));
    assert!(error(&found, &right) < 2e-5, "at a temperature: off by {:e}", error(&found, &right));
}

/// A loss and its gradients by name.
type Learnt = (f64, BTreeMap<String, Vec<f64>>);

/// Compares what a card found with what is right; tells how far they are apart.
fn compare(what: &str, (found, gradients): &Learnt, (right, of_right): &Learnt, most: f64, failures: &mut Failures) {
    let off = (found - right).abs() / right.abs();
    failures.unless(off <= most, || format!("{what}: {found} instead of {right}"));
    assert_eq!(gradients.len(), of_right.len(), "{what}");
    let mut worst = 0f64;
    for (name, right) in of_right {
        let off = error(&gradients[name], right);
        worst = worst.max(off);
        failures.unless(off <= most, || format!("{what}: the gradient of {name} is off by {off:.1e}"));
    }
    say!("{what}: loss off by {off:.1e}, gradients by {worst:.1e} at most");
}

fn named(gradients: &Gradients) -> BTreeMap<String, Vec<f64>> {
    gradients.iter().map(|(name, g)| (name.to_string(), values(&g.to_tensor().unwrap()))).collect()
}

/// What a teacher said once: of all tokens, of some, or of one, and what all others have together.
#[test]
fn distillation_by_likeliest_tokens() {
    let Some(card) = card() else { return };
    let mut batch = fixture("llama_tied").batch();
    batch.input_ids.iter_mut().for_each(|id| *id %= 97);
    batch.targets.iter_mut().filter(|id| **id != IGNORE).for_each(|id| *id %= 97);
    let teacher = small("llama", 48, (5, DType::F32), false);
    let mut failures = Failures::default();
    for (student, k, mixture) in [
        ("llama", 1, Mixture::new(0.7, 1.0)),
        ("llama", 9, Mixture::new(0.5, 0.25)),
        ("gemma2", 9, Mixture::new(1.0, 0.0)),
        ("llama", 97, Mixture::new(0.5, 0.5)),
        ("llama", 9, jensen(0.5).mixed(0.7)),
        ("gemma2", 1, jensen(0.1).mixed(1.0)),
        ("llama", 97, jensen(0.9).mixed(0.5)),
    ] {
        let said: TopTokens = engine::top_tokens(&teacher, &batch, k).unwrap();
        let learn = |model: &Decoder| -> [Learnt; 2] {
            let options = RunOptions { scale: 0.25, ..RunOptions::PLAIN };
            let mut gradients = Gradients::default();
            let losses = engine::distill_by(model, &said, &batch, mixture, options, &mut gradients).unwrap();
            [(losses.cross_entropy, named(&gradients)), (losses.divergence, BTreeMap::new())]
        };
        let right = learn(&small(student, 16, (2, DType::F64), true));
        for (dtype, most) in [(DType::F32, 5e-5), (DType::BF16, 0.12)] {
            // In bf16 so small a gemma2 decides otherwise between two keys, as above.
            if student == "gemma2" && dtype == DType::BF16 {
                continue;
            }
            // Of two outcomes a divergence is a small difference of large numbers.
            let most = if k == 1 { 4.0 * most } else { most };
            let found = learn(&on(&card, small(student, 16, (2, dtype), true)));
            for (part, (found, right)) in ["loss", "divergence"].into_iter().zip(found.iter().zip(&right)) {
                let what = format!("{part} of {student}, {k} tokens, {mixture:?}, {dtype:?}");
                compare(&what, found, right, most, &mut failures);
            }
        }
    }
}

/// Losses that have more than cross-entropy, of logits that are capped, too.
#[test]
fn smoothed_labels_and_z_loss() {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    // In bf16 gemma2 is off by as much on the processor, too.
    let families = [("llama_tied", &[(DType::F32, 2e-5), (DType::BF16, 5e-2)][..]), ("gemma2", &[(DType::F32, 2e-5)])];
    for (family, types) in families {
        let fixture = fixture(family);
        let batch = fixture.batch();
        for (label_smoothing, z_loss) in [(0.1, 0.0), (0.0, 0.01), (0.2, 0.02)] {
            let loss = TokenLoss { label_smoothing, z_loss };
            let learn = |model: &Decoder| -> Learnt {
                let (options, mut gradients) =
                    (RunOptions { scale: 0.25, loss, ..RunOptions::PLAIN }, Gradients::default());
                let sum = engine::forward_backward(model, &batch, options, &mut gradients).unwrap();
                (sum, named(&gradients))
            };
            let right = learn(&fixture.model(DType::F64, None));
            for &(dtype, most) in types {
                let found = learn(&on(&card, fixture.model(dtype, None)));
                compare(&format!("{family} {dtype:?}, {loss:?}"), &found, &right, most, &mut failures);
            }
        }
    }
}

/// A family below a head with so many scores.
fn scoring(family: &str, scores: usize, dtype: DType, lora: Option<LoraOptions>) -> Decoder {
    let mut fixture = fixture(family);
    let spec = ModelSpec::from_json(&fixture.config).unwrap().with_scores(scores);
    // Numbers that bf16 has.
    let head = (0..scores * spec.hidden_size).map(|i| ((i * 31) % 17) as f32 / 64.0 - 0.125).collect();
    let head = Tensor::from_vec(head, (scores, spec.hidden_size), &Device::Cpu).unwrap();
    fixture.weights.insert("score.weight".into(), head);
    let weights = WithHead::new(&fixture.weights, &spec, &fixture.config, 1).unwrap();
    let options = LoadOptions { dtype, device: Compute::Processor, train_weights: lora.is_none(), lora };
    let model = Decoder::load(spec.clone(), &weights, &options).unwrap();
    shake(&model);
    model
}

/// Scores where sequences end, as of a reward model or a classifier, and at many tokens, as of a value model: what they are, and the
/// gradients of what is minimized of them, with all weights and with adapters; the same bits with checkpointing.
#[test]
fn heads_that_score() {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    for (scores, at_ends, has_adapters) in [(1, true, false), (3, true, true), (1, false, true), (3, false, false)] {
        let mut batch = fixture("llama_tied").batch();
        score(&mut batch, scores, at_ends);
        let modules = vec![LoraModule::QProj, LoraModule::DownProj];
        let adapters = || has_adapters.then(|| LoraOptions { modules: modules.clone(), ..lora() }.with_head());
        let learn = |model: &Decoder, activation_checkpointing: bool| -> Learnt {
            let options = RunOptions { scale: 0.25, activation_checkpointing, dropout: Some(11), ..RunOptions::PLAIN };
            let mut gradients = Gradients::default();
            let value = engine::minimize_scores(model, &batch, options, &mut gradients, |scores| {
                let slope = |i: usize| 0.5 + (i % 3) as f64;
                let value = 5.0 + scores.iter().enumerate().map(|(i, s)| slope(i) * s).sum::<f64>();
                Ok(Objective { value, gradient: (0..scores.len()).map(slope).collect() })
            });
            (value.unwrap(), named(&gradients))
        };
        let plain = scoring("llama_tied", scores, DType::F64, adapters());
        let (right, of_right) = (learn(&plain, false), engine::scores(&plain, &batch).unwrap());
        assert!(right.1.keys().any(|name| name.contains("score")), "{:?}", right.1.keys());
        for (dtype, most) in [(DType::F32, 2e-5), (DType::BF16, 8e-2)] {
            let what = format!("{scores} scores, at ends {at_ends}, adapters {has_adapters}, {dtype:?}");
            let model = on(&card, scoring("llama_tied", scores, dtype, adapters()));
            let found = learn(&model, false);
            compare(&what, &found, &right, most, &mut failures);
            failures.unless(found == learn(&model, true), || format!("{what}: other bits with checkpointing"));
            let off = error(&engine::scores(&model, &batch).unwrap(), &of_right);
            failures.unless(off <= most, || format!("{what}: scores are off by {off:.1e}"));
        }
    }
}

/// Has a batch's trained positions be scored, or of each sequence the last of them alone.
fn score(batch: &mut Batch, scores: usize, at_ends: bool) {
    for span in batch.spans.clone() {
        let at = batch.positions_of(&span);
        let last = at.clone().rev().find(|&i| batch.targets[i] != IGNORE);
        for i in at {
            if batch.targets[i] == IGNORE {
                continue;
            }
            let is_scored = !at_ends || Some(i) == last;
            batch.targets[i] = if is_scored { (i % scores) as u32 } else { IGNORE };
        }
    }
}

//! Losses and the gradient of every parameter, of every family, fully trained and with adapters; sequences that grow.

use std::sync::Arc;

use candle_core::DType;
use tune_core::config::say;
use tune_core::device::Compute;
use tune_core::engine::{self, Objective, RunOptions, Sequences};
use tune_core::models::{Decoder, TrainedTokens};
use tune_core::optim::Gradients;
use tune_core::peft::{LoraModule, LoraOptions};

use super::{Failures, card, error, families, fixture, lora, run, shake, values};

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

fn compare(lora: impl Fn(&str) -> Option<LoraOptions>) {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    for family in families() {
        let fixture = fixture(family);
        let (batch, model) = (fixture.batch(), |dtype| {
            let model = fixture.model(dtype, lora(family));
            shake(&model);
            model
        });
        let (right, right_gradients) = run(&model(DType::F64), &batch, false);
        for &(dtype, tolerance) in types(family) {
            let mut on_card = model(dtype);
            on_card.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
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
    compare(|_| Some(lora()));
}

/// Rows of single tokens, those of a tied table in the output layer, too.
#[test]
fn adapters_with_rows_of_tokens() {
    let modules = vec![LoraModule::QProj, LoraModule::DownProj];
    compare(|family| {
        let tied = fixture(family).model(DType::F32, None).config.tie_word_embeddings;
        let output_tokens = if tied { TrainedTokens::default() } else { TrainedTokens::of(&[23, 4]) };
        let tokens = TrainedTokens::of(&[9, 2, 23]);
        Some(LoraOptions { modules: modules.clone(), tokens, output_tokens, ..lora() })
    });
}

#[test]
fn objectives_and_log_probabilities() {
    let Some(card) = card() else { return };
    let fixture = fixture("llama_tied");
    let batch = fixture.batch();
    let (plain, mut on_card) = (fixture.model(DType::F64, None), fixture.model(DType::F32, None));
    on_card.compute_on(&Compute::Card(card)).unwrap();
    let close = |what: &str, a: &[f64], b: &[f64]| assert!(error(a, b) < 2e-5, "{what}: {:e}", error(a, b));
    close("loss", &[engine::evaluate(&on_card, &batch).unwrap()], &[engine::evaluate(&plain, &batch).unwrap()]);
    close(
        "log-probabilities",
        &engine::log_probs(&on_card, &batch).unwrap(),
        &engine::log_probs(&plain, &batch).unwrap(),
    );
    let tempered = |model| engine::log_probs_at(model, &batch, 0.7).unwrap();
    close("log-probabilities at a temperature", &tempered(&on_card), &tempered(&plain));
    let logits = |model| values(&engine::logits(model, &batch).unwrap());
    close("logits", &logits(&on_card), &logits(&plain));
    let minimized = |model: &Decoder, temperature: f64| {
        let options = RunOptions { scale: 0.5, temperature, ..RunOptions::PLAIN };
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
    for temperature in [1.0, 0.7, 2.5] {
        close(&format!("at {temperature}"), &minimized(&on_card, temperature), &minimized(&plain, temperature));
    }
}

/// Sequences that grow: some by many tokens, some by one, which other kernels compute.
#[test]
fn sequences_that_grow() {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    for family in families() {
        let fixture = fixture(family);
        let plain = fixture.model(DType::F64, None);
        for &(dtype, tolerance) in types(family) {
            let mut on_card = fixture.model(dtype, None);
            on_card.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
            let [mut here, mut there] =
                [&plain, &on_card].map(|model| Sequences::new(model, &[20, 20], engine::Kernels::OfTraining).unwrap());
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

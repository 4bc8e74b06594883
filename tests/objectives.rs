//! A recipe that minimizes something of its own: weighted cross-entropy, and functions of sequences' log-probabilities.

#![allow(clippy::unwrap_used)]

#[path = "common/families.rs"]
mod families;

use candle_core::{DType, Device, Tensor};
use families::Fixture;
use tune_core::data::Batch;
use tune_core::engine::{Objective, RunOptions, forward_backward, log_probs, minimize};
use tune_core::models::Decoder;
use tune_core::optim::Gradients;

const OPTIONS: RunOptions = RunOptions { scale: 0.5, ..RunOptions::PLAIN };

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn all(gradients: &Gradients) -> Vec<(String, Vec<f64>)> {
    gradients.iter().map(|(name, g)| (name.to_string(), values(&g.to_tensor().unwrap()))).collect()
}

/// Preference of the first sample to the others, as DPO has it: `-ln sigmoid(0.1 (log p(first) - log p(second)))`.
fn preference(batch: &Batch, log_probs: &[f64]) -> Objective {
    let of = |span: usize| {
        let span = &batch.spans[span];
        let start = span.row * batch.len + span.start;
        start..start + span.len
    };
    let sum = |span: usize| log_probs[of(span)].iter().sum::<f64>();
    let margin = 0.1 * (sum(0) - sum(1));
    let slope = -0.1 / (1.0 + margin.exp());
    let mut gradient = vec![0.0; log_probs.len()];
    gradient[of(0)].fill(slope);
    gradient[of(1)].fill(-slope);
    Objective { value: (1.0 + (-margin).exp()).ln(), gradient }
}

fn run(model: &Decoder, batch: &Batch, temperature: f64) -> (f64, Vec<(String, Vec<f64>)>) {
    let mut gradients = Gradients::default();
    let options = RunOptions { temperature, ..OPTIONS };
    let value = minimize(model, batch, options, &mut gradients, |l| Ok(preference(batch, l))).unwrap();
    (value, all(&gradients))
}

#[test]
fn weights_of_one_are_cross_entropy_to_the_last_bit() {
    let fixture = Fixture::read("mistral");
    let batch = fixture.batch();
    for dtype in [DType::F32, DType::BF16] {
        let model = fixture.model(dtype, None);
        let (mut plain, mut weighted) = (Gradients::default(), Gradients::default());
        let loss = forward_backward(&model, &batch, OPTIONS, &mut plain).unwrap();
        let value = minimize(&model, &batch, OPTIONS, &mut weighted, |l| {
            Ok(Objective { value: -l.iter().sum::<f64>(), gradient: vec![-1.0; l.len()] })
        })
        .unwrap();
        assert_eq!(value, loss);
        assert_eq!(all(&plain), all(&weighted));
        let sum: f64 = log_probs(&model, &batch).unwrap().iter().sum();
        assert_eq!(-sum, loss);
    }
}

#[test]
fn the_gradient_of_a_preference_is_its_slope() {
    slope("llama_tied", 1.0, &[(DType::F32, 1e-4), (DType::BF16, 6e-2)]);
}

/// Of logits that are capped, too, which are divided thereafter.
#[test]
fn the_gradient_at_a_temperature_is_its_slope() {
    slope("gemma2", 0.7, &[(DType::F32, 1e-3)]);
}

/// `followed` are types in which gradients are off by such a share of their length at most.
fn slope(family: &str, temperature: f64, followed: &[(DType, f64)]) {
    let fixture = Fixture::read(family);
    let batch = fixture.batch();
    assert!(batch.spans.len() >= 2, "a sample that is preferred to another");
    let model = fixture.model(DType::F64, None);
    let (value, gradients) = run(&model, &batch, temperature);
    assert!(value > 0.0);
    for (name, gradient) in &gradients {
        let (largest, right) = gradient.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
        let var = model.trainable().get(name).unwrap().var();
        let base = values(var);
        let at = |delta: f64| {
            let mut moved = base.clone();
            moved[largest] += delta;
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
            run(&model, &batch, temperature).0
        };
        let slope = OPTIONS.scale * (at(1e-5) - at(-1e-5)) / 2e-5;
        at(0.0);
        assert!((slope - right).abs() <= 1e-5 * right.abs().max(1e-4), "{name}: {right} instead of {slope}");
    }
    // The engines in f32 and bf16 follow the plain one.
    for &(dtype, tolerance) in followed {
        for ((name, ours), (_, right)) in run(&fixture.model(dtype, None), &batch, temperature).1.iter().zip(&gradients)
        {
            let square = |x: f64| x * x;
            let length = right.iter().copied().map(square).sum::<f64>().sqrt();
            let off = ours.iter().zip(right).map(|(a, b)| square(a - b)).sum::<f64>().sqrt();
            assert!(off <= tolerance * length, "{dtype:?} {name}: off by {:.3e} of its length", off / length);
        }
    }
}

#[test]
fn an_objective_that_fails_or_does_not_fit_is_an_error() {
    let fixture = Fixture::read("llama_tied");
    let (model, batch) = (fixture.model(DType::F32, None), fixture.batch());
    let mut sink = Gradients::default();
    let short = minimize(&model, &batch, OPTIONS, &mut sink, |_| Ok(Objective { value: 0.0, gradient: vec![1.0] }));
    assert!(short.unwrap_err().to_string().contains("has 1 numbers"));
    let fail = |_: &[f64]| Err(tune_core::Error::Training("no reward for this batch".into()));
    let failed = minimize(&model, &batch, OPTIONS, &mut sink, fail);
    assert!(failed.unwrap_err().to_string().contains("no reward"));
    assert_eq!(sink.iter().count(), 0);
}

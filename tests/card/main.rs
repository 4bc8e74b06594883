//! A card computes what the plain loops in f64 compute, and takes the steps that the processor takes. Without a card there is a
//! stand-in ([`stand_in`]), on which the very kernels run; where a card must be, `TUNE_TEST_CARD=1` says so.

#![allow(clippy::unwrap_used)]

#[path = "../common/blocks.rs"]
mod blocks;
mod drawn;
mod experts;
mod fake_quantization;
#[path = "../common/families.rs"]
mod families;
mod gradients;
mod graphs;
mod made_up;
mod methods;
mod quantized;
mod speed;
#[path = "../common/stand_in.rs"]
mod stand_in;
mod steps;
mod streams;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};
use families::Fixture;
use tune_core::config::complain;
use tune_core::data::Batch;
use tune_core::engine::{Card, EmbeddingNoise, RunOptions, forward_backward};
use tune_core::models::Decoder;
use tune_core::optim::Gradients;
use tune_core::peft::{LoraModule, LoraOptions};

use LoraModule::{DownProj, GateProj, KProj, LmHead, OProj, QProj, Router, UpProj, VProj};

const ALL: [&str; 10] = [
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

/// The families that are compared: all, or those that `TUNE_TEST_FAMILIES` names.
fn families() -> Vec<&'static str> {
    let named = std::env::var("TUNE_TEST_FAMILIES").ok();
    ALL.into_iter().filter(|family| named.as_ref().is_none_or(|named| named.split(',').any(|n| n == *family))).collect()
}

/// The card, if there is one.
fn card() -> Option<Arc<Card>> {
    static CARD: OnceLock<Option<Arc<Card>>> = OnceLock::new();
    let open = || match Card::open(0) {
        Ok(card) => Some(card),
        Err(error) => {
            assert!(std::env::var_os("TUNE_TEST_CARD").is_none(), "{error}");
            complain!("nothing is compared here, for there is no card: {error}");
            None
        }
    };
    CARD.get_or_init(open).clone()
}

/// Adapters on all layers.
fn lora() -> LoraOptions {
    let modules = vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj, LmHead, Router];
    LoraOptions { modules, rank: 3, alpha: 6.0, dropout: 0.1, seed: 5, ..Default::default() }
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

const NOISE: Option<EmbeddingNoise> = Some(EmbeddingNoise { alpha: 0.5, key: 11 });

fn run(model: &Decoder, batch: &Batch, checkpointing: bool) -> (f64, Gradients) {
    let mut gradients = Gradients::default();
    let scale = 1.0 / batch.trained_tokens() as f64;
    let options = RunOptions {
        scale,
        activation_checkpointing: checkpointing,
        dropout: Some(11),
        noise: NOISE,
        ..RunOptions::PLAIN
    };
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

/// All that can be tested without a card, on one that is made of the processor. It runs a kernel at a time, so each test has one of its own,
/// and as many are run at once as there are processors.
#[test]
fn on_a_stand_in() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() {
        return;
    }
    let Some(folder) = stand_in::folder() else { return };
    let test = |arguments: &[&str]| {
        let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
        tests.args(arguments).env("TUNE_TEST_CARD", "1");
        tests.env("TUNE_TEST_FAMILIES", "llama_tied,qwen2,qwen3_moe,gemma3_text");
        stand_in::environment(&mut tests, folder);
        let output = tests.output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{said}");
        said
    };
    let listed = test(&["--list", "--format=terse"]);
    let names: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert!(names.len() > 1, "{listed}");
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let said = test(&[name, "--exact"]);
            assert!(said.contains("running 1 test"), "{said}");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(run);
        }
    });
}

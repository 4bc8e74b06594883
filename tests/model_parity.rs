//! Every model family against `transformers`: logits, loss and the gradient of every parameter,
//! on the tiny random checkpoints that `fixtures/families/generate.py` makes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::engine::{RunOptions, forward_backward};
use tune_core::models::{Decoder, DecoderConfig, LoadOptions};
use tune_core::optim::Gradients;

/// Largest difference allowed, relative to the largest value of the tensor.
const TOLERANCE: f64 = 1e-4;

struct Fixture {
    config: serde_json::Value,
    weights: BTreeMap<String, Tensor>,
    expected: BTreeMap<String, Tensor>,
    gradients: BTreeMap<String, Tensor>,
}

impl Fixture {
    fn read(family: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families").join(family);
        let tensors = |file: &str| -> BTreeMap<String, Tensor> {
            candle_core::safetensors::load(dir.join(file), &Device::Cpu).unwrap().into_iter().collect()
        };
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        Self {
            config: serde_json::from_str(&config).unwrap(),
            weights: tensors("model.safetensors"),
            expected: tensors("reference.safetensors"),
            gradients: tensors("gradients.safetensors"),
        }
    }

    fn model(&self, config: &serde_json::Value) -> Decoder {
        let config = DecoderConfig::from_json(config).unwrap();
        let options = LoadOptions { dtype: DType::F32, device: Device::Cpu, train_weights: true, lora: None };
        Decoder::load(config, &self.weights, &options).unwrap()
    }

    fn batch(&self) -> Batch {
        let rows: Vec<Vec<i64>> = self.expected["input_ids"].to_vec2().unwrap();
        let labels: Vec<Vec<i64>> = self.expected["labels"].to_vec2().unwrap();
        let len = rows[0].len();
        let targets = labels.iter().flat_map(|row| {
            let next = row[1..].iter().copied().chain([-100]);
            next.map(|l| u32::try_from(l).unwrap_or(IGNORE)).collect::<Vec<_>>()
        });
        Batch {
            rows: rows.len(),
            len,
            input_ids: rows.iter().flatten().map(|&id| id as u32).collect(),
            targets: targets.collect(),
            positions: rows.iter().flat_map(|_| 0..len as u32).collect(),
            spans: (0..rows.len()).map(|row| Span { row, start: 0, len }).collect(),
            origins: vec!["fixture".into(); rows.len()],
        }
    }
}

fn assert_close(name: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims(), "{name}");
    let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let (ours, theirs) = (values(ours), values(theirs));
    let scale = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    let worst = ours.iter().zip(&theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= TOLERANCE * scale, "{name}: differs by {worst:e} where the largest value is {scale:e}");
}

fn check(family: &str, alter: impl Fn(&mut serde_json::Value)) {
    let fixture = Fixture::read(family);
    let mut config = fixture.config.clone();
    alter(&mut config);
    let model = fixture.model(&config);
    let batch = fixture.batch();
    assert_close("logits", &model.logits(&batch).unwrap(), &fixture.expected["logits"]);

    let trained = batch.trained_tokens() as f64;
    let mut all = Vec::new();
    for activation_checkpointing in [false, true] {
        let mut gradients = Gradients::default();
        let options = RunOptions { scale: 1.0 / trained, activation_checkpointing, dropout: None };
        let sum = forward_backward(&model, &batch, options, &mut gradients).unwrap();
        let loss = f64::from(fixture.expected["loss"].to_scalar::<f32>().unwrap());
        assert!((sum / trained - loss).abs() <= 1e-5 * loss, "loss {} instead of {loss}", sum / trained);
        let names: Vec<_> = gradients.iter().map(|(name, _)| name).collect();
        assert_eq!(names, fixture.gradients.keys().collect::<Vec<_>>());
        for (name, gradient) in gradients.iter() {
            assert_close(name, gradient, &fixture.gradients[name]);
        }
        all.push(gradients.iter().map(|(_, g)| g.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect::<Vec<_>>());
    }
    assert_eq!(all[0], all[1], "activation checkpointing must not change a bit");
}

/// The same settings in the form of transformers 4.
fn as_transformers_4(config: &mut serde_json::Value) {
    let mut rope = config["rope_parameters"].take();
    config["rope_theta"] = rope["rope_theta"].take();
    if rope["rope_type"] != "default" {
        config["rope_scaling"] = rope;
    }
    config.as_object_mut().unwrap().remove("rope_parameters");
}

#[test]
fn llama_with_tied_embeddings() {
    check("llama_tied", |_| {});
    check("llama_tied", as_transformers_4);
}

#[test]
fn llama_3_1_with_scaled_rotary_embeddings() {
    check("llama3_1_rope_scaled", |_| {});
    check("llama3_1_rope_scaled", as_transformers_4);
}

#[test]
fn mistral_with_a_sliding_window() {
    check("mistral", |_| {});
    check("mistral", as_transformers_4);
}

#[test]
#[should_panic(expected = "logits: differs")]
fn a_model_without_its_window_is_noticed() {
    check("mistral", |config| config["sliding_window"] = serde_json::Value::Null);
}

//! Every model family against `transformers`: logits, loss and the gradient of every parameter,
//! on the tiny random checkpoints that `fixtures/families/generate.py` makes.

#![allow(clippy::unwrap_used)]

#[path = "common/families.rs"]
mod families;

use candle_core::{DType, Tensor};
use families::Fixture;
use tune_core::engine::{self, Gradient, RunOptions, forward_backward};
use tune_core::optim::Gradients;

/// Largest difference allowed, relative to the largest value of the tensor.
const TOLERANCE: f64 = 1e-4;

fn assert_close(name: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims(), "{name}");
    let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let (ours, theirs) = (values(ours), values(theirs));
    let scale = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    let worst = ours.iter().zip(&theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= TOLERANCE * scale, "{name}: differs by {worst:e} where the largest value is {scale:e}");
}

fn check(family: &str, alter: impl Fn(&mut serde_json::Value)) {
    let mut fixture = Fixture::read(family);
    alter(&mut fixture.config);
    let model = fixture.model(DType::F32, None);
    let batch = fixture.batch();
    assert_close("logits", &engine::logits(&model, &batch).unwrap(), &fixture.expected["logits"]);

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
            assert_close(name, &gradient.to_tensor().unwrap(), &fixture.gradients[name]);
        }
        let flat = |g: &Gradient| g.to_tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        all.push(gradients.iter().map(|(_, g)| flat(g)).collect::<Vec<_>>());
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

#[test]
fn a_checkpoint_with_a_weight_that_the_model_lacks_is_refused() {
    let mut fixture = Fixture::read("llama_tied");
    let bias = fixture.weights["model.norm.weight"].clone();
    fixture.weights.insert("model.layers.0.self_attn.q_proj.bias".into(), bias);
    let config = tune_core::models::DecoderConfig::from_json(&fixture.config).unwrap();
    let options = tune_core::models::LoadOptions {
        dtype: DType::F32,
        device: candle_core::Device::Cpu,
        train_weights: false,
        lora: None,
    };
    let error = tune_core::models::Decoder::load(config, &fixture.weights, &options).unwrap_err().to_string();
    assert!(error.contains("1 weights") && error.contains("q_proj.bias"), "{error}");
}

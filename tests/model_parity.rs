//! Every model family against `transformers`: logits, loss and the gradient of every parameter,
//! on the tiny random checkpoints that `fixtures/families/generate.py` makes.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/families.rs"]
mod families;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use families::Fixture;
use tune_core::checkpoint::Checkpoint;
use tune_core::device::Compute;
use tune_core::engine::{self, Gradient, RunOptions, forward_backward};
use tune_core::models::ModelSpec;
use tune_core::optim::Gradients;

/// Largest difference allowed, relative to the largest value of the tensor.
const TOLERANCE: f64 = 1e-4;

/// The largest difference, relative to the largest value.
fn difference(name: &str, ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims(), "{name}");
    let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let (ours, theirs) = (values(ours), values(theirs));
    let scale = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    ours.iter().zip(&theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

fn check(family: &str, alter: impl Fn(&mut serde_json::Value)) {
    let mut fixture = Fixture::read(family);
    alter(&mut fixture.config);
    check_fixture(family, &fixture);
}

fn check_fixture(family: &str, fixture: &Fixture) {
    let model = fixture.model(DType::F32, None);
    let batch = fixture.batch();
    let of_logits = difference("logits", &engine::logits(&model, &batch).unwrap(), &fixture.expected["logits"]);
    assert!(of_logits <= TOLERANCE, "logits: differs by {of_logits:e} of the largest");

    let trained = batch.trained_tokens() as f64;
    let mut all = Vec::new();
    for activation_checkpointing in [false, true] {
        let mut gradients = Gradients::default();
        let options = RunOptions { scale: 1.0 / trained, activation_checkpointing, ..RunOptions::PLAIN };
        let sum = forward_backward(&model, &batch, options, &mut gradients).unwrap();
        let loss = f64::from(fixture.expected["loss"].to_scalar::<f32>().unwrap());
        assert!((sum / trained - loss).abs() <= 1e-5 * loss, "loss {} instead of {loss}", sum / trained);
        let ours = gradients.iter().map(|(name, gradient)| (name.to_string(), gradient.to_tensor().unwrap())).collect();
        let ours = stacked(ours);
        assert!(ours.keys().eq(fixture.gradients.keys()), "{:?}", ours.keys());
        let differences = ours.iter().map(|(name, ours)| (difference(name, ours, &fixture.gradients[name]), name));
        let differences: Vec<_> = differences.collect();
        let worst = differences.iter().fold(0f64, |worst, (of, _)| worst.max(*of));
        println!("{family}: logits differ by {of_logits:.1e}, gradients by {worst:.1e} of the largest value at most");
        let wrong: Vec<_> = differences.iter().filter(|(of, _)| of.is_nan() || *of > TOLERANCE).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let flat = |g: &Gradient| g.to_tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        all.push(gradients.iter().map(|(_, g)| flat(g)).collect::<Vec<_>>());
    }
    assert_eq!(all[0], all[1], "activation checkpointing must not change a bit");
}

/// The gradients of experts as transformers 5 has them: gates above inputs, and all experts in one tensor.
fn stacked(mut gradients: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let experts = |name: &String| name.split_once(".experts.").map(|(layer, _)| format!("{layer}.experts"));
    let layers: BTreeSet<String> = gradients.keys().filter_map(experts).collect();
    for layer in layers {
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        while let Some(gate) = gradients.remove(&format!("{layer}.{}.gate_proj.weight", down.len())) {
            let mut take = |name| gradients.remove(&format!("{layer}.{}.{name}_proj.weight", down.len())).unwrap();
            gate_up.push(Tensor::cat(&[gate, take("up")], 0).unwrap());
            let of_down = take("down");
            down.push(of_down);
        }
        gradients.insert(format!("{layer}.gate_up_proj"), Tensor::stack(&gate_up, 0).unwrap());
        gradients.insert(format!("{layer}.down_proj"), Tensor::stack(&down, 0).unwrap());
    }
    gradients
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
fn qwen2_with_biases() {
    check("qwen2", |_| {});
    check("qwen2", as_transformers_4);
}

#[test]
fn qwen3_with_normed_heads() {
    check("qwen3", |_| {});
    check("qwen3", as_transformers_4);
}

#[test]
fn qwen3_moe_with_experts() {
    check("qwen3_moe", |_| {});
    check("qwen3_moe_dense", |_| {});
    check("qwen3_moe", |config| {
        as_transformers_4(config);
        config["num_experts"] = config.as_object_mut().unwrap().remove("num_local_experts").unwrap();
    });
}

#[test]
fn gemma_2_with_capped_scores() {
    check("gemma2", |_| {});
    check("gemma2", as_transformers_4);
}

#[test]
fn gemma_3_with_two_rotary_tables() {
    check("gemma3_text", |_| {});
    // transformers 4 has a base for each of its tables.
    check("gemma3_text", |config| {
        let rope = config["rope_parameters"].take();
        for (key, table) in [("rope_theta", "full_attention"), ("rope_local_base_freq", "sliding_attention")] {
            config[key] = rope[table]["rope_theta"].clone();
        }
        config.as_object_mut().unwrap().remove("rope_parameters");
    });
}

#[test]
fn phi_3_with_fused_layers() {
    check("phi3", |_| {});
    check("phi3", as_transformers_4);
}

#[test]
fn olmo_2_with_norms_behind() {
    check("olmo2", |_| {});
    check("olmo2", as_transformers_4);
}

#[test]
fn gemma_1_with_scaled_embeddings() {
    check("gemma", |_| {});
    check("gemma", as_transformers_4);
}

#[test]
fn smollm_3_without_positions_in_every_fourth_block() {
    check("smollm3", |_| {});
    check("smollm3", as_transformers_4);
}

#[test]
fn phi_3_with_long_rotary_frequencies() {
    check("phi3_longrope", |_| {});
    check("phi3_longrope", as_transformers_4);
}

#[test]
fn llama_with_biases_everywhere() {
    check("llama_biases", |_| {});
}

#[test]
fn llama_with_dynamic_rotary_frequencies() {
    check("llama_dynamic", |_| {});
    check("llama_dynamic", as_transformers_4);
}

#[test]
fn qwen2_with_windows_from_its_second_block_on() {
    check("qwen2_windows", |_| {});
    // Files of transformers 4 have no `layer_types`.
    check("qwen2_windows", |config| drop(config.as_object_mut().unwrap().remove("layer_types")));
}

/// The model of text in one of text and images: its file says of the text what is not by default, its weights have longer
/// names, and those of the part that sees are left out.
#[test]
fn gemma_3_in_a_model_of_images() {
    let folder = Fixture::folder("gemma3_image");
    let stored = candle_core::safetensors::load(folder.join("model.safetensors"), &candle_core::Device::Cpu).unwrap();
    assert!(stored.keys().any(|name| name.starts_with("vision_tower.")), "{:?}", stored.keys());
    // Files of transformers 5 have either of these names, by the class that wrote them.
    let temporary = tempfile::tempdir().unwrap();
    let renamed = |name: &String| match name.strip_prefix("language_model.model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => format!("model.{name}"),
    };
    let renamed: std::collections::HashMap<String, Tensor> =
        stored.iter().map(|(name, tensor)| (renamed(name), tensor.clone())).collect();
    candle_core::safetensors::save(&renamed, temporary.path().join("model.safetensors")).unwrap();
    std::fs::copy(folder.join("config.json"), temporary.path().join("config.json")).unwrap();
    for folder in [temporary.path(), &folder] {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let weights = checkpoint
            .names()
            .map(|name| (name.to_owned(), checkpoint.tensor(name, DType::F32, &candle_core::Device::Cpu).unwrap()));
        let (config, weights) = (checkpoint.config().clone(), weights.collect());
        check_fixture("gemma3_image", &Fixture { config, weights, ..Fixture::read("gemma3_image") });
    }
    let checkpoint = Checkpoint::open(&folder).unwrap();
    // The whole file describes the same model.
    let whole: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(whole["model_type"], "gemma3");
    let (read, text) = (ModelSpec::from_json(&whole).unwrap(), ModelSpec::of(&checkpoint).unwrap());
    assert_eq!(read, text);
    // What is wrong with it is said by its name in the file.
    let mut broken = whole;
    broken["text_config"]["head_dim"] = serde_json::json!(-4);
    let config = temporary.path().join("config.json");
    std::fs::write(&config, broken.to_string()).unwrap();
    let error = ModelSpec::of(&Checkpoint::open(temporary.path()).unwrap()).unwrap_err().to_string();
    assert_eq!(error, format!("{}: `text_config.head_dim` must be a positive integer, not -4", config.display()));
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
    let config = ModelSpec::from_json(&fixture.config).unwrap();
    let options = tune_core::models::LoadOptions {
        dtype: DType::F32,
        device: Compute::Processor,
        train_weights: false,
        lora: None,
    };
    let error = tune_core::models::Decoder::load(config, &fixture.weights, &options).unwrap_err().to_string();
    assert!(error.contains("1 weights") && error.contains("q_proj.bias"), "{error}");
}

//! Models with random weights, larger than the tiny one, whose tokenizer they have.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::path::Path;

use candle_core::DType;
use serde_json::{Value, json};
use tune_core::checkpoint::{Checkpoint, hf};
use tune_core::device::Compute;
use tune_core::models::{Decoder, LoadOptions, ModelSpec, RandomWeights};

/// Writes a checkpoint into `folder`: about ten million weights, unless `own` says other sizes.
pub fn write(folder: &Path, own: &Value) {
    // As cargo says now: a test may run on another machine than it was built on.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let tiny = Checkpoint::open(Path::new(&package).join("../recipes/tiny/model")).unwrap();
    let mut config = json!({
        "model_type": "llama", "vocab_size": tiny.config()["vocab_size"], "hidden_size": 384, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 48,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "eos_token_id": tiny.config()["eos_token_id"],
    });
    own.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: true, lora: None };
    let weights = RandomWeights { seed: 1, std: 0.02 };
    let model = Decoder::load(ModelSpec::from_json(&config).unwrap(), &weights, &options).unwrap();
    let files = tiny.tokenizer_files().unwrap();
    let weights = model.merged_weights().unwrap().0;
    hf::write(folder, &config, weights, &files, tiny.generation_config().as_ref(), u64::MAX).unwrap();
}

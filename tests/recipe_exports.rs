//! What the recipes wrote is read again, by us and by others, and computes the same logits.
//!
//! With EXPORTS_DIR set, everything is written there, for `tests/python/check_exports.py` to
//! load with transformers and peft.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use runs::{newest, root, succeed};
use tune_core::checkpoint::Checkpoint;
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::peft::LoraOptions;

const LEN: usize = 40;

/// The logits of a model, with an adapter if there is one, on tokens of all kinds.
fn logits(model: &Path, adapter: Option<&Path>) -> (Tensor, Tensor) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let config = ModelSpec::from_json(checkpoint.config()).unwrap();
    let lora = adapter.map(|dir| LoraOptions::of_folder(dir).unwrap());
    let options =
        LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: lora.clone() };
    let ids: Vec<u32> = (0..LEN).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
    let model = Decoder::load(config, &checkpoint, &options).unwrap();
    if let (Some(lora), Some(dir)) = (lora, adapter) {
        lora.load_into(&model, dir).unwrap();
    }
    let wide: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let batch = Batch {
        rows: 1,
        len: LEN,
        input_ids: ids,
        targets: vec![IGNORE; LEN],
        positions: (0..LEN as u32).collect(),
        spans: vec![Span { row: 0, start: 0, len: LEN }],
        origins: vec!["made up".into()],
    };
    (Tensor::from_vec(wide, (1, LEN), &Device::Cpu).unwrap(), tune_core::engine::logits(&model, &batch).unwrap())
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn write_expected(dir: &Path, (ids, logits): &(Tensor, Tensor)) {
    let tensors: HashMap<&str, Tensor> = [("input_ids", ids.clone()), ("logits", logits.clone())].into();
    candle_core::safetensors::save(&tensors, dir.join("expected.safetensors")).unwrap();
}

/// Runs a recipe for a few steps and moves its checkpoint to `to`.
fn train(recipe: &str, run: &Path, to: &Path, extra: &[&str]) {
    let (config, output) = (format!("configs/{recipe}/tiny.yaml"), format!("output_dir={}", run.display()));
    let mut args = vec!["--config", &config, &output, "epochs=1", "max_steps_per_epoch=12"];
    args.extend(extra);
    succeed(recipe, &args);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::rename(newest(run), to).unwrap();
}

#[test]
fn recipes_leave_what_others_can_read() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let into = std::env::var_os("EXPORTS_DIR").map_or_else(|| temporary.path().join("exports"), PathBuf::from);
    let base = root().join("recipes/tiny/model");
    let before = logits(&base, None).1;

    let full = into.join("recipe_full");
    train("full", &temporary.path().join("full"), &full.join("model"), &["checkpointer.max_shard_size=1MB"]);
    assert!(full.join("model/model.safetensors.index.json").is_file());
    let trained = logits(&full.join("model"), None);
    assert!(difference(&trained.1, &before) > 0.1, "training changed next to nothing");
    write_expected(&full, &trained);

    let lora = into.join("recipe_lora");
    let extra = ["save_adapter_weights_only=false", "~exact_match", "model.apply_lora_to_output=true"];
    train("lora", &temporary.path().join("lora"), &lora.join("adapter"), &extra);
    let adapted = logits(&base, Some(&lora.join("adapter")));
    assert!(difference(&adapted.1, &before) > 0.1, "training changed next to nothing");
    write_expected(&lora, &adapted);

    let merged = into.join("recipe_merged");
    std::fs::create_dir_all(&merged).unwrap();
    std::fs::rename(lora.join("adapter/merged"), merged.join("model")).unwrap();
    let ours = logits(&merged.join("model"), None);
    assert!(difference(&ours.1, &adapted.1) < 1e-3, "merging changed the model");
    write_expected(&merged, &ours);
    let config = Checkpoint::open(merged.join("model")).unwrap().config().clone();
    assert_eq!(config["tie_word_embeddings"], false, "an adapter on the tied output layer unties it");
}

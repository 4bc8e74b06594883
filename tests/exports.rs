//! What is written is read again, by us and by others, and computes the same logits.
//!
//! With EXPORTS_DIR set, everything is written there, for `tests/python/check_exports.py` to
//! load with transformers and peft.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use tune_core::checkpoint::{Checkpoint, hf, peft};
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::peft::{LoraModule, LoraOptions, adapter_weights, set_trainable};
use tune_core::tokenizer::{TokenizerConfig, TokenizerFiles};

const CPU: Device = Device::Cpu;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn batch(vocab: usize) -> Batch {
    let (rows, len) = (2, 24);
    Batch {
        rows,
        len,
        input_ids: (0..rows * len).map(|i| (i * 7919 % vocab) as u32).collect(),
        targets: vec![IGNORE; rows * len],
        positions: (0..rows).flat_map(|_| 0..len as u32).collect(),
        spans: (0..rows).map(|row| Span { row, start: 0, len }).collect(),
        origins: vec!["made up".into(); rows],
        labels: Vec::new(),
    }
}

fn load(checkpoint: &Checkpoint, lora: Option<LoraOptions>) -> Decoder {
    let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora };
    Decoder::load(ModelSpec::from_json(checkpoint.config()).unwrap(), checkpoint, &options).unwrap()
}

fn logits(model: &Decoder, vocab: usize) -> Tensor {
    tune_core::engine::logits(model, &batch(vocab)).unwrap()
}

fn write_model(dir: &Path, base: &Checkpoint, model: &Decoder) {
    let (weights, tied) = model.merged_weights().unwrap();
    let (mut config, mut generation) = (base.config().clone(), base.generation_config());
    // The families' fixtures have no tokenizer.
    if base.tokenizer_files().is_ok_and(|files| files.files.contains_key("tokenizer.json")) {
        let (tokenizer, _) = TokenizerConfig::default().open(base).unwrap();
        let (with_stops, generation_with_stops) = tokenizer.stop_tokens().export(&config, generation.as_ref());
        (config, generation) = (with_stops, Some(generation_with_stops));
    }
    config["tie_word_embeddings"] = tied.into();
    let files = base.tokenizer_files().unwrap();
    // Small enough for several files.
    let bytes: usize = weights.values().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum();
    hf::write(dir, &config, weights, &files, generation.as_ref(), bytes as u64 / 3).unwrap();
    assert!(dir.join("model.safetensors.index.json").exists());
}

fn write_expected(dir: &Path, vocab: usize, logits: &Tensor) {
    let batch = batch(vocab);
    let ids: Vec<i64> = batch.input_ids.iter().map(|&id| i64::from(id)).collect();
    let ids = Tensor::from_vec(ids, (batch.rows, batch.len), &CPU).unwrap();
    let logits = logits.reshape((batch.rows, batch.len, vocab)).unwrap();
    let tensors: std::collections::HashMap<&str, Tensor> = [("input_ids", ids), ("logits", logits)].into();
    candle_core::safetensors::save(&tensors, dir.join("expected.safetensors")).unwrap();
}

#[track_caller]
fn assert_same(a: &Tensor, b: &Tensor, tolerance: f32) {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(difference <= tolerance, "logits differ by {difference}");
}

/// Exports one model: as it is, with an adapter on `modules`, and with that adapter merged.
fn export(name: &str, checkpoint: &Path, modules: &[LoraModule], into: &Path) {
    let base = Checkpoint::open(checkpoint).unwrap();
    let vocab = base.config()["vocab_size"].as_u64().unwrap() as usize;
    let (plain, adapted, merged) =
        (into.join(name), into.join(format!("{name}_adapter")), into.join(format!("{name}_merged")));

    let model = load(&base, None);
    write_model(&plain.join("model"), &base, &model);
    let expected = logits(&model, vocab);
    write_expected(&plain, vocab, &expected);
    let written = Checkpoint::open(plain.join("model")).unwrap();
    assert_same(&logits(&load(&written, None), vocab), &expected, 0.0);

    let options =
        LoraOptions { modules: modules.to_vec(), rank: 4, alpha: 6.0, dropout: 0.0, seed: 5, ..Default::default() };
    let model = load(&written, Some(options.clone()));
    // Numbers for both matrices: fresh adapters change nothing.
    let numbers = |i: usize, t: &Tensor| {
        let count = t.elem_count();
        let values: Vec<f32> = (0..count).map(|k| ((k * 31 + i * 17) % 29) as f32 / 290.0 - 0.05).collect();
        Tensor::from_vec(values, t.dims(), &CPU).unwrap()
    };
    let values: BTreeMap<String, Tensor> =
        model.trainable().iter().map(|of| (of.name().to_string(), numbers(of.place(), of.var()))).collect();
    set_trainable(&model, &values, "the test").unwrap();
    let changed = logits(&model, vocab);
    let adapter =
        options.adapter_config(&Checkpoint::open(plain.join("model").canonicalize().unwrap()).unwrap()).unwrap();
    peft::write(&adapted.join("adapter"), &adapter, &adapter_weights(&model).unwrap(), &TokenizerFiles::default())
        .unwrap();
    write_expected(&adapted, vocab, &changed);
    let again = load(&written, Some(options.clone()));
    options.load_into(&again, &adapted.join("adapter")).unwrap();
    assert_same(&logits(&again, vocab), &changed, 0.0);
    let difference = (&changed - &expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let difference = difference.to_scalar::<f32>().unwrap();
    // Ten times what may differ when others read it.
    assert!(difference > 1e-2, "{name}: the adapter changes next to nothing: {difference}");

    write_model(&merged.join("model"), &written, &model);
    write_expected(&merged, vocab, &changed);
    let merged = Checkpoint::open(merged.join("model")).unwrap();
    assert_same(&logits(&load(&merged, None), vocab), &changed, 1e-4);
}

#[test]
fn exports_compute_what_was_exported() {
    let temporary = tempfile::tempdir().unwrap();
    let into = std::env::var_os("EXPORTS_DIR").map_or_else(|| temporary.path().to_path_buf(), PathBuf::from);
    use LoraModule::{DownProj, GateProj, GateUpProj, KProj, LmHead, OProj, QProj, QkvProj, Router, UpProj, VProj};
    let fixtures = fixtures();
    export("tied", &fixtures.join("families/llama_tied"), &[QProj, VProj], &into);
    export("scaled", &fixtures.join("families/llama3_1_rope_scaled"), &[KProj, OProj, UpProj, LmHead], &into);
    export("mistral", &fixtures.join("families/mistral"), &[GateProj, DownProj], &into);
    for family in ["qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2"] {
        export(family, &fixtures.join("families").join(family), &[QProj, VProj, DownProj], &into);
    }
    for family in ["gemma", "llama_biases", "qwen2_windows", "smollm3"] {
        export(family, &fixtures.join("families").join(family), &[QProj, VProj, DownProj], &into);
    }
    export("phi3_longrope", &fixtures.join("families/phi3_longrope"), &[QkvProj, GateUpProj], &into);
    export("gemma3_image", &fixtures.join("families/gemma3_image"), &[QProj, VProj, DownProj], &into);
    let of_experts = [QProj, VProj, GateProj, UpProj, DownProj, Router];
    export("qwen3_moe", &fixtures.join("families/qwen3_moe"), &of_experts, &into);
    export("qwen3_moe_dense", &fixtures.join("families/qwen3_moe_dense"), &of_experts, &into);
    export("qwen3_moe_down", &fixtures.join("families/qwen3_moe_dense"), &[DownProj], &into);
    export("phi3", &fixtures.join("families/phi3"), &[QkvProj, GateUpProj], &into);
    export("gguf_tied", &fixtures.join("gguf/smollm.gguf"), &[QProj, KProj, VProj, OProj], &into);
    export("gguf_spm", &fixtures.join("gguf/spm.gguf"), &[QProj], &into);
}

/// Adapters whose layers differ, as peft saved them: they compute what they do in peft, and so they do when they are
/// written again. `tests/python/make_peft_layers.py` makes them.
#[test]
fn layers_of_their_own_compute_what_peft_computes() {
    let temporary = tempfile::tempdir().unwrap();
    let into = std::env::var_os("EXPORTS_DIR").map_or_else(|| temporary.path().to_path_buf(), PathBuf::from);
    let base = Checkpoint::open(fixtures().join("../../recipes/tiny/model").canonicalize().unwrap()).unwrap();
    for case in ["patterns", "rslora", "some_layers", "one_layer", "excluded", "excluded_by_pattern"] {
        let dir = fixtures().join("peft_layers").join(case);
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        let numbers =
            |key: &str| expected[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        let ids: Vec<u32> = numbers("ids").into_iter().map(|id| id as u32).collect();
        let len = ids.len();
        let batch = Batch {
            rows: 1,
            len,
            input_ids: ids,
            targets: vec![IGNORE; len],
            positions: (0..len as u32).collect(),
            spans: vec![Span { row: 0, start: 0, len }],
            origins: vec!["made up".into()],
            labels: Vec::new(),
        };
        let of_last = |model: &Decoder| -> Vec<f32> {
            let logits = tune_core::engine::logits(model, &batch).unwrap();
            logits.reshape((len, numbers("logits").len())).unwrap().to_vec2().unwrap().remove(len - 1)
        };
        let options = LoraOptions::of_folder(&dir).unwrap();
        let model = load(&base, Some(options.clone()));
        options.load_into(&model, &dir).unwrap();
        let ours = of_last(&model);
        for (ours, peft) in ours.iter().zip(numbers("logits")) {
            assert!((f64::from(*ours) - peft).abs() < 2e-4, "{case}: {ours}, not {peft}");
        }
        let folder = into.join(format!("layers_{case}"));
        let again = folder.join("adapter");
        peft::write(
            &again,
            &options.adapter_config(&base).unwrap(),
            &adapter_weights(&model).unwrap(),
            &TokenizerFiles::default(),
        )
        .unwrap();
        let options = LoraOptions::of_folder(&again).unwrap();
        let model = load(&base, Some(options.clone()));
        options.load_into(&model, &again).unwrap();
        assert_eq!(of_last(&model), ours, "{case}");
        let vocab = base.config()["vocab_size"].as_u64().unwrap() as usize;
        write_expected(&folder, vocab, &logits(&model, vocab));
    }
}

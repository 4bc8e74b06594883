//! What is handed on is what was trained: merged folders, GGUF files of every family, adapters for llama.cpp; and each kind of
//! damage is found.

#![allow(clippy::unwrap_used)]

mod adapters;
mod damage;
mod formats;
mod importance_matrices;
mod token_rows;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tune_core::artifact::{Findings, Prompts, Source, Target, importance, proof};
use tune_core::checkpoint::gguf::adapter::AdapterExport;
use tune_core::checkpoint::gguf::{Export, FileKind, Importance, modelfile};
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::checkpoint::{Checkpoint, peft};
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::engine::{Kernels, Sequences};
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::peft::{LoraModule, LoraOptions, adapter_weights, set_trainable};
use tune_core::tokenizer::{TokenizerConfig, TokenizerFiles};

use LoraModule::{DownProj, GateProj, GateUpProj, KProj, LmHead, OProj, QProj, QkvProj, Router, UpProj, VProj};

const FAMILIES: [&str; 10] = [
    "llama_tied",
    "llama3_1_rope_scaled",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The tokenizer of the tiny model, cut to so many tokens.
fn tokenizer(rows: u64) -> TokenizerFiles {
    let tiny = root().join("recipes/tiny/model");
    let mut json = read_json(&tiny.join("tokenizer.json"));
    let vocab: serde_json::Map<String, Value> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, id)| id.as_u64().unwrap() < rows)
        .map(|(token, id)| (token.clone(), id.clone()))
        .collect();
    let halves = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap(),
        pair => (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned()),
    };
    let merges = json["model"]["merges"].as_array().unwrap().iter().filter(|merge| {
        let (a, b) = halves(merge);
        [&a, &b, &format!("{a}{b}")].into_iter().all(|token| vocab.contains_key(token))
    });
    let merges: Vec<Value> = merges.cloned().collect();
    json["model"]["vocab"] = vocab.into();
    json["model"]["merges"] = merges.into();
    let files = [
        ("tokenizer.json".to_owned(), serde_json::to_vec(&json).unwrap()),
        ("tokenizer_config.json".to_owned(), fs::read(tiny.join("tokenizer_config.json")).unwrap()),
    ];
    TokenizerFiles { files: files.into() }
}

/// The tiny model of a family with a tokenizer, in a folder.
fn family(name: &str, into: &Path) -> PathBuf {
    let (from, to) = (root().join("tests/fixtures/families").join(name), into.join(name));
    fs::create_dir_all(&to).unwrap();
    let mut config = read_json(&from.join("config.json"));
    let rows = config["vocab_size"].as_u64().unwrap();
    config["eos_token_id"] = 1.into();
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    fs::write(to.join("generation_config.json"), json!({"eos_token_id": 1}).to_string()).unwrap();
    fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).unwrap();
    for (file, bytes) in tokenizer(rows).files {
        fs::write(to.join(file), bytes).unwrap();
    }
    to
}

/// An adapter on a model, with numbers that change what it says.
fn adapter(base: &Path, modules: &[LoraModule], seed: u64, to: &Path) -> Part {
    written(base, &LoraOptions { modules: modules.to_vec(), rank: 4, alpha: 6.0, seed, ..Default::default() }, to)
}

/// The same with magnitudes, near to those of the base.
fn dora_adapter(base: &Path, modules: &[LoraModule], to: &Path) -> Part {
    let lora =
        LoraOptions { modules: modules.to_vec(), rank: 4, alpha: 6.0, dora: true, seed: 2, ..Default::default() };
    written(base, &lora, to)
}

fn written(base: &Path, options: &LoraOptions, to: &Path) -> Part {
    let (checkpoint, seed) = (Checkpoint::open(base).unwrap(), options.seed);
    let load = LoadOptions {
        dtype: DType::F32,
        device: Compute::Processor,
        train_weights: false,
        lora: Some(options.clone()),
    };
    let model = Decoder::load(ModelSpec::from_json(checkpoint.config()).unwrap(), &checkpoint, &load).unwrap();
    let numbers = |i: usize, t: &Tensor| {
        let values: Vec<f32> =
            (0..t.elem_count()).map(|k| ((k * 31 + i * 17 + 7 * seed as usize) % 29) as f32 / 145.0 - 0.1).collect();
        let values = Tensor::from_vec(values, t.dims(), &Device::Cpu).unwrap();
        // Magnitudes of zero would leave nothing of the model.
        if t.rank() == 1 { (t.detach() * (values + 1.0).unwrap()).unwrap() } else { values }
    };
    let values = model.trainable().iter().enumerate().map(|(i, p)| (p.name().to_string(), numbers(i, p.var())));
    set_trainable(&model, &values.collect(), "the test").unwrap();
    let config = options.adapter_config(&checkpoint).unwrap();
    let (_, files) = TokenizerConfig::default().open(&checkpoint).unwrap();
    peft::write(to, &config, &adapter_weights(&model).unwrap(), &files).unwrap();
    Part { dir: to.to_owned(), weight: 1.0 }
}

fn modules_of(family: &str) -> &'static [LoraModule] {
    match family {
        "phi3" => &[QkvProj, GateUpProj],
        "qwen3_moe" => &[QProj, VProj, GateProj, UpProj, DownProj, Router],
        "llama3_1_rope_scaled" => &[KProj, OProj, UpProj, LmHead],
        "mistral" => &[GateProj, DownProj],
        _ => &[QProj, KProj, VProj, DownProj],
    }
}

/// Changes a JSON file.
fn change(path: &Path, change: impl Fn(&mut Value)) {
    let mut value = read_json(path);
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn check(path: &Path, merged: &Merged, target: &Target<'_>) -> Findings {
    let prompts = Prompts::held_out(merged.tokenizer(), merged.spec().max_position_embeddings).unwrap();
    proof::check(path, merged, target, &prompts).unwrap()
}

#[track_caller]
fn sound(path: &Path, merged: &Merged, target: &Target<'_>) -> Findings {
    let findings = check(path, merged, target);
    assert!(findings.faults.is_empty(), "{}: {:#?}", path.display(), findings.faults);
    findings
}

/// Every family in F32: the logits of the file are those of the folder, with and without an adapter merged in.
#[test]
fn gguf_files_of_every_family_compute_what_was_trained() {
    let temporary = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let base = family(name, temporary.path());
        let part = adapter(&base, modules_of(name), 1, &temporary.path().join(format!("{name}_adapter")));
        for parts in [vec![], vec![part]] {
            let merged = Source { base: base.clone(), parts: parts.clone() }.open().unwrap();
            for kind in FileKind::ALL {
                let file = temporary.path().join(format!("{name}_{}_{}.gguf", parts.len(), kind.name()));
                let export = Export::new(&merged, kind, name).unwrap_or_else(|e| panic!("{name}: {e}"));
                export.write(&file).unwrap();
                assert_eq!(fs::metadata(&file).unwrap().len(), export.bytes(), "{name}");
                let findings = sound(&file, &merged, &Target::Gguf(export));
                let distance = findings.proof.from_trained.unwrap();
                // Nothing but the order of sums, and one added to Gemma's norms.
                if kind == FileKind::F32 {
                    assert!(
                        distance.largest < if parts.is_empty() && !name.starts_with("gemma") { 1e-30 } else { 2e-4 },
                        "{name}: {distance:?}"
                    );
                }
                assert_eq!(findings.proof.base_from_trained.is_some(), !parts.is_empty());
            }
        }
    }
}

/// A merged folder in each precision, in one file and in several, is what was trained; so are weights of several adapters.
#[test]
fn merged_folders_compute_what_was_trained() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let one = adapter(&base, &[QProj, VProj], 1, &temporary.path().join("one"));
    let other = adapter(&base, &[VProj, DownProj], 2, &temporary.path().join("other"));
    let with = |parts: &[Part]| Source { base: base.clone(), parts: parts.to_vec() }.open().unwrap();
    let merged = with(std::slice::from_ref(&one));
    for (i, (dtype, shard)) in
        [(DType::F32, u64::MAX), (DType::BF16, 30_000), (DType::F16, 60_000)].into_iter().enumerate()
    {
        let to = temporary.path().join(format!("merged_{i}"));
        merged.write(&to, dtype, shard).unwrap();
        assert_eq!(to.join("model.safetensors.index.json").exists(), i > 0);
        sound(&to, &merged, &Target::Folder(dtype));
    }
    // Half of one and twice the other.
    let parts = [Part { weight: 0.5, ..one.clone() }, Part { weight: 2.0, ..other.clone() }];
    let both = with(&parts);
    let to = temporary.path().join("both");
    both.write(&to, DType::F32, u64::MAX).unwrap();
    sound(&to, &both, &Target::Folder(DType::F32));
    let weight = |merged: &Merged, name: &str| merged.tensor(name, DType::F32).unwrap();
    let name = "model.layers.0.self_attn.v_proj.weight";
    let base_weight = weight(&with(&[]), name);
    let update = |part: &Part| (weight(&with(&[Part { weight: 1.0, ..part.clone() }]), name) - &base_weight).unwrap();
    let expected = (&base_weight + ((update(&one) * 0.5).unwrap() + (update(&other) * 2.0).unwrap()).unwrap()).unwrap();
    let error = (weight(&both, name) - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    assert!(error.to_scalar::<f32>().unwrap() < 1e-6);

    // An adapter on a tied output layer unties it.
    let untied = with(&[adapter(&base, &[LmHead], 3, &temporary.path().join("head"))]);
    let to = temporary.path().join("untied");
    untied.write(&to, DType::F32, u64::MAX).unwrap();
    assert_eq!(read_json(&to.join("config.json"))["tie_word_embeddings"], false);
    sound(&to, &untied, &Target::Folder(DType::F32));
}

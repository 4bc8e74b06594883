//! Models that are made from nothing: what they begin with, and that training goes on as any other does.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use runs::{fail, newest, root, run, succeed, text};
use serde_json::{Value, json};
use tune_core::checkpoint::Checkpoint;
use tune_core::models::{FreshWeights, InitConfig, ModelSpec, WeightSource};

const CONFIG: &str = "configs/pretrain/tiny.yaml";
/// Data that other recipes read, too.
const CHAT: &str = "dataset={_component_: chat, data_files: [recipes/tiny/data/secret_code.jsonl]}";
const SHORT: [&str; 4] = ["~dataset_val", "epochs=1", "max_steps_per_epoch=6", "log_every_n_steps=1"];

fn output(dir: &Path) -> String {
    format!("output_dir={}", dir.display())
}

fn logged(output_dir: &Path, key: &str) -> Vec<f64> {
    let log = fs::read_to_string(output_dir.join("logs/metrics.jsonl")).unwrap();
    log.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()[key].as_f64()).collect()
}

/// The shape and the tokenizer of the tiny model, with changes of its `config.json`.
fn shape(dir: &Path, changes: &[(&str, Value)]) -> String {
    fs::create_dir_all(dir).unwrap();
    let model = root().join("recipes/tiny/model");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(model.join(name), dir.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap();
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    format!("checkpointer.checkpoint_dir={}", dir.display())
}

fn weights(dir: &Path) -> BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let read = |name: &str| (name.to_owned(), checkpoint.tensor(name, DType::F32, &Device::Cpu).unwrap());
    checkpoint.names().map(read).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A step that moves nothing saves what the model began with; and from that, `full` learns what `pretrain` does, to the last bit.
#[test]
fn what_begins_with_fresh_weights_is_trained_as_any_other_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // A folder without weights.
    let start = shape(&path("shape"), &[("initializer_range", json!(0.04))]);
    let pretrain = |name: &str, extra: &[&str]| {
        let output = output(&path(name));
        let args = [&["--config", CONFIG, &output, &start, CHAT, "init.scale_residual=true"][..], &SHORT, extra];
        succeed("pretrain", &args.concat());
        newest(&path(name))
    };
    let begun = pretrain("begun", &["max_steps_per_epoch=1", "optimizer.lr=0"]);
    let config: Value = serde_json::from_str(&fs::read_to_string(path("shape/config.json")).unwrap()).unwrap();
    let spec = ModelSpec::from_json(&config).unwrap();
    let init = InitConfig { std: None, scale_residual: true };
    let fresh = FreshWeights::new(&spec, &config, &init, 1).unwrap();
    let saved = weights(&begun);
    assert_eq!(saved.len(), spec.weights().len());
    for (name, shape) in spec.weights() {
        let expected = fresh.weight(&name, &shape, DType::F32, &Device::Cpu).unwrap();
        assert!(values(&saved[&name]) == values(&expected), "{name}");
    }
    let made = pretrain("made", &[]);
    let from = format!("checkpointer.checkpoint_dir={}", begun.display());
    let output = output(&path("full"));
    let same =
        ["seed=1", "batch_size=16", "optimizer.lr=3e-3", "optimizer.betas=[0.9, 0.95]", "optimizer.weight_decay=0.1"];
    let args = [&["--config", "configs/full/tiny.yaml", &output, &from, CHAT][..], &SHORT[1..], &same].concat();
    succeed("full", &args);
    assert_eq!(logged(&path("made"), "loss"), logged(&path("full"), "loss"));
    assert!(logged(&path("made"), "loss").len() == 6);
    let file = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert!(file(&made) == file(&newest(&path("full"))));
    // The same, continued.
    let output = self::output(&path("on"));
    let args = [&["--config", CONFIG, &output, &from, CHAT, "from_scratch=false", "~init"][..], &SHORT].concat();
    succeed("pretrain", &args);
    assert!(file(&made) == file(&newest(&path("on"))));
}

/// Norms that count from one, biases, and weights in bf16.
#[test]
fn families_are_made_in_both_precisions() {
    let folder = tempfile::tempdir().unwrap();
    for (name, changes) in [
        (
            "biases",
            &[("attention_bias", json!(true)), ("mlp_bias", json!(true)), ("tie_word_embeddings", json!(false))][..],
        ),
        (
            "gemma",
            &[
                ("model_type", json!("gemma")),
                ("architectures", json!(["GemmaForCausalLM"])),
                ("hidden_act", json!("gelu_pytorch_tanh")),
            ],
        ),
    ] {
        let start = shape(&folder.path().join(name).join("shape"), changes);
        for dtype in ["fp32", "bf16"] {
            let out = folder.path().join(name).join(dtype);
            let (output, dtype) = (output(&out), format!("dtype={dtype}"));
            succeed("pretrain", &[&["--config", CONFIG, &output, &start, &dtype][..], &SHORT].concat());
            let losses = logged(&out, "loss");
            // Nothing is known at first: the logarithm of the number of tokens.
            assert!(
                (losses[0] - 384f64.ln()).abs() < 0.2 && losses[5] < losses[0] - 0.5,
                "{name}, {dtype}: {losses:?}"
            );
        }
    }
}

#[test]
fn a_model_that_is_made_from_nothing_learns_and_writes() {
    let folder = tempfile::tempdir().unwrap();
    succeed("pretrain", &["--config", CONFIG, &output(folder.path())]);
    let validation = logged(folder.path(), "val_loss");
    assert!(*validation.last().unwrap() < 1.3, "{validation:?}");
    let model = format!("checkpoint_dir={}", newest(folder.path()).display());
    let args = ["--config", "configs/generate/tiny.yaml", &model, "apply_chat_template=false", "prompt=The letters"];
    let said = text(&succeed("generate", &args).stdout);
    assert!(said.trim_start().starts_with("of ") && said.contains(" are "), "{said}");
}

/// What `tune tokenize` writes is trained on as the text that it is made of.
#[test]
fn a_file_of_tokens_is_trained_on_as_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("documents.bin");
    let tokenize = || {
        let mut tune = std::process::Command::new(env!("CARGO_BIN_EXE_tune"));
        tune.current_dir(root()).args([
            "tokenize",
            "recipes/tiny/model",
            "recipes/tiny/data/documents.jsonl",
            "--output",
        ]);
        tune.arg(&file).args(["--split", "train[:90%]"]).output().unwrap()
    };
    let said = text(&tokenize().stdout);
    assert!(said.contains("documents.bin has 49395 tokens of 450 documents, 98.8 kB"), "{said}");
    assert!(text(&tokenize().stderr).contains("exists already"));
    let losses = |name: &str, dataset: &str| {
        let out = folder.path().join(name);
        let output = output(&out);
        let args = [&["--config", CONFIG, &output, dataset, "shuffle=false"][..], &SHORT].concat();
        succeed("pretrain", &args);
        logged(&out, "loss")
    };
    let of_tokens = losses(
        "tokens",
        &format!("dataset={{_component_: tokens, data_files: [{}], attend_across: true}}", file.display()),
    );
    let of_text = losses("text", "dataset.attend_across=true");
    assert_eq!(of_tokens.len(), 6);
    assert_eq!(of_tokens, of_text);
}

#[test]
fn what_cannot_begin_is_told_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let out = output(&path("out"));
    let start = shape(&path("shape"), &[]);
    let wide = shape(&path("wide"), &[("initializer_range", json!("wide"))]);
    let quantized = shape(&path("quantized"), &[("quantization_config", json!({"quant_method": "gptq"}))]);
    for (args, expected) in [
        (
            &[&*start, "from_scratch=false", "~init"][..],
            "has no weights: no *.safetensors file; `pretrain` with from_scratch=true",
        ),
        (&[&start, "from_scratch=false"], "init says how fresh weights are drawn"),
        (
            &["checkpointer.round_to=bf16"],
            "checkpointer.round_to says how weights are read, and from_scratch=true begins",
        ),
        (&[&wide], "`initializer_range` in config.json is \"wide\""),
        (&[&quantized], "the weights are quantized (gptq)"),
        (&[&start, "tokenizer.max_seq_len=null"], "needs `max_seq_len`"),
        (&["checkpointer.checkpoint_dir=/no/such/folder"], "/no/such/folder"),
    ] {
        let all = [&["--config", CONFIG, &out][..], args].concat();
        let error = fail("pretrain", &all);
        assert!(error.contains(expected), "{args:?}: {error}");
        let checked = run("pretrain", &[&["--check"], all.as_slice()].concat());
        let said = text(&checked.stdout) + &text(&checked.stderr);
        assert!(checked.status.code() == Some(1) && said.contains(expected), "{args:?}: {said}");
        assert!(!path("out").exists());
    }
}

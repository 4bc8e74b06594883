//! The recipe `reward` as a user runs it: what it learns of pairs and of labels, and what a mistake is told.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;

use runs::{fail, newest, root, run, succeed, text};
use serde_json::{Value, json};

const PAIRS: &str = "configs/reward/tiny.yaml";
const CLASSES: &str = "configs/reward/tiny_classifier.yaml";

/// What a run logged, steps and validations.
fn log(output_dir: &Path) -> (Vec<Value>, Vec<Value>) {
    let log = fs::read_to_string(output_dir.join("logs/metrics.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.partition(|record| record.get("loss").is_some())
}

fn json_in(dir: &Path, file: &str) -> Value {
    serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap()
}

#[test]
fn a_reward_model_comes_to_know_what_is_preferred() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let run =
        succeed("reward", &["--config", PAIRS, &output, "log_every_n_steps=1", "save_adapter_weights_only=false"]);
    let (steps, validations) = log(folder.path());
    for key in ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "grad_norm"] {
        assert!(steps.iter().all(|step| step[key].is_f64()), "{key}");
    }
    let (before, after) = (&validations[0], validations.last().unwrap());
    assert_eq!(before["step"].as_u64(), Some(0));
    assert!(after["val_loss"].as_f64() < before["val_loss"].as_f64(), "{before} {after}");
    assert!(after["val_rewards/accuracies"].as_f64().unwrap() > 0.9, "{after}");
    let said = text(&run.stderr);
    assert!(said.contains("accuracies 1.0000") && said.contains("Reward modeling"), "{said}");

    let saved = newest(folder.path());
    let adapter = json_in(&saved, "adapter_config.json");
    assert_eq!((&adapter["task_type"], &adapter["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["score"])));
    let config = json_in(&saved.join("merged"), "config.json");
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!((&config["num_labels"], &config["id2label"]), (&json!(1), &json!({"0": "LABEL_0"})));
    assert!(config["pad_token_id"].is_u64());
    // What has no output layer for tokens says so where tokens are wanted.
    let merged = format!("checkpoint_dir={}", saved.join("merged").display());
    let error = fail("generate", &["--config", "configs/generate/tiny.yaml", &merged]);
    assert!(error.contains("a head that scores sequences"), "{error}");
    // It is trained on from there.
    let (again, start) =
        (format!("output_dir={}", folder.path().join("again").display()), format!("checkpointer.{merged}"));
    succeed("reward", &["--config", PAIRS, &again, &start, "epochs=1", "max_steps_per_epoch=1", "log_every_n_steps=1"]);
    let (_, validations) = log(&folder.path().join("again"));
    let (there, here) = (after["val_loss"].as_f64().unwrap(), validations[0]["val_loss"].as_f64().unwrap());
    assert!((there - here).abs() < 1e-4, "{there} {here}");
}

#[test]
fn a_classifier_tells_classes_apart() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    succeed("reward", &["--config", CLASSES, &output, "log_every_n_steps=1"]);
    let (steps, validations) = log(folder.path());
    assert!(steps.iter().all(|step| step["accuracy"].is_f64()));
    let after = validations.last().unwrap();
    assert!(after["val_accuracy"].as_f64().unwrap() > 0.9, "{after}");
    let config = json_in(&newest(folder.path()), "config.json");
    assert_eq!(config["id2label"], json!({"0": "plain", "1": "secret"}));
    assert_eq!((&config["label2id"], &config["num_labels"]), (&json!({"plain": 0, "secret": 1}), &json!(2)));

    // Numbers stand for names, and rows may be shared.
    let (numbered, short) =
        (folder.path().join("numbered.jsonl"), ["epochs=1", "max_steps_per_epoch=3", "~dataset_val"]);
    let lines = fs::read_to_string(root().join("recipes/tiny/data/labelled.jsonl")).unwrap();
    fs::write(&numbered, lines.replace("\"plain\"", "0").replace("\"secret\"", "1")).unwrap();
    let losses = |name: &str, extra: &[&str]| {
        let dir = folder.path().join(name);
        let output = format!("output_dir={}", dir.display());
        succeed("reward", &[&["--config", CLASSES, &output, "log_every_n_steps=1"], &short[..], extra].concat());
        log(&dir).0.iter().map(|step| step["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let file = format!("dataset.data_files=[{}]", numbered.display());
    let named = losses("named", &[]);
    assert_eq!(named, losses("numbers", &[&file]));
    let halves = losses("halves", &["batch_size=8", "gradient_accumulation_steps=2"]);
    assert!(named.iter().zip(&halves).all(|(a, b)| (a - b).abs() < 1e-5), "{named:?} {halves:?}");
    assert_eq!(losses("packed", &["dataset.packed=true", "batch_size=1"]).len(), 3);
}

#[test]
fn mistakes_are_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    let said = |config: &str, args: &[&str]| {
        let mut all = vec!["--config", config, &output];
        all.extend(args);
        let error = fail("reward", &all);
        // `--check` says the same, unless it is about the config as a whole.
        let check = run("reward", &[&["--check"], all.as_slice()].concat());
        assert_ne!(check.status.code(), Some(0), "{args:?}");
        error
    };
    for (config, args, expected) in [
        (PAIRS, &["labels=[a, b]"][..], "pairs of answers have none: remove it"),
        (CLASSES, &["labels=[one]"], "labels must name the classes"),
        (CLASSES, &["labels=[a, a]"], "labels has `a` twice"),
        (CLASSES, &["labels=[plein, secret]"], "column `label` is \"plain\", which is no class"),
        (CLASSES, &["labels=[plein, secret]"], "the nearest is `plein`"),
        (CLASSES, &["labels=[plein, secret]"], "labelled.jsonl:2"),
        (CLASSES, &["dataset.label_column=lable"], "no column `lable`"),
        (CLASSES, &["dataset.column=txt"], "no column `txt`"),
        (PAIRS, &["dataset._component_=chat"], "preference"),
        (PAIRS, &["dataset._component_=labelled"], "texts with labels a classifier"),
        (PAIRS, &["model.new_tokens=[zebra]"], "model.new_tokens cannot be trained below a head"),
        (PAIRS, &["model.apply_lora_to_output=true"], "`score` gets an adapter"),
        (PAIRS, &["~model", "checkpointer.adapter_checkpoint=x"], "needs model.lora_rank"),
        (PAIRS, &["loss.margn=1"], "did you mean `margin`?"),
        (CLASSES, &["loss.margin=1"], "loss is about pairs of answers"),
    ] {
        let error = said(config, args);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    assert!(!dir.exists());
}

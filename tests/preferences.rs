//! The recipe `dpo` as a user runs it: what it learns, with each loss and each kind of reference, and what a mistake is told.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;

use runs::{fail, files, log, newest, numbers, root, run, succeed, text};
use serde_json::Value;

const CONFIG: &str = "configs/dpo/tiny.yaml";

/// Runs the tiny config for a few steps, each logged, into a folder of that name.
fn short(folder: &Path, name: &str, extra: &[&str]) -> Vec<Value> {
    let dir = folder.join(name);
    let output = format!("output_dir={}", dir.display());
    let mut args = vec!["--config", CONFIG, &output, "epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"];
    args.extend(["~dataset_val", "lr_scheduler.num_warmup_steps=1"]);
    args.extend(extra);
    succeed("dpo", &args);
    log(&dir)
}

#[test]
fn a_model_comes_to_prefer_what_is_preferred() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let run = succeed("dpo", &["--config", CONFIG, &output, "log_every_n_steps=1", "save_adapter_weights_only=false"]);
    let records = log(folder.path());
    let (steps, validations): (Vec<Value>, Vec<Value>) =
        records.into_iter().partition(|record| record.get("loss").is_some());
    for key in ["rewards/chosen", "rewards/rejected", "rewards/margins", "log_probs/chosen", "log_probs/rejected"] {
        assert_eq!(numbers(&steps, key).len(), steps.len(), "{key}");
    }
    // Before the first step the model is its reference.
    assert!((numbers(&steps, "loss")[0] - std::f64::consts::LN_2).abs() < 1e-6);
    assert_eq!(numbers(&steps, "rewards/accuracies")[0], 0.0);
    let before = &validations[0];
    assert_eq!((before["step"].as_u64(), before["val_rewards/accuracies"].as_f64()), (Some(0), Some(0.0)));
    let after = validations.last().unwrap();
    assert!(after["val_loss"].as_f64().unwrap() < 0.3, "{after}");
    assert!(after["val_rewards/accuracies"].as_f64().unwrap() > 0.9, "{after}");
    assert!(after["val_rewards/margins"].as_f64().unwrap() > 1.0, "{after}");
    let said = text(&run.stderr);
    assert!(said.contains("accuracies 1.0000") && said.contains("reference   the base model, which is"), "{said}");

    // The adapter and the merged model are read as those of `lora` are.
    let saved = newest(folder.path());
    assert!(saved.join("adapter_model.safetensors").is_file() && saved.join("merged/model.safetensors").is_file());
    let answer = |model: &str| {
        let args = ["--config", "configs/generate/tiny.yaml", model, "prompt=Write b-a-d-e in the secret code."];
        text(&succeed("generate", &args).stdout)
    };
    let adapted = answer(&format!("adapter_dir={}", saved.display()));
    assert_eq!(adapted, answer(&format!("checkpoint_dir={}", saved.join("merged").display())));
}

#[test]
fn each_loss_begins_where_a_model_is_its_reference() {
    let folder = tempfile::tempdir().unwrap();
    for (loss, first) in [
        ("dpo", Some(std::f64::consts::LN_2)),
        ("hinge", Some(1.0)),
        ("ipo", Some(25.0)),
        ("kto", Some(0.5)),
        ("orpo", None),
        ("simpo", None),
    ] {
        let records = short(folder.path(), loss, &[&format!("loss={loss}")]);
        let losses = numbers(&records, "loss");
        assert_eq!(losses.len(), 4, "{loss}");
        // Without a reference, what a loss begins with follows from the first pairs.
        if let Some(first) = first {
            assert!((losses[0] - first).abs() < 1e-4, "{loss}: {losses:?}");
            assert!(losses[3] < losses[0], "{loss}: {losses:?}");
        }
        assert!(numbers(&records, "grad_norm").iter().all(|&norm| norm > 0.0), "{loss}");
    }
    // Half of the labels taken to be wrong would teach nothing.
    let records = short(folder.path(), "cdpo", &["loss.label_smoothing=0.25"]);
    assert!((numbers(&records, "loss")[0] - std::f64::consts::LN_2).abs() < 1e-6);
}

#[test]
fn every_kind_of_reference_gives_the_same_run() {
    let folder = tempfile::tempdir().unwrap();
    let adapters_off = short(folder.path(), "off", &[]);
    let base = "ref_checkpointer.checkpoint_dir=recipes/tiny/model";
    for (name, extra) in [
        ("precomputed", &["reference=precomputed"][..]),
        ("second", &[base]),
        ("second_precomputed", &[base, "reference=precomputed"]),
        ("checkpointed", &["enable_activation_checkpointing=true"]),
    ] {
        let other = short(folder.path(), name, extra);
        for key in ["loss", "grad_norm", "rewards/margins", "log_probs/rejected"] {
            assert_eq!(numbers(&adapters_off, key), numbers(&other, key), "{name}: {key}");
        }
    }
    let full = short(folder.path(), "full", &["~model", "optimizer.lr=1e-5"]);
    let precomputed =
        short(folder.path(), "full_precomputed", &["~model", "optimizer.lr=1e-5", "reference=precomputed"]);
    assert_eq!(numbers(&full, "loss"), numbers(&precomputed, "loss"));
    assert!(newest(&folder.path().join("full")).join("model.safetensors").is_file());
    // Another reference is another run.
    let other = format!("ref_checkpointer.checkpoint_dir={}", newest(&folder.path().join("full")).display());
    let moved = short(folder.path(), "other", &[&other]);
    assert!(numbers(&moved, "rewards/margins")[0] != 0.0);
}

#[test]
fn a_run_that_is_resumed_does_not_ask_its_reference_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    for extra in [&["ref_checkpointer.checkpoint_dir=recipes/tiny/model"][..], &["~model", "optimizer.lr=1e-5"]] {
        let go = |start: &[&str]| {
            let keys = ["--config", CONFIG, &output, "epochs=2", "max_steps_per_epoch=2", "reference=precomputed"];
            let rest = ["lr_scheduler.num_warmup_steps=1"];
            text(&succeed("dpo", &[&keys[..], &rest, extra, start].concat()).stderr)
        };
        let asks = "Asking the reference model about the pairs";
        assert!(go(&[]).contains(asks));
        let whole = files(&newest(&dir));
        // Back to the end of the first epoch.
        fs::remove_dir_all(newest(&dir)).unwrap();
        let told = go(&["overwrite=false", "resume_from_checkpoint=true"]);
        assert!(!told.contains(asks), "{told}");
        assert!(files(&newest(&dir)) == whole, "{extra:?}");
    }
}

#[test]
fn more_pairs_in_a_step_are_a_mean_over_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let whole = short(folder.path(), "whole", &[]);
    let parts = short(folder.path(), "parts", &["batch_size=2", "gradient_accumulation_steps=4"]);
    for (a, b) in numbers(&whole, "loss").iter().zip(&numbers(&parts, "loss")) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn mistakes_are_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    let said = |args: &[&str]| {
        let mut all = vec!["--config", CONFIG, &output];
        all.extend(args);
        fail("dpo", &all)
    };
    let typo = said(&["loss.bata=0.2"]);
    assert!(typo.contains("bata") && typo.contains("did you mean `beta`?"), "{typo}");
    let unknown = said(&["loss=dop"]);
    assert!(unknown.contains("did you mean `dpo`?"), "{unknown}");
    // What trains on conversations is no dataset here, and the other way round.
    assert!(said(&["dataset._component_=chat"]).contains("preference"), "{}", said(&["dataset._component_=chat"]));
    let lora = fail("lora", &["--config", "configs/lora/tiny.yaml", &output, "dataset._component_=preference"]);
    assert!(lora.contains("preference"), "{lora}");

    let column = said(&["dataset.column_map.chosen=chosn"]);
    assert!(column.contains("no column `chosn`") && column.contains("did you mean `chosen`?"), "{column}");
    assert!(column.contains("360 of 360 records cannot be used"), "{column}");
    let conversations = said(&["dataset._component_=preference"]);
    assert!(conversations.contains("chosen: column `chosen` must be a list of messages"), "{conversations}");
    let rank = said(&["model.lora_rank=null"]);
    assert!(rank.contains("model.lora_attn_modules is about adapters, and without model.lora_rank"), "{rank}");
    let base = "ref_checkpointer.checkpoint_dir=recipes/tiny/model";
    let unused = said(&["loss=orpo", base]);
    assert!(unused.contains("this loss compares with no other model: remove ref_checkpointer"), "{unused}");
    let adapter = said(&["~model", "checkpointer.adapter_checkpoint=recipes/tiny/model"]);
    assert!(adapter.contains("checkpointer.adapter_checkpoint needs model.lora_rank"), "{adapter}");
    let adapter = said(&[base, "ref_checkpointer.adapter_checkpoint=recipes/tiny/model"]);
    assert!(adapter.contains("a reference model is a whole one: merge the adapter"), "{adapter}");
    assert!(said(&["ref_checkpointer.checkpoint_dir=nowhere"]).contains("nowhere: does not exist"));

    // A model whose tokens mean something else.
    let other = folder.path().join("other");
    fs::create_dir_all(&other).unwrap();
    for (name, bytes) in files(&root().join("recipes/tiny/model")) {
        let bytes = match name.as_str() {
            "tokenizer.json" => {
                let mut tokenizer: Value = serde_json::from_slice(&bytes).unwrap();
                let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
                let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
                vocab.insert("a".into(), b);
                vocab.insert("b".into(), a);
                tokenizer.to_string().into_bytes()
            }
            _ => bytes,
        };
        fs::write(other.join(name), bytes).unwrap();
    }
    let tokens = said(&[&format!("ref_checkpointer.checkpoint_dir={}", other.display())]);
    assert!(tokens.contains("the reference model has other tokens than the model that is trained"), "{tokens}");
    assert!(!dir.exists());
}

#[test]
fn a_run_does_not_go_on_with_another_reference() {
    let folder = tempfile::tempdir().unwrap();
    let (out, reference) = (folder.path().join("out"), folder.path().join("reference"));
    fs::create_dir_all(&reference).unwrap();
    for (name, bytes) in files(&root().join("recipes/tiny/model")) {
        fs::write(reference.join(name), bytes).unwrap();
    }
    let (output, reference_key) =
        (format!("output_dir={}", out.display()), format!("ref_checkpointer.checkpoint_dir={}", reference.display()));
    let mut args =
        vec!["--config", CONFIG, &output, &reference_key, "epochs=1", "max_steps_per_epoch=2", "overwrite=false"];
    args.extend(["~dataset_val", "lr_scheduler.num_warmup_steps=0"]);
    succeed("dpo", &args);
    args.push("resume_from_checkpoint=true");
    succeed("dpo", &args);
    let weights = reference.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let error = fail("dpo", &args);
    assert!(error.contains("cannot resume: the reference model changed since the run began"), "{error}");
    let check = run("dpo", &[&["--check"], args.as_slice()].concat());
    assert!(text(&check.stdout).contains("the reference model changed"), "{}", text(&check.stdout));
}

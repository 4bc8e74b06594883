//! Optimizer state and activations in files: the same bits, and nothing is left behind.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;

use runs::{fail, files, newest, run, succeed, text};

/// A short run of the tiny model with two checkpoints, the settings of its case, and those that keep things in files, if any.
fn train(name: &str, output: &Path, case: &[&str], offloaded: &[String]) {
    let (config, output) = (format!("configs/{name}/tiny.yaml"), format!("output_dir={}", output.display()));
    let mut args = vec!["--config", &config, &output, "epochs=1", "max_steps_per_epoch=3", "log_every_n_steps=1"];
    args.extend(["checkpointer.save_every_n_steps=2", "gradient_accumulation_steps=2"]);
    args.extend(case);
    args.extend(offloaded.iter().map(String::as_str));
    succeed(name, &args);
}

/// The keys that keep things in files, in a folder.
fn in_files(folder: &Path) -> Vec<String> {
    let folder = folder.display();
    vec![format!("optimizer.offload_dir={folder}"), format!("activation_offload_dir={folder}")]
}

/// Runs each case in memory and with files, and compares what is saved: weights, and the optimizer's state.
fn compare(cases: &[(&str, &[&str])]) {
    for (name, case) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (memory, disk) = (folder.path().join("memory"), folder.path().join("disk"));
        let scratch = folder.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        let case: Vec<&str> = [&["enable_activation_checkpointing=true"], *case].concat();
        train(name, &memory, &case, &[]);
        train(name, &disk, &case, &in_files(&scratch));
        for ((file, a), (other, b)) in files(&newest(&memory)).iter().zip(&files(&newest(&disk))) {
            assert_eq!(file, other);
            assert!(a == b, "{name} {case:?}: {file} differs");
        }
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "{name} {case:?}: a file is left");
    }
}

#[test]
fn all_weights_have_the_bits_of_a_run_in_memory() {
    compare(&[
        ("full", &["dtype=fp32", "optimizer.decay_vectors=false"]),
        ("full", &["dtype=bf16"]),
        ("full", &["gradient_accumulation_steps=1", "clip_grad_norm=null", "optimizer_in_bwd=true"]),
        ("full", &["optimizer={_component_: sgd, lr: 0.1, momentum: 0.9}", "optimizer.layerwise_lr_decay=0.9"]),
        ("full", &["dtype=bf16", "optimizer=lion", "optimizer.lr=1e-4"]),
        ("full", &["dtype=bf16", "optimizer=adamw_8bit"]),
        ("full", &["dtype=bf16", "optimizer=muon", "optimizer.lr=1e-3"]),
        ("full", &["dtype=bf16", "optimizer=schedule_free_adamw", "lr_scheduler={_component_: constant}"]),
        ("full", &["dtype=bf16", "optimizer.ema_decay=0.8"]),
        ("full", &["optimizer=adafactor", "optimizer.ema_decay=0.8"]),
        ("pretrain", &["dtype=bf16"]),
    ]);
}

#[test]
fn adapters_have_the_bits_of_a_run_in_memory() {
    compare(&[
        ("lora", &["~exact_match", "loraplus_lr_ratio=4", "model.lora_dropout=0.1"]),
        ("lora", &["~exact_match", "dtype=bf16", "model.new_tokens=[zebra]", "model.modules_to_save=norm"]),
        ("dpo", &["~dataset_val"]),
    ]);
}

/// The value model has a file of its own.
#[test]
fn a_value_model_has_the_bits_of_a_run_in_memory() {
    let short = ["batch_size=1", "samples=2", "max_new_tokens=8", "ppo_batch_size=2", "~dataset_val"];
    compare(&[("ppo", &short)]);
}

/// What cannot be is said before anything is trained.
#[test]
fn what_cannot_be_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("run").display());
    let there = folder.path().display().to_string();
    let (missing, file) = (folder.path().join("missing"), folder.path().join("file"));
    fs::write(&file, "").unwrap();
    let (missing, file) = (missing.display(), file.display());
    for (args, said) in [
        (vec![format!("optimizer.offload_dir={missing}")], "there is no such folder: make it, on a fast disk"),
        (vec![format!("optimizer.offload_dir={file}")], "name another one in optimizer.offload_dir"),
        (
            vec!["optimizer=adafactor".into(), format!("optimizer.offload_dir={there}")],
            "adafactor keeps next to nothing: leave it out",
        ),
        (
            vec!["enable_async_checkpointing=true".into(), format!("optimizer.offload_dir={there}")],
            "where enable_async_checkpointing copies it: leave out one of them",
        ),
        (vec![format!("activation_offload_dir={there}")], "set enable_activation_checkpointing=true"),
        (
            vec!["enable_activation_checkpointing=true".into(), format!("activation_offload_dir={missing}")],
            "name another one in activation_offload_dir",
        ),
    ] {
        let mut all = vec!["--config", "configs/full/tiny.yaml", &output];
        all.extend(args.iter().map(String::as_str));
        let error = fail("full", &all);
        assert!(error.contains(said), "{args:?}: {error}");
        assert!(!folder.path().join("run").exists(), "{args:?}: something was written");
    }
}

/// A plan tells how much goes where.
#[test]
fn a_plan_has_what_is_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("run").display());
    let args = in_files(folder.path());
    let args = args.iter().map(String::as_str).chain(["enable_activation_checkpointing=true", "--plan"]);
    let args: Vec<&str> = ["--config", "configs/full/tiny.yaml", &output].into_iter().chain(args).collect();
    let output = run("full", &args);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for line in ["on disk, optimizer state", "on disk, activations"] {
        let line = said.lines().find(|said| said.contains(line)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains(" MiB  in ") && line.ends_with(&folder.path().display().to_string()), "{line}");
    }
}

//! The recipe `grpo` as a user runs it: what a model learns from rewards, by which loss, and what a mistake is told.
//!
//! Each of these runs compares, at every step, the log-probabilities that answers were drawn with and those of training: a run
//! in which one differs by a bit ends with an error.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;

use runs::{fail, log, newest, numbers, run, succeed, text};
use serde_json::Value;

const CONFIG: &str = "configs/grpo/tiny.yaml";

/// Runs the tiny config for a few steps, each logged, into a folder of that name.
fn short(folder: &Path, name: &str, extra: &[&str]) -> Vec<Value> {
    let dir = folder.join(name);
    let output = format!("output_dir={}", dir.display());
    let mut args = vec!["--config", CONFIG, &output, "epochs=1", "max_steps_per_epoch=3", "log_every_n_steps=1"];
    args.extend(["~dataset_val", "lr_scheduler.num_warmup_steps=0", "samples=4", "batch_size=4"]);
    args.extend(extra);
    succeed("grpo", &args);
    log(&dir)
}

/// The shipped config from its beginning to its end, from three seeds: the rewards of the likeliest answers to words that are not trained on.
#[test]
#[ignore = "takes some minutes; CI runs it"]
fn a_model_learns_to_say_words_backwards() {
    let folder = tempfile::tempdir().unwrap();
    for seed in ["1", "2", "3"] {
        let dir = folder.path().join(seed);
        let (output, seed_key) = (format!("output_dir={}", dir.display()), format!("seed={seed}"));
        succeed("grpo", &["--config", CONFIG, &output, &seed_key]);
        let records = log(&dir);
        let (drawn, asked) = (numbers(&records, "reward"), numbers(&records, "val_reward"));
        let (before, after) = (asked[0], asked[asked.len() - 1]);
        println!("seed {seed}: rewards of drawn answers {drawn:.2?}; asked, {before:.3} before and {after:.3} after");
        assert!(before < 0.2 && after > 0.8, "seed {seed}: {before} {after}");
    }
}

#[test]
fn every_loss_is_on_policy_and_moves_the_model() {
    let folder = tempfile::tempdir().unwrap();
    for loss in ["grpo", "dr_grpo", "dapo", "gspo"] {
        for (name, extra) in [("once", "updates=1"), ("thrice", "updates=3")] {
            let name_of = format!("{loss}_{name}");
            let loss = format!("loss={loss}");
            let records = short(folder.path(), &name_of, &[&loss, extra, "kl_beta=0.05", "reward=overlap"]);
            assert!(numbers(&records, "grad_norm").iter().all(|norm| *norm > 0.0), "{loss}: {records:?}");
            // Where the model is its reference and has drawn the answers itself.
            let (divergence, clipped) = (numbers(&records, "kl"), numbers(&records, "clip_ratio"));
            match name {
                "once" => assert!(divergence[0] == 0.0 && clipped.iter().all(|share| *share == 0.0), "{records:?}"),
                _ => assert!(divergence[0] > 0.0, "{records:?}"),
            }
            assert!(divergence[2] > 0.0, "{loss}: {divergence:?}");
        }
    }
    // In bf16, with all weights, and with less memory.
    for extra in [
        &["dtype=bf16"][..],
        &["~model", "optimizer.lr=1e-5"],
        &["enable_activation_checkpointing=true"],
        // Answers that differ more: where all are alike there is nothing to learn.
        &["temperature=1.5"],
    ] {
        let records = short(folder.path(), &extra.join("_"), &[extra, &["reward=overlap"]].concat());
        assert!(numbers(&records, "grad_norm").iter().all(|norm| *norm > 0.0), "{extra:?}");
    }
}

#[test]
fn what_a_run_draws_depends_on_its_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let rewards = |name: &str, extra: &[&str]| {
        let records = short(folder.path(), name, extra);
        (numbers(&records, "reward"), numbers(&records, "grad_norm"), numbers(&records, "completions/mean_length"))
    };
    let first = rewards("first", &["reward=overlap"]);
    assert_eq!(first, rewards("again", &["reward=overlap"]));
    assert_eq!(first, rewards("checkpointed", &["reward=overlap", "enable_activation_checkpointing=true"]));
    assert_ne!(first, rewards("other", &["reward=overlap", "seed=5"]));
}

#[test]
fn a_program_rewards() {
    let folder = tempfile::tempdir().unwrap();
    // Long answers are worth more, whatever they say.
    let program = folder.path().join("reward.sh");
    fs::write(&program, "while read -r line; do echo \"{\\\"score\\\": ${#line}}\"; done\n").unwrap();
    let program = format!("reward.command=sh {}", program.display());
    let records = short(folder.path(), "program", &["reward=program", &program]);
    assert!(numbers(&records, "reward").iter().all(|reward| *reward > 50.0), "{records:?}");
    // Where all answers to each prompt are as long there is nothing to learn, and only there.
    let (norms, alike) = (numbers(&records, "grad_norm"), numbers(&records, "frac_reward_zero_std"));
    assert!(norms[0] > 0.0, "{records:?}");
    assert!(norms.iter().zip(&alike).all(|(norm, alike)| (*norm > 0.0) == (*alike < 1.0)), "{records:?}");
    let out = folder.path().join("broken");
    let output = format!("output_dir={}", out.display());
    let error =
        fail("grpo", &["--config", CONFIG, &output, "~dataset_val", "reward=program", "reward.command=echo no; cat"]);
    assert!(error.contains("reversed.jsonl:") && error.contains("wrote `no`"), "{error}");
}

#[test]
fn an_adapter_that_was_trained_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    short(folder.path(), "first", &["save_adapter_weights_only=false", "reward=overlap"]);
    let saved = newest(&folder.path().join("first"));
    assert!(saved.join("adapter_model.safetensors").is_file() && saved.join("merged/model.safetensors").is_file());
    let start = format!("checkpointer.adapter_checkpoint={}", saved.display());
    // The reference is the model without the adapter.
    let records = short(folder.path(), "second", &[&start, "kl_beta=0.1"]);
    assert!(numbers(&records, "kl")[0] > 0.0);
}

#[test]
fn mistakes_are_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    let expect = |args: &[&str], expected: &str| {
        let all = [&["--config", CONFIG, &output][..], args].concat();
        let said = fail("grpo", &all);
        assert!(said.contains(expected), "{expected}: {said}");
        let checked = run("grpo", &[&["--check"], all.as_slice()].concat());
        let checked = text(&checked.stdout) + &text(&checked.stderr);
        assert!(checked.contains(expected), "{expected}: {checked}");
    };
    expect(&["loss=grop"], "did you mean `grpo`?");
    expect(&["samples=1"], "samples");
    expect(&["reward=programm"], "did you mean `program`?");
    expect(&["max_new_tokens=256"], "max_new_tokens is 256, and the model reads 256 tokens at most");
    expect(&["model.lora_dropout=0.1"], "set model.lora_dropout=0");
    expect(&["~model", "loraplus_lr_ratio=4"], "loraplus_lr_ratio needs model.lora_rank");
    assert!(!dir.exists());
}

//! The recipe `ppo` as a user runs it: what a model and its value model learn, from what, and what a mistake is told.
//!
//! In each of these runs the log-probabilities that answers were drawn with are compared with those of training: a run in which one
//! differs by a bit ends with an error.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};

use runs::{fail, log, newest, numbers, run, succeed, text};
use serde_json::Value;

const CONFIG: &str = "configs/ppo/tiny.yaml";

/// Runs the tiny config for a few steps, each logged, into a folder of that name.
fn short(folder: &Path, name: &str, extra: &[&str]) -> Vec<Value> {
    let dir = folder.join(name);
    let output = format!("output_dir={}", dir.display());
    let mut args = vec!["--config", CONFIG, &output, "epochs=1", "max_steps_per_epoch=3", "log_every_n_steps=1"];
    args.extend(["~dataset_val", "lr_scheduler.num_warmup_steps=0", "samples=4", "batch_size=4"]);
    args.extend(extra);
    succeed("ppo", &args);
    log(&dir)
}

/// A reward model that has learnt a little.
fn reward_model(folder: &Path) -> PathBuf {
    let dir = folder.join("reward");
    let output = format!("output_dir={}", dir.display());
    succeed(
        "reward",
        &["--config", "configs/reward/tiny.yaml", &output, "~model", "epochs=1", "max_steps_per_epoch=3"],
    );
    newest(&dir)
}

/// The shipped config from its beginning to its end: the rewards of the likeliest answers to words that are not trained on.
#[test]
#[ignore = "takes some minutes; CI runs it"]
fn a_model_learns_to_say_words_backwards() {
    for seed in ["seed=1", "seed=2", "seed=3"] {
        let folder = tempfile::tempdir().unwrap();
        let output = format!("output_dir={}", folder.path().display());
        succeed("ppo", &["--config", CONFIG, &output, seed]);
        let records = log(folder.path());
        let (drawn, asked) = (numbers(&records, "reward"), numbers(&records, "val_reward"));
        let (before, after) = (asked[0], asked[asked.len() - 1]);
        println!("{seed}: rewards of drawn answers {drawn:.2?}; asked, {before:.3} before and {after:.3} after");
        assert!(before < 0.2 && after > 0.8, "{seed}: {before} {after}");
    }
}

/// Where every answer is worth 1, so is every token.
#[test]
fn a_value_model_learns_what_answers_are_worth() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("reward.sh");
    fs::write(&program, "while read -r line; do echo '{\"score\": 1}'; done\n").unwrap();
    let command = format!("reward.command=sh {}", program.display());
    let extra = ["reward=program", &command, "max_steps_per_epoch=8", "kl_coeff=0", "loss.value_clip_range=1"];
    let records = short(folder.path(), "constant", &extra);
    let (losses, values) = (numbers(&records, "value_loss"), numbers(&records, "value"));
    assert!(values[0].abs() < 0.5 && losses[7] < 0.5 * losses[0], "{losses:?} {values:?}");
    assert!((values[7] - 1.0).abs() < (values[0] - 1.0).abs(), "{values:?}");
}

#[test]
fn it_is_on_policy_and_moves_both_models() {
    let folder = tempfile::tempdir().unwrap();
    let overlap = ["reward=overlap", "kl_coeff=0.05"];
    for (name, extra) in [
        ("once", &["ppo_epochs=1"][..]),
        ("thrice", &["ppo_epochs=3"]),
        ("in_parts", &["gradient_accumulation_steps=3", "ppo_batch_size=8", "ppo_epochs=2"]),
        ("whitened", &["whiten_rewards=true", "gamma=0.9", "value_lr=1e-4"]),
        ("checkpointed", &["enable_activation_checkpointing=true"]),
        ("bf16", &["dtype=bf16"]),
        ("tempered", &["temperature=0.7"]),
        ("all_weights", &["~model", "optimizer.lr=1e-5"]),
    ] {
        let records = short(folder.path(), name, &[&overlap[..], extra].concat());
        assert!(numbers(&records, "grad_norm").iter().all(|norm| *norm > 0.0), "{name}: {records:?}");
        // Where the model is its reference and has drawn the answers itself.
        let (divergence, clipped) = (numbers(&records, "kl"), numbers(&records, "clip_ratio"));
        assert_eq!(divergence[0], 0.0, "{name}");
        assert!(divergence[1] != 0.0, "{name}: {divergence:?}");
        match name {
            "once" => {
                assert!(clipped.iter().all(|share| *share == 0.0), "{clipped:?}");
                assert!(numbers(&records, "approx_policy_kl").iter().all(|moved| *moved == 0.0), "{records:?}");
            }
            _ => assert!(numbers(&records, "approx_policy_kl")[2] > 0.0, "{name}"),
        }
        let losses = numbers(&records, "value_loss");
        assert!(losses.len() == 3 && losses.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{name}: {losses:?}");
    }
}

#[test]
fn what_a_run_draws_depends_on_its_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let found = |name: &str, extra: &[&str]| {
        let records = short(folder.path(), name, extra);
        (numbers(&records, "reward"), numbers(&records, "grad_norm"), numbers(&records, "value_loss"))
    };
    let first = found("first", &["reward=overlap"]);
    assert_eq!(first, found("again", &["reward=overlap"]));
    assert_eq!(first, found("checkpointed", &["reward=overlap", "enable_activation_checkpointing=true"]));
    assert_ne!(first, found("other", &["reward=overlap", "seed=5"]));
}

/// A reward model scores answers to plain texts, and the value model begins as it and is saved as one.
#[test]
fn a_reward_model_says_what_answers_are_worth() {
    let folder = tempfile::tempdir().unwrap();
    let rewards = reward_model(folder.path());
    let (judge, value) = (
        format!("reward_checkpointer.checkpoint_dir={}", rewards.display()),
        format!("value_checkpointer.checkpoint_dir={}", rewards.display()),
    );
    let texts = folder.path().join("texts.jsonl");
    let lines: String = (0..24).map(|i| format!("{{\"text\": \"The secret word of {i} is\"}}\n")).collect();
    fs::write(&texts, lines).unwrap();
    let texts = format!("dataset={{_component_: text, data_files: [{}], add_eos: false}}", texts.display());
    let extra =
        [&*judge, &*value, &*texts, "penalise_no_eos=true", "reward_penalty=-9", "save_adapter_weights_only=false"];
    let records = short(folder.path(), "judged", &extra);
    let (worth, cut) = (numbers(&records, "reward"), numbers(&records, "completions/clipped_ratio"));
    assert!(worth.iter().all(|worth| worth.is_finite()), "{worth:?}");
    assert!(cut.iter().zip(&worth).all(|(cut, worth)| *cut < 1.0 || *worth == -9.0), "{cut:?} {worth:?}");
    let saved = newest(&folder.path().join("judged"));
    assert!(saved.join("adapter_model.safetensors").is_file() && saved.join("merged/model.safetensors").is_file());
    let config: Value = serde_json::from_slice(&fs::read(saved.join("value/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForSequenceClassification");
    assert_eq!(config["id2label"].as_object().unwrap().len(), 1);
    let moved = fs::read(saved.join("value/model.safetensors")).unwrap();
    assert_ne!(moved, fs::read(rewards.join("model.safetensors")).unwrap());
    // What was saved is a value model to begin with, and a reward model.
    let again = [
        format!("value_checkpointer.checkpoint_dir={}", saved.join("value").display()),
        format!("reward_checkpointer.checkpoint_dir={}", saved.join("value").display()),
    ];
    short(folder.path(), "again", &[&again[0], &again[1]]);
}

#[test]
fn mistakes_are_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    let expect = |args: &[&str], expected: &str| {
        let all = [&["--config", CONFIG, &output][..], args].concat();
        let said = fail("ppo", &all);
        assert!(said.contains(expected), "{expected}: {said}");
        let checked = run("ppo", &[&["--check"], all.as_slice()].concat());
        let checked = text(&checked.stdout) + &text(&checked.stderr);
        assert!(checked.contains(expected), "{expected}: {checked}");
    };
    let plain = "checkpointer.checkpoint_dir=recipes/tiny/model";
    expect(&["ppo_batch_size=24"], "ppo_batch_size=24 is no multiple of batch_size=16");
    expect(&["loss.epsilon=2"], "epsilon");
    expect(&["model.lora_dropout=0.1"], "set model.lora_dropout=0");
    expect(&["~model", "loraplus_lr_ratio=4"], "loraplus_lr_ratio needs model.lora_rank");
    expect(&[&format!("reward_{plain}")], "has no head that scores answers");
    expect(&[&format!("value_{plain}"), "value_checkpointer.adapter_checkpoint=there"], "is a whole one");
    expect(&["optimizer.ema_decay=0.9"], "ema_decay");
    let texts = "dataset={_component_: text, data_files: [recipes/tiny/data/documents.jsonl]}";
    expect(&[texts, "~dataset_val"], "a dataset of texts has none");
    expect(&[texts, "reward=program", "reward.command=cat"], "take the one or the other");
    assert!(!dir.exists());
}

//! Answers that processes draw themselves, and learn from.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::learnt::distance;
use super::recipes::{grpo, ppo, reward};
use super::{Ran, assert_resumed_and_repeated, kept, on, succeed};

/// Few records to validate on.
const VALIDATION: &str = "dataset_val={_component_: chat, data_files: [recipes/tiny/data/reversed.jsonl], \
                          conversation_style: openai, split: 'train[600:610]'}";

/// What every recipe records that draws answers.
const RECORDED: [&str; 7] = ["loss", "val_loss", "grad_norm", "reward", "val_reward", "kl", "completions/mean_length"];

/// What a run recorded is what another one did; differences are relative to what `scale` makes of a number.
fn compare_records(what: &str, output: &Path, other: &Path, own: &[&str], scale: impl Fn(f64) -> f64) {
    for key in RECORDED.iter().chain(own) {
        let (ours, theirs) = (kept(output, key), kept(other, key));
        assert_eq!(ours.len(), theirs.len(), "{what}: {key}");
        let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / scale(*b)).fold(0.0, f64::max);
        println!("{what}: {key} off by {off:.1e}");
        assert!(off <= if *key == "grad_norm" { 1e-4 } else { 1e-5 }, "{what}: {key}: {ours:?} {theirs:?}");
    }
}

/// Each process draws the answers to its prompts: those that one process draws, whoever is done first. An epoch's last step and the
/// validation have fewer micro-batches than there are processes.
#[test]
fn answers_that_are_drawn_are_learnt_from_as_by_one_process() {
    const SHARED: &[&str] = &["epochs=2", "samples=4", "reward=overlap", "dataset.split='train[:36]'", VALIDATION];
    let folder = tempfile::tempdir().unwrap();
    let of = |what: &str, processes: usize| folder.path().join(format!("{what} {processes}"));
    let draw = |output: &Path, processes: usize, more: &[&str]| {
        succeed::<grpo::PolicyOptimization>("grpo", output, processes, &[SHARED, more].concat())
    };
    // Advantages have a mean of 0, and so have first losses, but for rounding: differences are absolute.
    let same = |what: &str, (output, saved): Ran<'_>, (other, expected): Ran<'_>, weights: &str| {
        compare_records(what, output, other, &["reward_std", "clip_ratio"], |_| 1.0);
        assert!(!kept(output, "val_loss").is_empty(), "{what}");
        let of_weights = distance(&saved.join(weights), &expected.join(weights));
        assert!(of_weights <= 1e-4, "{what}: weights off by {of_weights:.1e}");
    };
    let dapo = &["loss=dapo", "updates=2", "kl_beta=0.05"][..];
    let weights = &["~model", "optimizer.lr=1e-4"][..];
    let both = &["~model", "optimizer.lr=1e-4", "kl_beta=0.05", "data_parallel_replicate_dim=2"][..];
    for (what, processes, more, alone, file) in [
        ("adapters", 2, dapo, dapo, "adapter_model.safetensors"),
        ("weights", 4, weights, weights, "model.safetensors"),
        ("both", 4, both, &both[..3], "model.safetensors"),
    ] {
        let (one, many) = (of(what, 1), of(what, processes));
        let (expected, saved) = (draw(&one, 1, alone), draw(&many, processes, more));
        same(what, (&many, &saved), (&one, &expected), file);
    }
    assert_resumed_and_repeated(
        folder.path(),
        &["adapter_model.safetensors", "training_state.safetensors"],
        |output, more| draw(output, 2, &[dapo, more].concat()),
        |what, ours, theirs| same(what, ours, theirs, "adapter_model.safetensors"),
    );
}

/// A value model and a reward model are divided as the model is, and an update learns from the same prompts on any number of processes.
/// An epoch's last step and the validation have fewer micro-batches than there are processes.
#[test]
fn a_value_model_learns_as_by_one_process() {
    const SHARED: &[&str] = &[
        "epochs=2",
        "samples=2",
        "reward=overlap",
        "kl_coeff=0.05",
        "value_lr=1e-4",
        "dataset.split='train[:36]'",
        VALIDATION,
    ];
    let folder = tempfile::tempdir().unwrap();
    let of = |what: &str, processes: usize| folder.path().join(format!("{what} {processes}"));
    let draw = |output: &Path, processes: usize, more: &[&str]| {
        succeed::<ppo::ProximalPolicyOptimization>("ppo", output, processes, &[SHARED, more].concat())
    };
    let same = |what: &str, (output, saved): Ran<'_>, (other, expected): Ran<'_>, weights: &str| {
        let own = ["rlhf_reward", "value", "policy_loss", "value_loss", "approx_policy_kl"];
        // First losses of the policy are 0, but for rounding.
        compare_records(what, output, other, &own, |value| value.abs().max(1.0));
        let is_recorded = |key: &&str| !kept(output, key).is_empty();
        assert!(RECORDED.iter().chain(&own).all(is_recorded), "{what}");
        for weights in [weights, "value/model.safetensors"] {
            let off = distance(&saved.join(weights), &expected.join(weights));
            println!("{what}: {weights} off by {off:.1e}");
            assert!(off <= 1e-4, "{what}: {weights} off by {off:.1e}");
        }
        let files = |dir: &Path| {
            let mut files: Vec<_> = [dir.to_owned(), dir.join("value")]
                .iter()
                .flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()))
                .collect();
            files.sort();
            files
        };
        assert_eq!(files(saved), files(expected), "{what}: a checkpoint is the same whoever wrote it");
    };
    let scores = of("scores", 1);
    let scores =
        succeed::<reward::RewardModeling>("reward", &scores, 1, &["~model", "epochs=1", "max_steps_per_epoch=2"]);
    let judge = format!("reward_checkpointer.checkpoint_dir={}", scores.display());
    let value = format!("value_checkpointer.checkpoint_dir={}", scores.display());
    let adapters = &["ppo_batch_size=8", "whiten_rewards=true"][..];
    let weights = &["~model", "optimizer.lr=1e-5"][..];
    let judged = &["reward=exact", &*judge, &*value, "data_parallel_replicate_dim=2"][..];
    // Divided; and two copies, each in one process or divided among two.
    for (what, processes, more, file) in [
        ("adapters", &[2][..], adapters, "adapter_model.safetensors"),
        ("weights", &[4], weights, "model.safetensors"),
        ("judged", &[2, 4], judged, "adapter_model.safetensors"),
    ] {
        let one = of(what, 1);
        let alone: Vec<&str> = more.iter().copied().filter(|key| !key.starts_with("data_parallel")).collect();
        let expected = draw(&one, 1, &alone);
        for &processes in processes {
            let many = of(what, processes);
            let saved = draw(&many, processes, more);
            same(&format!("{what} {processes}"), (&many, &saved), (&one, &expected), file);
        }
    }
    assert_resumed_and_repeated(
        folder.path(),
        &["adapter_model.safetensors", "value/model.safetensors", "training_state.safetensors"],
        |output, more| draw(output, 2, &[adapters, more].concat()),
        |what, ours, theirs| same(what, ours, theirs, "adapter_model.safetensors"),
    );
    // An update takes as many micro-batches of each process.
    let errors = on::<ppo::ProximalPolicyOptimization>("ppo", &of("uneven", 4), 4, &["ppo_batch_size=8"]);
    let is_told = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains("a multiple of 16"));
    assert!(errors.iter().all(is_told), "{errors:?}");
}

/// A program that says what answers are worth ends in one process: it says why, and the others do not wait for it.
#[test]
fn a_reward_that_fails_in_one_process_ends_the_run_in_all() {
    let folder = tempfile::tempdir().unwrap();
    for layout in [&[][..], &["data_parallel_replicate_dim=2"]] {
        for recipe in ["grpo", "ppo"] {
            let of = folder.path().join(format!("{recipe} {}", layout.len()));
            fs::create_dir_all(&of).unwrap();
            // Whoever is first to make the folder has the program that fails.
            let (program, first) = (of.join("reward.sh"), of.join("first"));
            let worth = "while read -r line; do echo '{\"score\": 1}'; done";
            let text = format!("if mkdir '{}'; then read -r line; exit 3; fi 2>/dev/null\n{worth}\n", first.display());
            fs::write(&program, text).unwrap();
            let command = format!("reward.command=sh '{}'", program.display());
            let more = [&["reward=program", &*command, VALIDATION, "samples=2", "epochs=1"], layout].concat();
            let (begun, output) = (std::time::Instant::now(), of.join("out"));
            let errors = match recipe {
                "grpo" => on::<grpo::PolicyOptimization>(recipe, &output, 2, &more),
                _ => on::<ppo::ProximalPolicyOptimization>(recipe, &output, 2, &more),
            };
            let say = |what: &str| errors.iter().flatten().filter(|error| error.contains(what)).count();
            assert!(errors.iter().all(Option::is_some), "{recipe}: {errors:?}");
            assert_eq!(say("reversed.jsonl:"), 1, "{recipe}: {errors:?}");
            assert_eq!(say("1 of the other processes cannot go on"), 1, "{recipe}: {errors:?}");
            assert!(begun.elapsed() < Duration::from_secs(100), "nobody waited for the time limit");
        }
    }
}

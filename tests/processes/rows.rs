//! Each process has its rows of the model, or the whole of it: what is learnt and saved is the same, and one number of processes goes on
//! from what another saved.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tune_core::distributed::threads;

use super::recipes::{full, lora};
use super::{FULL, assert_same_bits, compare, config, latest, on, run, succeed, with_first_checkpoint};

#[test]
fn full_on_two_and_four_processes_and_from_one_number_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one");
    let expected = succeed::<full::FullFinetune>("full", &one, 1, FULL);
    for processes in [2, 4] {
        let output = folder.path().join(processes.to_string());
        let saved = succeed::<full::FullFinetune>("full", &output, processes, FULL);
        compare(&format!("{processes}"), (&output, &saved), (&one, &expected), "model.safetensors");
        for rank in 1..processes {
            assert!(output.join(format!("logs/rank_{rank}.log")).is_file());
        }
        let names = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&saved), names(&expected), "a checkpoint is the same whoever wrote it");
    }
    // From the first epoch's checkpoint of each, on another number of processes.
    for (from, to) in [("one", 2), ("2", 4), ("4", 1)] {
        let output = folder.path().join(format!("{from}-{to}"));
        with_first_checkpoint(&folder.path().join(from), &output);
        let resumed: Vec<&str> = FULL.iter().copied().chain(["resume_from_checkpoint=true"]).collect();
        let saved = succeed::<full::FullFinetune>("full", &output, to, &resumed);
        compare(&format!("{from} to {to}"), (&output, &saved), (&one, &expected), "model.safetensors");
    }
    // The same number of processes gives the same bits.
    let again = folder.path().join("again");
    let saved = succeed::<full::FullFinetune>("full", &again, 2, FULL);
    assert_same_bits(&saved, &latest(&folder.path().join("2")), &["model.safetensors", "training_state.safetensors"]);
}

/// A base in NF4 of which each process has a share of the blocks.
#[test]
fn a_quantized_base_is_divided_as_it_is_stored() {
    let overrides = ["epochs=1", "max_steps_per_epoch=4", "model.quantize_base=true", "~exact_match"];
    let folder = tempfile::tempdir().unwrap();
    let (one, many) = (folder.path().join("one"), folder.path().join("many"));
    let expected = succeed::<lora::LoraFinetune>("lora", &one, 1, &overrides);
    let saved = succeed::<lora::LoraFinetune>("lora", &many, 4, &overrides);
    compare("NF4", (&many, &saved), (&one, &expected), "adapter_model.safetensors");
}

/// Each process moves its rows as soon as their gradient is summed: what one process learns that waits for all gradients.
#[test]
fn the_optimizer_may_run_in_the_backward_pass() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let shared = ["epochs=1", "max_steps_per_epoch=4", "~clip_grad_norm"];
    let with = |more: &[&'static str]| [&shared, more].concat();
    let expected = succeed::<full::FullFinetune>("full", &one, 1, &with(&["gradient_accumulation_steps=2"]));
    let in_backward = with(&["optimizer_in_bwd=true", "gradient_accumulation_steps=1"]);
    let saved = succeed::<full::FullFinetune>("full", &two, 2, &in_backward);
    compare("in the backward pass", (&two, &saved), (&one, &expected), "model.safetensors");
}

/// Lion's state is divided as AdamW's is. One that needs whole matrices is refused before anything is read or written.
#[test]
fn optimizers_move_rows_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let overrides = ["epochs=1", "max_steps_per_epoch=4", "optimizer=lion", "optimizer.decay_vectors=false"];
    let expected = succeed::<full::FullFinetune>("full", &one, 1, &overrides);
    let saved = succeed::<full::FullFinetune>("full", &two, 2, &overrides);
    compare("lion", (&two, &saved), (&one, &expected), "model.safetensors");

    let output = folder.path().join("none");
    for setting in ["=adamw_8bit", "=adafactor", "=muon", "=schedule_free_adamw", ".ema_decay=0.9"] {
        let optimizer = format!("optimizer{setting}");
        let name = setting.trim_matches(['=', '.']).trim_end_matches("=0.9");
        for error in on::<full::FullFinetune>("full", &output, 2, &[optimizer.as_str()]) {
            let error = error.unwrap();
            assert!(error.contains(name) && error.contains("start one process, or set optimizer=adamw"), "{error}");
        }
    }
    assert!(!output.exists(), "nothing was written");
}

/// All measure the same, the first one judges, and all end after the same step.
#[test]
fn processes_find_the_same_of_tasks_and_end_early_together() {
    let overrides = [
        "epochs=1",
        "max_steps_per_epoch=12",
        "~exact_match",
        "optimizer.lr=1e-9",
        "evaluation=[{data_file: recipes/tiny/data/held_out.jsonl, split: 'train[:5]', max_new_tokens: 12}]",
        "samples={prompts: ['Write a-b in the secret code.'], max_new_tokens: 8, temperature: 1.0}",
        "run_eval_every_n_steps=2",
        "early_stopping={monitor: held_out/exact_match, patience: 2}",
    ];
    let folder = tempfile::tempdir().unwrap();
    let records = |output: &Path| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        all.filter(|record| record.get("held_out/exact_match").is_some()).collect()
    };
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    for (output, processes) in [(&one, 1), (&two, 2)] {
        let saved = succeed::<lora::LoraFinetune>("lora", output, processes, &overrides);
        assert!(saved.ends_with("epoch_0_step_6"), "{}", saved.display());
    }
    let (ours, theirs) = (records(&two), records(&one));
    assert_eq!((ours.len(), theirs.len()), (4, 4));
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!((&a["step"], &a["held_out/exact_match"]), (&b["step"], &b["held_out/exact_match"]));
        assert_eq!(a["samples"], b["samples"]);
        let of = |record: &serde_json::Value| record["held_out/answer_perplexity"].as_f64().unwrap();
        assert!((of(a) - of(b)).abs() <= 1e-4 * of(b), "{a} {b}");
    }
}

#[test]
fn processes_that_would_not_do_the_same_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let output = folder.path().join("out");
    let errors = threads::run(3, Duration::from_secs(60), |group| {
        let lr = if group.rank() == 2 { "optimizer.lr=2e-3" } else { "optimizer.lr=1e-3" };
        let config = config::<full::FullFinetune>("full", &output, 1, &["max_steps_per_epoch=1", lr]);
        run::<full::FullFinetune>(config).unwrap_err().to_string()
    });
    for error in errors.unwrap() {
        assert!(error.contains("rank 2 has another config than rank 0"), "{error}");
    }
    assert!(!output.exists(), "nothing was written");
}

//! A model that is copied to processes, or divided among some and copied to others; and checkpoints that are written meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use super::recipes::{full, lora};
use super::{FULL, compare, latest, on, succeed, with_first_checkpoint};

/// The whole model in each process; two copies of it, each divided; and gathered weights that stay. From one layout to another, too.
#[test]
fn copies_of_a_model_learn_what_one_learns() {
    const EACH: &str = "data_parallel_shard_dim=1";
    const TWO: &str = "data_parallel_replicate_dim=2";
    const FOUR: &str = "data_parallel_replicate_dim=4";
    const STAY: &str = "fsdp_reshard_after_forward=false";
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one");
    let expected = succeed::<full::FullFinetune>("full", &one, 1, FULL);
    for (name, processes, layout) in
        [("copies", 2, &[TWO][..]), ("both", 4, &[TWO, STAY]), ("again", 4, &[TWO]), ("each", 4, &[EACH, FOUR])]
    {
        let output = folder.path().join(name);
        let saved = succeed::<full::FullFinetune>("full", &output, processes, &[FULL, layout].concat());
        compare(name, (&output, &saved), (&one, &expected), "model.safetensors");
        let written: Vec<_> = fs::read_dir(&saved).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(written.len(), fs::read_dir(&expected).unwrap().count(), "{written:?}");
    }
    let bits = |name: &str, file: &str| fs::read(latest(&folder.path().join(name)).join(file)).unwrap();
    for file in ["model.safetensors", "training_state.safetensors"] {
        assert!(bits("both", file) == bits("again", file), "{file}: where gathered weights stay the bits are the same");
    }
    for (from, processes, layout) in
        [("both", 1, &[][..]), ("both", 2, &[]), ("copies", 4, &[TWO]), ("one", 4, &[TWO, STAY]), ("one", 2, &[TWO])]
    {
        let name = format!("{from} to {processes} {}", layout.join(" "));
        let output = folder.path().join(&name);
        with_first_checkpoint(&folder.path().join(from), &output);
        let resumed = [FULL, layout, &["resume_from_checkpoint=true"]].concat();
        let saved = succeed::<full::FullFinetune>("full", &output, processes, &resumed);
        compare(&name, (&output, &saved), (&one, &expected), "model.safetensors");
    }
}

/// Adapters, also on a base in NF4 and with magnitudes, which need whole weights.
#[test]
fn copies_of_a_model_learn_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let shared = ["epochs=1", "max_steps_per_epoch=4", "~exact_match", "model.lora_dropout=0.1"];
    for (what, processes, more) in [
        ("divided", 4, &[][..]),
        ("NF4", 4, &["model.quantize_base=true", "fsdp_reshard_after_forward=false"]),
        ("magnitudes", 2, &["model.use_dora=true"]),
    ] {
        let run = |processes: usize, layout: &[&str]| {
            let output = folder.path().join(format!("{what} {processes}"));
            let saved = succeed::<lora::LoraFinetune>("lora", &output, processes, &[&shared, more, layout].concat());
            (output, saved)
        };
        let ((one, expected), (output, saved)) = (run(1, &[]), run(processes, &["data_parallel_replicate_dim=2"]));
        compare(what, (&output, &saved), (&one, &expected), "adapter_model.safetensors");
    }
}

/// Optimizers that need whole matrices have them where each process has the whole model.
#[test]
fn copies_of_a_model_are_moved_by_any_optimizer() {
    let folder = tempfile::tempdir().unwrap();
    for optimizer in ["adafactor", "muon", "schedule_free_adamw"] {
        let set = format!("optimizer={optimizer}");
        let run = |processes: usize, layout: &[&str]| {
            let output = folder.path().join(format!("{optimizer} {processes}"));
            let overrides = [&["epochs=1", "max_steps_per_epoch=3", &set], layout].concat();
            let saved = succeed::<full::FullFinetune>("full", &output, processes, &overrides);
            (output, saved)
        };
        let ((one, expected), (output, saved)) = (run(1, &[]), run(2, &["data_parallel_replicate_dim=2"]));
        compare(optimizer, (&output, &saved), (&one, &expected), "model.safetensors");
    }
}

/// Each checkpoint has what was trained when it was begun, not what is in memory when it is written: the bits of a run that waits.
#[test]
fn checkpoints_are_written_while_training_goes_on() {
    const BACKGROUND: &str = "enable_async_checkpointing=true";
    let folder = tempfile::tempdir().unwrap();
    let bits = |output: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for saved in tune_core::checkpoint::run::checkpoints(output).unwrap() {
            for folder in [saved.path.clone(), saved.path.join("merged")] {
                let Ok(entries) = fs::read_dir(&folder) else { continue };
                let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
                all.extend(files.map(|path| (path.strip_prefix(output).unwrap().to_owned(), fs::read(&path).unwrap())));
            }
        }
        all.sort();
        all
    };
    let shared = ["epochs=2", "max_steps_per_epoch=4", "checkpointer.save_every_n_steps=1"];
    let lora = ["save_adapter_weights_only=false", "~exact_match"];
    for (processes, layout) in [(1, ""), (2, "data_parallel_replicate_dim=1"), (4, "data_parallel_replicate_dim=2")] {
        for name in ["full", "lora"] {
            let run = |background: bool| {
                let output = folder.path().join(format!("{name} {processes} {background}"));
                let mut overrides = shared.to_vec();
                overrides.extend((name == "lora").then_some(lora).into_iter().flatten());
                overrides.extend([layout].into_iter().filter(|layout| !layout.is_empty()));
                overrides.extend(background.then_some(BACKGROUND));
                match name {
                    "full" => succeed::<full::FullFinetune>(name, &output, processes, &overrides),
                    _ => succeed::<lora::LoraFinetune>(name, &output, processes, &overrides),
                };
                output
            };
            let (waits, goes_on) = (bits(&run(false)), bits(&run(true)));
            assert!(waits.iter().map(|(path, _)| path).eq(goes_on.iter().map(|(path, _)| path)));
            // The config that each carries is not in it.
            let differing: Vec<_> = waits.iter().zip(&goes_on).filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
            assert!(waits.len() > 8 && differing.is_empty(), "{name} on {processes}: {differing:?}");
        }
    }
}

#[test]
fn a_layout_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    for (processes, layout, said) in [
        (2, "data_parallel_replicate_dim=3", "data_parallel_replicate_dim=3 does not divide 2 processes"),
        (2, "data_parallel_shard_dim=4", "times data_parallel_shard_dim=4 is not 2, and 2 processes are there"),
        (1, "data_parallel_shard_dim=2", "times data_parallel_shard_dim=2 is not 1, and 1 process is there"),
    ] {
        for error in on::<full::FullFinetune>("full", &output, processes, &[layout]) {
            let error = error.unwrap();
            assert!(error.contains(said) && error.contains("start as many processes as"), "{error}");
        }
    }
    assert!(!output.exists(), "nothing was written");
}

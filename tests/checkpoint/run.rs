//! A run's folder: complete checkpoints or none, whatever happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use tune_core::checkpoint::run::{self, RunDir, Start};
use tune_core::checkpoint::state::{Position, TrainingState};
use tune_core::checkpoint::{Checkpoint, hf};
use tune_core::{Error, Result};

use crate::support::{assert_error, config, names_in, tokenizer};

/// A model all of whose numbers are `step`, and the state after that step.
fn save(run: &RunDir, step: u64) -> Result<run::Saved> {
    let value = Tensor::full(step as f32, (64, 129), &Device::Cpu)?;
    let position = Position { step, epoch: step / 10, batches_in_epoch: 1 };
    let optimizer = [("m".to_string(), value.clone())].into();
    let state = TrainingState { position, optimizer, ..TrainingState::default() };
    let mut weights = hf::Weights::new();
    for i in 0..8 {
        weights.insert(format!("w{i}"), value.clone());
    }
    run.save(&state, weights.bytes(), |dir| hf::write(dir, &config(), weights, &tokenizer(), None, 40_000))
}

fn after_step_2() -> TrainingState {
    TrainingState { position: Position { step: 2, ..Position::default() }, ..TrainingState::default() }
}

/// Fails unless the checkpoint is all of one step.
fn check(saved: &run::Saved) {
    let state = TrainingState::read(&saved.path).unwrap();
    assert_eq!(state.position.step, saved.step);
    let all_are = |t: &Tensor| {
        let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
        values.iter().all(|&v| v == saved.step as f32)
    };
    assert!(all_are(&state.optimizer["m"]));
    let model = Checkpoint::open(&saved.path).unwrap();
    assert_eq!(model.names().count(), 8);
    for name in model.names() {
        assert!(all_are(&model.tensor(name, DType::F32, &Device::Cpu).unwrap()));
    }
}

struct Folders {
    _temporary: tempfile::TempDir,
    base: PathBuf,
    output: PathBuf,
}

fn folders() -> Folders {
    let temporary = tempfile::tempdir().unwrap();
    let base = temporary.path().join("base");
    fs::create_dir(&base).unwrap();
    Folders { base, output: temporary.path().join("runs/one"), _temporary: temporary }
}

fn open(f: &Folders, start: Start) -> Result<RunDir> {
    RunDir::open(&f.output, &f.base, start)
}

#[test]
fn the_newest_is_found_and_the_oldest_pruned() {
    let f = folders();
    assert_eq!(run::latest(&f.output).unwrap(), None);
    let run = open(&f, Start::Fresh).unwrap();
    assert_eq!(run.latest().unwrap(), None);
    for step in [2, 9, 10, 100] {
        let saved = save(&run, step).unwrap();
        check(&saved);
        assert_eq!(run.latest().unwrap(), Some(saved));
    }
    assert_eq!(names_in(&f.output), ["epoch_0_step_2", "epoch_0_step_9", "epoch_10_step_100", "epoch_1_step_10"]);
    let pruned: Vec<u64> = run.prune(2).unwrap().iter().map(|s| s.step).collect();
    assert_eq!(pruned, [2, 9]);
    assert!(run.prune(2).unwrap().is_empty());
    run.prune(0).unwrap();
    assert_eq!(names_in(&f.output), ["epoch_10_step_100"]);
}

#[test]
fn only_complete_checkpoints_count() {
    let f = folders();
    let run = open(&f, Start::Fresh).unwrap();
    let saved = save(&run, 5).unwrap();
    for name in
        ["epoch_0_step_7", "epoch_0_step_08", "epoch_0_step_9x", "epoch_-1_step_9", "step_9", ".partial-epoch_0_step_9"]
    {
        fs::create_dir(f.output.join(name)).unwrap();
    }
    fs::write(f.output.join("epoch_0_step_99"), "a file").unwrap();
    assert_eq!(run::checkpoints(&f.output).unwrap(), [saved]);
}

#[test]
fn a_failed_save_leaves_nothing_and_the_last_one_intact() {
    let f = folders();
    let run = open(&f, Start::Fresh).unwrap();
    let good = save(&run, 1).unwrap();
    let state = after_step_2();
    let error = run
        .save(&state, 0, |dir| {
            fs::write(dir.join("half"), "x").unwrap();
            Err(Error::setup("the writer failed"))
        })
        .unwrap_err();
    assert_eq!(error.to_string(), "the writer failed");
    assert_eq!(names_in(&f.output), ["epoch_0_step_1"]);
    check(&good);
}

#[test]
fn too_little_room_is_known_before_anything_is_written() {
    let f = folders();
    let run = open(&f, Start::Fresh).unwrap();
    let state = after_step_2();
    let refused = |last: &str| {
        let result = run.save(&state, u64::MAX / 2, |_| unreachable!());
        assert_error(result, &f.output, &["no room for the checkpoint epoch_0_step_2", "are free", last]);
    };
    refused("No checkpoint was saved before");
    let good = save(&run, 1).unwrap();
    refused(good.path.to_str().unwrap());
    assert_eq!(names_in(&f.output), ["epoch_0_step_1"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_while_writing_leaves_the_last_one_intact() {
    let f = folders();
    let run = open(&f, Start::Fresh).unwrap();
    let good = save(&run, 1).unwrap();
    let state = after_step_2();
    let weights: hf::Weights<'_> = [("w".to_string(), Tensor::zeros((10, 10), DType::F32, &Device::Cpu).unwrap())]
        .into_iter()
        .collect::<std::collections::BTreeMap<_, _>>()
        .into();
    let result = run.save(&state, 0, |dir| {
        // A device on which every write fails as on a full disk.
        std::os::unix::fs::symlink("/dev/full", dir.join("model.safetensors")).unwrap();
        hf::write(dir, &config(), weights, &tokenizer(), None, u64::MAX)
    });
    assert_error(result, &f.output, &["no room", "model.safetensors", "No space left", good.path.to_str().unwrap()]);
    assert_eq!(names_in(&f.output), ["epoch_0_step_1"]);
    check(&good);
    save(&run, 2).unwrap();
}

#[test]
fn what_a_killed_process_left_is_cleared_away() {
    let f = folders();
    {
        let run = open(&f, Start::Fresh).unwrap();
        save(&run, 1).unwrap();
        save(&run, 2).unwrap();
    }
    let at = |name: &str| f.output.join(name);
    fs::create_dir_all(at(".partial-epoch_0_step_3/sub")).unwrap();
    fs::create_dir(at(".pruned-epoch_0_step_0")).unwrap();
    // Killed while replacing 2, before its successor had the name; and after, for 1.
    fs::rename(at("epoch_0_step_2"), at(".replaced-epoch_0_step_2")).unwrap();
    fs::create_dir(at(".replaced-epoch_0_step_1")).unwrap();
    check(&run::latest(&f.output).unwrap().unwrap());
    assert_eq!(run::latest(&f.output).unwrap().unwrap().step, 2);

    let run = open(&f, Start::Resume).unwrap();
    assert_eq!(names_in(&f.output), ["epoch_0_step_1", "epoch_0_step_2"]);
    check(&run.latest().unwrap().unwrap());
    // And saving over an existing one works.
    check(&save(&run, 2).unwrap());
    assert_eq!(names_in(&f.output), ["epoch_0_step_1", "epoch_0_step_2"]);
}

/// A process that was killed holds its folder until the last of its threads has ended.
#[test]
fn a_run_waits_for_one_that_is_just_ending() {
    let f = folders();
    let run = open(&f, Start::Fresh).unwrap();
    save(&run, 3).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(run);
        });
        open(&f, Start::Resume).unwrap();
    });
}

#[test]
fn a_run_starts_as_it_was_told_to() {
    let f = folders();
    assert_error(open(&f, Start::Resume), &f.output, &["no complete checkpoint", "resume_from_checkpoint=false"]);
    assert!(!f.output.exists());

    let run = open(&f, Start::Fresh).unwrap();
    save(&run, 3).unwrap();
    for start in [Start::Fresh, Start::Resume, Start::Overwrite] {
        assert_error(open(&f, start), &f.output, &["another run is saving into it"]);
    }
    drop(run);
    assert_error(
        open(&f, Start::Fresh),
        &f.output,
        &[
            "1 checkpoint of another run, the newest epoch_0_step_3",
            "resume_from_checkpoint=true",
            "overwrite=true",
            "another output_dir",
        ],
    );
    drop(open(&f, Start::Resume).unwrap());
    fs::write(f.output.join("log.jsonl"), "kept").unwrap();
    let run = open(&f, Start::Overwrite).unwrap();
    assert_eq!(run.latest().unwrap(), None);
    assert_eq!(names_in(&f.output), ["log.jsonl"]);
}

#[test]
fn a_model_that_was_kept_without_its_state_is_not_replaced() {
    let f = folders();
    let run = open(&f, Start::Fresh).unwrap();
    let kept = save(&run, 2).unwrap();
    drop(run);
    fs::remove_file(kept.path.join("training_state.json")).unwrap();
    let refuses = |start| assert_error(open(&f, start), &kept.path, &["no training_state.json", "move it away"]);
    refuses(Start::Fresh);
    refuses(Start::Overwrite);
    let aside = f.output.join("aside");
    fs::rename(&kept.path, &aside).unwrap();
    let run = open(&f, Start::Fresh).unwrap();
    save(&run, 1).unwrap();
    drop(run);
    fs::rename(&aside, &kept.path).unwrap();
    refuses(Start::Resume);
    // One of a step that is done already is in nobody's way.
    fs::rename(&kept.path, f.output.join("epoch_0_step_0")).unwrap();
    save(&open(&f, Start::Resume).unwrap(), 2).unwrap();
    assert!(f.output.join("epoch_0_step_0/model.safetensors.index.json").is_file());
}

#[cfg(unix)]
#[test]
fn the_base_model_is_never_the_output() {
    use std::os::unix::fs::symlink;
    let f = folders();
    let gguf = f.base.join("model.gguf");
    fs::write(&gguf, "x").unwrap();
    let refused = |output: &Path, base: &Path, says: &str| {
        assert_error(run::check_output_dir(output, base), output, &[says]);
        assert_error(RunDir::open(output, base, Start::Overwrite), output, &[says]);
    };
    let own = "is the folder of a checkpoint that training starts from";
    refused(&f.base, &f.base, own);
    refused(&f.base, &gguf, own);
    refused(&f.base.join("x/.."), &f.base, own);
    refused(&gguf, &f.base, "is a file");
    let link = f.base.with_file_name("link");
    symlink(&f.base, &link).unwrap();
    refused(&link, &f.base, own);
    refused(&f.base, &link, own);
    let file_link = f.base.with_file_name("link.gguf");
    symlink(&gguf, &file_link).unwrap();
    refused(&f.base, &file_link, own);

    let saved = save(&open(&f, Start::Fresh).unwrap(), 4).unwrap();
    refused(&f.output, &saved.path, "could delete");
    check(&saved);
    // Beside it, below it and above it there is no danger.
    for output in [f.base.with_file_name("other"), f.base.join("out"), f.base.parent().unwrap().to_path_buf()] {
        run::check_output_dir(&output, &f.base).unwrap();
    }
    run::check_output_dir(&f.base.with_file_name("absent"), &f.base.with_file_name("gone")).unwrap();
}

const CHILD: &str = "CHECKPOINT_TEST_SAVES_INTO";

/// Not a test of its own: what [`kill_at_any_moment`] starts and kills.
#[test]
fn child_that_saves_until_it_is_killed() {
    let Some(output) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let start = if run::latest(&output).unwrap().is_some() { Start::Resume } else { Start::Fresh };
    let run = RunDir::open(&output, &output.with_file_name("base"), start).unwrap();
    let mut step = run.latest().unwrap().map_or(0, |s| s.step);
    loop {
        step += 1;
        save(&run, step).unwrap();
        run.prune(2).unwrap();
    }
}

#[test]
fn kill_at_any_moment() {
    let f = folders();
    let mut last = 0;
    let mut interrupted = 0;
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "run::child_that_saves_until_it_is_killed"])
            .env(CHILD, &f.output)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let wait_for = last;
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while run::latest(&f.output).unwrap().is_none_or(|s| s.step <= wait_for) {
            assert!(std::time::Instant::now() < deadline, "the child saves nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(round * 1777 % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();

        interrupted += names_in(&f.output).iter().filter(|n| n.starts_with('.')).count();
        let all = run::checkpoints(&f.output).unwrap();
        all.iter().for_each(check);
        let newest = all.last().unwrap().step;
        assert!(newest > last);
        last = newest;
    }
    assert!(interrupted > 0, "no kill came while something was being written");
    let run = open(&f, Start::Resume).unwrap();
    run.prune(2).unwrap();
    let names = [last - 1, last].map(|step| format!("epoch_{}_step_{step}", step / 10));
    let found = names_in(run.path());
    assert_eq!(found.len(), 2);
    assert!(names.iter().all(|n| found.contains(n)), "{found:?}");
}

//! `tune run --max-restarts`: a run that is killed goes on by itself, and ends as one that was not. What several processes do is in
//! `mpi.rs`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "common/children.rs"]
mod children;
#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use children::{children, newest_step, signal, wait_for};
use runs::{files, newest, root, succeed, text};

/// A run of 16 steps that saves after every fourth.
fn settings(output: &Path) -> Vec<String> {
    let mut args =
        vec!["--config".to_owned(), "configs/full/tiny.yaml".to_owned(), format!("output_dir={}", output.display())];
    let more = "batch_size=1 gradient_accumulation_steps=4 epochs=2 max_steps_per_epoch=8 log_every_n_steps=1 \
                checkpointer.save_every_n_steps=4 overwrite=false";
    args.extend(more.split_whitespace().map(str::to_owned));
    args
}

fn tune(options: &[&str], args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command.current_dir(root()).arg("run").args(options).arg("full").args(args);
    command.stderr(Stdio::piped()).stdout(Stdio::null());
    command
}

/// Waits until the recipe that `tune` has started is another process than before.
fn recipe_of(tune: &mut Child, before: i32) -> i32 {
    let id = tune.id();
    let is_recipe = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("full"));
    let is_run = |pid: &i32| {
        let args = text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
        *pid != before && !args.is_empty() && !args.contains("--print-config")
    };
    wait_for(tune, "recipe", || children(id).into_iter().filter(is_recipe).find(is_run))
}

fn end(tune: Child) -> (Option<i32>, String) {
    let output = tune.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

/// Killed before it has saved anything, and again later: it begins anew, goes on, and ends with the bits of a run that was not killed. A
/// run that lay in the folder before is none of its own.
#[test]
fn a_run_that_is_killed_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let run = |args: &[String]| succeed("full", &args.iter().map(String::as_str).collect::<Vec<_>>());
    run(&settings(&whole));
    let mut of_others = settings(&killed);
    of_others.extend(["epochs=1", "seed=7"].map(str::to_owned));
    run(&of_others);

    let mut args = settings(&killed);
    args.push("overwrite=true".to_owned());
    let mut child = tune(&["--max-restarts", "2"], &args).spawn().unwrap();
    let first = recipe_of(&mut child, 0);
    // It has just begun: what the other run has saved is still there, or it is gone and nothing is saved yet.
    signal("-KILL", first);
    let second = recipe_of(&mut child, first);
    wait_for(&mut child, "checkpoint after step 12", || (newest_step(&killed) >= 12).then_some(()));
    signal("-KILL", second);
    let (code, said) = end(child);
    assert_eq!(code, Some(0), "{said}");
    let anew = "restart 1 of 2: a process was killed (signal 9, as by the system where memory runs out); it had saved no checkpoint, \
                and begins anew\n";
    assert!(said.contains(anew), "{said}");
    let on = format!(
        "restart 2 of 2: a process was killed (signal 9, as by the system where memory runs out); the run goes on from {}",
        killed.join("epoch_1_step_1").display()
    );
    assert!(said.contains(&on), "{said}");
    let (expected, found) = (files(&newest(&whole)), files(&newest(&killed)));
    assert_eq!(newest(&whole).file_name(), newest(&killed).file_name());
    assert_eq!(expected.len(), found.len());
    for ((file, a), (_, b)) in expected.iter().zip(&found) {
        assert!(a == b, "{file} differs");
    }
}

/// As often as was allowed; the exit code is that of what happened last, and it is said how to go on.
#[test]
fn a_run_that_is_killed_too_often_ends() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let mut child = tune(&["--max-restarts=1"], &settings(&output)).spawn().unwrap();
    let first = recipe_of(&mut child, 0);
    wait_for(&mut child, "checkpoint", || (newest_step(&output) >= 4).then_some(()));
    signal("-KILL", first);
    let second = recipe_of(&mut child, first);
    signal("-KILL", second);
    let (code, said) = end(child);
    assert_eq!(code, Some(137), "{said}");
    let last = "error: a process was killed (signal 9, as by the system where memory runs out), and the run was started again once \
                already, which --max-restarts allows. Its newest checkpoint is ";
    assert!(said.contains(last) && said.contains(": resume_from_checkpoint=true goes on from it"), "{said}");
}

/// What a user has to correct, and what a user has asked for, is not tried again.
#[test]
fn errors_and_requests_to_end_are_final() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    for (wrong, code) in [("checkpointer.checkpoint_dir=/no/such/model", 1), ("epoch=3", 2)] {
        let args = [&settings(&output)[..], &[wrong.to_owned()]].concat();
        let (exit, said) = end(tune(&["--max-restarts", "3"], &args).spawn().unwrap());
        assert!(exit == Some(code) && !said.contains("restart"), "{said}");
    }
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let output = folder.path().join(name);
        let mut child = tune(&["--max-restarts", "3"], &settings(&output)).spawn().unwrap();
        wait_for(&mut child, "checkpoint", || (newest_step(&output) >= 4).then_some(()));
        signal(&format!("-{name}"), i32::try_from(child.id()).unwrap());
        let (exit, said) = end(child);
        assert!(exit == Some(code) && !said.contains("restart "), "{said}");
        assert!(said.contains("; saved to ") && !said.contains("at once"), "{said}");
    }
}

#[test]
fn what_cannot_be_started_again_is_refused() {
    let refused = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
        let output = command.current_dir(root()).arg("run").args(args).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let said = refused(&["--max-restarts", "1", "generate", "--config", "configs/generate/tiny.yaml"]);
    assert!(said.contains("error: --max-restarts is for recipes that save checkpoints"), "{said}");
    let said = refused(&["--max-restarts", "1", "full", "--config", "/dev/null"]);
    assert!(said.contains("error: /dev/null is no file: it can be read only once"), "{said}");
    let said = refused(&["--max-restarts", "1", "--min-nproc", "2", "full", "--config", "full/tiny"]);
    assert!(said.contains("error: --min-nproc 2 is more than the run begins with"), "{said}");
    let said = refused(&["--min-nproc", "2", "full", "--config", "full/tiny"]);
    assert!(said.contains("--max-restarts <N>"), "{said}");
}

/// What `tune run` starts itself, without MPI: each knows who it is and where all meet; how one ends, the run ends, and nobody is left.
#[test]
fn processes_that_tune_starts_itself() {
    let folder = tempfile::tempdir().unwrap();
    let ranks = |script: &str| {
        let mut tune = Command::new(env!("CARGO_BIN_EXE_tune"));
        tune.args(["ranks", "3", "sh", "-c", script, "--help"]).current_dir(folder.path()).env("RANK", "7");
        tune.stderr(Stdio::piped()).stdout(Stdio::piped()).output().unwrap()
    };
    let ended = ranks(
        "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $0 > said.$RANK; echo $MASTER_PORT $TUNE_RUN_ID >> ids",
    );
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    for rank in 0..3 {
        let said = fs::read_to_string(folder.path().join(format!("said.{rank}"))).unwrap();
        assert_eq!(said, format!("{rank} {rank} 3 3 127.0.0.1 --help\n"));
    }
    let ids = fs::read_to_string(folder.path().join("ids")).unwrap();
    assert!(ids.lines().count() == 3 && ids.lines().all(|line| Some(line) == ids.lines().next()), "{ids}");

    // The first that fails by itself says how the run ends; the others, which have a while for that, are killed.
    for (script, code) in [
        ("[ $RANK = 1 ] && exit 3; [ $RANK = 2 ] && exit 75; exec sleep 1000", 3),
        ("[ $RANK = 1 ] && kill -9 $$; [ $RANK = 2 ] && sleep 1 && exit 75; [ $RANK = 0 ] && exit 75", 137),
    ] {
        let begun = std::time::Instant::now();
        let ended = ranks(script);
        assert_eq!(ended.status.code(), Some(code), "{script}: {}", text(&ended.stderr));
        assert!(begun.elapsed() < std::time::Duration::from_secs(30));
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_tune")).args(["ranks", "2", "/no/such/program"]).output().unwrap();
    assert!(text(&missing.stderr).contains("cannot start /no/such/program"), "{}", text(&missing.stderr));
}

/// A signal reaches all, which have time to save.
#[test]
fn processes_that_tune_starts_itself_are_asked_to_end() {
    let script = "trap 'sleep 1; exit 143' TERM; touch ready.$RANK; while :; do sleep 0.05; done";
    let folder = tempfile::tempdir().unwrap();
    let mut tune = Command::new(env!("CARGO_BIN_EXE_tune"));
    let mut tune = tune.args(["ranks", "2", "sh", "-c", script]).current_dir(folder.path()).spawn().unwrap();
    wait_for(&mut tune, "process", || {
        (0..2).all(|rank| folder.path().join(format!("ready.{rank}")).exists()).then_some(())
    });
    let pids = children(tune.id());
    signal("-TERM", i32::try_from(tune.id()).unwrap());
    assert_eq!(tune.wait().unwrap().code(), Some(143));
    assert!(pids.len() == 2 && pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

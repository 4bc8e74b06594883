//! Ctrl-C, SIGTERM, a full disk: a run that is stopped loses a step at most, says how to go on, and goes on bit for bit.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runs::{files, newest, recipe, root, succeed, text};

/// A run of 27 steps that saves only at the end of each epoch, of nine steps.
fn settings(recipe: &str, output_dir: &Path) -> Vec<String> {
    let mut args = vec![
        "--config".to_owned(),
        format!("configs/{recipe}/tiny.yaml"),
        format!("output_dir={}", output_dir.display()),
        "overwrite=false".to_owned(),
        "dataset_val={_component_: chat, data_files: [recipes/tiny/data/held_out.jsonl], packed: true}".to_owned(),
    ];
    let more = "dataset.packed=true batch_size=1 gradient_accumulation_steps=2 epochs=3 max_steps_per_epoch=9 \
                run_val_every_n_steps=4 log_every_n_steps=1";
    args.extend(more.split_whitespace().map(str::to_owned));
    if recipe == "lora" {
        args.extend(["model.lora_dropout=0.1".to_owned(), "~exact_match".to_owned()]);
    }
    args
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn send(child: &Child, signal: &str) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// The step that a line of the console tells of.
fn step_of(line: &str) -> Option<u64> {
    line.strip_prefix("step ")?.split_once('/')?.0.trim().parse().ok()
}

/// Starts a run, sends a signal as soon as a line of its standard error begins so or tells of the step or a later one,
/// and returns the exit code and all that it said.
fn stop_at(name: &str, args: &[String], line: &str, pause: Duration, signal: &str) -> (Option<i32>, String) {
    let step = step_of(line);
    let mut child = recipe(name, &borrowed(args)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let (mut said, mut sent) = (String::new(), false);
    for next in BufReader::new(child.stderr.take().unwrap()).lines() {
        let next = next.unwrap();
        let reached = step.is_some_and(|step| step_of(&next).is_some_and(|now| now >= step));
        if (reached || next.starts_with(line)) && !sent {
            sent = true;
            std::thread::sleep(pause);
            send(&child, signal);
        }
        said += &next;
        said += "\n";
    }
    (child.wait().unwrap().code(), said)
}

/// Stops a run at several moments, and each time goes on from what it saved; in the end it is as one that was not stopped.
fn resumes_bit_for_bit(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    succeed(name, &borrowed(&settings(name, &whole)));
    // Before the first step is done; in the midst of an epoch; while it validates (the line comes before the
    // validation is done); while or before it saves the end of an epoch, which is step 9 and step 18.
    let moments =
        [("  output", 0), ("step 1/27", 0), ("step 4/27", 5), ("step 9/27", 0), ("step 12/27", 3), ("step 18/27", 60)];
    for (i, (line, pause)) in moments.into_iter().enumerate() {
        let mut args = settings(name, &stopped);
        let there = tune_core::checkpoint::run::latest(&stopped).unwrap();
        args.push(format!("resume_from_checkpoint={}", there.is_some()));
        let (signal, code) = if i % 2 == 0 { ("TERM", 143) } else { ("INT", 130) };
        let (exit, said) = stop_at(name, &args, line, Duration::from_millis(pause), signal);
        assert_eq!(exit, Some(code), "{line}: {said}");
        let last = said.split_once("\nstopped by ").unwrap_or_else(|| panic!("{line}: {said}")).1;
        if i == 0 {
            assert!(last.contains("before the first step was done: there is nothing to save"), "{said}");
            assert!(!stopped.join("epoch_0_step_0").exists());
            continue;
        }
        let saved = newest(&stopped);
        let step = saved.file_name().unwrap().to_str().unwrap().rsplit('_').next().unwrap().to_owned();
        assert!(last.contains(&format!("after step {step}; saved to {}\n", saved.display())), "{said}");
        // The command that it names goes on.
        let config = stopped.join("config.yaml");
        assert!(last.contains(&format!("--config {} resume_from_checkpoint=true", config.display())), "{said}");
        // Not a step was lost.
        let done = said.lines().filter(|l| l.starts_with("step ") && l.contains("/27 ")).next_back().unwrap();
        assert!(done.contains(&format!("{step}/27")), "{done} was the last, and {step} is saved");
    }
    succeed(name, &["--config", stopped.join("config.yaml").to_str().unwrap(), "resume_from_checkpoint=true"]);
    let (expected, found) = (files(&newest(&whole)), files(&newest(&stopped)));
    assert_eq!(expected.len(), found.len());
    for ((file, a), (_, b)) in expected.iter().zip(&found) {
        assert!(a == b, "{name}: {file} differs");
    }
    // Every step and every validation is recorded once.
    let log = |dir: &Path| {
        let text = fs::read_to_string(dir.join("logs/metrics.jsonl")).unwrap();
        let record = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            (value["step"].clone(), value["loss"].clone(), value["val_loss"].clone())
        };
        text.lines().map(record).collect::<Vec<_>>()
    };
    assert_eq!(log(&whole), log(&stopped));
}

#[test]
fn lora_that_is_stopped_resumes_bit_for_bit() {
    resumes_bit_for_bit("lora");
}

#[test]
fn full_that_is_stopped_resumes_bit_for_bit() {
    resumes_bit_for_bit("full");
}

#[test]
fn where_there_is_nothing_to_save_it_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = settings("lora", &folder.path().join("out"));
    args.retain(|arg| arg != "~exact_match");
    // The questions are being asked.
    let begun = Instant::now();
    let (exit, said) = stop_at("lora", &args, "  output", Duration::from_millis(30), "TERM");
    assert_eq!(exit, Some(143), "{said}");
    assert!(said.contains("\nstopped\n") && begun.elapsed() < Duration::from_secs(60), "{said}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = settings("full", &folder.path().join("out"));
    args.extend(["gradient_accumulation_steps=4000", "dataset.packed=false", "~dataset_val"].map(str::to_owned));
    args.retain(|arg| !arg.starts_with("run_val_every") && !arg.starts_with("dataset_val="));
    args.retain(|arg| arg != "~dataset_val");
    let mut child = recipe("full", &borrowed(&args)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().starts_with("  output") {}
    std::thread::sleep(Duration::from_millis(300));
    send(&child, "TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(child.try_wait().unwrap(), None, "the step is finished first");
    let begun = Instant::now();
    send(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(begun.elapsed() < Duration::from_secs(2));
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(said.contains(&"stopped at once".to_owned()), "{said:?}");
}

/// What is tokenized in the background is waited for: a checkpoint says what it was trained on.
#[test]
fn a_run_is_stopped_while_its_data_is_still_being_tokenized() {
    let folder = tempfile::tempdir().unwrap();
    let lines = fs::read_to_string(root().join("recipes/tiny/data/secret_code.jsonl")).unwrap();
    let data = folder.path().join("data.jsonl");
    fs::write(&data, lines.repeat(20)).unwrap();
    let out = folder.path().join("out");
    let mut args = settings("lora", &folder.path().join("first"));
    args.push(format!("dataset.data_files={}", data.display()));
    args.push("lr_scheduler.num_warmup_steps=100".to_owned());
    let (exit, said) = stop_at("lora", &args, "step 0: validation", Duration::from_millis(0), "TERM");
    assert_eq!(exit, Some(143), "{said}");
    args.extend(["lr_scheduler=constant".to_owned(), format!("output_dir={}", out.display())]);
    let (exit, said) = stop_at("lora", &args, "step 1/", Duration::from_millis(0), "TERM");
    assert_eq!(exit, Some(143), "{said}");
    assert!(said.contains(&format!("saved to {}", newest(&out).display())), "{said}");
}

#[test]
fn a_files_largest_size_is_an_error_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let args = settings("full", &folder.path().join("out"));
    let program = recipe("full", &[]).get_program().to_owned();
    let limited = Command::new("bash")
        .args(["-c", "ulimit -f 1000; exec \"$@\"", "bash"])
        .arg(program)
        .args(&args)
        .current_dir(root())
        .output()
        .unwrap();
    let said = text(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{}: {said}", limited.status);
    assert!(said.contains("File too large") && said.contains("`ulimit -f`"), "{said}");
}

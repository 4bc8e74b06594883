//! A run on large data begins at once and does not hold the data in memory.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/runs.rs"]
mod runs;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use runs::{recipe, succeed};
use serde_json::Value;

/// So many conversations, no two alike.
fn conversations(path: &Path, n: usize) -> String {
    let mut text = String::new();
    for i in 0..n {
        let word = format!("{i:06}").chars().map(String::from).collect::<Vec<_>>().join("-");
        let _ = writeln!(
            text,
            r#"{{"messages": [{{"role": "user", "content": "Write {word} in the secret code."}}, {{"role": "assistant", "content": "{word}"}}]}}"#
        );
    }
    fs::write(path, text).unwrap();
    format!("dataset.data_files=[{}]", path.display())
}

/// The first record of a run's log, once it is there.
fn first_record(output_dir: &Path) -> Option<Value> {
    let text = fs::read_to_string(output_dir.join("logs/metrics.jsonl")).ok()?;
    let (line, _) = text.split_once('\n')?;
    serde_json::from_str(line).ok()
}

/// Runs until the first step is logged. Returns seconds and the peak memory in MiB.
fn first_step(dir: &Path, rows: usize) -> (f64, f64) {
    let data = conversations(&dir.join("data.jsonl"), rows);
    let output = dir.join("out");
    let output_key = format!("output_dir={}", output.display());
    let args = ["--config", "configs/lora/tiny.yaml", &output_key, &data, "~exact_match", "log_every_n_steps=1"];
    let begun = Instant::now();
    let mut child = recipe("lora", &args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let record = loop {
        if let Some(record) = first_record(&output) {
            break record;
        }
        assert_eq!(child.try_wait().unwrap(), None, "the run ended before its first step");
        assert!(begun.elapsed() < Duration::from_secs(300), "no step came");
        std::thread::sleep(Duration::from_millis(10));
    };
    let seconds = begun.elapsed().as_secs_f64();
    child.kill().unwrap();
    child.wait().unwrap();
    (seconds, record["peak_memory_bytes"].as_f64().unwrap() / f64::from(1 << 20))
}

#[test]
#[ignore = "makes 100,000 conversations; CI runs it"]
fn a_hundred_thousand_conversations_begin_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, rows| {
        let dir = folder.path().join(name);
        fs::create_dir(&dir).unwrap();
        let (seconds, peak) = first_step(&dir, rows);
        println!("{rows} conversations: first step after {seconds:.2} s, peak {peak:.0} MiB");
        (seconds, peak)
    };
    let (_, small) = run("small", 1000);
    let (seconds, large) = run("large", 100_000);
    assert!(seconds < 15.0, "the first step came after {seconds} s");
    assert!(large < small + 64.0, "{large} MiB for 100,000 conversations, {small} MiB for 1000");
}

#[test]
#[ignore = "makes 100,000 conversations; CI runs it"]
fn a_hundred_thousand_conversations_are_checked_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let data = conversations(&folder.path().join("data.jsonl"), 100_000);
    let output = format!("output_dir={}", folder.path().join("out").display());
    let begun = Instant::now();
    let said = succeed("lora", &["--check", "--config", "configs/lora/tiny.yaml", &output, &data]).stdout;
    let seconds = begun.elapsed().as_secs_f64();
    println!("100,000 conversations are checked in {seconds:.2} s");
    assert!(runs::text(&said).contains("\n            100000 samples, "), "not all were looked at");
    assert!(seconds < 30.0, "it took {seconds} s");
}

/// A run over several blocks of data that is resumed in the middle of an epoch.
#[test]
#[ignore = "trains some hundred steps; CI runs it"]
fn a_run_on_several_blocks_of_data_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let data = conversations(&folder.path().join("data.jsonl"), 9000);
    let (whole, halved) = (folder.path().join("whole"), folder.path().join("halved"));
    let run = |dir: &Path, extra: &[&str]| {
        let output = format!("output_dir={}", dir.display());
        let mut args = vec!["--config", "configs/lora/tiny.yaml", &output, &data, "~exact_match", "overwrite=false"];
        args.extend(["dataset.packed=true", "batch_size=32", "epochs=1", "checkpointer.save_every_n_steps=10"]);
        args.extend(["checkpointer.keep_last_n_checkpoints=100"]);
        args.extend(extra);
        succeed("lora", &args);
    };
    run(&whole, &[]);
    run(&halved, &[]);
    // What came after the middle never happened.
    let mut saved: Vec<_> = fs::read_dir(&halved).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    saved.retain(|p| p.join("training_state.json").exists());
    saved.sort_by_key(|p| fs::metadata(p.join("training_state.json")).unwrap().modified().unwrap());
    assert!(saved.len() > 4, "{saved:?}");
    let after = saved.split_off(saved.len() / 2);
    after.iter().for_each(|p| fs::remove_dir_all(p).unwrap());
    run(&halved, &["resume_from_checkpoint=true"]);
    let weights = |dir: &Path| fs::read(runs::newest(dir).join("adapter_model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&halved), "the adapters differ");
}

//! Starting recipes as a user does, on the tiny model, and looking at what they leave behind.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The workspace's folder, in which relative paths of the shipped configs hold.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A recipe's binary, to be started in the workspace's folder.
pub fn recipe(name: &str, args: &[&str]) -> Command {
    let binary = match name {
        "lora" => env!("CARGO_BIN_EXE_lora"),
        "kto" => env!("CARGO_BIN_EXE_kto"),
        "full" => env!("CARGO_BIN_EXE_full"),
        "distill" => env!("CARGO_BIN_EXE_distill"),
        "dpo" => env!("CARGO_BIN_EXE_dpo"),
        "pretrain" => env!("CARGO_BIN_EXE_pretrain"),
        "grpo" => env!("CARGO_BIN_EXE_grpo"),
        "ppo" => env!("CARGO_BIN_EXE_ppo"),
        "reward" => env!("CARGO_BIN_EXE_reward"),
        "qat" => env!("CARGO_BIN_EXE_qat"),
        "quantize" => env!("CARGO_BIN_EXE_quantize"),
        "generate" => env!("CARGO_BIN_EXE_generate"),
        "eleuther_eval" => env!("CARGO_BIN_EXE_eleuther_eval"),
        other => panic!("there is no recipe {other}"),
    };
    let mut command = Command::new(binary);
    command.current_dir(root()).args(args);
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn run(name: &str, args: &[&str]) -> Output {
    recipe(name, args).output().unwrap()
}

/// Runs to the end, or shows why not.
pub fn succeed(name: &str, args: &[&str]) -> Output {
    let output = run(name, args);
    assert!(output.status.success(), "{name} {args:?}: {}\n{}", output.status, text(&output.stderr));
    output
}

/// Runs into an error, and returns what it says.
pub fn fail(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let error = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{name} {args:?}: {}\n{error}", output.status);
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// The newest checkpoint's folder.
pub fn newest(output_dir: &Path) -> PathBuf {
    tune_core::checkpoint::run::latest(output_dir).unwrap().expect("a checkpoint").path
}

/// What a run logged, one record a step or a validation.
pub fn log(output_dir: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(output_dir.join("logs/metrics.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The numbers that records have under a key.
pub fn numbers(records: &[Value], key: &str) -> Vec<f64> {
    records.iter().filter_map(|record| record[key].as_f64()).collect()
}

/// Every file of a checkpoint with its bytes.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_file())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

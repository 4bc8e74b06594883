//! Nobody need read what a program says: a closed pipe and a full device stop no training, and no program panics.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use runs::{newest, recipe, root, text};

/// Every write to it fails as on a full disk.
fn full_device() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader has gone.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn run(command: &mut Command, stdout: Stdio) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    let said = text(&stderr);
    assert!(!said.contains("panicked"), "{said}");
    (status.code(), said)
}

const FULL: &str = "cannot write to the standard output: No space left on device";

#[test]
fn training_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["lora", "full"] {
        let config = format!("configs/{name}/tiny.yaml");
        let output = format!("output_dir={}", folder.path().join(name).display());
        let args = ["--config", &config, &output, "epochs=1", "max_steps_per_epoch=2"];
        let (code, said) = run(&mut recipe(name, &args), full_device());
        assert_eq!((code, said.matches(FULL).count()), (Some(0), 1), "{said}");
        newest(&folder.path().join(name));
        let (code, said) = run(&mut recipe(name, &args), closed_pipe());
        assert_eq!((code, said.matches("standard output").count()), (Some(0), 0), "{said}");
        // Nor is there anybody to be told of it.
        let mut command = recipe(name, &args);
        assert!(command.stdout(full_device()).stderr(full_device()).status().unwrap().success());
        assert!(command.stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap().success());
    }
}

/// `--config -` is the config that comes through the standard input.
#[test]
fn a_config_comes_through_the_standard_input() {
    let open = || std::fs::File::open(root().join("configs/lora/tiny.yaml")).unwrap();
    let tune = || Command::new(env!("CARGO_BIN_EXE_tune"));
    for (mut command, args) in [
        (recipe("lora", &[]), ["--config", "-", "--validate"].as_slice()),
        (tune(), ["validate", "lora", "--config", "-"].as_slice()),
        (tune(), ["run", "lora", "--config", "-", "--validate"].as_slice()),
    ] {
        let output = command.args(args).current_dir(root()).stdin(open()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("is valid"), "{args:?}: {}", text(&output.stdout));
    }
}

/// What a program was asked for has failed where it cannot be written; a reader that has gone has seen enough.
#[test]
fn what_was_asked_for_is_written_or_has_failed() {
    let tune = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
        command.args(args).current_dir(root());
        command
    };
    let commands: [&dyn Fn() -> Command; 9] = [
        &|| recipe("lora", &["--help"]),
        &|| recipe("lora", &["--config", "configs/lora/tiny.yaml", "--print-config"]),
        &|| recipe("full", &["--print-schema"]),
        &|| recipe("full", &["--explain", "E0020"]),
        &|| recipe("full", &["--completions", "bash"]),
        &|| recipe("generate", &["--config", "configs/generate/tiny.yaml"]),
        &|| tune(&["ls"]),
        &|| tune(&["cat", "lora"]),
        &|| tune(&["explain"]),
    ];
    for command in commands {
        let (code, said) = run(&mut command(), full_device());
        assert_eq!((code, said.matches("No space left on device").count()), (Some(1), 1), "{said}");
        let (code, said) = run(&mut command(), closed_pipe());
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("error"), "{said}");
    }
}

#[test]
fn a_check_keeps_its_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let check = |more: &str| recipe("lora", &["--check", "--config", "configs/lora/tiny.yaml", &output, more]);
    for (more, expected) in [("epochs=1", 0), ("dataset.data_files=nowhere.jsonl", 1)] {
        let (code, said) = run(&mut check(more), full_device());
        assert_eq!((code, said.matches(FULL).count()), (Some(expected), 1), "{said}");
        assert_eq!(run(&mut check(more), closed_pipe()).0, Some(expected));
    }
}

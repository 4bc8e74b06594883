//! The kernels' sources are run on this machine, without a card: `harness/` defines the CUDA language for a plain C++
//! compiler and compares every kernel with loops in f64; mistakes that are planted in copies of them are caught.
//!
//! The compiler is the one that `CXX` names, or g++. Without one these tests say so and pass.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

/// Tests of kernels, in `harness/tests`; a list, so that one that is forgotten is missed below.
const TESTS: [&str; 27] = [
    "attention_backward",
    "attention_backward_sm90a",
    "attention_decode",
    "attention_forward",
    "attention_forward_sm90a",
    "attention_plain",
    "columns",
    "dequantize",
    "distillation",
    "dropout",
    "experts",
    "fake_blocks",
    "fake_quant",
    "gate",
    "general_distillation",
    "grouped",
    "loss",
    "norm",
    "optim",
    "optim_8bit",
    "optim_means",
    "rotary",
    "routes",
    "rows",
    "sample",
    "token_columns",
    "top_middle",
];

/// Mutants of `harness/mutants.sh` that are quick to build: a missing barrier, a wrong reduction, an off-by-one, a race in
/// place, a wrong index. `cargo xtask ci` plants all of them.
const MUTANTS: [&str; 5] = ["1", "3", "4", "7", "10"];

fn script(name: &str, arguments: &[&str]) -> std::io::Result<Output> {
    Command::new("sh").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("harness").join(name)).args(arguments).output()
}

fn has_compiler() -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let found = Command::new(&compiler).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        // Past the capture of a test's output: this must be seen.
        #[expect(clippy::disallowed_methods, reason = "a test that cannot write fails")]
        let mut seen = std::io::stderr();
        let notice =
            format!("NOTICE: no C++ compiler ({compiler}) here; the CUDA kernels are NOT run without a card\n");
        seen.write_all(notice.as_bytes()).ok();
    }
    found
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_kernel_is_right_in_every_order_of_its_threads() {
    if !has_compiler() {
        return;
    }
    let failures: Vec<String> = std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            scope.spawn(move || {
                let tests = TESTS.iter().skip(half).step_by(2);
                let outputs = tests.map(|test| script("run.sh", &[test]).expect("sh runs"));
                outputs.filter(|o| !o.status.success()).map(|o| text(&o)).collect::<Vec<_>>()
            })
        });
        halves.into_iter().flat_map(|h| h.join().expect("a thread that runs tests")).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn no_test_is_forgotten() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("harness/tests");
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder of the kernels' tests")
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_string()))
        .collect();
    found.sort();
    assert_eq!(found, TESTS);
}

#[test]
fn planted_mistakes_are_caught() {
    if !has_compiler() {
        return;
    }
    let output = script("mutants.sh", &MUTANTS).expect("sh runs");
    assert!(output.status.success(), "{}", text(&output));
}

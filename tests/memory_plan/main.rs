//! What a run says that it needs of memory, against what it then takes.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod methods;
#[path = "../common/plans.rs"]
mod plans;
#[path = "../common/random_model.rs"]
mod random_model;
#[path = "../common/runs.rs"]
mod runs;
mod settings;
#[path = "../common/stand_in.rs"]
mod stand_in;
mod what_fits;

use std::fs;
use std::path::Path;

use plans::{MIB, is_close};
use runs::{recipe, succeed, text};
use serde_json::Value;

/// What the run would need, in MiB, as it says itself where there is almost nothing.
fn planned(name: &str, args: &[&str]) -> f64 {
    let output = recipe(name, args).env("TUNE_MEMORY", "1KiB").output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let (_, said) = error.split_once("this run needs ").unwrap_or_else(|| panic!("{error}"));
    let words: Vec<&str> = said.split_whitespace().take(2).collect();
    assert_eq!(words[1], "MiB", "{error}");
    words[0].parse().unwrap()
}

/// The most that it held while it trained, in MiB.
fn measured(name: &str, args: &[&str], output_dir: &Path) -> f64 {
    succeed(name, args);
    let log = fs::read_to_string(output_dir.join("logs/metrics.jsonl")).unwrap();
    let mut peaks = log.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["peak_memory_bytes"].as_f64());
    peaks.next_back().unwrap() / MIB
}

/// Plans and what is taken, line by line.
#[derive(Default)]
struct Table {
    lines: String,
    is_wrong: bool,
    /// MiB by which a plan may be too high, whatever share of a small run that is.
    slack: f64,
}

impl Table {
    /// Runs a recipe, and adds a line. Returns what it took, in MiB.
    fn compare(&mut self, what: &str, name: &str, args: &[impl AsRef<str>]) -> f64 {
        let folder = tempfile::tempdir().unwrap();
        let output = format!("output_dir={}", folder.path().display());
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).chain([output.as_str()]).collect();
        let (plan, peak) = (planned(name, &args), measured(name, &args, folder.path()));
        let off = plan / peak - 1.0;
        self.is_wrong |= !is_close(plan, peak, self.slack);
        self.lines.push_str(&format!("{what:<36}{plan:>8.1}{peak:>8.1} MiB {:>+6.1} %\n", 100.0 * off));
        peak
    }

    fn check(&self) {
        println!("{:<36}{:>8}{:>8}\n{}", "", "planned", "taken", self.lines);
        assert!(!self.is_wrong, "\n{}", self.lines);
    }
}

/// Runs each of the recipes with and without activation checkpointing, in both precisions.
fn compare(recipes: &[&str], slack: f64, args: impl Fn(&str) -> Vec<String>) {
    let mut table = Table { slack, ..Table::default() };
    for name in recipes {
        for dtype in ["fp32", "bf16"] {
            for checkpointing in [false, true] {
                let mut args = args(name);
                args.push(format!("dtype={dtype}"));
                args.push(format!("enable_activation_checkpointing={checkpointing}"));
                table.compare(&format!("{name} {dtype}, checkpointing {checkpointing}"), name, &args);
            }
        }
    }
    table.check();
}

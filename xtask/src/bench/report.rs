//! Results: a JSON file with everything, and a table beside it to read.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cases::Case;
use tune_core::engine;

use super::flops::{self, Work};
use super::machine::Place;
use super::ours::Peak;
use super::run::{Program, Run, WARM_UP, median};
use crate::Result;

/// How far the first losses of two programs may be apart, relative: they computed the same then.
const SAME_LOSS: [(&str, f64); 2] = [("fp32", 1e-3), ("bf16", 2e-2)];

/// Everything that one call measured.
pub(super) struct Report {
    /// Where it is written, without the extension.
    pub path: PathBuf,
    pub place: Place,
    pub rounds: usize,
    pub steps: usize,
    pub threads: usize,
    /// What each program said of itself, or why it was not run.
    pub accounts: Vec<(Program, String)>,
    pub cases: Vec<Measured>,
    /// What was measured of generation, in lines; empty where it was not.
    pub generation: String,
}

/// What was measured of one case.
pub(super) struct Measured {
    pub case: Case,
    pub steps: Vec<Work>,
    pub flops: Vec<engine::Work>,
    /// The peers that went through `torch.compile`.
    pub compiled: Vec<Program>,
    /// The yardstick, once a round.
    pub peaks: Vec<Peak>,
    /// By round, in the order in which they were made.
    pub runs: Vec<(Program, usize, Run)>,
    /// Runs that failed, with the reason.
    pub failures: Vec<(Program, String)>,
}

/// The medians over a program's rounds.
struct Summary {
    tokens_per_second: f64,
    peak_memory: f64,
    first_forward: f64,
    first_step: f64,
    share: f64,
    first_loss: f64,
}

/// A path in `folder` for results made at `place`, without the extension. Those of an earlier call are kept.
pub(super) fn free_path(folder: &Path, place: &Place) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let stem = place.file_stem();
    let mut path = folder.join(&stem);
    let mut number = 2;
    while path.with_added_extension("json").exists() {
        path = folder.join(format!("{stem}-{number}"));
        number += 1;
    }
    Ok(path)
}

impl Measured {
    fn peak(&self) -> f64 {
        median(self.peaks.iter().map(|p| p.of(self.case.dtype)).collect())
    }

    /// The share of tokens that is trained.
    pub(super) fn trained_share(&self) -> f64 {
        let tokens: usize = self.steps.iter().flat_map(|w| &w.samples).sum();
        self.steps.iter().map(|w| w.trained).sum::<usize>() as f64 / tokens as f64
    }

    fn summary(&self, program: Program) -> Option<Summary> {
        let runs: Vec<&Run> = self.runs.iter().filter(|(p, ..)| *p == program).map(|(.., run)| run).collect();
        let first = runs.first()?;
        let over = |of: &dyn Fn(&Run) -> f64| median(runs.iter().map(|run| of(run)).collect());
        let flops: Vec<f64> = self.flops.iter().map(engine::Work::total).collect();
        Some(Summary {
            tokens_per_second: over(&|run| run.tokens_per_second(&self.steps)),
            peak_memory: over(&|run| run.peak_memory as f64),
            first_forward: over(&Run::to_first_forward),
            first_step: over(&Run::to_first_step),
            share: over(&|run| run.rate(&flops)) / (self.peak() * 1e9),
            first_loss: first.losses.first().copied().unwrap_or(f64::NAN),
        })
    }

    /// Programs whose first loss is not ours.
    pub(super) fn strangers(&self) -> Vec<Program> {
        let allowed = SAME_LOSS.iter().find(|(dtype, _)| *dtype == self.case.dtype).map_or(0.0, |(_, off)| *off);
        let Some(ours) = self.summary(Program::Ours) else { return Vec::new() };
        [Program::Torchtune, Program::Peft]
            .into_iter()
            .filter(|program| {
                let Some(theirs) = self.summary(*program) else { return false };
                let off = (theirs.first_loss / ours.first_loss - 1.0).abs();
                off.is_nan() || off > allowed
            })
            .collect()
    }

    /// The rows of the table.
    fn rows(&self) -> String {
        let mut rows = String::new();
        let ours = self.summary(Program::Ours);
        for program in [Program::Ours, Program::Torchtune, Program::Peft] {
            let Some(s) = self.summary(program) else { continue };
            let against = |of: fn(&Summary) -> f64| match &ours {
                Some(ours) if program != Program::Ours => format!("{:.2} x", of(ours) / of(&s)),
                _ => String::new(),
            };
            let way = if self.compiled.contains(&program) { ", compiled" } else { "" };
            let strange = if self.strangers().contains(&program) { " (not ours!)" } else { "" };
            let _ = writeln!(
                rows,
                "| {} | {program}{way} | {:.0} | {} | {:.2} GB | {} | {:.1} s | {:.1} s | {:.0} % | {:.4}{strange} |",
                self.case,
                s.tokens_per_second,
                against(|s| s.tokens_per_second),
                s.peak_memory / 1e9,
                against(|s| s.peak_memory),
                s.first_forward,
                s.first_step,
                100.0 * s.share,
                s.first_loss,
            );
        }
        for (program, reason) in &self.failures {
            let first = reason.lines().next().unwrap_or_default();
            let _ = writeln!(rows, "| {} | {program} | failed: {first} | | | | | | | |", self.case);
        }
        rows
    }

    fn json(&self) -> Value {
        let summaries = [Program::Ours, Program::Torchtune, Program::Peft].into_iter().filter_map(|program| {
            let s = self.summary(program)?;
            let summary = json!({
                "tokens_per_second": s.tokens_per_second,
                "peak_memory_bytes": s.peak_memory,
                "seconds_to_first_forward": s.first_forward,
                "seconds_to_first_step": s.first_step,
                "share_of_peak": s.share,
                "first_loss": s.first_loss,
            });
            Some((program.to_string(), summary))
        });
        json!({
            "case": self.case.json(),
            "compiled": self.compiled.iter().map(Program::to_string).collect::<Vec<_>>(),
            "trained_share": self.trained_share(),
            "tokens": self.steps.iter().map(|w| w.samples.iter().sum()).collect::<Vec<usize>>(),
            "trained_tokens": self.steps.iter().map(|w| w.trained).collect::<Vec<_>>(),
            "flops": self.flops.iter().map(flops::json).collect::<Vec<_>>(),
            "peak_gflops": self.peaks.iter().map(|p| p.of(self.case.dtype)).collect::<Vec<_>>(),
            "medians": summaries.collect::<serde_json::Map<_, _>>(),
            "runs": self.runs.iter().map(|(p, round, run)| run.json(*p, *round, &self.steps)).collect::<Vec<_>>(),
            "failures": self.failures.iter().map(|(p, reason)| json!({ "program": p.to_string(), "reason": reason })).collect::<Vec<_>>(),
        })
    }
}

impl Report {
    /// Writes both files anew.
    pub(super) fn write(&self) -> Result<()> {
        let json = json!({
            "machine": self.place.json(),
            "settings": {
                "rounds": self.rounds,
                "steps": self.steps,
                "warm_up_steps": WARM_UP,
                "threads": self.threads,
                "programs": self.accounts.iter().map(|(p, a)| (p.to_string(), json!(a))).collect::<serde_json::Map<_, _>>(),
            },
            "cases": self.cases.iter().map(Measured::json).collect::<Vec<_>>(),
            "generation": self.generation.lines().collect::<Vec<_>>(),
        });
        fs::write(self.path.with_added_extension("json"), serde_json::to_string_pretty(&json)? + "\n")?;
        fs::write(self.path.with_added_extension("md"), self.table())?;
        Ok(())
    }

    /// The readable account.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let place = &self.place;
        let _ = writeln!(text, "# {}, {} cores, commit {}\n", place.cpu, place.cores, place.commit);
        let _ = writeln!(
            text,
            "{}{}. Our kernels use {}. {} threads, {} rounds in alternation, {} steps each, of which the first {WARM_UP} do not count. \
             Made by `cargo xtask bench`, which explains itself with `--help`.\n",
            place.date,
            if place.changed { ", with changes that are not committed" } else { "" },
            place.kernels,
            self.threads,
            self.rounds,
            self.steps,
        );
        for (program, account) in &self.accounts {
            let _ = writeln!(text, "- {program}: {account}");
        }
        text.push_str(
            "\n| case | program | tokens/s | ours is | peak memory | ours takes | to first forward | \
             to end of first step | share of matmul peak | first loss |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for measured in &self.cases {
            text.push_str(&measured.rows());
        }
        text.push('\n');
        for measured in &self.cases {
            let flops = measured.flops.first().map_or(0.0, engine::Work::total);
            let _ = writeln!(
                text,
                "- {}: {}; {:.1} % of the tokens trained; {:.0} GFLOP in the first step; matmul peak {:.0} GFLOP/s",
                measured.case,
                measured.case.words(),
                100.0 * measured.trained_share(),
                flops / 1e9,
                measured.peak(),
            );
        }
        text.push_str(
            "\nMedians over rounds of medians over steps. Tokens are those of samples, padding not counted. Peak memory is \
             the process's largest resident set, mapped files and, for ours, the saving of the result included; the others \
             save nothing. The share is of the operations that a step needs (`tune_core::engine::Work`) in our own \
             2048 x 2048 x 2048 product.\n",
        );
        if !self.generation.is_empty() {
            let lines = self.generation.trim_end();
            let _ = writeln!(
                text,
                "\nNew tokens of SmolLM2-135M-Instruct, 200 behind each prompt, greedily, by `tune-core/examples/generation.rs`; \
                 `OfTraining` gives the bits of training. `benches/serving.py` compares with llama.cpp.\n\n```text\n{lines}\n```"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of `seconds` at this first loss, in 2 GB times `seconds`.
    fn run(seconds: f64, loss: f64) -> Run {
        Run {
            started: 0.0,
            first_forward: 1.0,
            ends: (1..=4).map(|i| 1.0 + seconds * f64::from(i)).collect(),
            losses: vec![loss; 4],
            peak_memory: (2e9 * seconds) as u64,
        }
    }

    fn measured(runs: Vec<(Program, usize, Run)>) -> Measured {
        Measured {
            case: "lora_fp32_64".parse().unwrap(),
            steps: vec![Work { samples: vec![100], trained: 50 }; 4],
            flops: vec![engine::Work { layers: 5e9, ..Default::default() }; 4],
            compiled: vec![Program::Peft],
            peaks: vec![Peak { fp32: 10.0, bf16: 1.0 }],
            runs,
            failures: vec![(Program::Torchtune, "out of memory\nmore of it".to_owned())],
        }
    }

    #[test]
    fn the_table_compares_with_ours() {
        let rows = measured(vec![(Program::Ours, 1, run(1.0, 2.0)), (Program::Peft, 1, run(4.0, 2.0001))]).rows();
        let rows: Vec<&str> = rows.lines().collect();
        assert_eq!(rows[0], "| lora_fp32_64 | ours | 100 |  | 2.00 GB |  | 1.0 s | 2.0 s | 50 % | 2.0000 |");
        assert_eq!(
            rows[1],
            "| lora_fp32_64 | peft, compiled | 25 | 4.00 x | 8.00 GB | 0.25 x | 1.0 s | 5.0 s | 12 % | 2.0001 |"
        );
        assert!(rows[2].contains("torchtune | failed: out of memory |"), "{}", rows[2]);
    }

    #[test]
    fn a_program_that_computes_something_else_is_found() {
        let ours = || (Program::Ours, 1, run(1.0, 2.0));
        assert!(measured(vec![ours(), (Program::Peft, 1, run(1.0, 2.001))]).strangers().is_empty());
        for loss in [2.1, f64::NAN] {
            assert_eq!(measured(vec![ours(), (Program::Peft, 1, run(1.0, loss))]).strangers(), [Program::Peft]);
        }
    }
}

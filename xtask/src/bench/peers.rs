//! The programs that ours are compared with, each in a Python environment of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tune_core::config::say;

use super::cases::Case;
use super::data::Prepared;
use super::flops::{LORA_ATTENTION, LORA_RANK};
use super::run::{Program, Run, WARM_UP};
use super::{Setting, process};
use crate::{Result, python};

/// A peer that is installed.
pub(super) struct Peer {
    pub program: Program,
    python: PathBuf,
    script: PathBuf,
    /// What it said of its settings and versions when it last ran.
    pub account: Option<String>,
}

/// Whether the peers go through `torch.compile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Compile {
    Never,
    Always,
    /// Both ways once before a case begins; then the faster.
    Try,
}

/// Steps of a trial run after the warm-up.
const TRIAL_STEPS: usize = 2;

impl Peer {
    /// Installs a peer from the package index into `venv/NAME`, unless it is there.
    pub(super) fn install(program: Program, root: &Path, venv: &Path) -> Result<Self> {
        let scripts = root.join("xtask/src/bench/peers");
        let requirements = scripts.join(format!("{program}.txt"));
        let wanted = fs::read_to_string(&requirements)?;
        let wanted: Vec<&str> = wanted.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let name = program.to_string();
        let programs = python::environment(&venv.join(&name), &name, &wanted)?;
        Ok(Self {
            program,
            python: programs.join("python"),
            script: scripts.join(format!("{program}_run.py")),
            account: None,
        })
    }

    /// Finds out whether the peer is faster when it is compiled. What cannot be compiled is not.
    pub(super) fn is_faster_compiled(&mut self, case: &Case, data: &Prepared, setting: &Setting) -> bool {
        let trial = Setting { steps: setting.steps.min(WARM_UP + TRIAL_STEPS), ..setting.clone() };
        let mut speed = |compile: bool| {
            let tried = self.train(case, data, &trial, compile).map(|run| run.tokens_per_second(&data.steps));
            let way = if compile { "compiled" } else { "as it is" };
            match &tried {
                Ok(speed) => say!("  trial    {:<10} {speed:>6.0} tokens/s {way}", self.program),
                Err(reason) => say!("  trial    {:<10} {way}: {reason}", self.program),
            }
            tried.unwrap_or(0.0)
        };
        speed(false) < speed(true)
    }

    /// Trains, on the rows that our recipe trains on.
    pub(super) fn train(&mut self, case: &Case, data: &Prepared, setting: &Setting, compile: bool) -> Result<Run> {
        let file = |what: &str| setting.folder.join(format!("{}{what}", self.program));
        let (settings, out) = (file("_settings.json"), file(".json"));
        let told = json!({
            "model": setting.model,
            "rows": data.rows,
            "recipe": case.recipe,
            "dtype": case.dtype,
            "seq": case.seq,
            "batch": case.batch,
            "checkpointing": case.checkpointing,
            "steps": setting.steps,
            "threads": setting.threads,
            "lr": setting.lr,
            "lora": { "attn_modules": LORA_ATTENTION, "rank": LORA_RANK, "alpha": 2 * LORA_RANK },
            "compile": compile,
            "out": out,
        });
        fs::write(&settings, told.to_string())?;
        let threads = setting.threads.to_string();
        let mut command = Command::new(&self.python);
        command
            .arg(&self.script)
            .arg(&settings)
            .envs([("OMP_NUM_THREADS", &threads), ("MKL_NUM_THREADS", &threads)])
            .env("TORCHINDUCTOR_CACHE_DIR", setting.root.join("target/bench/inductor"))
            .envs([("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("PYTHONDONTWRITEBYTECODE", "1")]);
        let finished = process::run(&mut command, &file(".log"))?;

        let record: Value = serde_json::from_str(&fs::read_to_string(&out)?)?;
        let steps = record["steps"].as_array().ok_or("the record has no steps")?;
        if steps.len() != setting.steps {
            return Err(format!("{} took {} steps, not {}", self.program, steps.len(), setting.steps).into());
        }
        let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
        let versions = record["versions"].as_object().into_iter().flatten();
        let versions: Vec<String> =
            versions.map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or("?"))).collect();
        self.account = Some(format!("{}; {}", versions.join(", "), record["settings"].as_str().unwrap_or_default()));
        Ok(Run {
            started: finished.started,
            first_forward: number(&record["first_forward"]),
            ends: steps.iter().map(|s| number(&s["time"])).collect(),
            losses: steps.iter().map(|s| number(&s["loss"])).collect(),
            peak_memory: finished.peak_memory.max(record["peak_memory_bytes"].as_u64().unwrap_or(0)),
        })
    }
}

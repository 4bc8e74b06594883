//! Our recipes and our matrix product, as they are released.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tune_core::cargo;

use super::cases::{Base, Case};
use super::data::{self, Prepared};
use super::flops::{LORA_ATTENTION, LORA_RANK};
use super::run::Run;
use super::{Setting, process};
use crate::Result;

/// What is in force in all of our runs, in words.
pub(super) const SETTINGS: &str =
    "release build, the shipped config of SmolLM2-135M with batch, data and precision of the case";

/// The programs, built.
pub(super) struct Ours(BTreeMap<String, PathBuf>);

/// The speed of the matrix product in GFLOP/s.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peak {
    pub fp32: f64,
    pub bf16: f64,
}

impl Peak {
    pub(super) fn of(&self, dtype: &str) -> f64 {
        if dtype == "fp32" { self.fp32 } else { self.bf16 }
    }
}

impl Ours {
    /// Builds the recipes and the yardstick.
    pub(super) fn build(root: &Path) -> Result<Self> {
        let output = cargo::command()
            .current_dir(root)
            .args(["build", "--release", "--message-format=json-render-diagnostics"])
            .args(["-p", "recipes", "--bin", "lora", "--bin", "full"])
            .args(["-p", "tune-core", "--example", "matmul_peak", "--example", "generation"])
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err("the recipes do not build".into());
        }
        let mut programs = BTreeMap::new();
        for line in String::from_utf8(output.stdout)?.lines() {
            let message: Value = serde_json::from_str(line)?;
            if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
                programs.insert(name.to_owned(), PathBuf::from(path));
            }
        }
        Ok(Self(programs))
    }

    fn program(&self, name: &str) -> Result<&Path> {
        Ok(self.0.get(name).ok_or_else(|| format!("cargo built no program `{name}`"))?)
    }

    /// Measures the matrix product.
    pub(super) fn peak(&self, threads: usize) -> Result<Peak> {
        let output =
            Command::new(self.program("matmul_peak")?).env("RAYON_NUM_THREADS", threads.to_string()).output()?;
        if !output.status.success() {
            return Err(format!("matmul_peak failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let speeds: Value = serde_json::from_slice(&output.stdout)?;
        let speed = |dtype: &str| speeds[dtype].as_f64().ok_or("matmul_peak printed no number");
        Ok(Peak { fp32: speed("fp32")?, bf16: speed("bf16")? })
    }

    /// How fast the model generates, in lines for people.
    pub(super) fn generation(&self, model: &Path, threads: usize) -> Result<String> {
        let output = Command::new(self.program("generation")?)
            .env("RAYON_NUM_THREADS", threads.to_string())
            .arg(model)
            .output()?;
        if !output.status.success() {
            return Err(format!("generation failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Trains. Times and losses are those of the run's own log.
    pub(super) fn train(&self, case: &Case, data: &Prepared, setting: &Setting) -> Result<Run> {
        let out = setting.folder.join("ours");
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        let mut command = Command::new(self.program(case.recipe)?);
        command
            .current_dir(&setting.root)
            .env("RAYON_NUM_THREADS", setting.threads.to_string())
            .args(["--config", &format!("configs/{}/smollm2_135m.yaml", case.recipe)])
            .args(data::overrides(case, data))
            .arg(format!("output_dir={}", out.display()))
            .arg(format!("checkpointer.checkpoint_dir={}", setting.checkpoint.display()))
            .arg(format!("dtype={}", case.dtype))
            .arg(format!("batch_size={}", case.batch))
            .arg(format!("max_steps_per_epoch={}", setting.steps))
            .arg(format!("enable_activation_checkpointing={}", case.checkpointing))
            .arg(format!("optimizer.lr={}", setting.lr))
            .args(["seed=0", "shuffle=false", "gradient_accumulation_steps=1", "epochs=1"])
            .args(["lr_scheduler=constant", "lr_scheduler.num_warmup_steps=0"]);
        if case.recipe == "lora" {
            command
                .arg(format!("model.lora_attn_modules=[{}]", LORA_ATTENTION.join(", ")))
                .arg("model.apply_lora_to_mlp=true")
                .arg(format!("model.quantize_base={}", case.base == Base::Nf4))
                .arg(format!("model.lora_rank={LORA_RANK}"));
        }
        let finished = process::run(&mut command, &setting.folder.join("ours.log"))?;

        let log = fs::read_to_string(out.join("logs/metrics.jsonl"))?;
        // A checkpoint of the model for each case would fill the disk.
        fs::remove_dir_all(&out)?;
        let records: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let steps: Vec<&Value> = records.iter().filter(|r| r.get("loss").is_some()).collect();
        check_tokens(&steps, data)?;
        let numbers = |key: &str| steps.iter().map(|s| s[key].as_f64().unwrap_or(f64::NAN)).collect::<Vec<_>>();
        let ends = numbers("time");
        let logged_peak = steps.iter().filter_map(|s| s["peak_memory_bytes"].as_u64()).max().unwrap_or(0);
        Ok(Run {
            started: finished.started,
            // A step begins when its first batch is fetched, which is ready.
            first_forward: ends.first().copied().unwrap_or(f64::NAN) - numbers("step_seconds")[0],
            ends,
            losses: numbers("loss"),
            peak_memory: finished.peak_memory.max(logged_peak),
        })
    }
}

/// The recipe must have seen the tokens that the others are given.
fn check_tokens(steps: &[&Value], data: &Prepared) -> Result<()> {
    if steps.len() != data.steps.len() {
        return Err(format!("our recipe took {} steps, not {}", steps.len(), data.steps.len()).into());
    }
    for (i, (step, work)) in steps.iter().zip(&data.steps).enumerate() {
        let found = (step["tokens"].as_u64(), step["trained_tokens"].as_u64());
        let expected = (Some(work.samples.iter().sum::<usize>() as u64), Some(work.trained as u64));
        if found != expected {
            return Err(format!(
                "step {} of our recipe had {found:?} tokens and trained ones, not {expected:?}",
                i + 1
            )
            .into());
        }
    }
    Ok(())
}

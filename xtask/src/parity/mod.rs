//! The recipes against torchtune, step by step, on a real model of 135M parameters.

mod bf16;
mod curve;
mod dpo;
mod fp32;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tune_core::cargo;

use self::curve::Curve;
use crate::Result;

/// What `parity` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with the model as `tests/fixtures/smollm2/prepare.sh` makes it; made there if it is missing.
    #[arg(long, default_value = "target/parity/smollm2")]
    model: PathBuf,
    /// Only the runs in this precision.
    #[arg(long)]
    dtype: Option<Precision>,
    /// Only the runs of this recipe: lora, full or dpo.
    #[arg(long)]
    recipe: Option<String>,
}

/// What a run computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Precision {
    Fp32,
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        })
    }
}

/// The recipes that torchtune has a curve of, of losses and gradient norms.
const RECIPES: [&str; 2] = ["lora", "full"];

/// Runs the recipes and compares them with torchtune's curves.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let model = root.join(&args.model);
    let prepared = Command::new("bash").arg(root.join("tests/fixtures/smollm2/prepare.sh")).arg(&model).status()?;
    if !prepared.success() {
        return Err("the model could not be prepared".into());
    }
    let wanted = |precision| args.dtype.is_none_or(|only| only == precision);
    let is_wanted = |recipe: &&str| args.recipe.as_deref().is_none_or(|only| only == *recipe);
    let recipes: Vec<&str> = RECIPES.into_iter().filter(is_wanted).collect();
    let mut within = true;
    if wanted(Precision::Fp32) && !recipes.is_empty() {
        within &= fp32::compare(root, &model, &recipes)?;
    }
    if wanted(Precision::Fp32) && is_wanted(&"dpo") {
        within &= dpo::compare(root, &model)?;
    }
    if wanted(Precision::Bf16) && !recipes.is_empty() {
        within &= bf16::compare(root, &model, &recipes)?;
    }
    if within { Ok(()) } else { Err("a run is further from torchtune than is allowed".into()) }
}

/// torchtune's run, made by `tests/fixtures/torchtune/run.py`.
fn torchtune(root: &Path, recipe: &str, precision: Precision) -> Result<Curve> {
    let suffix = if precision == Precision::Bf16 { "_bf16" } else { "" };
    Ok(Curve::of(&torchtune_steps(root, &format!("{recipe}_sft{suffix}"))?))
}

/// What torchtune logged at each step.
fn torchtune_steps(root: &Path, name: &str) -> Result<Vec<Value>> {
    let path = root.join(format!("tests/fixtures/torchtune/{name}.json"));
    let file: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    Ok(file["steps"].as_array().ok_or("the curve has no steps")?.clone())
}

/// Our run in torchtune's settings, from a checkpoint of the given kind.
fn train(root: &Path, recipe: &str, precision: Precision, kind: &str, checkpoint: &Path) -> Result<Curve> {
    let fixtures = root.join("tests/fixtures/torchtune");
    let data = fixtures.join("humaneval_messages.jsonl");
    let mut settings = vec![format!("dataset.data_files=[{}]", data.display()), "max_steps_per_epoch=20".to_owned()];
    if recipe == "lora" {
        settings.extend(from_initial_adapter(root));
    } else {
        settings.extend(["lr_scheduler=constant", "lr_scheduler.num_warmup_steps=0"].map(str::to_owned));
    }
    Ok(Curve::of(&steps(root, recipe, precision, kind, checkpoint, &settings)?))
}

/// The adapter that torchtune's runs began with, and their warm-up.
fn from_initial_adapter(root: &Path) -> [String; 2] {
    let adapter = root.join("tests/fixtures/torchtune/lora_initial_adapter");
    let adapter = format!("checkpointer.adapter_checkpoint={}", adapter.display());
    [adapter, "lr_scheduler.num_warmup_steps=2".to_owned()]
}

/// What our run logs at each step.
fn steps(
    root: &Path,
    recipe: &str,
    precision: Precision,
    kind: &str,
    checkpoint: &Path,
    settings: &[String],
) -> Result<Vec<Value>> {
    let out = root.join(format!("target/parity/{recipe}_{kind}_{precision}"));
    let mut command = cargo::command();
    command
        .current_dir(root)
        .args(["run", "--quiet", "-p", "recipes", "--bin", recipe, "--", "--config"])
        .arg(format!("configs/{recipe}/smollm2_135m.yaml"))
        .arg(format!("output_dir={}", out.display()))
        .arg(format!("checkpointer.checkpoint_dir={}", checkpoint.display()))
        .args(["overwrite=true", "seed=0", "shuffle=false", "gradient_accumulation_steps=1"])
        .arg(format!("dtype={precision}"))
        // The curves were made from bf16 weights; the GGUF file's are finer.
        .arg("checkpointer.round_to=bf16")
        .args(settings);
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!(
            "{recipe} in {precision} from {kind} failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    let log = fs::read_to_string(out.join("logs/metrics.jsonl"))?;
    let records: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(records.into_iter().filter(|r| r.get("loss").is_some()).collect())
}

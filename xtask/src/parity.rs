//! The recipes against torchtune, step by step, on a real model of 135M parameters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::Result;

/// What `parity` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with the model as `tests/fixtures/smollm2/prepare.sh` makes it; made there if it is missing.
    #[arg(long, default_value = "target/parity/smollm2")]
    model: PathBuf,
}

/// Relative differences that are allowed: the first step's loss, every loss, every gradient norm.
const FIRST_LOSS: f64 = 1e-4;
const LOSS: f64 = 1e-3;
const GRAD_NORM: f64 = 1e-2;

/// Runs `full` and `lora` from the Hugging Face folder and from the GGUF file, and compares them with torchtune's curves.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let model = root.join(&args.model);
    let fixtures = root.join("tests/fixtures");
    let prepared = Command::new("bash").arg(fixtures.join("smollm2/prepare.sh")).arg(&model).status()?;
    if !prepared.success() {
        return Err("the model could not be prepared".into());
    }
    let hf = model.join("hf");
    let gguf = model.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    println!("{:<20} {:>14} {:>14} {:>14}", "run", "first loss", "worst loss", "worst norm");
    let mut within = true;
    for recipe in ["lora", "full"] {
        let curve = fixtures.join(format!("torchtune/{recipe}_sft.json"));
        let expected: Value = serde_json::from_str(&fs::read_to_string(curve)?)?;
        for (kind, checkpoint) in [("hf", &hf), ("gguf", &gguf)] {
            let steps = train(root, recipe, kind, checkpoint)?;
            let expected = expected["steps"].as_array().ok_or("the curve has no steps")?;
            if steps.len() != expected.len() {
                return Err(format!("{recipe} took {} steps instead of {}", steps.len(), expected.len()).into());
            }
            let off = |key: &str| -> Vec<f64> {
                let number = |v: &Value| v[key].as_f64().unwrap_or(f64::NAN);
                steps.iter().zip(expected).map(|(a, b)| (number(a) / number(b) - 1.0).abs()).collect()
            };
            let worst = |values: &[f64]| values.iter().fold(0f64, |m, &x| if x <= m { m } else { x });
            let (losses, norms) = (off("loss"), off("grad_norm"));
            let (first, loss, norm) = (losses[0], worst(&losses), worst(&norms));
            println!("{:<20} {first:>14.1e} {loss:>14.1e} {norm:>14.1e}", format!("{recipe} from {kind}"));
            within &= first <= FIRST_LOSS && loss <= LOSS && norm <= GRAD_NORM;
        }
    }
    println!("{:<20} {FIRST_LOSS:>14.1e} {LOSS:>14.1e} {GRAD_NORM:>14.1e}", "allowed");
    if within { Ok(()) } else { Err("a run is further from torchtune than is allowed".into()) }
}

/// One run in torchtune's settings; its records, one a step.
fn train(root: &Path, recipe: &str, kind: &str, checkpoint: &Path) -> Result<Vec<Value>> {
    let out = root.join(format!("target/parity/{recipe}_{kind}"));
    let fixtures = root.join("tests/fixtures/torchtune");
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(root)
        .args(["run", "--quiet", "-p", "recipes", "--bin", recipe, "--", "--config"])
        .arg(format!("configs/{recipe}/smollm2_135m.yaml"))
        .arg(format!("output_dir={}", out.display()))
        .arg(format!("checkpointer.checkpoint_dir={}", checkpoint.display()))
        .arg(format!("dataset.data_files=[{}]", fixtures.join("humaneval_messages.jsonl").display()))
        .args(["overwrite=true", "seed=0", "shuffle=false", "gradient_accumulation_steps=1", "max_steps_per_epoch=20"])
        // The curves were made from bf16 weights; the GGUF file's are finer.
        .arg("checkpointer.round_to=bf16");
    if recipe == "lora" {
        let adapter = fixtures.join("lora_initial_adapter");
        command
            .arg(format!("checkpointer.adapter_checkpoint={}", adapter.display()))
            .arg("lr_scheduler.num_warmup_steps=2");
    } else {
        command.args(["lr_scheduler=constant", "lr_scheduler.num_warmup_steps=0"]);
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{recipe} from {kind} failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let log = fs::read_to_string(out.join("logs/metrics.jsonl"))?;
    let records: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(records.into_iter().filter(|r| r.get("loss").is_some()).collect())
}

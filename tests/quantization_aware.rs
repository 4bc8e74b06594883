//! The recipe `qat` as a user runs it: what is lost when a model is quantized, with it and without, and what a mistake is told.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;
use std::process::Command;

use runs::{fail, root, run as run_recipe, succeed, text};
use serde_json::Value;

/// The training data but for a tenth, on which models are measured.
const SPLIT: [&str; 2] = [
    "dataset.split=train[:90%]",
    "dataset_val={_component_: chat, data_files: [recipes/tiny/data/secret_code.jsonl], conversation_style: openai, \
     split: 'train[90%:]'}",
];

fn log(output_dir: &Path, key: &str) -> Vec<f64> {
    let log = fs::read_to_string(output_dir.join("logs/metrics.jsonl")).unwrap();
    log.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()[key].as_f64()).collect()
}

/// Runs a recipe's tiny config into a folder of that name.
fn run(folder: &Path, name: &str, recipe: &str, extra: &[&str]) {
    let (config, output) = (format!("configs/{recipe}/tiny.yaml"), folder.join(name));
    let output = format!("output_dir={}", output.display());
    succeed(recipe, &[&["--config", &config, &output, "log_every_n_steps=1"][..], extra].concat());
}

/// The run as a GGUF file of 4 bits, and the loss of that on what was held out.
fn loss_of_file(folder: &Path, name: &str) -> f64 {
    let file = folder.join(format!("{name}.gguf"));
    let mut tune = Command::new(env!("CARGO_BIN_EXE_tune"));
    tune.current_dir(root()).arg("quantize").arg(folder.join(name)).args(["--type", "q4_0", "--to"]).arg(&file);
    let output = tune.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let measured = format!("{name}_measured");
    let base = format!("checkpointer.checkpoint_dir={}", file.display());
    run(folder, &measured, "full", &[&SPLIT[..], &[&base, "max_steps_per_epoch=1"]].concat());
    log(&folder.join(measured), "val_loss")[0]
}

/// Both runs see the same data in the same order; the one is trained plainly and the other as the file that it becomes.
#[test]
fn a_file_of_few_bits_loses_less() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(folder, "plain", "full", &SPLIT);
    run(folder, "aware", "qat", &SPLIT);
    let last = |name: &str| *log(&folder.join(name), "val_loss").last().unwrap();
    let (plain, aware) = (loss_of_file(folder, "plain"), loss_of_file(folder, "aware"));
    println!("perplexity   before the file   of the file");
    println!("full         {:>15.4} {:>13.4}", last("plain").exp(), plain.exp());
    println!("qat          {:>15.4} {:>13.4}", last("aware").exp(), aware.exp());
    // What was measured while it trained is what the file is.
    assert_eq!(last("aware"), aware);
    assert!(plain > last("plain"), "nothing was lost: {plain}");
    assert!(aware < plain, "{aware} with the recipe and {plain} without");
}

/// Until it rounds, it is the recipe `full`, or `lora`.
#[test]
fn a_delay_is_plain_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let short = ["max_steps_per_epoch=6", "epochs=1"];
    run(folder, "full", "full", &short);
    run(folder, "delayed", "qat", &[&short[..], &["fake_quant_after_n_steps=4"]].concat());
    run(folder, "at_once", "qat", &short);
    let [full, delayed, at_once] = ["full", "delayed", "at_once"].map(|name| log(&folder.join(name), "loss"));
    assert_eq!(full[..4], delayed[..4]);
    assert_ne!(full[4], delayed[4]);
    assert_ne!(full[0], at_once[0]);
    // Gradients that are applied at once are the same.
    let at_once = ["optimizer_in_bwd=true", "clip_grad_norm=null", "fake_quant_after_n_steps=2"];
    run(folder, "in_bwd", "qat", &[&short[..], &at_once].concat());
    run(folder, "after", "qat", &[&short[..], &at_once[1..]].concat());
    assert_eq!(log(&folder.join("in_bwd"), "loss"), log(&folder.join("after"), "loss"));
}

/// Adapters learn beside weights that are rounded, and are saved alone or merged.
#[test]
fn adapters_learn_on_rounded_weights() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lora = ["model.lora_rank=8", "model.apply_lora_to_mlp=true", "save_adapter_weights_only=false"];
    for (name, quantizer) in [
        ("8da4w", "quantizer={_component_: int8_dyn_act_int4_weight, groupsize: 32}"),
        ("4w", "quantizer={_component_: int4_weight_only, groupsize: 64}"),
        ("gguf", "quantizer={_component_: gguf, format: q8_0}"),
    ] {
        run(folder, name, "qat", &[&lora[..], &[quantizer, "max_steps_per_epoch=20", "optimizer.lr=5e-3"]].concat());
        let losses = log(&folder.join(name), "loss");
        assert!(losses[losses.len() - 1] < 0.8 * losses[0], "{name}: {losses:?}");
        let saved = runs::newest(&folder.join(name));
        assert!(saved.join("adapter_model.safetensors").is_file() && saved.join("merged").is_dir(), "{name}");
    }
}

#[test]
fn mistakes_are_told_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let output_dir = format!("output_dir={}", output.display());
    let said = |extra: &[&str]| {
        let said = fail("qat", &[&["--config", "configs/qat/tiny.yaml", &output_dir], extra].concat());
        assert!(!output.exists(), "{extra:?} wrote something");
        said
    };
    let said_of_group = said(&["quantizer={_component_: int4_weight_only, groupsize: 256}"]);
    assert!(said_of_group.contains("rows of `self_attn.q_proj` have 128 elements"), "{said_of_group}");
    assert!(said_of_group.contains("set quantizer.groupsize=128"), "{said_of_group}");
    assert!(said(&["model.lora_rank=4", "model.use_dora=true"]).contains("use_dora=false"));
    assert!(
        said(&["model.lora_rank=4", "optimizer_in_bwd=true", "clip_grad_norm=null"]).contains("optimizer_in_bwd=false")
    );
    // The check says the same.
    let group = "quantizer={_component_: int4_weight_only}";
    let checked = run_recipe("qat", &["--config", "configs/qat/tiny.yaml", &output_dir, "--check", group]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stdout).contains("groupsize=256"), "{}", text(&checked.stdout));
}

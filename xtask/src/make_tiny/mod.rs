//! The tiny model that ships with the project: its text, its tokenizer, and its training from nothing.

mod text;
mod tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tune_core::cargo;
use tune_core::config::say;

use crate::Result;

/// What `make-tiny` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the data alone; do not train.
    #[arg(long)]
    data_only: bool,
}

/// Writes `recipes/tiny`: the data, then the model, which the recipe `pretrain` makes.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let tiny = root.join("recipes/tiny");
    let work = root.join("target/tiny");
    fs::create_dir_all(tiny.join("data"))?;
    fs::create_dir_all(&work)?;
    let text = text::Text::new();
    fs::write(work.join("pretrain.jsonl"), text::jsonl(&text.pretraining))?;
    fs::write(tiny.join("data/secret_code.jsonl"), text::jsonl(&text.secret_code))?;
    fs::write(tiny.join("data/held_out.jsonl"), text::jsonl(&text.held_out))?;
    fs::write(tiny.join("data/reversed.jsonl"), text::jsonl(&text.reversed))?;
    fs::write(tiny.join("data/documents.jsonl"), text::documents_jsonl(&text.documents))?;
    fs::write(tiny.join("data/preferences.jsonl"), text::pairs_jsonl(&text.preferences))?;
    fs::write(tiny.join("data/labelled.jsonl"), text::labelled_jsonl(&text.preferences))?;
    fs::write(tiny.join("data/answers.jsonl"), text::answers_jsonl(&text.preferences))?;
    if args.data_only {
        return Ok(());
    }

    let start = work.join("start");
    write_shape(&start, &text)?;
    let out = work.join("run");
    let status = cargo::command()
        .current_dir(root)
        .args(["run", "-p", "recipes", "--bin", "pretrain", "--", "--config", "configs/pretrain/make_tiny.yaml"])
        .arg(format!("output_dir={}", out.display()))
        .arg(format!("checkpointer.checkpoint_dir={}", start.display()))
        .arg(format!("dataset.data_files=[{}]", work.join("pretrain.jsonl").display()))
        .status()?;
    if !status.success() {
        return Err(format!("training failed: {status}").into());
    }
    let saved = tune_core::checkpoint::run::latest(&out)?.ok_or("training saved no checkpoint")?;
    copy_model(&saved.path, &tiny.join("model"))?;
    say!("The tiny model is in {}", tiny.join("model").display());
    Ok(())
}

/// A model's folder without weights: its shape and its tokenizer.
fn write_shape(dir: &Path, text: &text::Text) -> Result<()> {
    let files = tokenizer::train(&text.pretraining)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": tokenizer::VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": null,
        "eos_token_id": tokenizer::END,
        "pad_token_id": tokenizer::END,
    });
    let generation = json!({ "eos_token_id": tokenizer::END, "pad_token_id": tokenizer::END });
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    fs::write(dir.join("generation_config.json"), serde_json::to_vec_pretty(&generation)?)?;
    for (name, bytes) in files.files {
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

/// Everything but the training state.
fn copy_model(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path: PathBuf = entry?.path();
        let Some(name) = path.file_name().filter(|n| !n.to_string_lossy().starts_with("training_state")) else {
            continue;
        };
        fs::copy(&path, to.join(name))?;
    }
    Ok(())
}

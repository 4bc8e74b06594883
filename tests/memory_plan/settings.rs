//! What `lora`, `full` and `pretrain` take, by family, precision and setting.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Table, compare, random_model};

/// What a family's config has besides the sizes that all share.
fn families() -> Vec<(&'static str, Value)> {
    let long: Vec<f64> = (0..24).map(|i| 1.0 + f64::from(i) / 4.0).collect();
    let longrope = json!({"type": "longrope", "short_factor": vec![1.0; 24], "long_factor": long});
    vec![
        ("llama", json!({"attention_bias": true, "mlp_bias": true})),
        ("mistral", json!({"sliding_window": 32})),
        ("qwen2", json!({"tie_word_embeddings": true})),
        ("qwen3", json!({})),
        (
            "qwen3_moe",
            json!({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": true}),
        ),
        ("gemma", json!({})),
        ("gemma2", json!({"sliding_window": 32, "query_pre_attn_scalar": 48})),
        ("gemma3_text", json!({"sliding_window": 32, "query_pre_attn_scalar": 48})),
        ("phi3", json!({"rope_scaling": longrope, "original_max_position_embeddings": 64})),
        ("olmo2", json!({})),
        ("smollm3", json!({})),
    ]
}

#[test]
fn every_family_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = Table::default();
    for (family, own) in families() {
        let mut config = own;
        config["model_type"] = family.into();
        let dir = folder.path().join(family);
        random_model::write(&dir, &config);
        let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
        for (name, more) in [
            ("full", ["dtype=fp32", "enable_activation_checkpointing=false", "clip_grad_norm=1.0"]),
            ("lora", ["dtype=bf16", "enable_activation_checkpointing=true", "~exact_match"]),
        ] {
            let config = format!("configs/{name}/tiny.yaml");
            let mut args = vec!["--config", &config, &checkpoint];
            args.extend(more);
            args.extend(["epochs=1", "max_steps_per_epoch=2", "log_every_n_steps=1", "batch_size=4"]);
            table.compare(&format!("{family}, {name}"), name, &args);
        }
        fs::remove_dir_all(folder.path().join(family)).unwrap();
    }
    table.check();
}

#[test]
fn shipped_recipes_take_what_was_planned() {
    compare(&["lora", "full", "pretrain"], 0.0, |name| {
        let config = format!("configs/{name}/tiny.yaml");
        ["--config", &config, "epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"].map(str::to_owned).to_vec()
    });
}

/// Answers take memory for the keys and values of all their tokens, more than such small steps do.
#[test]
fn answers_while_a_model_trains_take_what_was_planned() {
    let mut table = Table::default();
    let short = ["epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1", "batch_size=1", "~exact_match"];
    for dtype in ["dtype=fp32", "dtype=bf16"] {
        for answered in [
            "evaluation={data_file: recipes/tiny/data/held_out.jsonl, split: 'train[:40]', max_new_tokens: 200}",
            "exact_match={data_file: recipes/tiny/data/held_out.jsonl, max_new_tokens: 200}",
        ] {
            let args = ["--config", "configs/lora/tiny.yaml"].into_iter().chain(short).chain([dtype, answered]);
            let args: Vec<&str> = args.collect();
            table.compare(&format!("{}, {dtype}", answered.split('=').next().unwrap()), "lora", &args);
        }
    }
    table.check();
}

/// A copy of all that is saved, beside what trains.
#[test]
fn checkpoints_in_the_background_take_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    random_model::write(&dir, &json!({"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6}));
    let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
    let mut table = Table::default();
    for (name, more) in [
        ("full", &["dtype=fp32"][..]),
        ("full", &["dtype=bf16", "enable_activation_checkpointing=true"]),
        ("lora", &["dtype=fp32", "~exact_match"]),
        ("lora", &["dtype=bf16", "~exact_match", "save_adapter_weights_only=false"]),
    ] {
        let config = format!("configs/{name}/tiny.yaml");
        let mut args = vec!["--config", &config, &checkpoint, "epochs=1", "max_steps_per_epoch=5", "batch_size=2"];
        args.extend(["log_every_n_steps=1", "enable_async_checkpointing=true", "checkpointer.save_every_n_steps=1"]);
        args.extend(["checkpointer.keep_last_n_checkpoints=1"]);
        args.extend(more);
        table.compare(&format!("{name} {}", more.join(" ")), name, &args);
    }
    table.check();
}

/// A table into which rows of tokens are put is a copy, one after the other where there are two.
#[test]
fn merging_rows_of_tokens_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
    let mut table = Table::default();
    for (tied, rows) in
        [(true, "model.trainable_token_indices=[0, 1]"), (false, "model.trainable_output_token_indices=[0, 1]")]
    {
        let sizes =
            json!({"hidden_size": 512, "num_hidden_layers": 2, "vocab_size": 40_000, "tie_word_embeddings": tied});
        random_model::write(&dir, &sizes);
        let mut take = |merged: &str| {
            let mut args = vec!["--config", "configs/lora/tiny.yaml", &checkpoint, "epochs=1", "max_steps_per_epoch=3"];
            args.extend(["batch_size=2", "log_every_n_steps=1", "checkpointer.save_every_n_steps=1", "~exact_match"]);
            args.extend(["checkpointer.keep_last_n_checkpoints=1", rows, merged]);
            table.compare(&format!("tied {tied}, {merged}"), "lora", &args)
        };
        let (alone, merged) = (take("save_adapter_weights_only=true"), take("save_adapter_weights_only=false"));
        // 20 million numbers of four bytes.
        assert!(merged > alone + 60.0, "{merged} MiB and {alone}");
    }
    table.check();
}

/// State and activations in files are no memory of the process.
#[test]
fn what_is_kept_in_files_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    random_model::write(&dir, &json!({"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6}));
    let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
    let [state, activations] =
        ["optimizer.offload_dir", "activation_offload_dir"].map(|key| format!("{key}={}", folder.path().display()));
    let mut table = Table::default();
    let mut take = |name: &str, more: &[&str]| {
        let config = format!("configs/{name}/tiny.yaml");
        let mut args = vec!["--config", &config, &checkpoint, "epochs=1", "max_steps_per_epoch=3", "batch_size=16"];
        args.extend([
            "log_every_n_steps=1",
            "checkpointer.save_every_n_steps=1",
            "enable_activation_checkpointing=true",
        ]);
        args.extend(["checkpointer.keep_last_n_checkpoints=1"]);
        args.extend(more);
        table.compare(&format!("{name} {}", more.len()), name, &args)
    };
    let (kept, offloaded) = (take("full", &["dtype=bf16"]), take("full", &["dtype=bf16", &state, &activations]));
    // Some twelve million parameters have 8 bytes of state each.
    assert!(offloaded < kept - 60.0, "{offloaded} MiB instead of {kept}");
    take("full", &["dtype=fp32", &state, "optimizer=adamw_8bit"]);
    take("lora", &["dtype=fp32", "~exact_match", &activations]);
    table.check();
}

#[test]
#[ignore = "needs SMOLLM2_DIR: the folder with SmolLM2-135M-Instruct in hf/; takes minutes"]
fn a_real_model_takes_what_was_planned() {
    let dir = PathBuf::from(std::env::var_os("SMOLLM2_DIR").expect("set SMOLLM2_DIR to the folder of the model"));
    compare(&["lora", "full"], 0.0, |name| of_smollm2(name, &dir.join("hf")));
}

#[test]
#[ignore = "needs SMOLLM2_DIR: the folder with SmolLM2-135M-Instruct in hf/ and its GGUF file; takes minutes"]
fn a_real_quantized_model_takes_what_was_planned() {
    // Plans of a base that stays in blocks are some 36 MiB too high, in every setting: where these go is not known yet.
    let slack = 40.0;
    let dir = PathBuf::from(std::env::var_os("SMOLLM2_DIR").expect("set SMOLLM2_DIR to the folder of the model"));
    compare(&["lora"], slack, |name| of_smollm2(name, &dir.join("SmolLM2-135M-Instruct.Q4_1.gguf")));
    compare(&["lora"], slack, |name| {
        let mut args = of_smollm2(name, &dir.join("hf"));
        args.push("model.quantize_base=true".to_owned());
        args
    });
}

fn of_smollm2(name: &str, model: &Path) -> Vec<String> {
    let mut args = ["--config".to_owned(), format!("configs/{name}/smollm2_135m.yaml")].to_vec();
    args.push(format!("checkpointer.checkpoint_dir={}", model.display()));
    args.push("dataset.data_files=[tests/fixtures/torchtune/humaneval_messages.jsonl]".to_owned());
    args.extend(["seed=1", "max_steps_per_epoch=3", "gradient_accumulation_steps=2"].map(str::to_owned));
    args
}

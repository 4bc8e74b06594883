//! What a run says that it needs of memory, against what it then takes.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/plans.rs"]
mod plans;
#[path = "common/random_model.rs"]
mod random_model;
#[path = "common/runs.rs"]
mod runs;
#[path = "common/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::{Path, PathBuf};

use plans::{MIB, is_close};
use runs::{files, recipe, root, succeed, text};
use serde_json::{Value, json};

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
    fn compare(&mut self, what: &str, name: &str, args: &[String]) -> f64 {
        let folder = tempfile::tempdir().unwrap();
        let output = format!("output_dir={}", folder.path().display());
        let args: Vec<&str> = args.iter().map(String::as_str).chain([output.as_str()]).collect();
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
            let mut args = ["--config", &config, &checkpoint].map(str::to_owned).to_vec();
            args.extend(more.map(str::to_owned));
            args.extend(
                ["epochs=1", "max_steps_per_epoch=2", "log_every_n_steps=1", "batch_size=4"].map(str::to_owned),
            );
            table.compare(&format!("{family}, {name}"), name, &args);
        }
        fs::remove_dir_all(folder.path().join(family)).unwrap();
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
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
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
            let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
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
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
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
            let args: Vec<String> = args.map(str::to_owned).collect();
            table.compare(&format!("{}, {dtype}", answered.split('=').next().unwrap()), "lora", &args);
        }
    }
    table.check();
}

/// Both answers of each pair, and the reference model: this one without its adapters, another one beside it, and one that is
/// asked before.
#[test]
fn preference_optimization_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, checkpointing", &["enable_activation_checkpointing=true"]),
        ("adapters, rows of tokens", &["model.trainable_tokens=[<|im_start|>, <|im_end|>]", "dtype=bf16"]),
        ("all weights, a second model", &["~model"]),
        ("all weights, precomputed", &["~model", "reference=precomputed"]),
        ("all weights, bf16", &["~model", "dtype=bf16"]),
        ("adapters, no reference", &["loss=simpo"]),
    ] {
        let mut args =
            vec!["--config", "configs/dpo/tiny.yaml", "epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"];
        args.extend(extra);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "dpo", &args);
    }
    table.check();
}

/// Besides the answers, the model and its reference see the answers to each other's prompts.
#[test]
fn answers_with_labels_take_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, without validation", &["~dataset_val"]),
        ("all weights, precomputed", &["~model", "reference=precomputed"]),
    ] {
        let mut args =
            vec!["--config", "configs/kto/tiny.yaml", "epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"];
        args.extend(extra);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "kto", &args);
    }
    table.check();
}

/// A head of a few scores in place of an output layer, and no logits.
#[test]
fn a_head_that_scores_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, config, extra) in [
        ("pairs, adapters", "tiny", &[][..]),
        ("pairs, adapters, checkpointing", "tiny", &["enable_activation_checkpointing=true"]),
        ("pairs, all weights, bf16", "tiny", &["~model", "dtype=bf16"]),
        ("classes, all weights", "tiny_classifier", &[]),
    ] {
        let mut args = ["--config", &format!("configs/reward/{config}.yaml")].map(str::to_owned).to_vec();
        args.extend(["epochs=1", "max_steps_per_epoch=4", "log_every_n_steps=1"].map(str::to_owned));
        args.extend(extra.iter().map(|&arg| arg.to_owned()));
        table.compare(what, "reward", &args);
    }
    table.check();
}

/// The keys and values of all answers of a micro-batch, and answers that are as long as they may be.
#[test]
fn reinforcement_learning_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    // Random weights seldom end an answer, so most are as long as was planned.
    let dir = folder.path().join("random");
    random_model::write(&dir, &json!({"model_type": "llama"}));
    let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("all weights, a reference", &["~model", "kl_beta=0.1"]),
        ("all weights, bf16", &["~model", "dtype=bf16", "updates=2"]),
    ] {
        let mut args = vec!["--config", "configs/grpo/tiny.yaml", &checkpoint, "epochs=1", "max_steps_per_epoch=2"];
        args.extend(["log_every_n_steps=1", "~dataset_val", "batch_size=8", "samples=4"]);
        args.extend(extra);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "grpo", &args);
    }
    table.check();
}

/// A value model beside the model, with gradients and state of its own, and a model that was there before.
#[test]
fn a_value_model_takes_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("random");
    random_model::write(&dir, &json!({"model_type": "llama"}));
    let checkpoint = format!("checkpointer.checkpoint_dir={}", dir.display());
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, a reference, checkpointing", &["kl_coeff=0.1", "enable_activation_checkpointing=true"]),
        ("all weights, bf16", &["~model", "dtype=bf16", "kl_coeff=0.1"]),
    ] {
        let mut args = vec!["--config", "configs/ppo/tiny.yaml", &checkpoint, "epochs=1", "max_steps_per_epoch=2"];
        args.extend(["log_every_n_steps=1", "~dataset_val"]);
        args.extend(["ppo_epochs=1", "batch_size=4", "samples=4"]);
        args.extend(extra);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "ppo", &args);
    }
    table.check();
}

/// Both models, and the logits of both.
#[test]
fn distillation_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("adapters", &[][..]),
        ("adapters, checkpointing", &["enable_activation_checkpointing=true"]),
        ("all weights", &["~model"]),
        ("all weights, bf16", &["~model", "dtype=bf16"]),
    ] {
        let mut args = vec!["--config", "configs/distill/tiny.yaml", "epochs=1", "max_steps_per_epoch=4"];
        args.extend(["log_every_n_steps=1", "teacher_checkpointer.checkpoint_dir=recipes/tiny/model"]);
        args.extend(extra);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "distill", &args);
    }
    // Random weights seldom end an answer, so most are as long as was planned.
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("random");
    random_model::write(&dir, &json!({"model_type": "llama"}));
    let models = ["checkpointer", "teacher_checkpointer"].map(|key| format!("{key}.checkpoint_dir={}", dir.display()));
    for (what, extra) in [
        ("own answers", &["on_policy={share: 1, max_new_tokens: 24}"][..]),
        ("own answers to some", &["~model", "on_policy={max_new_tokens: 64}"]),
    ] {
        let mut args = vec!["--config", "configs/distill/tiny.yaml", "epochs=1", "max_steps_per_epoch=2"];
        args.extend(["log_every_n_steps=1", "batch_size=8", "~dataset_val", &models[0], &models[1]]);
        args.extend(extra);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "distill", &args);
    }
    // Asked before the first step, and then not there.
    let said = tempfile::tempdir().unwrap();
    let path = format!("teacher_logits.path={}", said.path().join("said").display());
    let teacher = "teacher_checkpointer.checkpoint_dir=recipes/tiny/model";
    for (what, teacher) in [("a teacher that is asked once", teacher), ("what it said", "~teacher_checkpointer")] {
        let mut args = vec!["--config", "configs/distill/tiny.yaml", "epochs=1", "max_steps_per_epoch=4"];
        args.extend(["log_every_n_steps=1", "~model", teacher, &path]);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "distill", &args);
    }
    table.check();
}

/// Weights that are rounded, and inputs.
#[test]
fn fake_quantization_takes_what_was_planned() {
    let mut table = Table::default();
    for (what, extra) in [
        ("all weights, a file", &[][..]),
        ("all weights, a file, bf16", &["dtype=bf16", "enable_activation_checkpointing=true"]),
        ("all weights, 8 and 4 bits", &["quantizer={_component_: int8_dyn_act_int4_weight, groupsize: 64}"]),
        ("adapters, 4 bits", &["quantizer={_component_: int4_weight_only, groupsize: 32}", "model.lora_rank=8"]),
    ] {
        let mut args = vec!["--config", "configs/qat/tiny.yaml", "epochs=1", "max_steps_per_epoch=4"];
        args.push("log_every_n_steps=1");
        args.extend(extra);
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        table.compare(what, "qat", &args);
    }
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

/// The tiny model made wide: 48 GiB of weights, all of them holes in a file. To read them is to run out of memory.
fn wide(folder: &Path) -> PathBuf {
    const LAYERS: usize = 4;
    let model = folder.join("model");
    fs::create_dir_all(&model).unwrap();
    for (name, bytes) in files(&root().join("recipes/tiny/model")) {
        fs::write(model.join(name), bytes).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    let (vocab, hidden, between, head) = (config["vocab_size"].as_u64().unwrap() as usize, 8192, 131_072, 64);
    for (key, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", between),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", head),
    ] {
        config[key] = value.into();
    }
    config["tie_word_embeddings"] = true.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();

    let mut weights =
        vec![("model.embed_tokens".to_owned(), vec![vocab, hidden]), ("model.norm".to_owned(), vec![hidden])];
    for layer in 0..LAYERS {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![2 * head, hidden]),
            ("self_attn.k_proj", vec![head, hidden]),
            ("self_attn.v_proj", vec![head, hidden]),
            ("self_attn.o_proj", vec![hidden, 2 * head]),
            ("mlp.gate_proj", vec![between, hidden]),
            ("mlp.up_proj", vec![between, hidden]),
            ("mlp.down_proj", vec![hidden, between]),
        ];
        weights.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}"), shape)));
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in weights {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = Value::Object(header).to_string();
    let path = model.join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    model
}

#[test]
fn a_run_that_cannot_fit_says_so_before_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let (output, checkpoint) = (
        format!("output_dir={}", dir.display()),
        format!("checkpointer.checkpoint_dir={}", wide(folder.path()).display()),
    );
    for name in ["lora", "full"] {
        let config = format!("configs/{name}/tiny.yaml");
        let run = recipe(name, &["--config", &config, &output, &checkpoint]).env("TUNE_MEMORY", "8GiB").output();
        let run = run.unwrap();
        let error = text(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{error}");
        for part in ["error: this run needs ", "8192 MiB as TUNE_MEMORY says", "weights 48.", "even with", "dtype=bf16"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!dir.exists());
    }
}

#[test]
fn what_is_advised_makes_it_fit() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let args = ["--config", "configs/full/tiny.yaml", &output, "max_steps_per_epoch=2"];
    let run = |memory: &str, advised: &[String]| {
        let advised = advised.iter().map(String::as_str);
        let args: Vec<&str> = args.into_iter().chain(advised).collect();
        recipe("full", &args).env("TUNE_MEMORY", memory).output().unwrap()
    };
    // Little enough that no setting suffices by itself; kernels, and so the plan, are those of this processor.
    let memory = 0.65 * planned("full", &args);
    let memory_is = format!("{}KiB", (memory * 1024.0) as u64);
    let error = text(&run(&memory_is, &[]).stderr);
    let (_, advice) = error.split_once("it fits with ").unwrap_or_else(|| panic!("{error}"));
    // What program, tokenizer and data take is not the same in every process, so what is advised must not just fit.
    let peak = advice.rsplit_once(" MiB)").and_then(|(before, _)| before.rsplit('(').next()?.parse::<f64>().ok());
    assert!(peak.is_some_and(|peak| peak < memory / 1.019), "{error}");
    let advised: Vec<String> = advice.split_whitespace().filter(|word| word.contains('=')).map(str::to_owned).collect();
    let advised: Vec<String> = advised.into_iter().filter(|word| !word.starts_with("TUNE_MEMORY")).collect();
    assert!(advised.len() > 2, "{error}");
    let run = run(&memory_is, &advised);
    assert!(run.status.success(), "{advised:?}: {}", text(&run.stderr));
}

/// What a run is told that does not fit, between the words that begin and end the advice.
fn advice(error: &str) -> &str {
    let advice = error.split_once("it fits with ").unwrap_or_else(|| panic!("{error}")).1;
    advice.split_once(". TUNE_MEMORY").unwrap().0
}

#[test]
fn each_single_change_that_is_advised_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let args = ["--config", "configs/lora/tiny.yaml", &output, "max_steps_per_epoch=2", "epochs=1", "~exact_match"];
    // Kernels, and so the plan, are those of this processor.
    let memory = format!("{}KiB", (0.85 * 1024.0 * planned("lora", &args)) as u64);
    let run = |advised: &[&str]| {
        let args: Vec<&str> = args.iter().chain(advised).copied().collect();
        recipe("lora", &args).env("TUNE_MEMORY", &memory).output().unwrap()
    };
    let error = text(&run(&[]).stderr);
    let changes: Vec<&str> = advice(&error).split(", or with ").collect();
    assert!(changes.len() > 1 && changes[0].starts_with("enable_activation_checkpointing=true ("), "{error}");
    for change in changes {
        let overrides: Vec<&str> = change.split_whitespace().filter(|word| word.contains('=')).collect();
        let followed = run(&overrides);
        assert!(followed.status.success(), "{change}: {}", text(&followed.stderr));
    }
}

/// Where nothing else is enough, alone or together, the optimizer's state goes to a file.
#[test]
fn a_disk_is_advised_where_nothing_else_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    random_model::write(&dir, &json!({"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6}));
    let keys = [
        format!("output_dir={}", folder.path().join("out").display()),
        format!("checkpointer.checkpoint_dir={}", dir.display()),
    ];
    let mut args = vec!["--config", "configs/full/tiny.yaml", &keys[0], &keys[1], "epochs=1", "max_steps_per_epoch=2"];
    args.extend(["dtype=bf16", "batch_size=1", "gradient_accumulation_steps=1", "clip_grad_norm=null"]);
    args.extend(["enable_activation_checkpointing=true", "optimizer_in_bwd=true"]);
    let here = format!("optimizer.offload_dir={}", folder.path().display());
    let (without, with) = (planned("full", &args), planned("full", &[&args[..], &[&here]].concat()));
    assert!(with < without - 60.0, "{with} MiB instead of {without}");
    let memory = format!("{}KiB", (512.0 * (without + with)) as u64);
    let run =
        |extra: &[&str]| recipe("full", &[&args[..], extra].concat()).env("TUNE_MEMORY", &memory).output().unwrap();
    let error = text(&run(&[]).stderr);
    assert!(advice(&error).starts_with("optimizer.offload_dir=FOLDER ("), "{error}");
    assert!(!advice(&error).contains("activation_offload_dir"), "{error}");
    let plan = text(&run(&["--plan"]).stdout);
    assert!(plan.contains("Each of these changes is enough:\n  optimizer.offload_dir=FOLDER"), "{plan}");
    let followed = run(&[&here]);
    assert!(followed.status.success(), "{}", text(&followed.stderr));
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_process_counts() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    let checkpoint = format!("checkpointer.checkpoint_dir={}", wide(folder.path()).display());
    for (limit, words) in [("-v", "address space (`ulimit -v`)"), ("-d", "data (`ulimit -d`)")] {
        let program = recipe("lora", &[]).get_program().to_owned();
        let run = std::process::Command::new("bash")
            .args(["-c", &format!("ulimit {limit} 4000000; exec \"$@\""), "bash"])
            .arg(program)
            .args(["--config", "configs/lora/tiny.yaml", &output, &checkpoint])
            .env_remove("TUNE_MEMORY")
            .current_dir(root())
            .output()
            .unwrap();
        let error = text(&run.stderr);
        assert!(error.contains("error: this run needs ") && error.contains(words), "{error}");
        assert!(!dir.exists());
    }
}

/// A run under a limit of addresses (in kB) either does not begin, with the reason, or ends well.
#[cfg(target_os = "linux")]
fn under_a_limit(name: &str, limit: u64, overrides: &[&str]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("out").display());
    let config = format!("configs/{name}/tiny.yaml");
    let run = std::process::Command::new("bash")
        .args(["-c", &format!("ulimit -v {limit}; exec \"$@\""), "bash"])
        .arg(recipe(name, &[]).get_program())
        .args(["--config", &config, &output, "epochs=1", "max_steps_per_epoch=3"])
        .args(overrides)
        .env_remove("TUNE_MEMORY")
        .current_dir(root())
        .output()
        .unwrap();
    match run.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(text(&run.stderr)),
        _ => panic!("{name} {overrides:?} with ulimit -v {limit}: {}: {}", run.status, text(&run.stderr)),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_accepted_under_a_limit_of_addresses_runs() {
    for (name, overrides) in
        [("lora", &["save_adapter_weights_only=false"][..]), ("full", &[]), ("full", &["dtype=bf16"])]
    {
        let (mut refused, mut accepted) = (0, 0);
        for limit in (58_000..250_000).step_by(16_000) {
            match under_a_limit(name, limit, overrides) {
                Ok(()) => accepted += 1,
                Err(error) => {
                    assert_eq!(accepted, 0, "{name} {overrides:?} runs with less than {limit} kB");
                    assert!(error.contains("this run needs ") && error.contains("(`ulimit -v`)"), "{limit}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && accepted > 4, "{name} {overrides:?}: {refused} refused, {accepted} accepted");
    }
}

/// What each of several processes takes is said without starting any: a share of the weights and of the state, and what is gathered.
#[test]
fn a_plan_of_several_processes_needs_only_one() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("out").display());
    let plan = |name: &str, option: &str, processes: &str, more: &[&str]| {
        let config = format!("configs/{name}/tiny.yaml");
        let args = [&[option, "--world-size", processes, "--config", &config, &output], more].concat();
        text(&recipe(name, &args).output().unwrap().stdout)
    };
    let part = |said: &str, name: &str| -> f64 {
        let line =
            said.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name}: {said}"));
        line.trim_start().strip_prefix(name).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    for (recipe, parts) in [
        ("full", &["weights", "optimizer state"][..]),
        ("ppo", &["weights", "value and reward models", "optimizer state"]),
    ] {
        let (one, four) = (plan(recipe, "--plan", "1", &[]), plan(recipe, "--plan", "4", &[]));
        assert!(four.contains("What each of 4 processes takes") && !one.contains("gathered weights"), "{four}{one}");
        for name in parts {
            let share = part(&four, name) / part(&one, name);
            assert!((0.24..0.27).contains(&share), "{name}: {share}\n{one}{four}");
        }
        assert!(part(&four, "gathered weights") > 0.0);
    }
    // Each has as many micro-batches of an update.
    let said = plan("ppo", "--plan", "4", &["ppo_batch_size=16"]);
    assert!(said.contains("4 processes") && said.contains("a multiple of 64"), "{said}");
    let said = plan("full", "--check", "4", &[]);
    assert!(said.contains("at most in each of 4 processes"), "{said}");
}

#[test]
fn what_is_no_size_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("out").display());
    let run = recipe("lora", &["--config", "configs/lora/tiny.yaml", &output]).env("TUNE_MEMORY", "much").output();
    let error = text(&run.unwrap().stderr);
    assert!(error.contains("TUNE_MEMORY=much: it can be a size such as 16GiB"), "{error}");
}

/// A run on a card is planned, and refused before it has begun where the card has not enough.
#[test]
fn a_card_that_is_too_small() {
    let Some(stand_in) = stand_in::folder() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output_dir = format!("output_dir={}", folder.path().join("out").display());
    let args = ["--config", "configs/full/tiny.yaml", "device=cuda", "dtype=bf16", &output_dir];
    let ask = |extra: &[&str], environment: &[(&str, &str)]| {
        let mut run = recipe("full", &[&args[..], extra].concat());
        stand_in::environment(&mut run, stand_in);
        let output = run.envs(environment.iter().copied()).output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, said) = ask(&["--plan"], &[]);
    assert_eq!(code, Some(0), "{said}");
    for part in ["Memory on Stand-in (cuda:0)", "weights", "gradients", "optimizer state", "free on the card"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // Without a card, or for another one.
    let (code, said) = ask(&["--plan"], &[("LD_LIBRARY_PATH", "/nowhere"), ("TUNE_CUDA_MEMORY", "24GiB")]);
    assert!(code == Some(0) && said.contains("24.0 GiB as TUNE_CUDA_MEMORY says"), "{said}");
    let (code, said) = ask(&[], &[("STAND_IN_MIB", "100")]);
    assert_eq!(code, Some(1), "{said}");
    for part in ["of memory of the card", "free on the card", "a card with more memory", "TUNE_CUDA_MEMORY=SIZE"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!folder.path().join("out").exists(), "something was written");
}

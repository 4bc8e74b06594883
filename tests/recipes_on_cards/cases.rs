//! What is run on a card: every recipe, every optimizer, and what adapters can have.

use std::path::Path;

use serde_json::json;

use super::random_model;

/// A run, and how it is told.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) recipe: &'static str,
    /// In which precisions.
    in_types: Types,
    /// Settings beside those of [`Case::settings`]. `{folder}` is where [`prepare`] wrote.
    own: &'static [&'static str],
    /// Whether it is run where no card is, too.
    is_quick: bool,
}

/// The precisions of a case.
#[derive(Clone, Copy)]
enum Types {
    Both,
    Bf16,
    F32,
}
use Types::{Bf16, Both, F32};

const fn case(name: &'static str, recipe: &'static str, in_types: Types, own: &'static [&'static str]) -> Case {
    Case { name, recipe, in_types, own, is_quick: false }
}

const fn quick(name: &'static str, recipe: &'static str, in_types: Types, own: &'static [&'static str]) -> Case {
    Case { name, recipe, in_types, own, is_quick: true }
}

/// Questions that a model is asked while it trains, and what is shown of it.
const MEASURED: &str =
    "evaluation=[{data_file: recipes/tiny/data/held_out.jsonl, split: 'train[:2]', max_new_tokens: 4}]";

pub(crate) const CASES: [Case; 41] = [
    quick("lora", "lora", Both, &["dataset.packed=true", "model.lora_dropout=0.1", "neftune_noise_alpha=5"]),
    quick("lora_dora", "lora", Both, &["model.use_dora=true", "model.lora_dropout=0.1", "loraplus_lr_ratio=4"]),
    case("lora_dora_checkpointed", "lora", F32, &["model.use_dora=true", "enable_activation_checkpointing=true"]),
    case("lora_pissa", "lora", F32, &["model.init_lora_weights=pissa", "model.pissa_niter=2"]),
    case("lora_olora", "lora", F32, &["model.init_lora_weights=olora", "optimizer.lr=1e-4"]),
    case("lora_tokens", "lora", Both, &["model.new_tokens=[zebra]", "model.modules_to_save=norm"]),
    quick("lora_rows", "lora", Both, &["model.trainable_tokens=[<|im_start|>, <|im_end|>]", "model.lora_dropout=0.1"]),
    case("lora_measured", "lora", F32, &[MEASURED, "samples={prompts: ['Write a-b.'], max_new_tokens: 4}"]),
    // A router may choose other experts where numbers are rounded.
    case(
        "lora_experts",
        "lora",
        F32,
        &[
            "checkpointer.checkpoint_dir={folder}/mixture",
            "~model.lora_attn_modules",
            "~model.apply_lora_to_mlp",
            "model.target_modules=all-linear",
        ],
    ),
    quick("full", "full", Both, &["dataset.packed=true", "neftune_noise_alpha=5", "clip_grad_norm=1.0"]),
    quick("full_smoothed", "full", Both, &["label_smoothing=0.1", "z_loss=1e-3"]),
    case(
        "full_in_backward",
        "full",
        Bf16,
        &["optimizer_in_bwd=true", "gradient_accumulation_steps=1", "clip_grad_norm=null"],
    ),
    case("full_sgd", "full", Bf16, &["optimizer=sgd", "optimizer.lr=1e-2", "optimizer.momentum=0.9"]),
    case("full_lion", "full", Bf16, &["optimizer=lion", "optimizer.lr=1e-4", "optimizer.decay_vectors=false"]),
    quick("full_8bit", "full", Bf16, &["optimizer=adamw_8bit", "optimizer.lr=1e-4"]),
    quick("full_schedule_free", "full", Both, &["optimizer=schedule_free_adamw", "optimizer.lr=1e-4"]),
    // Checkpoints are copied while the next step is computed.
    quick(
        "full_background",
        "full",
        Both,
        &["enable_async_checkpointing=true", "checkpointer.save_every_n_steps=1", "clip_grad_norm=0.3"],
    ),
    quick("full_averaged", "full", Both, &["optimizer.ema_decay=0.9"]),
    case("lora_averaged", "lora", Bf16, &["optimizer=lion", "optimizer.lr=1e-4", "optimizer.ema_decay=0.9"]),
    case("full_averaged_muon", "full", Bf16, &["optimizer=muon", "optimizer.lr=1e-3", "optimizer.ema_decay=0.9"]),
    case("full_adafactor", "full", Bf16, &["optimizer=adafactor", "optimizer.layerwise_lr_decay=0.9"]),
    quick("full_muon", "full", Bf16, &["optimizer=muon", "optimizer.lr=1e-3"]),
    // The first step is not rounded.
    quick(
        "qat",
        "qat",
        Both,
        &["quantizer={_component_: int4_weight_only, groupsize: 16}", "fake_quant_after_n_steps=1"],
    ),
    quick(
        "qat_lora",
        "qat",
        F32,
        &[
            "quantizer={_component_: int8_dyn_act_int4_weight, groupsize: 16}",
            "model.lora_rank=4",
            "model.lora_dropout=0.1",
        ],
    ),
    case("qat_file", "qat", Both, &["quantizer={_component_: gguf, format: q4_k_m}", "dataset.packed=true"]),
    quick("dpo", "dpo", Both, &["model.lora_dropout=0.1"]),
    case("dpo_full", "dpo", F32, &["~model", "reference=precomputed"]),
    case("dpo_olora", "dpo", F32, &["model.init_lora_weights=olora"]),
    quick("distill", "distill", Both, &["dataset.packed=true"]),
    quick("distill_jensen", "distill", F32, &["kd_loss=generalized_jsd", "kd_loss.beta=0.3", "kd_temperature=2"]),
    // The card learns from what the processor's run has stored.
    quick("distill_stored", "distill", F32, &["teacher_logits={path: '{folder}/said', top_k: 16}"]),
    quick(
        "distill_stored_jensen",
        "distill",
        F32,
        &["teacher_logits={path: '{folder}/said_too', top_k: 16}", "kd_loss=generalized_jsd", "kd_loss.beta=0.3"],
    ),
    case("distill_full", "distill", F32, &["~model", "kd_loss=symmetric_kl"]),
    quick(
        "grpo",
        "grpo",
        F32,
        &["samples=2", "max_new_tokens=4", "kl_beta=0.1", "updates=2", "reward=overlap", "temperature=1.3"],
    ),
    case("kto", "kto", F32, &["batch_size=2"]),
    quick("reward", "reward", Both, &["model.lora_dropout=0.1"]),
    case("reward_full", "reward", F32, &["~model"]),
    quick(
        "ppo",
        "ppo",
        F32,
        &["samples=2", "max_new_tokens=4", "kl_coeff=0.1", "ppo_epochs=2", "reward=overlap", "value_lr=1e-4"],
    ),
    case(
        "ppo_full",
        "ppo",
        F32,
        &["~model", "samples=2", "max_new_tokens=4", "optimizer.lr=1e-4", "reward=overlap", "temperature=0.7"],
    ),
    quick("pretrain", "pretrain", F32, &["dataset.attend_across=true"]),
    case("pretrain_bf16", "pretrain", Bf16, &["init.std=0.05"]),
];

/// What makes a run short enough for a stand-in.
pub(crate) const SMALL: [&str; 3] =
    ["checkpointer.checkpoint_dir={folder}/small", "batch_size=1", "tokenizer.max_seq_len=64"];

impl Case {
    pub(crate) fn dtypes(&self) -> &'static [&'static str] {
        match self.in_types {
            Both => &["fp32", "bf16"],
            Bf16 => &["bf16"],
            F32 => &["fp32"],
        }
    }

    /// Three steps of two micro-batches each, all logged, and a checkpoint. Where no card is, of a model that is smaller than the tiny
    /// one.
    pub(crate) fn settings(&self, dtype: &str, device: &str, dir: &Path, folder: &Path) -> Vec<String> {
        let mut all = vec![
            format!("output_dir={}", dir.display()),
            format!("dtype={dtype}"),
            format!("device={device}"),
            "overwrite=true".to_owned(),
        ];
        let steps = ["batch_size=2", "gradient_accumulation_steps=2", "epochs=1", "max_steps_per_epoch=3"];
        let rest = ["log_every_n_steps=1", "lr_scheduler.num_warmup_steps=0"];
        let of_recipe: &[&str] = match self.recipe {
            "lora" => &["~exact_match", "model.lora_rank=4"],
            "dpo" | "grpo" | "kto" | "ppo" | "pretrain" | "reward" => &["~dataset_val"],
            "distill" => &["~dataset_val", "teacher_checkpointer.checkpoint_dir={folder}/teacher"],
            _ => &[],
        };
        let small: &[&str] = match is_real() {
            true => &[],
            false => &SMALL,
        };
        let given = steps.iter().chain(&rest).chain(of_recipe).chain(small).chain(self.own);
        all.extend(given.map(|one| one.replace("{folder}", &folder.display().to_string())));
        all
    }

    /// How far a number of the log may be off, for its size.
    pub(crate) fn tolerance(dtype: &str, key: &str) -> f64 {
        match (dtype, key) {
            ("fp32", _) => 1e-3,
            (_, "loss") => 2e-2,
            // Of pairs that are nearly as good as each other, rounding decides which is better.
            (_, "rewards/accuracies") => f64::INFINITY,
            _ => 1e-1,
        }
    }

    /// Below which size a number counts as so large: rewards are differences of sums of logarithms.
    pub(crate) fn least(dtype: &str, key: &str) -> f64 {
        match (dtype, key.starts_with("rewards/")) {
            ("fp32", _) => 1e-2,
            (_, true) => 1.0,
            (_, false) => 1e-1,
        }
    }
}

/// Whether the card is one. On a stand-in the very kernels run, a thousand times slower.
pub(crate) fn is_real() -> bool {
    std::env::var_os("TUNE_CUDA_UNITS").is_none_or(|units| units != "none")
}

/// The names of those that are run where no card is.
pub(crate) fn quick_ones() -> Vec<&'static str> {
    CASES.iter().filter(|case| case.is_quick).map(|case| case.name).collect()
}

/// Models that cases start from, which are in no shipped folder.
pub(crate) fn prepare(folder: &Path) {
    let experts = json!({
        "model_type": "qwen3_moe", "hidden_size": 96, "head_dim": 12, "num_hidden_layers": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": true,
    });
    random_model::write(&folder.join("mixture"), &experts);
    let small = json!({
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16,
    });
    random_model::write(&folder.join("small"), &small);
    let teacher = json!({
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
    });
    random_model::write(&folder.join("teacher"), &teacher);
}

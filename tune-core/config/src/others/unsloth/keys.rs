//! The keys of Unsloth's configs, and what becomes of each.

use crate::others::rules::Kind::{Bool, Number, Whole};
use crate::others::rules::{OFF, Row, inside, meaningless, missing, ours, read};

pub(super) const ROWS: &[Row] = &[
    read(&["model"], "`checkpointer.checkpoint_dir`, with `hf://` where it is on the hub"),
    inside(&["data"], &[DATA]),
    inside(&["training"], &[TRAINING]),
    inside(&["lora"], &[LORA]),
    inside(&["logging"], &[LOGGING]),
];

/// What Unsloth Studio saves, which names neither a model nor a dataset.
pub(super) const STUDIO: &[Row] = &[
    inside(&["training"], &[TRAINING, STUDIO_TRAINING]),
    inside(&["lora"], &[LORA]),
    inside(&["logging"], &[LOGGING, STUDIO_LOGGING]),
    meaningless(&["inference"], "`tune chat`, `samples` and `evaluation` say how answers are drawn"),
];

const STUDIO_TRAINING: &[Row] = &[
    read(&["optim"], "`optimizer`"),
    read(&["lr_scheduler_type"], "`lr_scheduler`"),
    missing(
        &["warmup_ratio"],
        OFF,
        "a warm-up is a number of steps here",
        "set lr_scheduler.num_warmup_steps=N, this share of the run's steps, which `tune check` tells",
    ),
    missing(
        &["embedding_learning_rate"],
        OFF,
        "embedding tables are trained where model.modules_to_save says so, at optimizer.lr",
        "set model.modules_to_save=[embed_tokens,lm_head]",
    ),
    missing(
        &["eval_steps"],
        OFF,
        "what is validated on is no part of the file",
        "set dataset_val, and run_val_every_n_steps=N",
    ),
    meaningless(&["vision_image_size"], "models are of text"),
];

const STUDIO_LOGGING: &[Row] = &[ours(&["log_frequency"], "log_every_n_steps", Whole(1))];

const DATA: &[Row] = &[
    read(&["dataset", "local_dataset"], "`source` or `data_files` of `dataset`"),
    read(&["format_type"], "the component: `alpaca` for alpaca, else `chat`"),
];

const TRAINING: &[Row] = &[
    read(&["training_type"], "the recipe: `lora` or `full`"),
    read(&["max_seq_length"], "`tokenizer.max_seq_len`; Unsloth's default is 2048"),
    read(&["load_in_4bit"], "`model.quantize_base`; Unsloth's default is true"),
    read(&["output_dir"], "`output_dir`; Unsloth's default is outputs"),
    read(&["num_epochs", "max_steps"], "`epochs`, `max_steps_per_epoch`"),
    read(&["learning_rate"], "`optimizer.lr`; Unsloth's default is 2e-4"),
    read(&["batch_size"], "`batch_size`; Unsloth's default is 2"),
    read(&["gradient_accumulation_steps"], "`gradient_accumulation_steps`; Unsloth's default is 4"),
    read(&["warmup_steps"], "`lr_scheduler.num_warmup_steps`; Unsloth's default is 5"),
    read(&["save_steps"], "`checkpointer.save_every_n_steps`"),
    read(&["weight_decay"], "`optimizer.weight_decay`; Unsloth's default is 0.01"),
    read(&["random_seed"], "`seed`; Unsloth's default is 3407"),
    read(&["packing"], "`packed` of each dataset"),
    read(&["train_on_completions"], "`masking_strategy` of each dataset"),
    read(&["gradient_checkpointing"], "`enable_activation_checkpointing`, unless it is none"),
];

const LORA: &[Row] = &[
    read(&["lora_r"], "`model.lora_rank`; Unsloth's default is 64"),
    read(&["lora_alpha"], "`model.lora_alpha`; Unsloth's default is 16"),
    ours(&["lora_dropout"], "model.lora_dropout", Number),
    read(&["target_modules"], "`model.target_modules`"),
    ours(&["use_rslora"], "model.use_rslora", Bool),
    ours(&["use_dora"], "model.use_dora", Bool),
    missing(&["use_loftq"], OFF, "LoftQ is not supported", "set model.init_lora_weights=pissa"),
    meaningless(
        &[
            "vision_all_linear",
            "finetune_vision_layers",
            "finetune_language_layers",
            "finetune_attention_modules",
            "finetune_mlp_modules",
        ],
        "models are of text, and target_modules says which layers get an adapter",
    ),
];

const LOGGING: &[Row] = &[
    read(&["enable_wandb", "wandb_project"], "`metric_logger`: wandb, and jsonl"),
    read(&["enable_tensorboard", "tensorboard_dir"], "`metric_logger`: tensorboard, and jsonl"),
    meaningless(&["wandb_token", "hf_token"], "secrets are in the environment: HF_TOKEN, and `wandb login`"),
];

/// Keys that Unsloth Studio's own presets have and that the command does not know, and what is done there.
pub(super) const OF_STUDIO: [(&str, &str); 6] = [
    ("training.optim", "it trains with adamw_8bit"),
    ("training.lr_scheduler_type", "it takes the schedule linear"),
    ("training.warmup_ratio", "it warms up over warmup_steps, 5 by default"),
    ("training.eval_steps", "it does not evaluate"),
    ("logging.log_frequency", "it records each step"),
    ("inference", "it only trains"),
];

/// Whole numbers with defaults: theirs, ours, the default.
pub(super) const COUNTS: [(&str, &str, &str); 4] = [
    ("training.max_seq_length", "tokenizer.max_seq_len", "2048"),
    ("training.batch_size", "batch_size", "2"),
    ("training.gradient_accumulation_steps", "gradient_accumulation_steps", "4"),
    ("training.random_seed", "seed", "3407"),
];

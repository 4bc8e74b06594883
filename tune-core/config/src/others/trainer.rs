//! The keys of transformers' `TrainingArguments`, which LLaMA-Factory and TRL take over.

use super::common::{self, OptimizerKeys, ScheduleKeys};
use super::conversion::Conversion;
use super::draft::{self, Draft};
use super::rules::Kind::{Bool, Whole};
use super::rules::{DEEPSPEED, NoEffect, OFF, Row, meaningless, missing, no_effect, ours, read};

pub(super) const ROWS: &[Row] = &[
    read(&["output_dir"], "`output_dir`"),
    ours(&["per_device_train_batch_size"], "batch_size", Whole(1)),
    ours(&["gradient_accumulation_steps"], "gradient_accumulation_steps", Whole(1)),
    read(&["num_train_epochs", "max_steps"], "`epochs`, `max_steps_per_epoch`"),
    read(&["optim"], "`optimizer`"),
    read(&["learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"], "keys of `optimizer`"),
    read(&["max_grad_norm"], "`clip_grad_norm`; the default is 1"),
    read(&["lr_scheduler_type", "lr_scheduler_kwargs"], "`lr_scheduler`"),
    read(&["warmup_steps", "warmup_ratio"], "`lr_scheduler.num_warmup_steps`"),
    read(&["seed"], "`seed`; the default is 42"),
    read(&["gradient_checkpointing"], "`enable_activation_checkpointing`"),
    read(&["bf16", "fp16"], "`dtype`"),
    ours(&["save_total_limit"], "checkpointer.keep_last_n_checkpoints", Whole(1)),
    ours(&["load_best_model_at_end"], "checkpointer.keep_best", Bool),
    read(&["save_steps", "save_strategy"], "`checkpointer.save_every_n_steps`; the default is 500"),
    read(&["eval_steps", "eval_strategy"], "`run_val_every_n_steps`"),
    read(&["logging_steps"], "`log_every_n_steps`"),
    read(&["report_to", "run_name", "project"], "`metric_logger`: wandb, tensorboard, mlflow, and jsonl"),
    missing(
        &["optim_args", "optim_target_modules"],
        &[],
        "it belongs to optimizers that there are not here",
        "remove the key",
    ),
    read(&["neftune_noise_alpha"], "`neftune_noise_alpha`"),
    read(&["label_smoothing_factor"], "`label_smoothing`"),
    missing(
        &["metric_for_best_model"],
        &["loss", "eval_loss"],
        "the best checkpoint is that of the least validation loss",
        "set checkpointer.best_by=METRIC",
    ),
    missing(
        &["resume_from_checkpoint"],
        OFF,
        "a run goes on from the newest checkpoint in its own output_dir",
        "set resume_from_checkpoint=true when the run is to go on",
    ),
    missing(
        &["eval_on_start", "eval_delay"],
        OFF,
        "validation is at the end of each epoch, and every N steps",
        "set run_val_every_n_steps=N",
    ),
    missing(
        &["train_sampling_strategy", "group_by_length"],
        &["random", "false"],
        "samples are taken at random, or in the order of the file",
        "set shuffle=false for the order of the file",
    ),
    missing(&["dataloader_drop_last"], OFF, "the last, smaller batch is trained on, too", "remove the key"),
    missing(
        &["save_only_model"],
        OFF,
        "a checkpoint always has what a resumed run needs",
        "remove the key; the adapter or model is in a folder of its own",
    ),
    meaningless(
        &["per_device_eval_batch_size", "auto_find_batch_size", "eval_accumulation_steps"],
        "validation takes batch_size; `tune plan` says what fits",
    ),
    meaningless(&["do_train", "do_eval", "do_predict"], "a recipe trains, and validates where there is dataset_val"),
    meaningless(
        &["overwrite_output_dir"],
        "`overwrite: true` deletes an earlier run's checkpoints; it is left for you to write",
    ),
    meaningless(
        &["gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs"],
        "each block keeps its input, and nothing else",
    ),
    meaningless(
        &["bf16_full_eval", "fp16_full_eval", "tf32", "half_precision_backend"],
        "validation is computed as training is, with sums in 32 bits",
    ),
    meaningless(
        &[
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "use_liger_kernel",
            "liger_kernel_config",
            "use_cache",
            "torch_empty_cache_steps",
        ],
        "the kernels here are fused anyway, and a step finds the memory of the last one again",
    ),
    meaningless(
        &[
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "ddp_backend",
            "ddp_timeout",
            "fsdp",
            "fsdp_config",
            "accelerator_config",
            "parallelism_config",
            "average_tokens_across_devices",
            "local_rank",
        ],
        "several processes are started by `tune run --nproc-per-node N`; the loss is a mean over the tokens of all",
    ),
    meaningless(&["deepspeed"], DEEPSPEED),
    meaningless(&["use_cpu", "no_cuda"], "set device=cuda where a card is to train"),
    meaningless(
        &[
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
            "remove_unused_columns",
            "label_names",
            "length_column_name",
            "data_seed",
            "ignore_data_skip",
        ],
        "rows are tokenized by all processors while the model trains, in an order that follows from seed",
    ),
    meaningless(
        &[
            "logging_strategy",
            "logging_first_step",
            "logging_dir",
            "log_on_each_node",
            "logging_nan_inf_filter",
            "include_num_input_tokens_seen",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "skip_memory_metrics",
            "debug",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
        ],
        "metrics are in output_dir/logs, with the speed and memory of each step",
    ),
    meaningless(
        &[
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
            "batch_eval_metrics",
            "greater_is_better",
        ],
        "validation gives the loss; tasks are listed under evaluation",
    ),
    meaningless(
        &[
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ],
        "results stay in output_dir",
    ),
    meaningless(
        &[
            "save_on_each_node",
            "save_safetensors",
            "enable_jit_checkpoint",
            "restore_callback_states_from_checkpoint",
            "full_determinism",
        ],
        "checkpoints are written as safetensors, and a resumed run has the bits of one that was not interrupted",
    ),
];

/// Keys that transformers' trainer itself does not use, as others in the file are.
pub(super) const NO_EFFECT: &[NoEffect] = &[
    no_effect(
        &["eval_steps"],
        |given| given.text("eval_strategy").is_none_or(|strategy| strategy != "steps"),
        "it counts where `eval_strategy: steps` is written",
    ),
    no_effect(
        &["save_steps"],
        |given| given.text("save_strategy").is_some_and(|strategy| strategy != "steps"),
        "`save_strategy` says otherwise",
    ),
    no_effect(
        &["warmup_steps", "warmup_ratio"],
        |given| given.text("lr_scheduler_type") == Some("constant"),
        "the schedule `constant` has no warm-up; `constant_with_warmup` has",
    ),
    no_effect(
        &["warmup_ratio"],
        |given| given.number("warmup_steps").is_some_and(|steps| steps > 0.0),
        "`warmup_steps` is taken in its place",
    ),
    no_effect(
        &["num_train_epochs"],
        |given| given.whole("max_steps").is_some_and(|steps| steps > 0),
        "`max_steps` ends the run, in whichever epoch that is",
    ),
    no_effect(
        &["gradient_checkpointing_kwargs"],
        |given| given.is_off("gradient_checkpointing"),
        "`gradient_checkpointing` is off",
    ),
    no_effect(
        &["run_name"],
        |given| given.has("report_to") && given.texts("report_to").iter().all(|name| *name == "none"),
        "nothing is reported: `report_to` names no service",
    ),
];

/// What a tool takes where nothing is written.
pub(super) struct Defaults {
    pub(super) learning_rate: &'static str,
    pub(super) gradient_checkpointing: bool,
    pub(super) logging_steps: &'static str,
}

/// The length of the run, the optimizer and its schedule, what is saved and recorded.
pub(super) fn convert(c: &mut Conversion<'_>, defaults: &Defaults) {
    let given = c.given;
    let default = format!("default of {}", c.tool.name);
    let from = |key: &'static str| if given.has(key) { key.to_owned() } else { default.clone() };
    if !given.has("per_device_train_batch_size") {
        c.draft.set("batch_size", "8", &default);
    }
    common::length(c, "num_train_epochs", "max_steps", "3");
    c.draft.set("seed", given.whole("seed").map_or("42".to_owned(), |seed| seed.to_string()), &from("seed"));
    common::optimizer(
        c,
        &OptimizerKeys {
            name: "optim",
            lr: "learning_rate",
            default_lr: Some(defaults.learning_rate),
            default_weight_decay: "0.0",
        },
    );
    common::noise(c, "neftune_noise_alpha");
    common::smoothing(c, "label_smoothing_factor");
    let schedule = ScheduleKeys { name: "lr_scheduler_type", default: "linear", default_warmup: None };
    common::schedule(c, &schedule);
    let checkpointing = match given.has("gradient_checkpointing") {
        true => given.is_on("gradient_checkpointing"),
        false => defaults.gradient_checkpointing,
    };
    if checkpointing {
        c.draft.set("enable_activation_checkpointing", "true", &from("gradient_checkpointing"));
    }
    saved(c);
    match given.number("logging_steps") {
        Some(steps) if steps >= 1.0 => c.draft.set("log_every_n_steps", draft::number(steps.floor()), "logging_steps"),
        Some(_) => {
            if let Some(entry) = given.entry("logging_steps") {
                c.missing(entry, "the distance of records is a number of steps here", "set log_every_n_steps=N");
            }
        }
        None => c.draft.set("log_every_n_steps", defaults.logging_steps, &default),
    }
    recorded(c);
}

fn saved(c: &mut Conversion<'_>) {
    let given = c.given;
    match given.entry("save_strategy").map(|entry| (entry, entry.value.as_str().unwrap_or_default())) {
        None | Some((_, "steps")) if given.has("save_steps") => {
            common::every(c, "save_steps", "checkpointer.save_every_n_steps", "the distance of checkpoints");
        }
        None | Some((_, "steps")) => {
            let default = format!("default of {}", c.tool.name);
            c.draft.set("checkpointer.save_every_n_steps", "500", &default);
        }
        Some((_, "epoch")) => {}
        Some((_, "best")) => c.draft.set("checkpointer.keep_best", "true", "save_strategy"),
        Some((entry, _)) => c.missing(entry, "a checkpoint is saved at the end of each epoch", "remove the key"),
    }
    let asked = [given.entry("eval_strategy"), given.entry("eval_steps")];
    match c.draft.has("dataset_val") {
        true if given.text("eval_strategy") == Some("steps") => {
            common::every(c, "eval_steps", "run_val_every_n_steps", "the distance of validations");
        }
        true => {}
        false => {
            for entry in asked.into_iter().flatten().filter(|entry| entry.value.as_str() != Some("no")) {
                c.meaningless(entry, "there is nothing to validate on");
            }
            if let Some(entry) = given.entry("load_best_model_at_end").filter(|_| given.is_on("load_best_model_at_end"))
            {
                c.missing(entry, "there is nothing to validate on", "set dataset_val");
                c.draft.set("checkpointer.keep_best", "false", "load_best_model_at_end");
            }
        }
    }
}

fn recorded(c: &mut Conversion<'_>) {
    let given = c.given;
    let mut loggers = Vec::new();
    for name in given.texts("report_to") {
        let mut logger = Draft::default();
        match name {
            "wandb" | "tensorboard" | "mlflow" => logger.set("_component_", name, "report_to"),
            _ => continue,
        }
        let run = if name == "mlflow" { "run_name" } else { "name" };
        if let Some(text) = given.text("run_name").filter(|_| name != "tensorboard") {
            logger.set_text(run, text, "run_name");
        }
        loggers.push(logger);
    }
    let other = |name: &str| !["wandb", "tensorboard", "mlflow", "none"].contains(&name);
    if let Some(entry) = given.entry("report_to").filter(|_| given.texts("report_to").into_iter().any(other)) {
        c.missing(entry, "there are clients for wandb, tensorboard and mlflow", "choose among those of metric_logger");
    }
    common::loggers(c, loggers);
}

//! Unsloth: the YAML of its command `unsloth train --config`, in sections. Keys that it does not know are dropped.

mod keys;

use super::Tool;
use super::common;
use super::conversion::{Conversion, Recipe, refusal};
use super::draft::{self, Draft};
use super::given::{Given, on_the_hub};
use super::rules::{NoEffect, no_effect};
use crate::codes;
use crate::report::Diagnostic;

pub(super) const TOOL: Tool = Tool {
    name: "Unsloth",
    version: "2026.8.19",
    rows: &[keys::ROWS],
    drops_unknown: true,
    no_effect: &[NO_EFFECT],
    is_own: |given| {
        let sections = ["data", "training", "lora"];
        let is_section = |key: &str| given.entry(key).is_some_and(|entry| entry.value.get("_component_").is_none());
        given.text("model").is_some() && sections.into_iter().any(is_section)
    },
    recipe,
    convert,
    lint,
};

/// The files that Unsloth Studio saves and opens again.
pub(super) const STUDIO: Tool = Tool {
    name: "Unsloth Studio",
    version: "2026.8.19",
    rows: &[keys::STUDIO],
    drops_unknown: true,
    no_effect: &[NO_EFFECT],
    is_own: |given| {
        let has_model = ["model", "base_model", "model_name_or_path"].iter().any(|key| given.has(key));
        !has_model && given.has("training.learning_rate") && given.has("lora.lora_r")
    },
    recipe,
    convert,
    lint: lint_studio,
};

const DEFAULT: &str = "default of Unsloth";

fn is_full(given: Given<'_>) -> bool {
    given.text("training.training_type") == Some("full")
}

fn recipe(given: Given<'_>) -> Result<Recipe, Box<Diagnostic>> {
    match given.entry("training.training_type") {
        Some(entry) if !common::only(&entry.value, &["lora", "full"]) => {
            let message = "`training_type` is lora or full";
            Err(refusal(entry.value.span, message, "write `training_type: lora`"))
        }
        _ if is_full(given) => Ok(Recipe { name: "full", adapters: false }),
        _ => Ok(Recipe { name: "lora", adapters: true }),
    }
}

/// The last part of a path of keys.
fn last(path: &'static str) -> &'static str {
    path.rsplit('.').next().unwrap_or(path)
}

fn convert(c: &mut Conversion<'_>) {
    let given = c.given;
    let output = given.text("training.output_dir");
    c.draft.set_text("output_dir", output.unwrap_or("outputs"), output.map_or(DEFAULT, |_| "output_dir"));
    if let Some(model) = given.text("model") {
        c.draft.set_text("checkpointer.checkpoint_dir", &on_the_hub(model), "model");
        if let Some(entry) = given.entry("model").filter(|_| model.to_lowercase().ends_with("bnb-4bit")) {
            let missing = "a checkpoint whose weights are in bitsandbytes' four bits is not read";
            let instead = "name the same model without -bnb-4bit; model.quantize_base=true quantizes it";
            c.missing(entry, missing, instead);
        }
    }
    let is_studio = c.tool.name == STUDIO.name;
    if is_studio {
        c.draft.set("checkpointer.checkpoint_dir", "MODEL", "no part of the file");
        let message = "the file names neither the model, nor the data, nor whether the base is in four bits";
        let instead =
            "set checkpointer.checkpoint_dir and dataset.data_files, and model.quantize_base=true for four bits";
        c.remark(message, instead);
    }
    for (theirs, ours, default) in keys::COUNTS {
        match given.whole(theirs) {
            Some(count) => c.draft.set(ours, count.to_string(), last(theirs)),
            None => c.draft.set(ours, default, DEFAULT),
        }
    }
    common::length(c, "training.num_epochs", "training.max_steps", "3");
    moved(c);
    for (theirs, ours, default) in [
        ("training.learning_rate", "optimizer.lr", "2.0e-4"),
        ("training.weight_decay", "optimizer.weight_decay", "0.01"),
        ("training.warmup_steps", "lr_scheduler.num_warmup_steps", "5"),
    ] {
        c.number_or(ours, theirs, Some(default));
    }
    c.draft.set("optimizer.decay_vectors", "false", "transformers leaves norms and biases alone");
    c.draft.set("clip_grad_norm", "1.0", DEFAULT);
    c.draft.set("dtype", "bf16", "what Unsloth trains in, where the card has it");
    if given.text("training.gradient_checkpointing") != Some("none") {
        c.draft.set("enable_activation_checkpointing", "true", "gradient_checkpointing");
    }
    match given.whole("training.save_steps").filter(|steps| *steps > 0) {
        Some(steps) => c.draft.set("checkpointer.save_every_n_steps", steps.to_string(), "save_steps"),
        None => c.draft.set("checkpointer.save_every_n_steps", "500", "default of transformers"),
    }
    adapters(c);
    dataset(c);
    loggers(c);
}

/// What moves the weights, and how fast.
fn moved(c: &mut Conversion<'_>) {
    let given = c.given;
    let of = |key: &str| given.entry(key).filter(|_| c.tool.name == STUDIO.name);
    let (optim, schedule) = (of("training.optim"), of("training.lr_scheduler_type"));
    let text = |entry: Option<&tune_yaml::Entry>| entry.and_then(|entry| entry.value.as_str()).map(str::to_owned);
    let name = text(optim).unwrap_or_else(|| "adamw_8bit".to_owned());
    let from = if optim.is_some() { "optim" } else { "what Unsloth trains with" };
    common::named_optimizer(c, optim, &name, from);
    let name = text(schedule).unwrap_or_else(|| "linear".to_owned());
    let known = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "inverse_sqrt"];
    let ours = match name.as_str() {
        "constant_with_warmup" => "constant",
        name if known.contains(&name) => name,
        _ => "cosine",
    };
    let from = if schedule.is_some() { "lr_scheduler_type" } else { "what Unsloth trains with" };
    c.draft.set("lr_scheduler._component_", ours, from);
    if let Some(entry) = schedule.filter(|_| ours == "cosine" && name != "cosine") {
        let missing =
            format!("there is no schedule `{}` here, and a cosine is written in its place", common::shown(&name));
        c.missing(entry, missing, "choose among those of lr_scheduler");
    }
}

fn adapters(c: &mut Conversion<'_>) {
    let given = c.given;
    if !c.recipe.adapters {
        for key in ["lora.lora_r", "lora.lora_alpha", "lora.target_modules", "training.load_in_4bit"] {
            if let Some(entry) = given.entry(key) {
                c.meaningless(entry, "all weights are trained, and no adapters");
            }
        }
        return;
    }
    c.number_or("model.lora_rank", "lora.lora_r", Some("64"));
    c.number_or("model.lora_alpha", "lora.lora_alpha", Some("16"));
    let targets: Vec<_> =
        given.texts("lora.target_modules").into_iter().flat_map(|text| text.split(',')).map(str::trim).collect();
    let targets: Vec<_> = targets.into_iter().filter(|name| !name.is_empty()).collect();
    match targets.is_empty() {
        true => c.draft.set("model.target_modules", "[all-linear]", DEFAULT),
        false => c.draft.set("model.target_modules", draft::texts(targets), "target_modules"),
    }
    if !given.is_off("training.load_in_4bit") && c.tool.name != STUDIO.name {
        let from = if given.has("training.load_in_4bit") { "load_in_4bit" } else { DEFAULT };
        c.draft.set("model.quantize_base", "true", from);
    }
}

fn dataset(c: &mut Conversion<'_>) {
    let given = c.given;
    let mut item = Draft::default();
    let kind = given.text("data.format_type").unwrap_or("auto");
    let mask = if given.is_on("training.train_on_completions") { "assistant" } else { "all" };
    match kind {
        "alpaca" => item.set("_component_", "alpaca", "format_type"),
        _ => item.set("_component_", "chat", "format_type"),
    }
    if kind == "sharegpt" {
        item.set("conversation_column", "conversations", "format_type");
        item.set("conversation_style", "sharegpt", "format_type");
    }
    if kind == "auto" && given.has("data") {
        let instead = "for Alpaca's columns set dataset=alpaca; for ShareGPT's, dataset.conversation_style=sharegpt \
                       dataset.conversation_column=conversations";
        let message =
            "Unsloth looks at a dataset's columns (format_type: auto): conversations in `messages` are expected here";
        c.remark(message, instead);
    }
    let mut files = given.texts("data.local_dataset");
    if !given.has("data") {
        files.push("DATA.jsonl");
    }
    match given.text("data.dataset") {
        Some(name) => common::source(&mut item, Some(name), None, &[], "dataset"),
        None => common::source(&mut item, None, None, &files, "local_dataset"),
    }
    if let Some(entry) = given.entry("data.local_dataset").filter(|_| given.has("data.dataset")) {
        c.missing(entry, "one dataset is taken, `dataset`", "write the files as a second dataset");
    }
    item.set("masking_strategy", mask, "train_on_completions");
    if given.is_on("training.packing") {
        item.set("packed", "true", "packing");
    }
    c.draft.set_items("dataset", vec![item]);
}

fn loggers(c: &mut Conversion<'_>) {
    let given = c.given;
    let mut loggers = Vec::new();
    if given.is_on("logging.enable_wandb") {
        let mut wandb = Draft::default();
        wandb.set("_component_", "wandb", "enable_wandb");
        let project = given.text("logging.wandb_project").unwrap_or("unsloth-training");
        wandb.set_text("project", project, "wandb_project");
        loggers.push(wandb);
    }
    if given.is_on("logging.enable_tensorboard") {
        let mut tensorboard = Draft::default();
        tensorboard.set("_component_", "tensorboard", "enable_tensorboard");
        tensorboard.set_text("log_dir", given.text("logging.tensorboard_dir").unwrap_or("runs"), "tensorboard_dir");
        loggers.push(tensorboard);
    }
    common::loggers(c, loggers);
}

const NO_EFFECT: &[NoEffect] = &[
    no_effect(
        &[
            "lora.lora_r",
            "lora.lora_alpha",
            "lora.lora_dropout",
            "lora.target_modules",
            "lora.use_rslora",
            "lora.use_dora",
        ],
        is_full,
        "all weights are trained (`training_type: full`)",
    ),
    no_effect(
        &["training.load_in_4bit"],
        |given| is_full(given) && given.is_on("training.load_in_4bit"),
        "all weights are trained, and none is quantized",
    ),
    no_effect(
        &["training.num_epochs"],
        |given| given.whole("training.max_steps").is_some_and(|steps| steps > 0),
        "`max_steps` ends the run, in whichever epoch that is",
    ),
    no_effect(&["logging.wandb_project"], |given| !given.is_on("logging.enable_wandb"), "`enable_wandb` is off"),
    no_effect(
        &["logging.tensorboard_dir"],
        |given| !given.is_on("logging.enable_tensorboard"),
        "`enable_tensorboard` is off",
    ),
];

/// What the studio does with a file that it saved is what the file says, but for what is learned.
fn lint_studio(_: &Tool, given: Given<'_>, out: &mut Vec<Diagnostic>) {
    learned(given, out);
}

/// Whether the prompts are learned, too.
fn learned(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    if !given.is_on("training.train_on_completions") {
        let warning = Diagnostic::warning("the whole of each sample is learned, what the user says, too");
        let warning = match given.entry("training.train_on_completions") {
            Some(entry) => warning.at(entry.key_span, ""),
            None => warning,
        };
        out.push(warning.help("write train_on_completions: true under training"));
    }
}

fn lint(tool: &Tool, given: Given<'_>, out: &mut Vec<Diagnostic>) {
    for (path, instead) in keys::OF_STUDIO {
        let Some(entry) = given.entry(path) else { continue };
        let said = out.iter_mut().find(|found| found.primary.as_ref().is_some_and(|(span, _)| *span == entry.key_span));
        if let Some(found) = said {
            found.help = vec![format!("`unsloth train` is not Unsloth Studio, whose presets have the key: {instead}")];
        }
    }
    if let Some(entry) = given.entry("lora.target_modules").filter(|entry| entry.value.as_str().is_none()) {
        let message =
            format!("{} {} refuses this: `target_modules` is one text there, with commas", tool.name, tool.version);
        let names = given.texts("lora.target_modules").join(",");
        out.push(
            Diagnostic::error(codes::NOT_HERE, message).at(entry.value.span, "").help(format!("write \"{names}\"")),
        );
    }
    for (path, key) in [("training.gradient_checkpointing", "gradient_checkpointing")] {
        if let Some(entry) = given.entry(path).filter(|entry| !common::only(&entry.value, &["unsloth", "none"])) {
            let is_text = matches!(&entry.value.value, tune_yaml::Value::Scalar(scalar) if scalar.quoted && scalar.text == "true");
            if !is_text {
                let message =
                    format!("{} {} refuses this: `{key}` is unsloth, \"true\" or none", tool.name, tool.version);
                let help = "put the word into quotes: \"true\"";
                out.push(Diagnostic::error(codes::NOT_HERE, message).at(entry.value.span, "").help(help));
            }
        }
    }
    learned(given, out);
    if !given.has("training.max_seq_length") {
        let warning = Diagnostic::warning("samples are cut off after 2048 tokens, as no `max_seq_length` is written");
        out.push(warning.help("write max_seq_length under training"));
    }
}

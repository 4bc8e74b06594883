//! TRL: the YAML that its commands take with `--config`. The command is not in the file, and unknown keys are refused.

mod data;
mod keys;
mod lint;

use super::Tool;
use super::common::{self, shown};
use super::conversion::{Conversion, Recipe, refusal};
use super::given::{Given, at_revision};
use super::trainer::{self, Defaults};
use crate::report::Diagnostic;

pub(super) const TOOL: Tool = Tool {
    name: "TRL",
    version: "1.9.0",
    rows: &[keys::ROWS, trainer::ROWS],
    drops_unknown: false,
    no_effect: &[lint::NO_EFFECT, trainer::NO_EFFECT],
    is_own: |given| given.text("model_name_or_path").is_some(),
    recipe,
    convert,
    lint: lint::lint,
};

/// Keys that only one of the commands has, and the command.
const COMMANDS: [(&str, &str); 12] = [
    ("num_generations", "grpo"),
    ("max_completion_length", "grpo"),
    ("reward_funcs", "grpo"),
    ("desirable_weight", "kto"),
    ("undesirable_weight", "kto"),
    ("center_rewards_coefficient", "reward"),
    ("beta", "dpo"),
    ("label_smoothing", "dpo"),
    ("precompute_ref_log_probs", "dpo"),
    ("f_divergence_type", "dpo"),
    ("sync_ref_model", "dpo"),
    ("loss_weights", "dpo"),
];

/// Losses of pairs of answers, and ours.
const LOSSES: [(&str, &str, &str); 3] =
    [("sigmoid", "dpo", "beta"), ("ipo", "ipo", "tau"), ("hinge", "hinge", "gamma")];

/// Losses of answers with labels, which have the same names here.
const OF_LABELS: [&str; 2] = ["kto", "apo_zero_unpaired"];

/// Which of TRL's commands a file is for, as its keys show.
fn command(given: Given<'_>) -> &'static str {
    if given.texts("loss_type").iter().any(|loss| OF_LABELS.contains(loss)) {
        return "kto";
    }
    let by_loss = given.texts("loss_type").iter().any(|loss| LOSSES.iter().any(|(theirs, _, _)| theirs == loss));
    let by_key = COMMANDS.iter().find(|(key, _)| given.has(key)).map(|(_, command)| *command);
    by_key.unwrap_or(if by_loss { "dpo" } else { "sft" })
}

fn recipe(given: Given<'_>) -> Result<Recipe, Box<Diagnostic>> {
    let adapters = given.is_on("use_peft");
    let name = match command(given) {
        "sft" if adapters => "lora",
        "sft" => "full",
        "dpo" => "dpo",
        "kto" => "kto",
        command => {
            let mark = COMMANDS.iter().filter(|(_, of)| *of == command).find_map(|(key, _)| given.entry(key));
            let span = mark.map_or(given.root.span, |entry| entry.key_span);
            let instead = match command {
                "grpo" => {
                    "start from a config of the recipe grpo (`tune cat grpo/tiny`); with reward=program, a program of \
                           yours says what an answer is worth"
                }
                _ => "learn from the pairs themselves, with `trl dpo` and the recipe dpo",
            };
            return Err(refusal(span, format!("configs of `trl {command}` are not converted"), instead));
        }
    };
    Ok(Recipe { name, adapters })
}

fn convert(c: &mut Conversion<'_>) {
    let given = c.given;
    let default = "default of TRL";
    c.draft.set_text("output_dir", given.text("output_dir").unwrap_or("trainer_output"), "output_dir");
    if let Some(model) = given.text("model_name_or_path") {
        let place = at_revision(model, given.text("model_revision"));
        c.draft.set_text("checkpointer.checkpoint_dir", &place, "model_name_or_path");
    }
    // null is no limit.
    match given.root.get("max_length") {
        Some(_) => c.number_or("tokenizer.max_seq_len", "max_length", None),
        None => c.draft.set("tokenizer.max_seq_len", "1024", default),
    }
    if let Some(entry) = given.entry("chat_template_path") {
        let path = entry.value.as_str().unwrap_or_default();
        match std::path::Path::new(path).extension().is_some_and(|extension| extension == "jinja") {
            true => c.draft.set_text("tokenizer.chat_template", path, "chat_template_path"),
            false => {
                let instead = "download it, and set tokenizer.chat_template to a file with the template alone";
                c.missing(entry, format!("a template is a file here, and not that of `{}`", shown(path)), instead);
            }
        }
    }
    adapters(c);
    data::convert(c);
    trainer::convert(
        c,
        &Defaults {
            learning_rate: if matches!(c.recipe.name, "dpo" | "kto") { "1.0e-6" } else { "2.0e-5" },
            gradient_checkpointing: true,
            logging_steps: "10",
        },
    );
    precision(c);
    if c.recipe.name == "dpo" {
        pairs(c);
    } else if c.recipe.name == "kto" {
        labels(c);
    } else if let Some(entry) =
        given.entry("loss_type").filter(|entry| !common::only(&entry.value, &["nll", "chunked_nll"]))
    {
        c.missing(entry, "the loss is the cross-entropy of the next token", "remove the key");
    }
}

fn adapters(c: &mut Conversion<'_>) {
    let given = c.given;
    if !c.recipe.adapters {
        for entry in ["lora_r", "lora_alpha", "lora_dropout"].iter().filter_map(|key| given.entry(key)) {
            c.meaningless(entry, "without `use_peft: true` all weights are trained");
        }
    } else {
        c.number_or("model.lora_rank", "lora_r", Some("16"));
        c.number_or("model.lora_alpha", "lora_alpha", Some("32"));
        c.number_or("model.lora_dropout", "lora_dropout", Some("0.05"));
    }
    if let Some(entry) = given.entry("load_in_4bit").filter(|_| given.is_on("load_in_4bit")) {
        match c.recipe.name {
            "lora" => c.draft.set("model.quantize_base", "true", "load_in_4bit"),
            name => {
                let instead = "leave the base in bf16; `tune plan` says whether it fits";
                c.missing(entry, format!("`{name}` does not quantize its base"), instead);
            }
        }
    }
}

/// What weights are held in; that products are in bf16 beside weights in f32 has no counterpart.
fn precision(c: &mut Conversion<'_>) {
    let given = c.given;
    if let Some(entry) = given.entry("fp16").filter(|_| given.is_on("fp16")) {
        c.draft.set("dtype", "bf16", "fp16");
        return c.missing(
            entry,
            "training in fp16 is not supported, and bf16 is written in its place",
            "or set dtype=fp32",
        );
    }
    let key = ["dtype", "torch_dtype"].into_iter().find(|key| given.has(key));
    let dtype = match key.and_then(|key| given.text(key)) {
        Some("bfloat16" | "auto") => "bf16",
        _ => "fp32",
    };
    c.draft.set("dtype", dtype, key.unwrap_or("default of TRL"));
    if let Some(entry) = given.entry("bf16").filter(|_| given.is_on("bf16") && dtype == "fp32") {
        c.missing(
            entry,
            "weights and products have one precision here, that of the weights",
            "set dtype=bf16 for both",
        );
    }
}

/// What is minimized over answers with labels.
fn labels(c: &mut Conversion<'_>) {
    let theirs = c.given.texts("loss_type");
    let loss = OF_LABELS.iter().find(|loss| theirs.contains(loss)).copied();
    c.draft.set("loss._component_", loss.unwrap_or("kto"), loss.map_or("default of TRL", |_| "loss_type"));
    c.number_or("loss.beta", "beta", Some("0.1"));
    c.number_or("loss.desirable_weight", "desirable_weight", None);
    c.number_or("loss.undesirable_weight", "undesirable_weight", None);
    if c.given.text("train_sampling_strategy").is_none_or(|strategy| strategy == "sequential") {
        c.draft.set("shuffle", "false", "`trl kto` keeps the order of the file");
    }
    if c.given.is_on("precompute_ref_log_probs") {
        c.draft.set("reference", "precomputed", "precompute_ref_log_probs");
    }
}

/// What is minimized over pairs of answers.
fn pairs(c: &mut Conversion<'_>) {
    let given = c.given;
    let theirs = given.texts("loss_type");
    let first = theirs.first().copied().unwrap_or("sigmoid");
    let (_, name, ours) = LOSSES.iter().find(|(loss, _, _)| *loss == first).copied().unwrap_or(LOSSES[0]);
    c.draft.set("loss._component_", name, if theirs.is_empty() { "default of TRL" } else { "loss_type" });
    let known = |loss: &str| LOSSES.iter().any(|(theirs, _, _)| *theirs == loss);
    if let Some(entry) = given.entry("loss_type").filter(|_| theirs.len() > 1 || !theirs.iter().copied().all(known)) {
        let missing = format!("there is one loss here, and {name} is written in its place");
        c.missing(entry, missing, "choose among those of the recipe dpo");
    }
    c.number_or(&format!("loss.{ours}"), "beta", Some("0.1"));
    if name == "dpo" {
        c.number_or("loss.label_smoothing", "label_smoothing", None);
    }
    if given.is_on("precompute_ref_log_probs") {
        c.draft.set("reference", "precomputed", "precompute_ref_log_probs");
    }
}

//! LLaMA-Factory: one file for each run, of its own keys and those of transformers' trainer. Unknown keys are refused.

mod data;
mod keys;
mod lint;

use super::Tool;
use super::common::shown;
use super::conversion::{Conversion, Recipe, refusal};
use super::draft;
use super::given::{Given, at_revision, on_the_hub};
use super::trainer::{self, Defaults};
use crate::report::Diagnostic;

pub(super) const TOOL: Tool = Tool {
    name: "LLaMA-Factory",
    version: "0.9.5",
    rows: &[keys::ROWS, trainer::ROWS],
    drops_unknown: false,
    no_effect: &[lint::NO_EFFECT, trainer::NO_EFFECT],
    is_own: |given| {
        let own = ["stage", "finetuning_type", "template", "cutoff_len", "dataset_dir"];
        given.text("model_name_or_path").is_some() && own.iter().any(|key| given.has(key))
    },
    recipe,
    convert,
    lint: lint::lint,
};

fn recipe(given: Given<'_>) -> Result<Recipe, Box<Diagnostic>> {
    let adapters = match given.entry("finetuning_type") {
        None => true,
        Some(entry) => match entry.value.as_str().unwrap_or_default() {
            "lora" => true,
            "full" => false,
            kind => {
                let message =
                    format!("`finetuning_type: {}` is not supported: adapters or all weights are trained", shown(kind));
                return Err(refusal(entry.value.span, message, "write `finetuning_type: lora`"));
            }
        },
    };
    let name = match given.entry("stage") {
        None if adapters => "lora",
        None => "full",
        Some(entry) => match entry.value.as_str().unwrap_or_default() {
            "sft" | "pt" if adapters => "lora",
            "pt" => "pretrain",
            "sft" => "full",
            "dpo" => "dpo",
            "kto" => "kto",
            stage => {
                let message = format!("there is no recipe for `stage: {}` of LLaMA-Factory's", shown(stage));
                let instead = "lora, full, pretrain, dpo and kto are for sft, pt, dpo and kto";
                return Err(refusal(entry.value.span, message, instead));
            }
        },
    };
    Ok(Recipe { name, adapters })
}

fn convert(c: &mut Conversion<'_>) {
    let given = c.given;
    let default = "default of LLaMA-Factory";
    c.draft.set_text("output_dir", given.text("output_dir").unwrap_or("trainer_output"), "output_dir");
    if let Some(model) = given.text("model_name_or_path") {
        let place = at_revision(model, given.text("model_revision"));
        c.draft.set_text("checkpointer.checkpoint_dir", &place, "model_name_or_path");
    }
    if !given.has("cutoff_len") {
        c.draft.set("tokenizer.max_seq_len", "2048", default);
    }
    if c.recipe.adapters {
        adapters(c);
    } else {
        let keys =
            ["lora_rank", "lora_alpha", "lora_target", "additional_target", "adapter_name_or_path", "pissa_init"];
        for entry in keys.iter().filter_map(|key| given.entry(key)) {
            c.meaningless(entry, "all weights are trained, and no adapters");
        }
    }
    if c.recipe.name == "pretrain" {
        c.draft.set("from_scratch", given.is_on("train_from_scratch").to_string(), "train_from_scratch");
    } else if let Some(entry) = given.entry("train_from_scratch").filter(|_| given.is_on("train_from_scratch")) {
        c.missing(entry, "training begins with the checkpoint's weights", "start `pretrain`, which learns from texts");
    }
    data::convert(c);
    trainer::convert(
        c,
        &Defaults {
            learning_rate: "5.0e-5",
            gradient_checkpointing: !given.is_on("disable_gradient_checkpointing"),
            logging_steps: "500",
        },
    );
    precision(c);
    if let Some(entry) = given.entry("early_stopping_steps") {
        match (given.whole("early_stopping_steps"), c.draft.has("dataset_val")) {
            (Some(patience), true) => {
                c.draft.set("early_stopping.patience", patience.to_string(), "early_stopping_steps");
            }
            _ => c.missing(entry, "there is nothing to validate on", "set dataset_val"),
        }
    }
    if let Some(entry) = given.entry("template").filter(|_| given.text("stage") == Some("pt")) {
        c.meaningless(entry, "texts are learned as they are");
    } else if let Some(entry) = given.entry("template") {
        let name = shown(entry.value.as_str().unwrap_or_default());
        let missing = format!("the template is the checkpoint's own, and not LLaMA-Factory's `{name}`");
        let instead = "nothing, if that is what the checkpoint has; else write the template into a file, and set \
                       tokenizer.chat_template=FILE";
        c.missing(entry, missing, instead);
    }
    match c.recipe.name {
        "dpo" => pairs(c),
        "kto" => labels(c),
        _ => {}
    }
    if c.recipe.name != "kto" {
        for entry in ["kto_chosen_weight", "kto_rejected_weight"].iter().filter_map(|key| given.entry(key)) {
            c.meaningless(entry, "it belongs to `stage: kto`");
        }
    }
}

fn adapters(c: &mut Conversion<'_>) {
    let given = c.given;
    let default = "default of LLaMA-Factory";
    let rank = given.whole("lora_rank").unwrap_or(8);
    c.draft.set("model.lora_rank", rank.to_string(), if given.has("lora_rank") { "lora_rank" } else { default });
    match given.number("lora_alpha") {
        Some(alpha) => c.draft.set("model.lora_alpha", draft::number(alpha), "lora_alpha"),
        None => c.draft.set("model.lora_alpha", rank.saturating_mul(2).to_string(), "twice the rank, by default"),
    }
    let targets = list(given, "lora_target");
    match targets.contains(&"all") || targets.is_empty() {
        true => c.draft.set("model.target_modules", "[all-linear]", "lora_target: all"),
        false => c.draft.set("model.target_modules", draft::texts(targets), "lora_target"),
    }
    let whole = list(given, "additional_target");
    if !whole.is_empty() {
        c.draft.set("model.modules_to_save", draft::texts(whole), "additional_target");
    }
    if let Some((last, before)) = list(given, "adapter_name_or_path").split_last() {
        c.draft.set_text("checkpointer.adapter_checkpoint", &on_the_hub(last), "adapter_name_or_path");
        if !before.is_empty() {
            let before: Vec<_> = before.iter().map(|path| on_the_hub(path)).collect();
            let before = draft::texts(before.iter().map(String::as_str));
            c.draft.set("model.base_adapters", before, "adapter_name_or_path");
        }
    }
    if given.is_on("pissa_init") {
        c.draft.set("model.init_lora_weights", "pissa", "pissa_init");
        match given.whole("pissa_iter").unwrap_or(16) {
            -1 => {}
            times => c.draft.set("model.pissa_niter", times.to_string(), "pissa_iter; 16 by default"),
        }
    }
    let tokens: Vec<_> = [list(given, "add_tokens"), list(given, "add_special_tokens")].concat();
    if !tokens.is_empty() {
        c.draft.set("model.new_tokens", draft::texts(tokens), "add_tokens, add_special_tokens");
    }
    if let Some(entry) = given.entry("quantization_bit") {
        match (given.whole("quantization_bit"), c.recipe.name) {
            (Some(4), "lora") => c.draft.set("model.quantize_base", "true", "quantization_bit"),
            (_, "lora") => {
                let instead =
                    "set model.quantize_base=true for 4 bits, or start from a GGUF file, which stays as it is";
                c.missing(entry, "a base is quantized to 4 bits while it is read", instead);
            }
            (_, name) => {
                let instead = "leave the base in bf16; `tune plan` says whether it fits";
                c.missing(entry, format!("`{name}` does not quantize its base"), instead);
            }
        }
    }
}

/// The items of a list, or of a text with commas.
fn list<'a>(given: Given<'a>, key: &str) -> Vec<&'a str> {
    given
        .texts(key)
        .into_iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .collect()
}

fn precision(c: &mut Conversion<'_>) {
    let given = c.given;
    match given.entry("fp16").filter(|_| given.is_on("fp16")) {
        Some(entry) => {
            c.draft.set("dtype", "bf16", "fp16");
            c.missing(
                entry,
                "training in fp16 is not supported, and bf16 is written in its place",
                "or set dtype=fp32",
            );
        }
        None if given.is_on("bf16") => c.draft.set("dtype", "bf16", "bf16"),
        None if given.is_on("pure_bf16") => c.draft.set("dtype", "bf16", "pure_bf16"),
        None => c.draft.set("dtype", "fp32", "default of LLaMA-Factory"),
    }
}

/// What is minimized over pairs of answers.
fn pairs(c: &mut Conversion<'_>) {
    let given = c.given;
    let theirs = given.text("pref_loss").unwrap_or("sigmoid");
    let (name, ours) = match theirs {
        "ipo" => ("ipo", "tau"),
        "hinge" => ("hinge", "gamma"),
        "orpo" => ("orpo", "lambda"),
        "simpo" => ("simpo", "beta"),
        "kto_pair" => ("kto", "beta"),
        _ => ("dpo", "beta"),
    };
    c.draft.set(
        "loss._component_",
        name,
        if given.has("pref_loss") { "pref_loss" } else { "default of LLaMA-Factory" },
    );
    if let Some(entry) = given.entry("pref_loss").filter(|_| name == "dpo" && theirs != "sigmoid") {
        c.missing(
            entry,
            "there is no such loss here, and dpo is written in its place",
            "choose among those of the recipe dpo",
        );
    }
    c.number_or(&format!("loss.{ours}"), "pref_beta", Some("0.1"));
    match name {
        "dpo" => c.number_or("loss.label_smoothing", "dpo_label_smoothing", None),
        "simpo" => c.number_or("loss.gamma", "simpo_gamma", Some("0.5")),
        _ => {}
    }
    reference(c, matches!(name, "orpo" | "simpo"));
}

/// What is minimized over answers with labels.
fn labels(c: &mut Conversion<'_>) {
    c.draft.set("loss._component_", "kto", "stage: kto");
    c.number_or("loss.beta", "pref_beta", Some("0.1"));
    c.number_or("loss.desirable_weight", "kto_chosen_weight", None);
    c.number_or("loss.undesirable_weight", "kto_rejected_weight", None);
    let given = c.given;
    // There, answers to each other's prompts are made of more rows than a batch has.
    if let Some(entry) = given.entry("per_device_train_batch_size")
        && given.whole("per_device_train_batch_size") == Some(1)
    {
        let steps = given.whole("gradient_accumulation_steps").unwrap_or(1);
        c.draft.set("batch_size", "2", "kto asks about answers to each other's prompts");
        c.draft.set("gradient_accumulation_steps", ((steps + 1) / 2).to_string(), "for as many answers a step");
        c.missing(
            entry,
            "the answers of a batch tell how far the model has moved",
            "2 is written; larger batches tell more",
        );
    }
    reference(c, false);
}

/// The model that answers are compared with.
fn reference(c: &mut Conversion<'_>, has_none: bool) {
    let given = c.given;
    let written = ["ref_model", "ref_model_adapters"].map(|key| given.entry(key));
    if has_none {
        for entry in written.into_iter().flatten() {
            c.meaningless(entry, "this loss has no reference model");
        }
        return;
    }
    let adapters = list(given, "ref_model_adapters");
    let model = given.text("ref_model").or_else(|| given.text("model_name_or_path").filter(|_| !adapters.is_empty()));
    if let Some(model) = model {
        c.draft.set_text("ref_checkpointer.checkpoint_dir", &on_the_hub(model), "ref_model");
    }
    match (adapters.as_slice(), written[1]) {
        ([one], _) => {
            c.draft.set_text("ref_checkpointer.adapter_checkpoint", &on_the_hub(one), "ref_model_adapters");
        }
        ([], _) | (_, None) => {}
        (_, Some(entry)) => c.missing(entry, "a reference has one adapter at most", "merge them first: tune merge"),
    }
}

//! What TRL does without saying so.

use super::command;
use crate::codes;
use crate::others::Tool;
use crate::others::given::Given;
use crate::others::rules::{NoEffect, no_effect};
use crate::report::Diagnostic;

pub(super) const NO_EFFECT: &[NoEffect] = &[
    no_effect(
        &[
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_modules_to_save",
            "lora_task_type",
            "use_rslora",
            "use_dora",
        ],
        |given| !given.is_on("use_peft"),
        "without `use_peft: true` all weights are trained",
    ),
    no_effect(
        &["bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"],
        |given| !given.is_on("load_in_4bit"),
        "`load_in_4bit` is off",
    ),
    no_effect(
        &["dataset_name", "dataset_config", "dataset_streaming"],
        |given| given.has("datasets"),
        "`datasets` is taken in its place",
    ),
    no_effect(
        &["test_split_size", "streaming"],
        |given| !given.has("datasets"),
        "it divides what `datasets` lists, and `dataset_name` is not among it",
    ),
    no_effect(
        &["dataset_test_split", "per_device_eval_batch_size"],
        |given| given.text("eval_strategy").is_none_or(|strategy| strategy == "no"),
        "`eval_strategy` is not written, so nothing is evaluated",
    ),
    no_effect(&["packing_strategy"], |given| !given.is_on("packing"), "`packing` is off"),
    no_effect(
        &["ref_model_mixup_alpha", "ref_model_sync_steps"],
        |given| !given.is_on("sync_ref_model"),
        "`sync_ref_model` is off",
    ),
];

/// Keys that transformers had before.
const GONE: [&str; 6] =
    ["warmup_ratio", "logging_dir", "overwrite_output_dir", "group_by_length", "save_safetensors", "no_cuda"];

/// Says the rest of it.
pub(super) fn lint(tool: &Tool, given: Given<'_>, out: &mut Vec<Diagnostic>) {
    for entry in GONE.iter().filter_map(|key| given.entry(key)) {
        let message =
            format!("with transformers 5.24 there is no key `{}` any more, and {} refuses it", entry.key, tool.name);
        let help = match entry.key.as_str() {
            "warmup_ratio" => "write the share as warmup_steps: a number below 1 is one",
            _ => "remove it",
        };
        out.push(Diagnostic::warning(message).at(entry.key_span, "").help(help));
    }
    if !given.has("dataset_name") && !given.has("datasets") {
        let message =
            format!("{} {} refuses this: there is neither `dataset_name` nor `datasets`", tool.name, tool.version);
        out.push(Diagnostic::error(codes::NOT_HERE, message).help("write dataset_name"));
    }
    if command(given) != "sft" {
        return;
    }
    learned(given, out);
    if given.entry("max_length").is_none() && given.root.get("max_length").is_none() {
        let warning = Diagnostic::warning("samples are cut off after 1024 tokens, as no `max_length` is written");
        out.push(warning.help("write max_length"));
    }
    if let Some(entry) = given.entry("packing").filter(|_| given.is_on("packing")) {
        let flash = given.text("attn_implementation").is_some_and(|name| name.contains("flash"));
        if !flash {
            let warning = Diagnostic::warning("samples that share a row may attend to each other");
            let help = "write attn_implementation: flash_attention_2, which keeps them apart";
            out.push(warning.at(entry.key_span, "attention that does not know where samples end").help(help));
        }
    }
}

/// Which tokens are learned, and whether those that end an answer are.
fn learned(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    if let Some(entry) = given.entry("chat_template_path").filter(|_| !given.has("eos_token")) {
        let message = "a template is brought along, and generation still stops at the tokenizer's own eos_token alone, \
                       which this template may not end answers with";
        let help = "write eos_token: the token that ends an answer in the template";
        out.push(Diagnostic::warning(message).at(entry.key_span, "").help(help));
    }
    if !given.is_on("assistant_only_loss") && !given.has("completion_only_loss") && !given.has("dataset_text_field") {
        let message = "of conversations all tokens are learned, what the user says, too";
        out.push(Diagnostic::warning(message).help(
            "write assistant_only_loss: true, or false to say that it is meant; columns `prompt` and `completion` need neither",
        ));
        if given.is_off("assistant_only_loss") {
            out.pop();
        }
    }
}

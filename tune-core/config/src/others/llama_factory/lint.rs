//! What LLaMA-Factory does without saying so.

use crate::others::Tool;
use crate::others::given::Given;
use crate::others::rules::{NoEffect, Refusal, no_effect, refusal};
use crate::report::Diagnostic;

fn is_full(given: Given<'_>) -> bool {
    given.text("finetuning_type").is_some_and(|kind| kind != "lora")
}

pub(super) const NO_EFFECT: &[NoEffect] = &[
    no_effect(
        &["lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target"],
        is_full,
        "they belong to `finetuning_type: lora`",
    ),
    no_effect(
        &["pref_beta", "pref_loss", "pref_ftx", "simpo_gamma", "ref_model"],
        |given| given.text("stage").is_none_or(|stage| stage != "dpo" && stage != "kto"),
        "it belongs to `stage: dpo`",
    ),
    no_effect(
        &["kto_chosen_weight", "kto_rejected_weight"],
        |given| given.text("stage") != Some("kto"),
        "it belongs to `stage: kto`",
    ),
    no_effect(
        &["simpo_gamma"],
        |given| given.text("pref_loss").is_none_or(|loss| loss != "simpo"),
        "it belongs to `pref_loss: simpo`",
    ),
    no_effect(
        &["ref_model"],
        |given| given.text("pref_loss").is_some_and(|loss| loss == "orpo" || loss == "simpo"),
        "this loss has no reference model",
    ),
    no_effect(
        &["template", "train_on_prompt", "mask_history"],
        |given| given.text("stage") == Some("pt"),
        "texts are learned as they are (`stage: pt`)",
    ),
    no_effect(&["pissa_iter", "pissa_convert"], |given| !given.is_on("pissa_init"), "`pissa_init` is off"),
    no_effect(
        &["interleave_probs"],
        |given| given.text("mix_strategy").is_none_or(|mix| mix == "concat"),
        "`mix_strategy` puts datasets one after the other",
    ),
    no_effect(
        &["per_device_eval_batch_size", "eval_steps", "eval_strategy"],
        |given| !given.is_on("val_size") && !given.has("eval_dataset"),
        "there is nothing to evaluate on: neither `val_size` nor `eval_dataset`",
    ),
    no_effect(
        &["quantization_type", "double_quantization", "quantization_method"],
        |given| !given.has("quantization_bit"),
        "without `quantization_bit` nothing is quantized",
    ),
    no_effect(&["buffer_size"], |given| !given.is_on("streaming"), "`streaming` is off"),
    no_effect(
        &["swanlab_project", "swanlab_run_name", "swanlab_workspace", "swanlab_mode"],
        |given| !given.is_on("use_swanlab"),
        "`use_swanlab` is off",
    ),
];

/// Combinations that LLaMA-Factory refuses.
const REFUSALS: &[Refusal] = &[
    refusal(
        |given| given.is_on("val_size") && given.has("eval_dataset"),
        "val_size",
        "`val_size` and `eval_dataset` exclude each other",
        "remove one",
    ),
    refusal(
        |given| given.is_on("mask_history") && given.is_on("train_on_prompt"),
        "mask_history",
        "`mask_history` and `train_on_prompt` exclude each other",
        "remove one",
    ),
    refusal(
        |given| is_full(given) && given.has("quantization_bit") && given.text("finetuning_type") != Some("oft"),
        "quantization_bit",
        "a quantized model is trained with adapters only",
        "write `finetuning_type: lora`, or remove the key",
    ),
    refusal(
        |given| is_full(given) && given.has("adapter_name_or_path"),
        "adapter_name_or_path",
        "an adapter is for `finetuning_type: lora` only",
        "merge the adapter first",
    ),
    refusal(
        |given| {
            is_full(given) && (given.has("loraplus_lr_ratio") || given.is_on("use_dora") || given.is_on("use_rslora"))
        },
        "finetuning_type",
        "loraplus_lr_ratio, use_dora and use_rslora are for `finetuning_type: lora` only",
        "remove them",
    ),
    refusal(
        |given| given.text("stage").is_some_and(|stage| stage != "sft") && given.is_on("neat_packing"),
        "neat_packing",
        "`neat_packing` is for `stage: sft` only",
        "remove it",
    ),
    refusal(
        |given| given.is_on("streaming") && given.has("max_samples"),
        "max_samples",
        "`max_samples` and `streaming` exclude each other",
        "remove one",
    ),
    refusal(
        |given| given.is_on("streaming") && given.whole("max_steps").is_none_or(|steps| steps <= 0),
        "streaming",
        "`streaming` needs `max_steps`",
        "write max_steps",
    ),
    refusal(
        |given| {
            let other = given.text("pref_loss").is_some_and(|loss| loss != "sigmoid");
            given.text("stage") == Some("dpo") && other && given.is_on("dpo_label_smoothing")
        },
        "dpo_label_smoothing",
        "`dpo_label_smoothing` is for `pref_loss: sigmoid` only",
        "remove it",
    ),
];

/// Says the rest of it.
pub(super) fn lint(tool: &Tool, given: Given<'_>, out: &mut Vec<Diagnostic>) {
    out.extend(REFUSALS.iter().filter_map(|refusal| refusal.of(tool, given)));
    stops(given, out);
    packed(given, out);
    lengths(given, out);
}

/// Whether a model learns to stop.
fn stops(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    if given.text("stage").is_some_and(|stage| stage != "sft") {
        return;
    }
    match given.entry("template") {
        Some(entry) if entry.value.as_str() == Some("empty") => {
            let warning = Diagnostic::warning(
                "the template `empty` ends answers with no token, so the model does not learn to stop",
            );
            let help = "write the template of the model's family, or `default`";
            out.push(warning.at(entry.value.span, "").help(help));
        }
        None if given.has("stage") || given.has("finetuning_type") => {
            let message = "no `template` is written: it is guessed from the tokenizer's, or, where that has none, `empty`, \
                           with which the model does not learn to stop";
            out.push(Diagnostic::warning(message).help("write the template of the model's family"));
        }
        _ => {}
    }
}

/// What samples in one row see of each other.
fn packed(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    let Some(entry) = given.entry("packing").filter(|_| given.is_on("packing") && !given.is_on("neat_packing")) else {
        return;
    };
    if given.text("stage").is_none_or(|stage| stage == "sft") {
        let warning = Diagnostic::warning("samples that share a row attend to those before them");
        out.push(warning.at(entry.key_span, "").help("write neat_packing: true, which keeps them apart"));
    }
}

/// What becomes of long samples.
fn lengths(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    if !given.has("cutoff_len") {
        let warning = Diagnostic::warning("samples are cut off after 2048 tokens, as no `cutoff_len` is written");
        out.push(warning.help("write cutoff_len"));
    }
}

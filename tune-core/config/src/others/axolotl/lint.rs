//! What Axolotl does without saying so.

use super::run_keys::{CUT_CROSS_ENTROPY, LIGER};
use crate::others::Tool;
use crate::others::given::Given;
use crate::others::rules::{NoEffect, Refusal, no_effect, refusal};
use crate::report::Diagnostic;

const NO_ADAPTER: &str = "without `adapter` all weights are trained";

pub(super) const NO_EFFECT: &[NoEffect] = &[
    no_effect(
        &[
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_linear",
            "lora_modules_to_save",
            "lora_model_dir",
            "loraplus_lr_ratio",
            "peft_use_dora",
            "peft_use_rslora",
            "peft_init_lora_weights",
        ],
        |given| !given.has("adapter"),
        NO_ADAPTER,
    ),
    no_effect(
        &["wandb_entity", "wandb_name", "wandb_watch", "wandb_log_model", "wandb_mode", "wandb_run_id"],
        |given| !given.is_on("wandb_project") && !given.is_on("use_wandb"),
        "without `wandb_project` nothing is sent to Weights & Biases",
    ),
    no_effect(
        &["mlflow_tracking_uri", "mlflow_run_name", "hf_mlflow_log_artifacts"],
        |given| !given.is_on("use_mlflow") && !given.is_on("mlflow_experiment_name"),
        "without `mlflow_experiment_name` or `use_mlflow: true` nothing is sent to MLflow",
    ),
    no_effect(
        &["comet_workspace", "comet_experiment_key", "comet_mode", "comet_online"],
        |given| !given.is_on("use_comet") && !given.is_on("comet_project_name"),
        "without `comet_project_name` or `use_comet: true` nothing is sent to Comet",
    ),
    no_effect(
        &["evals_per_epoch"],
        |given| !given.is_on("val_set_size") && !given.has("test_datasets"),
        "there is nothing to evaluate on: neither `val_set_size` nor `test_datasets`",
    ),
    no_effect(
        &["eval_sample_packing"],
        |given| !given.is_on("val_set_size") && !given.has("test_datasets"),
        "there is nothing to evaluate on: neither `val_set_size` nor `test_datasets`",
    ),
    no_effect(
        &["lr_scheduler_kwargs"],
        |given| given.is_on("cosine_min_lr_ratio"),
        "`cosine_min_lr_ratio` takes a schedule of Axolotl's own, which reads no keys",
    ),
    no_effect(
        &["cosine_min_lr_ratio", "cosine_constant_lr_ratio"],
        |given| {
            let others = ["cosine", "rex", "one_cycle"];
            given.text("lr_scheduler").is_some_and(|name| !others.contains(&name)) && !given.has("jagged_restart_steps")
        },
        "it belongs to `lr_scheduler: cosine`",
    ),
    no_effect(
        &["cosine_constant_lr_ratio"],
        |given| !given.is_on("cosine_min_lr_ratio"),
        "it needs `cosine_min_lr_ratio` beside it",
    ),
    no_effect(
        &["warmup_steps", "warmup_ratio"],
        |given| given.text("lr_scheduler") == Some("constant"),
        "the schedule `constant` has no warm-up; `constant_with_warmup` has",
    ),
    no_effect(
        &["chat_template_jinja"],
        |given| given.text("chat_template").is_some_and(|name| name != "jinja"),
        "it is read where `chat_template` is `jinja` or not written",
    ),
    no_effect(
        &["gradient_checkpointing_kwargs"],
        |given| !given.is_on("gradient_checkpointing"),
        "`gradient_checkpointing` is off",
    ),
    no_effect(
        &["num_epochs"],
        |given| given.whole("max_steps").is_some_and(|steps| steps > 0),
        "`max_steps` ends the run, in whichever epoch that is",
    ),
    no_effect(
        LIGER,
        |given| !plugin(given, "LigerPlugin"),
        "the plugin axolotl.integrations.liger.LigerPlugin is not listed",
    ),
    no_effect(
        CUT_CROSS_ENTROPY,
        |given| !plugin(given, "CutCrossEntropyPlugin"),
        "the plugin axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin is not listed",
    ),
    no_effect(&["simpo_gamma", "cpo_alpha"], |given| given.text("rl") != Some("simpo"), "it belongs to `rl: simpo`"),
    no_effect(&["orpo_alpha"], |given| given.has("rl_beta"), "`rl_beta` is taken in its place"),
    no_effect(
        &["kto_desirable_weight", "kto_undesirable_weight"],
        |given| given.text("rl") != Some("kto"),
        "it belongs to `rl: kto`",
    ),
];

fn plugin(given: Given<'_>, name: &str) -> bool {
    given.texts("plugins").iter().any(|plugin| plugin.ends_with(name))
}

/// Combinations that Axolotl refuses.
const REFUSALS: &[Refusal] = &[
    refusal(
        |given| given.is_on("warmup_steps") && given.is_on("warmup_ratio"),
        "warmup_ratio",
        "`warmup_steps` and `warmup_ratio` exclude each other",
        "remove one",
    ),
    refusal(
        |given| given.is_on("save_steps") && given.is_on("saves_per_epoch"),
        "saves_per_epoch",
        "`save_steps` and `saves_per_epoch` exclude each other",
        "remove one",
    ),
    refusal(
        |given| given.is_on("eval_steps") && given.is_on("evals_per_epoch"),
        "evals_per_epoch",
        "`eval_steps` and `evals_per_epoch` exclude each other",
        "remove one",
    ),
    refusal(
        |given| given.is_on("gradient_accumulation_steps") && given.is_on("batch_size"),
        "batch_size",
        "`batch_size` and `gradient_accumulation_steps` exclude each other",
        "remove batch_size",
    ),
    refusal(
        |given| given.is_on("val_set_size") && given.has("test_datasets"),
        "val_set_size",
        "`val_set_size` and `test_datasets` exclude each other",
        "remove one",
    ),
    refusal(
        |given| given.is_on("sample_packing") && given.has("rl"),
        "sample_packing",
        "samples are not packed where answers are compared (`rl`)",
        "write `sample_packing: false`",
    ),
    refusal(
        |given| !given.has("adapter") && (given.is_on("load_in_4bit") || given.is_on("load_in_8bit")),
        "load_in_4bit",
        "a quantized model is trained with an adapter only",
        "write `adapter: qlora`, or remove the key",
    ),
    refusal(
        |given| given.text("adapter") == Some("qlora") && !given.is_on("load_in_4bit"),
        "adapter",
        "`adapter: qlora` needs `load_in_4bit: true`",
        "write load_in_4bit: true, or `adapter: lora`",
    ),
    refusal(
        |given| given.text("rl") == Some("kto") && !given.is_off("remove_unused_columns"),
        "rl",
        "`rl: kto` needs `remove_unused_columns: false`",
        "write it",
    ),
    refusal(
        |given| given.is_off("val_set_size") && !given.has("test_datasets") && given.is_on("eval_steps"),
        "eval_steps",
        "there is nothing to evaluate on: `val_set_size` is 0",
        "remove eval_steps, or hold a part of the data out",
    ),
    refusal(
        |given| given.is_on("early_stopping_patience") && !given.is_on("val_set_size") && !given.has("test_datasets"),
        "early_stopping_patience",
        "early stopping needs something to evaluate on",
        "hold a part of the data out: val_set_size",
    ),
];

/// Says the rest of it.
pub(super) fn lint(tool: &Tool, given: Given<'_>, out: &mut Vec<Diagnostic>) {
    out.extend(REFUSALS.iter().filter_map(|refusal| refusal.of(tool, given)));
    let sizes = ["micro_batch_size", "gradient_accumulation_steps", "batch_size"];
    if sizes.iter().filter(|key| given.is_on(key)).count() < 2 {
        let error =
            tool.refuses("at least two of micro_batch_size, gradient_accumulation_steps, batch_size must be written");
        out.push(error.help("write micro_batch_size and gradient_accumulation_steps"));
    }
    lengths(given, out);
    stops(given, out);
    new_tokens(given, out);
    simpo(given, out);
}

/// What becomes of long samples.
fn lengths(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    if given.has("rl") || given.has("pretraining_dataset") {
        return;
    }
    match given.entry("sequence_len") {
        None => {
            let warning =
                Diagnostic::warning("samples of more than 512 tokens are dropped, as no `sequence_len` is written");
            out.push(warning.help("write sequence_len; excess_length_strategy: truncate cuts samples off instead"));
        }
        Some(entry) if !given.has("excess_length_strategy") => {
            let length = entry.value.as_str().unwrap_or_default();
            let warning = Diagnostic::warning(format!("samples of more than {length} tokens are dropped"));
            out.push(warning.at(entry.key_span, "the longest that is trained on").help(
                "excess_length_strategy: truncate cuts them off instead, raise makes them an error, drop says that it is meant",
            ));
        }
        Some(_) => {}
    }
}

/// Templates of Axolotl's by name, and the token that ends an answer in them, where it is not the tokenizer's own.
const ENDS: [(&str, &str); 14] = [
    ("chatml", "<|im_end|>"),
    ("qwen_25", "<|im_end|>"),
    ("qwen3", "<|im_end|>"),
    ("qwen3_5", "<|im_end|>"),
    ("falcon_h1", "<|im_end|>"),
    ("llama3", "<|eot_id|>"),
    ("llama4", "<|eot|>"),
    ("gemma", "<end_of_turn>"),
    ("gemma3", "<end_of_turn>"),
    ("gemma3n", "<end_of_turn>"),
    ("phi_3", "<|end|>"),
    ("phi_35", "<|end|>"),
    ("cohere", "<|END_OF_TURN_TOKEN|>"),
    ("exaone", "[|endofturn|]"),
];

/// Whether a model learns to stop.
fn stops(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    let listed = given.texts("eot_tokens");
    let eos = given.text("special_tokens.eos_token");
    for item in given.items("datasets") {
        let at = Given { root: item };
        if !at.text("type").is_some_and(|kind| kind.starts_with("chat_template")) || given.has("rl") {
            continue;
        }
        // `train_on_eot` is what `train_on_eos` says, unless it is written itself.
        for key in ["train_on_eos", "train_on_eot"] {
            if let Some(entry) = at.entry(key).filter(|entry| entry.value.as_str() == Some("none")) {
                let warning =
                    Diagnostic::warning("the token that ends an answer is not learned, so answers would not end");
                out.push(warning.at(entry.value.span, "").help(format!("write `{key}: turn`, or remove the key")));
            } else if let Some(entry) = at.entry(key).filter(|entry| entry.value.as_str() == Some("last")) {
                let warning = Diagnostic::warning("only a conversation's last answer learns to end");
                out.push(warning.at(entry.value.span, "").help(format!("write `{key}: turn` for each answer")));
            }
        }
        let Some(template) = at.entry("chat_template").or_else(|| given.entry("chat_template")) else { continue };
        let name = template.value.as_str().unwrap_or_default();
        let Some((_, end)) = ENDS.iter().find(|(known, _)| *known == name) else { continue };
        if listed.contains(end) || eos == Some(end) {
            continue;
        }
        let unless = if eos.is_some() { "" } else { ", unless it is the tokenizer's own eos_token" };
        let message = format!("the template `{name}` ends answers with {end}, which is not learned{unless}");
        let mut warning = Diagnostic::warning(message).at(template.value.span, "");
        if let Some(entry) = given.entry("special_tokens.eos_token") {
            warning = warning.also(entry.value.span, "this is learned");
        }
        out.push(warning.help(format!("write eot_tokens: [\"{end}\"]")));
        // Once for all datasets that share the template.
        if !at.has("chat_template") {
            break;
        }
    }
}

/// Tokens whose rows stay as they were made.
fn new_tokens(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    let Some(entry) = given.entry("tokens").filter(|_| given.is_on("tokens") && given.has("adapter")) else { return };
    let whole = given.texts("lora_modules_to_save");
    if !["embed_tokens", "lm_head"].iter().all(|module| whole.contains(module)) {
        let warning = Diagnostic::warning("the new tokens' rows of the embedding table are never trained");
        let help = "write lora_modules_to_save: [embed_tokens, lm_head]";
        out.push(warning.at(entry.key_span, "an adapter leaves the table as it is").help(help));
    }
}

/// SimPO is CPO there, with its cross-entropy.
fn simpo(given: Given<'_>, out: &mut Vec<Diagnostic>) {
    let Some(entry) = given.entry("rl").filter(|entry| entry.value.as_str() == Some("simpo")) else { return };
    if !given.has("cpo_alpha") {
        let warning =
            Diagnostic::warning("SimPO's loss has the preferred answers' cross-entropy added to it, at a weight of 1");
        out.push(
            warning
                .at(entry.value.span, "`cpo_alpha` is 1 where it is not written")
                .help("write cpo_alpha: 0 for SimPO alone"),
        );
    }
}

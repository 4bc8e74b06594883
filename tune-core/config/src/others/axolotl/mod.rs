//! Axolotl: one file for each run, checked by pydantic models that drop the keys they do not know.

mod data;
mod keys;
mod lint;
mod run_keys;

use tune_yaml::{Entry, Value};

use super::Tool;
use super::common::{self, OptimizerKeys, ScheduleKeys, shown};
use super::conversion::{Conversion, Recipe, refusal};
use super::draft::{self, Draft};
use super::given::{Given, at_revision, on_the_hub};
use super::rules::Kind;
use crate::emit;
use crate::report::Diagnostic;

pub(super) const TOOL: Tool = Tool {
    name: "Axolotl",
    version: "0.18.0",
    rows: &[keys::WHAT, run_keys::RUN],
    drops_unknown: true,
    no_effect: &[lint::NO_EFFECT],
    is_own: |given| given.text("base_model").is_some(),
    recipe,
    convert,
    lint: lint::lint,
};

/// Losses of pairs of answers that `dpo` has.
const PAIRS: [&str; 4] = ["dpo", "ipo", "orpo", "simpo"];

fn recipe(given: Given<'_>) -> Result<Recipe, Box<Diagnostic>> {
    for key in ["reward_model", "process_reward_model"] {
        if let Some(entry) = given.entry(key).filter(|_| given.is_on(key)) {
            let instead = "learn from the pairs themselves: rl: dpo";
            return Err(refusal(entry.value.span, "there is no recipe for reward models of Axolotl's", instead));
        }
    }
    let adapter = given.entry("adapter");
    if let Some(entry) = adapter.filter(|entry| !common::only(&entry.value, &["lora", "qlora"])) {
        let name = shown(entry.value.as_str().unwrap_or_default());
        let message = format!("adapters `{name}` are not supported: they are low-rank ones here");
        return Err(refusal(entry.value.span, message, "write `adapter: lora`"));
    }
    let adapters = adapter.is_some();
    let name = match given.entry("rl") {
        None if given.has("qat") => "qat",
        None if adapters => "lora",
        None if is_of_texts(given) => "pretrain",
        None => "full",
        Some(entry) => match entry.value.as_str().unwrap_or_default() {
            rl if PAIRS.contains(&rl) => "dpo",
            "kto" => "kto",
            "grpo" | "gdpo" => {
                let message = "rewards that are functions in Python are not called";
                let instead = "start from a config of the recipe grpo (`tune cat grpo/tiny`); with reward=program, a \
                               program of yours says what an answer is worth";
                return Err(refusal(entry.value.span, message, instead));
            }
            rl => {
                let message = format!("there is no recipe for `rl: {}`", shown(rl));
                return Err(refusal(
                    entry.value.span,
                    message,
                    format!("`dpo` is for {}, and `kto` for kto", PAIRS.join(", ")),
                ));
            }
        },
    };
    Ok(Recipe { name, adapters })
}

/// Whether nothing but texts is trained on.
fn is_of_texts(given: Given<'_>) -> bool {
    let items = given.items("datasets");
    let is_text = |item: &&tune_yaml::Node| Given { root: item }.text("type") == Some("completion");
    (given.has("pretraining_dataset") || !items.is_empty()) && items.iter().all(is_text)
}

fn convert(c: &mut Conversion<'_>) {
    let given = c.given;
    c.draft.set_text("output_dir", given.text("output_dir").unwrap_or("./model-out"), from(given, "output_dir"));
    if let Some(model) = given.text("base_model") {
        let revision = given.text("revision_of_model").or_else(|| given.text("model_revision"));
        c.draft.set_text("checkpointer.checkpoint_dir", &at_revision(model, revision), "base_model");
    }
    if !given.has("sequence_len") {
        c.draft.set("tokenizer.max_seq_len", "512", "default of Axolotl");
    }
    if !given.has("micro_batch_size") {
        c.draft.set("batch_size", "1", "default of Axolotl");
    }
    if c.recipe.name == "pretrain" {
        let fresh = given.is_on("reinit_weights").to_string();
        c.draft.set("from_scratch", fresh, from(given, "reinit_weights"));
    } else if let Some(entry) = given.entry("reinit_weights").filter(|_| given.is_on("reinit_weights")) {
        c.missing(entry, "training begins with the checkpoint's weights", "start `pretrain`, which learns from texts");
    }
    adapters(c);
    data::convert(c);
    steps(c);
    saved_and_measured(c);
    match c.recipe.name {
        "dpo" => pairs(c),
        "kto" => labels(c),
        "qat" => qat(c),
        _ => {}
    }
    if let Some(entry) = given.entry("qat").filter(|_| c.recipe.name != "qat") {
        c.missing(entry, "weights are rounded by the recipe `qat`, which compares no answers", "remove `qat` or `rl`");
    }
}

/// The name of a key that is written, or that it is a default.
fn from<'k>(given: Given<'_>, key: &'k str) -> &'k str {
    if given.has(key) { key } else { "default of Axolotl" }
}

fn adapters(c: &mut Conversion<'_>) {
    let given = c.given;
    if let Some(entry) = given.entry("load_in_4bit").filter(|_| given.is_on("load_in_4bit")) {
        match c.recipe.name {
            "lora" => c.draft.set("model.quantize_base", "true", "load_in_4bit"),
            "full" | "pretrain" => c.meaningless(entry, "all weights are trained, and none is quantized"),
            name => {
                let instead = "leave the base in bf16; `tune plan` says whether it fits";
                c.missing(entry, format!("`{name}` does not quantize its base"), instead);
            }
        }
    }
    if let Some(entry) = given.entry("tokens") {
        match c.recipe.name {
            "full" | "pretrain" => {
                let instead = "train adapters, with model.new_tokens; or add the tokens to a copy of the checkpoint";
                c.missing(entry, "tokens are added beside adapters only", instead);
            }
            _ if c.recipe.adapters => c.draft.set("model.new_tokens", emit::inline_node(&entry.value), "tokens"),
            _ => c.missing(entry, "tokens are added beside adapters only", "add them to a copy of the checkpoint"),
        }
    }
    if !c.recipe.adapters {
        let of_adapters = ["lora_target_modules", "lora_target_linear", "peft_init_lora_weights", "lora_model_dir"];
        for key in of_adapters.into_iter().chain(["peft_trainable_token_indices"]) {
            if let Some(entry) = given.entry(key) {
                c.meaningless(entry, "all weights are trained, and no adapters");
            }
        }
        return;
    }
    let mut targets = given.texts("lora_target_modules");
    if given.is_on("lora_target_linear") {
        targets.push("all-linear");
    }
    if !targets.is_empty() {
        c.draft.set("model.target_modules", draft::texts(targets), "lora_target_modules, lora_target_linear");
    }
    if let Some(entry) = given.entry("peft_trainable_token_indices") {
        rows_of_tokens(c, entry);
    }
    if let Some(path) = given.text("lora_model_dir") {
        c.draft.set_text("checkpointer.adapter_checkpoint", &on_the_hub(path), "lora_model_dir");
    }
    if let Some(entry) = given.entry("peft_init_lora_weights") {
        let name = entry.value.as_str().unwrap_or_default();
        match name.strip_prefix("pissa_niter_").map(str::parse::<u32>) {
            Some(Ok(times)) => {
                c.draft.set("model.init_lora_weights", "pissa", "peft_init_lora_weights");
                c.draft.set("model.pissa_niter", times.to_string(), "peft_init_lora_weights");
            }
            _ if ["gaussian", "pissa", "olora"].contains(&name) => {
                c.draft.set("model.init_lora_weights", name, "peft_init_lora_weights");
            }
            _ if given.is_on("peft_init_lora_weights") && name != "true" && name != "True" => {
                let missing = format!("adapters do not begin as `{}` here", shown(name));
                c.missing(entry, missing, "choose among kaiming, gaussian, pissa, olora");
            }
            _ => {}
        }
    }
}

/// Rows of single tokens: a list is of the embedding table, and in a mapping each list is of the module that it is named by.
fn rows_of_tokens(c: &mut Conversion<'_>, entry: &Entry) {
    const OF_TABLE: &str = "model.trainable_token_indices";
    let Value::Map(modules) = &entry.value.value else {
        return c.ours(entry, OF_TABLE, Kind::Wholes);
    };
    for module in modules {
        match module.key.as_str() {
            "embed_tokens" => c.ours(module, OF_TABLE, Kind::Wholes),
            "lm_head" => c.ours(module, "model.trainable_output_token_indices", Kind::Wholes),
            name => {
                let missing = format!("`{}` is neither `embed_tokens` nor `lm_head`", shown(name));
                c.missing(entry, missing, "train that module whole: lora_modules_to_save");
            }
        }
    }
}

fn steps(c: &mut Conversion<'_>) {
    let given = c.given;
    if let (Some(total), Some(entry)) = (given.whole("batch_size"), given.entry("batch_size")) {
        let micro = given.whole("micro_batch_size").unwrap_or(1).max(1);
        match total % micro == 0 && total > 0 {
            true => c.draft.set("gradient_accumulation_steps", (total / micro).to_string(), "batch_size"),
            false => c.missing(entry, "it is no multiple of micro_batch_size", "set gradient_accumulation_steps=N"),
        }
    }
    common::length(c, "num_epochs", "max_steps", "1");
    c.draft.set("seed", given.whole("seed").map_or("42".to_owned(), |seed| seed.to_string()), from(given, "seed"));
    common::optimizer(
        c,
        &OptimizerKeys { name: "optimizer", lr: "learning_rate", default_lr: None, default_weight_decay: "0.0" },
    );
    common::noise(c, "neftune_noise_alpha");
    common::noise(c, "noisy_embedding_alpha");
    common::schedule(
        c,
        &ScheduleKeys {
            name: "lr_scheduler",
            default: "cosine",
            default_warmup: Some("3 % of the run's steps, 100 at most"),
        },
    );
    if given.is_on("gradient_checkpointing") {
        c.draft.set("enable_activation_checkpointing", "true", "gradient_checkpointing");
    }
    precision(c);
}

fn precision(c: &mut Conversion<'_>) {
    let given = c.given;
    let half = ["fp16", "float16"].into_iter().find(|key| given.is_on(key));
    match (half.and_then(|key| given.entry(key)), given.is_off("bf16")) {
        (Some(entry), _) if !given.is_on("bf16") || given.text("bf16") == Some("auto") => {
            c.draft.set("dtype", "bf16", "fp16");
            c.missing(
                entry,
                "training in fp16 is not supported, and bf16 is written in its place",
                "or set dtype=fp32",
            );
        }
        (_, true) if !given.is_on("bfloat16") => c.draft.set("dtype", "fp32", "bf16"),
        _ => c.draft.set("dtype", "bf16", from(given, "bf16")),
    }
}

fn saved_and_measured(c: &mut Conversion<'_>) {
    let given = c.given;
    common::every(c, "save_steps", "checkpointer.save_every_n_steps", "the distance of checkpoints");
    if let Some(entry) = given.entry("saves_per_epoch").filter(|_| given.whole("saves_per_epoch") != Some(1)) {
        let instead = "set checkpointer.save_every_n_steps=N";
        c.missing(entry, "checkpoints are saved at the end of each epoch, and every N steps", instead);
    }
    if let Some(entry) = given.entry("save_strategy").filter(|entry| !common::only(&entry.value, &["steps", "epoch"])) {
        let best = entry.value.as_str() == Some("best");
        match best {
            true => c.draft.set("checkpointer.keep_best", "true", "save_strategy"),
            false => c.missing(entry, "a checkpoint is saved at the end of each epoch", "remove the key"),
        }
    }
    let measured = c.draft.has("dataset_val");
    let asked = ["eval_steps", "evals_per_epoch", "eval_strategy", "evaluation_strategy"];
    if measured {
        common::every(c, "eval_steps", "run_val_every_n_steps", "the distance of validations");
        if let Some(entry) = given.entry("evals_per_epoch").filter(|_| given.whole("evals_per_epoch") != Some(1)) {
            let instead = "set run_val_every_n_steps=N";
            c.missing(entry, "validation is at the end of each epoch, and every N steps", instead);
        }
        if let (Some(patience), "lora" | "full" | "qat" | "dpo" | "kto" | "pretrain") =
            (given.whole("early_stopping_patience"), c.recipe.name)
        {
            c.draft.set("early_stopping.patience", patience.to_string(), "early_stopping_patience");
        }
    } else {
        for entry in asked.iter().chain(&["early_stopping_patience"]).filter_map(|key| given.entry(key)) {
            c.meaningless(entry, "there is nothing to validate on");
        }
    }
    if let Some(entry) =
        given.entry("metric_for_best_model").filter(|_| given.text("metric_for_best_model") != Some("eval_loss"))
    {
        c.missing(entry, "the best checkpoint is that of the least validation loss", "set checkpointer.best_by=METRIC");
    }
    let mut loggers = Vec::new();
    if given.is_on("use_wandb") || given.is_on("wandb_project") {
        let mut wandb = logger("wandb");
        for (ours, theirs) in [("project", "wandb_project"), ("entity", "wandb_entity"), ("name", "wandb_name")] {
            if let Some(text) = given.text(theirs) {
                wandb.set_text(ours, text, theirs);
            }
        }
        loggers.push(wandb);
    }
    if given.is_on("use_tensorboard") {
        loggers.push(logger("tensorboard"));
    }
    if given.is_on("use_mlflow") || given.is_on("mlflow_experiment_name") {
        let mut mlflow = logger("mlflow");
        for (ours, theirs) in [
            ("tracking_uri", "mlflow_tracking_uri"),
            ("experiment_name", "mlflow_experiment_name"),
            ("run_name", "mlflow_run_name"),
        ] {
            if let Some(text) = given.text(theirs) {
                mlflow.set_text(ours, text, theirs);
            }
        }
        loggers.push(mlflow);
    }
    common::loggers(c, loggers);
}

fn logger(name: &str) -> Draft {
    let mut logger = Draft::default();
    logger.set("_component_", name, "");
    logger
}

/// How weights are rounded while they are trained.
fn qat(c: &mut Conversion<'_>) {
    let given = c.given;
    let Some(entry) = given.entry("qat") else { return };
    let kinds = (given.text("qat.activation_dtype"), given.text("qat.weight_dtype").unwrap_or("int8"));
    let quantizer = match kinds {
        (None, "int4") => "int4_weight_only",
        (Some("int8"), "int4") => "int8_dyn_act_int4_weight",
        (activations, weights) => {
            let missing = format!(
                "there is no quantizer for weights in {} and activations {}",
                shown(weights),
                activations.map_or_else(|| "as they are".to_owned(), |kind| format!("in {}", shown(kind)))
            );
            return c.missing(entry, missing, "set quantizer to one of those that the recipe qat lists");
        }
    };
    c.draft.set("quantizer._component_", quantizer, "qat.weight_dtype, qat.activation_dtype");
    c.number_or("quantizer.groupsize", "qat.group_size", Some("32"));
    c.number_or("fake_quant_after_n_steps", "qat.fake_quant_after_n_steps", None);
    if let Some(entry) = given.entry("qat.quantize_embedding").filter(|_| given.is_on("qat.quantize_embedding")) {
        c.missing(entry, "embeddings are not rounded", "remove the key");
    }
}

/// What is minimized over answers with labels.
fn labels(c: &mut Conversion<'_>) {
    let given = c.given;
    c.draft.set("loss._component_", "kto", "rl");
    c.number_or("loss.beta", "rl_beta", Some("0.1"));
    c.number_or("loss.desirable_weight", "kto_desirable_weight", None);
    c.number_or("loss.undesirable_weight", "kto_undesirable_weight", None);
    if given.is_on("precompute_ref_log_probs") {
        c.draft.set("reference", "precomputed", "precompute_ref_log_probs");
    }
}

/// What is minimized over pairs of answers.
fn pairs(c: &mut Conversion<'_>) {
    let given = c.given;
    let rl = given.text("rl").unwrap_or("dpo");
    let types = given.texts("dpo_loss_type");
    let theirs = types.first().copied().unwrap_or(rl);
    let beta = ["rl_beta", "dpo_beta"].into_iter().find(|key| given.has(key));
    let (name, ours, default) = match theirs {
        "dpo" | "sigmoid" => ("dpo", "beta", "0.1"),
        "ipo" => ("ipo", "tau", "0.1"),
        "hinge" => ("hinge", "gamma", "0.1"),
        "orpo" => ("orpo", "lambda", "0.1"),
        "simpo" => ("simpo", "beta", "0.1"),
        _ => ("dpo", "beta", "0.1"),
    };
    c.draft.set("loss._component_", name, if types.is_empty() { "rl" } else { "dpo_loss_type" });
    if let Some(entry) =
        given.entry("dpo_loss_type").filter(|_| types.len() > 1 || name == "dpo" && theirs != "sigmoid")
    {
        c.missing(entry, "there is one loss, of those that the recipe dpo lists", "set loss=NAME");
    }
    let beta = if theirs == "orpo" && beta.is_none() { Some("orpo_alpha") } else { beta };
    c.number_or(&format!("loss.{ours}"), beta.unwrap_or("rl_beta"), Some(default));
    match name {
        "dpo" => c.number_or("loss.label_smoothing", "dpo_label_smoothing", None),
        "simpo" => {
            c.number_or("loss.gamma", "simpo_gamma", Some("0.5"));
            let alpha = given.number("cpo_alpha").unwrap_or(1.0);
            if alpha != 0.0 {
                let message =
                    format!("Axolotl adds {alpha} times the preferred answers' cross-entropy to SimPO (cpo_alpha)");
                let instead = "here SimPO is its margin alone; `orpo` has the cross-entropy in it";
                match given.entry("cpo_alpha") {
                    Some(entry) => c.missing(entry, message, instead),
                    None => c.remark(message, instead),
                }
            }
        }
        _ => {}
    }
    if given.is_on("precompute_ref_log_probs") && !matches!(name, "orpo" | "simpo") {
        c.draft.set("reference", "precomputed", "precompute_ref_log_probs");
    }
}

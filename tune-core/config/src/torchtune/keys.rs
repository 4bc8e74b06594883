//! Keys that differ, by the section that they stand in.

use std::path::Path;

use tune_yaml::{Node, Value};

use super::rules::{KeyRule, Rule, TheirDefault, ignored, ignored_if, is_among, only};

const BY_ROWS: &str = "the processes that divide a model divide all of its weights, by rows";
const NOT_MOVED: &str = "activations are not moved between devices";
const CHECKPOINTING: &str = "enable_activation_checkpointing keeps the input of each block and nothing else";

const ROOT: &[KeyRule] = &[
    ignored("fsdp", BY_ROWS),
    ignored("fsdp_cpu_offload", "weights, gradients and the optimizer's state are in the processor's memory anyway"),
    ignored("memory_efficient_fsdp_wrap", BY_ROWS),
    ignored("custom_sharded_layers", BY_ROWS),
    ignored("context_parallel_dim", BY_ROWS),
    ignored("tensor_parallel_dim", BY_ROWS),
    ignored("tensor_parallel_plan", BY_ROWS),
    ignored("low_cpu_ram", "weights are read one by one, never all at once"),
    ignored("activation_offloading_use_streams", NOT_MOVED),
    ignored("ac_mode", CHECKPOINTING),
    ignored("ac_option", CHECKPOINTING),
    ignored("cudnn_deterministic_mode", "runs on the processor are always reproducible"),
    ignored_if("log_every_n_steps", Node::is_null, "every step is logged, as in torchtune"),
    ignored("log_level", "the console always shows the same"),
    // Of PPO.
    KeyRule {
        key: "top_k",
        rule: Rule::AsHere {
            is: Node::is_null,
            why: "answers are drawn from all tokens",
            missing: "answers are drawn from all tokens, and learnt from by the probabilities of these",
            instead: "set top_k=null",
        },
    },
    // Of recipes that generate or evaluate.
    ignored("model", "what the model is, its folder's config.json says"),
    ignored("tokenizer", ITS_OWN_TOKENIZER),
    ignored("output_dir", "answers go to the standard output"),
    ignored("enable_kv_cache", "keys and values are always kept"),
    ignored("resume_from_checkpoint", "the model is only read"),
    // Of quantization.
    ignored("device", "weights are quantized on the processor"),
    ignored("dtype", "weights are quantized as the checkpoint has them"),
    ignored("seed", "nothing is drawn"),
    only(
        "include_default",
        &["true"],
        "the harness always knows the tasks that it brings along",
        "remove the key; tasks of include_path are found, too",
    ),
    only(
        "quantizer",
        &[],
        "weights are not quantized while they are read",
        "start from what the recipe `quantize` or `tune quantize` has written",
    ),
    only(
        "collate_fn",
        &["torchtune.data.padded_collate_sft", "torchtune.data.padded_collate_dpo"],
        "batches are always padded on the right",
        "remove the key",
    ),
    KeyRule {
        key: "loss",
        rule: Rule::AsHere {
            is: is_mean_cross_entropy,
            why: "training minimizes the cross-entropy of the next token, a mean over a step's trained tokens",
            missing: "losses other than the mean cross-entropy of trained tokens are not supported",
            instead: "remove the key",
        },
    },
];

/// The names of cross-entropy, computed in one way or another.
const CROSS_ENTROPY: &[&str] = &[
    "cross_entropy",
    "torch.nn.CrossEntropyLoss",
    "torchtune.modules.loss.CEWithChunkedOutputLoss",
    "torchtune.modules.loss.LinearCrossEntropyLoss",
];

/// Its keys, with the values that a mean over trained tokens goes with; where there are none, any.
const OF_CROSS_ENTROPY: &[(&str, &[&str])] = &[
    ("_component_", CROSS_ENTROPY),
    ("ignore_index", &["-100"]),
    ("reduction", &["mean"]),
    ("label_smoothing", &["0", "0.0"]),
    ("num_output_chunks", &[]),
    ("tp_enabled", &[]),
    ("mask_ignored_tokens", &[]),
];

fn is_mean_cross_entropy(loss: &Node) -> bool {
    let Value::Map(entries) = &loss.value else { return is_among(loss, CROSS_ENTROPY) };
    entries.iter().all(|entry| {
        OF_CROSS_ENTROPY
            .iter()
            .any(|(key, values)| *key == entry.key && (values.is_empty() || is_among(&entry.value, values)))
    })
}

const MODEL: &[KeyRule] = &[
    only(
        "use_dora",
        OFF,
        "this recipe has no DoRA (weights split into magnitude and direction)",
        "set model.use_dora=false for plain LoRA",
    ),
    only("quantize_base", OFF, NO_QUANTIZING, "set model.quantize_base=false"),
    ignored("tie_word_embeddings", "the checkpoint's own config.json says it"),
];

/// What is told of QLoRA by a recipe that cannot do it.
pub(super) const NO_QUANTIZING: &str = "this recipe has no base model in 4 bits (QLoRA)";

/// What the builders of QLoRA take where nothing is written.
pub(super) const OF_QLORA: &[TheirDefault] = &[TheirDefault::new("quantize_base", "true")];

const OFF: &[&str] = &["false"];

const ITS_OWN_TOKENIZER: &str = "the checkpoint's own tokenizer.json and chat template are used";

const TOKENIZER: &[KeyRule] = &[
    ignored("_component_", ITS_OWN_TOKENIZER),
    ignored_if("path", is_other_tokenizer_file, ITS_OWN_TOKENIZER),
    ignored("vocab_path", ITS_OWN_TOKENIZER),
    ignored("merges_file", ITS_OWN_TOKENIZER),
    ignored("merges_path", ITS_OWN_TOKENIZER),
    ignored("special_tokens_path", ITS_OWN_TOKENIZER),
    ignored("special_tokens", ITS_OWN_TOKENIZER),
    only(
        "prompt_template",
        &[],
        "torchtune's prompt templates are not read: text is rendered with the checkpoint's own chat template",
        "remove the key, or write the template in Jinja and set tokenizer.chat_template=FILE",
    ),
    only("truncation_type", &["right"], "samples are always cut on the right", "remove the key"),
];

const CHECKPOINTER: &[KeyRule] = &[
    ignored_if(
        "_component_",
        |named| named.as_str().is_some_and(|name| name.ends_with(".FullModelMetaCheckpointer")),
        "Meta's own format is not read: checkpoint_dir must be a folder in Hugging Face's, often the one above `original`",
    ),
    ignored_if(
        "checkpoint_files",
        |files| !is_safetensors(files),
        "weights are read from the safetensors files of checkpoint_dir",
    ),
    ignored("enable_dcp", "checkpoints are written as safetensors"),
];

const DATASET: &[KeyRule] = &[
    KeyRule { key: "source", rule: Rule::Rewritten(on_the_hub, "hf:// marks what is on the Hugging Face hub") },
    only(
        "max_seq_len",
        &[],
        "samples are cut off where the tokenizer says, for all datasets",
        "set tokenizer.max_seq_len instead, and remove the key",
    ),
    only(
        "chat_format",
        &[],
        "chat formats of torchtune's are not read: the template is the checkpoint's own",
        "remove the key, or write the template in Jinja and set tokenizer.chat_template=FILE",
    ),
    only(
        "template",
        &[],
        "templates of torchtune's are not read: text is rendered with the checkpoint's own chat template",
        "remove the key; `instruct` takes a text with {input} and {output} in it as prompt_template",
    ),
    ignored_if("column_map", Node::is_null, "the columns have their usual names"),
    only(
        "filter_fn",
        &[],
        "functions of Python's are not called",
        "write the condition as an expression over columns, as in filter: score > 0.5, and remove the key",
    ),
    only("packed", OFF, "pairs of answers are never packed", "remove the key"),
    ignored("trust_remote_code", "no code of a dataset is run"),
    ignored("num_proc", "all processors are used"),
];

const SCHEDULER: &[KeyRule] =
    &[only("last_epoch", &["-1"], "a schedule always begins with the run", "remove the key; a resumed run goes on")];

const OPTIMIZER: &[KeyRule] = &[
    only("amsgrad", OFF, "AMSGrad is not supported", "set optimizer.amsgrad=false"),
    only("maximize", OFF, "a loss is always minimized", "set optimizer.maximize=false"),
    only("nesterov", OFF, "Nesterov momentum is not supported", "set optimizer.nesterov=false"),
    only("dampening", &["0", "0.0"], "momentum is not dampened", "set optimizer.dampening=0"),
    ignored("capturable", "the update is always one pass over a parameter"),
    ignored("differentiable", "the update is never differentiated"),
];

/// The rules for the keys of a section, by its path without list positions.
pub(super) fn of(section: &str) -> &'static [KeyRule] {
    match section {
        "" => ROOT,
        "model" => MODEL,
        "tokenizer" => TOKENIZER,
        "checkpointer" | "ref_checkpointer" | "teacher_checkpointer" | "value_checkpointer" | "reward_checkpointer" => {
            CHECKPOINTER
        }
        "dataset" | "dataset_val" => DATASET,
        "lr_scheduler" => SCHEDULER,
        "optimizer" => OPTIMIZER,
        _ => &[],
    }
}

/// What torchtune's recipes take where nothing is written and ours take something else.
pub(super) const DEFAULTS: &[TheirDefault] = &[
    TheirDefault::new("save_adapter_weights_only", "false"),
    // torchtune evaluates without the first token, whatever the tokenizer does.
    TheirDefault::new("add_bos_token", "false"),
];

/// Whether a file is a tokenizer's, but no `tokenizer.json`.
fn is_other_tokenizer_file(path: &Node) -> bool {
    let name = path.as_str().filter(|_| !path.is_null()).map(Path::new);
    name.is_some_and(|path| {
        path.extension().is_none_or(|extension| extension != "json") || path.ends_with("vocab.json")
    })
}

/// Whether the files are listed by name and all of them safetensors.
fn is_safetensors(files: &Node) -> bool {
    match &files.value {
        Value::List(files) => files.iter().all(|file| file.as_str().is_some_and(|name| name.ends_with(".safetensors"))),
        _ => files.is_null(),
    }
}

/// `org/name`, where there is no such folder, is a dataset of the hub.
fn on_the_hub(source: &Node) -> Option<String> {
    let source = source.as_str()?;
    let (org, name) = source.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '~'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (plain(org) && plain(name) && !Path::new(source).exists()).then(|| format!("hf://{source}"))
}

//! torchtune's ways of writing: what becomes of them, what is told, and how they are converted.

mod common;

use std::path::PathBuf;

use common::snapshot;
use tune_config::{Config, Input, convert, load};

/// The parts of a recipe's config in which torchtune's is another.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config, ignored(compile = "there is nothing to compile"))]
struct Recipe {
    /// Results go here.
    output_dir: PathBuf,
    /// Save the adapter alone.
    #[config(default = true)]
    save_adapter_weights_only: bool,
    /// The adapters.
    #[config(default)]
    model: Model,
    /// Text to tokens.
    #[config(default)]
    tokenizer: Tokenizer,
    /// The base model.
    checkpointer: Checkpointer,
    /// What is trained on.
    #[config(one_or_many)]
    dataset: Vec<Dataset>,
    /// What moves the adapters.
    #[config(default)]
    optimizer: Optimizer,
    /// Micro-batches of a step.
    #[config(default = 1)]
    gradient_accumulation_steps: usize,
}

/// The adapters.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct Model {
    /// Which model it is.
    #[config(alias = "_component_")]
    architecture: Option<Architecture>,
    /// Their rank.
    #[config(default = 8)]
    lora_rank: usize,
    /// Hold the base in four bits.
    #[config(default = false)]
    quantize_base: bool,
}

/// Which model it is.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
enum Architecture {
    /// Of a billion.
    #[config(name = "llama3_2_1b", alias = "torchtune.models.llama3_2.lora_llama3_2_1b")]
    Llama,
}

/// Text to tokens.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct Tokenizer {
    /// A file of it.
    path: Option<PathBuf>,
}

/// The base model.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config, ignored(_component_ = "all are read", output_dir = "the recipe's is meant"))]
struct Checkpointer {
    /// Its folder.
    checkpoint_dir: PathBuf,
    /// Its files.
    checkpoint_files: Option<Vec<String>>,
}

/// What is trained on.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
enum Dataset {
    /// Alpaca's columns.
    #[config(name = "alpaca", alias = "torchtune.datasets.alpaca_dataset")]
    Alpaca(Files),
    /// Conversations.
    #[config(name = "chat", alias = "torchtune.datasets.chat_dataset")]
    Chat(Files),
}

/// The files.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct Files {
    /// A folder, or what the hub calls it.
    source: Option<String>,
    /// The files.
    #[config(default, one_or_many)]
    data_files: Vec<PathBuf>,
    /// Which column.
    #[config(default = "messages")]
    conversation_column: String,
    /// Whose style.
    #[config(default = "openai")]
    conversation_style: String,
}

/// What moves the adapters.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
enum Optimizer {
    /// Adam.
    #[config(name = "adamw", alias = "torch.optim.AdamW", default)]
    AdamW(AdamW),
}

/// Adam.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config, ignored(fused = "all of it is fused here"))]
struct AdamW {
    /// The learning rate.
    #[config(default = 2e-5)]
    lr: f64,
}

const HEAD: &str = "\
output_dir: out
model: {_component_: torchtune.models.llama3_2.lora_llama3_2_1b}
checkpointer:
  checkpoint_dir: models/llama
";

fn good(yaml: &str, overrides: &[&str]) -> Recipe {
    let input = Input::yaml("theirs.yaml", yaml).overrides(overrides.iter().copied());
    match load::<Recipe>(input) {
        Ok(loaded) => loaded.config,
        Err(report) => panic!("{report}"),
    }
}

/// The whole report, warnings included.
fn told(yaml: &str) -> String {
    match load::<Recipe>(Input::yaml("theirs.yaml", yaml)) {
        Ok(loaded) => loaded.warnings.to_string(),
        Err(report) => report.to_string(),
    }
}

#[test]
fn what_torchtune_takes_where_nothing_is_written_holds() {
    let config =
        good(&format!("{HEAD}dataset: torchtune.datasets.alpaca_cleaned_dataset\noptimizer: torch.optim.AdamW\n"), &[]);
    let Dataset::Alpaca(files) = &config.dataset[0] else { panic!("{config:?}") };
    assert_eq!(files.source.as_deref(), Some("hf://yahma/alpaca-cleaned"));
    assert_eq!(config.optimizer, Optimizer::AdamW(AdamW { lr: 1e-3 }));
    assert!(!config.save_adapter_weights_only);
    // Unless something is, in the file or behind it.
    let config = good(
        &format!(
            "{HEAD}dataset: {{_component_: torchtune.datasets.alpaca_dataset}}\nsave_adapter_weights_only: True\n"
        ),
        &["dataset.data_files=a.jsonl", "optimizer.lr=0.5"],
    );
    let Dataset::Alpaca(files) = &config.dataset[0] else { panic!("{config:?}") };
    assert_eq!(files.source, None);
    assert_eq!(config.optimizer, Optimizer::AdamW(AdamW { lr: 0.5 }));
    assert!(config.save_adapter_weights_only);
    // Our own configs have our own defaults, whatever a component is called.
    let ours = "output_dir: out\ncheckpointer: {checkpoint_dir: m}\ndataset: {_component_: alpaca}\noptimizer: torch.optim.AdamW\n";
    let config = good(ours, &[]);
    assert_eq!(config.optimizer, Optimizer::AdamW(AdamW { lr: 2e-5 }));
    assert!(config.save_adapter_weights_only);
}

#[test]
fn a_component_stands_for_ours_with_other_keys_and_defaults() {
    let yaml = format!(
        "{HEAD}dataset:\n- _component_: torchtune.datasets.slimorca_dataset\n- {{_component_: chat, source: org/data}}\n"
    );
    let config = good(&yaml, &["optimizer=bitsandbytes.optim.PagedAdamW32bit"]);
    let chat = |source: &str, column: &str, style: &str| {
        Dataset::Chat(Files {
            source: Some(source.into()),
            data_files: Vec::new(),
            conversation_column: column.into(),
            conversation_style: style.into(),
        })
    };
    let expected = [
        chat("hf://Open-Orca/SlimOrca-Dedup", "conversations", "sharegpt"),
        chat("hf://org/data", "messages", "openai"),
    ];
    assert_eq!(config.dataset, expected);
    assert_eq!(config.optimizer, Optimizer::AdamW(AdamW { lr: 1e-3 }));
}

/// The builders of QLoRA are those of LoRA with a base in four bits.
#[test]
fn a_base_in_four_bits_is_asked_for_by_key_or_builder() {
    let with = |model: &str| {
        let yaml = HEAD.replace("{_component_: torchtune.models.llama3_2.lora_llama3_2_1b}", model);
        let config = good(&format!("{yaml}dataset: torchtune.datasets.alpaca_dataset\n"), &[]);
        (config.model.quantize_base, config.model.architecture.is_some())
    };
    assert_eq!(with("{_component_: torchtune.models.llama3_2.qlora_llama3_2_1b}"), (true, true));
    assert_eq!(with("{_component_: torchtune.models.llama3_2.lora_llama3_2_1b, quantize_base: True}"), (true, true));
    assert_eq!(with("{_component_: torchtune.models.llama3_2.lora_llama3_2_1b}"), (false, true));
    let yaml = HEAD.replace(".lora_", ".qlora_")
        + "  _component_: torchtune.training.FullModelHFCheckpointer\n\
           dataset: {_component_: torchtune.datasets.alpaca_dataset}\n";
    // Which model it is may be said anew, in our words or in torchtune's.
    assert!(good(&yaml, &["model.architecture=null"]).model.quantize_base);
    assert!(good(&yaml, &["model._component_=null"]).model.quantize_base);
    assert!(!good(&yaml, &["model._component_=torchtune.models.llama3_2.lora_llama3_2_1b"]).model.quantize_base);
    assert!(!good(&yaml, &["model.architecture=null", "model.quantize_base=false"]).model.quantize_base);
    let theirs = converted(&yaml);
    assert!(theirs.contains("llama3_2_1b") && theirs.contains("quantize_base: true"), "{theirs}");
    assert_eq!(good(&theirs, &[]), good(&yaml, &[]));
}

/// One message for a file that cannot be used, and all of them for one in which something has to be changed.
#[test]
fn what_there_is_not_is_told() {
    let mut text = String::new();
    for yaml in [
        "model: {_component_: torchtune.models.llama3_2_vision.lora_llama3_2_vision_11b, lora_ranks: 3}\n".to_owned(),
        "model: {_component_: torchtune.models.llama3_2.llama3_2_1b}\n".to_owned(),
        format!("{HEAD}dataset: []\nteacher_model: {{_component_: torchtune.models.llama3_1.llama3_1_8b}}\n"),
        format!("{HEAD}dataset: []\nloss: {{_component_: torchtune.rlhf.loss.DPOLoss}}\n"),
        HEAD.replace(".lora_", ".qlora_").replace("1b}", "1b, use_dora: True}")
            + "tokenizer: {prompt_template: torchtune.data.ChatMLTemplate}\n\
               dataset: {_component_: torchtune.datasets.preference_dataset, source: a/b}\n\
               optimizer: {_component_: torchao.optim.CPUOffloadOptimizer}\ncollate_fn: mine.collate\n\
               loss: {_component_: torchtune.modules.loss.CEWithChunkedOutputLoss, reduction: sum}\n",
        // As they were before version 0.4.
        format!(
            "{HEAD}dataset: {{_component_: torchtune.datasets.chat_dataset, source: a/b, max_seq_len: 96, \
             chat_format: torchtune.data.Llama2ChatFormat}}\n"
        ),
        format!(
            "{HEAD}dataset: {{_component_: torchtune.datasets.chat_dataset, source: a/b, max_seq_len: null, chat_format: None}}\n"
        ),
    ] {
        text += &format!("{yaml}\n{}\n\n----\n\n", told(&yaml));
    }
    snapshot("torchtune_refused", &text);
}

#[test]
fn what_has_no_effect_is_told_once() {
    let yaml = format!(
        "# tune run --nproc_per_node 4 lora_finetune_distributed --config theirs\n{HEAD}  checkpoint_files: [a.bin]\n\
         tokenizer: {{_component_: torchtune.models.llama3.llama3_tokenizer, path: /tmp/tokenizer.model}}\n\
         dataset: {{_component_: torchtune.datasets.alpaca_dataset, column_map: null}}\n\
         optimizer:\n  _component_: bitsandbytes.optim.PagedAdamW\n  lr: 1.0e-4\n  optim_bits: 8\n\
         gradient_accumulation_steps: 8\nfsdp_cpu_offload: False\ncompile: True\n\
         loss: {{_component_: torchtune.modules.loss.CEWithChunkedOutputLoss, num_output_chunks: 8}}\n"
    );
    snapshot("torchtune_warnings", &format!("{yaml}\n{}\n", told(&yaml)));
    let config = good(&yaml, &[]);
    assert_eq!((config.checkpointer.checkpoint_files, config.tokenizer.path), (None, None));
    // What is read here is kept.
    let kept = ["checkpointer.checkpoint_files=[a.safetensors]", "tokenizer.path=my/tokenizer.json"];
    let config = good(&yaml, &kept);
    assert_eq!(config.checkpointer.checkpoint_files, Some(vec!["a.safetensors".into()]));
    assert_eq!(config.tokenizer.path, Some("my/tokenizer.json".into()));
}

fn converted(yaml: &str) -> String {
    converted_with(yaml, &[])
}

fn converted_with(yaml: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|&with| with.to_owned()).collect();
    match convert::<Recipe>("lora", "theirs.yaml", yaml, &overrides) {
        Ok(text) => text,
        Err(report) => panic!("{report}"),
    }
}

/// All styles of YAML in one: blocks, braces, lists, comments in between.
const STYLES: &str = "\
# My adapters.
output_dir: out  # where they go

model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b  # the small one
  lora_rank: 16
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: models/llama
  checkpoint_files: [
    # in two parts
    a.bin,
    b.bin,
  ]
  output_dir: ${output_dir}
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: '/tmp/tokenizer.model'}

# Two of them.
dataset:
  - filter_fn: null
    _component_: torchtune.datasets.slimorca_dataset
  - {fsdp: 1, _component_: torchtune.datasets.chat_dataset, source: \"org/data\", filter_fn: null}
optimizer: bitsandbytes.optim.PagedAdamW
tensor_parallel_plan:
  _component_: torchtune.models.llama3.base_llama_tp_plan

# The last one.
compile: False
fsdp_cpu_offload:
";

#[test]
fn a_file_is_converted_where_it_stands() {
    let yaml = STYLES.replace("fsdp: 1, ", "");
    let text = converted(&yaml);
    snapshot("torchtune_converted", &text);
    assert_eq!(good(&text, &[]), good(&yaml, &[]));
    assert_eq!(told(&text), "");
    assert_eq!(converted(&text), text);
    // What is in our own names stays as it is, odd blanks and all.
    let ours = "output_dir:   out\ncheckpointer: {checkpoint_dir: m}\n\ndataset: [ ]";
    assert_eq!(converted(ours), ours);
}

/// Keys of the user's own, sections of which nothing is left, and references.
const OWN: &str = "\
run_name: REPLACE_ME  # mine
base: /data/llama
notes: ${base}/notes.txt
output_dir: ${base}/${run_name}/out
project: p

# Text.
tokenizer: # the model's
  _component_: torchtune.models.llama3.llama3_tokenizer
  # Where it is.
  path: ${base}/tokenizer.model

model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: ${base}
  output_dir: ${notes}
dataset:
  _component_: torchtune.datasets.chat_dataset
  source: json
  # Shorter ones.
  max_seq_len: 96
  data_files: train.json
compile: ${project}
# The end.
";

#[test]
fn comments_order_and_references_stay() {
    let overrides = [
        "run_name=night",
        "~dataset.max_seq_len",
        "dataset.data_files=[a.json, b c.json]",
        "model.lora_rank=4",
        "gradient_accumulation_steps=2",
        "dataset.conversation_column=${run_name}: x",
    ];
    let text = converted_with(OWN, &overrides);
    snapshot("torchtune_converted_own", &text);
    assert_eq!(good(&text, &[]), good(OWN, &overrides));
    assert_eq!(good(&text, &["run_name=x"]).output_dir.to_str(), Some("/data/llama/x/out"));
    assert_eq!(told(&text), "");
    assert_eq!(converted(&text), text);
    // In our own names only overrides change anything.
    let ours = "output_dir:   out # here\ncheckpointer: {checkpoint_dir: m}\n\ndataset: [ ]\n";
    assert_eq!(
        converted_with(ours, &["output_dir=b", "checkpointer.checkpoint_files=[x]"]),
        "# was out\noutput_dir:   b # here\n# set by an override\n\
         checkpointer: {checkpoint_dir: m, checkpoint_files: [x]}\n\ndataset: [ ]\n"
    );
    // Where one cannot be put in its place, the whole config is written.
    let text = converted_with(OWN, &["~dataset.max_seq_len", "dataset=[{_component_: alpaca, data_files: a}]"]);
    assert!(text.starts_with("# Converted from theirs.yaml, with overrides;"), "{text}");
    assert_eq!(
        good(&text, &[]),
        good(OWN, &["~dataset.max_seq_len", "dataset=[{_component_: alpaca, data_files: a}]"])
    );
    // And what is wrong is told.
    let wrong =
        convert::<Recipe>("lora", "theirs.yaml", OWN, &["epohcs=2".to_owned()]).map_err(|report| report.to_string());
    assert!(
        wrong.is_err_and(|report| report.contains("unknown key `epohcs`") && report.contains("tokenizer.max_seq_len"))
    );
}

/// Whatever stands in a file: what is converted means the same, or nothing is.
#[test]
fn mutilated_files_are_converted_rightly_or_not_at_all() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 33).unwrap_or(0) % bound.max(1)
    };
    let (mut converted, mut changed) = (0, 0);
    for _ in 0..1500 {
        let mut lines: Vec<String> = STYLES.replace("fsdp: 1, ", "").lines().map(str::to_owned).collect();
        for _ in 0..=below(3) {
            let (at, other) = (below(lines.len()), below(lines.len()));
            match below(5) {
                0 => drop(lines.remove(at)),
                1 => lines.swap(at, other),
                2 => lines[at] = lines[at].replacen(' ', "", 1),
                3 => lines[at] = lines[at].replace(", ", ",\n      "),
                _ => lines[at] = lines[at].replacen(": ", ": &a ", 1),
            }
        }
        let yaml = lines.join("\n");
        let overrides = [
            vec![],
            vec!["model.lora_rank=4", "~compile"],
            vec!["output_dir=a: b", "dataset.1=alpaca"],
            vec!["optimizer.lr=1", "dataset.0.source=x", "~tokenizer"],
        ];
        let overrides = &overrides[below(overrides.len())];
        let with: Vec<String> = overrides.iter().map(|&with| with.to_owned()).collect();
        let Ok(text) = convert::<Recipe>("lora", "theirs.yaml", &yaml, &with) else { continue };
        assert_eq!(good(&text, &[]), good(&yaml, overrides), "{yaml}\n----\n{text}");
        converted += 1;
        changed += usize::from(text.contains("# My adapters."));
    }
    // Else the test tries nothing; most are changed in place.
    assert!(converted > 250 && changed * 10 > converted * 9, "{converted} {changed}");
}

/// A reference to a key that goes cannot be converted where it stands: the resolved config is written.
#[test]
fn what_cannot_be_converted_in_place_is_written_anew() {
    let yaml = format!(
        "{HEAD}  output_dir: /tmp/run\ntokenizer: {{_component_: torchtune.models.llama3.llama3_tokenizer}}\n\
         dataset: {{_component_: alpaca, data_files: '${{checkpointer.output_dir}}/a.jsonl'}}\n"
    );
    let text = converted(&yaml);
    assert!(
        text.contains("/tmp/run/a.jsonl") && text.contains("# `output_dir` is gone: the recipe's is meant"),
        "{text}"
    );
    assert_eq!(good(&text, &[]), good(&yaml, &[]));
    // And of one that is wrong there is nothing to write.
    assert!(convert::<Recipe>("lora", "theirs.yaml", &STYLES.replace("fsdp: 1", "fsdq: 1"), &[]).is_err());
}

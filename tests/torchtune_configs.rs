//! Every config that torchtune 0.6.1 ships, given to the recipe here that it would be for: those of the model families
//! that are supported load as they are, the others are told why not, and what is converted means the same.

#![allow(clippy::unwrap_used)]

#[path = "common/hub_server.rs"]
mod hub_server;
#[path = "common/runs.rs"]
mod runs;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use hub_server::{Content, Server};
use runs::{fail, files, newest, recipe, root, run, succeed, text};
use tempfile::TempDir;
use tune_core::config::recipe_of_torchtune;

/// A config of torchtune's.
struct Shipped {
    name: String,
    /// torchtune's recipe for it.
    theirs: String,
    /// The recipe here that it is given to.
    ours: &'static str,
    yaml: String,
}

/// The configs of the fixture, see its `make.py`.
fn shipped() -> Vec<Shipped> {
    let fixture = fs::read_to_string(root().join("tests/fixtures/torchtune/configs/configs.txt")).unwrap();
    let mut blocks: BTreeMap<&str, String> = BTreeMap::new();
    let mut configs = Vec::new();
    let mut number = "";
    for line in fixture.lines() {
        if let Some(new) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            number = new;
        } else if let Some(config) = line.strip_prefix("==> ") {
            let mut words = config.split(' ');
            let (name, theirs) = (words.next().unwrap(), words.next().unwrap());
            let yaml = words.map(|number| blocks[number].as_str()).collect();
            let ours = match () {
                () if theirs.contains("generate") => "generate",
                () if theirs.starts_with("eleuther") => "eleuther_eval",
                () if theirs.contains("dpo") => "dpo",
                () if theirs.contains("distillation") => "distill",
                () if theirs.starts_with("qat") => "qat",
                () if theirs.starts_with("ppo") => "ppo",
                () if theirs.contains("lora") || name.contains("lora") => "lora",
                () => "full",
            };
            configs.push(Shipped { name: name.to_owned(), theirs: theirs.to_owned(), ours, yaml });
        } else if !number.is_empty() {
            let block = blocks.entry(number).or_default();
            block.push_str(line);
            block.push('\n');
        }
    }
    configs
}

/// The groups of the table, and which config is in which.
const GROUPS: [&str; 12] = [
    "full, Llama and Mistral",
    "LoRA, Llama and Mistral",
    "full, Gemma, Phi and Qwen",
    "LoRA, Gemma, Phi and Qwen",
    "DPO",
    "knowledge distillation",
    "quantization-aware training",
    "QLoRA and DoRA",
    "generation",
    "evaluation",
    "models of images",
    "other recipes",
];

fn group(config: &Shipped) -> &'static str {
    let family = config.name.split('/').next().unwrap_or_default();
    let is_llama = config.yaml.contains("models.llama")
        || config.yaml.contains("models.code_llama2.")
        || config.yaml.contains("models.mistral.");
    let variants = ["qlora_", "use_dora: True", "quantize_base: True"];
    let is_lora = config.theirs.starts_with("lora");
    match config.theirs.as_str() {
        theirs if theirs.contains("dpo") => GROUPS[4],
        theirs if theirs.contains("distillation") => GROUPS[5],
        theirs if theirs.starts_with("qat") => GROUPS[6],
        _ if family.contains("vision") || config.yaml.contains("_vision") => GROUPS[10],
        theirs if theirs.contains("generate") => GROUPS[8],
        theirs if theirs.starts_with("eleuther") => GROUPS[9],
        theirs if !theirs.contains("finetune") || theirs.starts_with("ppo") => GROUPS[11],
        theirs if theirs.contains("multi_dataset") => GROUPS[11],
        _ if variants.iter().any(|variant| config.yaml.contains(variant)) => GROUPS[7],
        _ if is_llama => GROUPS[usize::from(is_lora)],
        _ => GROUPS[2 + usize::from(is_lora)],
    }
}

/// Whether it trains plain adapters on a quantized base.
fn is_qlora(config: &Shipped) -> bool {
    group(config) == "QLoRA and DoRA"
}

/// The config in a file of its own, in `folder`.
fn file(folder: &Path, config: &Shipped) -> String {
    let path = folder.join(config.name.replace('/', "_"));
    fs::write(&path, &config.yaml).unwrap();
    path.to_str().unwrap().to_owned()
}

/// `Ok` where the config loads; else what is said, on one line.
fn outcome(folder: &TempDir, config: &Shipped) -> Result<(), String> {
    let output = run(config.ours, &["--config", &file(folder.path(), config), "--print-config"]);
    if output.status.success() {
        return Ok(());
    }
    let said = text(&output.stderr);
    let first =
        |start: &str| said.lines().find_map(|line| Some(line.trim_start().strip_prefix(start)?.trim().to_owned()));
    // What there is not here is said, and what else would follow from it is not.
    let mut errors = said.lines().filter(|line| line.starts_with("error["));
    assert!(errors.all(|line| line.starts_with("error[E0030]")), "{}\n{said}", config.name);
    let (error, help) = (first("error[E0030]:").unwrap_or(said.clone()), first("= help:").unwrap_or_default());
    // The help for QLoRA names each model's own builder.
    let help = help.split_once("torchtune.models.").map_or(help.clone(), |(start, _)| format!("{start}..."));
    Err(format!("{error} ({help})"))
}

/// The share that loads, and what is told about each of the others: `UPDATE=1` accepts a change.
#[test]
fn they_load_or_are_told_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut counts = GROUPS.map(|group| (group, 0, 0));
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for config in shipped() {
        let (_, loads, all) = counts.iter_mut().find(|(name, ..)| *name == group(&config)).unwrap();
        *all += 1;
        match outcome(&folder, &config) {
            Ok(()) => *loads += 1,
            Err(message) => {
                assert!(!is_qlora(&config), "{}: {message}", config.name);
                told.entry(message).or_default().push(config.name);
            }
        }
    }
    let mut report = format!("{:<44} loads  of\n", "configs of torchtune 0.6.1");
    for (name, loads, all) in counts {
        writeln!(report, "{name:<44} {loads:>5} {all:>3}").unwrap();
    }
    report.push_str("\nThe others are told:\n");
    for (message, names) in told {
        writeln!(report, "\n{message}\n  {}", names.join("\n  ")).unwrap();
    }
    let path = root().join("tests/fixtures/torchtune/configs/outcome.txt");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &report).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == report, "{} differs:\n{report}", path.display());
    // What is promised: all full, LoRA, DPO, distillation and quantization-aware configs of models of text.
    let of_text = &counts[..7];
    assert!(of_text.iter().all(|(_, loads, all)| loads == all), "{report}");
    assert!(of_text.iter().map(|(.., all)| all).sum::<usize>() > 80, "{report}");
}

/// The lines of a resolved config without the origins of the values.
fn resolved(recipe: &str, config: &str) -> Vec<String> {
    let shown = succeed(recipe, &["--config", config, "--print-config"]);
    text(&shown.stdout).lines().map(|line| line.rsplit_once("  # ").map_or(line, |(line, _)| line).to_owned()).collect()
}

#[test]
fn what_is_converted_means_the_same_and_has_nothing_of_torchtunes_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for config in shipped().iter().filter(|config| GROUPS[..7].contains(&group(config)) || is_qlora(config)) {
        let original = file(folder.path(), config);
        let converted = text(&succeed(config.ours, &["--config", &original, "--convert"]).stdout);
        let keys: Vec<_> = converted.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
        let theirs = ["torch.", "torchtune.", "bitsandbytes."];
        assert!(!theirs.iter().any(|prefix| keys.iter().any(|line| line.contains(prefix))), "{converted}");
        // Changed in place, not written anew: whoever looks for a key finds it where it was.
        assert!(converted.contains("metric_logger:\n  _component_: jsonl"), "{converted}");
        let path = folder.path().join("converted.yaml");
        fs::write(&path, &converted).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(resolved(config.ours, &original), resolved(config.ours, path), "{}", config.name);
        let warnings = text(&succeed(config.ours, &["--config", path, "--print-config"]).stderr);
        assert_eq!(warnings, "", "{converted}");
        // Converting again changes nothing.
        assert_eq!(text(&succeed(config.ours, &["--config", path, "--convert"]).stdout), converted);
        count += 1;
    }
    assert!(count > 36, "{count}");
}

/// What a file of torchtune's says has the meaning that it has there, written or not.
#[test]
fn what_they_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let config = shipped().into_iter().find(|config| config.name == "llama3_2/1B_lora_single_device.yaml").unwrap();
    let lines = resolved("lora", &file(folder.path(), &config));
    for expected in [
        "output_dir: /tmp/torchtune/llama3_2_1B/lora_single_device",
        "  architecture: llama3_2_1b",
        "  lora_attn_modules: [q_proj, v_proj, o_proj]",
        "  apply_lora_to_mlp: true",
        "  apply_lora_to_output: false",
        "  lora_rank: 64",
        "  lora_alpha: 128.0",
        "  checkpoint_dir: /tmp/Llama-3.2-1B-Instruct/",
        "save_adapter_weights_only: false",
        "  - _component_: alpaca",
        "    source: \"hf://yahma/alpaca-cleaned\"",
        "    masking_strategy: null",
        "    packed: false",
        "batch_size: 4",
        "gradient_accumulation_steps: 8",
        "max_steps_per_epoch: null",
        "  _component_: adamw",
        "  lr: 0.0003",
        "  _component_: cosine",
        "  num_warmup_steps: 100",
        "clip_grad_norm: null",
        "device: cuda",
        "dtype: bf16",
        "    log_dir: /tmp/torchtune/llama3_2_1B/lora_single_device/logs",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
    }
}

/// torchtune's datasets by name, with the files, columns and defaults that they have there.
#[test]
fn named_datasets_are_what_they_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = shipped().into_iter().find(|config| config.name == "llama3_2/1B_lora_single_device.yaml").unwrap();
    let lines = |dataset: &str| {
        let yaml =
            config.yaml.replace("torchtune.datasets.alpaca_cleaned_dataset", &format!("torchtune.datasets.{dataset}"));
        assert_ne!(yaml, config.yaml);
        let shown = Shipped { name: "named.yaml".to_owned(), theirs: config.theirs.clone(), ours: "lora", yaml };
        resolved("lora", &file(folder.path(), &shown))
    };
    let cases: &[(&str, &[&str])] = &[
        ("alpaca_dataset", &["_component_: alpaca", "source: \"hf://tatsu-lab/alpaca\""]),
        (
            "samsum_dataset",
            &["_component_: instruct", "source: \"hf://Samsung/samsum\"", "input: dialogue", "output: summary"],
        ),
        (
            "grammar_dataset",
            &["_component_: instruct", "source: \"hf://liweili/c4_200m\"", "input: input", "output: output"],
        ),
        (
            "slimorca_dataset",
            &[
                "_component_: chat",
                "source: \"hf://Open-Orca/SlimOrca-Dedup\"",
                "conversation_column: conversations",
                "conversation_style: sharegpt",
            ],
        ),
        ("chat_dataset\n  source: org/data", &["_component_: chat", "source: \"hf://org/data\""]),
        ("instruct_dataset\n  source: org/data", &["_component_: instruct", "source: \"hf://org/data\""]),
        (
            "text_completion_dataset\n  source: org/data",
            &["_component_: text", "column: text", "add_eos: true", "split_across_pack: true"],
        ),
        (
            "wikitext_dataset\n  subset: wikitext-103-v1",
            &[
                "_component_: text",
                "source: \"hf://EleutherAI/wikitext_document_level\"",
                "subset: wikitext-103-v1",
                "column: page",
            ],
        ),
        (
            "cnn_dailymail_articles_dataset",
            &["source: \"hf://ccdv/cnn_dailymail\"", "subset: \"3.0.0\"", "column: article"],
        ),
        ("cnn_dailymail_articles_dataset\n  name: 1.0.0", &["subset: \"1.0.0\""]),
    ];
    for (dataset, expected) in cases {
        let lines = lines(dataset);
        for expected in *expected {
            let found = lines.iter().any(|line| line.trim_start_matches([' ', '-']) == *expected);
            assert!(found, "{dataset}: {expected}: {lines:#?}");
        }
    }
}

/// Adapters or all weights as the file says, the loss with its settings, the reference, and the columns of the data.
#[test]
fn what_dpo_configs_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let lines = |name: &str| {
        let config = shipped().into_iter().find(|config| config.name == name).unwrap();
        resolved("dpo", &file(folder.path(), &config))
    };
    let expect = |name: &str, expected: &[&str]| {
        let lines = lines(name);
        for expected in expected {
            assert!(lines.iter().any(|line| line == expected), "{name}: {expected}: {lines:#?}");
        }
    };
    let data = [
        "  - _component_: preference_instruct",
        "    source: \"hf://lvwerra/stack-exchange-paired/data/rl\"",
        "      prompt: question",
        "      chosen: response_j",
        "      rejected: response_k",
    ];
    expect("llama3_1/8B_full_dpo.yaml", &data);
    expect(
        "llama3_1/8B_full_dpo.yaml",
        &["  lora_rank: null", "  _component_: dpo", "  beta: 0.05", "ref_checkpointer:", "reference: each_step"],
    );
    expect("llama3_1/8B_lora_dpo_single_device.yaml", &data);
    expect(
        "llama3_1/8B_lora_dpo_single_device.yaml",
        &["  lora_rank: 8", "  beta: 0.1", "  label_smoothing: 0.0", "ref_checkpointer: null"],
    );
}

/// The models that score, the prompts, what they are drawn by, what answers are worth, and the loss.
#[test]
fn what_the_config_of_ppo_says_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let config = shipped().into_iter().find(|config| config.theirs.starts_with("ppo")).unwrap();
    let file = file(folder.path(), &config);
    let shown = succeed("ppo", &["--config", &file, "--print-config"]);
    let lines = text(&shown.stdout);
    let lines: Vec<&str> = lines.lines().map(|line| line.rsplit_once("  # ").map_or(line, |(line, _)| line)).collect();
    for expected in [
        "  lora_rank: null",
        "ref_checkpointer:",
        "value_checkpointer:",
        "reward_checkpointer:",
        "  checkpoint_dir: /tmp/RM-Mistral-7B/",
        "  - _component_: text",
        "    source: \"hf://trl-internal-testing/sentiment-trl-style\"",
        "    column: prompt",
        "    add_eos: false",
        "batch_size: 128",
        "samples: 1",
        "temperature: 0.7",
        "max_new_tokens: 58",
        "stop_token_ids: [2, 28723]",
        "penalise_no_eos: true",
        "min_response_length: 18",
        "reward_penalty: -3.0",
        "ppo_epochs: 1",
        "ppo_batch_size: 128",
        "kl_coeff: 0.01",
        "gamma: 1.0",
        "lmbda: 0.95",
        "whiten_rewards: false",
        "  epsilon: 0.2",
        "  value_clip_range: 0.2",
        "  value_coeff: 0.1",
        "  _component_: adamw",
    ] {
        assert!(lines.contains(&expected), "{expected}: {lines:#?}");
    }
}

/// The student's adapters, the teacher's files, and the divergence with its share.
#[test]
fn what_distillation_configs_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let configs = shipped();
    let config = configs.iter().find(|config| config.name == "llama3_2/8B_to_1B_KD_lora_single_device.yaml").unwrap();
    let lines = resolved("distill", &file(folder.path(), config));
    for expected in [
        "  architecture: llama3_2_1b",
        "  lora_rank: 64",
        "teacher_checkpointer:",
        "  checkpoint_dir: /tmp/Meta-Llama-3.1-8B-Instruct/",
        "  _component_: forward_kl",
        "kd_ratio: 0.5",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
    }
    for (theirs, ours) in [
        ("ReverseKLWithChunkedOutputLoss", "reverse_kl"),
        ("SymmetricKLWithChunkedOutputLoss", "symmetric_kl"),
        ("ForwardKLLoss", "forward_kl"),
        ("ReverseKLLoss", "reverse_kl"),
        ("SymmetricKLLoss", "symmetric_kl"),
    ] {
        let other = Shipped {
            name: ours.to_owned(),
            theirs: config.theirs.clone(),
            ours: "distill",
            yaml: config.yaml.replace("ForwardKLWithChunkedOutputLoss", theirs),
        };
        let lines = resolved("distill", &file(folder.path(), &other));
        assert!(lines.iter().any(|line| *line == format!("  _component_: {ours}")), "{lines:#?}");
    }
}

/// What the weights and inputs of layers are rounded to, and the rank of adapters.
#[test]
fn what_quantization_aware_configs_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    for (name, rank) in [("llama3/8B_qat_full.yaml", "null"), ("llama3_2/1B_qat_lora.yaml", "64")] {
        let config = shipped().into_iter().find(|config| config.name == name).unwrap();
        let lines = resolved("qat", &file(folder.path(), &config));
        let rank = format!("  lora_rank: {rank}");
        for expected in ["quantizer:", "  _component_: int8_dyn_act_int4_weight", "  groupsize: 256", &rank] {
            assert!(lines.iter().any(|line| line == expected), "{name}, {expected}: {lines:#?}");
        }
        for (theirs, ours) in [
            ("Int4WeightOnlyQATQuantizer", "int4_weight_only"),
            ("Int4WeightOnlyQATQuantizerModuleSwap", "int4_weight_only"),
            ("Int8DynActInt4WeightQATQuantizerModuleSwap", "int8_dyn_act_int4_weight"),
        ] {
            let yaml = config.yaml.replace("Int8DynActInt4WeightQATQuantizer", theirs);
            let other = Shipped { name: config.name.clone(), theirs: config.theirs.clone(), ours: "qat", yaml };
            let lines = resolved("qat", &file(folder.path(), &other));
            assert!(lines.iter().any(|line| *line == format!("  _component_: {ours}")), "{theirs}: {lines:#?}");
        }
    }
}

/// What is asked, of which model, and how freely it answers; and they do generate.
#[test]
fn what_generation_configs_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<Shipped> = shipped().into_iter().filter(|config| group(config) == "generation").collect();
    assert_eq!(all.len(), 5);
    for config in &all {
        let path = file(folder.path(), config);
        let lines = resolved("generate", &path);
        let has = |key: &str| lines.iter().any(|line| line.starts_with(key));
        let asked = ["Tell me a joke.", "Tell a joke.", "What is the capital of France?"];
        let has_prompt =
            lines.iter().any(|line| line.starts_with("prompt: ") && asked.iter().any(|text| line.contains(text)));
        assert!(has("checkpoint_dir: /tmp/") && has_prompt, "{lines:#?}");
        let converted = text(&succeed("generate", &["--config", &path, "--convert"]).stdout);
        let keys = converted.lines().map(|line| line.split('#').next().unwrap_or_default());
        assert!(
            !keys.into_iter().any(|line| line.contains("torchtune.") || line.contains("checkpointer")),
            "{converted}"
        );
        let again = folder.path().join("converted.yaml");
        fs::write(&again, &converted).unwrap();
        assert_eq!(resolved("generate", again.to_str().unwrap()), lines, "{converted}");
        let ours = ["checkpoint_dir=recipes/tiny/model", "device=cpu", "max_new_tokens=4", "top_k=20"];
        succeed("generate", &[&["--config", &path][..], &ours].concat());
    }
    let config = all.iter().find(|config| config.name == "llama2/generation_v2.yaml").unwrap();
    let lines = resolved("generate", &file(folder.path(), config));
    for expected in [
        "checkpoint_dir: /tmp/Llama-2-7b-chat-hf",
        "prompt: What is the capital of France?",
        "system_prompt: You are a helpful and creative AI assistant.",
        "max_new_tokens: 200",
        "temperature: 0.6",
        "top_k: 300",
    ] {
        assert!(lines.iter().any(|line| line.replace('"', "") == expected), "{expected}: {lines:#?}");
    }
    let asked = Shipped {
        name: "image.yaml".to_owned(),
        theirs: config.theirs.clone(),
        ours: "generate",
        yaml: config.yaml.replace("user: What", "user:\n    image: a.png\n    text: What"),
    };
    let said = fail("generate", &["--config", &file(folder.path(), &asked), "--print-config"]);
    assert!(said.contains("a prompt is text here") && said.contains("image"), "{said}");
}

/// Which model is measured, on what and how; what is not there is told by its name, and where it is written.
#[test]
fn what_evaluation_configs_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<Shipped> = shipped().into_iter().filter(|config| group(config) == "evaluation").collect();
    assert_eq!(all.len(), 9);
    for config in &all {
        let path = file(folder.path(), config);
        assert_eq!(recipe_of_torchtune(&config.yaml), Some("eleuther_eval"));
        let lines = resolved("eleuther_eval", &path);
        let has = |key: &str| lines.iter().any(|line| line.replace('"', "").starts_with(key));
        for expected in [
            "checkpoint_dir: /tmp/",
            "tasks: [truthfulqa_mc2]",
            "max_seq_length: 4096",
            "batch_size: 8",
            "seed: 1234",
            "dtype: bf16",
            "output_dir: ./",
            // There, nothing is put in front of an item.
            "add_bos_token: false",
        ] {
            assert!(has(expected), "{}: {expected}: {lines:#?}", config.name);
        }
        let converted = text(&succeed("eleuther_eval", &["--config", &path, "--convert"]).stdout);
        let mut keys = converted.lines().map(|line| line.split('#').next().unwrap_or_default());
        assert!(!keys.any(|line| line.contains("torchtune.") || line.contains("checkpointer")), "{converted}");
        let again = folder.path().join("converted.yaml");
        fs::write(&again, &converted).unwrap();
        assert_eq!(resolved("eleuther_eval", again.to_str().unwrap()), lines, "{converted}");
        // Before anything is loaded: here, there is no such checkpoint.
        let program = format!("lm_eval={}", env!("CARGO_BIN_EXE_tune"));
        let server = format!("server={}", env!("CARGO_BIN_EXE_tune"));
        let args = ["--config", &path, &program, &server, "checkpointer.checkpoint_dir=/no/such", "device=cpu"];
        let said = fail("eleuther_eval", &args);
        assert!(said.contains("/no/such") && said.contains("does not exist"), "{said}");
    }
    let config = all.iter().find(|config| config.name == "eleuther_evaluation.yaml").unwrap();
    let path = file(folder.path(), config);
    let quantizer = "torchtune.training.quantization.Int8DynActInt4Weight";
    for (overridden, missing, instead) in [
        (
            format!("quantizer={{_component_: {quantizer}Quantizer, groupsize: 256}}"),
            "weights are not quantized while they are read",
            "tune quantize",
        ),
        (
            format!("quantizer={{_component_: {quantizer}QATQuantizer}}"),
            "weights are not quantized while they are read",
            "tune quantize",
        ),
        (
            "checkpointer.checkpoint_files=[llama-8da4w.pt]".to_owned(),
            "torchtune's own files (.pt), quantized ones among them, are not read",
            "tune quantize",
        ),
        (
            "checkpointer.adapter_checkpoint=adapter_0.pt".to_owned(),
            "an adapter is read from a folder in PEFT's form",
            "adapter_dir",
        ),
        ("include_default=false".to_owned(), "the harness always knows the tasks that it brings along", "include_path"),
    ] {
        let said = fail("eleuther_eval", &["--config", &path, &overridden, "--print-config"]);
        assert!(said.contains("error[E0030]") && said.contains(missing) && said.contains(instead), "{said}");
    }
    // Another recipe says which one it is for.
    let said = fail("lora", &["--config", &path, "--print-config"]);
    assert!(said.contains("evaluation with EleutherAI's harness") && said.contains("start `eleuther_eval`"), "{said}");
    // A quantizer is told of by what generates, too.
    let asked = shipped().into_iter().find(|config| config.name == "llama2/generation_v2.yaml").unwrap();
    let quantizer = format!("quantizer={{_component_: {quantizer}Quantizer}}");
    let said = fail("generate", &["--config", &file(folder.path(), &asked), &quantizer, "--print-config"]);
    assert!(said.contains("weights are not quantized while they are read"), "{said}");
}

/// Torchtune's own Alpaca columns, which the shipped configs train on.
const ALPACA: &str = r#"{"instruction": "Write b-a-d-e in the secret code.", "input": "", "output": "c-b-e-f"}
{"instruction": "Name a fruit.", "input": "It is red.", "output": "a cherry"}
{"instruction": "Count to three.", "input": "", "output": "one two three"}
{"instruction": "Say yes.", "input": "", "output": "yes"}
"#;

/// A shipped config, with what a user has to give: a model, data, and a device that is there.
#[test]
fn they_train() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("alpaca.jsonl");
    fs::write(&data, ALPACA).unwrap();
    let data = format!("dataset.data_files={}", data.display());
    let configs = shipped();
    for name in ["llama3_2/1B_lora_single_device.yaml", "code_llama2/7B_full_low_memory.yaml", "mistral/7B_lora.yaml"] {
        let config = configs.iter().find(|config| config.name == name).unwrap();
        let (path, output) = (file(folder.path(), config), folder.path().join(name.replace('/', "_") + ".out"));
        let output_key = format!("output_dir={}", output.display());
        let mut args = vec!["--config", &path, &output_key, &data, "checkpointer.checkpoint_dir=recipes/tiny/model"];
        let error = fail(config.ours, &args);
        // Where there is a card, it is taken, and the next thing that is wrong is said.
        assert!(error.contains("use device=cpu") || error.contains("holds another model"), "{error}");

        args.extend(["device=cpu", "batch_size=2", "gradient_accumulation_steps=1", "max_steps_per_epoch=2"]);
        let error = fail(config.ours, &args);
        assert!(error.contains("recipes/tiny/model holds another model: "), "{error}");
        assert!(error.contains("model.architecture=null to train the one that is there"), "{error}");
        assert!(!output.exists());

        args.push("model.architecture=null");
        let said = text(&succeed(config.ours, &args).stderr);
        assert!(said.contains("keys have no effect here"), "{said}");
        let log = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 2, "{log}");
        // `save_adapter_weights_only: False`: the merged model lies beside the adapter.
        let saved = newest(&output);
        if config.ours == "lora" {
            assert!(files(&saved.join("merged")).iter().any(|(name, _)| name == "model.safetensors"));
        }
    }
}

/// QLoRA, with what a user has to give; a merged model beside the adapter is refused by name.
#[test]
fn a_quantized_base_trains() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("alpaca.jsonl");
    fs::write(&data, ALPACA).unwrap();
    let data = format!("dataset.data_files={}", data.display());
    let config = shipped().into_iter().find(|config| config.name == "llama3_2/1B_qlora_single_device.yaml").unwrap();
    let (path, output) = (file(folder.path(), &config), folder.path().join("out"));
    let output_key = format!("output_dir={}", output.display());
    let mut args = vec!["--config", &path, &output_key, &data, "checkpointer.checkpoint_dir=recipes/tiny/model"];
    args.extend(["device=cpu", "batch_size=2", "gradient_accumulation_steps=1", "max_steps_per_epoch=2"]);
    args.push("model.architecture=null");
    let error = fail("lora", &args);
    assert!(error.contains("28 in NF4") && error.contains("save_adapter_weights_only=true"), "{error}");
    args.push("save_adapter_weights_only=true");
    let said = text(&succeed("lora", &args).stderr);
    assert!(said.contains("held quantized: 28 in NF4"), "{said}");
    assert!(newest(&output).join("adapter_model.safetensors").is_file());
}

/// With nothing but a model's name: torchtune's own dataset comes from the hub, as the model does.
#[test]
fn model_and_data_come_from_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let config = shipped().into_iter().find(|config| config.name == "llama3_2/1B_lora_single_device.yaml").unwrap();
    let model = files(&root().join("recipes/tiny/model")).into_iter().collect();
    let data = BTreeMap::from([("alpaca.jsonl".to_owned(), ALPACA.as_bytes().to_vec())]);
    let repos = [("models/org/tiny", model), ("datasets/yahma/alpaca-cleaned", data)];
    let repos = repos.into_iter().map(|(name, files)| (name.to_owned(), files)).collect();
    let server = Server::start(Content { repos, ..Content::default() });
    let (path, output) = (file(folder.path(), &config), format!("output_dir={}", folder.path().join("out").display()));
    let args = ["--config", &path, &output, "checkpointer.checkpoint_dir=hf://org/tiny", "model.architecture=null"];
    let run = recipe("lora", &args)
        .args(["device=cpu", "max_steps_per_epoch=1"])
        .envs([("HF_ENDPOINT", server.url.as_str()), ("HF_HOME", folder.path().join("hub").to_str().unwrap())])
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("4 samples"), "{}", text(&run.stderr));
}

/// A mistake in a file of torchtune's is shown where it stands in that file.
#[test]
fn mistakes_are_shown_where_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = shipped().into_iter().find(|c| c.name == "llama3_1/8B_lora_single_device.yaml").unwrap();
    config.yaml = config.yaml.replace("  lora_rank: 8\n", "  lora_rang: 8\n").replace("lr: 3e-4", "lr: fast");
    let lines: Vec<&str> = config.yaml.lines().collect();
    let place = |text: &str| {
        let line = lines.iter().position(|line| line.contains(text)).unwrap();
        format!("llama3_1_8B_lora_single_device.yaml:{}:{}", line + 1, lines[line].find(text).unwrap() + 1)
    };
    let error = fail("lora", &["--config", &file(folder.path(), &config)]);
    assert!(error.contains(&place("lora_rang")) && error.contains("did you mean `lora_rank`?"), "{error}");
    assert!(error.contains(&place("fast")), "{error}");
}

/// torchtune's loggers, by the names that they have there: what they become, and what is said.
#[test]
fn loggers_are_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let resolved = |logger: &str| {
        let logger = format!("metric_logger={logger}");
        let args = ["--config", "configs/lora/tiny.yaml", &output, &logger, "--print-config"];
        let output = succeed("lora", &args);
        text(&output.stdout)
    };
    let named = "{_component_: torchtune.training.metric_logging.";
    let wandb = "WandBLogger, project: p, entity: me, group: g, name: trial, job_type: train, mode: offline, log_dir: elsewhere}";
    let config = resolved(&format!("{named}{wandb}"));
    for key in [
        "_component_: wandb",
        "project: p",
        "entity: me",
        "group: g",
        "name: trial",
        "job_type: train",
        "log_dir: elsewhere",
    ] {
        assert!(config.contains(key), "{key}: {config}");
    }
    assert!(!config.contains("mode: offline"), "{config}");
    let told = format!("metric_logger={named}WandBLogger, mode: offline}}");
    let validated = succeed("lora", &["--config", "configs/lora/tiny.yaml", &output, &told, "--validate"]);
    let said = text(&validated.stdout) + &text(&validated.stderr);
    assert!(said.contains("the key `mode` has no effect here"), "{said}");
    let config = resolved(&format!("{named}DiskLogger, log_dir: here, filename: log.txt}}"));
    assert!(config.contains("_component_: jsonl") && config.contains("filename: log.txt"), "{config}");
    let config = resolved(&format!("{named}StdoutLogger}}"));
    assert!(config.contains("stdout"), "{config}");
    let config = resolved(&format!("{named}MLFlowLogger, experiment_name: e, run_name: r, run_id: null}}"));
    assert!(config.contains("_component_: mlflow") && config.contains("experiment_name: e"), "{config}");
    let comet = format!("metric_logger={named}CometLogger, project: p, log_dir: here}}");
    let checked = succeed("lora", &["--config", "configs/lora/tiny.yaml", &output, &comet, "--check"]);
    let said = text(&checked.stdout) + &text(&checked.stderr);
    assert!(said.contains("there is no client for Comet here") && said.contains("wandb, mlflow"), "{said}");
}

/// Names that the optimizers have elsewhere, with the defaults that go with them in torchtune's configs.
#[test]
fn optimizers_are_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let with = |optimizer: &str, how: &str| {
        let yaml = fs::read_to_string(root().join("configs/full/tiny.yaml")).unwrap();
        let yaml = yaml
            .replace("checkpointer:\n", "checkpointer:\n  _component_: torchtune.training.FullModelHFCheckpointer\n");
        let (above, _) = yaml.split_once("optimizer:").unwrap();
        fs::write(&path, format!("{above}optimizer: {{_component_: {optimizer}}}\n")).unwrap();
        let output = run("full", &["--config", path.to_str().unwrap(), how]);
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let taken: [(&str, &[&str]); 11] = [
        ("bitsandbytes.optim.PagedAdamW8bit, lr: 2e-5", &["_component_: adamw_8bit", "lr: 2.0e-5"]),
        ("torchao.optim.AdamW8bit, block_size: 256", &["_component_: adamw_8bit", "lr: 0.001"]),
        ("torchao.optim.AdamW4bit, lr: 2e-5", &["_component_: adamw_8bit", "lr: 2.0e-5"]),
        ("torchao.optim.AdamWFp8, lr: 2e-5", &["_component_: adamw_8bit", "lr: 2.0e-5"]),
        ("bitsandbytes.optim.PagedLion", &["_component_: lion", "lr: 0.0001"]),
        ("lion_pytorch.Lion, weight_decay: 0.1", &["_component_: lion", "weight_decay: 0.1"]),
        ("torch.optim.Adafactor, lr: 0.02, d: 2.0", &["_component_: adafactor", "lr: 0.02", "d: 2.0"]),
        (
            "transformers.Adafactor, beta1: null, decay_rate: -0.7, clip_threshold: 0.5, relative_step: false",
            &["_component_: adafactor", "beta2_decay: -0.7", "d: 0.5", "relative_step: false", "1.0e-30"],
        ),
        ("torch.optim.Muon, eps: 1e-7", &["_component_: muon", "lr: 0.001", "adjust_lr_fn: original", "eps: 1.0e-8"]),
        ("schedulefree.AdamWScheduleFree, warmup_steps: 0", &["_component_: schedule_free_adamw", "lr: 0.0025"]),
        ("torch.optim.AdamW, layerwise_lr_decay: 0.9", &["_component_: adamw", "layerwise_lr_decay: 0.9"]),
    ];
    for (optimizer, keys) in taken {
        let (is_sound, config) = with(optimizer, "--print-config");
        assert!(is_sound, "{optimizer}: {config}");
        for key in keys {
            assert!(config.contains(key), "{optimizer}: {key} is not in\n{config}");
        }
    }
    let refused = [
        ("transformers.Adafactor, beta1: 0.9", "Adafactor has no momentum here"),
        ("schedulefree.AdamWScheduleFree, warmup_steps: 10", "the warm-up is lr_scheduler's"),
        ("bitsandbytes.optim.LARS", "optimizers of bitsandbytes other than AdamW and Lion"),
    ];
    for (optimizer, why) in refused {
        let (is_sound, said) = with(optimizer, "--validate");
        assert!(!is_sound && said.contains(why), "{optimizer}: {said}");
    }
}

//! What a config of torchtune's says has the meaning that it has there.

use super::runs::{succeed, text};
use super::{Shipped, file, resolved, shipped};

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

//! Token ids and targets of a real chat model, against what torchtune trained on.
//!
//! Needs a model that is not in the repository (`tests/fixtures/smollm2/prepare.sh DIR` makes it), so it
//! runs only when asked for:
//!
//!     SMOLLM2_DIR=DIR cargo test -p tune-core --test tokenize_reference -- --ignored
//!

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use tune_core::checkpoint::Checkpoint;
use tune_core::data::{self, ChatDataset, ConversationStyle, DatasetConfig, Files, IGNORE, Mask};
use tune_core::tokenizer::Tokenizer;

#[test]
#[ignore = "needs a real model's tokenizer: see the top of the file"]
fn ids_and_targets_are_torchtunes() {
    let model = std::env::var_os("SMOLLM2_DIR").expect("set SMOLLM2_DIR; see the top of this test's file");
    for checkpoint in ["hf", "SmolLM2-135M-Instruct.Q4_1.gguf"] {
        check(&PathBuf::from(&model).join(checkpoint));
    }
}

fn check(model: &Path) {
    let reference = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/torchtune");
    let files = Checkpoint::open(model).unwrap().tokenizer_files().unwrap();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    let config = DatasetConfig::Chat(ChatDataset {
        files: Files {
            source: Some("json".into()),
            data_files: vec![reference.join("humaneval_messages.jsonl")],
            split: "train[:40]".to_owned(),
            ..Files::default()
        },
        conversation_column: "messages".to_owned(),
        conversation_style: ConversationStyle::Openai,
        role_key: None,
        content_key: None,
        new_system_prompt: None,
        mask: Mask { masking_strategy: None, train_on_input: Some(false) },
        rows: data::Rows::default(),
    });
    let dataset = data::load(&[config], &tokenizer, Some(512)).unwrap();
    assert_eq!(dataset.warnings(512), [""; 0]);

    let expected = std::fs::read_to_string(reference.join("humaneval_tokens.jsonl")).unwrap();
    let expected: Vec<serde_json::Value> = expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(expected.len(), 40);
    assert_eq!(dataset.samples.len(), 40);
    for (sample, expected) in dataset.samples.iter().zip(&expected) {
        let numbers = |key: &str| -> Vec<i64> {
            let list = expected[key].as_array().unwrap();
            list.iter().map(|n| n.as_i64().unwrap()).collect()
        };
        let ids: Vec<i64> = sample.input_ids.iter().map(|&id| i64::from(id)).collect();
        let labels: Vec<i64> = sample.targets.iter().map(|&t| if t == IGNORE { -100 } else { i64::from(t) }).collect();
        assert_eq!(ids, numbers("input_ids"), "{}", sample.origin);
        // The file's labels stand at the tokens themselves; our targets one before.
        let mut shifted = numbers("labels");
        assert_eq!(shifted.remove(0), -100);
        shifted.push(-100);
        assert_eq!(labels, shifted, "{}", sample.origin);
    }
}

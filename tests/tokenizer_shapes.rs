//! Conversations in the tokens of many kinds of tokenizer, against what transformers makes of them.
//!
//! `fixtures/tokenizers/make.py` makes the tokenizers and what is expected. Each conversation goes through the data
//! pipeline as in training.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use tune_core::data::{self, ChatDataset, ConversationStyle, DatasetConfig, IGNORE, Mask, Sample};
use tune_core::tokenizer::{Tokenizer, TokenizerFiles};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizers")
}

fn tokenizer(name: &str) -> Tokenizer {
    let mut files = TokenizerFiles::default();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        files.files.insert(file.into(), std::fs::read(folder().join(name).join(file)).unwrap());
    }
    Tokenizer::from_files(&files).unwrap()
}

fn shapes() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let shapes: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(shapes.len() >= 14);
    shapes
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

/// The samples of the conversations of one tokenizer.
fn samples(tokenizer: &Tokenizer, conversations: &[Value], max_seq_len: Option<usize>) -> Vec<Sample> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.jsonl");
    let lines: Vec<String> =
        conversations.iter().map(|c| serde_json::json!({"messages": c["messages"]}).to_string()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let config = DatasetConfig::Chat(ChatDataset {
        files: file.into(),
        conversation_column: "messages".to_owned(),
        conversation_style: ConversationStyle::Openai,
        role_key: None,
        content_key: None,
        new_system_prompt: None,
        mask: Mask { masking_strategy: None, train_on_input: None },
        rows: data::Rows::default(),
    });
    data::examples(&[config], tokenizer, max_seq_len, conversations.len())
}

/// Ids with brackets around what is trained, to compare at a glance.
fn shown(tokenizer: &Tokenizer, ids: &[u32], trained: impl Fn(usize) -> bool) -> String {
    let token = |i: usize| {
        let text = tokenizer.token(ids[i]).unwrap_or_default();
        if trained(i) { format!("[{text}]") } else { text }
    };
    (0..ids.len()).map(token).collect::<Vec<_>>().join(" ")
}

#[test]
fn conversations_have_the_tokens_of_transformers_and_their_answers_are_trained() {
    let mut wrong = Vec::new();
    for (name, shape) in shapes() {
        let tokenizer = tokenizer(&name);
        let conversations = shape["conversations"].as_array().unwrap();
        let samples = samples(&tokenizer, conversations, None);
        assert_eq!(samples.len(), conversations.len());
        for (i, (sample, expected)) in samples.iter().zip(conversations).enumerate() {
            let (ids, trained) = (numbers(&expected["ids"]), numbers(&expected["trained"]));
            let ours = shown(&tokenizer, &sample.input_ids, |i| i > 0 && sample.targets[i - 1] != IGNORE);
            let theirs = shown(&tokenizer, &ids, |i| trained[i] == 1);
            if ours != theirs || sample.input_ids != ids {
                wrong.push(format!("{name} {i} {:?}\n  is     {ours}\n  not    {theirs}", expected["text"]));
            }
            for (at, &target) in sample.targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
                assert_eq!(target, sample.input_ids[at + 1]);
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_sample_that_is_cut_has_the_first_of_the_same_tokens() {
    for (name, shape) in shapes() {
        let tokenizer = tokenizer(&name);
        let conversations = shape["conversations"].as_array().unwrap();
        let whole = samples(&tokenizer, conversations, None);
        for limit in [2, 7, 12, 30] {
            let cut = samples(&tokenizer, conversations, Some(limit));
            for (cut, whole) in cut.iter().zip(&whole) {
                let kept = limit.min(whole.input_ids.len());
                assert_eq!(cut.input_ids, whole.input_ids[..kept], "{name}");
                assert_eq!(cut.targets[..kept - 1], whole.targets[..kept - 1], "{name}");
            }
        }
    }
}

#[test]
fn a_prompt_has_the_tokens_of_transformers() {
    for (name, shape) in shapes() {
        let tokenizer = tokenizer(&name);
        for prompt in shape["prompts"].as_array().unwrap() {
            let ids = tokenizer.prompt(prompt["text"].as_str().unwrap(), None, None).unwrap();
            assert_eq!(ids, numbers(&prompt["ids"]), "{name}: {prompt}");
        }
    }
}

#[test]
fn a_long_text_has_the_tokens_of_the_whole() {
    let paragraph = "The answer is forty two.  What? \n\n für 🦀\tdef f():\n    return 12 345 word<|im_end|> x</s>\n y";
    let long = paragraph.repeat(2000);
    for (name, _) in shapes() {
        let file = folder().join(&name).join("tokenizer.json");
        let settings = std::fs::read_to_string(folder().join(&name).join("tokenizer_config.json")).unwrap();
        if settings.contains("added_tokens_decoder") {
            continue;
        }
        let mut reference = tokenizers::Tokenizer::from_file(file).unwrap();
        reference.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        for text in [&long, &"ab".repeat(100_000)] {
            // Compared without printing hundreds of thousands of numbers.
            let expected = reference.encode_fast(text.as_str(), false).unwrap();
            let ids = tokenizer(&name).encode(text).unwrap();
            let same = ids.iter().zip(expected.get_ids()).take_while(|(a, b)| a == b).count();
            assert_eq!((same, ids.len()), (expected.len(), expected.len()), "{name}");
        }
    }
}

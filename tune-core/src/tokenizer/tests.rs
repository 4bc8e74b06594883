use serde_json::json;

use super::testing::{byte_level, byte_level_files, sentence_piece};
use super::*;

fn with(name: &str, content: &Value) -> TokenizerFiles {
    let mut files = byte_level_files(None);
    files.files.insert(name.to_owned(), content.to_string().into_bytes());
    files
}

fn error(files: &TokenizerFiles) -> String {
    Tokenizer::from_files(files).unwrap_err().to_string()
}

#[test]
fn text_goes_there_and_back() {
    let tokenizer = byte_level(None);
    let text = "Grüße 🦀\n  <|im_end|>x";
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.contains(&tokenizer.token_id("<|im_end|>").unwrap()));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "Grüße 🦀\n  x");
    assert_eq!(tokenizer.vocab_size(), 264);
    assert_eq!(tokenizer.encode("").unwrap(), [0; 0]);
}

#[test]
fn special_tokens_are_strings_or_objects() {
    let tokenizer = sentence_piece(None);
    assert_eq!(tokenizer.bos(), tokenizer.token_id("<s>"));
    assert_eq!(tokenizer.eos(), tokenizer.token_id("</s>"));
    assert_eq!(tokenizer.pad(), tokenizer.token_id("<|end|>"));
    assert!(tokenizer.begins_with_bos());

    let tokenizer = byte_level(None);
    assert_eq!(tokenizer.bos(), None);
    assert_eq!(tokenizer.pad(), tokenizer.eos(), "padding falls back to the end of text");
    assert!(!tokenizer.begins_with_bos());
}

#[test]
fn special_tokens_come_from_the_map_too() {
    let mut files = with("tokenizer_config.json", &json!({"eos_token": "</s>"}));
    let map = json!({"eos_token": "<|end|>", "bos_token": {"content": "<s>"}});
    files.files.insert("special_tokens_map.json".into(), map.to_string().into_bytes());
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert_eq!(tokenizer.eos(), tokenizer.token_id("</s>"));
    assert_eq!(tokenizer.bos(), tokenizer.token_id("<s>"));
}

#[test]
fn the_generation_config_adds_stop_tokens() {
    let tokenizer =
        Tokenizer::from_files(&with("generation_config.json", &json!({"eos_token_id": [263, 261]}))).unwrap();
    let stop: Vec<u32> = tokenizer.stop_tokens().iter().copied().collect();
    assert_eq!(stop, [259, 261, 263]);
    assert_eq!(tokenizer.eos(), Some(259));

    let mut files = with("tokenizer_config.json", &json!({}));
    let generation = json!({"eos_token_id": 261});
    files.files.insert("generation_config.json".into(), generation.to_string().into_bytes());
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.pad()), (Some(261), Some(261)));
}

#[test]
fn the_template_is_found() {
    let source = |files: &TokenizerFiles| {
        let tokenizer = Tokenizer::from_files(files).unwrap();
        tokenizer.chat_template().map(|t| t.source().to_owned())
    };
    let named = json!({"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]});
    let mut files = with("tokenizer_config.json", &named);
    assert_eq!(source(&files).as_deref(), Some("b"));
    files.files.insert("chat_template.jinja".into(), b"c".to_vec());
    assert_eq!(source(&files).as_deref(), Some("c"));
    assert_eq!(source(&byte_level_files(None)), None);

    let others = json!({"chat_template": [{"name": "rag", "template": "a"}, {"name": "x", "template": "b"}]});
    assert!(error(&with("tokenizer_config.json", &others)).contains("it has: `rag`, `x`"));
    let broken = error(&byte_level_files(Some("{{ a }}\n{% for %}")));
    assert!(broken.contains("the chat template is not valid") && broken.contains("line 2"), "{broken}");
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let mut files = byte_level_files(None);
    files.files.remove("tokenizer.json");
    assert!(error(&files).starts_with("tokenizer.json: is not there"), "{}", error(&files));
    let broken = error(&with("tokenizer.json", &json!({"model": 3})));
    assert!(broken.starts_with("tokenizer.json: cannot be read (") && broken.ends_with("fetch it again"), "{broken}");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n".to_vec();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let mut files = byte_level_files(None);
        files.files.insert(name.into(), pointer.clone());
        assert!(error(&files).starts_with(&format!("{name}: is a Git LFS pointer")), "{}", error(&files));
    }
    assert!(
        error(&with("tokenizer_config.json", &json!({"eos_token": "<eos>"})))
            .contains("the eos_token `<eos>` is not in the vocabulary")
    );
}

#[test]
fn a_continuation_gets_no_space_in_front() {
    let tokenizer = sentence_piece(None);
    let tokens = |ids: Vec<u32>| -> String { ids.iter().filter_map(|&id| tokenizer.token(id)).collect() };
    assert_eq!(tokens(tokenizer.encode("ab c").unwrap()), "\u{2581}ab\u{2581}c");
    assert_eq!(tokens(tokenizer.encode_continuation("ab c").unwrap()), "ab\u{2581}c");
    assert_eq!(tokens(tokenizer.encode_continuation(" ab").unwrap()), "\u{2581}ab");
}

//! Small tokenizers for tests, made on the spot.

use serde_json::{Value, json};

use super::{Tokenizer, TokenizerFiles};

/// Special tokens of the test tokenizers; decoding skips them.
const SPECIAL: [&str; 6] = [
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<|user|>",
    "<|end|>",
];

/// The character that stands for a byte in byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count();
    char::from_u32(256 + before as u32).unwrap()
}

fn special_tokens(first_id: usize) -> Vec<Value> {
    SPECIAL
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": first_id + i, "content": content, "special": true, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect()
}

fn files(tokenizer: &Value, config: &Value) -> TokenizerFiles {
    let mut files = TokenizerFiles::default();
    for (name, content) in [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
    ] {
        files
            .files
            .insert(name.to_owned(), content.to_string().into_bytes());
    }
    files
}

/// A byte-level BPE tokenizer: ids 0..256 are the bytes, then come `\n ` and two spaces in one token each.
pub(crate) fn byte_level_files(template: Option<&str>) -> TokenizerFiles {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_char(byte).to_string(), byte.into());
    }
    vocab.insert("\u{10a}\u{120}".to_owned(), 256.into());
    vocab.insert("\u{120}\u{120}".to_owned(), 257.into());
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": special_tokens(258),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["\u{10a}", "\u{120}"], ["\u{120}", "\u{120}"]]},
    });
    let config = json!({"eos_token": "<|im_end|>", "bos_token": null, "chat_template": template});
    files(&tokenizer, &config)
}

/// [`byte_level_files`] as a tokenizer.
pub(crate) fn byte_level(template: Option<&str>) -> Tokenizer {
    Tokenizer::from_files(&byte_level_files(template)).unwrap()
}

/// A tokenizer in the manner of SentencePiece: a space in front of every text, `<s>` before it.
pub(crate) fn sentence_piece(template: Option<&str>) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for (id, token) in (0..).zip(
        ["\u{2581}", "\n"]
            .map(str::to_owned)
            .into_iter()
            .chain(('!'..='~').map(|c| c.to_string())),
    ) {
        vocab.insert(token, Value::from(id));
    }
    let first_special = vocab.len();
    let bos = first_special + 2;
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": special_tokens(first_special),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}}},
        "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let config = json!({
        "bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}, "pad_token": "<|end|>",
        "chat_template": template,
    });
    Tokenizer::from_files(&files(&tokenizer, &config)).unwrap()
}

//! A tokenizer as the metadata of a GGUF file: the inverse of `tokenizer`.
//!
//! llama.cpp has the two kinds that are written here: byte-level BPE (`gpt2`), and SentencePiece's BPE (`llama`), which goes
//! by a score for each token. That what is written cuts text as the tokenizer does is checked when the file is read again.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value as Json;

use super::pre;
use super::write::{Head, Value};
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use crate::{Error, Result};

/// llama.cpp's kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Below the score of every token that is made of two others.
const NEVER_MADE: f32 = -1e6;

/// Puts the tokenizer into the head of a file for a model of `rows` embeddings.
///
/// # Errors
/// A tokenizer of a kind that llama.cpp does not have.
pub(super) fn put(head: &mut Head, tokenizer: &Tokenizer, files: &TokenizerFiles, rows: usize) -> Result<()> {
    let json = files
        .files
        .get("tokenizer.json")
        .ok_or_else(|| Error::setup("the model has no tokenizer.json, and a GGUF file has its tokenizer in it"))?;
    let json: Json =
        serde_json::from_slice(json).map_err(|e| Error::file("tokenizer.json", format!("is no JSON: {e}")))?;
    let model = &json["model"];
    if model["type"].as_str().unwrap_or("BPE") != "BPE" || !model["vocab"].is_object() {
        return Err(refused(&format!("is of the kind {}", model["type"])));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(refused(&format!("has a {key}")));
        }
    }
    let vocabulary = Vocabulary::read(&json, rows)?;
    let merges = merges(model)?;
    let is_byte_level = has_type(&json["pre_tokenizer"], "ByteLevel") || has_type(&json["decoder"], "ByteLevel");
    let mut types = vocabulary.types.clone();
    if is_byte_level {
        let name = pre::of_tokenizer(&json).ok_or_else(|| {
            refused(&format!(
                "cuts text before merging in a way that has no name in llama.cpp (pre_tokenizer: {}, normalizer: {})",
                short(&json["pre_tokenizer"]),
                short(&json["normalizer"]),
            ))
        })?;
        head.put("tokenizer.ggml.model", &Value::Text("gpt2".into()));
        head.put("tokenizer.ggml.pre", &Value::Text(name.into()));
        head.put("tokenizer.ggml.tokens", &Value::Texts(vocabulary.tokens.clone()));
        head.put("tokenizer.ggml.token_type", &Value::I32s(types));
        let joined = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        head.put("tokenizer.ggml.merges", &Value::Texts(joined));
    } else if model["byte_fallback"] == true {
        let unknown = model["unk_token"].as_str();
        for (token, kind) in vocabulary.tokens.iter().zip(&mut types) {
            if Some(token.as_str()) == unknown {
                *kind = UNKNOWN;
            } else if is_byte(token) && *kind == NORMAL {
                *kind = BYTE;
            }
        }
        head.put("tokenizer.ggml.model", &Value::Text("llama".into()));
        head.put("tokenizer.ggml.pre", &Value::Text("default".into()));
        head.put("tokenizer.ggml.scores", &Value::F32s(scores(&vocabulary.tokens, &merges)));
        head.put("tokenizer.ggml.tokens", &Value::Texts(vocabulary.tokens.clone()));
        head.put("tokenizer.ggml.token_type", &Value::I32s(types));
        head.put("tokenizer.ggml.add_space_prefix", &Value::Bool(begins_with_space(&json)));
        if let Some(id) = unknown.and_then(|token| vocabulary.id(token)) {
            head.put("tokenizer.ggml.unknown_token_id", &Value::U32(id));
        }
    } else {
        return Err(refused("has neither bytes (ByteLevel) nor byte_fallback"));
    }
    put_roles(head, tokenizer);
    Ok(())
}

/// The tokens that have a role, and the chat template.
fn put_roles(head: &mut Head, tokenizer: &Tokenizer) {
    let ends = tokenizer.stop_tokens().in_order();
    let mut id = |name: &str, id: Option<u32>| {
        if let Some(id) = id {
            head.put(&format!("tokenizer.ggml.{name}_token_id"), &Value::U32(id));
        }
    };
    id("bos", tokenizer.bos());
    id("padding", tokenizer.pad());
    for (name, &end) in ["eos", "eot", "eom"].into_iter().zip(&ends) {
        id(name, Some(end));
    }
    head.put("tokenizer.ggml.add_bos_token", &Value::Bool(tokenizer.begins_with_bos()));
    head.put("tokenizer.ggml.add_eos_token", &Value::Bool(false));
    if let Some(template) = tokenizer.chat_template() {
        head.put("tokenizer.chat_template", &Value::Text(template.source().to_owned()));
    }
}

/// An error about a tokenizer that llama.cpp does not have.
fn refused(what: &str) -> Error {
    Error::setup(format!(
        "the tokenizer {what}; llama.cpp has byte-level BPE and SentencePiece's BPE, so the model cannot be a GGUF file"
    ))
}

/// The beginning of a value, for a message.
fn short(value: &Json) -> String {
    let text = value.to_string();
    match text.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The tokens of all embeddings.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl Vocabulary {
    fn read(json: &Json, rows: usize) -> Result<Self> {
        let mut by_id: BTreeMap<usize, (String, i32)> = BTreeMap::new();
        let id_of = |id: Option<u64>, token: &str| -> Result<usize> {
            let id = id.and_then(|id| usize::try_from(id).ok());
            id.filter(|&id| id < rows).ok_or_else(|| {
                Error::setup(format!(
                    "the tokenizer's `{token}` has no embedding: the model has {rows}, and llama.cpp asks for one for each token"
                ))
            })
        };
        for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            by_id.insert(id_of(id.as_u64(), token)?, (token.clone(), NORMAL));
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let token = added["content"].as_str().unwrap_or_default();
            let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
            by_id.insert(id_of(added["id"].as_u64(), token)?, (token.to_owned(), kind));
        }
        // Embeddings that no token has: models have some more than their tokenizers, for the sake of round numbers.
        let token = |id| by_id.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
        let (tokens, types) = (0..rows).map(token).unzip();
        Ok(Self { tokens, types })
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.tokens.iter().position(|other| other == token).map(|id| id as u32)
    }
}

/// The merges, each as its two halves, in either form that files have.
fn merges(model: &Json) -> Result<Vec<(&str, &str)>> {
    fn merge(merge: &Json) -> Option<(&str, &str)> {
        match merge {
            Json::String(text) => text.split_once(' '),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(left), Json::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        }
    }
    let found: Option<Vec<_>> = model["merges"].as_array().into_iter().flatten().map(merge).collect();
    found.ok_or_else(|| Error::file("tokenizer.json", "has merges that are no pairs of tokens"))
}

/// A score for each token: what is merged earlier has the higher one.
fn scores(tokens: &[String], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (at, (left, right)) in merges.iter().enumerate() {
        rank.entry(format!("{left}{right}")).or_insert(at);
    }
    tokens.iter().map(|token| rank.get(token).map_or(NEVER_MADE, |&rank| -(rank as f32))).collect()
}

/// Whether a token stands for a byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// Whether a text gets a space before its first word.
fn begins_with_space(json: &Json) -> bool {
    let prepended = has_type(&json["normalizer"], "Prepend");
    let metaspace = steps(&json["pre_tokenizer"]).into_iter().any(|step| {
        step["type"] == "Metaspace"
            && match step["prepend_scheme"].as_str() {
                Some(scheme) => scheme != "never",
                None => step["add_prefix_space"] != false,
            }
    });
    prepended || metaspace
}

/// The steps of a normalizer, pre-tokenizer or decoder, which may be a sequence of them.
pub(super) fn steps(value: &Json) -> Vec<&Json> {
    for key in ["normalizers", "pretokenizers", "decoders"] {
        if let Some(list) = value[key].as_array() {
            return list.iter().flat_map(steps).collect();
        }
    }
    if value.is_object() { vec![value] } else { Vec::new() }
}

fn has_type(value: &Json, kind: &str) -> bool {
    steps(value).into_iter().any(|step| step["type"] == kind)
}

/// Texts that are cut in different ways by tokenizers that look alike.
pub(crate) const DIFFICULT: [&str; 8] = [
    "Hello, world! It's the year 2026; 12345678 + 9 = ?",
    "  two spaces, a\ttab\n\n\nand three lines\r\n  def f(x):\n\treturn x**2",
    "naïve café, Ångström, ﬁne, e\u{301}, ½",
    "你好，世界。こんにちは 안녕하세요 Привет שלום مرحبا",
    "🙂👩‍👩‍👧 ∑∫√ →←",
    "I'LL they'Ve WE'RE don't—won’t",
    "https://example.org/a_b?c=d&e=%20f#g snake_case CamelCase",
    " ",
];

/// A text that two tokenizers do not cut alike.
pub(crate) fn difference<'a>(
    one: &Tokenizer,
    other: &Tokenizer,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Option<&'a str>> {
    let mut seen = HashSet::new();
    for text in texts {
        if seen.insert(text) && one.encode(text)? != other.encode(text)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

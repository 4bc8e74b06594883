//! `tokenizer.json` and `tokenizer_config.json` from a GGUF file's metadata.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::pre::{self, Pre};
use crate::tokenizer::TokenizerFiles;
use crate::{Error, Result};

/// llama.cpp's kinds of tokens.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// What both kinds of tokenizers are made of.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    /// One for each token.
    types: Vec<u64>,
}

impl Vocabulary<'_> {
    /// Token to id; where a text occurs twice, the first id counts.
    fn to_json(&self) -> Value {
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            vocab.entry(*token).or_insert_with(|| id.into());
        }
        Value::Object(vocab)
    }

    /// Tokens that are found in text before anything else happens to it.
    fn added(&self) -> Value {
        let added = self.tokens.iter().zip(&self.types).enumerate();
        added
            .filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
            .map(|(id, (token, &kind))| {
                json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": kind != USER_DEFINED,
                })
            })
            .collect()
    }
}

/// The files; `rows` is the number of the model's embeddings, which may be more than there are tokens.
pub(super) fn files(metadata: &Metadata, rows: u64) -> Result<TokenizerFiles> {
    let key = "tokenizer.ggml.model";
    let model = metadata.need(key, metadata.text(key)?)?;
    let key = "tokenizer.ggml.tokens";
    let tokens = metadata.need(key, metadata.texts(key)?)?;
    if tokens.len() as u64 > rows {
        return Err(metadata.bad(format!("has {} tokens and embeddings for {rows}", tokens.len())));
    }
    let types = metadata.u64s("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(metadata.bad(format!("has {} tokens and {} token types", tokens.len(), types.len())));
    }
    let vocabulary = Vocabulary { tokens, types };
    let (mut tokenizer, add_bos) = match model {
        "gpt2" => {
            let pre = cut(metadata)?;
            (byte_level(metadata, &vocabulary, pre)?, pre.add_bos)
        }
        "llama" => (sentence_piece(metadata, &vocabulary)?, true),
        other => {
            return Err(metadata.bad(format!(
                "has a tokenizer of the kind `{other}`; `gpt2` (byte-level BPE) and `llama` (SentencePiece) are read. \
                 Take the model as a Hugging Face folder"
            )));
        }
    };
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
    let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let special = Special::read(metadata, &vocabulary, model == "llama")?;
    if let Some(object) = tokenizer.as_object_mut() {
        object.insert("post_processor".into(), special.template(add_bos, add_eos).unwrap_or(Value::Null));
    }

    let mut config = Map::new();
    // The class that takes tokenizer.json as it is.
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    for (name, token) in
        [("bos_token", special.bos), ("eos_token", special.eos), ("pad_token", special.pad), ("unk_token", special.unk)]
    {
        if let Some((_, token)) = token {
            config.insert(name.into(), token.into());
        }
    }
    config.insert("add_bos_token".into(), add_bos.into());
    config.insert("add_eos_token".into(), add_eos.into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    let architecture = metadata.text("general.architecture")?.unwrap_or_default();
    if let Some(length) = metadata.u64(&format!("{architecture}.context_length"))? {
        config.insert("model_max_length".into(), length.into());
    }
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }

    let text = |value: &Value, pretty: bool| {
        if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) }
            .map_err(|e| Error::Other(Box::new(e)))
    };
    Ok(TokenizerFiles {
        files: BTreeMap::from([
            ("tokenizer.json".into(), text(&tokenizer, false)?),
            ("tokenizer_config.json".into(), text(&Value::Object(config), true)?),
        ]),
    })
}

/// The tokens that have a role, with their ids.
struct Special<'a> {
    bos: Option<(u64, &'a str)>,
    eos: Option<(u64, &'a str)>,
    pad: Option<(u64, &'a str)>,
    unk: Option<(u64, &'a str)>,
}

impl<'a> Special<'a> {
    fn read(metadata: &Metadata, vocabulary: &Vocabulary<'a>, sentence_piece: bool) -> Result<Self> {
        let token =
            |name: &str, default: Option<u64>| {
                let key = format!("tokenizer.ggml.{name}_token_id");
                let Some(id) = metadata.u64(&key)?.or(default) else {
                    return Ok(None);
                };
                let token = usize::try_from(id).ok().and_then(|i| vocabulary.tokens.get(i));
                match token {
                    Some(token) => Ok(Some((id, *token))),
                    None => Err(metadata
                        .bad(format!("metadata `{key}` is {id}, and there are {} tokens", vocabulary.tokens.len()))),
                }
            };
        // What llama.cpp takes where a file does not say.
        let default = |id: u64| (sentence_piece && vocabulary.tokens.len() > 2).then_some(id);
        Ok(Self {
            bos: token("bos", default(1))?,
            eos: token("eos", default(2))?,
            pad: token("padding", None)?,
            unk: token("unknown", default(0))?,
        })
    }

    /// The step that puts begin and end tokens around a text, where the model wants them.
    fn template(&self, add_bos: bool, add_eos: bool) -> Option<Value> {
        let bos = self.bos.filter(|_| add_bos);
        let eos = self.eos.filter(|_| add_eos);
        if bos.is_none() && eos.is_none() {
            return None;
        }
        let around = |texts: &[(&str, u8)]| {
            let mut steps = Vec::new();
            for &(name, type_id) in texts {
                let special = |t: (u64, &str)| json!({"SpecialToken": {"id": t.1, "type_id": type_id}});
                steps.extend(bos.map(special));
                steps.push(json!({"Sequence": {"id": name, "type_id": type_id}}));
                steps.extend(eos.map(special));
            }
            steps
        };
        let tokens: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|(id, token)| {
                let entry = json!({"id": token, "ids": [id], "tokens": [token]});
                (token.to_string(), entry)
            })
            .collect();
        Some(json!({
            "type": "TemplateProcessing",
            "single": around(&[("A", 0)]),
            "pair": around(&[("A", 0), ("B", 1)]),
            "special_tokens": tokens,
        }))
    }
}

/// The rules that text is cut by.
fn cut(metadata: &Metadata) -> Result<&'static Pre> {
    let name = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    pre::named(name).ok_or_else(|| {
        metadata.bad(format!(
            "cuts text by the rules `{name}` (tokenizer.ggml.pre), which are not known here; known are {}. \
             Take the model as a Hugging Face folder",
            pre::names()
        ))
    })
}

/// Byte-level BPE, GPT-2's kind.
fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary<'_>, pre: &Pre) -> Result<Value> {
    let key = "tokenizer.ggml.merges";
    let known = id_of(vocabulary);
    let mut merges = Vec::new();
    for merge in metadata.need(key, metadata.texts(key)?)? {
        // The second half never begins with a space: spaces are written as another letter.
        let parts = merge.split_once(' ').filter(|(a, b)| {
            known.contains_key(a) && known.contains_key(b) && known.contains_key(format!("{a}{b}").as_str())
        });
        let Some((left, right)) = parts else {
            return Err(
                metadata.bad(format!("the merge {merge:?} does not join two tokens to a third; the file is damaged"))
            );
        };
        merges.push(json!([left, right]));
    }
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre.to_json(),
        "post_processor": null,
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary.to_json(),
            "merges": merges,
        },
    }))
}

/// SentencePiece's BPE with byte fallback, in the form that Hugging Face's tokenizers of Llama 2 and Mistral have.
fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata.need(key, metadata.f32s(key)?)?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(metadata.bad(format!("has {} tokens and {} token scores", vocabulary.tokens.len(), scores.len())));
    }
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unk = metadata.u64("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    let unk = usize::try_from(unk).ok().and_then(|i| vocabulary.tokens.get(i));

    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unk,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.to_json(),
            "merges": merges_by_score(vocabulary, &scores),
        },
    }))
}

/// The merges that SentencePiece's scores stand for: a piece of a higher score is made earlier, from
/// any two pieces that it consists of; among equals, the longer first half goes first.
fn merges_by_score(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<Value> {
    let ids = id_of(vocabulary);
    let mut merges = Vec::new();
    for (token, &score) in vocabulary.tokens.iter().zip(scores) {
        for (chars, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((score, chars, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    merges.into_iter().map(|(_, _, left, right)| json!([left, right])).collect()
}

fn id_of<'a>(vocabulary: &Vocabulary<'a>) -> HashMap<&'a str, usize> {
    let mut ids = HashMap::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        ids.entry(*token).or_insert(id);
    }
    ids
}

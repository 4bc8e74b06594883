//! Text to token ids and back, and the chat templates that make text of conversations.
//!
//! A text becomes the tokens that transformers makes of it, and a template renders what it renders there, or is refused.
//! [`StopTokens`] is the one notion of where an answer ends.

mod added;
mod borders;
mod config;
mod encode;
mod form;
mod limits;
mod names;
mod new_tokens;
mod stop;
mod streaming;
mod template;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod unrendered;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{AddedToken, PostProcessorWrapper};

pub use config::TokenizerConfig;
pub(crate) use form::{Form, Forms};
pub use limits::Limits;
pub(crate) use names::Names;
pub use new_tokens::NewTokens;
pub use stop::StopTokens;
pub use streaming::Streaming;
pub use template::{ChatTemplate, Conversation, Message, Object, Rendered};
pub(crate) use template::{Prepared, json_size};

use crate::files::is_lfs_pointer;
use crate::{Error, Result};

/// The files beside a checkpoint's weights that belong to its tokenizer, by file name:
/// `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja` …
///
/// They are read from the base checkpoint (or made from a GGUF file's metadata) and carried,
/// byte for byte, into every checkpoint that is written.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// File name to content.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl TokenizerFiles {
    /// A JSON file's content, or `None` where there is no such file.
    fn json(&self, name: &str) -> Result<Option<Value>> {
        self.files
            .get(name)
            .map(|bytes| serde_json::from_slice(bytes).map_err(|e| Error::file(name, unread(bytes, &e.to_string()))))
            .transpose()
    }
}

/// The names of the files that another one may be given for.
const TOKENIZER: &str = "tokenizer.json";
const TEMPLATE: &str = "chat_template.jinja";

/// The special tokens that a chat template may use by name.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A tokenizer with its special tokens and its chat template. A clone shares the vocabulary.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    stop: StopTokens,
    special: BTreeMap<String, String>,
    /// Every token that decoding skips, by its text.
    special_texts: BTreeMap<String, u32>,
    template: Option<ChatTemplate>,
    vocab_size: usize,
    /// The tokens that text is split at before it is given to the model.
    added: BTreeMap<u32, AddedToken>,
    /// Whether a text's beginning is not encoded as the same text in the middle of another.
    beginning_differs: bool,
    begins_with_bos: bool,
    /// What the model takes that the ids are for.
    limits: Limits,
}

impl Tokenizer {
    /// Builds a tokenizer from `tokenizer.json`, and from those of `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja`, `generation_config.json` and `config.json` that are there.
    ///
    /// # Errors
    /// Where `tokenizer.json` is missing or broken, a special token is not in the vocabulary,
    /// or the chat template does not compile. A file is named as in `files`, without its folder.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self> {
        let (mut inner, config, special) = Self::vocabulary(files)?;
        let id = |name: &str| -> Result<Option<u32>> {
            let Some(token) = special.get(name) else {
                return Ok(None);
            };
            let id = inner.token_to_id(token).ok_or_else(|| {
                Error::file(
                    "tokenizer_config.json",
                    format!("the {name} `{token}` is not in the vocabulary of tokenizer.json"),
                )
            })?;
            Ok(Some(id))
        };
        let (bos, eos) = (id("bos_token")?, id("eos_token")?);
        let pad = id("pad_token")?.or(eos);

        let source = template_source(files, &config)?;
        let template = source.map(|source| ChatTemplate::new(&source, special.clone())).transpose()?;
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let added: BTreeMap<u32, AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
        let special_texts = added
            .iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(&id, token)| (token.content.clone(), id))
            .collect();
        let empty = inner.encode_fast("", true).map_err(|e| Error::file(TOKENIZER, e.to_string()))?;
        let begins_with_bos = bos.is_some() && empty.get_ids().first().copied() == bos;
        // It moves the offsets of tokens, and puts special tokens around a text, which is done here.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let mut tokenizer = Self {
            inner: Arc::new(inner),
            bos,
            eos,
            pad,
            stop: StopTokens::default(),
            special,
            special_texts,
            template,
            vocab_size,
            added,
            beginning_differs: false,
            begins_with_bos,
            limits: Limits::default(),
        };
        tokenizer.beginning_differs = tokenizer.treats_beginnings_apart()?;
        let config = files.json("config.json")?.unwrap_or_default();
        tokenizer.with_stop_tokens_of(files.json("generation_config.json")?.as_ref(), &config)
    }

    /// The tokenizer of the library with all tokens that the files name, `tokenizer_config.json`, and the special tokens that have a
    /// name.
    fn vocabulary(files: &TokenizerFiles) -> Result<(tokenizers::Tokenizer, Value, BTreeMap<String, String>)> {
        let bytes = files.files.get(TOKENIZER).ok_or_else(|| {
            Error::file(
                TOKENIZER,
                format!(
                    "is not there, and it is the one tokenizer format that is read here (there is: {}); \
                     `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` in Python's transformers writes it",
                    listed(files.files.keys())
                ),
            )
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::file(TOKENIZER, unread(bytes, &e.to_string())))?;
        // Cutting and padding are done on samples and batches.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);

        let config = files.json("tokenizer_config.json")?.unwrap_or_default();
        let map = files.json("special_tokens_map.json")?.unwrap_or_default();
        let mut special = BTreeMap::new();
        for name in NAMED {
            let token = [&config, &map].iter().find_map(|file| token_text(&file[name]));
            if let Some(token) = token {
                special.insert(name.to_owned(), token);
            }
        }
        added::add(&mut inner, &config, &special).map_err(|e| Error::file("tokenizer_config.json", e.to_string()))?;
        Ok((inner, config, special))
    }

    /// The same tokenizer with another chat template.
    ///
    /// # Errors
    /// Where the template does not compile.
    pub fn with_chat_template(mut self, source: &str) -> Result<Self> {
        self.template = Some(ChatTemplate::new(source, self.special.clone())?);
        self.find_own_stop_tokens();
        Ok(self)
    }

    /// The same tokenizer, whose chat template takes `seconds` after 1970 (UTC) for now.
    pub fn at(mut self, seconds: i64) -> Self {
        self.template = self.template.map(|t| t.at(seconds));
        self
    }

    /// The moment that the chat template takes for now, where the text depends on it: what a run that is
    /// resumed gives to [`Tokenizer::at`].
    pub fn now(&self) -> Option<i64> {
        self.template.as_ref().filter(|t| t.uses_date()).map(ChatTemplate::now)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| Error::setup(format!("the tokenizer cannot decode: {e}")))
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that fills a batch up: the padding token, else the end-of-text token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The tokens that end an answer.
    pub fn stop_tokens(&self) -> &StopTokens {
        &self.stop
    }

    /// Whether the tokenizer itself puts [`Tokenizer::bos`] in front of a text.
    pub fn begins_with_bos(&self) -> bool {
        self.begins_with_bos
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as it stands in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a token is one that decoding skips.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special_texts.values().any(|&special| special == id)
    }

    /// The first stop token that is written out in `text`; of two at one place the longer.
    pub(crate) fn first_stop(&self, text: &str) -> Option<Range<usize>> {
        self.stop_texts()
            .filter_map(|stop| text.find(&stop).map(|at| at..at + stop.len()))
            .min_by_key(|r| (r.start, Reverse(r.end)))
    }

    /// The last stop token that is written out in `text`.
    pub(crate) fn last_stop(&self, text: &str) -> Option<Range<usize>> {
        self.stop_texts().filter_map(|stop| text.rfind(&stop).map(|at| at..at + stop.len())).max_by_key(|r| r.end)
    }

    fn stop_texts(&self) -> impl Iterator<Item = String> {
        self.stop.iter().filter_map(|&id| self.token(id)).filter(|text| !text.is_empty())
    }

    /// The special token (one that decoding skips) with which `text` begins, and its length.
    pub(crate) fn leading_special(&self, text: &str) -> Option<(u32, usize)> {
        self.special_where(|token| text.starts_with(token))
    }

    /// The special token with which `text` ends.
    pub(crate) fn special_at_end(&self, text: &str) -> Option<u32> {
        self.special_where(|token| text.ends_with(token)).map(|(id, _)| id)
    }

    /// The longest special token that satisfies a condition, and its length.
    fn special_where(&self, matches: impl Fn(&str) -> bool) -> Option<(u32, usize)> {
        self.special_texts
            .iter()
            .filter(|(text, _)| matches(text))
            .map(|(text, &id)| (id, text.len()))
            .max_by_key(|&(id, len)| (len, Reverse(id)))
    }

    /// The chat template, if the checkpoint has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The number of ids: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// A number that stands for what ids mean: of a tokenizer whose tokens are others, or have other ids, it is another.
    pub fn vocabulary_sum(&self) -> u32 {
        (0..self.vocab_size as u32).fold(0, |sum, id| {
            let token = self.token(id).unwrap_or_default();
            crc32c::crc32c_append(crc32c::crc32c_append(sum, token.as_bytes()), &id.to_le_bytes())
        })
    }
}

/// Why a file of a tokenizer cannot be read, and what to do.
fn unread(bytes: &[u8], error: &str) -> String {
    match is_lfs_pointer(bytes) {
        true => "is a Git LFS pointer, not the file itself: run `git lfs pull` in the model's folder".to_owned(),
        false => format!("cannot be read ({error}): it is damaged or was not copied completely: fetch it again"),
    }
}

/// A token in a config file: a string, or an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// The chat template's source: its own file, else the one in `tokenizer_config.json` (a string, or
/// a list of named templates, of which `default` is meant).
fn template_source(files: &TokenizerFiles, config: &Value) -> Result<Option<String>> {
    if let Some(bytes) = files.files.get(TEMPLATE) {
        return match std::str::from_utf8(bytes) {
            Ok(source) => Ok(Some(source.to_owned())),
            Err(_) => Err(Error::file(TEMPLATE, "is not UTF-8 text")),
        };
    }
    match &config["chat_template"] {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(named) => {
            let name = |entry: &Value| entry["name"].as_str().map(str::to_owned);
            let chosen = named.iter().find(|entry| entry["name"] == "default").or(if named.len() == 1 {
                named.first()
            } else {
                None
            });
            match chosen.and_then(|entry| entry["template"].as_str()) {
                Some(source) => Ok(Some(source.to_owned())),
                None => Err(Error::file(
                    "tokenizer_config.json",
                    format!(
                        "`chat_template` is a list without a template named `default` (it has: {})",
                        listed(named.iter().filter_map(name))
                    ),
                )),
            }
        }
        _ => Err(Error::file("tokenizer_config.json", "`chat_template` must be a string or a list of named templates")),
    }
}

/// `a`, `b` and so on, for messages.
pub(crate) fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("`{}`", n.as_ref())).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

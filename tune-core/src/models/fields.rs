//! `config.json` with every key accounted for: what is read is noted, and what is left over and could change what the
//! model computes is an error that names it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::kernels::Activation;
use crate::{Error, Result};

/// Keys that say nothing about what a model computes: where it is from, its tokens, how it is to be saved or to generate,
/// how fresh weights are drawn, how many scores a head for sequences has.
const INERT: &[&str] = &[
    "architectures",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "decoder_start_token_id",
    "do_sample",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_llama_config",
    "initializer_range",
    "keys_to_ignore_at_inference",
    "label2id",
    "language",
    "length_penalty",
    "max_length",
    "min_length",
    "model_max_length",
    "model_type",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "use_cache",
];

/// Typed access to a JSON object, with messages that name the field.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// The file that it is read from, for messages, where there is one.
    file: Option<&'a Path>,
    /// What stands before a field's name in a message.
    path: String,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Fields<'a> {
    /// The content of `config.json`, which is read from `file`; `path` stands before the names of its fields there.
    ///
    /// # Errors
    /// It is no object.
    pub(super) fn new(json: &'a Value, file: Option<&'a Path>, path: String) -> Result<Self> {
        match json {
            Value::Object(object) => Ok(Self { object, file, path, read: RefCell::default() }),
            other => {
                let what = if path.is_empty() { "its content" } else { path.trim_end_matches('.') };
                Err(about(file, format!("{what} must be an object, not {other}")))
            }
        }
    }

    /// An error about the file, which names it where there is one.
    pub(super) fn error(&self, what: impl Into<String>) -> Error {
        about(self.file, what)
    }

    /// An error about a field.
    pub(super) fn bad(&self, name: &str, what: impl std::fmt::Display) -> Error {
        self.error(format!("`{}{name}` {what}", self.path))
    }

    pub(super) fn get(&self, name: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(name);
        self.object.get(name).filter(|v| !v.is_null())
    }

    fn wrong(&self, name: &str, wanted: &str, found: &Value) -> Error {
        self.bad(name, format!("must be {wanted}, not {found}"))
    }

    fn missing(&self, name: &str) -> Error {
        self.bad(name, "is missing")
    }

    /// An object inside of this one.
    pub(super) fn object(&self, name: &'static str) -> Result<Option<Fields<'a>>> {
        self.get(name).map(|value| Fields::new(value, self.file, format!("{}{name}.", self.path))).transpose()
    }

    pub(super) fn optional_text(&self, name: &'static str) -> Result<Option<&'a str>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        v.as_str().map(Some).ok_or_else(|| self.wrong(name, "a string", v))
    }

    pub(super) fn text(&self, name: &'static str) -> Result<&'a str> {
        self.optional_text(name)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn optional_size(&self, name: &'static str) -> Result<Option<usize>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_u64().map(usize::try_from) {
            Some(Ok(n)) if (1..1 << 31).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(name, "a positive integer", v)),
        }
    }

    pub(super) fn size(&self, name: &'static str) -> Result<usize> {
        self.optional_size(name)?.ok_or_else(|| self.missing(name))
    }

    /// A size that is written out in memory, once for each.
    pub(super) fn count(&self, name: &'static str, most: usize) -> Result<usize> {
        match self.size(name)? {
            n if n <= most => Ok(n),
            n => Err(self.bad(name, format!("is {n}; more than {most} are not supported"))),
        }
    }

    pub(super) fn optional_number(&self, name: &'static str) -> Result<Option<f64>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.wrong(name, "a positive number", v)),
        }
    }

    pub(super) fn number(&self, name: &'static str) -> Result<f64> {
        self.optional_number(name)?.ok_or_else(|| self.missing(name))
    }

    /// A number that may be written as null, which is not the same as not at all.
    pub(super) fn number_or_null(&self, name: &'static str, default: f64) -> Result<Option<f64>> {
        if self.has(name) { self.optional_number(name) } else { Ok(Some(default)) }
    }

    /// Whether a field is written, be it as null.
    pub(super) fn has(&self, name: &'static str) -> bool {
        self.object.contains_key(name)
    }

    /// An integer that may be 0.
    pub(super) fn integer(&self, name: &'static str) -> Result<Option<usize>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_u64().map(usize::try_from) {
            Some(Ok(n)) => Ok(Some(n)),
            _ => Err(self.wrong(name, "an integer of at least 0", v)),
        }
    }

    pub(super) fn bool(&self, name: &'static str, default: bool) -> Result<bool> {
        let Some(v) = self.get(name) else { return Ok(default) };
        v.as_bool().ok_or_else(|| self.wrong(name, "true or false", v))
    }

    /// A list, each element of which `of` takes; `wanted` says what they must be.
    pub(super) fn list<T>(
        &self,
        name: &'static str,
        wanted: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        let list = v.as_array().and_then(|list| list.iter().map(of).collect());
        list.map(Some).ok_or_else(|| self.wrong(name, wanted, v))
    }

    /// Settings of other models that must be off: null, false or 0.
    pub(super) fn off(&self, names: &[&'static str]) -> Result<()> {
        for name in names {
            match self.get(name) {
                Some(v) if !is_off(v) => {
                    return Err(self.bad(name, format!("is {v}, which is not supported for this model_type")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Settings that this family does not use.
    pub(super) fn unused(&self, names: &[&'static str]) {
        self.read.borrow_mut().extend(names);
    }

    /// The function of the gate; `default` where nothing is said.
    pub(super) fn activation(&self, name: &'static str, default: Activation) -> Result<Activation> {
        match self.optional_text(name)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some(other) => {
                Err(self.bad(name, format!("is \"{other}\"; supported are \"silu\" and \"gelu_pytorch_tanh\"")))
            }
        }
    }

    /// That nothing is left which could change what the model computes.
    ///
    /// # Errors
    /// A key that nobody read, which is not off and not known to change nothing.
    pub(super) fn finish(&self) -> Result<()> {
        let read = self.read.borrow();
        let unknown = self.object.iter().find(|(name, value)| {
            let known = read.contains(name.as_str()) || INERT.contains(&name.as_str());
            let named = name.starts_with('_') || name.starts_with("unsloth");
            !known && !named && !is_off(value)
        });
        match unknown {
            None => Ok(()),
            Some((name, value)) => {
                let value = if value.is_object() { "set".to_owned() } else { value.to_string() };
                Err(self.bad(
                    name,
                    format!(
                        "is {value}, and nothing is known of such a setting here: the model might compute something \
                         else with it; take it out of config.json if it changes nothing"
                    ),
                ))
            }
        }
    }
}

fn about(file: Option<&Path>, what: impl Into<String>) -> Error {
    match file {
        Some(file) => Error::file(file, what),
        None => Error::setup(what),
    }
}

/// Whether a setting says that something is not there: null, false, 0, or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

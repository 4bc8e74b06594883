//! The tokens that end an answer: one notion for training, for generation and for what is written.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Conversation, Forms, Message, Tokenizer};
use crate::{Error, Result};

const KEY: &str = "eos_token_id";

/// Where transformers looks below `config.json` itself.
const PARTS: [&str; 3] = ["decoder", "generator", "text_config"];

/// What transformers takes from `config.json` where there is no `generation_config.json`: a new one must keep it.
const TAKEN_FROM_CONFIG: [&str; 14] = [
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_length",
    "min_length",
    "suppress_tokens",
];

/// The tokens that end an answer: those that the model's files list, the tokenizer's end of text, and the chat
/// template's end of turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopTokens {
    /// What `generation_config.json`, or `config.json` in its place, lists.
    listed: BTreeSet<u32>,
    /// The tokenizer's end of text and the template's end of turn, which training teaches.
    own: Vec<u32>,
    all: BTreeSet<u32>,
}

impl StopTokens {
    fn new(listed: BTreeSet<u32>, own: Vec<u32>) -> Self {
        let all = listed.iter().chain(&own).copied().collect();
        Self { listed, own, all }
    }

    /// Whether an answer ends with this token.
    pub fn contains(&self, id: &u32) -> bool {
        self.all.contains(id)
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &u32> + Clone {
        self.all.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them, those that training teaches first: the end of text, the end of a turn, then what else is listed.
    pub(crate) fn in_order(&self) -> Vec<u32> {
        self.own.iter().chain(self.listed.iter().filter(|id| !self.own.contains(id))).copied().collect()
    }

    /// The end of text and the end of a turn, which training teaches.
    pub(crate) fn taught(&self) -> &[u32] {
        &self.own
    }

    /// Those at which other programs do not stop: the model's files do not list them.
    pub fn unlisted(&self) -> Vec<u32> {
        self.own.iter().copied().filter(|id| !self.listed.contains(id)).collect()
    }

    /// `config.json` and `generation_config.json` of a model that is trained with these: the base's, with all of
    /// these among their `eos_token_id`.
    #[must_use]
    pub fn export(&self, config: &Value, generation: Option<&Value>) -> (Value, Value) {
        let mut generation = generation.cloned().unwrap_or_else(|| {
            let taken = TAKEN_FROM_CONFIG.iter().chain(&[KEY]).filter_map(|&key| {
                let value = config.get(key).filter(|value| !value.is_null())?;
                Some((key.to_owned(), value.clone()))
            });
            Value::Object(taken.collect::<Map<_, _>>())
        });
        let mut config = config.clone();
        for file in [&mut config, &mut generation] {
            if let Some(object) = file.as_object_mut() {
                let with_all = self.added_to(object.get(KEY).unwrap_or(&Value::Null));
                if !with_all.is_null() {
                    object.insert(KEY.to_owned(), with_all);
                }
            }
        }
        (config, generation)
    }

    /// An `eos_token_id` with all of these in it; as it is where it has them.
    fn added_to(&self, value: &Value) -> Value {
        let mut ids = match value {
            Value::Array(ids) => ids.clone(),
            Value::Null => Vec::new(),
            id => vec![id.clone()],
        };
        let before = ids.len();
        let ordered = self.listed.iter().chain(&self.own);
        for &id in ordered {
            if !ids.contains(&id.into()) {
                ids.push(id.into());
            }
        }
        match ids.as_slice() {
            _ if ids.len() == before => value.clone(),
            [one] => one.clone(),
            _ => json!(ids),
        }
    }
}

/// The ids that a model's files list, as transformers finds them: what `generation_config.json` says, be it nothing;
/// only where there is no such file, what `config.json` says.
fn listed(generation: Option<&Value>, config: &Value) -> Result<Vec<i64>> {
    if let Some(generation) = generation {
        return ids("generation_config.json", generation);
    }
    let parts = PARTS.iter().filter_map(|part| config.get(part));
    for place in std::iter::once(config).chain(parts) {
        let found = ids("config.json", place)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn ids(file: &str, object: &Value) -> Result<Vec<i64>> {
    let value = object.get(KEY).unwrap_or(&Value::Null);
    let found = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(Value::as_i64).collect(),
        id => id.as_i64().map(|id| vec![id]),
    };
    found.ok_or_else(|| Error::file(file, format!("`{KEY}` is {value}; a token's id or a list of ids was expected")))
}

impl Tokenizer {
    /// The same tokenizer, which knows the stop tokens that the files of a model list: `generation_config.json`, or
    /// `config.json` where there is no such file. The first of them is the end-of-text token where the tokenizer
    /// names none.
    ///
    /// # Errors
    /// An `eos_token_id` that is neither an id nor a list of ids; a file is named without its folder.
    pub fn with_stop_tokens_of(mut self, generation_config: Option<&Value>, config: &Value) -> Result<Self> {
        let listed = listed(generation_config, config)?;
        // What is none of the vocabulary is never met: -1 stands for none in some configs.
        let listed = listed.into_iter().filter_map(|id| u32::try_from(id).ok());
        let listed: Vec<u32> = listed.filter(|&id| self.token(id).is_some()).collect();
        self.eos = self.eos.or(listed.first().copied());
        self.pad = self.pad.or(self.eos);
        self.stop.listed = listed.into_iter().collect();
        self.find_own_stop_tokens();
        Ok(self)
    }

    /// To be called when the end of text or the template has changed.
    pub(super) fn find_own_stop_tokens(&mut self) {
        let mut own: Vec<u32> = self.eos.into_iter().collect();
        own.extend(self.end_of_turn().filter(|id| !own.contains(id)));
        self.stop = StopTokens::new(std::mem::take(&mut self.stop.listed), own);
    }

    /// The special token that closes an answer as the chat template renders it.
    fn end_of_turn(&self) -> Option<u32> {
        // Words that no template writes by itself.
        const QUESTION: &str = "Qzwv";
        const ANSWER: &str = "Kxjq";
        let template = self.template.as_ref()?;
        let forms = Forms::of(template);
        let message = |role: &str, text: &str| -> Message {
            let content = forms.choose(role).content(text);
            [("role".to_owned(), role.into()), ("content".to_owned(), content)].into_iter().collect()
        };
        let asked = Conversation::new(vec![message("user", QUESTION)]);
        let answered = Conversation::new(vec![message("user", QUESTION), message("assistant", ANSWER)]);
        let text = template.render(&answered, false).ok()?;
        let before = &text[..text.find(QUESTION)?];
        let after = text[text.rfind(ANSWER)? + ANSWER.len()..].trim_start();
        let (id, length) = self.leading_special(after)?;
        let closing = &after[..length];
        // A token that also begins turns says nothing of where one ends.
        let (bare, prompt) = (template.render(&asked, false), template.render(&asked, true));
        let header = prompt.ok().zip(bare.ok()).and_then(|(prompt, bare)| Some(prompt.strip_prefix(&bare)?.to_owned()));
        let begins_turns = before.contains(closing) || header.is_some_and(|header| header.contains(closing));
        (!begins_turns).then_some(id)
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;

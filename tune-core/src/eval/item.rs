//! What a model is measured on: lines of JSON, each a text, a question or a choice.

use std::path::Path;

use fancy_regex::Regex;
use jsonschema::Validator;
use serde_json::{Map, Value};
use tune_config::files;

use crate::tokenizer::{Conversation, Message, Tokenizer};
use crate::{Error, Result, hub};

/// No file of items is longer, in bytes.
const LARGEST: u64 = 1 << 30;

/// One thing that a model is asked, and how what it does is judged.
#[derive(Debug)]
pub struct Item {
    /// `file.jsonl:7`.
    pub origin: String,
    /// The record as it was read.
    pub record: Map<String, Value>,
    pub(super) ask: Ask,
    pub(super) judge: Judge,
}

/// What the model meets.
#[derive(Debug)]
pub(super) enum Ask {
    /// A text, which it is not asked but predicts.
    Text(String),
    /// A question, or a text to be continued where there is no chat template.
    Prompt(String),
    /// A conversation up to the answer.
    Messages(Conversation),
}

/// How it is judged.
#[derive(Debug)]
pub(super) enum Judge {
    /// By the probability of the text.
    Perplexity,
    /// By which of the choices it finds likeliest; `right` is the number of the right one.
    Choice { choices: Vec<String>, right: usize },
    /// By its answer, which must be one of these to the letter, but for white space around it.
    Exact(Vec<String>),
    /// By its answer, in which this must be found.
    Regex(Regex),
    /// By its answer, which must be JSON that this schema accepts.
    Schema(Validator),
    /// By a program.
    Program,
}

impl Item {
    /// The items of a JSON Lines file, all of them checked. `program` judges answers in place of what records say.
    ///
    /// # Errors
    /// A file that cannot be read or holds nothing; a line that is no item (it is named).
    pub fn read(path: &Path, program: bool) -> Result<Vec<Self>> {
        let path = &*hub::dataset(path)?;
        let bytes = files::read(path, LARGEST).map_err(Error::io("read", path))?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "is not UTF-8 text"))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let item = |(i, line): (usize, &str)| {
            let origin = format!("{}:{}", path.display(), i + 1);
            Self::parse(line, origin, program).map_err(|what| Error::line(path, i + 1, what))
        };
        let items = lines.map(item).collect::<Result<Vec<_>>>()?;
        match items.is_empty() {
            true => Err(Error::file(path, "holds no item")),
            false => Ok(items),
        }
    }

    fn parse(line: &str, origin: String, program: bool) -> Result<Self, String> {
        let record: Map<String, Value> =
            serde_json::from_str(line).map_err(|error| format!("a JSON object was expected: {error}"))?;
        let text = |key: &str| record.get(key).and_then(Value::as_str).map(str::to_owned);
        if let Some(text) = text("text") {
            if text.is_empty() {
                return Err("`text` is empty".to_owned());
            }
            return Ok(Self { origin, ask: Ask::Text(text), judge: Judge::Perplexity, record });
        }
        let (ask, last) = match (text("prompt"), record.get("messages")) {
            (Some(prompt), None) => (Ask::Prompt(prompt), None),
            (None, Some(messages)) => conversation(messages, record.get("tools"))?,
            _ => return Err("`text`, `prompt` (a text) or `messages` was expected, one of them".to_owned()),
        };
        let judge = match (record.get("choices"), record.get("regex"), record.get("schema")) {
            (Some(choices), _, _) => choice(choices, record.get("answer"))?,
            _ if program => Judge::Program,
            (_, Some(regex), _) => {
                let pattern = regex.as_str().ok_or("`regex` is no text")?;
                Judge::Regex(Regex::new(pattern).map_err(|error| format!("`regex`: {error}"))?)
            }
            (_, _, Some(schema)) => {
                Judge::Schema(jsonschema::validator_for(schema).map_err(|error| format!("`schema`: {error}"))?)
            }
            _ => Judge::Exact(answers(record.get("answer"), last)?),
        };
        Ok(Self { origin, record, ask, judge })
    }

    /// The metrics that it is a part of.
    pub fn metrics(&self) -> &'static [&'static str] {
        match &self.judge {
            Judge::Perplexity => &[super::PERPLEXITY, super::BITS_PER_BYTE],
            Judge::Choice { .. } => &[super::CHOICE, super::CHOICE_PER_TOKEN, super::CHOICE_PER_BYTE],
            Judge::Exact(answers) if answers[0].is_empty() => &[super::EXACT_MATCH],
            Judge::Exact(_) => &[super::EXACT_MATCH, super::ANSWER_PERPLEXITY],
            Judge::Regex(_) => &[super::REGEX],
            Judge::Schema(_) => &[super::JSON_SCHEMA],
            Judge::Program => &[super::PROGRAM],
        }
    }

    /// What the model is asked, in words: for people.
    pub fn shown(&self) -> String {
        match &self.ask {
            Ask::Text(text) | Ask::Prompt(text) => text.clone(),
            Ask::Messages(conversation) => {
                let said = |message: &Message| {
                    let of =
                        |key: &str| message.get(key).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
                    format!("{}: {}", of("role").unwrap_or_default(), of("content").unwrap_or_default())
                };
                conversation.messages.iter().map(said).collect::<Vec<_>>().join("\n")
            }
        }
    }

    /// What would be right, in words; empty where many things would be.
    pub fn expected(&self) -> String {
        match &self.judge {
            Judge::Choice { choices, right } => choices[*right].clone(),
            Judge::Exact(answers) => answers.join("\nor: "),
            Judge::Regex(regex) => format!("/{}/", regex.as_str()),
            Judge::Schema(_) => self.record.get("schema").map(Value::to_string).unwrap_or_default(),
            Judge::Perplexity | Judge::Program => String::new(),
        }
    }

    /// The tokens of what is asked, as the model meets them, up to the answer. `chat` as [`Tokenizer::prompt`] has it.
    pub(super) fn prompt(&self, tokenizer: &Tokenizer, system: Option<&str>, chat: Option<bool>) -> Result<Vec<u32>> {
        let ids = match &self.ask {
            Ask::Text(text) => tokenizer.encode(text),
            Ask::Prompt(prompt) => tokenizer.prompt(prompt, system, chat),
            Ask::Messages(conversation) => {
                let mut conversation = conversation.clone();
                let is_system = |m: &Message| m.get("role").is_some_and(|role| role == "system");
                if let (Some(system), false) = (system, conversation.messages.first().is_some_and(is_system)) {
                    let message = [("role", "system"), ("content", system)];
                    let message = message.into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect();
                    conversation.messages.insert(0, message);
                }
                tokenizer.prompt_of(conversation)
            }
        };
        ids.map_err(|error| self.error(&error))
    }

    /// The error with the place of the item.
    pub(super) fn error(&self, error: &Error) -> Error {
        Error::setup(format!("{}: {error}", self.origin))
    }
}

/// A conversation without the assistant's last answer, and that answer.
fn conversation(messages: &Value, tools: Option<&Value>) -> Result<(Ask, Option<String>), String> {
    let objects = |value: &Value, key: &str| -> Result<Vec<Message>, String> {
        let list = value.as_array().and_then(|list| list.iter().map(|entry| entry.as_object().cloned()).collect());
        list.ok_or_else(|| format!("`{key}` is no list of objects"))
    };
    let mut messages = objects(messages, "messages")?;
    let is_answer = |message: &Message| message.get("role").is_some_and(|role| role == "assistant");
    let last = messages.pop_if(|last| is_answer(last));
    if messages.is_empty() {
        return Err("`messages` asks nothing".to_owned());
    }
    let tools = tools.filter(|tools| !tools.is_null()).map(|tools| objects(tools, "tools")).transpose()?;
    let answer = last.and_then(|last| last.get("content").and_then(Value::as_str).map(str::to_owned));
    Ok((Ask::Messages(Conversation { tools, ..Conversation::new(messages) }), answer))
}

fn choice(choices: &Value, answer: Option<&Value>) -> Result<Judge, String> {
    let texts = choices.as_array().and_then(|list| list.iter().map(|c| c.as_str().map(str::to_owned)).collect());
    let choices: Vec<String> = texts.ok_or("`choices` is no list of texts")?;
    if choices.len() < 2 || choices.iter().any(String::is_empty) {
        return Err("`choices`: two texts or more were expected, none of them empty".to_owned());
    }
    let right = match answer {
        Some(Value::Number(number)) => {
            number.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < choices.len())
        }
        Some(Value::String(text)) => choices.iter().position(|choice| choice == text),
        _ => None,
    };
    let right = right.ok_or("`answer`: the right choice was expected, its text or its number from 0")?;
    Ok(Judge::Choice { choices, right })
}

fn answers(answer: Option<&Value>, last: Option<String>) -> Result<Vec<String>, String> {
    let answers = match answer {
        Some(Value::String(text)) => Some(vec![text.clone()]),
        Some(Value::Array(list)) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
        None => last.map(|last| vec![last]),
    };
    answers.filter(|answers| !answers.is_empty()).ok_or_else(|| {
        "what is right? `answer` (a text, or several in a list), `choices`, `regex`, `schema`, or a last message of the \
         assistant's was expected; or a program that judges"
            .to_owned()
    })
}

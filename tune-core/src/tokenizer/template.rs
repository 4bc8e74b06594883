//! Chat templates: Jinja programs that make the text of a conversation, rendered as
//! Python's `transformers` renders them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use tune_jinja::Rendered;
use tune_jinja::{Names, Template, Value};

use crate::{Error, Result};

/// A JSON object.
pub type Object = serde_json::Map<String, serde_json::Value>;

/// One message as the template sees it: at least `role` and, mostly, `content`.
pub type Message = Object;

/// What a template is rendered with, as the parameters of `transformers`' `apply_chat_template`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
    /// Definitions of the tools that the assistant may call (JSON schemas). The template sees them unchanged;
    /// without any it sees none.
    pub tools: Option<Vec<Object>>,
    /// Documents for the assistant to answer from, each with `title` and `text`.
    pub documents: Option<Vec<Object>>,
    /// Further names that the template reads, such as `enable_thinking` (`chat_template_kwargs` elsewhere). They
    /// stand before special tokens of the same name.
    pub arguments: Object,
}

impl Conversation {
    /// A conversation without tools, documents and arguments.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self::new(messages)
    }
}

/// The parameters of `apply_chat_template`, which cannot be names of a template's own arguments.
const PARAMETERS: [&str; 18] = [
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "conversations",
    "documents",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "self",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
];

/// A compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    template: Arc<Template>,
    source: String,
    /// `bos_token` and its kin, which templates use by name.
    special_tokens: BTreeMap<String, String>,
    /// What `strftime_now` takes for now: seconds after 1970.
    now: i64,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// A conversation in the form that templates read: made once, rendered in parts.
pub(crate) struct Prepared {
    messages: Vec<Value>,
    tools: Value,
    documents: Value,
    arguments: Vec<(String, Value)>,
    /// About how many bytes all of it has.
    size: usize,
}

impl Prepared {
    /// # Errors
    /// An argument with the name of something that is no argument; values that are nested too deep.
    pub(crate) fn new(conversation: &Conversation) -> Result<Self> {
        let Conversation { messages, tools, documents, arguments } = conversation;
        if let Some(name) = arguments.keys().find(|name| PARAMETERS.contains(&name.as_str())) {
            return Err(Error::setup(format!(
                "`{name}` cannot be an argument of a chat template: rendering itself uses the name"
            )));
        }
        let whole = || -> std::result::Result<Self, tune_jinja::Error> {
            let objects = |list: &Option<Vec<Object>>| match list {
                Some(list) => Value::list(list.iter().map(object).collect::<std::result::Result<Vec<_>, _>>()?),
                None => Ok(Value::none()),
            };
            Ok(Self {
                messages: messages.iter().map(message).collect::<std::result::Result<_, _>>()?,
                tools: objects(tools)?,
                documents: objects(documents)?,
                arguments: arguments
                    .iter()
                    .map(|(name, value)| Ok((name.clone(), Value::try_from(value)?)))
                    .collect::<std::result::Result<_, tune_jinja::Error>>()?,
                size: [Some(messages), tools.as_ref(), documents.as_ref()]
                    .into_iter()
                    .flatten()
                    .flatten()
                    .chain([arguments])
                    .map(object_size)
                    .sum(),
            })
        };
        whole().map_err(|e| Error::setup(format!("the conversation cannot be rendered: {e}")))
    }
}

/// About how many bytes an object has as JSON.
fn object_size(object: &Object) -> usize {
    object.iter().map(|(name, value)| name.len() + 6 + json_size(value)).sum::<usize>() + 2
}

/// About how many bytes a value has as JSON.
pub(crate) fn json_size(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len() + 2,
        serde_json::Value::Array(items) => items.iter().map(json_size).sum::<usize>() + 2 * items.len() + 2,
        serde_json::Value::Object(object) => object_size(object),
        _ => 8,
    }
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are visible to it by name (`bos_token`, `eos_token` …).
    ///
    /// # Errors
    /// Where the template is not valid Jinja, with the line.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let template =
            Template::new(source).map_err(|e| Error::setup(format!("the chat template is not valid: {e}")))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        Ok(Self { template: Arc::new(template), source: source.to_owned(), special_tokens, now })
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks the assistant's words with `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        self.template.marks_generation()
    }

    /// Whether the text may depend on the day on which it is rendered. A run that is to give
    /// the same result tomorrow fixes the day with [`ChatTemplate::at`].
    pub fn uses_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// The moment that `strftime_now` takes for now, in seconds after 1970 (UTC).
    /// It is the moment of compilation where [`ChatTemplate::at`] has not set another.
    pub fn now(&self) -> i64 {
        self.now
    }

    /// The same template, which takes `seconds` after 1970 (UTC) for now.
    pub fn at(self, seconds: i64) -> Self {
        Self { now: seconds, ..self }
    }

    /// The text of a conversation; with `add_generation_prompt`, up to and with the header of
    /// the answer that the model is to give.
    ///
    /// # Errors
    /// What the template itself refuses (`raise_exception`), and its mistakes.
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String> {
        let turns = conversation.messages.len();
        self.run(turns, &Prepared::new(conversation)?, add_generation_prompt, false).map(|rendered| rendered.text)
    }

    /// The text of a conversation's first `turns` messages, as [`ChatTemplate::render`] has it.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub(crate) fn render_first(
        &self,
        turns: usize,
        conversation: &Prepared,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.run(turns, conversation, add_generation_prompt, false).map(|rendered| rendered.text)
    }

    /// The text of a whole conversation and what the template marks in it as generated.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_marked(&self, conversation: &Conversation) -> Result<Rendered> {
        self.render_first_marked(conversation.messages.len(), &Prepared::new(conversation)?)
    }

    /// The text of a conversation's first `turns` messages, as [`ChatTemplate::render_marked`] has it.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub(crate) fn render_first_marked(&self, turns: usize, conversation: &Prepared) -> Result<Rendered> {
        self.run(turns, conversation, false, true)
    }

    fn run(&self, turns: usize, conversation: &Prepared, add_generation_prompt: bool, marks: bool) -> Result<Rendered> {
        let refused = |e| Error::setup(format!("the chat template refuses this conversation: {e}"));
        let mut values: Vec<(&str, Value)> =
            self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        values.extend(conversation.arguments.iter().map(|(name, value)| (name.as_str(), value.clone())));
        values.push(("messages", Value::list(conversation.messages[..turns].iter().cloned()).map_err(refused)?));
        values.push(("tools", conversation.tools.clone()));
        values.push(("documents", conversation.documents.clone()));
        values.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        let names = Names { values: &values, now: self.now, marks, size: conversation.size };
        self.template.render(&names).map_err(refused)
    }
}

/// A message as `transformers` hands it to templates: without keys that are null, and with reasoning, whatever
/// it was called, under the two names that they look for.
fn message(message: &Message) -> std::result::Result<Value, tune_jinja::Error> {
    let given = || message.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value));
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|key| message.get(*key).filter(|value| !value.is_null()));
    let Some(reasoning) = reasoning else {
        return Value::dict(given());
    };
    // A key that is there twice stays in its first place and has its last value.
    Value::dict([("thinking", reasoning)].into_iter().chain(given()).chain([("reasoning_content", reasoning)]))
}

fn object(object: &Object) -> std::result::Result<Value, tune_jinja::Error> {
    Value::dict(object.iter().map(|(key, value)| (key.as_str(), value)))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;

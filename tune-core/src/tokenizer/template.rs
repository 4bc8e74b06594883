//! Chat templates: Jinja programs that make the text of a conversation, rendered as
//! Python's `transformers` renders them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, State, UndefinedBehavior};

use super::{date, python};
use crate::{Error, Result};

/// Around a `{% generation %}` block in the rendered text. Unicode keeps these two code points
/// for a program's own use and for no text at all.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

const NAME: &str = "chat_template";

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
    environment: Arc<Environment<'static>>,
    source: String,
    /// `bos_token` and its kin, which templates use by name.
    special_tokens: BTreeMap<String, String>,
    marks_generation: bool,
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
}

impl Prepared {
    /// # Errors
    /// An argument with the name of something that is no argument.
    pub(crate) fn new(conversation: &Conversation) -> Result<Self> {
        let Conversation { messages, tools, documents, arguments } = conversation;
        if let Some(name) = arguments.keys().find(|name| PARAMETERS.contains(&name.as_str())) {
            return Err(Error::setup(format!(
                "`{name}` cannot be an argument of a chat template: rendering itself uses the name"
            )));
        }
        let objects = |list: &Option<Vec<Object>>| match list {
            Some(list) => list.iter().map(python::object).collect(),
            None => Value::from(()),
        };
        Ok(Self {
            messages: messages.iter().map(message).collect(),
            tools: objects(tools),
            documents: objects(documents),
            arguments: arguments.iter().map(|(name, value)| (name.clone(), python::from_json(value))).collect(),
        })
    }
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// What stood in `{% generation %}` blocks, as byte ranges of `text`, in order.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are visible to it by name (`bos_token`, `eos_token` …).
    ///
    /// # Errors
    /// Where the template is not valid Jinja, with the line.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        // As Jinja reads its source.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (program, marks_generation) = without_generation_tags(&source);

        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|e| Error::setup(format!("chat template: {e}")))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(|out, _, value| {
            out.write_str(&python::str(value)?).map_err(|_| minijinja::Error::from(ErrorKind::WriteFailure))
        });
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("trim", python::trim);
        environment.add_filter("string", |value: &Value| python::str(value));
        environment.add_filter("generation__", mark_generation);
        environment.add_function("raise_exception", |message: Value| {
            python::str(&message).and_then(|m| Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, m)))
        });
        environment.add_function("strftime_now", |state: &State, format: String| {
            let now = state.lookup("now__").and_then(|v| i64::try_from(v).ok()).unwrap_or(0);
            date::strftime(&format, now).map_err(|m| minijinja::Error::new(ErrorKind::InvalidOperation, m))
        });
        environment.add_template_owned(NAME, program).map_err(|e| explain("the chat template is not valid", &e))?;

        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        Ok(Self { environment: Arc::new(environment), source, special_tokens, marks_generation, now })
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks the assistant's words with `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
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
        self.run(turns, &Prepared::new(conversation)?, add_generation_prompt, false)
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
        self.run(turns, conversation, add_generation_prompt, false)
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
        let marked = self.run(turns, conversation, false, self.marks_generation)?;
        if !self.marks_generation {
            return Ok(Rendered { text: marked, generated: Vec::new() });
        }
        let mut text = String::with_capacity(marked.len());
        let mut generated = Vec::new();
        let mut open = None;
        for c in marked.chars() {
            match (c, open) {
                (OPEN, None) => open = Some(text.len()),
                (CLOSE, Some(start)) => {
                    generated.push(start..text.len());
                    open = None;
                }
                (OPEN | CLOSE, _) => {
                    return Err(Error::setup(
                        "the conversation contains U+FDD0 or U+FDD1, which no text may contain, or the chat template \
                         puts one `{% generation %}` block into another",
                    ));
                }
                (c, _) => text.push(c),
            }
        }
        Ok(Rendered { text, generated })
    }

    fn run(&self, turns: usize, conversation: &Prepared, add_generation_prompt: bool, mark: bool) -> Result<String> {
        let mut context: BTreeMap<&str, Value> =
            self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        context.extend(conversation.arguments.iter().map(|(name, value)| (name.as_str(), value.clone())));
        context.insert("messages", conversation.messages[..turns].iter().cloned().collect());
        context.insert("tools", conversation.tools.clone());
        context.insert("documents", conversation.documents.clone());
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        context.insert("mark__", Value::from(mark));
        context.insert("now__", Value::from(self.now));
        self.environment
            .get_template(NAME)
            .and_then(|t| t.render(context))
            .map_err(|e| explain("the chat template refuses this conversation", &e))
    }
}

/// A message as `transformers` hands it to templates: reasoning, whatever it was called, under
/// the two names that they look for.
fn message(message: &Message) -> Value {
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|key| message.get(*key).filter(|v| !v.is_null()));
    let Some(reasoning) = reasoning else {
        return python::object(message);
    };
    let mut aliased = Message::new();
    aliased.insert("thinking".to_owned(), reasoning.clone());
    aliased.extend(message.clone());
    aliased.insert("reasoning_content".to_owned(), reasoning.clone());
    python::object(&aliased)
}

/// The filter that `{% generation %}` becomes.
fn mark_generation(state: &State, text: &Value) -> Result<Value, minijinja::Error> {
    let text = python::str(text)?;
    let mark = state.lookup("mark__").is_some_and(|v| v.is_true());
    Ok(Value::from(if mark { format!("{OPEN}{text}{CLOSE}") } else { text }))
}

/// minijinja knows no tags but its own, so `{% generation %}` … `{% endgeneration %}` becomes a
/// filter block: the same white-space control, the same scope. Returns whether there was any.
fn without_generation_tags(source: &str) -> (String, bool) {
    let mut program = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        program.push_str(before);
        let body = &tag[2..];
        let open = body.strip_prefix(['-', '+']).unwrap_or(body);
        let close = open.find("%}").map(|end| &open[..end]);
        let word = close.map(|inner| inner.strip_suffix(['-', '+']).unwrap_or(inner).trim());
        let replacement = match word {
            Some("generation") => "filter generation__",
            Some("endgeneration") => "endfilter",
            _ => {
                program.push_str("{%");
                rest = body;
                continue;
            }
        };
        found = true;
        let inner = close.unwrap_or_default();
        let sign = |text: &str| match text.chars().next() {
            Some(c @ ('-' | '+')) => String::from(c),
            _ => String::new(),
        };
        let head = if open.len() < body.len() { sign(body) } else { String::new() };
        let tail = inner.chars().last().map(String::from).unwrap_or_default();
        program.push_str(&format!("{{%{head} {replacement} {}%}}", sign(&tail)));
        rest = &open[inner.len() + 2..];
    }
    program.push_str(rest);
    (program, found)
}

/// A message of the template's own where there is one, else minijinja's with the line.
fn explain(what: &str, error: &minijinja::Error) -> Error {
    let mut innermost = error;
    while let Some(source) = std::error::Error::source(innermost).and_then(|s| s.downcast_ref::<minijinja::Error>()) {
        innermost = source;
    }
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
    let message = match (innermost.kind(), innermost.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::setup(format!("{what}: {message}{line}"))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;

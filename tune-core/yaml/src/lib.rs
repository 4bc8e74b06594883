//! YAML text to a tree in which every value knows where it was written.
//!
//! [`parse`] reads one document and resolves anchors, aliases and merge keys;
//! [`interpolate`] then replaces `${a.b}` by what stands at `a.b`. Both are
//! bounded in depth and memory, whatever the text is: a config may come from a
//! stranger.
//!
//! ```
//! let text = "rank: 8\nalpha: ${rank}\nname: lora-r${rank}\n";
//! let tree = tune_yaml::parse(text, tune_yaml::SourceId(0))?;
//! let (tree, errors) = tune_yaml::interpolate(tree);
//! assert!(errors.is_empty());
//!
//! let name = &tree.get("name").expect("written above").value;
//! assert_eq!(name.as_str(), Some("lora-r8"));
//! assert_eq!(name.span.position(text).line, 3);
//! # Ok::<(), tune_yaml::Error>(())
//! ```

mod code;
mod float;
mod interpolate;
mod limits;
mod nearest;
mod parse;
mod referred;
mod scalar;
mod snippet;
mod syntax;
mod text;

pub use code::Code;
pub use interpolate::{escape_references, interpolate};
pub use limits::{DEPTH as MAX_DEPTH, TEXT as MAX_TEXT, depth};
pub use nearest::{nearest, slip};
pub use parse::{Alias, parse, parse_noting, parse_value};
pub use referred::{Referred, referred};
pub use scalar::{Kind, Number, Scalar};
pub use snippet::Place;
pub use text::Text;

/// Which text a [`Span`] points into; the caller numbers its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceId(pub u16);

/// A range of bytes in one of the texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// The text.
    pub source: SourceId,
    /// The first byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

impl Span {
    /// The bytes `start..end` of `source`.
    pub const fn new(source: SourceId, start: usize, end: usize) -> Self {
        Self { source, start, end }
    }

    /// Where the span begins in `text`, the text of its source.
    pub fn position(&self, text: &str) -> Position {
        let before = text.get(..self.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

/// A place as editors show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it was written; for an alias or a `${}`, where that stands.
    pub span: Span,
}

/// What a [`Node`] holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text that may also stand for null, a truth value or a number.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text; no key occurs twice.
    Map(Vec<Entry>),
    /// Something that was wrong and has been reported: readers pass over it.
    Reported,
}

/// One `key: value` of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

impl Node {
    /// A plain scalar, as if `text` had been written at `span`.
    pub fn plain(text: impl Into<String>, span: Span) -> Self {
        Self { value: Value::Scalar(Scalar::plain(text)), span }
    }

    /// The entry of a mapping at `key`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// Whether the node is a plain `null`, `~`, `None` or nothing at all.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.kind() == Kind::Null)
    }

    /// The text of a scalar.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }
}

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// Which kind of mistake it is.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What stands below the caret.
    pub label: String,
    /// Other places that matter, each with a few words.
    pub labels: Vec<(Span, String)>,
    /// What to do about it.
    pub help: Option<Box<str>>,
}

impl Error {
    fn new(code: Code, message: impl Into<String>, span: Span) -> Self {
        Self { code, message: message.into(), span, label: String::new(), labels: Vec::new(), help: None }
    }

    fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.labels.push((span, label.into()));
        self
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into().into());
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

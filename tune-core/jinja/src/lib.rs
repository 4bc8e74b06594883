//! Chat templates: Jinja as Python's jinja2 3.1 renders it in the sandbox of `transformers`.
//!
//! What Python gives is given here, byte for byte; what Python fails at is refused; and what is not known here is
//! refused as well, so that no template is rendered differently in silence. Templates come with downloaded models,
//! so a rendering has a budget (`budget`) of steps, memory and depth.
//!
//! Refused although jinja2 renders them, for no template of a model that we know has any of them:
//!
//! | what | why |
//! |---|---|
//! | complex numbers, as `(-8) ** 0.5` gives one | a kind of number of its own, for what no conversation holds |
//! | bytes, as `text.encode()` gives them | a type with methods of its own, whose only use in a template would be its `repr` |
//! | the text of functions, methods, macros and the like | it holds an address in memory, which is another in every run |
//! | `'\N{BULLET}'`, characters by name | it would take a table of all 34,000 names; `'\u2022'` is the same |
//! | `format` and `format_map` of text that is marked as safe | markupsafe's own formatter, which asks each value for its HTML |
//! | the filters `random` and `urlize`, the function `lipsum` | another text each time; a list of the world's top-level domains |
//! | `striptags` of HTML entities but the most common | a table of 2,231 of them |
//! | `autoescape`, `scoped` blocks, looping over `loop` itself | what only pages of HTML use |
//!
//! ```
//! use tune_jinja::{Names, Template, Value};
//!
//! let template = Template::new("{{ greeting | title }}, {{ 7 // 2 }}!").unwrap();
//! let names = [("greeting", Value::from("hello world"))];
//! assert_eq!(template.render(&Names::new(&names)).unwrap().text, "Hello World, 3!");
//! ```

mod arguments;
mod attributes;
mod budget;
mod calls;
mod convert;
mod date;
mod error;
mod evaluate;
mod filters;
mod format;
mod interpret;
mod json;
mod key;
mod markup;
mod methods;
mod number;
mod object;
mod pretty;
mod repr;
mod slice;
mod syntax;
mod tests;
mod unicode;
mod value;

use std::ops::Range;
use std::rc::Rc;

pub use error::{Error, Kind};
pub use json::{parse as parse_json, parse_record};

use budget::Budget;
use interpret::{CLOSE, Interpreter, OPEN};
use object::Object;
use value::Value as Inner;

/// A value that a template is given.
#[derive(Clone)]
pub struct Value(Inner);

impl Value {
    /// Python's `None`.
    pub fn none() -> Self {
        Self(Inner::None)
    }

    /// A list.
    ///
    /// # Errors
    /// Values that are nested too deep.
    pub fn list(items: impl IntoIterator<Item = Self>) -> Result<Self, Error> {
        Inner::list(items.into_iter().map(|item| item.0).collect()).map(Self)
    }

    /// A dict of JSON values.
    ///
    /// # Errors
    /// Values that are nested too deep.
    pub fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, &'a serde_json::Value)>) -> Result<Self, Error> {
        Inner::from_object(entries).map(Self)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

impl TryFrom<&serde_json::Value> for Value {
    type Error = Error;

    fn try_from(json: &serde_json::Value) -> Result<Self, Error> {
        Inner::try_from(json).map(Self)
    }
}

/// A compiled template.
pub struct Template {
    program: syntax::ast::Program,
}

/// What a template is rendered with.
pub struct Names<'a> {
    /// Names and their values; of two with one name the last counts.
    pub values: &'a [(&'a str, Value)],
    /// What `strftime_now` takes for now: seconds after 1970 (UTC).
    pub now: i64,
    /// Whether what stands in `{% generation %}` blocks is told.
    pub marks: bool,
    /// How many bytes the values have, about: what a rendering may use grows with it.
    pub size: usize,
}

impl<'a> Names<'a> {
    /// Names and their values.
    pub fn new(values: &'a [(&'a str, Value)]) -> Self {
        Self { values, now: 0, marks: false, size: 0 }
    }
}

/// A rendered text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// What stood in `{% generation %}` blocks, as byte ranges of `text`, in order.
    pub generated: Vec<Range<usize>>,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// Where it is not valid Jinja, with the line.
    pub fn new(source: &str) -> Result<Self, Error> {
        Ok(Self { program: syntax::parse(source)? })
    }

    /// Whether there is a `{% generation %}` block.
    pub fn marks_generation(&self) -> bool {
        self.program.marks_generation
    }

    /// The names that it looks up or sets, but for those of functions that are always there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.program.names.iter().map(|name| &**name).filter(|name| !calls::FUNCTIONS.contains(name))
    }

    /// Renders the template.
    ///
    /// # Errors
    /// What the template refuses, what Python fails at, and what takes too long or too much memory.
    pub fn render(&self, names: &Names<'_>) -> Result<Rendered, Error> {
        let _budget = Budget::begin(names.size);
        let lookup = |name: &str| {
            let given = names.values.iter().rev().find(|(other, _)| *other == name).map(|(_, value)| value.0.clone());
            let function = || calls::FUNCTIONS.iter().find(|f| **f == name).map(|f| Object::Function(f));
            let blocks = || (name == "self").then_some(Object::Blocks);
            given.or_else(|| function().or_else(blocks).map(|object| Inner::Object(Rc::new(object))))
        };
        let marks = names.marks && self.marks_generation();
        let text = Interpreter::new(&self.program, lookup, names.now, marks).run()?;
        if marks {
            return without_marks(&text);
        }
        Ok(Rendered { text, generated: Vec::new() })
    }
}

/// Takes the marks out of a text, and says where they were.
fn without_marks(marked: &str) -> Result<Rendered, Error> {
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
                return Err(Error::new(
                    Kind::Runtime,
                    "the conversation contains U+FDD0 or U+FDD1, which no text may contain, or the chat template \
                     puts one `{% generation %}` block into another",
                ));
            }
            (c, _) => text.push(c),
        }
    }
    Ok(Rendered { text, generated })
}

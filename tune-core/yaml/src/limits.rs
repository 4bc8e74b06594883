//! How much a text may ask for. A few lines of aliases can describe more than
//! any memory holds, so what is built is counted, not what is read.

use crate::{Code, Error, Node, Span, Value};

/// The bytes that a text may have.
pub const TEXT: usize = 1 << 20;
/// Values within values.
pub const DEPTH: usize = 64;
/// `${}` that are followed.
pub(crate) const REFERENCES: usize = 2_000;
/// Bytes that a tree may take: about a hundred thousand values.
const TREE: usize = 16 << 20;
/// What a value costs besides its text.
const VALUE: usize = 160;

/// What is left to build with.
pub(crate) struct Budget(usize);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(TREE)
    }

    /// Pays for one value with `text` bytes of text.
    pub(crate) fn value(&mut self, text: usize, span: Span) -> Result<(), Error> {
        match self.0.checked_sub(VALUE + text) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(Error::new(Code::TOO_LARGE, "aliases or references make this config too large", span)
                .label(format!("more than {} MiB with this one", TREE >> 20))
                .help("write out what is needed; this looks like an alias bomb")),
        }
    }

    /// Pays for a copy of `node`.
    pub(crate) fn copy(&mut self, node: &Node, span: Span) -> Result<(), Error> {
        match &node.value {
            Value::Scalar(scalar) => self.value(scalar.text.len(), span),
            Value::List(items) => {
                self.value(0, span)?;
                items.iter().try_for_each(|item| self.copy(item, span))
            }
            Value::Map(entries) => {
                self.value(0, span)?;
                entries.iter().try_for_each(|entry| {
                    self.value(entry.key.len(), span)?;
                    self.copy(&entry.value, span)
                })
            }
            Value::Reported => Ok(()),
        }
    }
}

/// Values within values: 0 for a scalar.
pub fn depth(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
        Value::Scalar(_) | Value::Reported => 0,
    }
}

pub(crate) fn too_deep(span: Span) -> Error {
    Error::new(Code::TOO_LARGE, format!("more than {DEPTH} levels of nesting"), span)
        .help(format!("a config has at most {DEPTH} levels"))
}

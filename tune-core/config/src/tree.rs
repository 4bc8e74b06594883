//! A config as a constant: what a `const fn` can walk. The macros write it for
//! the configs that a recipe ships with; at run time it is made of what was
//! read.

use std::collections::BTreeMap;

use tune_yaml::{Kind, Node, Number, Referred, Span, Value};

use crate::schema::Struct;

/// A tree as a list of its values, each followed by those in it.
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a>(pub &'a [Item<'a>]);

/// One value of a [`Tree`].
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// The key that it is written under; empty in a list.
    pub key: &'a str,
    /// Where the key stands, or the value where there is no key.
    pub key_span: Span,
    /// Where the value stands.
    pub span: Span,
    /// The index of the mapping or list that it is in; the root is in itself.
    pub parent: usize,
    /// The index after the last value in it.
    pub end: usize,
    /// What is written.
    pub written: Written<'a>,
    /// Of an outermost key that others refer to: those that it is needed for, where all of these are needed only for each
    /// other; else none.
    pub referred: Option<&'a [&'a str]>,
}

/// What a value is, before a schema says what it should be.
#[derive(Debug, Clone, Copy)]
pub enum Written<'a> {
    /// A single value.
    Scalar(Scalar<'a>),
    /// A list.
    List,
    /// A mapping.
    Map,
    /// A mistake that has been reported.
    Reported,
}

/// A single value.
#[derive(Debug, Clone, Copy)]
pub struct Scalar<'a> {
    /// The text.
    pub text: &'a str,
    /// It stands in quotes.
    pub quoted: bool,
    /// It was written on a command line, where a shell takes the quotes away.
    pub shell: bool,
    /// What it stands for.
    pub kind: Kind,
    /// The number that it is, or would be without its quotes.
    pub number: Option<Number>,
}

impl<'a> Tree<'a> {
    /// The value of this index.
    pub(crate) const fn item(self, at: usize) -> &'a Item<'a> {
        &self.0[at]
    }

    /// The index of what is written under `key` in the mapping `at`.
    pub(crate) const fn get(self, at: usize, key: &str) -> Option<usize> {
        let mut child = at + 1;
        while child < self.0[at].end {
            if crate::schema::same(self.0[child].key, key) {
                return Some(child);
            }
            child = self.0[child].end;
        }
        None
    }

    /// The number of values that `at` holds.
    pub(crate) const fn count(self, at: usize) -> usize {
        let (mut count, mut child) = (0, at + 1);
        while child < self.0[at].end {
            count += 1;
            child = self.0[child].end;
        }
        count
    }

    /// How many values of its list stand before `at`.
    pub(crate) const fn position(self, at: usize) -> usize {
        let (mut count, mut child) = (0, self.0[at].parent + 1);
        while child < at {
            count += 1;
            child = self.0[child].end;
        }
        count
    }

    /// The single value at `at`.
    pub(crate) const fn scalar(self, at: usize) -> Option<&'a Scalar<'a>> {
        match &self.0[at].written {
            Written::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// Whether the outermost key `at`, which is none of `fields`, is needed for one that is, or for one to which
    /// nobody refers and which is a mistake itself.
    pub(crate) const fn is_needed(self, at: usize, fields: &Struct) -> bool {
        let Some(names) = self.0[at].referred else { return false };
        let mut index = 0;
        while index < names.len() {
            if fields.find(names[index]).is_some() || fields.find_ignored(names[index]).is_some() {
                return true;
            }
            index += 1;
        }
        names.is_empty()
    }

    /// Whether null stands at `at`, or nothing.
    pub(crate) const fn is_null(self, at: usize) -> bool {
        matches!(self.scalar(at), Some(Scalar { kind: Kind::Null, .. }))
    }

    /// The text of a single value that is not null.
    pub(crate) const fn text(self, at: usize) -> Option<&'a str> {
        match self.scalar(at) {
            Some(scalar) if !matches!(scalar.kind, Kind::Null) => Some(scalar.text),
            _ => None,
        }
    }
}

/// What [`flatten`] makes of references.
pub(crate) fn borrowed(referred: &Referred) -> BTreeMap<&str, Vec<&str>> {
    referred.iter().map(|(key, by)| (key.as_str(), by.iter().map(String::as_str).collect())).collect()
}

/// The values of `root`; those for which `shell` holds come from a command line. `referred` are the outermost keys that
/// others refer to.
pub(crate) fn flatten<'a>(
    root: &'a Node,
    referred: &'a BTreeMap<&str, Vec<&'a str>>,
    shell: &dyn Fn(Span) -> bool,
) -> Vec<Item<'a>> {
    let mut items = Vec::new();
    push(&mut items, root, "", root.span, 0, shell);
    let mut at = 1;
    while let Some(item) = items.get_mut(at) {
        item.referred = referred.get(item.key).map(Vec::as_slice);
        at = item.end;
    }
    items
}

fn push<'a>(
    items: &mut Vec<Item<'a>>,
    node: &'a Node,
    key: &'a str,
    key_span: Span,
    parent: usize,
    shell: &dyn Fn(Span) -> bool,
) {
    let at = items.len();
    let written = match &node.value {
        Value::Scalar(scalar) => Written::Scalar(Scalar {
            text: &scalar.text,
            quoted: scalar.quoted,
            shell: shell(node.span),
            kind: scalar.kind(),
            number: scalar.plain_number(),
        }),
        Value::List(_) => Written::List,
        Value::Map(_) => Written::Map,
        Value::Reported => Written::Reported,
    };
    items.push(Item { key, key_span, span: node.span, parent, end: 0, written, referred: None });
    match &node.value {
        Value::List(list) => list.iter().for_each(|item| push(items, item, "", item.span, at, shell)),
        Value::Map(entries) => {
            for entry in entries {
                push(items, &entry.value, &entry.key, entry.key_span, at, shell);
            }
        }
        Value::Scalar(_) | Value::Reported => {}
    }
    items[at].end = items.len();
}

//! A config as a tree that can be changed, and written in one of many ways.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tune_yaml::{Node, Value};

/// A tree as it will be written: scalars with their quotes, tags, anchors and aliases.
#[derive(Clone)]
pub(crate) enum Tree {
    Scalar(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
    Anchor(usize, Box<Tree>),
}

/// What was read.
pub(crate) fn tree(node: &Node) -> Tree {
    match &node.value {
        Value::Scalar(scalar) if scalar.quoted => Tree::Scalar(format!("{:?}", scalar.text)),
        Value::Scalar(scalar) => Tree::Scalar(scalar.text.clone()),
        Value::List(items) => Tree::List(items.iter().map(tree).collect()),
        Value::Map(entries) => Tree::Map(entries.iter().map(|entry| (entry.key.clone(), tree(&entry.value))).collect()),
        Value::Reported => Tree::Scalar(String::new()),
    }
}

impl Tree {
    pub(crate) fn size(&self) -> usize {
        1 + match self {
            Tree::Scalar(_) => 0,
            Tree::List(items) => items.iter().map(Tree::size).sum(),
            Tree::Map(entries) => entries.iter().map(|(_, value)| value.size()).sum(),
            Tree::Anchor(_, inner) => inner.size(),
        }
    }

    /// The node of this number, counted from the root.
    fn node(&mut self, mut number: usize) -> &mut Tree {
        if number == 0 {
            return self;
        }
        number -= 1;
        let children: Vec<&mut Tree> = match self {
            Tree::Scalar(_) => Vec::new(),
            Tree::List(items) => items.iter_mut().collect(),
            Tree::Map(entries) => entries.iter_mut().map(|(_, value)| value).collect(),
            Tree::Anchor(_, inner) => vec![inner],
        };
        for child in children {
            let size = child.size();
            if number < size {
                return child.node(number);
            }
            number -= size;
        }
        unreachable!("fewer nodes than were counted")
    }

    pub(crate) fn any(&mut self, random: &mut ChaCha8Rng) -> &mut Tree {
        let number = random.random_range(0..self.size());
        self.node(number)
    }
}

/// Writes a tree in lines.
pub(crate) fn block(tree: &Tree, indent: usize, random: &mut ChaCha8Rng, out: &mut String) {
    let blanks = " ".repeat(indent);
    match tree {
        Tree::Map(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                out.push_str(&blanks);
                out.push_str(key);
                out.push(':');
                inner(value, indent, random, out);
            }
        }
        Tree::List(items) if !items.is_empty() => {
            for item in items {
                out.push_str(&blanks);
                out.push('-');
                inner(item, indent, random, out);
            }
        }
        other => {
            out.push_str(&blanks);
            flow(other, out);
            out.push('\n');
        }
    }
}

/// Writes what follows a `key:` or a `-`.
fn inner(tree: &Tree, indent: usize, random: &mut ChaCha8Rng, out: &mut String) {
    let (tree, anchor) = match tree {
        Tree::Anchor(number, inner) => (&**inner, format!(" &a{number}")),
        other => (other, String::new()),
    };
    out.push_str(&anchor);
    match tree {
        Tree::Map(entries) if !entries.is_empty() && random.random_bool(0.8) => {
            out.push('\n');
            block(tree, indent + 2, random, out);
        }
        Tree::List(items) if !items.is_empty() && random.random_bool(0.5) => {
            out.push('\n');
            block(tree, indent + 2, random, out);
        }
        other => {
            out.push(' ');
            flow(other, out);
            out.push('\n');
        }
    }
}

/// Writes a tree in brackets.
fn flow(tree: &Tree, out: &mut String) {
    match tree {
        Tree::Scalar(text) if text.is_empty() => out.push('~'),
        // Its braces would be a mapping's.
        Tree::Scalar(text) if text.contains("${") && !text.contains(['\'', '"']) => {
            out.push('\'');
            out.push_str(text);
            out.push('\'');
        }
        Tree::Scalar(text) => out.push_str(text),
        Tree::List(items) => {
            out.push('[');
            for item in items {
                flow(item, out);
                out.push_str(", ");
            }
            out.push(']');
        }
        Tree::Map(entries) => {
            out.push('{');
            for (key, value) in entries {
                out.push_str(key);
                out.push_str(": ");
                flow(value, out);
                out.push_str(", ");
            }
            out.push('}');
        }
        Tree::Anchor(number, inner) => {
            out.push_str(&format!("&a{number} "));
            flow(inner, out);
        }
    }
}

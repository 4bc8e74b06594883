//! Values that are neither numbers nor text nor plain data.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::budget;
use crate::error::{Error, Result};
use crate::interpret::Environment;
use crate::key::equal;
use crate::syntax::ast;
use crate::value::{Attributes, Dict, Iter, Str, Value};

/// An object with a nature of its own.
pub(crate) enum Object {
    /// `namespace()`.
    Namespace(Namespace),
    /// `cycler()`.
    Cycler { items: Vec<Value>, at: Cell<usize> },
    /// `joiner()`.
    Joiner { separator: Value, used: Cell<bool> },
    /// `loop`.
    Loop(Loop),
    /// A macro, or what `caller` is.
    Macro { definition: Arc<ast::Macro>, environment: Environment },
    /// A function of the environment.
    Function(&'static str),
    /// A method with what it belongs to.
    Method(Value, Str),
    /// `range()`.
    Range { start: i64, stop: i64, step: i64, len: usize },
    /// An iterator.
    Iter(Iter),
    /// `dict.keys()` and its kin.
    View(Rc<Dict>, View),
    /// `self`, by which blocks are called.
    Blocks,
    /// One of them.
    Block(usize),
}

/// Attributes that can be set.
pub(crate) struct Namespace(pub(crate) Attributes);

/// What a view shows of a dict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Keys,
    Values,
    Items,
}

/// The state of a loop.
pub(crate) struct Loop {
    pub(crate) items: Vec<Value>,
    pub(crate) index: Cell<usize>,
    pub(crate) depth: usize,
    pub(crate) changed: RefCell<Option<Vec<Value>>>,
    /// How the loop's body is rendered with other items.
    pub(crate) recursive: Option<(Arc<ast::For>, Environment)>,
}

thread_local! {
    static DROPPED: RefCell<Option<Vec<Value>>> = const { RefCell::new(None) };
}

impl Drop for Namespace {
    /// Namespaces may hold each other in a chain without end, so they are not dropped within each other.
    fn drop(&mut self) {
        let values: Vec<Value> = std::mem::take(self.0.get_mut()).into_values().collect();
        if values.is_empty() {
            return;
        }
        let first = DROPPED.try_with(|dropped| {
            let mut dropped = dropped.borrow_mut();
            match dropped.as_mut() {
                Some(waiting) => {
                    waiting.extend(values);
                    false
                }
                None => {
                    *dropped = Some(values);
                    true
                }
            }
        });
        if first != Ok(true) {
            return;
        }
        loop {
            let next = DROPPED.try_with(|dropped| dropped.borrow_mut().as_mut().and_then(Vec::pop));
            match next {
                Ok(Some(value)) => drop(value),
                _ => break,
            }
        }
        let _ = DROPPED.try_with(|dropped| dropped.borrow_mut().take());
    }
}

impl Object {
    pub(crate) fn into_value(self) -> Result<Value> {
        budget::check_depth(self.depth())?;
        budget::hold(0);
        Ok(Value::Object(Rc::new(self)))
    }

    pub(crate) fn depth(&self) -> usize {
        let deepest = |items: &[Value]| 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        match self {
            Self::Cycler { items, .. } => deepest(items),
            Self::Loop(Loop { items, .. }) | Self::Iter(Iter { items, .. }) => deepest(items),
            Self::Joiner { separator, .. } => 1 + separator.depth(),
            Self::Method(receiver, _) => 1 + receiver.depth(),
            Self::View(dict, _) => 1 + Value::Dict(dict.clone()).depth(),
            _ => 1,
        }
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "TemplateNamespace",
            Self::Cycler { .. } => "Cycler",
            Self::Joiner { .. } => "Joiner",
            Self::Loop(_) => "LoopContext",
            Self::Macro { .. } => "Macro",
            Self::Function("dict") => "TemplateDict",
            Self::Function("namespace" | "cycler" | "joiner") => "type",
            Self::Function(_) => "function",
            Self::Method(..) => "builtin_function_or_method",
            Self::Range { .. } => "range",
            Self::Iter(iter) => iter.kind,
            Self::View(_, View::Keys) => "dict_keys",
            Self::View(_, View::Values) => "dict_values",
            Self::View(_, View::Items) => "dict_items",
            Self::Blocks => "TemplateReference",
            Self::Block(_) => "BlockReference",
        }
    }

    pub(crate) fn len(&self) -> Option<usize> {
        match self {
            Self::Range { len, .. } => Some(*len),
            Self::View(dict, _) => Some(dict.entries.len()),
            Self::Loop(state) => Some(state.items.len()),
            _ => None,
        }
    }

    pub(crate) fn is_iterable(&self) -> bool {
        matches!(self, Self::Range { .. } | Self::View(..) | Self::Iter(_) | Self::Loop(_))
    }

    pub(crate) fn is_callable(&self) -> bool {
        matches!(
            self,
            Self::Joiner { .. }
                | Self::Loop(_)
                | Self::Macro { .. }
                | Self::Function(_)
                | Self::Method(..)
                | Self::Block(_)
        )
    }

    /// The items, if it has any; those of an iterator are gone then.
    pub(crate) fn take_items(&self) -> Option<Result<Vec<Value>>> {
        match self {
            Self::Range { start, step, len, .. } => {
                let reserved = budget::reserve(len * 16);
                Some(reserved.map(|()| (0..*len).map(|i| Value::Int(start + step * i as i64)).collect()))
            }
            Self::View(dict, view) => Some(view_items(dict, *view)),
            Self::Iter(iter) => {
                let from = iter.next.replace(iter.items.len());
                match &iter.failure {
                    Some(error) => Some(Err(error.clone())),
                    None => Some(Ok(iter.items[from..].to_vec())),
                }
            }
            Self::Loop(_) => Some(Err(Error::runtime("looping over `loop` is not supported"))),
            _ => None,
        }
    }

    /// The next item of an iterator.
    pub(crate) fn next(&self) -> Option<Result<Value>> {
        let Self::Iter(iter) = self else { return None };
        let at = iter.next.get();
        match (iter.items.get(at), &iter.failure) {
            (Some(item), _) => {
                iter.next.set(at + 1);
                Some(Ok(item.clone()))
            }
            (None, Some(error)) => Some(Err(error.clone())),
            (None, None) => None,
        }
    }

    pub(crate) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Range { start: a, step: b, len: c, .. }, Self::Range { start: x, step: y, len: z, .. }) => {
                c == z && (*c == 0 || (a == x && (*c == 1 || b == y)))
            }
            (Self::View(a, View::Keys), Self::View(b, View::Keys)) => {
                a.entries.len() == b.entries.len() && a.entries.keys().all(|key| b.entries.contains_key(key))
            }
            (Self::View(a, View::Items), Self::View(b, View::Items)) => {
                equal(&Value::Dict(a.clone()), &Value::Dict(b.clone()))
            }
            (Self::Method(a, name), Self::Method(b, other)) => a.is_same(b) && **name == **other,
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => std::ptr::eq(self, other),
        }
    }
}

fn view_items(dict: &Dict, view: View) -> Result<Vec<Value>> {
    dict.entries
        .iter()
        .map(|(key, value)| match view {
            View::Keys => Ok(key.0.clone()),
            View::Values => Ok(value.clone()),
            View::Items => Value::tuple(vec![key.0.clone(), value.clone()]),
        })
        .collect()
}

//! Values that are neither numbers nor text nor plain data.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use crate::budget;
use crate::error::{Error, Result};
use crate::interpret::Environment;
use crate::key::{Key, equal};
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

    /// How two views compare that are sets to Python, those of keys and of items: a part is less than the whole.
    /// `None` for all else. Where the numbers of their entries say already that `sign` does not hold, nothing is looked up.
    pub(crate) fn compare_sets(&self, other: &Self, sign: &str) -> Option<Result<Option<Ordering>>> {
        let (Self::View(a, of_a), Self::View(b, of_b)) = (self, other) else { return None };
        if [of_a, of_b].into_iter().any(|view| matches!(view, View::Values)) {
            return None;
        }
        let order = a.entries.len().cmp(&b.entries.len());
        let is_within = match (sign, order) {
            ("<" | "<=", Ordering::Less) | ("<=" | ">=" | "==", Ordering::Equal) => is_within(a, *of_a, b, *of_b),
            (">" | ">=", Ordering::Greater) => is_within(b, *of_b, a, *of_a),
            _ => Ok(false),
        };
        Some(is_within.map(|is| is.then_some(order)))
    }

    pub(crate) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Range { start: a, step: b, len: c, .. }, Self::Range { start: x, step: y, len: z, .. }) => {
                c == z && (*c == 0 || (a == x && (*c == 1 || b == y)))
            }
            (Self::View(_, View::Keys | View::Items), Self::View(_, View::Keys | View::Items)) => {
                matches!(self.compare_sets(other, "=="), Some(Ok(Some(Ordering::Equal))))
            }
            (Self::Method(a, name), Self::Method(b, other)) => a.is_same(b) && **name == **other,
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => std::ptr::eq(self, other),
        }
    }
}

/// Whether all of a view is in another.
fn is_within(part: &Dict, of_part: View, whole: &Dict, of_whole: View) -> Result<bool> {
    for item in view_items(part, of_part)? {
        budget::spend(1)?;
        let holds = match (of_whole, &item) {
            (View::Items, Value::Tuple(pair)) if pair.len() == 2 => {
                whole.entries.get(&Key::new(pair[0].clone())?).is_some_and(|value| equal(value, &pair[1]))
            }
            (View::Items, _) => false,
            _ => whole.entries.contains_key(&Key::new(item)?),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
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

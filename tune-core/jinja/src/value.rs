//! Values as Python has them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;
use num_bigint::BigInt;
use num_traits::ToPrimitive;

use crate::budget;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::object::Object;

/// A value of a template.
///
/// Lists, tuples and dicts never change: the sandbox forbids it.
#[derive(Clone)]
pub(crate) enum Value {
    /// What a name without a value gives.
    Undefined(Rc<Undefined>),
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits.
    Int(i64),
    /// An integer that does not.
    Big(Rc<BigInt>),
    /// A float.
    Float(f64),
    /// Text.
    Str(Str),
    /// A list.
    List(Rc<List>),
    /// A tuple.
    Tuple(Rc<List>),
    /// A dict, in the order of its keys.
    Dict(Rc<Dict>),
    /// Everything else.
    Object(Rc<Object>),
}

/// Why a value is undefined: the message of using it.
pub(crate) struct Undefined {
    pub(crate) message: String,
}

/// Text, and whether it is marked as safe HTML (`Markup`).
#[derive(Clone)]
pub(crate) struct Str {
    text: Arc<Text>,
    pub(crate) safe: bool,
}

/// Text that counts as memory while it is there.
pub(crate) struct Text {
    text: Box<str>,
    held: usize,
}

impl Drop for Text {
    fn drop(&mut self) {
        budget::release(self.held);
    }
}

impl Str {
    /// Text of the template itself, which is not counted.
    pub(crate) fn constant(text: String) -> Self {
        Self { text: Arc::new(Text { text: text.into(), held: 0 }), safe: false }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text.text
    }
}

impl std::ops::Deref for Str {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for Str {
    fn from(text: String) -> Self {
        let held = budget::hold(text.len() + 32);
        Self { text: Arc::new(Text { text: text.into(), held }), safe: false }
    }
}

impl From<&str> for Str {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

/// The items of a list or tuple.
pub(crate) struct List {
    pub(crate) items: Vec<Value>,
    depth: usize,
    held: usize,
    /// Whether this is a group of `groupby`, whose items have names.
    pub(crate) group: bool,
}

impl Drop for List {
    fn drop(&mut self) {
        budget::release(self.held);
    }
}

impl std::ops::Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

/// The entries of a dict.
pub(crate) struct Dict {
    pub(crate) entries: IndexMap<Key, Value>,
    depth: usize,
    held: usize,
}

impl Drop for Dict {
    fn drop(&mut self) {
        budget::release(self.held);
    }
}

impl Dict {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }
}

/// An iterator: what is in it is known, and can be taken once.
pub(crate) struct Iter {
    pub(crate) items: Vec<Value>,
    pub(crate) next: Cell<usize>,
    /// What taking the item after the last fails with.
    pub(crate) failure: Option<Error>,
    pub(crate) kind: &'static str,
}

impl Value {
    /// A list.
    ///
    /// # Errors
    /// Items that are nested too deep.
    pub(crate) fn list(items: Vec<Self>) -> Result<Self> {
        Ok(Self::List(Rc::new(List::new(items)?)))
    }

    pub(crate) fn tuple(items: Vec<Self>) -> Result<Self> {
        Ok(Self::Tuple(Rc::new(List::new(items)?)))
    }

    pub(crate) fn group(key: Self, items: Vec<Self>) -> Result<Self> {
        let mut list = List::new(vec![key, Self::list(items)?])?;
        list.group = true;
        Ok(Self::Tuple(Rc::new(list)))
    }

    pub(crate) fn dict(entries: IndexMap<Key, Self>) -> Result<Self> {
        let depth = 1 + entries.values().map(Self::depth).max().unwrap_or(0);
        budget::check_depth(depth)?;
        let held = budget::hold(entries.len() * 64 + 64);
        Ok(Self::Dict(Rc::new(Dict { entries, depth, held })))
    }

    pub(crate) fn undefined(message: impl Into<String>) -> Self {
        Self::Undefined(Rc::new(Undefined { message: message.into() }))
    }

    pub(crate) fn iter_of(kind: &'static str, items: Vec<Self>) -> Self {
        Self::partial_iter(kind, items, None)
    }

    /// An iterator that fails after its items.
    pub(crate) fn partial_iter(kind: &'static str, items: Vec<Self>, failure: Option<Error>) -> Self {
        Self::Object(Rc::new(Object::Iter(Iter { items, next: Cell::new(0), failure, kind })))
    }

    pub(crate) fn safe(text: impl Into<Str>) -> Self {
        let mut text = text.into();
        text.safe = true;
        Self::Str(text)
    }

    /// An integer, in the form that fits it.
    pub(crate) fn int(value: BigInt) -> Self {
        value.to_i64().map_or_else(|| Self::Big(Rc::new(value)), Self::Int)
    }

    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::List(list) | Self::Tuple(list) => list.depth,
            Self::Dict(dict) => dict.depth,
            Self::Object(object) => object.depth(),
            _ => 0,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// `bool(value)`.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(i) => *i != 0,
            Self::Big(_) => true,
            Self::Float(x) => *x != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(list) | Self::Tuple(list) => !list.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Object(object) => object.len().is_none_or(|len| len > 0),
        }
    }

    /// `type(value).__name__`.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) => "int",
            Self::Float(_) => "float",
            Self::Str(text) if text.safe => "Markup",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(list) if list.group => "_GroupTuple",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Object(object) => object.type_name(),
        }
    }

    /// `len(value)`.
    pub(crate) fn len(&self) -> Result<usize> {
        Ok(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) => {
                budget::spend_bytes(text.len())?;
                text.chars().count()
            }
            Self::List(list) | Self::Tuple(list) => list.len(),
            Self::Dict(dict) => dict.entries.len(),
            Self::Object(object) if object.len().is_some() => object.len().unwrap_or_default(),
            _ => return Err(Error::runtime(format!("object of type '{}' has no len()", self.type_name()))),
        })
    }

    /// The items that a loop over the value sees.
    pub(crate) fn items(&self) -> Result<Vec<Self>> {
        let items = match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) => {
                budget::reserve(text.len().saturating_mul(80))?;
                let mut buffer = [0; 4];
                text.chars().map(|c| Self::from(&*c.encode_utf8(&mut buffer))).collect()
            }
            Self::List(list) | Self::Tuple(list) => list.items.clone(),
            Self::Dict(dict) => dict.entries.keys().map(|key| key.0.clone()).collect(),
            Self::Object(object) => match object.take_items() {
                Some(items) => items?,
                None => return Err(self.not_iterable()),
            },
            _ => return Err(self.not_iterable()),
        };
        budget::spend(items.len() / 4)?;
        Ok(items)
    }

    fn not_iterable(&self) -> Error {
        Error::runtime(format!("'{}' object is not iterable", self.type_name()))
    }

    pub(crate) fn is_iterable(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::Str(_) | Self::List(_) | Self::Tuple(_) | Self::Dict(_) => true,
            Self::Object(object) => object.is_iterable(),
            _ => false,
        }
    }

    /// The error of using a value that is undefined.
    pub(crate) fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(undefined) => Err(Error::runtime(&*undefined.message)),
            _ => Ok(self),
        }
    }

    /// Whether both are the same object (`is`), as far as that can be told.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            // Python keeps one object for each of these.
            (Self::Int(a), Self::Int(b)) => a == b && (-5..=256).contains(a),
            (Self::Str(a), Self::Str(b)) => Arc::ptr_eq(&a.text, &b.text) || (a.is_empty() && b.is_empty()),
            (Self::List(a), Self::List(b)) => Rc::ptr_eq(a, b),
            (Self::Tuple(a), Self::Tuple(b)) => Rc::ptr_eq(a, b) || (a.is_empty() && b.is_empty()),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Object(a), Self::Object(b)) => Rc::ptr_eq(a, b),
            (Self::Undefined(a), Self::Undefined(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl List {
    fn new(items: Vec<Value>) -> Result<Self> {
        let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        budget::check_depth(depth)?;
        let held = budget::hold(items.len() * 24 + 64);
        Ok(Self { items, depth, held, group: false })
    }
}

/// A cell for the values that change: those of namespaces.
pub(crate) type Attributes = RefCell<IndexMap<Key, Value>>;

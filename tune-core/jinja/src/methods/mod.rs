//! The methods of text, lists, dicts and numbers.

mod collections;
mod numbers;
mod pieces;
mod text;

pub(crate) use pieces::{split_lines, strip};
pub(crate) use text::{in_case, is_lower, is_upper, padded, replaced};

use crate::arguments::Args;
use crate::error::{Error, Result};
use crate::interpret::Interpreter;
use crate::object::Object;
use crate::value::Value;

const TEXT: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
const LIST: [&str; 11] =
    ["append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"];
const TUPLE: [&str; 2] = ["count", "index"];
const INT: [&str; 6] = ["as_integer_ratio", "bit_count", "bit_length", "conjugate", "from_bytes", "to_bytes"];
const FLOAT: [&str; 5] = ["as_integer_ratio", "conjugate", "fromhex", "hex", "is_integer"];

fn names(value: &Value) -> &'static [&'static str] {
    match value {
        Value::Str(_) => &TEXT,
        Value::Dict(_) => &DICT,
        Value::List(_) => &LIST,
        Value::Tuple(_) => &TUPLE,
        Value::Bool(_) | Value::Int(_) | Value::Big(_) => &INT,
        Value::Float(_) => &FLOAT,
        Value::Object(object) => match &**object {
            Object::Cycler { .. } => &["next", "reset"],
            Object::Loop(_) => &["changed", "cycle"],
            Object::Range { .. } => &["count", "index"],
            Object::Function("dict") => &["fromkeys"],
            _ => &[],
        },
        Value::Undefined(_) | Value::None => &[],
    }
}

pub(crate) fn is_method(value: &Value, name: &str) -> bool {
    names(value).contains(&name)
}

/// What the sandbox keeps from templates: Python's inner names, and what would change a list or dict.
pub(crate) fn is_forbidden(value: &Value, name: &str) -> bool {
    match value {
        _ if is_inner(name) => true,
        Value::Dict(_) => matches!(name, "clear" | "pop" | "popitem" | "setdefault" | "update"),
        Value::List(_) => {
            matches!(name, "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort")
        }
        _ => false,
    }
}

/// The inner names that every value has.
fn is_inner(name: &str) -> bool {
    matches!(
        name,
        "__class__"
            | "__delattr__"
            | "__dir__"
            | "__doc__"
            | "__eq__"
            | "__format__"
            | "__ge__"
            | "__getattribute__"
            | "__getstate__"
            | "__gt__"
            | "__hash__"
            | "__init__"
            | "__init_subclass__"
            | "__le__"
            | "__lt__"
            | "__ne__"
            | "__new__"
            | "__reduce__"
            | "__reduce_ex__"
            | "__repr__"
            | "__setattr__"
            | "__sizeof__"
            | "__str__"
            | "__subclasshook__"
    )
}

impl Interpreter<'_> {
    /// Whether `value.name(…)` is a method, and no item of a dict or the like.
    pub(crate) fn is_plain_method(&self, value: &Value, name: &str) -> bool {
        !matches!(value, Value::Object(_)) && is_method(value, name) && !is_forbidden(value, name)
    }

    pub(crate) fn call_method(&mut self, value: &Value, name: &str, args: Args) -> Result<Value> {
        match value {
            Value::Str(text) => self.text_method(text, name, args),
            Value::Dict(dict) => collections::dict_method(dict, name, args),
            Value::List(items) | Value::Tuple(items) => collections::list_method(items, name, args),
            Value::Object(object) => self.object_method(object, name, args),
            Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => {
                numbers::number_method(value, name, args)
            }
            Value::Undefined(_) | Value::None => Err(not_supported(name)),
        }
    }
}

fn not_supported(name: &str) -> Error {
    Error::runtime(format!("the method `{name}` is not supported"))
}

//! `value.name` and `value[item]`, as the sandbox of jinja2 has them.

use std::rc::Rc;

use num_bigint::BigInt;

use crate::error::Result;
use crate::interpret::Interpreter;
use crate::key::Key;
use crate::methods;
use crate::number::{Number, index};
use crate::object::{Loop, Object};
use crate::value::{Str, Value};

impl Interpreter<'_> {
    /// `value.name`: an attribute, else an item.
    pub(crate) fn attribute(&mut self, value: &Value, name: &Str) -> Result<Value> {
        if let Some(attribute) = self.own_attribute(value, name)? {
            return Ok(attribute);
        }
        value.defined()?;
        if let Value::Dict(dict) = value
            && let Some(item) = dict.get(name)
        {
            return Ok(item.clone());
        }
        Ok(missing(value, &Value::Str(name.clone())))
    }

    /// `value[item]`: an item, else an attribute.
    pub(crate) fn item(&mut self, value: &Value, item: &Value) -> Result<Value> {
        value.defined()?;
        let found = match value {
            Value::Dict(dict) => match item {
                Value::Str(name) => dict.get(name).cloned(),
                _ => Key::new(item.clone()).ok().and_then(|key| dict.entries.get(&key).cloned()),
            },
            Value::List(items) | Value::Tuple(items) => {
                index(item).and_then(|i| position(i, items.len())).map(|i| items[i].clone())
            }
            Value::Str(text) => match index(item) {
                Some(i) => character(text, i)?,
                None => None,
            },
            Value::Object(object) => match &**object {
                Object::Range { start, step, len, .. } => {
                    index(item).and_then(|i| position(i, *len)).map(|i| Value::Int(start + step * i as i64))
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        if let Value::Str(name) = item
            && let Some(attribute) = self.own_attribute(value, name)?
        {
            return Ok(attribute);
        }
        Ok(missing(value, item))
    }

    /// What `getattr` finds.
    pub(crate) fn own_attribute(&mut self, value: &Value, name: &Str) -> Result<Option<Value>> {
        if let Value::Object(object) = value
            && let Some(found) = self.object_attribute(object, name)?
        {
            return Ok(Some(found));
        }
        if let Value::Tuple(items) = value
            && items.group
            && let Some(at) = ["grouper", "list"].iter().position(|n| *n == name.as_str())
        {
            return Ok(Some(items[at].clone()));
        }
        if let Some(found) = number_attribute(value, name) {
            return Ok(Some(found));
        }
        if methods::is_forbidden(value, name) {
            return Ok(Some(Value::undefined(format!(
                "access to attribute '{}' of '{}' object is unsafe.",
                name.as_str(),
                value.type_name()
            ))));
        }
        if methods::is_method(value, name) {
            return Object::Method(value.clone(), name.clone()).into_value().map(Some);
        }
        Ok(None)
    }

    fn object_attribute(&mut self, object: &Rc<Object>, name: &str) -> Result<Option<Value>> {
        Ok(match &**object {
            Object::Namespace(namespace) => namespace.0.borrow().get(name).cloned(),
            Object::Loop(state) => loop_attribute(state, name)?,
            Object::Cycler { items, at } => match name {
                "current" => items.get(at.get()).cloned(),
                "items" => Some(Value::tuple(items.clone())?),
                "pos" => Some(Value::from(at.get())),
                _ => None,
            },
            Object::Joiner { separator, used } => match name {
                "sep" => Some(separator.clone()),
                "used" => Some(Value::Bool(used.get())),
                _ => None,
            },
            Object::Macro { definition, .. } => match name {
                "name" => Some(definition.name.as_ref().map_or(Value::None, |(_, name)| Value::Str(name.clone()))),
                "arguments" => {
                    let names = definition.arguments.iter().map(|(_, name)| Value::Str(name.clone()));
                    Some(Value::tuple(names.collect())?)
                }
                "catch_kwargs" => Some(Value::Bool(definition.kwargs.is_some())),
                "catch_varargs" => Some(Value::Bool(definition.varargs.is_some())),
                "caller" => Some(Value::Bool(definition.caller.is_some())),
                _ => None,
            },
            Object::Range { start, stop, step, .. } => match name {
                "start" => Some(Value::Int(*start)),
                "stop" => Some(Value::Int(*stop)),
                "step" => Some(Value::Int(*step)),
                _ => None,
            },
            Object::Blocks => {
                let block = self.program.blocks.iter().position(|(block, _)| block.as_str() == name);
                block.map(|block| Object::Block(block).into_value()).transpose()?
            }
            _ => None,
        })
    }
}

fn loop_attribute(state: &Loop, name: &str) -> Result<Option<Value>> {
    let (index, len) = (state.index.get(), state.items.len());
    Ok(Some(match name {
        "index" => Value::from(index + 1),
        "index0" => Value::from(index),
        "revindex" => Value::from(len - index),
        "revindex0" => Value::from(len - index - 1),
        "first" => Value::Bool(index == 0),
        "last" => Value::Bool(index + 1 == len),
        "length" => Value::from(len),
        "depth" => Value::from(state.depth + 1),
        "depth0" => Value::from(state.depth),
        "previtem" => match index.checked_sub(1) {
            Some(before) => state.items[before].clone(),
            None => Value::undefined("there is no previous item"),
        },
        "nextitem" => match state.items.get(index + 1) {
            Some(next) => next.clone(),
            None => Value::undefined("there is no next item"),
        },
        _ => return Ok(None),
    }))
}

fn number_attribute(value: &Value, name: &str) -> Option<Value> {
    let number = Number::of(value)?;
    let is_float = matches!(number, Number::Float(_));
    let own = || match value {
        Value::Bool(b) => Value::Int(i64::from(*b)),
        _ => value.clone(),
    };
    match name {
        "real" => Some(own()),
        "imag" if is_float => Some(Value::Float(0.0)),
        "imag" => Some(Value::Int(0)),
        "numerator" if !is_float => Some(own()),
        "denominator" if !is_float => Some(Value::int(BigInt::from(1))),
        _ => None,
    }
}

fn position(index: i64, len: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(i64::try_from(len).ok()?)? } else { index };
    usize::try_from(index).ok().filter(|&i| i < len)
}

fn character(text: &Str, index: i64) -> Result<Option<Value>> {
    let found = if text.is_ascii() {
        position(index, text.len()).map(|i| &text[i..=i])
    } else {
        crate::budget::spend_bytes(text.len())?;
        let place = if index < 0 {
            text.char_indices().rev().nth((index.unsigned_abs() - 1) as usize)
        } else {
            text.char_indices().nth(index as usize)
        };
        place.map(|(at, c)| &text[at..at + c.len_utf8()])
    };
    Ok(found.map(|c| if text.safe { Value::safe(c) } else { Value::from(c) }))
}

/// The undefined value where there is no such attribute or item.
pub(crate) fn missing(value: &Value, name: &Value) -> Value {
    let object = match value {
        Value::None => "None".to_owned(),
        _ => format!("{} object", value.type_name()),
    };
    Value::undefined(match name {
        Value::Str(name) => format!("'{object}' has no attribute '{}'", name.as_str()),
        _ => format!("{object} has no element {}", crate::repr::repr(name).unwrap_or_default()),
    })
}

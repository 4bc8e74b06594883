//! `value[start:stop:step]`.

use crate::budget;
use crate::error::{Error, Result};
use crate::number::index;
use crate::object::Object;
use crate::value::Value;

pub(crate) fn slice(value: &Value, bounds: &[Value; 3]) -> Result<Value> {
    value.defined()?;
    let bound = |value: &Value| match value {
        Value::None => Ok(None),
        _ => index(value.defined()?)
            .map(Some)
            .ok_or_else(|| Error::runtime("slice indices must be integers or None or have an __index__ method")),
    };
    let [start, stop, step] = bounds;
    let (start, stop, step) = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    if step == 0 {
        return Err(Error::runtime("slice step cannot be zero"));
    }
    match value {
        Value::Str(text) => {
            budget::reserve(text.len())?;
            let sliced = if step == 1 {
                forward(text, start, stop).to_owned()
            } else {
                let chars: Vec<char> = text.chars().collect();
                indices(chars.len(), start, stop, step).map(|i| chars[i]).collect()
            };
            Ok(if text.safe { Value::safe(sliced) } else { sliced.into() })
        }
        Value::List(items) | Value::Tuple(items) => {
            let indices = indices(items.len(), start, stop, step);
            budget::reserve(indices.len() * 24)?;
            let sliced = indices.map(|i| items[i].clone()).collect();
            if matches!(value, Value::List(_)) { Value::list(sliced) } else { Value::tuple(sliced) }
        }
        Value::Object(object) => match &**object {
            Object::Range { start: first, step: by, len, .. } => {
                let (from, to, count) = bounds_of(*len, start, stop, step);
                let (start, stop) = (first + by * from, first + by * to);
                Object::Range { start, stop, step: by.saturating_mul(step), len: count }.into_value()
            }
            _ => Err(not_subscriptable(value)),
        },
        _ => Err(not_subscriptable(value)),
    }
}

fn not_subscriptable(value: &Value) -> Error {
    let name = value.type_name();
    Error::runtime(if name == "dict" {
        "unhashable type: 'slice'".to_owned()
    } else {
        format!("'{name}' object is not subscriptable")
    })
}

/// A slice of text, without going through what is beyond it.
fn forward(text: &str, start: Option<i64>, stop: Option<i64>) -> &str {
    let offset = |bound: i64| -> usize {
        if text.is_ascii() {
            let len = text.len() as i64;
            return if bound < 0 { (len + bound.max(-len)) as usize } else { bound.min(len) as usize };
        }
        if bound >= 0 {
            text.char_indices().nth(bound as usize).map_or(text.len(), |(at, _)| at)
        } else {
            let back = bound.unsigned_abs() as usize - 1;
            text.char_indices().rev().nth(back).map_or(0, |(at, _)| at)
        }
    };
    let start = start.map_or(0, offset);
    let stop = stop.map_or(text.len(), offset);
    text.get(start..stop).unwrap_or_default()
}

/// The indices of a slice.
fn indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl ExactSizeIterator<Item = usize> {
    let (start, _, count) = bounds_of(len, start, stop, step);
    (0..count).map(move |i| (start + step.saturating_mul(i as i64)) as usize)
}

/// The first index of a slice, the one where it ends, and how many there are, as `slice.indices` has them.
fn bounds_of(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> (i64, i64, usize) {
    let len = len as i64;
    let (lowest, highest) = if step < 0 { (-1, len - 1) } else { (0, len) };
    let clamp = |bound: i64| if bound < 0 { (bound.saturating_add(len)).max(lowest) } else { bound.min(highest) };
    let start = start.map_or(if step < 0 { highest } else { lowest }, clamp);
    let stop = stop.map_or(if step < 0 { lowest } else { highest }, clamp);
    let distance = if step < 0 { start - stop } else { stop - start };
    let count = if distance <= 0 { 0 } else { (distance - 1) / step.saturating_abs() + 1 };
    (start, stop, count as usize)
}

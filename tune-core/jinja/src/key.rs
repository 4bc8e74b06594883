//! Equality, order and hashing of values, as Python has them.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

use indexmap::Equivalent;
use num_bigint::BigInt;
use num_traits::ToPrimitive;

use crate::budget;
use crate::error::{Error, Result};
use crate::number::Number;
use crate::object::{Object, View};
use crate::value::Value;

/// A value that can be the key of a dict.
#[derive(Clone)]
pub(crate) struct Key(pub(crate) Value);

impl Key {
    /// # Errors
    /// A value that cannot be a key.
    pub(crate) fn new(value: Value) -> Result<Self> {
        check_hashable(&value)?;
        Ok(Self(value))
    }
}

fn check_hashable(value: &Value) -> Result<()> {
    match value {
        Value::List(_) | Value::Dict(_) => Err(Error::runtime(format!("unhashable type: '{}'", value.type_name()))),
        Value::Object(object) if matches!(**object, Object::View(_, View::Keys | View::Items)) => {
            Err(Error::runtime(format!("unhashable type: '{}'", value.type_name())))
        }
        Value::Tuple(items) => {
            budget::spend(1)?;
            items.iter().try_for_each(check_hashable)
        }
        _ => Ok(()),
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(&self.0, state);
    }
}

fn hash<H: Hasher>(value: &Value, state: &mut H) {
    match value {
        // As `str` hashes, for lookups by text.
        Value::Str(text) => text.as_str().hash(state),
        Value::Tuple(items) if budget::spend(1).is_ok() => items.iter().for_each(|item| hash(item, state)),
        Value::Bool(b) => f64::from(u8::from(*b)).to_bits().hash(state),
        // Equal numbers have one hash, whatever their types.
        Value::Int(i) => (*i as f64).to_bits().hash(state),
        Value::Big(i) => i.to_f64().unwrap_or(f64::INFINITY).to_bits().hash(state),
        Value::Float(x) => (if *x == 0.0 { 0.0 } else { *x }).to_bits().hash(state),
        _ => 0u8.hash(state),
    }
}

impl Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        key.0.as_str() == Some(self)
    }
}

/// `a == b`.
///
/// Where no steps are left the answer does not matter any more.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            a.len() == b.len() && budget::spend_bytes(a.len()).is_ok() && a.as_str() == b.as_str()
        }
        (Value::List(_) | Value::Tuple(_) | Value::Dict(_), _) if budget::spend(1).is_err() => false,
        (Value::List(_) | Value::Tuple(_) | Value::Dict(_), _) if a.is_same(b) => true,
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(a, b))
        }
        (Value::Dict(a), Value::Dict(b)) => {
            a.entries.len() == b.entries.len()
                && a.entries.iter().all(|(k, v)| b.entries.get(k).is_some_and(|w| equal(v, w)))
        }
        (Value::Object(a), Value::Object(b)) => a.equals(b),
        _ => match (Number::of(a), Number::of(b)) {
            (Some(a), Some(b)) => compare_numbers(&a, &b) == Some(Ordering::Equal),
            _ => false,
        },
    }
}

fn compare_numbers(a: &Number<'_>, b: &Number<'_>) -> Option<Ordering> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => Some(a.cmp(b)),
        (Number::Float(a), Number::Float(b)) => a.partial_cmp(b),
        (Number::Float(x), i) => int_with_float(i, *x).map(Ordering::reverse),
        (i, Number::Float(x)) => int_with_float(i, *x),
        (a, b) => Some(a.to_big().cmp(&b.to_big())),
    }
}

/// An integer compared with a float, without rounding it.
fn int_with_float(i: &Number<'_>, x: f64) -> Option<Ordering> {
    if x.is_nan() {
        return None;
    }
    if x.is_infinite() {
        return Some(if x > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let whole = num_traits::FromPrimitive::from_f64(x.trunc()).unwrap_or_else(|| BigInt::from(0));
    let fraction = x - x.trunc();
    let order = i.to_big().as_ref().cmp(&whole);
    Some(order.then(0.0f64.partial_cmp(&fraction)?))
}

/// The order of two values, `None` for floats without one; `sign` is for the message.
///
/// # Errors
/// Values of types that have no order.
pub(crate) fn compare(a: &Value, b: &Value, sign: &str) -> Result<Option<Ordering>> {
    a.defined()?;
    b.defined()?;
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            budget::spend_bytes(a.len().min(b.len()))?;
            Ok(Some(a.as_str().cmp(b.as_str())))
        }
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            for (a, b) in x.iter().zip(y.iter()) {
                budget::spend(1)?;
                if !equal(a, b) {
                    return compare(a, b, sign);
                }
            }
            Ok(Some(x.len().cmp(&y.len())))
        }
        _ => match (Number::of(a), Number::of(b)) {
            (Some(a), Some(b)) => Ok(compare_numbers(&a, &b)),
            _ => compare_sets(a, b, sign).unwrap_or_else(|| {
                Err(Error::runtime(format!(
                    "'{sign}' not supported between instances of '{}' and '{}'",
                    a.type_name(),
                    b.type_name()
                )))
            }),
        },
    }
}

/// The order of views that are sets, if both are.
fn compare_sets(a: &Value, b: &Value, sign: &str) -> Option<Result<Option<Ordering>>> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.compare_sets(b, sign),
        _ => None,
    }
}

/// `sorted(items, key=…)`: stable, by the keys that come with the items.
pub(crate) fn sort(items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>> {
    let mut items = items;
    let mut failure = None;
    if reverse {
        items.reverse();
    }
    budget::spend(items.len().saturating_mul(items.len().max(2).ilog2() as usize))?;
    let mut less = |a: &Value, b: &Value| match compare(a, b, "<") {
        Ok(order) => order == Some(Ordering::Less),
        Err(error) => {
            failure.get_or_insert(error);
            false
        }
    };
    // A merge sort of our own: what Python calls an order may be none (floats without one).
    merge_sort(&mut items, &mut less);
    if reverse {
        items.reverse();
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(items.into_iter().map(|(_, item)| item).collect()),
    }
}

fn merge_sort(items: &mut Vec<(Value, Value)>, less: &mut impl FnMut(&Value, &Value) -> bool) {
    if items.len() < 2 {
        return;
    }
    let mut right = items.split_off(items.len() / 2);
    let mut left = std::mem::take(items);
    merge_sort(&mut left, less);
    merge_sort(&mut right, less);
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if less(&b.0, &a.0) { right.next() } else { left.next() };
        items.extend(next);
    }
    items.extend(left);
    items.extend(right);
}

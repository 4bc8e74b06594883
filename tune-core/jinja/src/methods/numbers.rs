//! Methods of numbers.

use num_bigint::BigInt;

use super::not_supported;
use crate::arguments::Args;
use crate::error::{Error, Result};
use crate::number::Number;
use crate::value::Value;

pub(super) fn number_method(value: &Value, name: &str, args: Args) -> Result<Value> {
    let Some(number) = Number::of(value) else {
        return Err(not_supported(name));
    };
    match (name, &number) {
        ("conjugate", _) => {
            args.none(name)?;
            Ok(match value {
                Value::Bool(b) => Value::Int(i64::from(*b)),
                _ => value.clone(),
            })
        }
        ("is_integer", Number::Float(x)) => {
            args.none(name)?;
            Ok(Value::Bool(x.is_finite() && x.fract() == 0.0))
        }
        ("bit_length", Number::Int(_) | Number::Big(_)) => {
            args.none(name)?;
            Ok(Value::from(number.to_big().bits() as usize))
        }
        ("bit_count", Number::Int(_) | Number::Big(_)) => {
            args.none(name)?;
            let ones: u32 = number.to_big().iter_u32_digits().map(u32::count_ones).sum();
            Ok(Value::from(ones as usize))
        }
        ("as_integer_ratio", Number::Int(_) | Number::Big(_)) => {
            args.none(name)?;
            Value::tuple(vec![Value::int(number.to_big().into_owned()), Value::Int(1)])
        }
        ("as_integer_ratio", Number::Float(x)) => {
            args.none(name)?;
            ratio(*x)
        }
        _ => Err(not_supported(name)),
    }
}

fn ratio(x: f64) -> Result<Value> {
    if !x.is_finite() {
        return Err(Error::runtime(format!(
            "cannot convert {} to integer ratio",
            if x.is_nan() { "NaN" } else { "Infinity" }
        )));
    }
    let (mut top, mut halvings) = (x, 0u32);
    while top.fract() != 0.0 {
        top *= 2.0;
        halvings += 1;
    }
    let top: BigInt = num_traits::FromPrimitive::from_f64(top).unwrap_or_default();
    Value::tuple(vec![Value::int(top), Value::int(BigInt::from(1) << halvings)])
}

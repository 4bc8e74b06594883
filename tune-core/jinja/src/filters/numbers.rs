//! Filters of numbers.

use num_bigint::BigInt;
use num_traits::Signed;

use crate::arguments::{Args, integer, is_true};
use crate::error::{Error, Result};
use crate::interpret::Interpreter;
use crate::number::{Number, Operator, arithmetic, truncate};
use crate::syntax::is_space;
use crate::unicode::is_decimal;
use crate::value::Value;

pub(super) fn abs(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("abs")?;
    match Number::of(value.defined()?) {
        Some(Number::Float(x)) => Ok(Value::Float(x.abs())),
        Some(number) => Ok(Value::int(number.to_big().abs())),
        None => Err(Error::runtime(format!("bad operand type for abs(): '{}'", value.type_name()))),
    }
}

/// Digits of Python's number literals: single underscores stand between them only.
fn clean(text: &str) -> Option<String> {
    let text = text.trim_matches(is_space);
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    let digit = |c: char| {
        if is_decimal(c) && !c.is_ascii() {
            // Decimals of other scripts stand in tens that begin with zero.
            let zero = (0..10).find(|back| {
                let before = char::from_u32(c as u32 - back - 1);
                !before.is_some_and(is_decimal) || *back == 9
            });
            zero.and_then(|value| char::from_digit(value, 10)).unwrap_or(c)
        } else {
            c
        }
    };
    Some(text.chars().map(digit).collect())
}

/// `int(text, base)`.
fn parse_int(text: &str, base: u32) -> Option<BigInt> {
    let text = clean(text)?;
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text.as_str()),
    };
    let lower = digits.get(..2).unwrap_or_default().to_ascii_lowercase();
    let prefix = match lower.as_str() {
        "0b" => Some(2),
        "0o" => Some(8),
        "0x" => Some(16),
        _ => None,
    };
    let (radix, digits) = match (base, prefix) {
        (0, Some(radix)) => (radix, digits[2..].trim_start_matches('_')),
        (0, None) if digits.starts_with('0') && digits.bytes().any(|b| (b'1'..=b'9').contains(&b)) => return None,
        (0, None) => (10, digits),
        (base, Some(radix)) if base == radix => (base, digits[2..].trim_start_matches('_')),
        (base, _) => (base, digits),
    };
    let digits: String = digits.chars().filter(|&c| c != '_').collect();
    if digits.is_empty() || digits.starts_with(['+', '-']) || (radix == 10 && digits.len() > 4300) {
        return None;
    }
    let value = BigInt::parse_bytes(digits.as_bytes(), radix)?;
    Some(if negative { -value } else { value })
}

/// `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let text = clean(text)?.to_lowercase();
    let between = |at: usize| {
        let bytes = text.as_bytes();
        bytes[at - 1].is_ascii_digit() && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)
    };
    if text.match_indices('_').any(|(at, _)| !between(at)) {
        return None;
    }
    let text = text.replace('_', "");
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let is_word = matches!(unsigned, "inf" | "infinity" | "nan");
    if !is_word && !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.parse().ok()
}

pub(super) fn int(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let default = default.unwrap_or(Value::Int(0));
    value.defined()?;
    if let Value::Str(text) = &value {
        let base = u32::try_from(integer(base.as_ref(), 10)?).ok().filter(|b| *b == 0 || (2..=36).contains(b));
        if let Some(value) = base.and_then(|base| parse_int(text, base)) {
            return Ok(Value::int(value));
        }
        return Ok(parse_float(text).and_then(|x| truncate(x).ok()).unwrap_or(default));
    }
    match Number::of(&value) {
        // An infinite number is what jinja2 does not expect.
        Some(Number::Float(x)) if x.is_infinite() => truncate(x),
        Some(Number::Float(x)) => Ok(truncate(x).unwrap_or(default)),
        Some(number) => Ok(Value::int(number.to_big().into_owned())),
        None => Ok(default),
    }
}

pub(super) fn float(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [default] = args.bind("float", ["default"])?;
    let default = default.unwrap_or(Value::Float(0.0));
    value.defined()?;
    if let Value::Str(text) = &value {
        return Ok(parse_float(text).map_or(default, Value::Float));
    }
    match Number::of(&value) {
        Some(number) => number.to_float().map(Value::Float),
        None => Ok(default),
    }
}

pub(super) fn round(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let method = method.unwrap_or_else(|| Value::from("common"));
    let method = method.as_str().unwrap_or_default();
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(Error::runtime("method must be common, ceil or floor"));
    }
    let Some(number) = Number::of(value.defined()?) else {
        return Err(Error::runtime(format!("type {} doesn't define __round__ method", value.type_name())));
    };
    if method == "common" {
        let digits = integer(precision.as_ref(), 0)?;
        return match number {
            Number::Float(x) => Ok(Value::Float(round_float(x, digits))),
            whole => round_int(&whole.to_big(), digits),
        };
    }
    let digits = precision.unwrap_or(Value::Int(0));
    let Some(digits) = Number::of(&digits) else {
        return Err(Error::runtime("the precision must be a number"));
    };
    let scale = arithmetic(Operator::Pow, &Number::Int(10), &digits)?;
    let scale = Number::of(&scale).unwrap_or(Number::Int(1));
    let scaled = arithmetic(Operator::Mul, &number, &scale)?;
    let whole = match Number::of(&scaled) {
        Some(Number::Float(x)) => truncate(if method == "ceil" { x.ceil() } else { x.floor() })?,
        _ => scaled,
    };
    arithmetic(Operator::Div, &Number::of(&whole).unwrap_or(Number::Int(0)), &scale)
}

/// `round(x, digits)`: to the nearest, of two the even one, as the digits of `x` are exactly.
fn round_float(x: f64, digits: i64) -> f64 {
    if !x.is_finite() || digits > 323 {
        return x;
    }
    if digits < -308 {
        return 0f64.copysign(x);
    }
    if digits >= 0 {
        return format!("{x:.*}", digits as usize).parse().unwrap_or(x);
    }
    let scale = 10f64.powi(-digits as i32);
    let scaled = x / scale;
    (scaled.round_ties_even() * scale).copysign(x)
}

fn round_int(value: &BigInt, digits: i64) -> Result<Value> {
    if digits >= 0 {
        return Ok(Value::int(value.clone()));
    }
    let power = u32::try_from(-digits).ok().filter(|p| *p < 5000);
    let Some(power) = power else { return Ok(Value::Int(0)) };
    let unit = BigInt::from(10).pow(power);
    let half = &unit / 2;
    let rest = ((value % &unit) + &unit) % &unit;
    let down = value - &rest;
    let odd = (&down / &unit).bit(0);
    Ok(Value::int(if rest > half || (rest == half && odd) { down + unit } else { down }))
}

pub(super) fn filesizeformat(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"])?;
    let binary = is_true(binary.as_ref());
    let bytes = match &value {
        Value::Str(text) => parse_float(text),
        _ => Number::of(value.defined()?).map(|n| n.to_float()).transpose()?,
    };
    let Some(bytes) = bytes else {
        return Err(Error::runtime("could not convert to float"));
    };
    let (base, suffix): (f64, &str) = if binary { (1024.0, "iB") } else { (1000.0, "B") };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", crate::repr::repr(&truncate(bytes)?)?)));
    }
    let mut unit = base;
    let prefixes = if binary { "KMGTPEZY" } else { "kMGTPEZY" };
    for (i, prefix) in prefixes.chars().enumerate() {
        unit *= base;
        if bytes < unit || i == 7 {
            return Ok(Value::from(format!("{:.1} {prefix}{suffix}", base * bytes / unit)));
        }
    }
    Ok(Value::None)
}

//! Arithmetic: integers without end, floats, and when one becomes the other.

use std::borrow::Cow;

use num_bigint::{BigInt, Sign};
use num_traits::{Signed, ToPrimitive, Zero};

use crate::budget;
use crate::error::{Error, Kind, Result};
use crate::value::Value;

/// The most bits that an integer may have.
const MAX_BITS: u64 = 1 << 18;

/// A number; booleans are integers.
pub(crate) enum Number<'a> {
    Int(i64),
    Big(&'a BigInt),
    Float(f64),
}

impl<'a> Number<'a> {
    pub(crate) fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::Bool(b) => Some(Self::Int(i64::from(*b))),
            Value::Int(i) => Some(Self::Int(*i)),
            Value::Big(i) => Some(Self::Big(i)),
            Value::Float(x) => Some(Self::Float(*x)),
            _ => None,
        }
    }

    /// An integer of any size; of a float, its whole part.
    pub(crate) fn to_big(&self) -> Cow<'a, BigInt> {
        match self {
            Self::Int(i) => Cow::Owned((*i).into()),
            Self::Big(i) => Cow::Borrowed(i),
            Self::Float(x) => Cow::Owned(num_traits::FromPrimitive::from_f64(*x).unwrap_or_default()),
        }
    }

    /// # Errors
    /// An integer that is too large.
    pub(crate) fn to_float(&self) -> Result<f64> {
        match self {
            Self::Int(i) => Ok(*i as f64),
            Self::Float(x) => Ok(*x),
            Self::Big(i) => match i.to_f64() {
                Some(x) if x.is_finite() => Ok(x),
                _ => Err(Error::runtime("int too large to convert to float")),
            },
        }
    }
}

/// The integer that an index, a width or a count is.
pub(crate) fn index(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(b) => Some(i64::from(*b)),
        Value::Int(i) => Some(*i),
        Value::Big(i) => Some(if i.sign() == Sign::Minus { i64::MIN } else { i64::MAX }),
        _ => None,
    }
}

/// An operator of arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

impl Operator {
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::FloorDiv => "//",
            Self::Mod => "%",
            Self::Pow => "** or pow()",
        }
    }
}

/// Arithmetic on two numbers.
pub(crate) fn arithmetic(operator: Operator, a: &Number<'_>, b: &Number<'_>) -> Result<Value> {
    if let (Number::Int(a), Number::Int(b)) = (a, b)
        && let Some(result) = small(operator, *a, *b)
    {
        return Ok(Value::Int(result));
    }
    match (a, b) {
        (Number::Float(_), _) | (_, Number::Float(_)) => floats(operator, a.to_float()?, b.to_float()?),
        _ => integers(operator, &a.to_big(), &b.to_big()),
    }
}

fn small(operator: Operator, a: i64, b: i64) -> Option<i64> {
    match operator {
        Operator::Add => a.checked_add(b),
        Operator::Sub => a.checked_sub(b),
        Operator::Mul => a.checked_mul(b),
        // Python rounds down, Rust toward zero.
        Operator::FloorDiv => {
            let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
            Some(if rest != 0 && (rest < 0) != (b < 0) { quotient - 1 } else { quotient })
        }
        Operator::Mod => {
            let rest = a.checked_rem(b)?;
            Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        Operator::Pow => a.checked_pow(u32::try_from(b).ok()?),
        Operator::Div => None,
    }
}

fn integers(operator: Operator, a: &BigInt, b: &BigInt) -> Result<Value> {
    budget::spend_bytes(((a.bits() + b.bits()) / 8) as usize)?;
    if a.bits().saturating_add(b.bits()) > MAX_BITS {
        return Err(too_large());
    }
    let divides = matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod);
    if divides && b.is_zero() {
        let what = if operator == Operator::Div { "division by zero" } else { "integer division or modulo by zero" };
        return Err(Error::runtime(what));
    }
    Ok(match operator {
        Operator::Add => Value::int(a + b),
        Operator::Sub => Value::int(a - b),
        Operator::Mul => Value::int(a * b),
        Operator::Div => Value::Float(true_division(a, b)?),
        Operator::FloorDiv => Value::int(floor_division(a, b)),
        Operator::Mod => Value::int(a - floor_division(a, b) * b),
        Operator::Pow if b.is_negative() => return floats(operator, big_to_float(a)?, big_to_float(b)?),
        Operator::Pow => {
            let exponent = b.to_u64().unwrap_or(u64::MAX);
            if a.bits() > 1 && a.bits().saturating_mul(exponent) > MAX_BITS {
                return Err(too_large());
            }
            let even = exponent.is_multiple_of(2);
            match a.to_i64() {
                // Whatever the exponent.
                Some(0 | 1) => Value::Int(i64::from(exponent == 0 || !a.is_zero())),
                Some(-1) => Value::Int(if even { 1 } else { -1 }),
                _ => Value::int(a.pow(u32::try_from(exponent).map_err(|_| too_large())?)),
            }
        }
    })
}

fn big_to_float(i: &BigInt) -> Result<f64> {
    Number::Big(i).to_float()
}

fn floor_division(a: &BigInt, b: &BigInt) -> BigInt {
    let (quotient, rest) = (a / b, a % b);
    if !rest.is_zero() && rest.is_negative() != b.is_negative() { quotient - 1 } else { quotient }
}

/// The quotient rounded once: shifted so that its integer has more bits than a float keeps.
fn true_division(a: &BigInt, b: &BigInt) -> Result<f64> {
    const EXACT: u64 = 53;
    if a.bits() <= EXACT && b.bits() <= EXACT {
        return Ok(a.to_f64().unwrap_or(f64::NAN) / b.to_f64().unwrap_or(f64::NAN));
    }
    let shift = 66 + b.bits() as i64 - a.bits() as i64;
    let (top, bottom) =
        if shift >= 0 { (a << shift as u64, b.clone()) } else { (a.clone(), b << shift.unsigned_abs()) };
    let quotient = &top / &bottom;
    // What is left over decides a tie.
    let sticky = if (&top % &bottom).is_zero() { quotient } else { quotient | BigInt::from(1) };
    let x = sticky.to_f64().unwrap_or(f64::INFINITY) * (-(shift as f64)).exp2();
    if x.is_infinite() { Err(Error::runtime("integer division result too large for a float")) } else { Ok(x) }
}

fn floats(operator: Operator, a: f64, b: f64) -> Result<Value> {
    let zero = |what: &str| Err(Error::runtime(what));
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Sub => a - b,
        Operator::Mul => a * b,
        Operator::Div if b == 0.0 => return zero("float division by zero"),
        Operator::Div => a / b,
        Operator::FloorDiv if b == 0.0 => return zero("float floor division by zero"),
        Operator::FloorDiv => floor_and_rest(a, b).0,
        Operator::Mod if b == 0.0 => return zero("float modulo"),
        Operator::Mod => floor_and_rest(a, b).1,
        Operator::Pow if a == 0.0 && b < 0.0 => return zero("0.0 cannot be raised to a negative power"),
        Operator::Pow if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 => {
            return zero("complex numbers are not supported");
        }
        Operator::Pow => {
            let x = a.powf(b);
            if x.is_infinite() && a.is_finite() && b.is_finite() {
                return zero("(34, 'Numerical result out of range')");
            }
            x
        }
    }))
}

/// `divmod` of floats, as CPython computes it.
fn floor_and_rest(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0f64.copysign(b);
    } else if (b < 0.0) != (rest < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    let floor = if quotient == 0.0 {
        0f64.copysign(a / b)
    } else {
        let floor = quotient.floor();
        if quotient - floor > 0.5 { floor + 1.0 } else { floor }
    };
    (floor, rest)
}

/// `-value` or `+value`.
pub(crate) fn unary(value: &Value, minus: bool) -> Result<Value> {
    value.defined()?;
    Ok(match Number::of(value) {
        Some(Number::Float(x)) => Value::Float(if minus { -x } else { x }),
        Some(number) => Value::int(if minus { -number.to_big().into_owned() } else { number.to_big().into_owned() }),
        None => {
            let sign = if minus { '-' } else { '+' };
            return Err(Error::runtime(format!("bad operand type for unary {sign}: '{}'", value.type_name())));
        }
    })
}

/// `int(x)` of a float.
pub(crate) fn truncate(x: f64) -> Result<Value> {
    if x.is_nan() {
        return Err(Error::runtime("cannot convert float NaN to integer"));
    }
    match num_traits::FromPrimitive::from_f64(x.trunc()) {
        Some(whole) => Ok(Value::int(whole)),
        None => Err(Error::runtime("cannot convert float infinity to integer")),
    }
}

fn too_large() -> Error {
    Error::new(Kind::Limit, "an integer becomes too large")
}

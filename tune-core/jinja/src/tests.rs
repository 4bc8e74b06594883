//! The tests of jinja2: what stands behind `is`.

use crate::arguments::Args;
use crate::error::{Error, Result};
use crate::evaluate::{compares, contains, operate};
use crate::filters::Filter;
use crate::key::{Key, equal};
use crate::methods::{is_lower, is_upper};
use crate::number::{Number, Operator};
use crate::object::Object;
use crate::repr::to_str;
use crate::syntax::ast::Comparison;
use crate::value::Value;

type Run = fn(&Value, &[Value]) -> Result<bool>;

/// A test, and how many arguments it takes.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    name: &'static str,
    arguments: usize,
    run: Run,
}

const fn test(name: &'static str, arguments: usize, run: Run) -> Test {
    Test { name, arguments, run }
}

const TESTS: [Test; 39] = [
    test("!=", 1, |a, b| compares(Comparison::NotEqual, a, &b[0])),
    test("<", 1, |a, b| compares(Comparison::Less, a, &b[0])),
    test("<=", 1, |a, b| compares(Comparison::LessEqual, a, &b[0])),
    test("==", 1, |a, b| compares(Comparison::Equal, a, &b[0])),
    test(">", 1, |a, b| compares(Comparison::Greater, a, &b[0])),
    test(">=", 1, |a, b| compares(Comparison::GreaterEqual, a, &b[0])),
    test("boolean", 0, |a, _| Ok(matches!(a, Value::Bool(_)))),
    test("callable", 0, |a, _| Ok(is_callable(a))),
    test("defined", 0, |a, _| Ok(!a.is_undefined())),
    test("divisibleby", 1, |a, b| remainder_is(a, &b[0], 0)),
    test("eq", 1, |a, b| compares(Comparison::Equal, a, &b[0])),
    test("equalto", 1, |a, b| compares(Comparison::Equal, a, &b[0])),
    test("escaped", 0, |a, _| Ok(matches!(a, Value::Str(text) if text.safe))),
    test("even", 0, |a, _| remainder_is(a, &Value::Int(2), 0)),
    test("false", 0, |a, _| Ok(matches!(a, Value::Bool(false)))),
    test("filter", 0, |a, _| Ok(key_of(a)?.is_some_and(|name| Filter::named(name).is_some()))),
    test("float", 0, |a, _| Ok(matches!(a, Value::Float(_)))),
    test("ge", 1, |a, b| compares(Comparison::GreaterEqual, a, &b[0])),
    test("greaterthan", 1, |a, b| compares(Comparison::Greater, a, &b[0])),
    test("gt", 1, |a, b| compares(Comparison::Greater, a, &b[0])),
    test("in", 1, |a, b| contains(&b[0], a)),
    test("integer", 0, |a, _| Ok(matches!(a, Value::Int(_) | Value::Big(_)))),
    test("iterable", 0, |a, _| Ok(a.is_iterable())),
    test("le", 1, |a, b| compares(Comparison::LessEqual, a, &b[0])),
    test("lessthan", 1, |a, b| compares(Comparison::Less, a, &b[0])),
    test("lower", 0, |a, _| Ok(is_lower(&to_str(a)?))),
    test("lt", 1, |a, b| compares(Comparison::Less, a, &b[0])),
    test("mapping", 0, |a, _| Ok(matches!(a, Value::Dict(_)))),
    test("ne", 1, |a, b| compares(Comparison::NotEqual, a, &b[0])),
    test("none", 0, |a, _| Ok(a.is_none())),
    test("number", 0, |a, _| Ok(Number::of(a).is_some())),
    test("odd", 0, |a, _| remainder_is(a, &Value::Int(2), 1)),
    test("sameas", 1, |a, b| is_same(a, &b[0])),
    test("sequence", 0, |a, _| Ok(is_sequence(a))),
    test("string", 0, |a, _| Ok(a.as_str().is_some())),
    test("test", 0, |a, _| Ok(key_of(a)?.is_some_and(|name| Test::named(name).is_some()))),
    test("true", 0, |a, _| Ok(matches!(a, Value::Bool(true)))),
    test("undefined", 0, |a, _| Ok(a.is_undefined())),
    test("upper", 0, |a, _| Ok(is_upper(&to_str(a)?))),
];

impl Test {
    pub(crate) fn named(name: &str) -> Option<Self> {
        TESTS.iter().find(|test| test.name == name).copied()
    }

    pub(crate) fn run(self, value: &Value, args: Args) -> Result<bool> {
        let parameter = match self.name {
            "divisibleby" => "num",
            "in" => "seq",
            "sameas" => "other",
            _ => "",
        };
        let mut args = args;
        if let [(name, _)] = args.named.as_slice()
            && name.as_str() == parameter
            && args.positional.is_empty()
        {
            args = Args::of(args.named.into_iter().map(|(_, value)| value).collect());
        }
        let args = args.plain(self.name, self.arguments, self.arguments)?;
        (self.run)(value, &args)
    }
}

fn remainder_is(value: &Value, divisor: &Value, rest: i64) -> Result<bool> {
    Ok(equal(&operate(Operator::Mod, value, divisor)?, &Value::Int(rest)))
}

/// What a filter or test is looked up by.
fn key_of(value: &Value) -> Result<Option<&str>> {
    Key::new(value.clone())?;
    Ok(value.as_str())
}

/// `a is sameas b`, where Python has one object or two for certain.
fn is_same(a: &Value, b: &Value) -> Result<bool> {
    let cached = |text: &str| text.chars().count() == 1 && text.chars().all(|c| (c as u32) < 0x100);
    match (a, b) {
        _ if a.is_same(b) => Ok(true),
        (Value::Str(x), Value::Str(_)) if equal(a, b) && !x.safe && cached(x) => Ok(true),
        (Value::Str(_), Value::Str(_))
        | (Value::Int(_) | Value::Big(_), Value::Int(_) | Value::Big(_))
        | (Value::Float(_), Value::Float(_))
            if equal(a, b) =>
        {
            Err(Error::runtime("whether two equal texts or numbers are the same object cannot be told: use `==`"))
        }
        _ => Ok(false),
    }
}

fn is_callable(value: &Value) -> bool {
    match value {
        // `Undefined` can be called: it fails.
        Value::Undefined(_) => true,
        Value::Object(object) => object.is_callable(),
        _ => false,
    }
}

/// What has a length and items: dicts and text, too.
fn is_sequence(value: &Value) -> bool {
    match value {
        Value::Undefined(_) | Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) => true,
        Value::Object(object) => matches!(**object, Object::Range { .. }),
        _ => false,
    }
}

//! Expressions at work.

use std::cmp::Ordering;
use std::rc::Rc;

use indexmap::IndexMap;

use crate::arguments::Args;
use crate::budget;
use crate::error::{Error, Result};
use crate::format::percent;
use crate::interpret::{Environment, Interpreter};
use crate::key::{Key, compare, equal};
use crate::markup;
use crate::number::{Number, Operator, arithmetic, index, unary};
use crate::object::Object;
use crate::repr::write_str;
use crate::syntax::ast::{Arguments, Comparison, Expression, ExpressionKind, Link, LinkKind, Literal, Named};
use crate::value::{Str, Value};

impl Interpreter<'_> {
    pub(crate) fn evaluate(&mut self, expression: &Expression, environment: &Environment) -> Result<Value> {
        budget::spend(1)?;
        match &expression.kind {
            ExpressionKind::Constant(literal) => Ok(constant(literal)),
            ExpressionKind::Name(symbol) => Ok(self.lookup(environment, *symbol).unwrap_or_else(|| {
                let name = &self.program.names[*symbol];
                Value::undefined(format!("'{}' is undefined", name.as_str()))
            })),
            _ => self.deeper(|run| run.compound(expression, environment)).map_err(|error| error.at(expression.line)),
        }
    }

    fn compound(&mut self, expression: &Expression, environment: &Environment) -> Result<Value> {
        match &expression.kind {
            ExpressionKind::Chain(base, links) => {
                let value = self.evaluate(base, environment)?;
                self.follow(value, links, environment)
            }
            ExpressionKind::Tuple(items) => Value::tuple(self.all(items, environment)?),
            ExpressionKind::List(items) => Value::list(self.all(items, environment)?),
            ExpressionKind::Dict(items) => {
                let mut entries = IndexMap::with_capacity(items.len());
                for (key, value) in items {
                    let key = self.evaluate(key, environment)?;
                    let value = self.evaluate(value, environment)?;
                    entries.insert(Key::new(key)?, value);
                }
                Value::dict(entries)
            }
            ExpressionKind::Sign { minus, of } => unary(&self.evaluate(of, environment)?, *minus),
            ExpressionKind::Not(of) => Ok(Value::Bool(!self.evaluate(of, environment)?.is_true())),
            ExpressionKind::And(items) => self.first_that(items, false, environment),
            ExpressionKind::Or(items) => self.first_that(items, true, environment),
            ExpressionKind::Compare(first, rest) => self.comparison(first, rest, environment),
            ExpressionKind::Arithmetic(first, rest) => {
                let mut value = self.evaluate(first, environment)?;
                for (operator, operand) in rest {
                    budget::spend(1)?;
                    let operand = self.evaluate(operand, environment)?;
                    value = operate(*operator, &value, &operand)?;
                }
                Ok(value)
            }
            ExpressionKind::Concat(items) => {
                let mut text = String::new();
                for item in items {
                    let value = self.evaluate(item, environment)?;
                    budget::reserve(text.len())?;
                    write_str(&mut text, &value)?;
                }
                Ok(text.into())
            }
            ExpressionKind::If { test, then, otherwise } => {
                if self.evaluate(test, environment)?.is_true() {
                    return self.evaluate(then, environment);
                }
                match otherwise {
                    Some(otherwise) => self.evaluate(otherwise, environment),
                    None => Ok(Value::undefined(format!(
                        "the inline if-expression on line {} evaluated to false and no else section was defined.",
                        expression.line
                    ))),
                }
            }
            ExpressionKind::Constant(_) | ExpressionKind::Name(_) => self.evaluate(expression, environment),
        }
    }

    fn all(&mut self, items: &[Expression], environment: &Environment) -> Result<Vec<Value>> {
        items.iter().map(|item| self.evaluate(item, environment)).collect()
    }

    /// The first value that is true (or false), else the last.
    fn first_that(&mut self, items: &[Expression], is_true: bool, environment: &Environment) -> Result<Value> {
        let mut value = Value::None;
        for item in items {
            value = self.evaluate(item, environment)?;
            if value.is_true() == is_true {
                break;
            }
        }
        Ok(value)
    }

    fn comparison(
        &mut self,
        first: &Expression,
        rest: &[(Comparison, Expression)],
        environment: &Environment,
    ) -> Result<Value> {
        let mut left = self.evaluate(first, environment)?;
        for (comparison, right) in rest {
            budget::spend(1)?;
            let right = self.evaluate(right, environment)?;
            if !compares(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// What attributes, calls, filters and tests make of a value, one after the other.
    pub(crate) fn follow(&mut self, value: Value, links: &[Link], environment: &Environment) -> Result<Value> {
        let mut value = value;
        let mut links = links.iter().peekable();
        while let Some(link) = links.next() {
            budget::spend(1)?;
            // A method that is called at once needs no object of its own.
            if let (LinkKind::Attribute(name), Some(Link { kind: LinkKind::Call(arguments), line })) =
                (&link.kind, links.peek())
                && self.is_plain_method(&value, name)
            {
                links.next();
                let args = self.arguments(arguments, environment)?;
                value = self.call_method(&value, name, args).map_err(|e| e.at(*line))?;
                continue;
            }
            value = self.link(value, link, environment).map_err(|e| e.at(link.line))?;
        }
        Ok(value)
    }

    fn link(&mut self, value: Value, link: &Link, environment: &Environment) -> Result<Value> {
        match &link.kind {
            LinkKind::Attribute(name) => self.attribute(&value, name),
            LinkKind::Item(item) => {
                let item = self.evaluate(item, environment)?;
                self.item(&value, &item)
            }
            LinkKind::Slice(bounds) => {
                let mut evaluated = [Value::None, Value::None, Value::None];
                for (slot, bound) in evaluated.iter_mut().zip(bounds.iter()) {
                    if let Some(bound) = bound {
                        *slot = self.evaluate(bound, environment)?;
                    }
                }
                crate::slice::slice(&value, &evaluated)
            }
            LinkKind::Call(arguments) => {
                let args = self.arguments(arguments, environment)?;
                self.call(&value, args)
            }
            LinkKind::Filter(Named::Known(filter), arguments) => {
                let args = self.arguments(arguments, environment)?;
                filter.run(self, value, args)
            }
            LinkKind::Test { test: Named::Known(test), negated, arguments } => {
                let args = self.arguments(arguments, environment)?;
                Ok(Value::Bool(test.run(&value, args)? != *negated))
            }
            LinkKind::Filter(Named::Unknown(message), _) | LinkKind::Test { test: Named::Unknown(message), .. } => {
                Err(Error::runtime(message.as_str()))
            }
        }
    }

    pub(crate) fn call_with_caller(
        &mut self,
        call: &Expression,
        caller: Value,
        environment: &Environment,
    ) -> Result<Value> {
        let ExpressionKind::Chain(base, links) = &call.kind else {
            return Err(Error::runtime("expected call"));
        };
        let Some((Link { kind: LinkKind::Call(arguments), .. }, before)) = links.split_last() else {
            return Err(Error::runtime("expected call"));
        };
        let base = self.evaluate(base, environment)?;
        let function = self.follow(base, before, environment)?;
        let mut args = self.arguments(arguments, environment)?;
        args.named.push((Str::constant("caller".to_owned()), caller));
        self.call(&function, args)
    }

    fn arguments(&mut self, arguments: &Arguments, environment: &Environment) -> Result<Args> {
        let mut args = Args::of(self.all(&arguments.positional, environment)?);
        for (name, value) in &arguments.named {
            args.named.push((name.clone(), self.evaluate(value, environment)?));
        }
        if let Some(unpacked) = &arguments.unpacked {
            args.positional.extend(self.evaluate(unpacked, environment)?.items()?);
        }
        if let Some(unpacked) = &arguments.unpacked_named {
            let Value::Dict(dict) = self.evaluate(unpacked, environment)? else {
                return Err(Error::runtime("argument after ** must be a mapping"));
            };
            for (key, value) in &dict.entries {
                let Value::Str(name) = &key.0 else {
                    return Err(Error::runtime("keywords must be strings"));
                };
                if args.named.iter().any(|(other, _)| **other == **name) {
                    let name = name.as_str();
                    return Err(Error::runtime(format!("got multiple values for keyword argument '{name}'")));
                }
                args.named.push((name.clone(), value.clone()));
            }
        }
        Ok(args)
    }
}

fn constant(literal: &Literal) -> Value {
    match literal {
        Literal::None => Value::None,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(i) => Value::Int(*i),
        Literal::Big(i) => Value::Big(Rc::new(i.clone())),
        Literal::Float(x) => Value::Float(*x),
        Literal::Str(text) => Value::Str(text.clone()),
    }
}

/// Whether a comparison holds.
pub(crate) fn compares(comparison: Comparison, a: &Value, b: &Value) -> Result<bool> {
    let ordered = |sign: &str, holds: fn(Ordering) -> bool| Ok(compare(a, b, sign)?.is_some_and(holds));
    match comparison {
        Comparison::Equal | Comparison::NotEqual => Ok(equal(a, b) == (comparison == Comparison::Equal)),
        Comparison::Less => ordered("<", Ordering::is_lt),
        Comparison::LessEqual => ordered("<=", Ordering::is_le),
        Comparison::Greater => ordered(">", Ordering::is_gt),
        Comparison::GreaterEqual => ordered(">=", Ordering::is_ge),
        Comparison::In => contains(b, a),
        Comparison::NotIn => contains(b, a).map(|is| !is),
    }
}

/// `item in container`.
pub(crate) fn contains(container: &Value, item: &Value) -> Result<bool> {
    match container {
        Value::Undefined(_) => Ok(false),
        Value::Str(text) => {
            let Some(part) = item.defined()?.as_str() else {
                return Err(Error::runtime(format!(
                    "'in <string>' requires string as left operand, not {}",
                    item.type_name()
                )));
            };
            budget::spend_bytes(text.len())?;
            Ok(text.contains(part))
        }
        Value::Dict(dict) => Ok(dict.entries.contains_key(&Key::new(item.clone())?)),
        Value::List(items) | Value::Tuple(items) => {
            budget::spend(items.len() / 4)?;
            Ok(items.iter().any(|other| equal(other, item)))
        }
        Value::Object(object) => match &**object {
            Object::Range { .. } | Object::View(..) | Object::Iter(_) => {
                Ok(container.items()?.iter().any(|other| equal(other, item)))
            }
            _ => Err(not_iterable(container)),
        },
        _ => Err(not_iterable(container)),
    }
}

fn not_iterable(value: &Value) -> Error {
    Error::runtime(format!("argument of type '{}' is not iterable", value.type_name()))
}

/// `a + b` and its kin.
pub(crate) fn operate(operator: Operator, a: &Value, b: &Value) -> Result<Value> {
    if let (Value::Str(format), Operator::Mod) = (a, operator) {
        return percent(format, b);
    }
    a.defined()?;
    b.defined()?;
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return arithmetic(operator, &a, &b);
    }
    match (operator, a, b) {
        (Operator::Add, Value::Str(a), Value::Str(b)) => {
            budget::reserve(a.len() + b.len())?;
            if a.safe || b.safe {
                return Ok(Value::safe(format!("{}{}", markup::soft(a), markup::soft(b))));
            }
            let mut text = String::with_capacity(a.len() + b.len());
            text.push_str(a);
            text.push_str(b);
            Ok(text.into())
        }
        (Operator::Add, Value::List(a), Value::List(b)) => Value::list(joined(a, b)?),
        (Operator::Add, Value::Tuple(a), Value::Tuple(b)) => Value::tuple(joined(a, b)?),
        (Operator::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), count)
        | (Operator::Mul, count, Value::Str(_) | Value::List(_) | Value::Tuple(_))
            if index(count).is_some() =>
        {
            let of = if index(a).is_some() { b } else { a };
            repeat(of, usize::try_from(index(count).unwrap_or(0)).unwrap_or(0))
        }
        (Operator::Add, Value::Str(_), other) => {
            Err(Error::runtime(format!("can only concatenate str (not \"{}\") to str", other.type_name())))
        }
        (Operator::Add, Value::List(_), other) => {
            Err(Error::runtime(format!("can only concatenate list (not \"{}\") to list", other.type_name())))
        }
        _ => Err(Error::runtime(format!(
            "unsupported operand type(s) for {}: '{}' and '{}'",
            operator.sign(),
            a.type_name(),
            b.type_name()
        ))),
    }
}

fn joined(a: &[Value], b: &[Value]) -> Result<Vec<Value>> {
    budget::reserve((a.len() + b.len()) * 24)?;
    Ok(a.iter().chain(b).cloned().collect())
}

/// Text or a list, so many times.
fn repeat(value: &Value, count: usize) -> Result<Value> {
    match value {
        Value::Str(text) => {
            budget::reserve(text.len().saturating_mul(count))?;
            let repeated = text.repeat(count);
            Ok(if text.safe { Value::safe(repeated) } else { repeated.into() })
        }
        Value::List(items) | Value::Tuple(items) => {
            budget::reserve(items.len().saturating_mul(count).saturating_mul(24))?;
            // An empty list need not be copied so often.
            let count = if items.is_empty() { 0 } else { count };
            let repeated: Vec<Value> = (0..count).flat_map(|_| items.iter().cloned()).collect();
            if matches!(value, Value::List(_)) { Value::list(repeated) } else { Value::tuple(repeated) }
        }
        _ => Err(Error::runtime("only text and lists can be repeated")),
    }
}

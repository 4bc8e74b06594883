//! Filters that apply a filter, a test or an operator to all items.

use super::Filter;
use super::sequences::{folded, generator, path};
use crate::arguments::{Args, is_true};
use crate::error::{Error, Result};
use crate::evaluate::operate;
use crate::interpret::Interpreter;
use crate::key::compare;
use crate::number::Operator;
use crate::tests::Test;
use crate::value::Value;

fn no_items() -> Value {
    Value::iter_of("generator", Vec::new())
}

fn failed(error: Error) -> Value {
    Value::partial_iter("generator", Vec::new(), Some(error))
}

pub(super) fn map(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    if !value.is_true() {
        return Ok(no_items());
    }
    let Args { mut positional, mut named } = args;
    let attribute = named.iter().position(|(name, _)| &**name == "attribute");
    if let (true, Some(at)) = (positional.is_empty(), attribute) {
        let attribute = named.remove(at).1;
        let default = named.iter().position(|(name, _)| &**name == "default").map(|at| named.remove(at).1);
        if let Some((name, _)) = named.first() {
            return Ok(failed(Error::runtime(format!("Unexpected keyword argument '{}'", name.as_str()))));
        }
        let path = path(Some(&attribute));
        let default = default.filter(|d| !d.is_none());
        return match value.items() {
            Ok(items) => generator(items.iter().map(|item| run.at_path(item, &path, default.as_ref()))),
            Err(error) => Ok(failed(error)),
        };
    }
    if positional.is_empty() {
        return Ok(failed(Error::runtime("map requires a filter argument")));
    }
    let name = positional.remove(0);
    let filter = name.as_str().and_then(Filter::named);
    let Some(filter) = filter else {
        return Ok(failed(Error::runtime(format!("No filter named {}.", crate::repr::repr(&name)?))));
    };
    let items = match value.items() {
        Ok(items) => items,
        Err(error) => return Ok(failed(error)),
    };
    generator(items.into_iter().map(|item| {
        crate::budget::spend(1)?;
        filter.run(run, item, Args { positional: positional.clone(), named: named.clone() })
    }))
}

/// `select` and its three kin.
fn choose(run: &mut Interpreter<'_>, value: Value, args: Args, keep: bool, of_attribute: bool) -> Result<Value> {
    if !value.is_true() {
        return Ok(no_items());
    }
    let Args { mut positional, named } = args;
    let mut attribute = Vec::new();
    if of_attribute {
        if positional.is_empty() {
            return Ok(failed(Error::runtime("Missing parameter for attribute name")));
        }
        attribute = path(Some(&positional.remove(0)));
    }
    let test = if positional.is_empty() {
        None
    } else {
        let name = positional.remove(0);
        match name.as_str().and_then(Test::named) {
            Some(test) => Some(test),
            None => return Ok(failed(Error::runtime(format!("No test named {}.", crate::repr::repr(&name)?)))),
        }
    };
    let items = match value.items() {
        Ok(items) => items,
        Err(error) => return Ok(failed(error)),
    };
    generator(items.into_iter().filter_map(|item| {
        let mut passes = || {
            let value = run.at_path(&item, &attribute, None)?;
            match test {
                Some(test) => test.run(&value, Args { positional: positional.clone(), named: named.clone() }),
                None => Ok(value.is_true()),
            }
        };
        match passes() {
            Ok(passes) => (passes == keep).then_some(Ok(item)),
            Err(error) => Some(Err(error)),
        }
    }))
}

pub(super) fn select(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    choose(run, value, args, true, false)
}

pub(super) fn reject(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    choose(run, value, args, false, false)
}

pub(super) fn selectattr(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    choose(run, value, args, true, true)
}

pub(super) fn rejectattr(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    choose(run, value, args, false, true)
}

fn extreme(run: &mut Interpreter<'_>, value: &Value, args: Args, name: &str) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
    let case_sensitive = is_true(case_sensitive.as_ref());
    let path = path(attribute.as_ref());
    let mut best: Option<(Value, Value)> = None;
    for item in value.items()? {
        let key = run.at_path(&item, &path, None)?;
        let key = folded(key, case_sensitive)?;
        let better = match &best {
            None => true,
            Some((than, _)) if name == "min" => compare(&key, than, "<")?.is_some_and(|o| o.is_lt()),
            Some((than, _)) => compare(&key, than, ">")?.is_some_and(|o| o.is_gt()),
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
}

pub(super) fn min(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    extreme(run, &value, args, "min")
}

pub(super) fn max(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    extreme(run, &value, args, "max")
}

pub(super) fn sum(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
    let path = path(attribute.as_ref());
    let mut total = start.unwrap_or(Value::Int(0));
    if total.as_str().is_some() {
        return Err(Error::runtime("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    for item in value.items()? {
        let item = run.at_path(&item, &path, None)?;
        total = operate(Operator::Add, &total, &item)?;
    }
    Ok(total)
}

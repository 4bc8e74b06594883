//! What can be called.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use indexmap::IndexMap;

use crate::arguments::{Args, integer, required, text};
use crate::budget;
use crate::date;
use crate::error::{Error, Kind, Result};
use crate::interpret::{HELD, Interpreter, check_attribute_name};
use crate::key::{Key, equal};
use crate::object::{Namespace, Object};
use crate::repr::to_str;
use crate::value::{Str, Value};

/// The most items that a range of the sandbox may have.
const MAX_RANGE: i128 = 100_000;

/// The names that every template can call.
pub(crate) const FUNCTIONS: [&str; 8] =
    ["range", "dict", "namespace", "cycler", "joiner", "lipsum", "raise_exception", "strftime_now"];

impl Interpreter<'_> {
    pub(crate) fn call(&mut self, value: &Value, args: Args) -> Result<Value> {
        let Value::Object(object) = value else {
            value.defined()?;
            return Err(not_callable(value));
        };
        match &**object {
            Object::Macro { definition, environment } => {
                self.deeper(|run| run.call_macro(definition, environment, args))
            }
            Object::Function(name) => self.function(name, args),
            Object::Method(receiver, name) => self.call_method(receiver, name, args),
            Object::Joiner { separator, used } => {
                args.none("joiner")?;
                Ok(if used.replace(true) { separator.clone() } else { Value::from("") })
            }
            Object::Loop(state) => {
                let [iterable] = args.bind("loop", ["iterable"])?;
                let iterable = required(iterable, "loop", "iterable")?;
                let Some((statement, environment)) = &state.recursive else {
                    return Err(Error::runtime("The loop must have the 'recursive' marker to be called recursively."));
                };
                let depth = state.depth + 1;
                Ok(Value::from(self.recursive_loop(statement, &iterable, environment, depth)?))
            }
            Object::Block(block) => {
                args.none("block")?;
                self.deeper(|run| run.block(*block)).map(Value::from)
            }
            _ => Err(not_callable(value)),
        }
    }

    /// The methods of objects; those of data are in `methods`.
    pub(crate) fn object_method(&mut self, object: &Rc<Object>, name: &str, args: Args) -> Result<Value> {
        match (&**object, name) {
            (Object::Cycler { items, at }, "next") => {
                args.none("next")?;
                let now = at.get();
                at.set((now + 1) % items.len());
                Ok(items[now].clone())
            }
            (Object::Cycler { at, .. }, "reset") => {
                args.none("reset")?;
                at.set(0);
                Ok(Value::None)
            }
            (Object::Loop(state), "cycle") => {
                let items = args.plain("cycle", 0, usize::MAX)?;
                if items.is_empty() {
                    return Err(Error::runtime("no items for cycling given"));
                }
                Ok(items[state.index.get() % items.len()].clone())
            }
            (Object::Loop(state), "changed") => {
                let values = args.plain("changed", 0, usize::MAX)?;
                let mut last = state.changed.borrow_mut();
                let same = last.as_ref().is_some_and(|last| {
                    last.len() == values.len() && last.iter().zip(&values).all(|(a, b)| equal(a, b))
                });
                *last = Some(values);
                Ok(Value::Bool(!same))
            }
            (Object::Function("dict"), "fromkeys") => {
                let mut args = args.plain("fromkeys", 1, 2)?.into_iter();
                let keys = args.next().unwrap_or(Value::None).items()?;
                let value = args.next().unwrap_or(Value::None);
                let entries: Result<IndexMap<Key, Value>> =
                    keys.into_iter().map(|key| Ok((Key::new(key)?, value.clone()))).collect();
                Value::dict(entries?)
            }
            (Object::Range { .. }, "index" | "count") => {
                let items = Value::list(Value::Object(object.clone()).items()?)?;
                self.call_method(&items, name, args)
            }
            _ => Err(Error::runtime(format!("`{name}` is not supported"))),
        }
    }

    fn function(&mut self, name: &str, args: Args) -> Result<Value> {
        match name {
            "range" => range(args),
            "dict" => Value::dict(dict_of(args)?),
            "namespace" => {
                let entries = dict_of(args)?;
                entries.keys().filter_map(|key| key.0.as_str()).try_for_each(check_attribute_name)?;
                let object = Rc::new(Object::Namespace(Namespace(RefCell::new(entries))));
                budget::reserve(HELD)?;
                budget::hold(HELD);
                self.namespaces.push(Rc::downgrade(&object));
                Ok(Value::Object(object))
            }
            "cycler" => {
                let items = args.plain("cycler", 0, usize::MAX)?;
                if items.is_empty() {
                    return Err(Error::runtime("at least one item has to be provided"));
                }
                Object::Cycler { items, at: Cell::new(0) }.into_value()
            }
            "joiner" => {
                let [separator] = args.bind("joiner", ["sep"])?;
                let separator = separator.unwrap_or_else(|| Value::from(", "));
                Object::Joiner { separator, used: Cell::new(false) }.into_value()
            }
            "raise_exception" => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = to_str(&required(message, "raise_exception", "message")?)?;
                Err(Error::new(Kind::Refused, message.as_str()))
            }
            "strftime_now" => {
                let [format] = args.bind("strftime_now", ["format"])?;
                let format = required(format, "strftime_now", "format")?;
                let format = text(&format, "strftime_now")?;
                date::strftime(format, self.now).map(Value::from).map_err(Error::runtime)
            }
            _ => Err(Error::runtime(format!("`{name}` gives another text each time, and is not supported"))),
        }
    }
}

fn not_callable(value: &Value) -> Error {
    Error::runtime(format!("'{}' object is not callable", value.type_name()))
}

fn range(args: Args) -> Result<Value> {
    let args = args.plain("range", 1, 3)?;
    let mut numbers = [0; 3];
    for (slot, value) in numbers.iter_mut().zip(&args) {
        *slot = integer(Some(value), 0)?;
    }
    let (start, stop, step) = match args.len() {
        1 => (0, numbers[0], 1),
        2 => (numbers[0], numbers[1], 1),
        _ => (numbers[0], numbers[1], numbers[2]),
    };
    if step == 0 {
        return Err(Error::runtime("range() arg 3 must not be zero"));
    }
    let distance = if step > 0 { i128::from(stop) - i128::from(start) } else { i128::from(start) - i128::from(stop) };
    let by = i128::from(step).abs();
    let len = if distance <= 0 { 0 } else { (distance - 1) / by + 1 };
    if len > MAX_RANGE {
        return Err(Error::new(
            Kind::Limit,
            format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."),
        ));
    }
    Object::Range { start, stop, step, len: len as usize }.into_value()
}

/// `dict(…)`.
pub(crate) fn dict_of(args: Args) -> Result<IndexMap<Key, Value>> {
    let Args { positional, named } = args;
    let mut entries = IndexMap::new();
    if positional.len() > 1 {
        return Err(Error::runtime(format!("dict expected at most 1 argument, got {}", positional.len())));
    }
    for value in positional {
        match &value {
            Value::Dict(dict) => {
                budget::spend(dict.entries.len())?;
                entries.clone_from(&dict.entries);
            }
            _ => {
                for pair in value.defined()?.items()? {
                    let pair = pair.items()?;
                    let [key, value] = pair.as_slice() else {
                        return Err(Error::runtime(format!(
                            "dictionary update sequence element has length {}; 2 is required",
                            pair.len()
                        )));
                    };
                    entries.insert(Key::new(key.clone())?, value.clone());
                }
            }
        }
    }
    entries.extend(named.into_iter().map(|(name, value): (Str, Value)| (Key(Value::Str(name)), value)));
    Ok(entries)
}

//! Methods of dicts, lists and tuples. Those that would change them are kept from templates.

use std::rc::Rc;

use indexmap::IndexMap;

use super::not_supported;
use crate::arguments::{Args, integer};
use crate::budget;
use crate::error::{Error, Result};
use crate::key::{Key, equal};
use crate::object::{Object, View};
use crate::repr::repr;
use crate::value::{Dict, List, Value};

pub(super) fn dict_method(dict: &Rc<Dict>, name: &str, args: Args) -> Result<Value> {
    let view = |args: Args, view| {
        args.none(name)?;
        Object::View(dict.clone(), view).into_value()
    };
    match name {
        "get" => {
            let mut args = args.plain("get", 1, 2)?.into_iter();
            let key = Key::new(args.next().unwrap_or(Value::None))?;
            let default = args.next().unwrap_or(Value::None);
            Ok(dict.entries.get(&key).cloned().unwrap_or(default))
        }
        "items" => view(args, View::Items),
        "keys" => view(args, View::Keys),
        "values" => view(args, View::Values),
        "copy" => {
            args.none("copy")?;
            budget::reserve(dict.entries.len() * 64)?;
            Value::dict(dict.entries.clone())
        }
        "fromkeys" => {
            let mut args = args.plain("fromkeys", 1, 2)?.into_iter();
            let keys = args.next().unwrap_or(Value::None).items()?;
            let value = args.next().unwrap_or(Value::None);
            let entries: Result<IndexMap<Key, Value>> =
                keys.into_iter().map(|key| Ok((Key::new(key)?, value.clone()))).collect();
            Value::dict(entries?)
        }
        _ => Err(not_supported(name)),
    }
}

pub(super) fn list_method(items: &Rc<List>, name: &str, args: Args) -> Result<Value> {
    match name {
        "copy" => {
            args.none("copy")?;
            budget::reserve(items.len() * 24)?;
            Value::list(items.to_vec())
        }
        "count" => {
            let args = args.plain("count", 1, 1)?;
            budget::spend(items.len())?;
            Ok(Value::from(items.iter().filter(|item| equal(item, &args[0])).count()))
        }
        "index" => {
            let args = args.plain("index", 1, 3)?;
            budget::spend(items.len())?;
            let clamp = |value: Option<&Value>, default: usize| -> Result<usize> {
                let at = integer(value, default as i64)?;
                Ok(if at < 0 { at.saturating_add(items.len() as i64).max(0) as usize } else { at as usize })
            };
            let (from, to) = (clamp(args.get(1), 0)?, clamp(args.get(2), items.len())?.min(items.len()));
            let found = (from..to).find(|&i| equal(&items[i], &args[0]));
            let place = || Ok(Error::runtime(format!("{} is not in list", repr(&args[0])?)));
            found.map_or_else(|| Err(place().unwrap_or_else(|e| e)), |i| Ok(Value::from(i)))
        }
        _ => Err(not_supported(name)),
    }
}

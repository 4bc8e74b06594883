//! Filters of lists and dicts.

use crate::arguments::{Args, integer, is_true, required, text as text_of};
use crate::attributes::missing;
use crate::budget;
use crate::error::{Error, Result};
use crate::interpret::Interpreter;
use crate::key::{Key, equal, sort as sorted};
use crate::object::Object;
use crate::value::{Str, Value};

/// The path of an attribute, as `map(attribute="a.0")` takes it.
pub(super) fn path(attribute: Option<&Value>) -> Vec<Value> {
    let part = |part: &str| match part.parse::<i64>() {
        Ok(i) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(i),
        _ => Value::from(part),
    };
    match attribute {
        None | Some(Value::None) => Vec::new(),
        Some(Value::Str(text)) => text.split('.').map(part).collect(),
        Some(other) => vec![other.clone()],
    }
}

impl Interpreter<'_> {
    /// The attribute of an item.
    pub(super) fn at_path(&mut self, item: &Value, path: &[Value], default: Option<&Value>) -> Result<Value> {
        budget::spend(1)?;
        let mut item = item.clone();
        for part in path {
            item = self.item(&item, part)?;
            if let (true, Some(default)) = (item.is_undefined(), default) {
                item = default.clone();
            }
        }
        Ok(item)
    }
}

/// A key that ignores case, unless case is to count.
pub(super) fn folded(value: Value, case_sensitive: bool) -> Result<Value> {
    match &value {
        Value::Str(text) if !case_sensitive => {
            budget::spend_bytes(text.len())?;
            Ok(Value::from(text.to_lowercase()))
        }
        _ => Ok(value),
    }
}

/// An iterator that takes what can be had, and fails where an item does.
pub(super) fn generator(items: impl IntoIterator<Item = Result<Value>>) -> Result<Value> {
    let mut made = Vec::new();
    for item in items {
        match item {
            Ok(item) => made.push(item),
            Err(error) if error.kind() == crate::Kind::Limit => return Err(error),
            Err(error) => return Ok(Value::partial_iter("generator", made, Some(error))),
        }
    }
    Ok(Value::iter_of("generator", made))
}

pub(super) fn attr(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [name] = args.bind("attr", ["name"])?;
    let name = Str::from(text_of(&required(name, "attr", "name")?, "attr")?);
    value.defined()?;
    let found = run.own_attribute(&value, &name)?;
    Ok(found.unwrap_or_else(|| missing(&value, &Value::Str(name))))
}

pub(super) fn length(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("len")?;
    value.len().map(Value::from)
}

pub(super) fn default(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
    let boolean = is_true(boolean.as_ref());
    Ok(if value.is_undefined() || (boolean && !value.is_true()) {
        default.unwrap_or_else(|| Value::from(""))
    } else {
        value
    })
}

pub(super) fn list(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("list")?;
    Value::list(value.items()?)
}

pub(super) fn items(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("items")?;
    match &value {
        Value::Undefined(_) => Ok(Value::iter_of("generator", Vec::new())),
        Value::Dict(dict) => {
            generator(dict.entries.iter().map(|(key, value)| Value::tuple(vec![key.0.clone(), value.clone()])))
        }
        _ => {
            let error = Error::runtime("Can only get item pairs from a mapping.");
            Ok(Value::partial_iter("generator", Vec::new(), Some(error)))
        }
    }
}

pub(super) fn first(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("first")?;
    let found = match &value {
        Value::Object(object) if matches!(**object, Object::Iter(_)) => object.next().transpose()?,
        Value::Str(text) => text.chars().next().map(|c| Value::from(c.to_string())),
        Value::List(items) | Value::Tuple(items) => items.first().cloned(),
        _ => value.items()?.into_iter().next(),
    };
    Ok(found.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
}

pub(super) fn last(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("last")?;
    let found = match &value {
        Value::Str(text) => text.chars().next_back().map(|c| Value::from(c.to_string())),
        Value::List(items) | Value::Tuple(items) => items.last().cloned(),
        _ => reversed(&value)?.pop(),
    };
    Ok(found.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
}

/// The items of what can be gone through from its end, in order.
fn reversed(value: &Value) -> Result<Vec<Value>> {
    let can = match value {
        Value::Object(object) => matches!(**object, Object::Range { .. } | Object::View(..)),
        Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) => true,
        _ => false,
    };
    if value.is_undefined() {
        return Ok(Vec::new());
    }
    if !can {
        return Err(Error::runtime(format!("'{}' object is not reversible", value.type_name())));
    }
    value.items()
}

pub(super) fn reverse(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("reverse")?;
    if let Value::Str(text) = &value {
        budget::reserve(text.len())?;
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let kind = match &value {
        Value::List(_) => "list_reverseiterator",
        Value::Dict(_) => "dict_reversekeyiterator",
        Value::Object(object) if matches!(**object, Object::Range { .. }) => "range_iterator",
        _ => "reversed",
    };
    if value.is_undefined() {
        return Value::list(Vec::new());
    }
    let is_iter = matches!(&value, Value::Object(object) if matches!(**object, Object::Iter(_)));
    if !value.is_iterable() {
        return Err(Error::runtime("argument must be iterable"));
    }
    let mut items = value.items()?;
    items.reverse();
    if is_iter { Value::list(items) } else { Ok(Value::iter_of(kind, items)) }
}

pub(super) fn batch(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [count, fill] = args.bind("batch", ["linecount", "fill_with"])?;
    let count = integer(Some(&required(count, "batch", "linecount")?), 0)?;
    let fill = fill.filter(|f| !f.is_none());
    let items = value.items()?;
    let mut batches = Vec::new();
    let mut batch: Vec<Value> = Vec::new();
    for item in items {
        if batch.len() as i64 == count {
            batches.push(Value::list(std::mem::take(&mut batch)));
        }
        batch.push(item);
    }
    if !batch.is_empty() {
        if let Some(fill) = fill {
            let missing = usize::try_from(count).unwrap_or(0).saturating_sub(batch.len());
            budget::reserve(missing.saturating_mul(24))?;
            batch.extend(std::iter::repeat_n(fill, missing));
        }
        batches.push(Value::list(batch));
    }
    generator(batches)
}

pub(super) fn slice(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [slices, fill] = args.bind("slice", ["slices", "fill_with"])?;
    let slices = integer(Some(&required(slices, "slice", "slices")?), 0)?;
    let fill = fill.filter(|f| !f.is_none());
    let items = value.items()?;
    if slices == 0 {
        let error = Error::runtime("integer division or modulo by zero");
        return Ok(Value::partial_iter("generator", Vec::new(), Some(error)));
    }
    let slices = usize::try_from(slices).unwrap_or(0);
    budget::reserve(slices.saturating_mul(100))?;
    let (each, extra) = (items.len() / slices.max(1), items.len() % slices.max(1));
    let mut offset = 0;
    generator((0..slices).map(|i| {
        let start = offset + i * each;
        offset += usize::from(i < extra);
        let end = offset + (i + 1) * each;
        let mut part = items[start..end].to_vec();
        if i >= extra {
            part.extend(fill.clone());
        }
        Value::list(part)
    }))
}

pub(super) fn dictsort(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let case_sensitive = is_true(case_sensitive.as_ref());
    let by_value = match by.as_ref().map(Value::as_str) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(Error::runtime("You can only sort by either \"key\" or \"value\"")),
    };
    value.defined()?;
    let Value::Dict(dict) = &value else {
        return Err(Error::runtime(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let pairs = dict.entries.iter().map(|(key, value)| {
        let by = if by_value { value } else { &key.0 };
        Ok((folded(by.clone(), case_sensitive)?, Value::tuple(vec![key.0.clone(), value.clone()])?))
    });
    Value::list(sorted(pairs.collect::<Result<_>>()?, is_true(reverse.as_ref()))?)
}

pub(super) fn sort(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [reverse, case_sensitive, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
    let case_sensitive = is_true(case_sensitive.as_ref());
    let paths: Vec<Vec<Value>> = match &attribute {
        Some(Value::Str(text)) => text.split(',').map(|part| path(Some(&Value::from(part)))).collect(),
        other => vec![path(other.as_ref())],
    };
    let mut keyed = Vec::new();
    for item in value.items()? {
        let mut keys = Vec::with_capacity(paths.len());
        for path in &paths {
            let key = run.at_path(&item, path, None)?;
            keys.push(folded(key, case_sensitive)?);
        }
        keyed.push((Value::list(keys)?, item));
    }
    Value::list(sorted(keyed, is_true(reverse.as_ref()))?)
}

pub(super) fn unique(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
    let case_sensitive = is_true(case_sensitive.as_ref());
    let path = path(attribute.as_ref());
    let mut seen: indexmap::IndexSet<Key> = indexmap::IndexSet::new();
    let items = value.items()?;
    generator(items.into_iter().filter_map(|item| {
        let key = run.at_path(&item, &path, None).and_then(|key| Key::new(folded(key, case_sensitive)?));
        match key {
            Ok(key) => seen.insert(key).then_some(Ok(item)),
            Err(error) => Some(Err(error)),
        }
    }))
}

pub(super) fn groupby(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [attribute, default, case_sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let path = path(Some(&required(attribute, "groupby", "attribute")?));
    let default = default.filter(|d| !d.is_none());
    let case_sensitive = is_true(case_sensitive.as_ref());
    let mut keyed = Vec::new();
    for item in value.items()? {
        let key = run.at_path(&item, &path, default.as_ref())?;
        let key = folded(key, case_sensitive)?;
        keyed.push((key.clone(), Value::tuple(vec![key, item])?));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in sorted(keyed, false)? {
        let pair = pair.items()?;
        match groups.last_mut() {
            Some((key, group)) if equal(key, &pair[0]) => group.push(pair[1].clone()),
            _ => groups.push((pair[0].clone(), vec![pair[1].clone()])),
        }
    }
    let mut out = Vec::new();
    for (key, group) in groups {
        let key = if case_sensitive { key } else { run.at_path(&group[0], &path, default.as_ref())? };
        out.push(Value::group(key, group)?);
    }
    Value::list(out)
}

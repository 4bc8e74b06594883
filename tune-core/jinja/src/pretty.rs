//! `pprint.pformat`, in lines of 80 characters.

use crate::budget;
use crate::error::{Error, Result};
use crate::key;
use crate::repr::repr;
use crate::value::Value;

const WIDTH: usize = 80;

/// The filter `pprint`.
pub(crate) fn pformat(value: &Value) -> Result<String> {
    let mut out = String::new();
    write(&mut out, value, 0, 0, 0)?;
    Ok(out)
}

/// The value as `pprint` writes it on one line: `repr`, with the keys of dicts in order.
fn flat(value: &Value) -> Result<String> {
    budget::spend(1)?;
    Ok(match value {
        Value::Dict(_) => {
            let entries = sorted(value)?;
            let entries: Result<Vec<String>> =
                entries.iter().map(|(k, v)| Ok(format!("{}: {}", flat(k)?, flat(v)?))).collect();
            format!("{{{}}}", entries?.join(", "))
        }
        Value::List(items) => {
            let items: Result<Vec<String>> = items.iter().map(flat).collect();
            format!("[{}]", items?.join(", "))
        }
        Value::Tuple(items) if items.len() == 1 => format!("({},)", flat(&items[0])?),
        Value::Tuple(items) => {
            let items: Result<Vec<String>> = items.iter().map(flat).collect();
            format!("({})", items?.join(", "))
        }
        _ => repr(value)?,
    })
}

fn sorted(value: &Value) -> Result<Vec<(Value, Value)>> {
    let Value::Dict(dict) = value else { return Ok(Vec::new()) };
    let pairs = dict.entries.iter().map(|(k, v)| Ok((k.0.clone(), Value::tuple(vec![k.0.clone(), v.clone()])?)));
    let sorted = key::sort(pairs.collect::<Result<_>>()?, false)
        .map_err(|_| Error::runtime("`pprint` of keys that have no order is not supported"))?;
    sorted.iter().map(|pair| pair.items().map(|pair| (pair[0].clone(), pair[1].clone()))).collect()
}

fn write(out: &mut String, value: &Value, indent: usize, allowance: usize, depth: usize) -> Result<()> {
    budget::check_depth(depth)?;
    let line = flat(value)?;
    if line.chars().count() <= WIDTH.saturating_sub(indent).saturating_sub(allowance) {
        out.push_str(&line);
        return Ok(());
    }
    match value {
        Value::Dict(dict) if !dict.entries.is_empty() => {
            out.push('{');
            let entries = sorted(value)?;
            let last = entries.len() - 1;
            for (i, (key, value)) in entries.iter().enumerate() {
                let key = flat(key)?;
                if i > 0 {
                    new_line(out, indent + 1)?;
                }
                out.push_str(&key);
                out.push_str(": ");
                let allowance = if i == last { allowance + 1 } else { 1 };
                write(out, value, indent + 1 + key.chars().count() + 2, allowance, depth + 1)?;
                if i < last {
                    out.push(',');
                }
            }
            out.push('}');
        }
        Value::List(items) if !items.is_empty() => sequence(out, items, ("[", "]"), indent, allowance, depth)?,
        Value::Tuple(items) if !items.is_empty() => {
            let close = if items.len() == 1 { ",)" } else { ")" };
            sequence(out, items, ("(", close), indent, allowance, depth)?;
        }
        Value::Str(text) if !text.safe && !text.is_empty() => text_in_lines(out, text, indent, allowance, depth)?,
        _ => out.push_str(&line),
    }
    Ok(())
}

fn sequence(
    out: &mut String,
    items: &[Value],
    (open, close): (&str, &str),
    indent: usize,
    allowance: usize,
    depth: usize,
) -> Result<()> {
    out.push_str(open);
    let last = items.len() - 1;
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            new_line(out, indent + 1)?;
        }
        let allowance = if i == last { allowance + close.len() } else { 1 };
        write(out, item, indent + 1, allowance, depth + 1)?;
        if i < last {
            out.push(',');
        }
    }
    out.push_str(close);
    Ok(())
}

fn new_line(out: &mut String, indent: usize) -> Result<()> {
    budget::reserve(out.len() + indent)?;
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', indent));
    Ok(())
}

/// Long text as several literals, one a line.
fn text_in_lines(out: &mut String, text: &str, indent: usize, allowance: usize, depth: usize) -> Result<()> {
    let (mut indent, mut allowance) = (indent, allowance);
    if depth == 0 {
        indent += 1;
        allowance += 1;
    }
    let lines = crate::methods::split_lines(text, true);
    let mut chunks = Vec::new();
    let last_line = lines.len().saturating_sub(1);
    for (i, line) in lines.iter().enumerate() {
        let whole = repr(&Value::from(*line))?;
        let mut width = WIDTH.saturating_sub(indent);
        if i == last_line {
            width = width.saturating_sub(allowance);
        }
        if whole.chars().count() <= width {
            chunks.push(whole);
            continue;
        }
        // Words with the space behind them, as many as fit on a line.
        let parts = words(line);
        let last_part = parts.len().saturating_sub(1);
        let mut width = WIDTH.saturating_sub(indent);
        let mut current = String::new();
        for (j, part) in parts.iter().enumerate() {
            let candidate = format!("{current}{part}");
            if j == last_part && i == last_line {
                width = width.saturating_sub(allowance);
            }
            if repr(&Value::from(candidate.as_str()))?.chars().count() > width {
                if !current.is_empty() {
                    chunks.push(repr(&Value::from(current.as_str()))?);
                }
                current = (*part).to_owned();
            } else {
                current = candidate;
            }
        }
        if !current.is_empty() {
            chunks.push(repr(&Value::from(current.as_str()))?);
        }
    }
    if chunks.len() == 1 {
        out.push_str(&chunks[0]);
        return Ok(());
    }
    if depth == 0 {
        out.push('(');
    }
    for (i, chunk) in chunks.iter().enumerate() {
        if i > 0 {
            new_line(out, indent)?;
        }
        out.push_str(chunk);
    }
    if depth == 0 {
        out.push(')');
    }
    Ok(())
}

/// `re.findall(r"\S*\s*", line)`, without what is empty.
fn words(line: &str) -> Vec<&str> {
    let space = crate::syntax::is_space;
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(space).unwrap_or(rest.len());
        let end = rest[word..].find(|c| !space(c)).map_or(rest.len(), |n| word + n);
        words.push(&rest[..end]);
        rest = &rest[end..];
    }
    words
}

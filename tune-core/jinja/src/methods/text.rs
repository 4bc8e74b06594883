//! Methods of text.

use super::not_supported;
use super::pieces::{rsplit, split, split_lines, strip};
use crate::arguments::{Args, integer, is_true, text as text_of};
use crate::budget;
use crate::error::{Error, Result};
use crate::format::brackets;
use crate::interpret::Interpreter;
use crate::key::Key;
use crate::markup::soft;
use crate::number::index;
use crate::repr::to_str;
use crate::syntax::is_space;
use crate::unicode::{is_alnum, is_alpha, is_decimal, is_digit, is_numeric, is_printable, push_folded, push_title};
use crate::value::{Str, Value};

impl Interpreter<'_> {
    pub(crate) fn text_method(&mut self, text: &Str, name: &str, args: Args) -> Result<Value> {
        if text.safe && matches!(name, "format" | "format_map") {
            return Err(Error::runtime(format!("the method `{name}` of text that is marked as safe is not supported")));
        }
        let args = if text.safe { escaped(name, args)? } else { args };
        budget::spend_bytes(text.len())?;
        let value = match name {
            "format" => brackets(self, text, &args)?,
            "format_map" => {
                let [map] = <[Value; 1]>::try_from(args.plain(name, 1, 1)?).map_err(|_| not_supported(name))?;
                let Value::Dict(dict) = map else {
                    return Err(Error::runtime("`format_map` takes a mapping"));
                };
                let named = dict.entries.iter().filter_map(|(k, v)| match &k.0 {
                    Value::Str(name) => Some((name.clone(), v.clone())),
                    _ => None,
                });
                brackets(self, text, &Args { positional: Vec::new(), named: named.collect() })?
            }
            "split" | "rsplit" | "splitlines" => by_name(text, name, args)?,
            "join" => join(text, &args.plain(name, 1, 1)?[0])?,
            "replace" => replace(text, args)?,
            "translate" => translate(text, &args.plain(name, 1, 1)?[0])?,
            "expandtabs" => {
                let [width] = args.bind(name, ["tabsize"])?;
                expand_tabs(text, integer(width.as_ref(), 8)?)?
            }
            _ => plain_method(text, name, args)?,
        };
        Ok(match value {
            Value::Str(value) if text.safe => Value::safe(value),
            Value::List(parts) if text.safe => Value::list(parts.iter().map(marked).collect())?,
            Value::Tuple(parts) if text.safe => Value::tuple(parts.iter().map(marked).collect())?,
            value => value,
        })
    }
}

/// The arguments of a method of text that is marked as safe: what goes into the text is escaped.
fn escaped(name: &str, mut args: Args) -> Result<Args> {
    let escape = |value: &Value| Ok(Value::safe(soft(&to_str(value)?).into_owned()));
    let inserted = match name {
        "replace" | "center" | "ljust" | "rjust" => args.positional.get_mut(1),
        "join" => {
            if let Some(items) = args.positional.first_mut() {
                *items = Value::list(items.defined()?.items()?.iter().map(escape).collect::<Result<_>>()?)?;
            }
            None
        }
        _ => None,
    };
    if let Some(inserted) = inserted {
        *inserted = escape(inserted)?;
    }
    Ok(args)
}

/// A part of text that is marked as safe.
fn marked(part: &Value) -> Value {
    match part {
        Value::Str(part) => Value::safe(part.clone()),
        other => other.clone(),
    }
}

/// Each character as the table has it under its number: another character's number, a text, or none to leave it out.
fn translate(text: &str, table: &Value) -> Result<Value> {
    let Value::Dict(table) = table else {
        return Err(Error::runtime("`translate` takes a mapping"));
    };
    let character = |code: i64| u32::try_from(code).ok().and_then(char::from_u32);
    let mut translated = String::new();
    for c in text.chars() {
        let mut one = [0; 4];
        let outside = || Error::runtime("character mapping must be in range(0x110000)");
        let replaced: &str = match table.entries.get(&Key(Value::Int(u32::from(c).into()))) {
            None => c.encode_utf8(&mut one),
            Some(Value::None) => continue,
            Some(Value::Str(text)) => text,
            Some(Value::Int(code)) => character(*code).ok_or_else(outside)?.encode_utf8(&mut one),
            Some(Value::Bool(code)) => character(i64::from(*code)).ok_or_else(outside)?.encode_utf8(&mut one),
            Some(_) => return Err(Error::runtime("character mapping must return integer, None or str")),
        };
        budget::reserve(replaced.len())?;
        translated.push_str(replaced);
    }
    Ok(Value::from(translated))
}

fn plain_method(text: &str, name: &str, args: Args) -> Result<Value> {
    if let Some(is) = question(text, name) {
        args.none(name)?;
        return Ok(Value::Bool(is));
    }
    match name {
        "upper" | "lower" | "capitalize" | "title" | "swapcase" | "casefold" => {
            args.none(name)?;
            budget::reserve(text.len())?;
            Ok(Value::from(in_case(text, name)))
        }
        "strip" | "lstrip" | "rstrip" => {
            let args = args.plain(name, 0, 1)?;
            let chars = match args.first() {
                None | Some(Value::None) => None,
                Some(chars) => Some(text_of(chars, name)?),
            };
            Ok(Value::from(strip(text, chars, name != "rstrip", name != "lstrip")))
        }
        "center" | "ljust" | "rjust" => {
            let args = args.plain(name, 1, 2)?;
            let fill = match args.get(1) {
                None => ' ',
                Some(fill) => one_character(text_of(fill, name)?)?,
            };
            Ok(Value::from(padded(text, integer(args.first(), 0)?, fill, name)?))
        }
        "zfill" => {
            let args = args.plain(name, 1, 1)?;
            let sign = usize::from(text.starts_with(['+', '-']));
            let width = integer(args.first(), 0)?.saturating_sub(sign as i64);
            Ok(Value::from(format!("{}{}", &text[..sign], padded(&text[sign..], width, '0', "rjust")?)))
        }
        "startswith" | "endswith" => {
            let args = args.plain(name, 1, 3)?;
            let part = bounded(text, &args)?.map(|(_, part)| part);
            let holds = |affix: &Value| -> Result<bool> {
                let affix = text_of(affix, name)?;
                Ok(part.is_some_and(|p| if name == "startswith" { p.starts_with(affix) } else { p.ends_with(affix) }))
            };
            Ok(Value::Bool(match &args[0] {
                Value::Tuple(affixes) => {
                    let mut any = false;
                    for affix in affixes.iter() {
                        any |= holds(affix)?;
                    }
                    any
                }
                affix => holds(affix)?,
            }))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, args),
        "partition" | "rpartition" => {
            let args = args.plain(name, 1, 1)?;
            let separator = text_of(&args[0], name)?;
            if separator.is_empty() {
                return Err(Error::runtime("empty separator"));
            }
            let parts = match name {
                "partition" => text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]),
                _ => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
            };
            Value::tuple(parts.map(Value::from).to_vec())
        }
        "removeprefix" | "removesuffix" => {
            let args = args.plain(name, 1, 1)?;
            let affix = text_of(&args[0], name)?;
            let rest = if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Ok(Value::from(rest.unwrap_or(text)))
        }
        _ => Err(not_supported(name)),
    }
}

/// The methods that ask something of all characters.
fn question(text: &str, name: &str) -> Option<bool> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    Some(match name {
        "isalnum" => all(is_alnum),
        "isalpha" => all(is_alpha),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isnumeric" => all(is_numeric),
        "isprintable" => text.chars().all(is_printable),
        "isspace" => all(is_space),
        "islower" => is_lower(text),
        "isupper" => is_upper(text),
        "istitle" => is_title(text),
        "isidentifier" => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c == '_' || is_alpha(c)) && chars.all(|c| c == '_' || is_alnum(c))
        }
        _ => return None,
    })
}

pub(crate) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title_case(c))
}

pub(crate) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title_case(c))
}

/// Characters that are one large and one small letter.
fn is_title_case(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
        || matches!(c as u32, 0x1f88..=0x1f8f | 0x1f98..=0x1f9f | 0x1fa8..=0x1faf | 0x1fbc | 0x1fcc | 0x1ffc)
}

fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase() || is_title_case(c)
}

fn is_title(text: &str) -> bool {
    let (mut cased, mut within) = (false, false);
    for c in text.chars() {
        let large = c.is_uppercase() || is_title_case(c);
        if (large && within) || (c.is_lowercase() && !within) {
            return false;
        }
        within = is_cased(c);
        cased |= within;
    }
    cased
}

pub(crate) fn in_case(text: &str, name: &str) -> String {
    let mut out = String::with_capacity(text.len());
    match name {
        "upper" => return text.to_uppercase(),
        "lower" => return text.to_lowercase(),
        "casefold" => text.chars().for_each(|c| push_folded(&mut out, c)),
        "swapcase" => {
            for c in text.chars() {
                if c.is_uppercase() {
                    out.extend(c.to_lowercase());
                } else {
                    out.extend(c.to_uppercase());
                }
            }
        }
        "capitalize" => {
            let mut chars = text.chars();
            if let Some(first) = chars.next() {
                push_title(&mut out, first);
                // As a whole, for a sigma at the end has a form of its own.
                let lower = text.to_lowercase();
                let skipped: usize = first.to_lowercase().map(char::len_utf8).sum();
                out.push_str(&lower[skipped..]);
            }
        }
        _ => {
            let lower = |c: char| c.to_lowercase();
            let mut within = false;
            for c in text.chars() {
                if within {
                    out.extend(lower(c));
                } else {
                    push_title(&mut out, c);
                }
                within = is_cased(c);
            }
        }
    }
    out
}

fn one_character(text: &str) -> Result<char> {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(Error::runtime("The fill character must be exactly one character long")),
    }
}

/// Text with as many fill characters as make it so wide.
pub(crate) fn padded(text: &str, width: i64, fill: char, side: &str) -> Result<String> {
    let len = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(len);
    budget::reserve(missing.saturating_mul(fill.len_utf8()).saturating_add(text.len()))?;
    let left = match side {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one to the left where the width is odd.
        _ => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
    };
    let fill = |count: usize| std::iter::repeat_n(fill, count);
    Ok(fill(left).chain(text.chars()).chain(fill(missing - left)).collect())
}

/// The stretch of a text between the second and the third argument, and the character where it begins.
fn bounded<'a>(text: &'a str, args: &[Value]) -> Result<Option<(usize, &'a str)>> {
    let bound = |value: Option<&Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => index(value.defined()?)
            .map(Some)
            .ok_or_else(|| Error::runtime("slice indices must be integers or None or have an __index__ method")),
    };
    let (start, stop) = (bound(args.get(1))?, bound(args.get(2))?);
    if start.is_none() && stop.is_none() {
        return Ok(Some((0, text)));
    }
    let len = text.chars().count() as i64;
    let clamp = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, stop) = (start.map_or(0, clamp), stop.map_or(len, clamp).min(len));
    if start > stop {
        return Ok(None);
    }
    let offset = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(offset, _)| offset);
    Ok(Some((start as usize, &text[offset(start)..offset(stop)])))
}

fn search(text: &str, name: &str, args: Args) -> Result<Value> {
    let args = args.plain(name, 1, 3)?;
    let part = text_of(&args[0], name)?;
    let within = bounded(text, &args)?;
    if name == "count" {
        let count = within.map_or(0, |(_, within)| match part {
            "" => within.chars().count() + 1,
            part => within.matches(part).count(),
        });
        return Ok(Value::from(count));
    }
    let found = within.and_then(|(start, within)| {
        let at = if name.starts_with('r') { within.rfind(part) } else { within.find(part) }?;
        Some(start + within[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("index") => Err(Error::runtime("substring not found")),
        None => Ok(Value::Int(-1)),
    }
}

fn by_name(text: &str, name: &str, args: Args) -> Result<Value> {
    budget::reserve(text.len())?;
    let parts = if name == "splitlines" {
        let [keep] = args.bind(name, ["keepends"])?;
        split_lines(text, is_true(keep.as_ref()))
    } else {
        let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
        let separator = separator.as_ref().filter(|s| !s.is_none()).map(|s| text_of(s, name)).transpose()?;
        let most = usize::try_from(integer(most.as_ref(), -1)?).ok();
        if name == "split" { split(text, separator, most)? } else { rsplit(text, separator, most)? }
    };
    budget::reserve(parts.len().saturating_mul(80))?;
    Value::list(parts.into_iter().map(Value::from).collect())
}

/// `separator.join(items)`.
fn join(separator: &Str, items: &Value) -> Result<Value> {
    let items = items.defined()?.items()?;
    let mut text = String::new();
    for (i, item) in items.iter().enumerate() {
        let Value::Str(item) = item else {
            return Err(Error::runtime(format!(
                "sequence item {i}: expected str instance, {} found",
                item.type_name()
            )));
        };
        budget::spend(1)?;
        budget::reserve(text.len() + separator.len() + item.len())?;
        if i > 0 {
            text.push_str(separator);
        }
        text.push_str(item);
    }
    Ok(text.into())
}

fn replace(text: &str, args: Args) -> Result<Value> {
    let args = args.plain("replace", 2, 3)?;
    let (old, new) = (text_of(&args[0], "replace")?, text_of(&args[1], "replace")?);
    Ok(Value::from(replaced(text, old, new, integer(args.get(2), -1)?)?))
}

/// `text.replace(old, new, count)`; a negative count is all.
pub(crate) fn replaced(text: &str, old: &str, new: &str, count: i64) -> Result<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(count);
    budget::reserve(found.saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(text.replacen(old, new, count))
}

fn expand_tabs(text: &str, width: i64) -> Result<Value> {
    let width = usize::try_from(width).unwrap_or(0);
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if width == 0 => {}
            '\t' => {
                let spaces = width - column % width;
                budget::reserve(out.len().saturating_add(spaces))?;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out.into())
}

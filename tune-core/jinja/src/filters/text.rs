//! Filters of text.

use super::sequences::path;
use crate::arguments::{Args, integer, is_true, required, text as text_of};
use crate::budget;
use crate::error::{Error, Result};
use crate::format::percent;
use crate::interpret::Interpreter;
use crate::markup;
use crate::methods::{in_case, padded, replaced, split_lines, strip};
use crate::repr::to_str;
use crate::syntax::is_space;
use crate::unicode::is_alnum;
use crate::value::{Str, Value};

/// The same text, marked as the other is.
fn like(original: &Str, text: String) -> Value {
    if original.safe { Value::safe(text) } else { Value::from(text) }
}

fn cased(value: &Value, args: Args, name: &str) -> Result<Value> {
    args.none(name)?;
    let text = to_str(value)?;
    budget::reserve(text.len())?;
    Ok(like(&text, in_case(&text, name)))
}

pub(super) fn upper(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    cased(&value, args, "upper")
}

pub(super) fn lower(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    cased(&value, args, "lower")
}

pub(super) fn capitalize(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    cased(&value, args, "capitalize")
}

/// Unlike the method, it begins a word only behind white space, `-`, `(`, `{`, `[` and `<`.
pub(super) fn title(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("title")?;
    let text = to_str(&value)?;
    budget::reserve(text.len())?;
    let separates = |c: char| is_space(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let separator = separates(first);
        let end = rest.find(|c| separates(c) != separator).unwrap_or(rest.len());
        out.extend(first.to_uppercase());
        out.push_str(&rest[first.len_utf8()..end].to_lowercase());
        rest = &rest[end..];
    }
    Ok(Value::from(out))
}

pub(super) fn string(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("string")?;
    to_str(&value).map(Value::Str)
}

pub(super) fn trim(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [chars] = args.bind("trim", ["chars"])?;
    let text = to_str(&value)?;
    budget::spend_bytes(text.len())?;
    let chars = chars.as_ref().filter(|c| !c.is_none()).map(|c| text_of(c, "strip")).transpose()?;
    Ok(like(&text, strip(&text, chars, true, true).to_owned()))
}

pub(super) fn center(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [width] = args.bind("center", ["width"])?;
    let text = to_str(&value)?;
    Ok(like(&text, padded(&text, integer(width.as_ref(), 80)?, ' ', "center")?))
}

pub(super) fn replace(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
    let text = to_str(&value)?;
    let old = to_str(&required(old, "replace", "old")?)?;
    let new = to_str(&required(new, "replace", "new")?)?;
    let count = integer(count.as_ref().filter(|c| !c.is_none()), -1)?;
    Ok(Value::from(replaced(&text, &old, &new, count)?))
}

pub(super) fn join(run: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let separator = separator.map_or_else(|| Ok(Str::from("")), |s| to_str(&s))?;
    let path = path(attribute.as_ref());
    let mut out = String::new();
    for (i, item) in value.items()?.iter().enumerate() {
        let text = to_str(&run.at_path(item, &path, None)?)?;
        budget::reserve(out.len() + separator.len() + text.len())?;
        if i > 0 {
            out.push_str(&separator);
        }
        out.push_str(&text);
    }
    Ok(Value::from(out))
}

pub(super) fn format(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let Args { positional, named } = args;
    if !positional.is_empty() && !named.is_empty() {
        return Err(Error::runtime("can't handle positional and keyword arguments at the same time"));
    }
    let text = to_str(&value)?;
    if named.is_empty() {
        return percent(&text, &Value::tuple(positional)?);
    }
    let entries = named.into_iter().map(|(name, value)| (crate::key::Key(Value::Str(name)), value)).collect();
    percent(&text, &Value::dict(entries)?)
}

pub(super) fn indent(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let Value::Str(text) = value.defined()? else {
        return Err(Error::runtime(format!("indent takes text, not {}", value.type_name())));
    };
    let indention = match &width {
        Some(Value::Str(text)) => text.as_str().to_owned(),
        width => {
            let width = usize::try_from(integer(width.as_ref(), 4)?).unwrap_or(0);
            budget::reserve(width)?;
            " ".repeat(width)
        }
    };
    // A line end is added, which is no line of its own: an empty last line stays.
    let padded = format!("{}\n", text.as_str());
    let lines = split_lines(&padded, false);
    let wide = lines.len().saturating_mul(indention.len()).saturating_add(text.len());
    budget::reserve(wide)?;
    let (first, blank) = (is_true(first.as_ref()), is_true(blank.as_ref()));
    let mut out = String::with_capacity(wide);
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(like(text, out))
}

pub(super) fn truncate(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [length, killwords, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = integer(length.as_ref(), 255)?;
    let leeway = integer(leeway.as_ref().filter(|l| !l.is_none()), 5)?;
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end = text_of(&end, "truncate")?;
    let width = end.chars().count() as i64;
    if length < width {
        return Err(Error::runtime(format!("expected length >= {width}, got {length}")));
    }
    if leeway < 0 {
        return Err(Error::runtime(format!("expected leeway >= 0, got {leeway}")));
    }
    if (value.len()? as i64) <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let Value::Str(text) = &value else {
        return Err(Error::runtime(format!("truncate takes text, not {}", value.type_name())));
    };
    let kept: String = text.chars().take((length - width) as usize).collect();
    let kept = if is_true(killwords.as_ref()) {
        kept.as_str()
    } else {
        kept.rsplit_once(' ').map_or(kept.as_str(), |(before, _)| before)
    };
    Ok(like(text, format!("{kept}{end}")))
}

pub(super) fn wordcount(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("wordcount")?;
    let text = to_str(&value)?;
    budget::spend(text.len() / 8)?;
    let words = text.split(|c| !(is_alnum(c) || c == '_')).filter(|word| !word.is_empty());
    Ok(Value::from(words.count()))
}

pub(super) fn escape(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("escape")?;
    let text = to_str(&value)?;
    budget::reserve(text.len())?;
    Ok(Value::safe(markup::soft(&text).into_owned()))
}

pub(super) fn forceescape(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("forceescape")?;
    let text = to_str(&value)?;
    budget::reserve(text.len())?;
    Ok(Value::safe(markup::escape(&text)))
}

pub(super) fn safe(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("safe")?;
    to_str(&value).map(Value::safe)
}

pub(super) fn striptags(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("striptags")?;
    let text = to_str(&value)?;
    budget::reserve(text.len().saturating_mul(2))?;
    let mut text = text.as_str().to_owned();
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let mut kept = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(start) = rest.find(open) {
            let Some(end) = rest[start..].find(close) else { break };
            kept.push_str(&rest[..start]);
            rest = &rest[start + end + close.len()..];
        }
        kept.push_str(rest);
        text = kept;
    }
    let words: Vec<&str> = text.split(is_space).filter(|word| !word.is_empty()).collect();
    Ok(Value::from(unescape(&words.join(" "))?))
}

/// The characters that HTML has names for, as far as they are common.
fn unescape(text: &str) -> Result<String> {
    const NAMES: [(&str, char); 8] = [
        ("amp;", '&'),
        ("lt;", '<'),
        ("gt;", '>'),
        ("quot;", '"'),
        ("#39;", '\''),
        ("#34;", '"'),
        ("apos;", '\''),
        ("nbsp;", '\u{a0}'),
    ];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some((name, c)) = NAMES.iter().find(|(name, _)| rest.starts_with(name)) {
            out.push(*c);
            rest = &rest[name.len()..];
        } else if rest.starts_with(|c: char| c == '#' || c.is_ascii_alphabetic()) {
            return Err(Error::runtime("`striptags` of text with such HTML entities is not supported"));
        } else {
            out.push('&');
        }
    }
    out.push_str(rest);
    Ok(out)
}

pub(super) fn urlencode(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    args.none("urlencode")?;
    if matches!(value, Value::Str(_)) || !value.is_iterable() {
        return Ok(Value::from(quote(&to_str(&value)?, false)?));
    }
    let pairs: Vec<Vec<Value>> = match &value {
        Value::Dict(dict) => dict.entries.iter().map(|(k, v)| vec![k.0.clone(), v.clone()]).collect(),
        _ => value.items()?.iter().map(Value::items).collect::<Result<_>>()?,
    };
    let mut parts = Vec::new();
    for pair in &pairs {
        let [key, value] = pair.as_slice() else {
            return Err(Error::runtime(format!("not enough values to unpack (expected 2, got {})", pair.len())));
        };
        parts.push(format!("{}={}", quote(&to_str(key)?, true)?, quote(&to_str(value)?, true)?));
    }
    Ok(Value::from(parts.join("&")))
}

fn quote(text: &str, query: bool) -> Result<String> {
    budget::reserve(text.len().saturating_mul(3))?;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte as char),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out)
}

pub(super) fn xmlattr(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [autospace] = args.bind("xmlattr", ["autospace"])?;
    let Value::Dict(dict) = value.defined()? else {
        return Err(Error::runtime(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let mut parts = Vec::new();
    for (key, value) in &dict.entries {
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let key = text_of(&key.0, "xmlattr")?;
        if key.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return Err(Error::runtime(format!(
                "Invalid character in attribute name: {}",
                crate::repr::repr(&Value::from(key))?
            )));
        }
        parts.push(format!("{}=\"{}\"", markup::escape(key), markup::soft(&to_str(value)?)));
    }
    let text = parts.join(" ");
    let space = autospace.is_none_or(|a| a.is_true()) && !text.is_empty();
    Ok(Value::from(if space { format!(" {text}") } else { text }))
}

/// `textwrap.wrap`, line by line.
pub(super) fn wordwrap(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [width, break_long, wrapstring, on_hyphens] =
        args.bind("wordwrap", ["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    let Value::Str(text) = value.defined()? else {
        return Err(Error::runtime(format!("wordwrap takes text, not {}", value.type_name())));
    };
    let width = integer(width.as_ref(), 79)?;
    let break_long = break_long.is_none_or(|b| b.is_true());
    let wrapstring = wrapstring.filter(|w| !w.is_none()).unwrap_or_else(|| Value::from("\n"));
    let wrapstring = text_of(&wrapstring, "wordwrap")?;
    if text.contains('-') && on_hyphens.is_none_or(|b| b.is_true()) {
        return Err(Error::runtime("`wordwrap` of text with hyphens is supported with `break_on_hyphens=false` only"));
    }
    let width = usize::try_from(width).ok().filter(|w| *w > 0);
    let Some(width) = width else {
        return Err(Error::runtime("invalid width (must be > 0)"));
    };
    budget::reserve(text.len().saturating_mul(1 + wrapstring.len()))?;
    let mut lines = Vec::new();
    for line in split_lines(text, false) {
        lines.push(wrap(line, width, break_long).join(wrapstring));
    }
    Ok(Value::from(lines.join(wrapstring)))
}

fn wrap(line: &str, width: usize, break_long: bool) -> Vec<String> {
    let space = |c: char| matches!(c, '\t' | '\n' | '\x0b' | '\x0c' | '\r' | ' ');
    let mut chunks: Vec<String> = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let is = space(first);
        let end = rest.find(|c| space(c) != is).unwrap_or(rest.len());
        chunks.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    chunks.reverse();
    let len = |text: &str| text.chars().count();
    let is_space_only = |text: &str| text.chars().all(is_space);
    let mut lines: Vec<String> = Vec::new();
    while let Some(last) = chunks.last() {
        if is_space_only(last) && !lines.is_empty() {
            chunks.pop();
        }
        let (mut current, mut current_len) = (Vec::new(), 0);
        while let Some(chunk) = chunks.last() {
            if current_len + len(chunk) > width {
                break;
            }
            current_len += len(chunk);
            current.extend(chunks.pop());
        }
        if let Some(chunk) = chunks.last_mut().filter(|chunk| len(chunk) > width) {
            if break_long {
                let left = width - current_len;
                let at = chunk.char_indices().nth(left).map_or(chunk.len(), |(at, _)| at);
                let tail = chunk.split_off(at);
                current.push(std::mem::replace(chunk, tail));
            } else if current.is_empty() {
                current.extend(chunks.pop());
            }
        }
        if current.last().is_some_and(|chunk| is_space_only(chunk)) {
            current.pop();
        }
        if !current.is_empty() {
            lines.push(current.concat());
        }
    }
    lines
}

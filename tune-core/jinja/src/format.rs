//! `text % values` and `text.format(…)`.

use crate::arguments::Args;
use crate::budget;
use crate::error::{Error, Result};
use crate::interpret::Interpreter;
use crate::number::{Number, index, truncate};
use crate::repr::{repr, to_str};
use crate::value::{Str, Value};

/// How a value is to be written.
#[derive(Default, Clone)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format % values`.
pub(crate) fn percent(format: &Str, values: &Value) -> Result<Value> {
    if format.safe {
        return Err(Error::runtime("`%` of text that is marked as safe is not supported"));
    }
    let positional: Vec<Value> = match values {
        Value::Tuple(items) => items.to_vec(),
        other => vec![other.clone()],
    };
    let is_tuple = matches!(values, Value::Tuple(_));
    let mut next = positional.iter();
    let mut used_mapping = false;
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let few = || Error::runtime("not enough arguments for format string");
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        let mut mapped = None;
        if chars.next_if_eq(&'(').is_some() {
            let Value::Dict(dict) = values else {
                return Err(Error::runtime("format requires a mapping"));
            };
            let mut depth = 1;
            let mut name = String::new();
            loop {
                match chars.next() {
                    None => return Err(Error::runtime("incomplete format key")),
                    Some(')') if depth == 1 => break,
                    Some(c) => {
                        depth += i32::from(c == '(') - i32::from(c == ')');
                        name.push(c);
                    }
                }
            }
            used_mapping = true;
            mapped = Some(dict.get(&name).cloned().ok_or_else(|| Error::runtime(format!("'{name}'")))?);
        }
        while let Some(flag) = chars.next_if(|c| "#0- +".contains(*c)) {
            match flag {
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                _ => spec.sign = spec.sign.or(Some(' ')),
            }
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Result<Option<i64>> {
            if chars.next_if_eq(&'*').is_some() {
                let value = next.next().ok_or_else(few)?;
                return index(value).map(Some).ok_or_else(|| Error::runtime("* wants int"));
            }
            digits(chars)
        };
        if let Some(width) = number(&mut chars)? {
            if width < 0 {
                spec.align = Some('<');
            }
            spec.width = width.unsigned_abs() as usize;
        }
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(usize::try_from(number(&mut chars)?.unwrap_or(0)).unwrap_or(0));
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let Some(kind) = chars.next() else {
            return Err(Error::runtime("incomplete format"));
        };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match mapped {
            Some(value) => value,
            None => next.next().ok_or_else(few)?.clone(),
        };
        spec.check(out.len())?;
        out.push_str(&printf(&value, kind, spec)?);
    }
    let left = next.next().is_some();
    if left && (is_tuple || !(used_mapping || matches!(values, Value::Dict(_) | Value::List(_)))) {
        values.defined()?;
        return Err(Error::runtime("not all arguments converted during string formatting"));
    }
    Ok(out.into())
}

fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<i64>> {
    let mut number: Option<i64> = None;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = i64::from(digit as u8 - b'0');
        let next = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
        number = Some(next.ok_or_else(|| Error::runtime("width too big"))?);
    }
    Ok(number)
}

/// One conversion of `%`.
fn printf(value: &Value, kind: char, mut spec: Spec) -> Result<String> {
    spec.align = spec.align.or(Some('>'));
    match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' => to_str(value)?.to_string(),
                'r' => repr(value)?,
                _ => ascii(&repr(value)?),
            };
            spec.zero = false;
            let text = cut(&text, spec.precision);
            Ok(pad(text, "", &spec))
        }
        'c' => {
            let text = match (value, index(value)) {
                (Value::Str(text), _) if text.chars().count() == 1 => text.to_string(),
                (_, Some(code)) => character(code)?.to_string(),
                _ => return Err(Error::runtime("%c requires int or char")),
            };
            spec.zero = false;
            Ok(pad(&text, "", &spec))
        }
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
            value.defined()?;
            let whole = match Number::of(value) {
                Some(Number::Float(x)) if matches!(kind, 'd' | 'i' | 'u') => truncate(x)?,
                Some(Number::Float(_)) | None => {
                    let wanted = if matches!(kind, 'd' | 'i' | 'u') { "a real number" } else { "an integer" };
                    let name = value.type_name();
                    return Err(Error::runtime(format!("%{kind} format: {wanted} is required, not {name}")));
                }
                Some(number) => Value::int(number.to_big().into_owned()),
            };
            let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
            let (negative, mut body) = radix(&whole, kind)?;
            if let Some(precision) = spec.precision {
                spec.check(precision)?;
                body = format!("{}{body}", "0".repeat(precision.saturating_sub(body.len())));
            }
            let prefix = if spec.alternate { prefix_of(kind) } else { "" };
            let sign = sign_of(negative, spec.sign);
            Ok(pad(&body, &format!("{sign}{prefix}"), &spec))
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            value.defined()?;
            let Some(number) = Number::of(value) else {
                let name = value.type_name();
                return Err(Error::runtime(format!("must be real number, not {name}")));
            };
            let x = number.to_float()?;
            let body = real(x.abs(), kind, spec.precision.unwrap_or(6), spec.alternate);
            if !x.is_finite() {
                spec.zero = false;
            }
            Ok(pad(&body, sign_of(x.is_sign_negative() && !x.is_nan(), spec.sign), &spec))
        }
        kind => Err(Error::runtime(format!("unsupported format character '{kind}' (0x{:x})", kind as u32))),
    }
}

fn character(code: i64) -> Result<char> {
    u32::try_from(code).ok().and_then(char::from_u32).ok_or_else(|| Error::runtime("%c arg not in range(0x110000)"))
}

fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let code = c as u32;
        match code {
            0..=0x7f => out.push(c),
            0x80..=0xff => out.push_str(&format!("\\x{code:02x}")),
            0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out
}

fn cut(text: &str, len: Option<usize>) -> &str {
    match len.and_then(|len| text.char_indices().nth(len)) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

fn sign_of(negative: bool, sign: Option<char>) -> &'static str {
    match (negative, sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    }
}

fn prefix_of(kind: char) -> &'static str {
    match kind {
        'o' => "0o",
        'x' => "0x",
        'X' => "0X",
        'b' => "0b",
        _ => "",
    }
}

/// An integer's digits without its sign.
fn radix(value: &Value, kind: char) -> Result<(bool, String)> {
    let text = match (kind, Number::of(value)) {
        ('d', _) => crate::repr::integer(value)?,
        (_, Some(number)) => {
            let radix = match kind {
                'o' => 8,
                'b' => 2,
                _ => 16,
            };
            let text = number.to_big().to_str_radix(radix);
            if kind == 'X' { text.to_uppercase() } else { text }
        }
        _ => return Err(Error::runtime("not a number")),
    };
    Ok(match text.strip_prefix('-') {
        Some(digits) => (true, digits.to_owned()),
        None => (false, text),
    })
}

/// A float without its sign, as C's `printf` writes it.
fn real(x: f64, kind: char, precision: usize, alternate: bool) -> String {
    let upper = kind.is_ascii_uppercase();
    let text = if x.is_nan() {
        "nan".to_owned()
    } else if x.is_infinite() {
        "inf".to_owned()
    } else {
        match kind.to_ascii_lowercase() {
            'e' => exponent(x, precision, alternate),
            'g' => general(x, precision.max(1), alternate),
            _ => {
                let text = format!("{x:.precision$}");
                if alternate && precision == 0 { text + "." } else { text }
            }
        }
    };
    if upper { text.to_uppercase() } else { text }
}

fn exponent(x: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let point = if alternate && precision == 0 { "." } else { "" };
    format!("{digits}{point}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn general(x: f64, precision: usize, alternate: bool) -> String {
    let scientific = format!("{x:.*e}", precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let text = if power < -4 || power >= precision as i32 {
        exponent(x, precision - 1, alternate)
    } else {
        format!("{x:.*}", (precision as i32 - 1 - power).max(0) as usize)
    };
    if alternate || !text.contains('.') {
        return text;
    }
    match text.split_once('e') {
        Some((digits, exponent)) => {
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        None => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// The prefix and the body, filled up to the width.
fn pad(body: &str, prefix: &str, spec: &Spec) -> String {
    let len = body.chars().count() + prefix.chars().count();
    let missing = spec.width.saturating_sub(len);
    let align = spec.align.unwrap_or('<');
    let fill = spec.fill.unwrap_or(if spec.zero && align != '<' { '0' } else { ' ' });
    let fill_of = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    match align {
        '=' => format!("{prefix}{}{body}", fill_of(missing)),
        '>' if spec.zero && spec.fill.is_none() => format!("{prefix}{}{body}", fill_of(missing)),
        '>' => format!("{}{prefix}{body}", fill_of(missing)),
        '^' => format!("{}{prefix}{body}{}", fill_of(missing / 2), fill_of(missing - missing / 2)),
        _ => format!("{prefix}{body}{}", fill_of(missing)),
    }
}

impl Spec {
    fn check(&self, more: usize) -> Result<()> {
        const MOST: usize = 1 << 31;
        if self.width > MOST || self.precision.is_some_and(|p| p > MOST) {
            return Err(Error::runtime("width too big"));
        }
        budget::reserve(self.width.saturating_mul(4).saturating_add(self.precision.unwrap_or(0)).saturating_add(more))
    }

    /// `[[fill]align][sign][z][#][0][width][grouping][.precision][type]`
    fn parse(text: &str) -> Result<Self> {
        let invalid = || Error::runtime(format!("Invalid format specifier '{text}'"));
        let mut spec = Self::default();
        let mut chars = text.chars().peekable();
        let mut ahead = text.chars();
        let (first, second) = (ahead.next(), ahead.next());
        let is_align = |c: Option<char>| c.is_some_and(|c| "<>=^".contains(c));
        if is_align(second) {
            (spec.fill, spec.align) = (first, second);
            chars.next();
            chars.next();
        } else if is_align(first) {
            spec.align = first;
            chars.next();
        }
        spec.sign = chars.next_if(|c| "+- ".contains(*c));
        if chars.next_if_eq(&'z').is_some() {
            return Err(invalid());
        }
        spec.alternate = chars.next_if_eq(&'#').is_some();
        if chars.next_if_eq(&'0').is_some() {
            spec.zero = true;
            spec.fill = spec.fill.or(Some('0'));
            spec.align = spec.align.or(Some('='));
        }
        spec.width = digits(&mut chars)?.unwrap_or(0) as usize;
        spec.grouping = chars.next_if(|c| ",_".contains(*c));
        if chars.next_if_eq(&'.').is_some() {
            let precision = digits(&mut chars)?.ok_or_else(|| Error::runtime("Format specifier missing precision"))?;
            spec.precision = Some(precision as usize);
        }
        spec.kind = chars.next();
        if chars.next().is_some() {
            return Err(invalid());
        }
        spec.check(0)?;
        Ok(spec)
    }
}

/// `format(value, spec)`.
fn formatted(value: &Value, spec: &str) -> Result<String> {
    if spec.is_empty() {
        return to_str(value).map(|text| text.to_string());
    }
    value.defined()?;
    let unknown = |kind: char| {
        let name = value.type_name();
        Error::runtime(format!("Unknown format code '{kind}' for object of type '{name}'"))
    };
    let mut spec = Spec::parse(spec)?;
    match (value, Number::of(value)) {
        (Value::Str(text), _) => {
            if let Some(kind) = spec.kind.filter(|k| *k != 's') {
                return Err(unknown(kind));
            }
            if spec.align == Some('=') && !spec.zero || spec.sign.is_some() || spec.alternate || spec.grouping.is_some()
            {
                return Err(Error::runtime("this format is not allowed for text"));
            }
            if spec.align == Some('=') {
                spec.align = Some('<');
            }
            Ok(pad(cut(text, spec.precision), "", &spec))
        }
        (_, Some(Number::Float(x))) => real_format(x, spec, unknown),
        (_, Some(number)) => match spec.kind {
            Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => real_format(number.to_float()?, spec, unknown),
            None | Some('d' | 'n' | 'b' | 'o' | 'x' | 'X' | 'c') => {
                if spec.precision.is_some() {
                    return Err(Error::runtime("Precision not allowed in integer format specifier"));
                }
                spec.align = spec.align.or(Some('>'));
                if spec.kind == Some('c') {
                    let code = index(value).unwrap_or(-1);
                    return Ok(pad(&character(code)?.to_string(), "", &spec));
                }
                let kind = spec.kind.filter(|k| *k != 'n').unwrap_or('d');
                let (negative, digits) = radix(&Value::int(number.to_big().into_owned()), kind)?;
                let group = if kind == 'd' { 3 } else { 4 };
                let prefix = if spec.alternate { prefix_of(kind) } else { "" };
                let sign = format!("{}{prefix}", sign_of(negative, spec.sign));
                Ok(pad(&grouped(&digits, group, &spec, sign.len()), &sign, &spec))
            }
            Some(kind) => Err(unknown(kind)),
        },
        _ => Err(Error::runtime(format!("unsupported format string passed to {}.__format__", value.type_name()))),
    }
}

fn real_format(x: f64, mut spec: Spec, unknown: impl Fn(char) -> Error) -> Result<String> {
    spec.align = spec.align.or(Some('>'));
    let body = match spec.kind {
        None => match spec.precision {
            None => crate::repr::float(x.abs()),
            Some(precision) => {
                // As `g`, but with a digit behind the point.
                let text = general(x.abs(), precision.max(1), false);
                let power = x.abs().log10().floor();
                if !x.is_finite() {
                    real(x.abs(), 'f', 0, false)
                } else if text.contains(['.', 'e']) {
                    text
                } else if x != 0.0 && power + 1.0 >= precision as f64 {
                    exponent(x.abs(), precision.max(1) - 1, false)
                } else {
                    text + ".0"
                }
            }
        },
        Some('%') => real(x.abs() * 100.0, 'f', spec.precision.unwrap_or(6), spec.alternate) + "%",
        Some('n') => real(x.abs(), 'g', spec.precision.unwrap_or(6), spec.alternate),
        Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')) => {
            real(x.abs(), kind, spec.precision.unwrap_or(6), spec.alternate)
        }
        Some(kind) => return Err(unknown(kind)),
    };
    let sign = sign_of(x.is_sign_negative() && !x.is_nan(), spec.sign);
    let whole = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let body = format!("{}{}", grouped(&body[..whole], 3, &spec, sign.len() + body.len() - whole), &body[whole..]);
    Ok(pad(&body, sign, &spec))
}

/// Digits in groups, filled up with zeros that are in groups, too.
fn grouped(digits: &str, group: usize, spec: &Spec, beside: usize) -> String {
    let Some(separator) = spec.grouping else {
        return digits.to_owned();
    };
    let mut digits = digits.to_owned();
    if spec.fill == Some('0') && spec.align == Some('=') {
        let width = spec.width.saturating_sub(beside);
        while digits.len() + (digits.len() - 1) / group < width {
            digits.insert(0, '0');
        }
    }
    let first = digits.len() % group;
    let mut out = digits[..first].to_owned();
    for (i, c) in digits[first..].chars().enumerate() {
        if i % group == 0 && !out.is_empty() {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

/// `format.format(…)`.
pub(crate) fn brackets(run: &mut Interpreter<'_>, format: &str, args: &Args) -> Result<Value> {
    let mut next = Some(0);
    render(run, format, args, &mut next, 2).map(Value::from)
}

fn render(
    run: &mut Interpreter<'_>,
    format: &str,
    args: &Args,
    next: &mut Option<usize>,
    depth: i32,
) -> Result<String> {
    if depth < 0 {
        return Err(Error::runtime("Max string recursion exceeded"));
    }
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let (bracket, after) = rest[at..].split_at(1);
        if after.starts_with(bracket) {
            out.push_str(bracket);
            rest = &after[1..];
            continue;
        }
        if bracket == "}" {
            return Err(Error::runtime("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = after.char_indices().find(|&(_, c)| {
            open += i32::from(c == '{') - i32::from(c == '}');
            open == 0
        });
        let Some((end, _)) = end else {
            return Err(Error::runtime("expected '}' before end of string"));
        };
        let field = &after[..end];
        rest = &after[end + 1..];
        // A colon or exclamation mark within `[…]` belongs to the name.
        let mut within = false;
        let name_end = field
            .char_indices()
            .find(|&(_, c)| {
                within = (within || c == '[') && c != ']';
                !within && (c == ':' || c == '!')
            })
            .map_or(field.len(), |(at, _)| at);
        let (name, tail) = field.split_at(name_end);
        let (conversion, spec) = match tail.strip_prefix('!') {
            Some(tail) => {
                let mut chars = tail.chars();
                let conversion = chars.next();
                let spec = chars.as_str();
                if !spec.is_empty() && !spec.starts_with(':') {
                    return Err(Error::runtime("expected ':' after conversion specifier"));
                }
                (conversion, spec.strip_prefix(':').unwrap_or(""))
            }
            None => (None, tail.strip_prefix(':').unwrap_or("")),
        };
        let value = lookup(run, name, args, next)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::Str(to_str(&value)?),
            Some('r') => Value::from(repr(&value)?),
            Some('a') => Value::from(ascii(&repr(&value)?)),
            Some(c) => return Err(Error::runtime(format!("Unknown conversion specifier {c}"))),
        };
        let spec = render(run, spec, args, next, depth - 1)?;
        let text = formatted(&value, &spec)?;
        budget::reserve(out.len() + text.len())?;
        out.push_str(&text);
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup(run: &mut Interpreter<'_>, name: &str, args: &Args, next: &mut Option<usize>) -> Result<Value> {
    let first_end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut rest) = name.split_at(first_end);
    let mut value = if first.is_empty() || first.bytes().all(|b| b.is_ascii_digit()) {
        let at = if first.is_empty() {
            let at = next.ok_or_else(|| {
                Error::runtime("cannot switch from manual field specification to automatic field numbering")
            })?;
            *next = Some(at + 1);
            at
        } else {
            if next.is_some_and(|n| n > 0) {
                return Err(Error::runtime(
                    "cannot switch from automatic field numbering to manual field specification",
                ));
            }
            *next = None;
            first.parse().unwrap_or(usize::MAX)
        };
        args.positional
            .get(at)
            .cloned()
            .ok_or_else(|| Error::runtime(format!("Replacement index {at} out of range for positional args tuple")))?
    } else {
        let named = args.named.iter().find(|(other, _)| other.as_str() == first);
        named.map(|(_, value)| value.clone()).ok_or_else(|| Error::runtime(format!("'{first}'")))?
    };
    while !rest.is_empty() {
        if let Some(attribute) = rest.strip_prefix('.') {
            let end = attribute.find(['.', '[']).unwrap_or(attribute.len());
            value = run.attribute(&value, &Str::from(&attribute[..end]))?;
            rest = &attribute[end..];
        } else {
            let inner = rest.strip_prefix('[').unwrap_or(rest);
            let end = inner.find(']').ok_or_else(|| Error::runtime("Missing ']' in format string"))?;
            let key = &inner[..end];
            let key = match key.parse::<i64>() {
                Ok(i) if key.bytes().all(|b| b.is_ascii_digit()) => Value::Int(i),
                _ => Value::from(key),
            };
            value = run.item(&value, &key)?;
            rest = &inner[end + 1..];
        }
    }
    Ok(value)
}

//! `text % values`.

use super::Spec;
use super::parts::{ascii, character, cut, digits, pad, prefix_of, radix, real, sign_of};
use crate::budget;
use crate::error::{Error, Result};
use crate::markup::{escape, soft};
use crate::number::{Number, index, truncate};
use crate::repr::{repr, to_str};
use crate::value::{Str, Value};

/// `format % values`. Text that is marked as safe stays so: what goes into it is escaped.
pub(crate) fn percent(format: &Str, values: &Value) -> Result<Value> {
    if format.safe {
        values.defined()?;
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
        out.push_str(&match format.safe {
            true => into_safe(&value, kind, spec)?,
            false => printf(&value, kind, spec)?,
        });
    }
    let left = next.next().is_some();
    if left && (is_tuple || !(used_mapping || matches!(values, Value::Dict(_) | Value::List(_)))) {
        values.defined()?;
        return Err(Error::runtime("not all arguments converted during string formatting"));
    }
    Ok(if format.safe { Value::safe(out) } else { out.into() })
}

/// One conversion of `%` in text that is marked as safe, as markupsafe has it: texts are escaped, and numbers stay.
fn into_safe(value: &Value, kind: char, spec: Spec) -> Result<String> {
    let text = match kind {
        's' => soft(&to_str(value)?).into_owned(),
        'r' => escape(&repr(value)?),
        'a' => ascii(&escape(&repr(value)?)),
        'd' | 'i' | 'u' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' if Number::of(value).is_some() => {
            return printf(value, kind, spec);
        }
        _ => {
            let name = value.type_name();
            return Err(Error::runtime(format!(
                "`%{kind}` of '{name}' in text that is marked as safe is not supported"
            )));
        }
    };
    budget::reserve(text.len())?;
    printf(&text.into(), 's', spec)
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

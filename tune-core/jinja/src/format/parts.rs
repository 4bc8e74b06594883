//! Numbers and characters as both ways to format write them.

use super::Spec;
use crate::error::{Error, Result};
use crate::number::Number;
use crate::value::Value;

/// A float without its sign, as C's `printf` writes it.
pub(super) fn real(x: f64, kind: char, precision: usize, alternate: bool) -> String {
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

pub(super) fn exponent(x: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let point = if alternate && precision == 0 { "." } else { "" };
    format!("{digits}{point}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

pub(super) fn general(x: f64, precision: usize, alternate: bool) -> String {
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
pub(super) fn pad(body: &str, prefix: &str, spec: &Spec) -> String {
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

pub(super) fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<i64>> {
    let mut number: Option<i64> = None;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = i64::from(digit as u8 - b'0');
        let next = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
        number = Some(next.ok_or_else(|| Error::runtime("width too big"))?);
    }
    Ok(number)
}

pub(super) fn character(code: i64) -> Result<char> {
    u32::try_from(code).ok().and_then(char::from_u32).ok_or_else(|| Error::runtime("%c arg not in range(0x110000)"))
}

pub(super) fn ascii(text: &str) -> String {
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

pub(super) fn cut(text: &str, len: Option<usize>) -> &str {
    match len.and_then(|len| text.char_indices().nth(len)) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

pub(super) fn sign_of(negative: bool, sign: Option<char>) -> &'static str {
    match (negative, sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    }
}

pub(super) fn prefix_of(kind: char) -> &'static str {
    match kind {
        'o' => "0o",
        'x' => "0x",
        'X' => "0X",
        'b' => "0b",
        _ => "",
    }
}

/// An integer's digits without its sign.
pub(super) fn radix(value: &Value, kind: char) -> Result<(bool, String)> {
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

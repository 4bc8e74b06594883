//! `text % values` and `text.format(…)`.

mod brackets;
mod parts;
mod percent;

pub(crate) use self::brackets::brackets;
use self::parts::{character, cut, digits, exponent, general, pad, prefix_of, radix, real, sign_of};
pub(crate) use self::percent::percent;
use crate::budget;
use crate::error::{Error, Result};
use crate::number::{Number, index};
use crate::repr::to_str;
use crate::value::Value;

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

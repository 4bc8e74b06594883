//! What a scalar's text stands for: YAML 1.2's core schema, and Python's `None`.

/// A scalar as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    /// The text, after escapes.
    pub text: String,
    /// Quoted (or a block): text and nothing else.
    pub quoted: bool,
}

/// What a scalar stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `null`, `~`, `None` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Anything else, and whatever is quoted.
    Text,
}

/// A number, where a number is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A whole number, written as one.
    Int(i128),
    /// Any other.
    Float(f64),
}

impl Scalar {
    /// Text without quotes.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), quoted: false }
    }

    /// Text in quotes.
    pub fn quoted(text: impl Into<String>) -> Self {
        Self { text: text.into(), quoted: true }
    }

    /// What the scalar stands for where nothing in particular is wanted.
    pub fn kind(&self) -> Kind {
        if self.quoted {
            return Kind::Text;
        }
        match self.text.as_str() {
            // PyYAML writes Python's None as null, but people write None.
            "" | "~" | "null" | "Null" | "NULL" | "None" => Kind::Null,
            "true" | "True" | "TRUE" => Kind::Bool(true),
            "false" | "False" | "FALSE" => Kind::Bool(false),
            text => match number(text) {
                Some(Number::Int(int)) => Kind::Int(int),
                Some(Number::Float(float)) => Kind::Float(float),
                None => Kind::Text,
            },
        }
    }

    /// The number that the scalar stands for where a number is wanted: here
    /// `1_000_000` is one too.
    pub fn number(&self) -> Option<Number> {
        if self.quoted { None } else { self.plain_number() }
    }

    /// The number that the scalar would be without its quotes.
    pub fn plain_number(&self) -> Option<Number> {
        if !self.text.contains('_') {
            return number(&self.text);
        }
        let bytes = self.text.as_bytes();
        let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
        let between_digits =
            bytes.iter().enumerate().all(|(at, &byte)| byte != b'_' || digit(at.checked_sub(1)) && digit(Some(at + 1)));
        between_digits.then(|| number(&self.text.replace('_', ""))).flatten()
    }
}

/// A number of the core schema.
fn number(text: &str) -> Option<Number> {
    match text {
        ".nan" | ".NaN" | ".NAN" => return Some(Number::Float(f64::NAN)),
        _ => {}
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return radix(hex, 16);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return radix(octal, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Some(Number::Float(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY }));
    }
    if !decimal(unsigned) {
        return None;
    }
    // A whole number beyond i128 is still a number, only not an exact one.
    if let Ok(int) = text.parse() {
        return Some(Number::Int(int));
    }
    text.parse().ok().map(Number::Float)
}

fn radix(digits: &str, radix: u32) -> Option<Number> {
    // `from_str_radix` takes a sign, YAML does not.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    i128::from_str_radix(digits, radix).ok().map(Number::Int)
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn decimal(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_is_good = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent_is_good
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Kind {
        Scalar::plain(text).kind()
    }

    #[test]
    fn core_schema() {
        for text in ["", "~", "null", "None"] {
            assert_eq!(kind(text), Kind::Null, "{text}");
        }
        assert_eq!(kind("True"), Kind::Bool(true));
        for (text, int) in [("0", 0), ("-3", -3), ("+3", 3), ("007", 7), ("0o17", 15), ("0xFf", 255)] {
            assert_eq!(kind(text), Kind::Int(int), "{text}");
        }
        for (text, float) in [
            ("1.", 1.0),
            (".5", 0.5),
            ("2e-5", 2e-5),
            ("2E+5", 2e5),
            ("-1.5e3", -1500.0),
            (".inf", f64::INFINITY),
            ("-.inf", f64::NEG_INFINITY),
        ] {
            assert_eq!(kind(text), Kind::Float(float), "{text}");
        }
        for text in [
            "yes", "off", ".", "e5", "1e", "1e+", "1.2.3", "0x", "0x+1", "-", "+", "1_000", "inf", "nan", "0o8", "--1",
            "- 1",
        ] {
            assert_eq!(kind(text), Kind::Text, "{text}");
        }
        assert_eq!(Scalar::quoted("1").kind(), Kind::Text);
        let huge = "9".repeat(60);
        assert_eq!(kind(&huge), Kind::Float(1e60));
    }

    #[test]
    fn underscores_between_digits_where_a_number_is_wanted() {
        let number = |text| Scalar::plain(text).number();
        assert_eq!(number("1_000_000"), Some(Number::Int(1_000_000)));
        assert_eq!(number("1_0.5"), Some(Number::Float(10.5)));
        for text in ["_1", "1_", "1__0", "1_.5", "a_b"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}

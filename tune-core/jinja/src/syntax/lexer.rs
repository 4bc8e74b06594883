//! A template's text to tokens, with the white space control of `trim_blocks` and `lstrip_blocks`.

use num_bigint::BigInt;
use num_traits::{Num, ToPrimitive};

use super::is_space;
use super::strings::unescape;
use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i64),
    Big(BigInt),
    Float(f64),
    Operator(&'static str),
    End,
}

#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

/// Longer ones first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

pub(super) fn tokens(source: &str) -> Result<Vec<Token>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, line_starts: true, tokens: Vec::new() };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether what was read last ended with a line.
    line_starts: bool,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Comment,
    Block,
    Variable,
    Raw,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { line: self.line, kind });
    }

    /// Goes on by `len` bytes.
    fn skip(&mut self, len: usize) {
        let text = &self.source[self.at..self.at + len];
        self.line += text.matches('\n').count();
        self.line_starts = text.ends_with('\n');
        self.at += len;
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::syntax(message, self.line)
    }

    fn run(&mut self) -> Result<()> {
        loop {
            let rest = self.rest();
            let mut begins = rest.match_indices('{').filter_map(|(at, _)| {
                let tag = match rest.as_bytes().get(at + 1)? {
                    b'%' => Tag::Block,
                    b'{' => Tag::Variable,
                    b'#' => Tag::Comment,
                    _ => return None,
                };
                Some((at, tag))
            });
            let Some((at, tag)) = begins.next() else {
                if !rest.is_empty() {
                    self.push(Kind::Data(rest.to_owned()));
                }
                self.skip(rest.len());
                self.push(Kind::End);
                return Ok(());
            };
            let after = &rest[at + 2..];
            let sign = after.chars().next().filter(|c| matches!(c, '-' | '+'));
            let mut len = at + 2 + usize::from(sign.is_some());
            let raw = if tag == Tag::Block { raw_begin(&rest[len..]) } else { None };
            let tag = if let Some(raw) = raw {
                len += raw;
                Tag::Raw
            } else {
                tag
            };
            self.data(&rest[..at], sign, tag != Tag::Variable);
            self.skip(len);
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Raw => self.raw()?,
                Tag::Block => {
                    self.push(Kind::BlockBegin);
                    self.tag("%}", true)?;
                    self.push(Kind::BlockEnd);
                }
                Tag::Variable => {
                    self.push(Kind::VariableBegin);
                    self.tag("}}", false)?;
                    self.push(Kind::VariableEnd);
                }
            }
        }
    }

    /// The text before a tag.
    fn data(&mut self, text: &str, sign: Option<char>, block: bool) {
        let text = match sign {
            Some('-') => text.trim_end_matches(is_space),
            None if block => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let begins = line > 0 || self.line_starts;
                if begins && text[line..].chars().all(is_space) { &text[..line] } else { text }
            }
            _ => text,
        };
        if !text.is_empty() {
            self.push(Kind::Data(text.to_owned()));
        }
    }

    fn comment(&mut self) -> Result<()> {
        let rest = self.rest();
        let Some(end) = rest.find("#}") else {
            // As in jinja2, where nothing follows.
            if rest.is_empty() {
                return Ok(());
            }
            return Err(self.error("Missing end of comment tag"));
        };
        let sign = rest[..end].chars().next_back();
        self.skip(end + 2);
        self.after_end(sign, true);
        Ok(())
    }

    /// What the end of a tag takes along.
    fn after_end(&mut self, sign: Option<char>, block: bool) {
        let rest = self.rest();
        match sign {
            Some('-') => {
                let len = rest.len() - rest.trim_start_matches(is_space).len();
                if len > 0 {
                    self.skip(len);
                }
            }
            Some('+') => {}
            _ if block && rest.starts_with('\n') => self.skip(1),
            _ => {}
        }
    }

    fn raw(&mut self) -> Result<()> {
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let after = &rest[at + 2..];
            let sign = after.chars().next().filter(|c| matches!(c, '-' | '+'));
            let inner = after[usize::from(sign.is_some())..].trim_start_matches(is_space);
            let Some(inner) = inner.strip_prefix("endraw") else { continue };
            let inner = inner.trim_start_matches(is_space);
            let end = inner.chars().next().filter(|c| matches!(c, '-' | '+'));
            let Some(tail) = inner[usize::from(end.is_some())..].strip_prefix("%}") else { continue };
            self.data(&rest[..at], sign, true);
            self.skip(rest.len() - tail.len());
            self.after_end(end, true);
            return Ok(());
        }
        if rest.is_empty() { Ok(()) } else { Err(self.error("Missing end of raw directive")) }
    }

    /// The tokens of a tag, up to and with its end.
    fn tag(&mut self, end: &str, block: bool) -> Result<()> {
        let mut open = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return Err(self.error("the template ends within a tag"));
            };
            if open.is_empty() {
                let sign = Some(first).filter(|&c| c == '-' || (block && c == '+'));
                if rest[usize::from(sign.is_some())..].starts_with(end) {
                    self.skip(end.len() + usize::from(sign.is_some()));
                    self.after_end(sign, block);
                    return Ok(());
                }
            }
            if is_space(first) {
                self.skip(rest.len() - rest.trim_start_matches(is_space).len());
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if is_word(first) {
                let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                if !(first == '_' || first.is_alphabetic()) {
                    return Err(self.error("Invalid character in identifier"));
                }
                self.push(Kind::Name(rest[..len].to_owned()));
                self.skip(len);
            } else if first == '"' || first == '\'' {
                self.string(first)?;
            } else if let Some(operator) = OPERATORS.iter().find(|o| rest.starts_with(**o)) {
                self.balance(&mut open, operator)?;
                self.push(Kind::Operator(operator));
                self.skip(operator.len());
            } else {
                return Err(self.error(format!("unexpected char {first:?} at {}", self.at)));
            }
        }
    }

    fn balance(&self, open: &mut Vec<&'static str>, operator: &str) -> Result<()> {
        match operator {
            "{" => open.push("}"),
            "(" => open.push(")"),
            "[" => open.push("]"),
            "}" | ")" | "]" => match open.pop() {
                None => return Err(self.error(format!("unexpected '{operator}'"))),
                Some(expected) if expected != operator => {
                    return Err(self.error(format!("unexpected '{operator}', expected '{expected}'")));
                }
                Some(_) => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let rest = self.rest();
        let mut escaped = false;
        for (at, c) in rest.char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == quote {
                let text = unescape(&rest[1..at]).map_err(|message| self.error(message))?;
                self.push(Kind::Str(text));
                self.skip(at + 1);
                return Ok(());
            }
        }
        Err(self.error(format!("unexpected char {quote:?} at {}: the string does not end", self.at)))
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let after_dot = self.source[..self.at].ends_with('.');
        if let Some(len) = float_len(rest).filter(|_| !after_dot) {
            let digits: String = rest[..len].chars().filter(|&c| c != '_').collect();
            self.push(Kind::Float(digits.parse().map_err(|_| self.error("not a number"))?));
            self.skip(len);
            return Ok(());
        }
        let lower = rest.get(..2).unwrap_or_default().to_ascii_lowercase();
        let (radix, prefix) = match lower.as_str() {
            "0b" => (2, 2),
            "0o" => (8, 2),
            "0x" => (16, 2),
            _ => (10, 0),
        };
        let mut len = prefix + digits_len(&rest[prefix..], radix, prefix > 0);
        let (radix, prefix) = if len == prefix && prefix > 0 { (10, 0) } else { (radix, prefix) };
        if prefix == 0 {
            len = if rest.starts_with('0') {
                let zeros = rest.find(|c| c != '0' && c != '_').unwrap_or(rest.len());
                rest[..zeros].trim_end_matches('_').len()
            } else {
                digits_len(rest, 10, false)
            };
        }
        let digits: String = rest[prefix..len].chars().filter(|&c| c != '_').collect();
        let value = BigInt::from_str_radix(&digits, radix).map_err(|e| self.error(e.to_string()))?;
        if radix == 10 && digits.len() > 4300 {
            return Err(self.error("an integer of more than 4300 digits"));
        }
        self.push(value.to_i64().map_or_else(|| Kind::Big(value), Kind::Int));
        self.skip(len);
        Ok(())
    }
}

/// The length of digits with single underscores between them (in front of them, too, after `0x`).
fn digits_len(text: &str, radix: u32, leading: bool) -> usize {
    let mut len = 0;
    let mut underscore = !leading;
    for (at, c) in text.char_indices() {
        if c.is_digit(radix) {
            len = at + 1;
            underscore = false;
        } else if c == '_' && !underscore {
            underscore = true;
        } else {
            break;
        }
    }
    len
}

fn float_len(text: &str) -> Option<usize> {
    let whole = digits_len(text, 10, false);
    let mut len = whole;
    if let Some(fraction) = text[len..].strip_prefix('.') {
        let digits = digits_len(fraction, 10, false);
        if digits > 0 {
            len += 1 + digits;
        }
    }
    if let Some(exponent) = text[len..].strip_prefix(['e', 'E']) {
        let sign = usize::from(exponent.starts_with(['+', '-']));
        let digits = digits_len(&exponent[sign..], 10, false);
        if digits > 0 {
            return Some(len + 1 + sign + digits);
        }
    }
    (len > whole).then_some(len)
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// The length of what follows `{%` at the beginning of a raw block.
fn raw_begin(text: &str) -> Option<usize> {
    let inner = text.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    if let Some(tail) = inner.strip_prefix("%}") {
        return Some(text.len() - tail.len());
    }
    let tail = inner.strip_prefix("-%}")?.trim_start_matches(is_space);
    Some(text.len() - tail.len())
}

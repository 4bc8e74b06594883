//! Text that is not YAML: where the mistake is, which is often before the place
//! where the parser stops, and what to do about it.

use granit_parser::{ErrorKind, ScanError};

use crate::{Code, Error, SourceId, Span};

/// What is known where the parser stops.
pub(crate) struct Stop<'a> {
    pub(crate) text: &'a str,
    pub(crate) source: SourceId,
    /// Where the collections begin that are open, from the outermost on.
    pub(crate) open: Vec<usize>,
    /// Where the mapping begins that was closed last.
    pub(crate) closed: Option<usize>,
}

impl Stop<'_> {
    /// The mistake.
    pub(crate) fn error(&self, error: &ScanError) -> Error {
        let mut at = error.marker().byte_offset().unwrap_or(self.text.len()).min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        self.tab(at)
            .or_else(|| self.bracket(at, error.kind()))
            .or_else(|| self.known(at, error.kind()))
            .unwrap_or_else(|| self.at(at, Code::SYNTAX, format!("this is not YAML: {}", error.info())))
    }

    /// A mistake that one character shows.
    fn at(&self, at: usize, code: Code, message: impl Into<String>) -> Error {
        let width = self.text[at..].chars().next().map_or(0, char::len_utf8);
        Error::new(code, message, Span::new(self.source, at, at + width))
    }

    fn syntax(&self, at: usize, message: &str) -> Error {
        self.at(at, Code::SYNTAX, format!("this is not YAML: {message}"))
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// The line of `at` from its first character on.
    fn line(&self, at: usize) -> &str {
        self.text[self.line_start(at)..].lines().next().unwrap_or_default()
    }

    /// In characters, from 1.
    fn column(&self, at: usize) -> usize {
        self.text[self.line_start(at)..at].chars().count() + 1
    }

    /// A tab that indents the line of `at` or the one after it: the parser
    /// stops at either.
    fn tab(&self, at: usize) -> Option<Error> {
        let mut start = self.line_start(at);
        for line in self.text[start..].split_inclusive('\n').take(2) {
            let indent = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
            if let Some(tab) = indent.find('\t') {
                let error = self.at(start + tab, Code::TAB, "a tab cannot indent YAML");
                return Some(error.label("a tab").help("use spaces"));
            }
            start += line.len();
        }
        None
    }

    /// A bracket that is still open: what comes on later lines makes no sense
    /// within it.
    fn bracket(&self, at: usize, kind: &ErrorKind) -> Option<Error> {
        if matches!(kind, ErrorKind::UnclosedQuotedScalar) {
            return None;
        }
        let begins = self.open.last().copied().filter(|&start| start < self.text.len());
        let start = match kind {
            // The parser knows which one.
            ErrorKind::UnclosedFlowCollection { .. } if self.text[at..].starts_with(['[', '{']) => at,
            _ => begins?,
        };
        let close = match self.text.as_bytes()[start] {
            b'[' => ']',
            b'{' => '}',
            _ => return None,
        };
        let ends = self.text[at..].trim().is_empty() || matches!(kind, ErrorKind::UnclosedFlowCollection { .. });
        if !ends && self.line_start(start) == self.line_start(at) {
            return None;
        }
        let error = self.syntax(start, "a bracket that is not closed").help(format!("close it with `{close}`"));
        Some(if ends { error } else { error.also(self.at(at, Code::SYNTAX, "").span, "this cannot stand within it") })
    }

    fn known(&self, at: usize, kind: &ErrorKind) -> Option<Error> {
        let rest = &self.text[at..];
        let first = rest.chars().next();
        Some(match kind {
            ErrorKind::UnclosedQuotedScalar => {
                let quote = first.filter(|first| matches!(first, '"' | '\''))?;
                self.syntax(at, "a quote that is not closed").help(format!("close it with `{quote}`"))
            }
            ErrorKind::UnknownAnchor => self
                .at(at, Code::ALIAS, "an alias without its anchor")
                .help("put text that begins with `*` into quotes"),
            ErrorKind::UnexpectedCharacter { character } => self
                .syntax(at, &format!("a value cannot begin with `{}`", character.escape_default()))
                .help("put the text into quotes"),
            ErrorKind::MappingValueNotAllowed => {
                let line = self.line(at);
                let before = &line[..at - self.line_start(at)];
                if before.contains(": ") {
                    self.syntax(at, "a second `:` in one line").help("put text with `: ` in it into quotes")
                } else {
                    self.syntax(at, "a key within the value above")
                        .help("begin it in the column of the key that it follows")
                }
            }
            ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => match self.colon(at) {
                Some(colon) => self.syntax(colon, "no space after a `:`").help("write a space after it"),
                None => self.syntax(at, "a line without a key").help("a line is `key: value` or `- item`"),
            },
            _ if first == Some('-') && rest[1..].starts_with(|next: char| next.is_alphanumeric() || next == '_') => {
                self.syntax(at, "no space after a `-`").help("write a space after it")
            }
            ErrorKind::ExpectedBlockMappingKey | ErrorKind::InvalidIndentation => {
                let column = self.nearest_column(at)?;
                self.syntax(at, "a key in a column of its own")
                    .help(format!("begin it in column {column}, as its neighbours do"))
            }
            _ => return None,
        })
    }

    /// The `:` of a line such as `epochs:3`.
    fn colon(&self, at: usize) -> Option<usize> {
        let line = self.line(at);
        let colon = line.find(':')?;
        line[colon + 1..].starts_with(|next: char| !next.is_whitespace()).then_some(self.line_start(at) + colon)
    }

    /// The column of the mapping that a key at `at` most likely belongs to.
    fn nearest_column(&self, at: usize) -> Option<usize> {
        let column = self.column(at);
        let mappings = self.closed.iter().chain(self.open.iter().rev()).map(|&start| self.column(start));
        mappings.min_by_key(|other| other.abs_diff(column))
    }
}

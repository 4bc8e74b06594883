//! Tokens to statements, as `jinja2.parser` reads them.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{Program, Statement, Symbol};
use super::lexer::{self, Kind, Token};
use crate::budget::MAX_NESTING;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::value::Str;

/// # Errors
/// Where the template is not valid Jinja, with the line.
pub(crate) fn parse(source: &str) -> Result<Program> {
    let mut parser = Parser {
        tokens: lexer::tokens(source)?,
        at: 0,
        names: Vec::new(),
        symbols: HashMap::new(),
        blocks: Vec::new(),
        marks_generation: false,
        nesting: 0,
        soft: false,
        unknown: Vec::new(),
        frames: vec![Frame::default()],
        ends: Vec::new(),
        loops: 0,
        loop_stores: 0,
    };
    let body = parser.statements(&[])?;
    if !parser.unknown.is_empty() {
        return Err(parser.unknown.swap_remove(0));
    }
    let Parser { names, blocks, marks_generation, .. } = parser;
    Ok(Program { body, names, blocks, marks_generation })
}

/// The special names that a macro or a loop uses.
#[derive(Default)]
pub(super) struct Frame {
    pub(super) used: Vec<String>,
}

pub(super) struct Parser {
    pub(super) tokens: Vec<Token>,
    pub(super) at: usize,
    pub(super) names: Vec<Str>,
    pub(super) symbols: HashMap<String, Symbol>,
    pub(super) blocks: Vec<(Str, Arc<Vec<Statement>>)>,
    pub(super) marks_generation: bool,
    pub(super) nesting: usize,
    /// Whether what is parsed may never be reached: unknown filters there are no mistake yet.
    pub(super) soft: bool,
    /// Filters and tests that are not known, and are reached for certain.
    pub(super) unknown: Vec<Error>,
    pub(super) frames: Vec<Frame>,
    pub(super) ends: Vec<&'static [&'static str]>,
    /// How many loops there are around, within the same macro.
    pub(super) loops: usize,
    /// How often something is assigned to `loop`.
    pub(super) loop_stores: usize,
}

impl Parser {
    pub(super) fn kind(&self) -> &Kind {
        &self.tokens[self.at].kind
    }

    fn peek(&self) -> &Kind {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    pub(super) fn line(&self) -> usize {
        self.tokens[self.at].line
    }

    pub(super) fn advance(&mut self) -> Kind {
        let kind = self.kind().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        kind
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::syntax(message, self.line())
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.kind(), Kind::Operator(o) if *o == operator)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.kind(), Kind::Name(n) if n == name)
    }

    pub(super) fn next_is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Kind::Name(n) if n == name)
    }

    pub(super) fn next_is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Kind::Operator(o) if *o == operator)
    }

    pub(super) fn skip_operator(&mut self, operator: &str) -> bool {
        let is = self.is_operator(operator);
        if is {
            self.advance();
        }
        is
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        if is {
            self.advance();
        }
        is
    }

    pub(super) fn expect(&mut self, operator: &str) -> Result<()> {
        if self.skip_operator(operator) {
            return Ok(());
        }
        Err(self.error(format!("expected token '{operator}', got {}", describe(self.kind()))))
    }

    pub(super) fn expect_name(&mut self) -> Result<String> {
        match self.advance() {
            Kind::Name(name) => Ok(name),
            other => {
                self.at = self.at.saturating_sub(1);
                Err(self.error(format!("expected token 'name', got {}", describe(&other))))
            }
        }
    }

    pub(super) fn expect_block_end(&mut self) -> Result<()> {
        if *self.kind() == Kind::BlockEnd {
            self.advance();
            return Ok(());
        }
        Err(self.error(format!("expected token 'end of statement block', got {}", describe(self.kind()))))
    }

    pub(super) fn symbol(&mut self, name: &str) -> Symbol {
        if let Some(&symbol) = self.symbols.get(name) {
            return symbol;
        }
        self.names.push(Str::constant(name.to_owned()));
        self.symbols.insert(name.to_owned(), self.names.len() - 1);
        self.names.len() - 1
    }

    /// A name that is read.
    pub(super) fn load(&mut self, name: &str) -> Symbol {
        if matches!(name, "loop" | "caller" | "kwargs" | "varargs") {
            self.frames.iter_mut().for_each(|frame| frame.used.push(name.to_owned()));
        }
        self.symbol(name)
    }

    /// Parses what is nested, with a limit.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("statements and expressions are nested more than {MAX_NESTING} deep"),
            )
            .at(self.line()));
        }
        let result = parse(self);
        self.nesting -= 1;
        result
    }

    /// Parses what is a frame of its own, and says which special names it uses.
    pub(super) fn frame<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Vec<String>)> {
        let soft = std::mem::replace(&mut self.soft, false);
        self.frames.push(Frame::default());
        let result = parse(self);
        let frame = self.frames.pop().unwrap_or_default();
        self.soft = soft;
        Ok((result?, frame.used))
    }

    /// A frame in which the loops around it cannot be left.
    pub(super) fn function<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Vec<String>)> {
        let loops = std::mem::take(&mut self.loops);
        let result = self.frame(parse);
        self.loops = loops;
        result
    }
}

pub(super) fn is_constant(name: &str) -> bool {
    matches!(name, "true" | "false" | "none" | "True" | "False" | "None")
}

pub(super) fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Data(_) => "template data / text".to_owned(),
        Kind::VariableBegin => "'begin of print statement'".to_owned(),
        Kind::VariableEnd => "'end of print statement'".to_owned(),
        Kind::BlockBegin => "'begin of statement block'".to_owned(),
        Kind::BlockEnd => "'end of statement block'".to_owned(),
        Kind::Name(name) => format!("'{name}'"),
        Kind::Str(text) => format!("{text:?}"),
        Kind::Int(i) => format!("'{i}'"),
        Kind::Big(i) => format!("'{i}'"),
        Kind::Float(x) => format!("'{x}'"),
        Kind::Operator(operator) => format!("'{operator}'"),
        Kind::End => "the end of the template".to_owned(),
    }
}

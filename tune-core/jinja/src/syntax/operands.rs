//! What stands between operators, with all that may follow it: calls, subscripts, filters, tests.

use super::ast::{Arguments, Expression, ExpressionKind, Link, LinkKind, Literal, Named};
use super::lexer::Kind;
use super::parser::{Parser, describe, is_constant};
use crate::error::{Error, Result};
use crate::filters::Filter;
use crate::tests::Test;
use crate::value::Str;

impl Parser {
    pub(super) fn with_links(&self, base: Expression, links: Vec<Link>, line: usize) -> Expression {
        if links.is_empty() { base } else { self.at(ExpressionKind::Chain(Box::new(base), links), line) }
    }

    pub(super) fn postfix(&mut self, links: &mut Vec<Link>) -> Result<()> {
        loop {
            let line = self.line();
            let kind = if self.skip_operator(".") {
                match self.advance() {
                    Kind::Name(name) => LinkKind::Attribute(Str::constant(name)),
                    Kind::Int(i) => LinkKind::Item(self.at(ExpressionKind::Constant(Literal::Int(i)), line)),
                    _ => return Err(self.error("expected name or number")),
                }
            } else if self.skip_operator("[") {
                self.subscript(line)?
            } else if self.is_operator("(") {
                links.push(self.call()?);
                continue;
            } else {
                return Ok(());
            };
            links.push(Link { line, kind });
        }
    }

    fn subscript(&mut self, line: usize) -> Result<LinkKind> {
        if self.is_operator(":") {
            return self.slice(None);
        }
        let mut items = Vec::new();
        while !self.is_operator("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(self.expression(true)?);
            if self.is_operator(":") {
                return match items.pop() {
                    Some(start) if items.is_empty() => self.slice(Some(start)),
                    _ => Err(self.error("slices in tuples are not supported")),
                };
            }
        }
        self.expect("]")?;
        let item = match items.pop() {
            Some(item) if items.is_empty() => item,
            last => {
                items.extend(last);
                self.at(ExpressionKind::Tuple(items), line)
            }
        };
        Ok(LinkKind::Item(item))
    }

    fn slice(&mut self, start: Option<Expression>) -> Result<LinkKind> {
        self.expect(":")?;
        let part = |parser: &mut Self| -> Result<Option<Expression>> {
            let ended = [":", "]", ","].iter().any(|end| parser.is_operator(end));
            if ended { Ok(None) } else { parser.expression(true).map(Some) }
        };
        let stop = part(self)?;
        let step = if self.skip_operator(":") { part(self)? } else { None };
        self.expect("]")?;
        Ok(LinkKind::Slice(Box::new([start, stop, step])))
    }

    pub(super) fn call(&mut self) -> Result<Link> {
        let line = self.line();
        Ok(Link { line, kind: LinkKind::Call(self.arguments()?) })
    }

    fn arguments(&mut self) -> Result<Arguments> {
        let invalid = "invalid syntax for function call expression";
        let mut arguments = Arguments::default();
        self.expect("(")?;
        let mut first = true;
        while !self.is_operator(")") {
            if !first {
                self.expect(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            first = false;
            let unpacked = arguments.unpacked.is_some();
            let unpacked_named = arguments.unpacked_named.is_some();
            if self.is_operator("*") {
                if unpacked || unpacked_named {
                    return Err(self.error(invalid));
                }
                self.advance();
                arguments.unpacked = Some(Box::new(self.expression(true)?));
            } else if self.is_operator("**") {
                if unpacked_named {
                    return Err(self.error(invalid));
                }
                self.advance();
                arguments.unpacked_named = Some(Box::new(self.expression(true)?));
            } else if matches!(self.kind(), Kind::Name(_)) && self.next_is_operator("=") {
                if unpacked_named {
                    return Err(self.error(invalid));
                }
                let name = self.expect_name()?;
                self.advance();
                if arguments.named.iter().any(|(other, _)| other.as_str() == name) {
                    return Err(self.error(format!("keyword argument repeated: {name}")));
                }
                let value = self.expression(true)?;
                arguments.named.push((Str::constant(name), value));
            } else {
                if unpacked || unpacked_named || !arguments.named.is_empty() {
                    return Err(self.error(invalid));
                }
                arguments.positional.push(self.expression(true)?);
            }
        }
        self.expect(")")?;
        Ok(arguments)
    }

    /// Filters one behind the other; of a filter block the first has no `|` in front.
    pub(super) fn filters(&mut self, block: bool) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        let mut inline = block;
        while inline || self.skip_operator("|") {
            inline = false;
            let line = self.line();
            let name = self.dotted_name()?;
            let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
            let filter = match Filter::named(&name) {
                Some(filter) => Named::Known(filter),
                None => Named::Unknown(self.unknown_name("filter", &name, line)),
            };
            links.push(Link { line, kind: LinkKind::Filter(filter, arguments) });
        }
        Ok(links)
    }

    /// The message about a filter or test that is not known.
    fn unknown_name(&mut self, what: &str, name: &str, line: usize) -> String {
        let message = format!("No {what} named '{name}'.");
        if !self.soft {
            self.unknown.push(Error::syntax(message.clone(), line));
        }
        message
    }

    fn dotted_name(&mut self) -> Result<String> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name)
    }

    pub(super) fn test(&mut self) -> Result<Link> {
        let line = self.line();
        self.advance();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let takes_argument = match self.kind() {
            Kind::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            Kind::Str(_) | Kind::Int(_) | Kind::Big(_) | Kind::Float(_) => true,
            Kind::Operator("[" | "{") => true,
            _ => false,
        };
        let arguments = if self.is_operator("(") {
            self.arguments()?
        } else if takes_argument {
            if self.is_name("is") {
                return Err(self.error("You cannot chain multiple tests with is"));
            }
            let line = self.line();
            let base = self.primary()?;
            let mut links = Vec::new();
            self.postfix(&mut links)?;
            Arguments { positional: vec![self.with_links(base, links, line)], ..Arguments::default() }
        } else {
            Arguments::default()
        };
        let test = match Test::named(&name) {
            Some(test) => Named::Known(test),
            None => Named::Unknown(self.unknown_name("test", &name, line)),
        };
        Ok(Link { line, kind: LinkKind::Test { test, negated, arguments } })
    }

    pub(super) fn primary(&mut self) -> Result<Expression> {
        let line = self.line();
        let kind = match self.kind().clone() {
            Kind::Name(name) => {
                self.advance();
                match name.as_str() {
                    "true" | "True" => ExpressionKind::Constant(Literal::Bool(true)),
                    "false" | "False" => ExpressionKind::Constant(Literal::Bool(false)),
                    _ if is_constant(&name) => ExpressionKind::Constant(Literal::None),
                    _ => ExpressionKind::Name(self.load(&name)),
                }
            }
            Kind::Str(mut text) => {
                self.advance();
                while let Kind::Str(more) = self.kind() {
                    text.push_str(more);
                    self.advance();
                }
                ExpressionKind::Constant(Literal::Str(Str::constant(text)))
            }
            Kind::Int(i) => {
                self.advance();
                ExpressionKind::Constant(Literal::Int(i))
            }
            Kind::Big(i) => {
                self.advance();
                ExpressionKind::Constant(Literal::Big(i))
            }
            Kind::Float(x) => {
                self.advance();
                ExpressionKind::Constant(Literal::Float(x))
            }
            Kind::Operator("(") => {
                self.advance();
                let inner = self.nested(|parser| parser.tuple(true, true))?;
                self.expect(")")?;
                return Ok(inner);
            }
            Kind::Operator("[") => {
                self.advance();
                ExpressionKind::List(self.items("]", |parser| parser.expression(true))?)
            }
            Kind::Operator("{") => {
                self.advance();
                ExpressionKind::Dict(self.items("}", |parser| {
                    let key = parser.expression(true)?;
                    parser.expect(":")?;
                    Ok((key, parser.expression(true)?))
                })?)
            }
            other => return Err(self.error(format!("unexpected {}", describe(&other)))),
        };
        Ok(self.at(kind, line))
    }

    fn items<T>(&mut self, end: &str, item: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_operator(end) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.is_operator(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        self.expect(end)?;
        Ok(items)
    }
}

//! Expressions, as `jinja2.parser` reads them.

use super::ast::{Comparison, Expression, ExpressionKind};
use super::lexer::Kind;
use super::parser::{Parser, describe};
use crate::error::Result;
use crate::number::Operator;

impl Parser {
    pub(super) fn at(&self, kind: ExpressionKind, line: usize) -> Expression {
        Expression { line, kind }
    }

    /// An expression, or several with commas between them, which are a tuple.
    pub(super) fn tuple(&mut self, conditional: bool, explicit: bool) -> Result<Expression> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = matches!(self.kind(), Kind::VariableEnd | Kind::BlockEnd) || self.is_operator(")");
            if ended {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(item) = items.pop() {
                return Ok(item);
            }
            if !explicit {
                return Err(self.error(format!("Expected an expression, got {}", describe(self.kind()))));
            }
        }
        Ok(self.at(ExpressionKind::Tuple(items), line))
    }

    pub(super) fn expression(&mut self, conditional: bool) -> Result<Expression> {
        self.nested(|parser| if conditional { parser.condition() } else { parser.or() })
    }

    fn condition(&mut self) -> Result<Expression> {
        let line = self.line();
        let unknown = self.unknown.len();
        let mut value = self.or()?;
        let mut depth = 0;
        while self.is_name("if") {
            // What stands before the `if` may never be reached.
            self.unknown.truncate(unknown);
            depth += 1;
            self.advance();
            let soft = std::mem::replace(&mut self.soft, true);
            let test = self.or()?;
            let otherwise = if self.skip_name("else") { Some(Box::new(self.nested(Self::condition)?)) } else { None };
            self.soft = soft;
            let (test, then) = (Box::new(test), Box::new(value));
            value = self.at(ExpressionKind::If { test, then, otherwise }, line);
            if depth > 20 {
                return Err(self.error("too many conditions in a row"));
            }
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expression> {
        let line = self.line();
        let mut items = vec![self.and()?];
        while self.skip_name("or") {
            items.push(self.and()?);
        }
        Ok(self.one_or(items, line, ExpressionKind::Or))
    }

    fn and(&mut self) -> Result<Expression> {
        let line = self.line();
        let mut items = vec![self.not()?];
        while self.skip_name("and") {
            items.push(self.not()?);
        }
        Ok(self.one_or(items, line, ExpressionKind::And))
    }

    fn one_or(
        &self,
        mut items: Vec<Expression>,
        line: usize,
        kind: impl FnOnce(Vec<Expression>) -> ExpressionKind,
    ) -> Expression {
        match items.pop() {
            Some(item) if items.is_empty() => item,
            Some(last) => {
                items.push(last);
                self.at(kind(items), line)
            }
            None => self.at(ExpressionKind::Tuple(Vec::new()), line),
        }
    }

    fn not(&mut self) -> Result<Expression> {
        let line = self.line();
        if self.skip_name("not") {
            let of = self.nested(Self::not)?;
            return Ok(self.at(ExpressionKind::Not(Box::new(of)), line));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.kind() {
                Kind::Operator("==") => Comparison::Equal,
                Kind::Operator("!=") => Comparison::NotEqual,
                Kind::Operator("<") => Comparison::Less,
                Kind::Operator("<=") => Comparison::LessEqual,
                Kind::Operator(">") => Comparison::Greater,
                Kind::Operator(">=") => Comparison::GreaterEqual,
                Kind::Name(name) if name == "in" => Comparison::In,
                Kind::Name(name) if name == "not" && self.next_is_name("in") => Comparison::NotIn,
                _ => break,
            };
            self.advance();
            if comparison == Comparison::NotIn {
                self.advance();
            }
            rest.push((comparison, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(self.at(ExpressionKind::Compare(Box::new(first), rest), line))
    }

    fn sum(&mut self) -> Result<Expression> {
        self.chain_of(Self::concat, |kind| match kind {
            Kind::Operator("+") => Some(Operator::Add),
            Kind::Operator("-") => Some(Operator::Sub),
            _ => None,
        })
    }

    fn chain_of(
        &mut self,
        part: fn(&mut Self) -> Result<Expression>,
        operator: fn(&Kind) -> Option<Operator>,
    ) -> Result<Expression> {
        let line = self.line();
        let first = part(self)?;
        let mut rest = Vec::new();
        while let Some(operator) = operator(self.kind()) {
            self.advance();
            rest.push((operator, part(self)?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(self.at(ExpressionKind::Arithmetic(Box::new(first), rest), line))
    }

    fn concat(&mut self) -> Result<Expression> {
        let line = self.line();
        let mut items = vec![self.product()?];
        while self.skip_operator("~") {
            items.push(self.product()?);
        }
        Ok(self.one_or(items, line, ExpressionKind::Concat))
    }

    fn product(&mut self) -> Result<Expression> {
        self.chain_of(Self::power, |kind| match kind {
            Kind::Operator("*") => Some(Operator::Mul),
            Kind::Operator("/") => Some(Operator::Div),
            Kind::Operator("//") => Some(Operator::FloorDiv),
            Kind::Operator("%") => Some(Operator::Mod),
            _ => None,
        })
    }

    fn power(&mut self) -> Result<Expression> {
        let operand = |parser: &mut Self| parser.unary(true);
        self.chain_of(operand, |kind| matches!(kind, Kind::Operator("**")).then_some(Operator::Pow))
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expression> {
        let line = self.line();
        let minus = self.is_operator("-");
        let base = if minus || self.is_operator("+") {
            self.advance();
            let of = self.nested(|parser| parser.unary(false))?;
            self.at(ExpressionKind::Sign { minus, of: Box::new(of) }, line)
        } else {
            self.primary()?
        };
        let mut links = Vec::new();
        self.postfix(&mut links)?;
        loop {
            if !with_filters {
                break;
            }
            if self.is_operator("|") {
                links.extend(self.filters(false)?);
            } else if self.is_name("is") {
                links.push(self.test()?);
            } else if self.is_operator("(") {
                links.push(self.call()?);
            } else {
                break;
            }
        }
        Ok(self.with_links(base, links, line))
    }
}

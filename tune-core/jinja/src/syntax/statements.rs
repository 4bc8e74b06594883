//! Statements, as `jinja2.parser` reads them.

use std::sync::Arc;

use super::ast::{Expression, ExpressionKind, For, Link, LinkKind, Macro, Statement, StatementKind, Symbol, Target};
use super::lexer::Kind;
use super::parser::{Parser, describe, is_constant};
use crate::error::{Error, Result};
use crate::value::Str;

/// A macro's arguments, and what the last of them are where they are not given.
type Signature = (Vec<(Symbol, Str)>, Vec<Expression>);

impl Parser {
    fn body(&mut self, ends: &'static [&'static str]) -> Result<Vec<Statement>> {
        self.skip_operator(":");
        self.expect_block_end()?;
        self.statements(ends)
    }

    /// A body, and the end behind it.
    fn whole_body(&mut self, ends: &'static [&'static str]) -> Result<Vec<Statement>> {
        let body = self.body(ends)?;
        self.advance();
        Ok(body)
    }

    /// Statements up to one of the ends, which is not taken.
    pub(super) fn statements(&mut self, ends: &'static [&'static str]) -> Result<Vec<Statement>> {
        self.ends.push(ends);
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.kind() {
                Kind::End if ends.is_empty() => break,
                Kind::End => {
                    let names = ends.iter().map(|e| format!("'{e}'")).collect::<Vec<_>>().join(" or ");
                    return Err(self.error(format!(
                        "Unexpected end of template. Jinja was looking for the following tags: {names}."
                    )));
                }
                Kind::Data(_) => {
                    if let Kind::Data(text) = self.advance() {
                        body.push(Statement { line, kind: StatementKind::Text(text) });
                    }
                }
                Kind::VariableBegin => {
                    self.advance();
                    let value = self.tuple(true, false)?;
                    if *self.kind() != Kind::VariableEnd {
                        let got = describe(self.kind());
                        return Err(self.error(format!("expected token 'end of print statement', got {got}")));
                    }
                    self.advance();
                    body.push(Statement { line, kind: StatementKind::Print(value) });
                }
                _ => {
                    self.advance();
                    if ends.iter().any(|end| self.is_name(end)) {
                        break;
                    }
                    self.nested(|parser| parser.statement(&mut body))?;
                    self.expect_block_end()?;
                }
            }
        }
        self.ends.pop();
        Ok(body)
    }

    fn statement(&mut self, body: &mut Vec<Statement>) -> Result<()> {
        let line = self.line();
        let Kind::Name(tag) = self.kind().clone() else {
            return Err(self.error("tag name expected"));
        };
        self.advance();
        let kind = match tag.as_str() {
            "for" => self.for_loop()?,
            "if" => self.if_statement()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => self.macro_definition()?,
            "call" => self.call_block()?,
            "filter" => {
                let filters = self.filters(true)?;
                let (body, _) = self.frame(|parser| parser.whole_body(&["endfilter"]))?;
                StatementKind::Filter { filters, body }
            }
            "generation" => {
                self.marks_generation = true;
                let (body, _) = self.function(|parser| parser.whole_body(&["endgeneration"]))?;
                StatementKind::Generation(body)
            }
            "block" => self.block()?,
            "autoescape" => {
                let value = self.expression(true)?;
                if !matches!(value.kind, ExpressionKind::Constant(super::ast::Literal::Bool(false))) {
                    return Err(Error::syntax("`{% autoescape %}` is not supported", line));
                }
                let (body, _) = self.frame(|parser| parser.whole_body(&["endautoescape"]))?;
                StatementKind::With { targets: Vec::new(), body }
            }
            "print" => {
                let mut first = true;
                while *self.kind() != Kind::BlockEnd {
                    if !first {
                        self.expect(",")?;
                    }
                    first = false;
                    let value = self.expression(true)?;
                    body.push(Statement { line, kind: StatementKind::Print(value) });
                }
                return Ok(());
            }
            "break" | "continue" if self.loops == 0 => {
                return Err(Error::syntax(format!("'{tag}' outside loop"), line));
            }
            "break" => StatementKind::Break,
            "continue" => StatementKind::Continue,
            "extends" | "include" | "import" | "from" => {
                while !matches!(self.kind(), Kind::BlockEnd | Kind::End) {
                    self.advance();
                }
                StatementKind::Load
            }
            _ => return Err(self.unknown_tag(&tag, line)),
        };
        body.push(Statement { line, kind });
        Ok(())
    }

    fn unknown_tag(&self, tag: &str, line: usize) -> Error {
        let looking = self.ends.last().filter(|ends| !ends.is_empty()).map_or_else(String::new, |ends| {
            let names = ends.iter().map(|e| format!("'{e}'")).collect::<Vec<_>>().join(" or ");
            format!(" Jinja was looking for the following tags: {names}.")
        });
        Error::syntax(format!("Encountered unknown tag '{tag}'.{looking}"), line)
    }

    fn for_loop(&mut self) -> Result<StatementKind> {
        let stores = self.loop_stores;
        let target = self.target(true, false)?;
        if !self.skip_name("in") {
            return Err(self.error(format!("expected token 'in', got {}", describe(self.kind()))));
        }
        let iter = self.tuple(false, false)?;
        let soft = std::mem::replace(&mut self.soft, false);
        let test = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        self.soft = soft;
        self.loops += 1;
        let (body, used) = self.frame(|parser| parser.body(&["endfor", "else"]))?;
        self.loops -= 1;
        let uses_loop = recursive || used.iter().any(|name| name == "loop");
        let loop_symbol = uses_loop.then(|| self.symbol("loop"));
        let otherwise = if self.skip_name("else") {
            self.frame(|parser| parser.whole_body(&["endfor"]))?.0
        } else {
            self.advance();
            Vec::new()
        };
        if self.loop_stores > stores {
            return Err(self.error("Can't assign to special loop variable in for-loop target"));
        }
        Ok(StatementKind::For(Arc::new(For { target, iter, test, recursive, loop_symbol, body, otherwise })))
    }

    fn if_statement(&mut self) -> Result<StatementKind> {
        let soft = std::mem::replace(&mut self.soft, true);
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false, false)?;
            branches.push((test, self.body(&["elif", "else", "endif"])?));
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                otherwise = self.whole_body(&["endif"])?;
            } else {
                self.advance();
            }
            break;
        }
        self.soft = soft;
        Ok(StatementKind::If { branches, otherwise })
    }

    fn set(&mut self) -> Result<StatementKind> {
        let target = self.target(true, true)?;
        if self.skip_operator("=") {
            let value = self.tuple(true, false)?;
            return Ok(StatementKind::Set { target, value });
        }
        let filters = self.filters(false)?;
        let (body, _) = self.frame(|parser| parser.whole_body(&["endset"]))?;
        Ok(StatementKind::SetBlock { target, filters, body })
    }

    fn with(&mut self) -> Result<StatementKind> {
        let mut targets = Vec::new();
        while *self.kind() != Kind::BlockEnd && *self.kind() != Kind::End {
            if !targets.is_empty() {
                self.expect(",")?;
            }
            let stores = self.loop_stores;
            let target = self.target(true, false)?;
            self.loop_stores = stores;
            self.expect("=")?;
            targets.push((target, self.expression(true)?));
        }
        let (body, _) = self.frame(|parser| parser.whole_body(&["endwith"]))?;
        Ok(StatementKind::With { targets, body })
    }

    fn signature(&mut self) -> Result<Signature> {
        let (mut arguments, mut defaults) = (Vec::new(), Vec::new());
        self.expect("(")?;
        while !self.is_operator(")") {
            if !arguments.is_empty() {
                self.expect(",")?;
            }
            let name = self.target_name()?;
            let symbol = self.symbol(&name);
            if self.skip_operator("=") {
                defaults.push(self.expression(true)?);
            } else if !defaults.is_empty() {
                return Err(self.error("non-default argument follows default argument"));
            }
            arguments.push((symbol, Str::constant(name)));
        }
        self.expect(")")?;
        Ok((arguments, defaults))
    }

    /// A macro's signature and body. Special names that its caller's frame uses are not its own.
    fn macro_of(
        &mut self,
        name: Option<(Symbol, Str)>,
        (arguments, defaults): Signature,
        end: &'static [&'static str],
    ) -> Result<Arc<Macro>> {
        let (body, used) = self.function(|parser| parser.whole_body(end))?;
        let is_argument = |name: &str| arguments.iter().any(|(_, argument)| argument.as_str() == name);
        let uses = |name: &str| used.iter().any(|used| used == name) && !is_argument(name);
        if is_argument("caller")
            && arguments
                .iter()
                .position(|(_, a)| a.as_str() == "caller")
                .is_some_and(|at| at + defaults.len() < arguments.len())
        {
            return Err(self.error(
                "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.",
            ));
        }
        let [caller, kwargs, varargs] = ["caller", "kwargs", "varargs"].map(|name| uses(name).then_some(name));
        let [caller, kwargs, varargs] = [caller, kwargs, varargs].map(|name| name.map(|name| self.symbol(name)));
        Ok(Arc::new(Macro { name, arguments, defaults, body, caller, kwargs, varargs }))
    }

    fn macro_definition(&mut self) -> Result<StatementKind> {
        let name = self.target_name()?;
        let symbol = self.symbol(&name);
        let signature = self.signature()?;
        Ok(StatementKind::Macro(self.macro_of(Some((symbol, Str::constant(name))), signature, &["endmacro"])?))
    }

    fn call_block(&mut self) -> Result<StatementKind> {
        let signature = if self.is_operator("(") { self.signature()? } else { Default::default() };
        let call = self.expression(true)?;
        let is_call = match &call.kind {
            ExpressionKind::Chain(_, links) => {
                matches!(links.last(), Some(Link { kind: LinkKind::Call(_), .. }))
            }
            _ => false,
        };
        if !is_call {
            return Err(self.error("expected call"));
        }
        let caller = self.macro_of(None, signature, &["endcall"])?;
        Ok(StatementKind::Call { caller, call })
    }

    fn block(&mut self) -> Result<StatementKind> {
        let name = self.expect_name()?;
        while self.is_name("scoped") || self.is_name("required") {
            if self.is_name("scoped") {
                return Err(self.error("scoped blocks are not supported"));
            }
            self.advance();
        }
        if self.blocks.iter().any(|(other, _)| other.as_str() == name) {
            return Err(self.error(format!("block '{name}' defined twice")));
        }
        let (body, _) = self.function(|parser| parser.whole_body(&["endblock"]))?;
        self.skip_name(&name);
        self.blocks.push((Str::constant(name), Arc::new(body)));
        Ok(StatementKind::Block(self.blocks.len() - 1))
    }

    fn target_name(&mut self) -> Result<String> {
        let name = self.expect_name()?;
        if is_constant(&name) {
            return Err(self.error("can't assign to 'const'"));
        }
        Ok(name)
    }

    /// What is assigned to.
    fn target(&mut self, tuples: bool, namespaces: bool) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = matches!(self.kind(), Kind::VariableEnd | Kind::BlockEnd) || self.is_operator(")");
            if ended {
                break;
            }
            if self.skip_operator("(") {
                let inner = self.nested(|parser| parser.target(true, namespaces))?;
                self.expect(")")?;
                targets.push(inner);
            } else {
                let name = self.target_name()?;
                let symbol = self.symbol(&name);
                targets.push(if namespaces && self.skip_operator(".") {
                    Target::Attribute(symbol, Str::constant(self.expect_name()?))
                } else {
                    self.loop_stores += usize::from(name == "loop");
                    Target::Name(symbol)
                });
            }
            if !tuples || !self.is_operator(",") {
                break;
            }
            self.advance();
            is_tuple = true;
        }
        match targets.pop() {
            Some(target) if !is_tuple && targets.is_empty() => Ok(target),
            Some(last) => {
                targets.push(last);
                Ok(Target::Tuple(targets))
            }
            None => Err(self.error(format!("Expected an expression, got {}", describe(self.kind())))),
        }
    }
}

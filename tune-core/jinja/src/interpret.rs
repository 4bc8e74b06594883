//! Statements at work.

mod loops;
mod macros;

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use crate::budget::{self, MAX_CALLS};
use crate::error::{Error, Kind, Result};
use crate::key::Key;
use crate::object::Object;
use crate::repr::write_str;
use crate::syntax::ast::{Expression, Link, Program, Statement, StatementKind, Symbol, Target};
use crate::value::Value;

/// Around a `{% generation %}` block in the rendered text. Unicode keeps these two code points
/// for a program's own use and for no text at all.
pub(crate) const OPEN: char = '\u{fdd0}';
pub(crate) const CLOSE: char = '\u{fdd1}';

/// The variables that can be seen at a place; `None` are the template's own.
pub(crate) type Environment = Option<Rc<Scope>>;

/// The variables of a loop's body, a macro and the like.
pub(crate) struct Scope {
    variables: RefCell<Vec<(Symbol, Value)>>,
    parent: Environment,
}

impl Scope {
    pub(crate) fn within(parent: &Environment) -> Environment {
        Some(Rc::new(Self { variables: RefCell::new(Vec::new()), parent: parent.clone() }))
    }
}

/// Text that is being written, which counts as memory.
#[derive(Default)]
pub(crate) struct Output {
    text: String,
    held: usize,
}

impl Output {
    fn push(&mut self, text: &str) -> Result<()> {
        budget::reserve(text.len())?;
        self.held += budget::hold(text.len());
        self.text.push_str(text);
        Ok(())
    }

    pub(crate) fn take(mut self) -> String {
        std::mem::take(&mut self.text)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        budget::release(self.held);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// A rendering.
pub(crate) struct Interpreter<'t> {
    pub(crate) program: &'t Program,
    /// The template's own variables, by symbol.
    globals: RefCell<Vec<Option<Value>>>,
    /// What `strftime_now` takes for now.
    pub(crate) now: i64,
    /// Whether the text of `{% generation %}` is put between [`OPEN`] and [`CLOSE`].
    mark: bool,
    depth: usize,
    /// Scopes and namespaces that may hold themselves: they are emptied at the end.
    captured: Vec<Rc<Scope>>,
    pub(crate) namespaces: Vec<Weak<Object>>,
}

/// What a namespace and a captured scope count for, until the rendering ends.
pub(crate) const HELD: usize = 256;

impl Drop for Interpreter<'_> {
    fn drop(&mut self) {
        budget::release(HELD * (self.captured.len() + self.namespaces.len()));
        for scope in self.captured.drain(..) {
            scope.variables.borrow_mut().clear();
        }
        self.globals.borrow_mut().clear();
        for object in self.namespaces.drain(..).filter_map(|weak| weak.upgrade()) {
            if let Object::Namespace(namespace) = &*object {
                namespace.0.borrow_mut().clear();
            }
        }
    }
}

impl<'t> Interpreter<'t> {
    pub(crate) fn new(program: &'t Program, lookup: impl Fn(&str) -> Option<Value>, now: i64, mark: bool) -> Self {
        let globals = program.names.iter().map(|name| lookup(name)).collect();
        Self {
            program,
            globals: RefCell::new(globals),
            now,
            mark,
            depth: 0,
            captured: Vec::new(),
            namespaces: Vec::new(),
        }
    }

    pub(crate) fn run(&mut self) -> Result<String> {
        let mut out = Output::default();
        let program = self.program;
        self.execute(&program.body, &None, &mut out)?;
        Ok(out.take())
    }

    /// Goes one level deeper.
    pub(crate) fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_CALLS {
            return Err(Error::new(
                Kind::Limit,
                "macros and expressions are nested too deep: they may call themselves without end",
            ));
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    pub(crate) fn lookup(&self, environment: &Environment, symbol: Symbol) -> Option<Value> {
        let mut scope = environment.as_ref();
        while let Some(inner) = scope {
            if let Some((_, value)) = inner.variables.borrow().iter().find(|(name, _)| *name == symbol) {
                return Some(value.clone());
            }
            scope = inner.parent.as_ref();
        }
        self.globals.borrow()[symbol].clone()
    }

    fn assign(&self, environment: &Environment, symbol: Symbol, value: Value) {
        let Some(scope) = environment else {
            self.globals.borrow_mut()[symbol] = Some(value);
            return;
        };
        let mut variables = scope.variables.borrow_mut();
        match variables.iter_mut().find(|(name, _)| *name == symbol) {
            Some((_, old)) => *old = value,
            None => variables.push((symbol, value)),
        }
    }

    fn execute(&mut self, body: &[Statement], environment: &Environment, out: &mut Output) -> Result<Flow> {
        self.deeper(|run| {
            for statement in body {
                budget::spend(1)?;
                let flow = run.statement(statement, environment, out).map_err(|e| e.at(statement.line))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    /// The text of statements that have a scope of their own.
    fn capture(&mut self, body: &[Statement], environment: &Environment) -> Result<String> {
        self.capture_flow(body, environment).map(|(text, _)| text)
    }

    /// The same, and whether a loop around them is left.
    fn capture_flow(&mut self, body: &[Statement], environment: &Environment) -> Result<(String, Flow)> {
        let mut out = Output::default();
        let flow = self.execute(body, environment, &mut out)?;
        Ok((out.take(), flow))
    }

    fn statement(&mut self, statement: &Statement, environment: &Environment, out: &mut Output) -> Result<Flow> {
        match &statement.kind {
            StatementKind::Text(text) => out.push(text)?,
            StatementKind::Print(expression) => match self.evaluate(expression, environment)? {
                Value::Str(text) => out.push(&text)?,
                value => {
                    let mut text = String::new();
                    write_str(&mut text, &value)?;
                    out.push(&text)?;
                }
            },
            StatementKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.evaluate(test, environment)?.is_true() {
                        return self.execute(body, environment, out);
                    }
                }
                return self.execute(otherwise, environment, out);
            }
            StatementKind::For(statement) => return self.for_statement(statement, environment, out),
            StatementKind::Set { target, value } => self.set(target, value, environment)?,
            StatementKind::SetBlock { target, filters, body } => {
                let (text, flow) = self.capture_flow(body, &Scope::within(environment))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(text, filters, environment)?;
                self.bind(target, value, environment)?;
            }
            StatementKind::With { targets, body } => {
                let inner = Scope::within(environment);
                let values: Vec<Value> =
                    targets.iter().map(|(_, value)| self.evaluate(value, environment)).collect::<Result<_>>()?;
                for ((target, _), value) in targets.iter().zip(values) {
                    self.bind(target, value, &inner)?;
                }
                return self.execute(body, &inner, out);
            }
            StatementKind::Macro(definition) => {
                if let Some((symbol, _)) = &definition.name {
                    let value = self.make_macro(definition, environment)?;
                    self.assign(environment, *symbol, value);
                }
            }
            StatementKind::Call { caller, call } => {
                let caller = self.make_macro(caller, environment)?;
                let value = self.call_with_caller(call, caller, environment)?;
                let mut text = String::new();
                write_str(&mut text, &value)?;
                out.push(&text)?;
            }
            StatementKind::Filter { filters, body } => {
                let inner = Scope::within(environment);
                let (text, flow) = self.capture_flow(body, &inner)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let mut filtered = String::new();
                write_str(&mut filtered, &self.filtered(text, filters, &inner)?)?;
                out.push(&filtered)?;
            }
            StatementKind::Generation(body) => {
                let text = self.capture(body, &Scope::within(environment))?;
                if self.mark {
                    out.push(&format!("{OPEN}{text}{CLOSE}"))?;
                } else {
                    out.push(&text)?;
                }
            }
            StatementKind::Block(block) => out.push(&self.block(*block)?)?,
            StatementKind::Load => {
                return Err(Error::runtime("no loader for this environment specified: a template stands alone"));
            }
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    /// A block's text; it sees the template's own variables only.
    pub(crate) fn block(&mut self, block: usize) -> Result<String> {
        let body = self.program.blocks[block].1.clone();
        self.capture(&body, &Scope::within(&None))
    }

    fn filtered(&mut self, text: String, filters: &[Link], environment: &Environment) -> Result<Value> {
        self.follow(Value::from(text), filters, environment)
    }

    fn set(&mut self, target: &Target, value: &Expression, environment: &Environment) -> Result<()> {
        self.check_namespaces(target, environment)?;
        let value = self.evaluate(value, environment)?;
        self.bind(target, value, environment)
    }

    fn check_namespaces(&self, target: &Target, environment: &Environment) -> Result<()> {
        match target {
            Target::Name(_) => Ok(()),
            Target::Attribute(symbol, _) => match self.lookup(environment, *symbol) {
                Some(Value::Object(object)) if matches!(*object, Object::Namespace(_)) => Ok(()),
                _ => Err(Error::runtime("cannot assign attribute on non-namespace object")),
            },
            Target::Tuple(targets) => targets.iter().try_for_each(|t| self.check_namespaces(t, environment)),
        }
    }

    /// Gives what is assigned to its value.
    fn bind(&mut self, target: &Target, value: Value, environment: &Environment) -> Result<()> {
        match target {
            Target::Name(symbol) => self.assign(environment, *symbol, value),
            Target::Attribute(symbol, name) => {
                check_attribute_name(name)?;
                match self.lookup(environment, *symbol) {
                    Some(Value::Object(object)) if matches!(*object, Object::Namespace(_)) => {
                        if let Object::Namespace(namespace) = &*object {
                            let old = namespace.0.borrow_mut().insert(Key(Value::Str(name.clone())), value);
                            drop(old);
                        }
                    }
                    _ => return Err(Error::runtime("cannot assign attribute on non-namespace object")),
                }
            }
            Target::Tuple(targets) => {
                let values = value.items()?;
                if values.len() != targets.len() {
                    let (expected, got) = (targets.len(), values.len());
                    return Err(Error::runtime(if got > expected {
                        format!("too many values to unpack (expected {expected})")
                    } else {
                        format!("not enough values to unpack (expected {expected}, got {got})")
                    }));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.bind(target, value, environment)?;
                }
            }
        }
        Ok(())
    }
}

/// The names that a namespace's attributes may have.
pub(crate) fn check_attribute_name(name: &str) -> Result<()> {
    if name.starts_with('_') {
        return Err(Error::runtime(format!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'."
        )));
    }
    Ok(())
}

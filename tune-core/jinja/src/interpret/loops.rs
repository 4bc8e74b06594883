//! Loops at work.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::{Environment, Flow, Interpreter, Output, Scope};
use crate::budget;
use crate::error::Result;
use crate::object::{Loop, Object};
use crate::syntax::ast::{Expression, For};
use crate::value::Value;

impl Interpreter<'_> {
    pub(super) fn for_statement(
        &mut self,
        statement: &Arc<For>,
        environment: &Environment,
        out: &mut Output,
    ) -> Result<Flow> {
        let iterable = self.evaluate(&statement.iter, environment)?;
        if statement.recursive {
            let text = self.recursive_loop(statement, &iterable, environment, 0)?;
            out.push(&text)?;
            return Ok(Flow::Next);
        }
        self.run_loop(statement, &iterable, environment, 0, out)
    }

    /// The text of a loop that can be called.
    pub(crate) fn recursive_loop(
        &mut self,
        statement: &Arc<For>,
        iterable: &Value,
        environment: &Environment,
        depth: usize,
    ) -> Result<String> {
        let mut out = Output::default();
        self.deeper(|run| run.run_loop(statement, iterable, environment, depth, &mut out))?;
        Ok(out.take())
    }

    fn run_loop(
        &mut self,
        statement: &Arc<For>,
        iterable: &Value,
        environment: &Environment,
        depth: usize,
        out: &mut Output,
    ) -> Result<Flow> {
        let items = iterable.items()?;
        // Only where nobody asks how many items there are can they be tested one at a time.
        let (items, test) = match (&statement.test, statement.loop_symbol) {
            (Some(test), Some(_)) => {
                let mut passed = Vec::new();
                for item in items {
                    if self.passes(statement, test, &item, environment)? {
                        passed.push(item);
                    }
                }
                (passed, None)
            }
            (test, _) => (items, test.as_ref()),
        };
        let state = match statement.loop_symbol {
            Some(symbol) => {
                let recursive = statement.recursive.then(|| (statement.clone(), environment.clone()));
                let state =
                    Loop { items: items.clone(), index: 0.into(), depth, changed: RefCell::new(None), recursive };
                Some((symbol, Rc::new(Object::Loop(state))))
            }
            None => None,
        };
        let mut inner = Scope::within(environment);
        let mut none = true;
        for (index, item) in items.into_iter().enumerate() {
            budget::spend(1)?;
            if let Some(test) = test
                && !self.passes(statement, test, &item, environment)?
            {
                continue;
            }
            match inner.as_mut().and_then(Rc::get_mut) {
                Some(scope) => scope.variables.get_mut().clear(),
                // Somebody holds the last one's variables.
                None => inner = Scope::within(environment),
            }
            self.bind(&statement.target, item, &inner)?;
            if let Some((symbol, object)) = &state {
                if let Object::Loop(state) = &**object {
                    state.index.set(index);
                }
                self.assign(&inner, *symbol, Value::Object(object.clone()));
            }
            match self.execute(&statement.body, &inner, out)? {
                // As in jinja2, an item counts only if its body comes to its end.
                Flow::Next => none = false,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        if none {
            return self.execute(&statement.otherwise, &Scope::within(environment), out);
        }
        Ok(Flow::Next)
    }

    fn passes(&mut self, statement: &For, test: &Expression, item: &Value, environment: &Environment) -> Result<bool> {
        let inner = Scope::within(environment);
        self.bind(&statement.target, item.clone(), &inner)?;
        Ok(self.evaluate(test, &inner)?.is_true())
    }
}

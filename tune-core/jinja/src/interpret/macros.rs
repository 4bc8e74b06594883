//! Macros at work.

use std::rc::Rc;
use std::sync::Arc;

use super::{Environment, HELD, Interpreter, Scope};
use crate::arguments::Args;
use crate::budget;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::object::Object;
use crate::syntax::ast::Macro;
use crate::value::Value;

impl Interpreter<'_> {
    pub(super) fn make_macro(&mut self, definition: &Arc<Macro>, environment: &Environment) -> Result<Value> {
        if let Some(scope) = environment
            && !self.captured.last().is_some_and(|last| Rc::ptr_eq(last, scope))
        {
            budget::reserve(HELD)?;
            budget::hold(HELD);
            self.captured.push(scope.clone());
        }
        Object::Macro { definition: definition.clone(), environment: environment.clone() }.into_value()
    }

    /// A macro's text.
    pub(crate) fn call_macro(
        &mut self,
        definition: &Arc<Macro>,
        environment: &Environment,
        args: Args,
    ) -> Result<Value> {
        let name = || match &definition.name {
            Some((_, name)) => format!("'{}'", name.as_str()),
            None => "None".to_owned(),
        };
        let inner = Scope::within(environment);
        let Args { positional, mut named } = args;
        let count = definition.arguments.len();
        let mut positional = positional.into_iter();
        let values: Vec<Option<Value>> = definition
            .arguments
            .iter()
            .map(|(_, argument)| {
                positional.next().or_else(|| {
                    let at = named.iter().position(|(name, _)| **name == **argument)?;
                    Some(named.remove(at).1)
                })
            })
            .collect();
        if let Some(symbol) = definition.caller {
            let at = named.iter().position(|(name, _)| &**name == "caller");
            let caller = at.map(|at| named.remove(at).1).filter(|caller| !caller.is_none());
            self.assign(&inner, symbol, caller.unwrap_or_else(|| Value::undefined("No caller defined")));
        }
        match definition.kwargs {
            Some(symbol) => {
                let entries = named.into_iter().map(|(name, value)| (Key(Value::Str(name)), value)).collect();
                self.assign(&inner, symbol, Value::dict(entries)?);
            }
            None => {
                if let Some((argument, _)) = named.first() {
                    let argument = argument.as_str();
                    return Err(Error::runtime(format!("macro {} takes no keyword argument '{argument}'", name())));
                }
            }
        }
        match definition.varargs {
            Some(symbol) => self.assign(&inner, symbol, Value::tuple(positional.collect())?),
            None if positional.next().is_some() => {
                return Err(Error::runtime(format!("macro {} takes not more than {count} argument(s)", name())));
            }
            None => {}
        }
        let without_default = count - definition.defaults.len();
        // Defaults see the arguments in front of them.
        for (i, ((symbol, argument), value)) in definition.arguments.iter().zip(values).enumerate() {
            let value = match (value, i.checked_sub(without_default)) {
                (Some(value), _) => value,
                (None, Some(default)) => self.evaluate(&definition.defaults[default], &inner)?,
                (None, None) => Value::undefined(format!("parameter '{}' was not provided", argument.as_str())),
            };
            self.assign(&inner, *symbol, value);
        }
        Ok(Value::from(self.capture(&definition.body, &inner)?))
    }
}

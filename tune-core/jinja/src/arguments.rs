//! The arguments of a call, and the parameters that they meet.

use crate::error::{Error, Result};
use crate::number;
use crate::value::{Str, Value};

/// Arguments as they are passed.
#[derive(Default, Clone)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Value>,
    pub(crate) named: Vec<(Str, Value)>,
}

impl Args {
    pub(crate) fn of(positional: Vec<Value>) -> Self {
        Self { positional, named: Vec::new() }
    }

    /// The arguments by the names of a function's parameters.
    pub(crate) fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        let given = self.positional.len();
        if given > N {
            return Err(Error::runtime(format!("{function}() takes at most {N} arguments ({given} given)")));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(at) = names.iter().position(|n| *n == name.as_str()) else {
                let name = name.as_str();
                return Err(Error::runtime(format!("{function}() got an unexpected keyword argument '{name}'")));
            };
            if bound[at].replace(value).is_some() {
                let name = name.as_str();
                return Err(Error::runtime(format!("{function}() got multiple values for argument '{name}'")));
            }
        }
        Ok(bound)
    }

    /// The arguments of a function that takes none by name.
    pub(crate) fn plain(self, function: &str, least: usize, most: usize) -> Result<Vec<Value>> {
        if !self.named.is_empty() {
            return Err(Error::runtime(format!("{function}() takes no keyword arguments")));
        }
        let given = self.positional.len();
        if given < least || given > most {
            let expected = if least == most { format!("exactly {least}") } else { format!("{least} to {most}") };
            return Err(Error::runtime(format!("{function}() takes {expected} arguments ({given} given)")));
        }
        Ok(self.positional)
    }

    pub(crate) fn none(self, function: &str) -> Result<()> {
        self.plain(function, 0, 0).map(drop)
    }
}

/// What must be given.
pub(crate) fn required(value: Option<Value>, function: &str, name: &str) -> Result<Value> {
    value.ok_or_else(|| Error::runtime(format!("{function}() missing 1 required positional argument: '{name}'")))
}

/// An integer, or what stands for it where it is not given.
pub(crate) fn integer(value: Option<&Value>, default: i64) -> Result<i64> {
    match value {
        None => Ok(default),
        Some(value) => number::index(value.defined()?).ok_or_else(|| {
            Error::runtime(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
        }),
    }
}

/// Text, and nothing else.
pub(crate) fn text<'a>(value: &'a Value, function: &str) -> Result<&'a str> {
    value
        .defined()?
        .as_str()
        .ok_or_else(|| Error::runtime(format!("{function}() argument must be str, not {}", value.type_name())))
}

pub(crate) fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

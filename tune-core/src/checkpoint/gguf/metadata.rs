//! Typed access to a GGUF file's metadata; a value of the wrong kind is an error with the key in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::header::Value;
use crate::{Error, Result};

#[derive(Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(path: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { path: path.to_path_buf(), values }
    }

    /// An error about this file.
    pub(super) fn bad(&self, message: impl Into<String>) -> Error {
        Error::file(&self.path, message)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        self.bad(format!("metadata `{key}` is not {expected}"))
    }

    /// The value, or an error that says that it is missing.
    pub(super) fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.bad(format!("has no metadata `{key}`")))
    }

    pub(super) fn u64(&self, key: &str) -> Result<Option<u64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Unsigned(v)) => Ok(Some(v)),
            Some(&Value::Signed(v)) if v >= 0 => Ok(Some(v as u64)),
            Some(Value::Array(_)) => {
                Err(self.bad(format!("metadata `{key}` differs between layers, which is not supported")))
            }
            Some(_) => Err(self.wrong(key, "a number of at least 0")),
        }
    }

    /// A floating-point value; one of 32 bits becomes the decimal that it was made from (1e-5, not 9.99999974e-6).
    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>> {
        let value = match self.values.get(key) {
            None => return Ok(None),
            Some(&Value::F32(v)) => decimal(v),
            Some(&Value::F64(v)) => v,
            Some(&Value::Unsigned(v)) => v as f64,
            Some(&Value::Signed(v)) => v as f64,
            Some(_) => return Err(self.wrong(key, "a number")),
        };
        if !value.is_finite() {
            return Err(self.wrong(key, "a finite number"));
        }
        Ok(Some(value))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Bool(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "text")),
        }
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        item: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        let Value::Array(values) = value else {
            return Err(self.wrong(key, expected));
        };
        let items: Option<Vec<T>> = values.iter().map(item).collect();
        items.map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.list(key, "a list of texts", |v| match v {
            Value::Text(t) => Some(t.as_str()),
            _ => None,
        })
    }

    pub(super) fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.list(key, "a list of finite numbers", |v| match v {
            Value::F32(f) if f.is_finite() => Some(*f),
            _ => None,
        })
    }

    pub(super) fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.list(key, "a list of numbers of at least 0", |v| match *v {
            Value::Unsigned(n) => Some(n),
            Value::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        })
    }
}

/// The shortest decimal that reads as this f32, as f64.
pub(super) fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

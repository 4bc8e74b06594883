//! Values of Rust and of JSON as Python has them.

use crate::error::{Error, Result};
use crate::key::Key;
use crate::value::Value;

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        i64::try_from(value).map_or_else(|_| Self::int(value.into()), Self::Int)
    }
}

impl TryFrom<&serde_json::Value> for Value {
    type Error = Error;

    fn try_from(json: &serde_json::Value) -> Result<Self> {
        use serde_json::Value as Json;
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Self::Int(i),
                (None, Some(u)) => Self::int(u.into()),
                (None, None) => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => match crate::json::whole_number(text) {
                Some(number) => Self::int(number),
                None => Self::from(text.as_str()),
            },
            Json::Array(items) => Self::list(items.iter().map(Self::try_from).collect::<Result<_>>()?)?,
            Json::Object(map) => Self::from_object(map.iter().map(|(k, v)| (k.as_str(), v)))?,
        })
    }
}

impl Value {
    /// A dict of JSON values.
    ///
    /// # Errors
    /// Values that are nested too deep.
    pub(crate) fn from_object<'a>(entries: impl IntoIterator<Item = (&'a str, &'a serde_json::Value)>) -> Result<Self> {
        let entry = |(k, v): (&str, &serde_json::Value)| Ok((Key(Self::from(k)), Self::try_from(v)?));
        Self::dict(entries.into_iter().map(entry).collect::<Result<_>>()?)
    }
}

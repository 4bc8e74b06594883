//! A value that has been checked, with its origin.

use std::borrow::Cow;

use tune_yaml::Span;

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// The value.
    pub data: Data,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Not from a text: made of a typed config.
    Made,
    /// The key's default.
    Default,
    /// A file or the command line.
    Written(Span),
}

/// What a [`Value`] holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Null.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// A finite number.
    Float(f64),
    /// Text, a path, or the name of a choice.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// A struct or map.
    Fields(Vec<Field>),
    /// A component: its name and its [`Data::Fields`].
    Component(Cow<'static, str>, Box<Value>),
}

/// One field of a [`Data::Fields`].
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// The key.
    pub name: Cow<'static, str>,
    /// The value.
    pub value: Value,
    /// Its own fields are written among those around it.
    pub flat: bool,
}

/// Why a value cannot be converted.
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    /// What is wrong with it.
    pub message: String,
    /// Where the value comes from.
    pub origin: Origin,
}

impl Value {
    fn made(data: Data) -> Self {
        Self { data, origin: Origin::Made }
    }

    /// Null.
    pub fn null() -> Self {
        Self::made(Data::Null)
    }

    /// A truth value.
    pub fn from_bool(value: bool) -> Self {
        Self::made(Data::Bool(value))
    }

    /// A whole number.
    pub fn from_int(value: i128) -> Self {
        Self::made(Data::Int(value))
    }

    /// A number.
    pub fn from_float(value: f64) -> Self {
        Self::made(Data::Float(value))
    }

    /// Text.
    pub fn from_text(value: impl Into<String>) -> Self {
        Self::made(Data::Text(value.into()))
    }

    /// A list.
    pub fn from_items(items: impl IntoIterator<Item = Value>) -> Self {
        Self::made(Data::List(items.into_iter().collect()))
    }

    /// A struct.
    pub fn from_fields<const N: usize>(fields: [(&'static str, Value); N]) -> Self {
        let fields = fields.into_iter().map(|(name, value)| Field { name: name.into(), value, flat: false });
        Self::made(Data::Fields(fields.collect()))
    }

    /// A component.
    pub fn from_component(name: &'static str, fields: Value) -> Self {
        Self::made(Data::Component(name.into(), Box::new(fields)))
    }

    /// The same, with the fields of `name` written among the others.
    #[must_use]
    pub fn flat(mut self, name: &str) -> Self {
        if let Data::Fields(fields) = &mut self.data {
            for field in fields.iter_mut().filter(|field| field.name == name) {
                field.flat = true;
            }
        }
        self
    }

    /// For a value that cannot be used, with the reason.
    pub fn refuse(&self, message: impl Into<String>) -> Mismatch {
        Mismatch { message: message.into(), origin: self.origin }
    }

    fn not(&self, expected: &str) -> Mismatch {
        self.refuse(format!("expected {expected}, found {}", self.data.name()))
    }

    /// The truth value.
    ///
    /// # Errors
    /// It is none.
    pub fn bool(&self) -> Result<bool, Mismatch> {
        match self.data {
            Data::Bool(value) => Ok(value),
            _ => Err(self.not("a truth value")),
        }
    }

    /// The whole number.
    ///
    /// # Errors
    /// It is none.
    pub fn int(&self) -> Result<i128, Mismatch> {
        match self.data {
            Data::Int(value) => Ok(value),
            _ => Err(self.not("a whole number")),
        }
    }

    /// The number.
    ///
    /// # Errors
    /// It is none.
    pub fn float(&self) -> Result<f64, Mismatch> {
        match self.data {
            Data::Float(value) => Ok(value),
            Data::Int(value) => Ok(value as f64),
            _ => Err(self.not("a number")),
        }
    }

    /// The text.
    ///
    /// # Errors
    /// It is none.
    pub fn text(&self) -> Result<&str, Mismatch> {
        match &self.data {
            Data::Text(value) => Ok(value),
            _ => Err(self.not("text")),
        }
    }

    /// The items of the list.
    ///
    /// # Errors
    /// It is none.
    pub fn items(&self) -> Result<&[Value], Mismatch> {
        match &self.data {
            Data::List(items) => Ok(items),
            _ => Err(self.not("a list")),
        }
    }

    /// The name and the fields of the component.
    ///
    /// # Errors
    /// It is none.
    pub fn component(&self) -> Result<(&str, &Value), Mismatch> {
        match &self.data {
            Data::Component(name, fields) => Ok((name, fields)),
            _ => Err(self.not("a component")),
        }
    }

    /// The fields of the struct or map.
    ///
    /// # Errors
    /// It is none.
    pub fn fields(&self) -> Result<&[Field], Mismatch> {
        match &self.data {
            Data::Fields(fields) => Ok(fields),
            _ => Err(self.not("a mapping")),
        }
    }

    /// The field `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<&Value, Mismatch> {
        let field = self.fields()?.iter().find(|field| field.name == name);
        match field {
            Some(field) => Ok(&field.value),
            None => Err(self.refuse(format!("missing key `{name}`"))),
        }
    }
}

impl Data {
    /// What the value is, in words.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Data::Null => "null",
            Data::Bool(_) => "a truth value",
            Data::Int(_) => "a whole number",
            Data::Float(_) => "a number",
            Data::Text(_) => "text",
            Data::List(_) => "a list",
            Data::Fields(_) => "a mapping",
            Data::Component(..) => "a component",
        }
    }
}

//! The types that a config can be made of, besides derived ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::value::{Data, Field, Origin};
use crate::{Config, Mismatch, Schema, Value};

impl Config for bool {
    const SCHEMA: Schema = Schema::Bool;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.bool()
    }

    fn to_value(&self) -> Value {
        Value::from_bool(*self)
    }
}

macro_rules! int {
    ($($int:ty)*) => {$(
        impl Config for $int {
            const SCHEMA: Schema = Schema::Int { min: <$int>::MIN as i128, max: <$int>::MAX as i128 };

            fn from_value(value: &Value) -> Result<Self, Mismatch> {
                let int = value.int()?;
                <$int>::try_from(int).map_err(|_| value.refuse(format!("{int} does not fit")))
            }

            fn to_value(&self) -> Value {
                Value::from_int(*self as i128)
            }
        }
    )*};
}

int!(i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

impl Config for f64 {
    const SCHEMA: Schema = Schema::Float { bits: 64 };

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.float()
    }

    fn to_value(&self) -> Value {
        Value::from_float(*self)
    }
}

impl Config for f32 {
    const SCHEMA: Schema = Schema::Float { bits: 32 };

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        Ok(value.float()? as f32)
    }

    fn to_value(&self) -> Value {
        // Through its shortest text: 0.1 and not 0.10000000149011612.
        let short = self.to_string().parse().unwrap_or(f64::from(*self));
        Value::from_float(short)
    }
}

impl Config for String {
    const SCHEMA: Schema = Schema::Text;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.text().map(str::to_owned)
    }

    fn to_value(&self) -> Value {
        Value::from_text(self)
    }
}

impl Config for PathBuf {
    const SCHEMA: Schema = Schema::Path;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.text().map(PathBuf::from)
    }

    fn to_value(&self) -> Value {
        let text = self.to_string_lossy();
        // Read again, a `~` would be a home folder.
        Value::from_text(if text.starts_with('~') { format!("./{text}") } else { text.into_owned() })
    }
}

impl<T: Config> Config for Option<T> {
    const SCHEMA: Schema = Schema::Optional(&T::SCHEMA);

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        match value.data {
            Data::Null => Ok(None),
            _ => T::from_value(value).map(Some),
        }
    }

    fn to_value(&self) -> Value {
        self.as_ref().map_or_else(Value::null, T::to_value)
    }
}

impl<T: Config> Config for Vec<T> {
    const SCHEMA: Schema = Schema::List(&T::SCHEMA);

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.items()?.iter().map(T::from_value).collect()
    }

    fn to_value(&self) -> Value {
        Value::from_items(self.iter().map(T::to_value))
    }
}

impl<T: Config, const N: usize> Config for [T; N] {
    const SCHEMA: Schema = Schema::Array(&T::SCHEMA, N);

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        let items: Vec<T> = Vec::from_value(value)?;
        items.try_into().map_err(|items: Vec<T>| value.refuse(format!("expected {N} items, found {}", items.len())))
    }

    fn to_value(&self) -> Value {
        Value::from_items(self.iter().map(T::to_value))
    }
}

impl<T: Config> Config for Box<T> {
    const SCHEMA: Schema = T::SCHEMA;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        T::from_value(value).map(Box::new)
    }

    fn to_value(&self) -> Value {
        T::to_value(self)
    }
}

impl<T: Config> Config for BTreeMap<String, T> {
    const SCHEMA: Schema = Schema::Map(&T::SCHEMA);

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        value.fields()?.iter().map(|field| Ok((field.name.to_string(), T::from_value(&field.value)?))).collect()
    }

    fn to_value(&self) -> Value {
        let field =
            |(name, value): (&String, &T)| Field { name: name.clone().into(), value: value.to_value(), flat: false };
        Value { data: Data::Fields(self.iter().map(field).collect()), origin: Origin::Made }
    }
}

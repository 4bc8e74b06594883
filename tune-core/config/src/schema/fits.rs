//! Whether what a key says about itself fits together: its type, its default,
//! its range and its choices. All of it `const`, and so said by the compiler.

use super::{Component, Const, Key, Range, Schema, Struct, named, same};

impl Key {
    /// What is wrong with what the key says about itself.
    const fn mistake(&self) -> Option<&'static str> {
        if self.flatten && !matches!(self.schema, Schema::Struct(_) | Schema::Broken) {
            return Some("`flatten` is for a struct that derives `Config`");
        }
        if self.one_or_many
            && !matches!(self.schema, Schema::List(_) | Schema::Optional(Schema::List(_)) | Schema::Broken)
        {
            return Some("`one_or_many` is for a `Vec`");
        }
        if self.range.is_some() && !self.schema.holds_numbers() {
            return Some("`range` is for numbers");
        }
        let mut at = 0;
        while at < self.one_of.len() {
            if !self.schema.leaf_takes(&self.one_of[at]) {
                return Some("`one_of` has a value that the type does not take");
            }
            at += 1;
        }
        let Some(default) = self.default else {
            return None;
        };
        if let Some(mistake) = self.schema.refuses(&default) {
            return Some(mistake);
        }
        if let Some(range) = self.range
            && !range.holds(&default)
        {
            return Some("the default is out of the key's range");
        }
        if !self.one_of.is_empty() && !among(self.one_of, &default) {
            return Some("the default is not among the key's `one_of`");
        }
        None
    }
}

impl Schema {
    /// Fails to compile where the key's own words do not fit together. The
    /// derive has it evaluated for each key, at the place of its attribute.
    ///
    /// # Panics
    /// In a `const` only.
    #[track_caller]
    pub const fn assert_key(&self, index: usize) {
        if let Schema::Struct(Struct { keys, .. }) = self
            && index < keys.len()
        {
            if let Some(mistake) = keys[index].mistake() {
                panic!("{}", mistake);
            }
            if keys[index].flatten && clashes(keys, index) {
                panic!("a flattened key has the name of another key");
            }
        }
    }

    /// Fails to compile where a component's payload is no struct.
    ///
    /// # Panics
    /// In a `const` only.
    #[track_caller]
    pub const fn assert_variant(&self, index: usize) {
        if let Schema::Component(Component { variants, .. }) = self
            && index < variants.len()
            && let Some(fields) = variants[index].fields
            && !matches!(fields, Schema::Struct(_) | Schema::Broken)
        {
            panic!("the payload of a component is a struct that derives `Config`");
        }
    }

    /// Why `default` cannot be the default of this type.
    const fn refuses(&self, default: &Const) -> Option<&'static str> {
        if matches!(default, Const::OfType) {
            return match self.has_default() {
                true => None,
                false => Some("this type has no default of its own: write `default = ...`"),
            };
        }
        match (self, default) {
            (Schema::Optional(_), Const::Null) => None,
            (Schema::Optional(inner), _) => inner.refuses(default),
            (Schema::List(item), Const::List(items)) => item.refuses_any(items),
            (Schema::Array(item, length), Const::List(items)) => {
                if items.len() != *length {
                    return Some("the default has another number of items than the type");
                }
                item.refuses_any(items)
            }
            (Schema::Int { min, max }, Const::Int(int)) if *int < *min || *int > *max => {
                Some("the default does not fit the type")
            }
            (Schema::Component(component), Const::Text(name)) => match component.find(name) {
                None => Some("the default is not the name of a component of the type"),
                Some(at) => match component.variants[at].fields {
                    Some(fields) if !fields.has_default() => Some("the default component has keys without a default"),
                    _ => None,
                },
            },
            (Schema::Choice(choices), Const::Text(name)) => match choices.find(name) {
                None => Some("the default is not the name of a choice of the type"),
                Some(_) => None,
            },
            _ => match self.leaf_takes(default) {
                true => None,
                false => Some("the default is not of the key's type"),
            },
        }
    }

    const fn refuses_any(&self, items: &[Const]) -> Option<&'static str> {
        let mut at = 0;
        while at < items.len() {
            if let Some(mistake) = self.refuses(&items[at]) {
                return Some(mistake);
            }
            at += 1;
        }
        None
    }

    /// Whether `value` could be this type, or an item of it.
    const fn leaf_takes(&self, value: &Const) -> bool {
        match (self, value) {
            (Schema::Broken, _)
            | (Schema::Bool, Const::Bool(_))
            | (Schema::Int { .. }, Const::Int(_))
            | (Schema::Text | Schema::Path, Const::Text(_)) => true,
            (Schema::Float { .. }, Const::Float(float)) => float.is_finite(),
            (Schema::Float { .. }, Const::Int(_)) => true,
            (Schema::Optional(inner) | Schema::List(inner) | Schema::Array(inner, _), _) => inner.leaf_takes(value),
            _ => false,
        }
    }

    /// Whether the type, or what is in it, is a number.
    const fn holds_numbers(&self) -> bool {
        match self {
            Schema::Int { .. } | Schema::Float { .. } | Schema::Broken => true,
            Schema::Optional(inner) | Schema::List(inner) | Schema::Array(inner, _) | Schema::Map(inner) => {
                inner.holds_numbers()
            }
            _ => false,
        }
    }

    /// Whether the type has a default of its own.
    pub const fn has_default(&self) -> bool {
        match self {
            Schema::Optional(_) | Schema::List(_) | Schema::Map(_) | Schema::Broken => true,
            Schema::Choice(choices) => choices.default.is_some(),
            Schema::Struct(fields) => {
                let mut at = 0;
                while at < fields.keys.len() {
                    let key = &fields.keys[at];
                    if key.when_absent().is_none() && !(key.flatten && key.schema.has_default()) {
                        return false;
                    }
                    at += 1;
                }
                true
            }
            Schema::Component(component) => match component.default {
                None => false,
                Some(at) => match component.variants[at].fields {
                    None => true,
                    Some(fields) => fields.has_default(),
                },
            },
            _ => false,
        }
    }
}

impl Range {
    /// Whether a number, or every number of a list, is within.
    pub const fn holds(&self, value: &Const) -> bool {
        if let Const::List(items) = value {
            let mut at = 0;
            while at < items.len() {
                if !self.holds(&items[at]) {
                    return false;
                }
                at += 1;
            }
            return true;
        }
        if let Some(min) = self.min
            && less(value, &min)
        {
            return false;
        }
        if let Some(max) = self.max {
            return less(value, &max) || self.inclusive && !less(&max, value);
        }
        true
    }
}

/// Whether a key that is flattened in at `index` is also one of the others.
const fn clashes(keys: &[Key], index: usize) -> bool {
    let Schema::Struct(inner) = keys[index].schema else {
        return false;
    };
    let mut at = 0;
    while at < keys.len() {
        if at != index && shares_a_name(inner.keys, &keys[at]) {
            return true;
        }
        at += 1;
    }
    false
}

/// Whether `key`, or one that is flattened in there, is among `keys`.
const fn shares_a_name(keys: &[Key], key: &Key) -> bool {
    if key.flatten
        && let Schema::Struct(inner) = key.schema
    {
        let mut at = 0;
        while at < inner.keys.len() {
            if shares_a_name(keys, &inner.keys[at]) {
                return true;
            }
            at += 1;
        }
        return false;
    }
    let mut at = 0;
    while at < keys.len() {
        let other = &keys[at];
        let same = match (other.flatten, other.schema) {
            (true, Schema::Struct(inner)) => shares_a_name(inner.keys, key),
            _ => named(other.name, other.aliases, key.name) || named(key.name, key.aliases, other.name),
        };
        if same {
            return true;
        }
        at += 1;
    }
    false
}

const fn among(values: &[Const], value: &Const) -> bool {
    if let Const::List(items) = value {
        let mut at = 0;
        while at < items.len() {
            if !among(values, &items[at]) {
                return false;
            }
            at += 1;
        }
        return true;
    }
    let mut at = 0;
    while at < values.len() {
        let equal = match (&values[at], value) {
            (Const::Text(a), Const::Text(b)) => same(a, b),
            (Const::Bool(a), Const::Bool(b)) => *a == *b,
            (Const::Int(_) | Const::Float(_), Const::Int(_) | Const::Float(_)) => {
                !less(&values[at], value) && !less(value, &values[at])
            }
            (_, Const::Null) => true,
            _ => false,
        };
        if equal {
            return true;
        }
        at += 1;
    }
    false
}

/// `a < b` for two numbers; false for anything else.
const fn less(a: &Const, b: &Const) -> bool {
    match (a, b) {
        (Const::Int(a), Const::Int(b)) => *a < *b,
        (Const::Float(a), Const::Float(b)) => *a < *b,
        (Const::Int(a), Const::Float(b)) => (*a as f64) < *b,
        (Const::Float(a), Const::Int(b)) => *a < *b as f64,
        _ => false,
    }
}

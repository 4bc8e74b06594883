//! What may be written, as constants.
//!
//! Everything here can be built and walked in a `const`: that is how a default
//! is checked when the config type is compiled.

/// What may be written for a value.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int {
        /// The least that the type holds.
        min: i128,
        /// The greatest that the type holds.
        max: i128,
    },
    /// A finite number; the width of the type in bits.
    Float {
        /// 32 or 64.
        bits: u32,
    },
    /// Text.
    Text,
    /// The path of a file or folder.
    Path,
    /// One of some names: an enum without data.
    Choice(&'static Choices),
    /// A value or null.
    Optional(&'static Schema),
    /// Any number of items.
    List(&'static Schema),
    /// A fixed number of items.
    Array(&'static Schema, usize),
    /// Any names, each with a value.
    Map(&'static Schema),
    /// Certain keys.
    Struct(&'static Struct),
    /// One of some structs, chosen by `_component_`: an enum with data.
    Component(&'static Component),
    /// A type whose derive has failed: nothing is said about it twice.
    Broken,
}

/// The key that chooses a component.
pub const COMPONENT: &str = "_component_";

/// A struct: its keys.
#[derive(Debug, Clone, Copy)]
pub struct Struct {
    /// The name of the type.
    pub name: &'static str,
    /// The documentation of the type.
    pub doc: &'static str,
    /// The keys, in the order of the fields.
    pub keys: &'static [Key],
    /// Keys that are accepted and have no effect.
    pub ignored: &'static [Ignored],
}

/// A key that other tools know and that has no meaning here.
#[derive(Debug, Clone, Copy)]
pub struct Ignored {
    /// The key.
    pub name: &'static str,
    /// Why it has no effect.
    pub why: &'static str,
}

/// A key of a struct.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name, as it is written.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// What it is for.
    pub doc: &'static str,
    /// What may be written.
    pub schema: Schema,
    /// What holds where it is not written. Without one an [`Schema::Optional`]
    /// is null, see [`Key::when_absent`].
    pub default: Option<Const>,
    /// It must be written, although its type could do without.
    pub required: bool,
    /// The bounds of a number, or of the numbers in it.
    pub range: Option<Range>,
    /// The values that are allowed, where not all of the type are.
    pub one_of: &'static [Const],
    /// A single item may stand for a list of one.
    pub one_or_many: bool,
    /// The keys of its struct stand among those of the struct that it is in.
    pub flatten: bool,
}

/// A constant as it would be written.
#[derive(Debug, Clone, Copy)]
pub enum Const {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any number.
    Float(f64),
    /// Text, or the name of a choice or component.
    Text(&'static str),
    /// A list.
    List(&'static [Const]),
    /// What the type says: the variant that is marked, a struct of its keys'
    /// defaults, null, nothing in the list.
    OfType,
}

/// The bounds of a number.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// The least.
    pub min: Option<Const>,
    /// The greatest.
    pub max: Option<Const>,
    /// Whether the greatest is allowed.
    pub inclusive: bool,
}

/// The names of an enum without data.
#[derive(Debug, Clone, Copy)]
pub struct Choices {
    /// The name of the type.
    pub name: &'static str,
    /// The documentation of the type.
    pub doc: &'static str,
    /// The names.
    pub choices: &'static [Choice],
    /// The one that `#[config(default)]` means.
    pub default: Option<usize>,
}

/// A name of an enum without data.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The name, as it is written.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// What it means.
    pub doc: &'static str,
}

/// An enum with data.
#[derive(Debug, Clone, Copy)]
pub struct Component {
    /// The name of the type.
    pub name: &'static str,
    /// The documentation of the type.
    pub doc: &'static str,
    /// The components to choose from.
    pub variants: &'static [Variant],
    /// The one that `#[config(default)]` means, and that a mapping without
    /// `_component_` is.
    pub default: Option<usize>,
}

/// A component to choose.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// The name, as `_component_` gives it.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// What it is.
    pub doc: &'static str,
    /// Its keys: those of a [`Schema::Struct`], or none.
    pub fields: Option<&'static Schema>,
}

impl Key {
    /// A key without anything said about it but its type.
    pub const fn new(name: &'static str, doc: &'static str, schema: Schema) -> Self {
        Self {
            name,
            aliases: &[],
            doc,
            schema,
            default: None,
            required: false,
            range: None,
            one_of: &[],
            one_or_many: false,
            flatten: false,
        }
    }

    /// With other names.
    pub const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// With a default.
    pub const fn default(mut self, default: Const) -> Self {
        self.default = Some(default);
        self
    }

    /// To be written in any case.
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// With bounds.
    pub const fn range(mut self, range: Range) -> Self {
        self.range = Some(range);
        self
    }

    /// With the values that are allowed.
    pub const fn one_of(mut self, values: &'static [Const]) -> Self {
        self.one_of = values;
        self
    }

    /// A single item for a list of one.
    pub const fn one_or_many(mut self) -> Self {
        self.one_or_many = true;
        self
    }

    /// Its keys among those of the struct around it.
    pub const fn flatten(mut self) -> Self {
        self.flatten = true;
        self
    }

    /// What holds where the key is not written; `None`: it must be.
    pub const fn when_absent(&self) -> Option<Const> {
        match (self.default, self.schema) {
            (Some(default), _) => Some(default),
            (None, Schema::Optional(_)) if !self.required => Some(Const::Null),
            _ => None,
        }
    }

    /// What is wrong with what the key says about itself.
    const fn mistake(&self) -> Option<&'static str> {
        if self.flatten && !matches!(self.schema, Schema::Struct(_) | Schema::Broken) {
            return Some("`flatten` is for a struct that derives `Config`");
        }
        if self.one_or_many && !matches!(self.schema, Schema::List(_) | Schema::Broken) {
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
        if self.one_of.len() > 0 && !among(self.one_of, &default) {
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
    pub const fn assert_key(&self, index: usize) {
        if let Schema::Struct(Struct { keys, .. }) = self
            && index < keys.len()
            && let Some(mistake) = keys[index].mistake()
        {
            panic!("{}", mistake);
        }
    }

    /// Fails to compile where a component's payload is no struct.
    ///
    /// # Panics
    /// In a `const` only.
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
                    Some(fields) if !fields.has_default() => {
                        Some("the default component has keys without a default")
                    }
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
            (Schema::Optional(inner) | Schema::List(inner) | Schema::Array(inner, _), _) => {
                inner.leaf_takes(value)
            }
            _ => false,
        }
    }

    /// Whether the type, or what is in it, is a number.
    const fn holds_numbers(&self) -> bool {
        match self {
            Schema::Int { .. } | Schema::Float { .. } | Schema::Broken => true,
            Schema::Optional(inner)
            | Schema::List(inner)
            | Schema::Array(inner, _)
            | Schema::Map(inner) => inner.holds_numbers(),
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

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bound = |bound: Option<Const>| bound.map(|bound| bound.to_string()).unwrap_or_default();
        let equals = if self.inclusive { "=" } else { "" };
        write!(f, "{}..{equals}{}", bound(self.min), bound(self.max))
    }
}

impl std::fmt::Display for Const {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Const::Null => f.write_str("null"),
            Const::Bool(value) => write!(f, "{value}"),
            Const::Int(value) => write!(f, "{value}"),
            Const::Float(value) => f.write_str(&crate::emit::float(*value)),
            Const::Text(value) => f.write_str(&crate::emit::text(value)),
            Const::List(items) => {
                let items: Vec<_> = items.iter().map(Const::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Const::OfType => f.write_str("the type's own"),
        }
    }
}

impl Choices {
    /// The choice of this name or alias.
    pub const fn find(&self, name: &str) -> Option<usize> {
        let mut at = 0;
        while at < self.choices.len() {
            if named(self.choices[at].name, self.choices[at].aliases, name) {
                return Some(at);
            }
            at += 1;
        }
        None
    }
}

impl Component {
    /// The component of this name or alias.
    pub const fn find(&self, name: &str) -> Option<usize> {
        let mut at = 0;
        while at < self.variants.len() {
            if named(self.variants[at].name, self.variants[at].aliases, name) {
                return Some(at);
            }
            at += 1;
        }
        None
    }
}

impl Variant {
    /// The struct of its keys.
    pub const fn fields(&self) -> Option<&'static Struct> {
        match self.fields {
            Some(Schema::Struct(fields)) => Some(*fields),
            _ => None,
        }
    }
}

impl Struct {
    /// The key of this name or alias, those of flattened structs included.
    pub fn find(&self, name: &str) -> Option<&'static Key> {
        self.keys
            .iter()
            .find_map(|key| match (key.flatten, key.schema) {
                (true, Schema::Struct(fields)) => fields.find(name),
                _ => named(key.name, key.aliases, name).then_some(key),
            })
    }

    /// The ignored key of this name, those of flattened structs included.
    pub fn find_ignored(&self, name: &str) -> Option<&'static Ignored> {
        let mine = self.ignored.iter().find(|ignored| ignored.name == name);
        mine.or_else(|| {
            self.keys
                .iter()
                .find_map(|key| match (key.flatten, key.schema) {
                    (true, Schema::Struct(fields)) => fields.find_ignored(name),
                    _ => None,
                })
        })
    }

    /// The keys, those of flattened structs in their place.
    pub fn all_keys(&self) -> Vec<&'static Key> {
        let mut keys = Vec::new();
        for key in self.keys {
            match (key.flatten, key.schema) {
                (true, Schema::Struct(fields)) => keys.extend(fields.all_keys()),
                _ => keys.push(key),
            }
        }
        keys
    }
}

const fn named(name: &str, aliases: &[&str], written: &str) -> bool {
    let mut at = 0;
    while at < aliases.len() {
        if same(aliases[at], written) {
            return true;
        }
        at += 1;
    }
    same(name, written)
}

/// `a == b`, which is not const.
const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    a.len() == b.len()
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

//! What may be written, as constants.
//!
//! Everything here can be built and walked in a `const`: that is how a default
//! is checked when the config type is compiled.

mod fits;

use tune_yaml::Text;

use crate::words;

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
    /// The value, with all that is in it, may be another one when a run is resumed: it has no part in the result.
    pub may_change: bool,
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
            may_change: false,
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

    /// It may be another one when a run is resumed.
    pub const fn may_change(mut self) -> Self {
        self.may_change = true;
        self
    }

    /// The struct whose keys stand in this one's place.
    pub(crate) const fn flattened(&self) -> Option<&'static Struct> {
        match &self.schema {
            Schema::Struct(fields) if self.flatten => Some(*fields),
            _ => None,
        }
    }

    /// What holds where the key is not written; `None`: it must be.
    pub const fn when_absent(&self) -> Option<Const> {
        match (&self.default, &self.schema) {
            (Some(default), _) => Some(*default),
            (None, Schema::Optional(_)) if !self.required => Some(Const::Null),
            _ => None,
        }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = Text::<256>::new();
        words::range(self, &mut text);
        f.write_str(text.as_str())
    }
}

impl std::fmt::Display for Const {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = Text::<1024>::new();
        words::constant(self, &mut text);
        f.write_str(text.as_str())
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
    pub const fn find(&self, name: &str) -> Option<&'static Key> {
        let mut at = 0;
        while at < self.keys.len() {
            let key = &self.keys[at];
            if key.flatten
                && let Some(fields) = key.flattened()
            {
                if let Some(key) = fields.find(name) {
                    return Some(key);
                }
            } else if named(key.name, key.aliases, name) {
                return Some(key);
            }
            at += 1;
        }
        None
    }

    /// The ignored key of this name, those of flattened structs included.
    pub const fn find_ignored(&self, name: &str) -> Option<&'static Ignored> {
        let mut at = 0;
        while at < self.ignored.len() {
            if same(self.ignored[at].name, name) {
                return Some(&self.ignored[at]);
            }
            at += 1;
        }
        let mut at = 0;
        while at < self.keys.len() {
            if let Some(fields) = self.keys[at].flattened()
                && let Some(ignored) = fields.find_ignored(name)
            {
                return Some(ignored);
            }
            at += 1;
        }
        None
    }

    /// The number of keys, those of flattened structs included.
    pub const fn key_count(&self) -> usize {
        let (mut count, mut at) = (0, 0);
        while at < self.keys.len() {
            count += match self.keys[at].flattened() {
                Some(fields) => fields.key_count(),
                None => 1,
            };
            at += 1;
        }
        count
    }

    /// The key of this index, those of flattened structs in their place.
    pub const fn key_at(&self, index: usize) -> Option<&'static Key> {
        let (mut before, mut at) = (0, 0);
        while at < self.keys.len() {
            let key = &self.keys[at];
            // The compiler walks this often: a look costs less than a call.
            if key.flatten
                && let Some(fields) = key.flattened()
            {
                let count = fields.key_count();
                if index < before + count {
                    return fields.key_at(index - before);
                }
                before += count;
            } else if index == before {
                return Some(key);
            } else {
                before += 1;
            }
            at += 1;
        }
        None
    }

    /// The ignored keys, those of flattened structs behind its own.
    pub fn all_ignored(&self) -> Vec<&'static Ignored> {
        let inner = self.keys.iter().filter_map(Key::flattened);
        self.ignored.iter().chain(inner.flat_map(Struct::all_ignored)).collect()
    }

    /// The keys, those of flattened structs in their place.
    pub fn all_keys(&self) -> impl Iterator<Item = &'static Key> {
        (0..self.key_count()).filter_map(|index| self.key_at(index))
    }
}

pub(crate) const fn named(name: &str, aliases: &[&str], written: &str) -> bool {
    if same(name, written) {
        return true;
    }
    let mut at = 0;
    while at < aliases.len() {
        if same(aliases[at], written) {
            return true;
        }
        at += 1;
    }
    false
}

/// `a == b`, which is not const.
pub(crate) const fn same(a: &str, b: &str) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

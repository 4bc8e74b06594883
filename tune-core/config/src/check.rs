//! A tree against a schema: everything that is wrong with it. All of it is
//! `const`, and so the configs that a recipe ships with are checked by the
//! compiler, and a user's by the same lines when the recipe starts.

mod describe;
mod finding;
mod hint;
mod meant;

pub use finding::{Chosen, Finding, Findings, Mistake};
pub use hint::Hint;

use tune_yaml::{Kind, Number};

use crate::schema::{COMPONENT, Choices, Component, Const, Key, Schema, Struct, same};
use crate::tree::{Scalar, Tree, Written};

/// The mistakes in `tree`, whose first item is the root.
pub const fn check<'a, const N: usize>(schema: &'a Schema, tree: Tree<'a>) -> Findings<'a, N> {
    let outermost = match schema {
        Schema::Struct(fields) => Some(*fields),
        _ => None,
    };
    let mut checker = Checker { tree, outermost, found: Findings::new() };
    checker.value(schema, 0, Place::NOWHERE);
    checker.found
}

/// What the key says about a value.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) key: Option<&'static Key>,
    /// The component that a mapping without `_component_` is, where the key's
    /// default names one.
    component: Option<&'static str>,
}

impl Place {
    /// In no key.
    pub(crate) const NOWHERE: Self = Self { key: None, component: None };

    /// The value of a key.
    pub(crate) const fn of(key: &'static Key) -> Self {
        let component = match key.default {
            Some(Const::Text(name)) => Some(name),
            _ => None,
        };
        Self { key: Some(key), component }
    }

    /// A value within: the key's range and choices hold for it too.
    pub(crate) const fn within(self) -> Self {
        Self { component: None, ..self }
    }

    /// Whether a single value may stand for a list of one.
    pub(crate) const fn one_or_many(self) -> bool {
        matches!(self.key, Some(Key { one_or_many: true, .. }))
    }
}

/// The keys of a component without any.
pub(crate) static NO_KEYS: Struct = Struct { name: "", doc: "", keys: &[], ignored: &[] };

/// The name that chooses a component at `at`: that of its `_component_`, or
/// the value itself. `Some` of an item, whatever that is.
pub(crate) const fn chosen(tree: Tree<'_>, at: usize) -> Option<usize> {
    match tree.item(at).written {
        Written::Map => tree.get(at, COMPONENT),
        Written::Scalar(_) if !tree.is_null(at) => Some(at),
        _ => None,
    }
}

/// The component that holds where none is named.
pub(crate) const fn default_component(component: &Component, place: Place) -> Option<usize> {
    if let Some(name) = place.component
        && let Some(found) = component.find(name)
    {
        return Some(found);
    }
    component.default
}

/// The value that names a choice: itself, or that of a lone `_component_`, as
/// torchtune writes a loss without arguments.
pub(crate) const fn named(tree: Tree<'_>, at: usize) -> usize {
    match (tree.item(at).written, tree.get(at, COMPONENT)) {
        (Written::Map, Some(only)) if tree.count(at) == 1 => only,
        _ => at,
    }
}

/// Whether an entry is the key, under whatever name.
pub(crate) const fn is_key(key: &Key, written: &str) -> bool {
    crate::schema::named(key.name, key.aliases, written)
}

/// The entry of the mapping `at` that is the key: the first one from `from` on.
pub(crate) const fn entry_of(tree: Tree<'_>, at: usize, key: &Key, from: usize) -> Option<usize> {
    let mut child = from;
    while child < tree.item(at).end {
        if is_key(key, tree.item(child).key) {
            return Some(child);
        }
        child = tree.item(child).end;
    }
    None
}

struct Checker<'a, const N: usize> {
    tree: Tree<'a>,
    outermost: Option<&'static Struct>,
    found: Findings<'a, N>,
}

impl<'a, const N: usize> Checker<'a, N> {
    /// A mistake with its caret at the value, or at its key where nothing is to be seen.
    const fn at_value(&mut self, at: usize, mistake: Mistake<'a>) {
        let item = self.tree.item(at);
        let span = if item.span.start == item.span.end { item.key_span } else { item.span };
        self.found.push(Finding { at, span, mistake });
    }

    /// A mistake with its caret at the key.
    const fn at_key(&mut self, at: usize, mistake: Mistake<'a>) {
        let span = self.tree.item(at).key_span;
        self.found.push(Finding { at, span, mistake });
    }

    const fn value(&mut self, schema: &'a Schema, at: usize, place: Place) {
        match (schema, &self.tree.item(at).written) {
            (_, Written::Reported) | (Schema::Broken, _) => {}
            (Schema::Optional(inner), _) => {
                if !self.tree.is_null(at) {
                    self.value(inner, at, place);
                }
            }
            (Schema::List(item), Written::List) => self.items(item, at, place),
            (Schema::List(item), _) if place.one_or_many() && !self.tree.is_null(at) => self.value(item, at, place),
            (Schema::Array(item, length), Written::List) if self.tree.count(at) == *length => {
                self.items(item, at, place);
            }
            (Schema::Map(item), Written::Map) => self.items(item, at, place),
            (Schema::Struct(fields), Written::Map) => self.fields(fields, at, None),
            (Schema::Component(component), _) => self.component(schema, component, at, place),
            (Schema::Choice(choices), _) => self.choice(schema, choices, at, place),
            (_, Written::Scalar(scalar)) => self.scalar(schema, scalar, at, place),
            _ => self.at_value(at, Mistake::WrongType(schema, place.key)),
        }
    }

    const fn items(&mut self, schema: &'a Schema, at: usize, place: Place) {
        let mut child = at + 1;
        while child < self.tree.item(at).end {
            self.value(schema, child, place.within());
            child = self.tree.item(child).end;
        }
    }

    const fn scalar(&mut self, schema: &'a Schema, scalar: &Scalar<'a>, at: usize, place: Place) {
        let number = if scalar.quoted { None } else { scalar.number };
        match (schema, scalar.kind, number) {
            (Schema::Bool, Kind::Bool(value), _) => self.within_key(&Const::Bool(value), "", at, place),
            (Schema::Text | Schema::Path, kind, _)
                if matches!(kind, Kind::Text) || scalar.shell && !matches!(kind, Kind::Null) =>
            {
                self.within_key(&Const::Null, scalar.text, at, place);
            }
            (Schema::Int { min, max }, _, Some(Number::Int(int))) => {
                if int < *min || int > *max {
                    // The key's own bounds are nearer than those of its type.
                    if let Some(key) = place.key
                        && let Some(range) = &key.range
                        && !range.holds(&Const::Int(int))
                    {
                        self.at_value(at, Mistake::OutOfRange(key));
                    } else {
                        self.at_value(at, Mistake::DoesNotFit { min: *min, max: *max });
                    }
                } else {
                    self.within_key(&Const::Int(int), "", at, place);
                }
            }
            (Schema::Float { bits }, _, Some(number)) => {
                let float = match number {
                    Number::Int(int) => int as f64,
                    Number::Float(float) => float,
                };
                let fits = if *bits == 32 { (float as f32).is_finite() } else { float.is_finite() };
                if fits {
                    self.within_key(&Const::Float(float), "", at, place);
                } else {
                    self.at_value(at, Mistake::NotFinite);
                }
            }
            _ => self.at_value(at, Mistake::WrongType(schema, place.key)),
        }
    }

    /// The bounds and choices of the key, for a value or else for a text.
    const fn within_key(&mut self, value: &Const, text: &str, at: usize, place: Place) {
        let Some(key) = place.key else {
            return;
        };
        if let (Some(range), Const::Int(_) | Const::Float(_)) = (&key.range, value)
            && !range.holds(value)
        {
            return self.at_value(at, Mistake::OutOfRange(key));
        }
        let mut index = 0;
        while index < key.one_of.len() {
            let equal = match (&key.one_of[index], value) {
                (Const::Text(allowed), Const::Null) => same(allowed, text),
                (Const::Bool(allowed), Const::Bool(value)) => *allowed == *value,
                (Const::Int(allowed), Const::Int(value)) => *allowed == *value,
                (Const::Int(allowed), Const::Float(value)) => *allowed as f64 == *value,
                (Const::Float(allowed), Const::Float(value)) => *allowed == *value,
                _ => false,
            };
            if equal {
                return;
            }
            index += 1;
        }
        if !key.one_of.is_empty() {
            self.at_value(at, Mistake::NotAmong(key));
        }
    }

    const fn choice(&mut self, schema: &'a Schema, choices: &'static Choices, at: usize, place: Place) {
        let named = named(self.tree, at);
        if matches!(self.tree.item(named).written, Written::Reported) {
            return;
        }
        match self.tree.text(named) {
            None => self.at_value(at, Mistake::WrongType(schema, place.key)),
            Some(written) => match choices.find(written) {
                Some(found) => self.within_key(&Const::Null, choices.choices[found].name, named, place),
                None => self.at_value(named, Mistake::UnknownChoice(choices)),
            },
        }
    }

    const fn component(&mut self, schema: &'a Schema, component: &'static Component, at: usize, place: Place) {
        let chosen = chosen(self.tree, at);
        let found = match (chosen, &self.tree.item(at).written) {
            (Some(named), _) => match (&self.tree.item(named).written, self.tree.scalar(named)) {
                (Written::Reported, _) => return,
                (_, Some(scalar)) => component.find(scalar.text),
                _ => None,
            },
            (None, Written::Map) => match default_component(component, place) {
                Some(default) => Some(default),
                None => return self.at_key(at, Mistake::NoComponent(component)),
            },
            _ => return self.at_value(at, Mistake::WrongType(schema, None)),
        };
        let Some(found) = found else {
            return self
                .at_value(if let Some(named) = chosen { named } else { at }, Mistake::UnknownComponent(component));
        };
        let variant = &component.variants[found];
        let span = match chosen {
            Some(named) => Some(self.tree.item(named).span),
            None => None,
        };
        let fields = match variant.fields() {
            Some(fields) => fields,
            None => &NO_KEYS,
        };
        self.fields(fields, at, Some(Chosen { component, variant, span }));
    }

    const fn fields(&mut self, fields: &'static Struct, at: usize, chosen: Option<Chosen>) {
        let mut child = at + 1;
        while child < self.tree.item(at).end {
            let written = self.tree.item(child).key;
            match fields.find(written) {
                Some(key) => self.key(key, at, child),
                // One of the user's own, for a `${}`.
                None if self.tree.is_needed(child, fields) => {}
                None if hint::is_unknown(fields, written, chosen.is_some()) => {
                    let outermost = if at == 0 { None } else { self.outermost };
                    self.at_key(child, Mistake::UnknownKey(fields, chosen, outermost));
                }
                None => {}
            }
            child = self.tree.item(child).end;
        }
        if hint::next_missing(fields, self.tree, at, &chosen, 0).is_some() {
            self.at_key(at, Mistake::MissingKeys(fields, chosen));
        }
    }

    /// The entry of a key of the mapping `at`.
    const fn key(&mut self, key: &'static Key, at: usize, entry: usize) {
        // A key of one name cannot stand here twice.
        if !key.aliases.is_empty()
            && let Some(first) = entry_of(self.tree, at, key, at + 1)
            && first < entry
        {
            return self.at_key(entry, Mistake::TwoNames(first));
        }
        self.value(&key.schema, entry, Place::of(key));
    }
}

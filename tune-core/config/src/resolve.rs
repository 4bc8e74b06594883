//! A tree to the values that it stands for, defaults filled in. What is wrong
//! with it is said elsewhere: here it is left out.

use std::collections::BTreeMap;

use tune_yaml::{Kind, Node, Number, Scalar as Plain, Span, Value as Yaml};

use crate::check::{self, NO_KEYS, Place, entry_of};
use crate::home::{self, Homeless};
use crate::report::DEFAULTS;
use crate::schema::{COMPONENT, Component, Const, Ignored, Key, Schema, Struct};
use crate::tree::{Scalar, Tree, Written, flatten};
use crate::value::{Data, Field, Origin, Value};

/// What a tree stands for.
pub(crate) struct Resolved {
    /// The value, without the parts that are wrong or missing.
    pub(crate) value: Option<Value>,
    /// Nothing is wrong or missing.
    pub(crate) complete: bool,
    /// Keys that are written and have no effect.
    pub(crate) ignored: Vec<(Span, &'static Ignored)>,
    /// Paths that begin with a `~` of nobody's.
    pub(crate) homeless: Vec<(Span, Homeless)>,
}

/// The values of `tree`, whose first item is the root.
pub(crate) fn resolve(schema: &Schema, tree: Tree<'_>) -> Resolved {
    let mut resolver = Resolver { complete: true, ignored: Vec::new(), homeless: Vec::new() };
    let value = resolver.value(schema, tree, 0, Place::NOWHERE);
    let complete = resolver.complete && value.is_some();
    Resolved { value, complete, ignored: resolver.ignored, homeless: resolver.homeless }
}

struct Resolver {
    complete: bool,
    ignored: Vec<(Span, &'static Ignored)>,
    homeless: Vec<(Span, Homeless)>,
}

impl Resolver {
    fn wrong<T>(&mut self) -> Option<T> {
        self.complete = false;
        None
    }

    fn value(&mut self, schema: &Schema, tree: Tree<'_>, at: usize, place: Place) -> Option<Value> {
        let item = tree.item(at);
        let data = match (schema, &item.written) {
            (Schema::Optional(_), _) if tree.is_null(at) => Some(Data::Null),
            (Schema::Optional(inner), _) => return self.value(inner, tree, at, place),
            (Schema::List(inner) | Schema::Array(inner, _), Written::List) => self.items(inner, tree, at, place),
            (Schema::List(inner), _) if place.one_or_many() && !tree.is_null(at) => {
                self.value(inner, tree, at, place).map(|item| Data::List(vec![item]))
            }
            (Schema::Map(inner), Written::Map) => self.map(inner, tree, at, place),
            (Schema::Struct(fields), Written::Map) => Some(self.fields(fields, tree, at, false)),
            (Schema::Component(component), _) => self.component(component, tree, at, place),
            (Schema::Choice(choices), _) => {
                let found = tree.text(check::named(tree, at)).and_then(|name| choices.find(name));
                found.map(|found| Data::Text(choices.choices[found].name.to_owned()))
            }
            (_, Written::Scalar(scalar)) => match self::scalar(schema, scalar) {
                Some(Data::Text(path)) if matches!(schema, Schema::Path) => self.path(&path, item.span),
                data => data,
            },
            _ => None,
        };
        let chosen = match (schema, item.written) {
            // A component comes from where it is chosen, not from its keys.
            (Schema::Component(_), Written::Map) => tree.get(at, COMPONENT).map(|named| tree.item(named).span),
            _ => Some(item.span),
        };
        match data {
            Some(data) => Some(Value { data, origin: chosen.map_or(Origin::Default, origin) }),
            None => self.wrong(),
        }
    }

    /// A path; its home folder is known here and nowhere before.
    fn path(&mut self, written: &str, span: Span) -> Option<Data> {
        match home::expand(written) {
            Ok(path) => Some(Data::Text(path.into_owned())),
            Err(homeless) => {
                self.homeless.push((span, homeless));
                None
            }
        }
    }

    fn items(&mut self, schema: &Schema, tree: Tree<'_>, at: usize, place: Place) -> Option<Data> {
        let values = children(tree, at).map(|child| self.value(schema, tree, child, place.within()));
        Some(Data::List(values.collect::<Vec<_>>().into_iter().flatten().collect()))
    }

    fn map(&mut self, schema: &Schema, tree: Tree<'_>, at: usize, place: Place) -> Option<Data> {
        let mut fields: Vec<Field> = children(tree, at)
            .filter_map(|child| {
                let value = self.value(schema, tree, child, place.within())?;
                Some(Field { name: tree.item(child).key.to_owned().into(), value, flat: false })
            })
            .collect();
        // Free names have no order of their own.
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Some(Data::Fields(fields))
    }

    fn component(&mut self, component: &Component, tree: Tree<'_>, at: usize, place: Place) -> Option<Data> {
        let found = match (check::chosen(tree, at), tree.item(at).written) {
            (Some(named), _) => tree.text(named).and_then(|name| component.find(name)),
            (None, Written::Map) => check::default_component(component, place),
            (None, _) => None,
        };
        let variant = &component.variants[found?];
        let fields = self.fields(variant.fields().unwrap_or(&NO_KEYS), tree, at, true);
        let fields = Value { data: fields, origin: origin(tree.item(at).span) };
        Some(Data::Component(variant.name.into(), Box::new(fields)))
    }

    /// The fields in the order of the schema.
    fn fields(&mut self, fields: &Struct, tree: Tree<'_>, at: usize, of_component: bool) -> Data {
        for child in children(tree, at) {
            let item = tree.item(child);
            if of_component && item.key == COMPONENT || fields.find(item.key).is_some() {
                continue;
            }
            match fields.find_ignored(item.key) {
                Some(ignored) => self.ignored.push((item.key_span, ignored)),
                // One of the user's own has done what it is for.
                None if tree.is_needed(child, fields) => {}
                None => self.complete = false,
            }
        }
        self.known_fields(fields, tree, at)
    }

    fn known_fields(&mut self, fields: &Struct, tree: Tree<'_>, at: usize) -> Data {
        let field = |key: &'static Key| {
            let value = match key.flattened() {
                Some(inner) => {
                    let data = self.known_fields(inner, tree, at);
                    Some(Value { data, origin: origin(tree.item(at).key_span) })
                }
                None => self.key(key, tree, at),
            };
            value.map(|value| Field { name: key.name.into(), value, flat: key.flatten })
        };
        Data::Fields(fields.keys.iter().filter_map(field).collect())
    }

    fn key(&mut self, key: &'static Key, tree: Tree<'_>, at: usize) -> Option<Value> {
        let Some(entry) = entry_of(tree, at, key, at + 1) else {
            return if key.when_absent().is_some() { self.absent(key) } else { self.wrong() };
        };
        if entry_of(tree, at, key, tree.item(entry).end).is_some() {
            return self.wrong();
        }
        self.value(&key.schema, tree, entry, Place::of(key))
    }

    fn absent(&mut self, key: &'static Key) -> Option<Value> {
        let default = default_node(&key.schema, &key.when_absent()?);
        let unreferred = BTreeMap::new();
        let items = flatten(&default, &unreferred, &|_| false);
        self.value(&key.schema, Tree(&items), 0, Place::of(key))
    }
}

impl Key {
    /// The value where the key is not written; `None`: it must be.
    pub fn default_value(&'static self) -> Option<Value> {
        Resolver { complete: true, ignored: Vec::new(), homeless: Vec::new() }.absent(self)
    }
}

/// The values that `at` holds.
fn children(tree: Tree<'_>, at: usize) -> impl Iterator<Item = usize> {
    let end = tree.item(at).end;
    let next = move |child: usize| (child < end).then_some(child);
    std::iter::successors(next(at + 1), move |child| next(tree.item(*child).end))
}

fn scalar(schema: &Schema, scalar: &Scalar<'_>) -> Option<Data> {
    let number = scalar.number.filter(|_| !scalar.quoted);
    match (schema, scalar.kind, number) {
        (Schema::Bool, Kind::Bool(value), _) => Some(Data::Bool(value)),
        (Schema::Text | Schema::Path, kind, _) if kind == Kind::Text || scalar.shell && kind != Kind::Null => {
            Some(Data::Text(scalar.text.to_owned()))
        }
        (Schema::Int { min, max }, _, Some(Number::Int(int))) => (*min..=*max).contains(&int).then_some(Data::Int(int)),
        (Schema::Float { .. }, _, Some(Number::Int(int))) => Some(Data::Float(int as f64)),
        (Schema::Float { .. }, _, Some(Number::Float(float))) => float.is_finite().then_some(Data::Float(float)),
        _ => None,
    }
}

fn origin(span: Span) -> Origin {
    match span.source {
        DEFAULTS => Origin::Default,
        _ => Origin::Written(span),
    }
}

/// A default as if it had been written.
pub(crate) fn default_node(schema: &Schema, default: &Const) -> Node {
    let span = Span::new(DEFAULTS, 0, 0);
    let value = match (default, schema) {
        (Const::Null, _) | (Const::OfType, Schema::Optional(_)) => Yaml::Scalar(Plain::plain("null")),
        (Const::List(items), Schema::List(inner) | Schema::Array(inner, _)) => {
            Yaml::List(items.iter().map(|item| default_node(inner, item)).collect())
        }
        (default, Schema::Optional(inner)) => return default_node(inner, default),
        (Const::List(items), _) => Yaml::List(items.iter().map(|item| default_node(schema, item)).collect()),
        (Const::Bool(value), _) => Yaml::Scalar(Plain::plain(value.to_string())),
        (Const::Int(value), _) => Yaml::Scalar(Plain::plain(value.to_string())),
        (Const::Float(value), _) => Yaml::Scalar(Plain::plain(crate::emit::float(*value))),
        (Const::Text(value), _) => Yaml::Scalar(Plain::quoted(*value)),
        (Const::OfType, Schema::List(_)) => Yaml::List(Vec::new()),
        (Const::OfType, Schema::Choice(choices)) => {
            let name = choices.default.and_then(|at| choices.choices.get(at)).map(|choice| choice.name);
            Yaml::Scalar(Plain::quoted(name.unwrap_or_default()))
        }
        (Const::OfType, _) => Yaml::Map(Vec::new()),
    };
    Node { value, span }
}

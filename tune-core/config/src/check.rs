//! A tree against a schema: everything that is wrong with it, and the checked
//! value where nothing is.

mod mistakes;

use tune_yaml::{Entry, Kind, Node, Number, Scalar, Span, Value as Tree};

use self::mistakes::{Chosen, as_meant, did_you_mean, unknown_component, unknown_key};
use crate::report::{DEFAULTS, Diagnostic};
use crate::schema::{COMPONENT, Choices, Component, Const, Ignored, Key, Schema, Struct};
use crate::value::{Data, Field, Origin, Value};
use crate::words::{and, found, list, or, quoted, short};

/// Checks `root` and fills in the defaults.
pub(crate) fn check(schema: &Schema, root: &Node, from_command_line: &dyn Fn(Span) -> bool) -> Checked {
    let mut checker = Checker { from_command_line, diagnostics: Vec::new(), ignored: Vec::new() };
    let value = checker.value(schema, root, &Place::root(root.span));
    Checked { value, diagnostics: checker.diagnostics, ignored: checker.ignored }
}

/// What a check has found.
pub(crate) struct Checked {
    /// The value; `None` where something is wrong, be it known from before.
    pub(crate) value: Option<Value>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Keys that are written and have no effect.
    pub(crate) ignored: Vec<(Span, &'static Ignored)>,
}

/// Where a value stands.
struct Place<'a> {
    /// Its keys from the root, with dots; empty for the root.
    path: String,
    /// What to point at where something is missing in it.
    owner: Span,
    /// What its key says about it.
    key: Option<&'a Key>,
    /// The component that a mapping without `_component_` is, where the key's
    /// default names one.
    component: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn root(span: Span) -> Self {
        Self { path: String::new(), owner: span, key: None, component: None }
    }

    fn child(&self, step: &str, owner: Span) -> Self {
        let path = match self.path.as_str() {
            "" => step.to_owned(),
            path => format!("{path}.{step}"),
        };
        Self { path, owner, key: None, component: None }
    }

    fn key(self, key: &'a Key) -> Self {
        let component = match key.default {
            Some(Const::Text(name)) => Some(name),
            _ => None,
        };
        Self { key: Some(key), component, ..self }
    }

    /// An item of a list; the key's range and choices hold for it too.
    fn item(&self, index: usize, span: Span) -> Self {
        Self { key: self.key, ..self.child(&index.to_string(), span) }
    }

    fn of(&self) -> String {
        match self.path.as_str() {
            "" => String::new(),
            path => format!(" for `{path}`"),
        }
    }
}

struct Checker<'a> {
    from_command_line: &'a dyn Fn(Span) -> bool,
    diagnostics: Vec<Diagnostic>,
    ignored: Vec<(Span, &'static Ignored)>,
}

impl Checker<'_> {
    fn report(&mut self, diagnostic: Diagnostic) -> Option<Data> {
        self.diagnostics.push(diagnostic);
        None
    }

    fn value(&mut self, schema: &Schema, node: &Node, place: &Place<'_>) -> Option<Value> {
        let data = match (schema, &node.value) {
            (_, Tree::Reported) | (Schema::Broken, _) => None,
            (Schema::Optional(_), _) if node.is_null() => Some(Data::Null),
            (Schema::Optional(inner), _) => return self.value(inner, node, place),
            (Schema::List(item), Tree::List(items)) => self.items(item, items, place),
            (Schema::List(item), _) if place.key.is_some_and(|key| key.one_or_many) && !node.is_null() => {
                self.value(item, node, place).map(|item| Data::List(vec![item]))
            }
            (Schema::Array(item, length), Tree::List(items)) if items.len() == *length => {
                self.items(item, items, place)
            }
            (Schema::Map(item), Tree::Map(entries)) => self.map(item, entries, place),
            (Schema::Struct(fields), Tree::Map(entries)) => self.fields(fields, entries, place, None),
            (Schema::Component(component), _) => self.component(component, node, place),
            (Schema::Choice(choices), _) => self.choice(choices, node, place),
            (_, Tree::Scalar(scalar)) => self.scalar(schema, scalar, node, place),
            _ => self.wrong_type(schema, node, place),
        };
        let chosen = match (schema, &node.value) {
            // A component comes from where it is chosen, not from its keys.
            (Schema::Component(_), Tree::Map(_)) => node.get(COMPONENT).map(|entry| entry.value.span),
            _ => Some(node.span),
        };
        let origin = chosen.map_or(Origin::Default, origin);
        data.map(|data| Value { data, origin })
    }

    fn items(&mut self, schema: &Schema, items: &[Node], place: &Place<'_>) -> Option<Data> {
        // All of them, so that all mistakes are found.
        let values: Vec<_> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.value(schema, item, &place.item(index, item.span)))
            .collect();
        values.into_iter().collect::<Option<_>>().map(Data::List)
    }

    fn map(&mut self, schema: &Schema, entries: &[Entry], place: &Place<'_>) -> Option<Data> {
        let fields: Vec<_> = entries
            .iter()
            .map(|entry| {
                let inner = Place { key: place.key, ..place.child(&entry.key, entry.key_span) };
                self.value(schema, &entry.value, &inner).map(|value| Field {
                    name: entry.key.clone().into(),
                    value,
                    flat: false,
                })
            })
            .collect();
        let mut fields: Vec<_> = fields.into_iter().collect::<Option<_>>()?;
        // Free names have no order of their own.
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Some(Data::Fields(fields))
    }

    fn scalar(&mut self, schema: &Schema, scalar: &Scalar, node: &Node, place: &Place<'_>) -> Option<Data> {
        let data = match (schema, scalar.kind()) {
            (Schema::Bool, Kind::Bool(value)) => Data::Bool(value),
            (Schema::Text | Schema::Path, Kind::Text) => Data::Text(scalar.text.clone()),
            // A shell takes the quotes away, so there text is what it looks like.
            (Schema::Text | Schema::Path, kind) if kind != Kind::Null && (self.from_command_line)(node.span) => {
                Data::Text(scalar.text.clone())
            }
            (Schema::Int { min, max }, _) => match scalar.number() {
                Some(Number::Int(int)) if (*min..=*max).contains(&int) => Data::Int(int),
                Some(Number::Int(int)) => {
                    let limit =
                        if int < *min { format!("must be at least {min}") } else { format!("must be at most {max}") };
                    let message = format!("`{}` is out of range{}", scalar.text, place.of());
                    return self.report(Diagnostic::error(message).at(node.span, limit));
                }
                _ => return self.wrong_type(schema, node, place),
            },
            (Schema::Float { bits }, _) => match scalar.number() {
                Some(number) => {
                    let float = match number {
                        Number::Int(int) => int as f64,
                        Number::Float(float) => float,
                    };
                    let fits = if *bits == 32 { (float as f32).is_finite() } else { float.is_finite() };
                    if !fits {
                        let message = format!("`{}` is no finite number{}", scalar.text, place.of());
                        return self.report(Diagnostic::error(message).at(node.span, "expected a finite number"));
                    }
                    Data::Float(float)
                }
                None => return self.wrong_type(schema, node, place),
            },
            _ => return self.wrong_type(schema, node, place),
        };
        self.within_key(data, node, place)
    }

    /// The bounds and choices of the key.
    fn within_key(&mut self, data: Data, node: &Node, place: &Place<'_>) -> Option<Data> {
        let Some(key) = place.key else {
            return Some(data);
        };
        let as_const = match &data {
            Data::Int(int) => Some(Const::Int(*int)),
            Data::Float(float) => Some(Const::Float(*float)),
            _ => None,
        };
        if let (Some(range), Some(number)) = (&key.range, as_const)
            && !range.holds(&number)
        {
            let message = format!("`{}` is out of range{}", node.as_str().unwrap_or_default(), place.of());
            return self.report(Diagnostic::error(message).at(node.span, format!("must be in {range}")));
        }
        let equal = |allowed: &Const| match (allowed, &data) {
            (Const::Text(allowed), Data::Text(text)) => allowed == text,
            (Const::Bool(allowed), Data::Bool(value)) => allowed == value,
            (Const::Int(allowed), Data::Int(value)) => allowed == value,
            (Const::Int(allowed), Data::Float(value)) => *allowed as f64 == *value,
            (Const::Float(allowed), Data::Float(value)) => allowed == value,
            _ => false,
        };
        if !key.one_of.is_empty() && !key.one_of.iter().any(equal) {
            let written = node.as_str().unwrap_or_default();
            let allowed: Vec<String> = key.one_of.iter().map(Const::to_string).collect();
            let expected: Vec<String> = allowed.iter().map(|allowed| quoted(allowed)).collect();
            let diagnostic = Diagnostic::error(format!("`{}` is not allowed{}", short(written), place.of()))
                .at(node.span, format!("expected {}", or(&expected)));
            let diagnostic = did_you_mean(diagnostic, written, allowed.iter().map(String::as_str));
            return self.report(diagnostic);
        }
        Some(data)
    }

    fn choice(&mut self, choices: &Choices, node: &Node, place: &Place<'_>) -> Option<Data> {
        // torchtune writes a loss without arguments as a component.
        let named = match &node.value {
            Tree::Map(entries) => match &entries[..] {
                [only] if only.key == COMPONENT => &only.value,
                _ => node,
            },
            _ => node,
        };
        let names = || choices.choices.iter().map(|choice| choice.name);
        let Some(written) = named.as_str().filter(|_| !named.is_null()) else {
            let diagnostic = self.expected(&names().map(quoted).collect::<Vec<_>>(), node, place);
            return self.report(diagnostic);
        };
        match choices.find(written) {
            Some(found) => {
                let name = choices.choices[found].name.to_owned();
                self.within_key(Data::Text(name), named, place)
            }
            None => {
                let diagnostic = Diagnostic::error(format!("`{}` is not allowed{}", short(written), place.of()))
                    .at(named.span, format!("expected {}", or(&names().map(quoted).collect::<Vec<_>>())));
                let aliases = choices.choices.iter().flat_map(|choice| choice.aliases.iter().copied());
                let diagnostic = did_you_mean(diagnostic, written, names().chain(aliases));
                self.report(diagnostic)
            }
        }
    }

    fn component(&mut self, component: &Component, node: &Node, place: &Place<'_>) -> Option<Data> {
        let names = || component.variants.iter().map(|variant| variant.name);
        let (chosen, entries): (Option<&Node>, &[Entry]) = match &node.value {
            Tree::Map(entries) => (node.get(COMPONENT).map(|entry| &entry.value), entries),
            Tree::Scalar(_) if !node.is_null() => (Some(node), &[]),
            _ => {
                let expected = format!("a component: {}", or(&names().map(quoted).collect::<Vec<_>>()));
                let diagnostic = self.expected(&[expected], node, place);
                return self.report(diagnostic);
            }
        };
        let found = match chosen {
            Some(Node { value: Tree::Reported, .. }) => return None,
            Some(chosen) => match chosen.as_str().and_then(|name| component.find(name)) {
                Some(found) => found,
                None => {
                    let diagnostic = unknown_component(component, chosen, place);
                    return self.report(diagnostic);
                }
            },
            None => match place.component.and_then(|name| component.find(name)).or(component.default) {
                Some(default) => default,
                None => {
                    let diagnostic = Diagnostic::error(format!("missing key `{COMPONENT}`{}", place.of()))
                        .at(place.owner, format!("which {}?", component.name))
                        .note(format!("choose one of {}", list(names())));
                    return self.report(diagnostic);
                }
            },
        };
        let variant = &component.variants[found];
        let of = Chosen { component, variant, span: chosen.map(|chosen| chosen.span) };
        let none = Struct { name: variant.name, doc: "", keys: &[], ignored: &[] };
        let fields = self.fields(variant.fields().unwrap_or(&none), entries, place, Some(&of))?;
        let fields = Value { data: fields, origin: origin(node.span) };
        Some(Data::Component(variant.name.into(), Box::new(fields)))
    }

    fn fields(
        &mut self,
        fields: &Struct,
        entries: &[Entry],
        place: &Place<'_>,
        chosen: Option<&Chosen<'_>>,
    ) -> Option<Data> {
        // Keys that are written with a slip: they are not missing, too.
        let mut meant = Vec::new();
        for entry in entries {
            let of_choice = chosen.is_some() && entry.key == COMPONENT;
            if of_choice || fields.find(&entry.key).is_some() {
                continue;
            }
            match fields.find_ignored(&entry.key) {
                Some(ignored) => self.ignored.push((entry.key_span, ignored)),
                None => {
                    let (diagnostic, near) = unknown_key(fields, entry, place, chosen);
                    self.diagnostics.push(diagnostic);
                    meant.extend(near.map(|key| key.name));
                }
            }
        }
        let before = self.diagnostics.len();
        let mut missing = Vec::new();
        let data = self.known_fields(fields, entries, place, &mut missing);
        missing.retain(|key| !meant.contains(&key.name));
        if missing.is_empty() {
            return data;
        }
        let names: Vec<_> = missing.iter().map(|key| quoted(key.name)).collect();
        let plural = if names.len() > 1 { "s" } else { "" };
        let mut diagnostic = Diagnostic::error(format!("missing key{plural} {}{}", and(&names), place.of()));
        if place.owner.source != DEFAULTS {
            diagnostic = diagnostic.at(place.owner, format!("needs {}", and(&names)));
        }
        if let Some(Chosen { span: Some(span), .. }) = chosen
            && *span != place.owner
        {
            diagnostic = diagnostic.also(*span, "component chosen here");
        }
        for key in missing {
            diagnostic = diagnostic.note(format!("`{}`: {}", key.name, key.describe()));
        }
        // Before what is wrong with the keys that are there.
        self.diagnostics.insert(before, diagnostic);
        None
    }

    /// The fields in the order of the schema; unknown keys are another matter.
    fn known_fields(
        &mut self,
        fields: &Struct,
        entries: &[Entry],
        place: &Place<'_>,
        missing: &mut Vec<&'static Key>,
    ) -> Option<Data> {
        let mut values = Vec::with_capacity(fields.keys.len());
        let mut complete = true;
        for key in fields.keys {
            let value = match (key.flatten, key.schema) {
                (true, Schema::Struct(inner)) => {
                    let data = self.known_fields(inner, entries, place, missing);
                    data.map(|data| Value { data, origin: origin(place.owner) })
                }
                _ => self.key(key, entries, place, missing),
            };
            match value {
                Some(value) => values.push(Field { name: key.name.into(), value, flat: key.flatten }),
                None => complete = false,
            }
        }
        complete.then_some(Data::Fields(values))
    }

    fn key(
        &mut self,
        key: &'static Key,
        entries: &[Entry],
        place: &Place<'_>,
        missing: &mut Vec<&'static Key>,
    ) -> Option<Value> {
        let mut written = entries.iter().filter(|e| e.key == key.name || key.aliases.contains(&e.key.as_str()));
        let Some(entry) = written.next() else {
            let Some(default) = key.when_absent() else {
                missing.push(key);
                return None;
            };
            let node = default_node(&key.schema, &default);
            return self.value(&key.schema, &node, &place.child(key.name, node.span).key(key));
        };
        if let Some(again) = written.next() {
            let message = format!("`{}` and `{}` are the same key", entry.key, again.key);
            self.diagnostics.push(
                Diagnostic::error(message)
                    .at(again.key_span, "again here")
                    .also(entry.key_span, "first written here")
                    .help("remove one of the two"),
            );
            return None;
        }
        self.value(&key.schema, &entry.value, &place.child(&entry.key, entry.key_span).key(key))
    }

    fn wrong_type(&mut self, schema: &Schema, node: &Node, place: &Place<'_>) -> Option<Data> {
        let mut expected = vec![schema.noun()];
        if let Some(key) = place.key
            && key.one_or_many
            && !matches!(schema, Schema::List(_))
        {
            expected.push(format!("a list of {}", schema.noun()));
        }
        let mut diagnostic = self.expected(&expected, node, place);
        let Tree::Scalar(scalar) = &node.value else {
            return self.report(diagnostic);
        };
        diagnostic.help.extend(as_meant(schema, scalar));
        self.report(diagnostic)
    }

    fn expected(&self, expected: &[String], node: &Node, place: &Place<'_>) -> Diagnostic {
        let message = match (&place.path[..], node.is_null()) {
            ("", true) => "this config is empty".to_owned(),
            ("", false) => "this config is no mapping of keys".to_owned(),
            (path, _) => format!("wrong type for `{path}`"),
        };
        // Nothing is to be seen where nothing was written.
        let span = if node.span.start == node.span.end { place.owner } else { node.span };
        Diagnostic::error(message).at(span, format!("expected {}, found {}", or(expected), found(node)))
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
        (Const::Null, _) | (Const::OfType, Schema::Optional(_)) => Tree::Scalar(Scalar::plain("null")),
        (Const::List(items), Schema::List(inner) | Schema::Array(inner, _)) => {
            Tree::List(items.iter().map(|item| default_node(inner, item)).collect())
        }
        (default, Schema::Optional(inner)) => return default_node(inner, default),
        (Const::List(items), _) => Tree::List(items.iter().map(|item| default_node(schema, item)).collect()),
        (Const::Bool(value), _) => Tree::Scalar(Scalar::plain(value.to_string())),
        (Const::Int(value), _) => Tree::Scalar(Scalar::plain(value.to_string())),
        (Const::Float(value), _) => Tree::Scalar(Scalar::plain(crate::emit::float(*value))),
        (Const::Text(value), _) => Tree::Scalar(Scalar::quoted(*value)),
        (Const::OfType, Schema::List(_)) => Tree::List(Vec::new()),
        (Const::OfType, Schema::Choice(choices)) => {
            let name = choices.default.and_then(|at| choices.choices.get(at)).map(|choice| choice.name);
            Tree::Scalar(Scalar::quoted(name.unwrap_or_default()))
        }
        (Const::OfType, _) => Tree::Map(Vec::new()),
    };
    Node { value, span }
}

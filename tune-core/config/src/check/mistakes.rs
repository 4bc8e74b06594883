//! What to say about what is wrong.

use tune_yaml::{Entry, Kind, Node, Scalar, Span, nearest};

use super::Place;
use crate::report::Diagnostic;
use crate::schema::{Component, Key, Schema, Struct, Variant};
use crate::words::{list, short};

/// The component whose keys are looked at.
pub(super) struct Chosen<'a> {
    pub(super) component: &'a Component,
    pub(super) variant: &'a Variant,
    pub(super) span: Option<Span>,
}

/// For a name that no component has.
pub(super) fn unknown_component(component: &Component, chosen: &Node, place: &Place<'_>) -> Diagnostic {
    let names = || component.variants.iter().map(|variant| variant.name);
    let written = chosen.as_str().unwrap_or_default();
    let diagnostic = Diagnostic::error(format!("unknown component `{}`{}", short(written), place.of()))
        .at(chosen.span, format!("no such {}", component.name))
        .note(format!("the components are {}", list(names())));
    // Of a dotted path the last part says what is meant.
    let last = written.rsplit('.').next().unwrap_or(written);
    let aliases = component.variants.iter().flat_map(|variant| variant.aliases.iter().copied());
    let near = nearest(written, names().chain(aliases)).or_else(|| nearest(last, names()));
    let also = || {
        let same_last = |alias: &&&str| alias.rsplit('.').next() == Some(last);
        component
            .variants
            .iter()
            .find(|variant| variant.aliases.iter().any(|alias| same_last(&alias)))
            .map(|variant| variant.name)
    };
    match near.or_else(also) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
        None => diagnostic,
    }
}

/// For a key that the struct does not have; and the key that was probably meant.
pub(super) fn unknown_key(
    fields: &Struct,
    entry: &Entry,
    place: &Place<'_>,
    chosen: Option<&Chosen<'_>>,
) -> (Diagnostic, Option<&'static Key>) {
    let keys = fields.all_keys();
    let path = match place.path.as_str() {
        "" => entry.key.clone(),
        path => format!("{path}.{}", entry.key),
    };
    let label = match chosen {
        Some(chosen) => format!("no key of `{}`", chosen.variant.name),
        None => String::new(),
    };
    let mut diagnostic = Diagnostic::error(format!("unknown key `{}`", short(&path))).at(entry.key_span, label);
    if let Some(Chosen { span: Some(span), .. }) = chosen {
        diagnostic = diagnostic.also(*span, "component chosen here");
    }
    diagnostic = match keys.is_empty() {
        true => diagnostic.note("there are no keys here"),
        false => diagnostic.note(format!("the keys are {}", list(keys.iter().map(|key| key.name)))),
    };
    // The very name in another place is more than a similar one here.
    let has = |variant: &&Variant| variant.fields().is_some_and(|fields| fields.find(&entry.key).is_some());
    if let Some(other) = chosen.and_then(|chosen| chosen.component.variants.iter().find(has)) {
        let help = format!("`{}` is a key of `{}`", entry.key, other.name);
        return (diagnostic.help(help), None);
    }
    if let Some(inner) = within(fields, &entry.key) {
        let inner = match place.path.as_str() {
            "" => inner,
            path => format!("{path}.{inner}"),
        };
        return (diagnostic.help(format!("there is a key `{inner}`")), None);
    }
    let names = keys.iter().flat_map(|key| std::iter::once(key.name).chain(key.aliases.iter().copied()));
    match nearest(&entry.key, names) {
        Some(near) => {
            let help = format!("did you mean `{near}`?");
            (diagnostic.help(help), fields.find(near))
        }
        None => (diagnostic, None),
    }
}

/// The path of a key of this name one or two levels further in.
fn within(fields: &Struct, name: &str) -> Option<String> {
    fn structs(schema: &Schema) -> Vec<&'static Struct> {
        match schema {
            Schema::Struct(fields) => vec![*fields],
            Schema::Optional(inner) => structs(inner),
            Schema::Component(component) => component.variants.iter().filter_map(Variant::fields).collect(),
            _ => Vec::new(),
        }
    }
    let inner =
        |key: &&'static Key| structs(&key.schema).into_iter().map(|inner| (key.name, inner)).collect::<Vec<_>>();
    let level: Vec<_> = fields.all_keys().iter().flat_map(inner).collect();
    let here = level.iter().find(|(_, fields)| fields.find(name).is_some());
    here.map(|(key, _)| format!("{key}.{name}"))
}

pub(super) fn did_you_mean<'n>(
    diagnostic: Diagnostic,
    written: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> Diagnostic {
    match nearest(written, names) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
        None => diagnostic,
    }
}

/// How to write what was probably meant by a scalar of another type.
pub(super) fn as_meant(schema: &Schema, scalar: &Scalar) -> Option<String> {
    match (schema, scalar.kind()) {
        (Schema::Bool, Kind::Text) => match scalar.text.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" => Some("write `true`".to_owned()),
            "no" | "off" | "false" => Some("write `false`".to_owned()),
            _ => None,
        },
        (Schema::Bool, Kind::Int(0)) => Some("write `false`".to_owned()),
        (Schema::Bool, Kind::Int(1)) => Some("write `true`".to_owned()),
        (Schema::Text | Schema::Path, Kind::Bool(_) | Kind::Int(_) | Kind::Float(_)) => {
            Some(format!("for text, write it in quotes: \"{}\"", scalar.text))
        }
        (Schema::Int { .. }, Kind::Float(float)) if float.fract() == 0.0 && float.abs() < 1e15 => {
            Some(format!("write `{float}`"))
        }
        (Schema::Int { .. } | Schema::Float { .. }, Kind::Text)
            if scalar.quoted && Scalar::plain(&scalar.text).number().is_some() =>
        {
            Some("write it without quotes".to_owned())
        }
        _ => None,
    }
}

//! The schema as JSON Schema, draft 7: what `yaml-language-server` reads to
//! complete keys and to mark mistakes while a config is written.

use serde_json::{Map, Value as Json, json};

use crate::help::{summary, variant_doc};
use crate::schema::{COMPONENT, Choices, Component, Const, Key, Range, Schema, Struct, Variant};

/// The JSON Schema of a config; `title` is the name of its recipe.
pub fn json_schema(schema: &Schema, title: &str) -> String {
    let mut writer = Writer { definitions: Map::new() };
    writer.definitions.insert(
        "reference".into(),
        json!({ "description": "What stands at another key: `${a.b}`.", "type": "string", "pattern": "^\\$\\{.*\\}$" }),
    );
    let mut root = Map::new();
    root.insert("$schema".into(), json!("http://json-schema.org/draft-07/schema#"));
    root.insert("title".into(), json!(title));
    let body = match schema {
        Schema::Struct(fields) => {
            let mut body = writer.fields(fields, None);
            body["additionalProperties"] = json!({ "description": OWN, "deprecationMessage": OWN });
            body
        }
        other => writer.any(other, None),
    };
    if let Json::Object(body) = body {
        root.extend(body);
    }
    root.insert("definitions".into(), Json::Object(writer.definitions));
    let mut text = serde_json::to_string_pretty(&root).unwrap_or_default();
    text.push('\n');
    text
}

/// What an editor shows at an outermost key that the recipe does not have: it cannot know whether others refer to it.
const OWN: &str = "No key of the recipe. One of your own is right where a `${}` or an alias refers to it.";

struct Writer {
    definitions: Map<String, Json>,
}

impl Writer {
    /// A value, or a reference to one.
    fn value(&mut self, schema: &Schema, key: Option<&Key>) -> Json {
        let any = self.any(schema, key);
        if matches!(schema, Schema::Text | Schema::Path) && key.is_none_or(|key| key.one_of.is_empty()) {
            return any;
        }
        json!({ "anyOf": [any, { "$ref": "#/definitions/reference" }] })
    }

    fn any(&mut self, schema: &Schema, key: Option<&Key>) -> Json {
        let one_of = key.map_or(&[][..], |key| key.one_of);
        let range = key.and_then(|key| key.range);
        match schema {
            Schema::Optional(inner) => json!({ "anyOf": [self.any(inner, key), { "enum": [null, "None"] }] }),
            Schema::List(inner) => {
                let item = self.value(inner, key);
                let list = json!({ "type": "array", "items": item });
                match key.is_some_and(|key| key.one_or_many) {
                    true => json!({ "anyOf": [list, item] }),
                    false => list,
                }
            }
            Schema::Array(inner, length) => {
                json!({ "type": "array", "items": self.value(inner, key), "minItems": length, "maxItems": length })
            }
            Schema::Map(inner) => json!({ "type": "object", "additionalProperties": self.value(inner, key) }),
            _ if !one_of.is_empty() => json!({ "enum": one_of.iter().map(constant).collect::<Vec<_>>() }),
            Schema::Bool => json!({ "type": "boolean" }),
            Schema::Int { min, max } => {
                let mut number = json!({ "type": "integer" });
                // The bounds of 64 bits are no news, and more than JSON readers hold.
                for (name, bound) in [("minimum", min), ("maximum", max)] {
                    if bound.unsigned_abs() <= u32::MAX.into() {
                        number[name] = whole(*bound);
                    }
                }
                bounded(number, range)
            }
            Schema::Float { .. } => bounded(json!({ "type": "number" }), range),
            Schema::Text | Schema::Path => json!({ "type": "string" }),
            Schema::Choice(choices) => self.defined(choices.name, |_| choice(choices)),
            Schema::Struct(fields) => self.defined(fields.name, |writer| writer.fields(fields, None)),
            Schema::Component(of) => {
                let name = key.and_then(|key| match key.default {
                    Some(Const::Text(name)) => of.find(name),
                    _ => None,
                });
                // Where the key names another default than the type, it is another definition.
                match name.filter(|at| Some(*at) != of.default) {
                    None => self.defined(of.name, |writer| writer.component(of, of.default)),
                    Some(at) => {
                        let name = format!("{} ({} by default)", of.name, of.variants[at].name);
                        self.defined(&name, |writer| writer.component(of, Some(at)))
                    }
                }
            }
            Schema::Broken => json!({}),
        }
    }

    /// A reference to the definition of a type. Types of one name are told apart.
    fn defined(&mut self, name: &str, write: impl FnOnce(&mut Self) -> Json) -> Json {
        let written = write(self);
        let mut unique = name.to_owned();
        let mut count = 1;
        while self.definitions.get(&unique).is_some_and(|other| *other != written) {
            count += 1;
            unique = format!("{name} {count}");
        }
        self.definitions.insert(unique.clone(), written);
        json!({ "$ref": format!("#/definitions/{}", unique.replace(' ', "%20")) })
    }

    /// A mapping with the keys of `fields`, those of a component with its name.
    fn fields(&mut self, fields: &Struct, of: Option<&Variant>) -> Json {
        let mut properties = Map::new();
        let mut required = Vec::new();
        if let Some(variant) = of {
            properties.insert(COMPONENT.into(), json!({ "enum": names(variant.name, variant.aliases) }));
        }
        for key in fields.all_keys() {
            let doc = match key.may_change {
                true => format!("{}\nMay change when a run is resumed.", key.doc),
                false => key.doc.to_owned(),
            };
            let mut property = json!({ "description": doc });
            if let Some(default) = key.default.filter(|default| !matches!(default, Const::OfType)) {
                property["default"] = constant(&default);
            }
            if let (Json::Object(property), Json::Object(value)) = (&mut property, self.value(&key.schema, Some(key))) {
                property.extend(value);
            }
            properties.insert(key.name.into(), property.clone());
            for alias in key.aliases {
                property["description"] = json!(format!("Another name for `{}`. {doc}", key.name));
                properties.insert((*alias).into(), property.clone());
            }
            if key.when_absent().is_none() {
                required.push(json!({
                    "anyOf": names(key.name, key.aliases).iter().map(|name| json!({ "required": [name] })).collect::<Vec<_>>()
                }));
            }
        }
        for ignored in fields.all_ignored() {
            let why = format!("No effect: {}.", ignored.why);
            properties.insert(ignored.name.into(), json!({ "description": why, "deprecationMessage": why }));
        }
        let mut object = json!({ "type": "object", "properties": properties, "additionalProperties": false });
        if !required.is_empty() {
            object["allOf"] = json!(required);
        }
        object
    }

    /// A name, or a mapping whose keys are those of the component that it names.
    fn component(&mut self, component: &Component, default: Option<usize>) -> Json {
        let mut all = Vec::new();
        let mut cases = Vec::new();
        for (at, variant) in component.variants.iter().enumerate() {
            let names = names(variant.name, variant.aliases);
            let keys = self.fields(variant.fields().unwrap_or(&crate::check::NO_KEYS), Some(variant));
            let named = json!({ "properties": { COMPONENT: { "enum": names } }, "required": [COMPONENT] });
            let case = match default == Some(at) {
                true => json!({ "anyOf": [named, { "not": { "required": [COMPONENT] } }] }),
                false => named,
            };
            cases.push(json!({ "if": case, "then": keys }));
            all.extend(names);
        }
        let docs: Vec<_> =
            component.variants.iter().map(|v| format!("- `{}`: {}", v.name, summary(variant_doc(v)))).collect();
        let name = json!({ "enum": all, "description": docs.join("\n") });
        let mut object = json!({ "type": "object", "properties": { COMPONENT: name }, "allOf": cases });
        if default.is_none() {
            object["required"] = json!([COMPONENT]);
        }
        json!({ "anyOf": [name, object] })
    }
}

/// The names of a choice; torchtune writes them as components.
fn choice(choices: &Choices) -> Json {
    let all: Vec<_> = choices.choices.iter().flat_map(|choice| names(choice.name, choice.aliases)).collect();
    let docs: Vec<_> = choices.choices.iter().map(|c| format!("- `{}`: {}", c.name, summary(c.doc))).collect();
    let name = json!({ "enum": all, "description": docs.join("\n") });
    json!({ "anyOf": [
        name,
        { "type": "object", "properties": { COMPONENT: name }, "required": [COMPONENT], "additionalProperties": false },
    ] })
}

fn names(name: &'static str, aliases: &[&'static str]) -> Vec<&'static str> {
    std::iter::once(name).chain(aliases.iter().copied()).collect()
}

fn bounded(mut number: Json, range: Option<Range>) -> Json {
    let Some(range) = range else { return number };
    if let Some(min) = &range.min {
        number["minimum"] = constant(min);
    }
    if let Some(max) = &range.max {
        number[if range.inclusive { "maximum" } else { "exclusiveMaximum" }] = constant(max);
    }
    number
}

fn constant(value: &Const) -> Json {
    match value {
        Const::Null | Const::OfType => Json::Null,
        Const::Bool(value) => json!(value),
        Const::Int(value) => whole(*value),
        Const::Float(value) => json!(value),
        Const::Text(value) => json!(value),
        Const::List(items) => items.iter().map(constant).collect(),
    }
}

fn whole(value: i128) -> Json {
    match (i64::try_from(value), u64::try_from(value)) {
        (Ok(value), _) => json!(value),
        (_, Ok(value)) => json!(value),
        _ => json!(value as f64),
    }
}

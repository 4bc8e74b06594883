//! What a resumed run must have in common with the one that it goes on with.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use tune_config::schema::{Schema, Struct};
use tune_config::{Config, Data, Value};

/// A config's settings by dotted key, for a resumed run to be compared with, without the keys that
/// `#[config(may_change)]` is said of, and what is in them.
pub fn settings<C: Config>(config: &C) -> BTreeMap<String, Json> {
    let mut settings = BTreeMap::new();
    collect(&C::SCHEMA, "", &config.to_value(), &mut settings);
    settings
}

/// What holds where nothing is written, by dotted key: the defaults of all keys that this config has a place for. A run that was begun
/// before there was such a key had this.
pub fn defaults<C: Config>(config: &C) -> BTreeMap<String, Json> {
    let mut defaults = BTreeMap::new();
    collect_defaults(&C::SCHEMA, "", &config.to_value(), &mut defaults);
    defaults
}

fn collect_defaults(schema: &Schema, at: &str, value: &Value, into: &mut BTreeMap<String, Json>) {
    match (&value.data, schema) {
        (_, Schema::Optional(inner)) => collect_defaults(inner, at, value, into),
        (Data::List(items), Schema::List(inner) | Schema::Array(inner, _)) => {
            for (i, item) in items.iter().enumerate() {
                collect_defaults(inner, &below(at, &i.to_string()), item, into);
            }
        }
        (Data::Component(name, fields), Schema::Component(of)) => {
            if let Some(variant) = of.find(name).and_then(|at| of.variants[at].fields) {
                collect_defaults(variant, at, fields, into);
            }
        }
        (Data::Fields(fields), Schema::Struct(Struct { keys, .. })) => {
            for key in keys.iter().filter(|key| !key.may_change) {
                let at = if key.flatten { at.to_string() } else { below(at, key.name) };
                if let Some(default) = key.default_value() {
                    collect(&key.schema, &at, &default, into);
                }
                // Of a component that is chosen, and not of the one that would be.
                if let Some(field) = fields.iter().find(|field| field.name == key.name) {
                    collect_defaults(&key.schema, &at, &field.value, into);
                }
            }
        }
        _ => {}
    }
}

fn below(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_string() } else { format!("{key}.{name}") }
}

fn collect(schema: &Schema, key: &str, value: &Value, into: &mut BTreeMap<String, Json>) {
    let setting = match (&value.data, schema) {
        (_, Schema::Optional(inner)) => return collect(inner, key, value, into),
        (Data::Null, _) => Json::Null,
        (Data::Bool(b), _) => Json::from(*b),
        (Data::Int(i), _) => Json::from(i64::try_from(*i).unwrap_or(i64::MAX)),
        (Data::Float(x), _) => Json::from(*x),
        (Data::Text(text), _) => Json::from(text.as_str()),
        (Data::List(items), _) => {
            let of_items = match schema {
                Schema::List(inner) | Schema::Array(inner, _) => inner,
                other => other,
            };
            for (i, item) in items.iter().enumerate() {
                collect(of_items, &below(key, &i.to_string()), item, into);
            }
            Json::from(format!("{} items", items.len()))
        }
        (Data::Fields(fields), _) => {
            for field in fields {
                let (of_field, may_change) = match schema {
                    Schema::Struct(Struct { keys, .. }) => match keys.iter().find(|key| key.name == field.name) {
                        Some(key) => (&key.schema, key.may_change),
                        None => (schema, false),
                    },
                    Schema::Map(inner) => (*inner, false),
                    other => (other, false),
                };
                if !may_change {
                    collect(
                        of_field,
                        &if field.flat { key.to_string() } else { below(key, &field.name) },
                        &field.value,
                        into,
                    );
                }
            }
            return;
        }
        (Data::Component(name, fields), _) => {
            let variant = match schema {
                Schema::Component(of) => of.find(name).and_then(|at| of.variants[at].fields),
                _ => None,
            };
            collect(variant.unwrap_or(schema), key, fields, into);
            Json::from(name.as_ref())
        }
    };
    into.insert(key.to_string(), setting);
}

#[cfg(test)]
mod tests {
    use tune_config::{Input, load};

    use super::*;
    use crate::optim::OptimizerConfig;

    #[test]
    fn settings_are_named_by_their_keys() {
        let optimizer = load::<OptimizerConfig>(Input::yaml("c.yaml", "_component_: sgd\nlr: 0.5\n")).unwrap();
        let settings = settings(&optimizer.config);
        assert_eq!(settings.get("lr"), Some(&Json::from(0.5)));
        assert_eq!(settings.get(""), Some(&Json::from("sgd")));
    }

    #[test]
    fn defaults_are_those_of_what_is_chosen() {
        let chosen =
            load::<OptimizerConfig>(Input::yaml("c.yaml", "_component_: adamw\nlr: 0.5\nbetas: [0.8, 0.9]\n")).unwrap();
        let (settings, defaults) = (settings(&chosen.config), defaults(&chosen.config));
        assert_eq!((settings["betas.0"].as_f64(), defaults["betas.0"].as_f64()), (Some(0.8), Some(0.9)));
        assert!(!defaults.contains_key("momentum") && !defaults.contains_key(""), "{defaults:?}");
    }

    #[test]
    fn what_may_change_is_none_wherever_it_is() {
        /// A config.
        #[derive(Config)]
        #[config(crate = tune_config)]
        struct Train {
            #[config(flatten)]
            run: Run,
            /// Parts.
            parts: Vec<Part>,
            /// One more, or none.
            last: Option<Part>,
            /// Not a setting, with all that is in it.
            #[config(may_change)]
            shown: Vec<Run>,
        }
        /// Keys among others.
        #[derive(Config)]
        #[config(crate = tune_config)]
        struct Run {
            /// Where results go.
            #[config(may_change)]
            output_dir: String,
            /// Where randomness starts.
            seed: u64,
        }
        /// Of one kind or another.
        #[derive(Config)]
        #[config(crate = tune_config)]
        enum Part {
            #[config(name = "a")]
            A(Run),
            #[config(name = "b")]
            B,
        }
        let run = "output_dir: x, seed: 1";
        let yaml = format!(
            "output_dir: here\nseed: 7\nparts: [{{_component_: a, {run}}}, b]\nlast: {{_component_: a, {run}}}\n\
             shown: [{{{run}}}]\n"
        );
        let config = load::<Train>(Input::yaml("c.yaml", yaml)).unwrap().config;
        let expected = serde_json::json!({
            "seed": 7, "parts": "2 items", "parts.0": "a", "parts.0.seed": 1, "parts.1": "b", "last": "a", "last.seed": 1
        });
        assert_eq!(serde_json::json!(settings(&config)), expected);
        let _ = (config.run.output_dir, config.run.seed, config.parts.len(), config.last.is_some(), config.shown.len());
    }
}

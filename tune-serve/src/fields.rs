//! The keys of a request, each checked.

use serde_json::{Map, Value};

use crate::error::Fault;

/// Keys that change nothing that is answered here.
const OF_NO_MATTER: [&str; 6] = ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"];

/// Keys of OpenAI's that are not understood here, unless their value asks for nothing.
const UNSUPPORTED: [&str; 11] = [
    "suffix",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "functions",
    "function_call",
    "audio",
    "prediction",
    "reasoning_effort",
    "web_search_options",
    "verbosity",
];

/// Texts that end an answer, at most. OpenAI takes four, and tasks of EleutherAI's harness have more.
const MOST_STOPS: usize = 32;

/// A request's object.
pub(crate) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// # Errors
    /// It is no object, or has keys that are not understood.
    pub(crate) fn new(body: &'a Value, known: &[&str]) -> Result<Self, Fault> {
        let Some(object) = body.as_object() else {
            return Err(Fault::new(axum::http::StatusCode::BAD_REQUEST, "invalid_json", "the body is no JSON object"));
        };
        for (key, value) in object {
            if known.contains(&key.as_str()) || OF_NO_MATTER.contains(&key.as_str()) || asks_nothing(value) {
                continue;
            }
            return Err(match UNSUPPORTED.contains(&key.as_str()) {
                true => Fault::unsupported(key, format!("`{key}` is not supported here; leave it out")),
                false => Fault::of(key, "unknown_parameter", format!("there is no parameter `{key}`")),
            });
        }
        Ok(Self(object))
    }

    /// A value that is there and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(key: &str, expected: &str, value: &Value) -> Fault {
        let mut shown = value.to_string();
        if shown.len() > 60 {
            shown.truncate(shown.floor_char_boundary(60));
            shown.push('…');
        }
        Fault::value(key, format!("`{key}` is {shown}; {expected} was expected"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| Self::wrong(key, "a text", value));
        self.get(key).map(text).transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| Self::wrong(key, "true or false", value));
        self.get(key).map(flag).transpose()
    }

    /// A number from `least` to `most`.
    pub(crate) fn number(&self, key: &str, least: f64, most: f64) -> Result<Option<f64>, Fault> {
        let number = |value: &Value| {
            let number = value.as_f64().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| Self::wrong(key, &format!("a number from {least} to {most}"), value))
        };
        self.get(key).map(number).transpose()
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn count(&self, key: &str, least: usize, most: usize) -> Result<Option<usize>, Fault> {
        let count = |value: &Value| {
            let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
            let count = count.filter(|count| (least..=most).contains(count));
            count.ok_or_else(|| Self::wrong(key, &format!("a whole number from {least} to {most}"), value))
        };
        self.get(key).map(count).transpose()
    }

    /// Any whole number, in two's complement.
    pub(crate) fn seed(&self, key: &str) -> Result<Option<u64>, Fault> {
        let seed = |value: &Value| {
            let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
            seed.ok_or_else(|| Self::wrong(key, "a whole number", value))
        };
        self.get(key).map(seed).transpose()
    }

    /// A text, or a list of them.
    pub(crate) fn stops(&self) -> Result<Vec<String>, Fault> {
        let wrong = |value: &Value| {
            Self::wrong("stop", &format!("a text, or a list of at most {MOST_STOPS}, none of them empty"), value)
        };
        let Some(value) = self.get("stop") else { return Ok(Vec::new()) };
        let texts: Option<Vec<String>> = match value {
            Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
            text => text.as_str().map(|text| vec![text.to_owned()]),
        };
        texts
            .filter(|texts| texts.len() <= MOST_STOPS && texts.iter().all(|text| !text.is_empty()))
            .ok_or_else(|| wrong(value))
    }

    /// A list of objects.
    pub(crate) fn objects(&self, key: &str) -> Result<Option<Vec<Map<String, Value>>>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let objects: Option<Vec<_>> =
            value.as_array().and_then(|list| list.iter().map(|entry| entry.as_object().cloned()).collect());
        objects.map(Some).ok_or_else(|| Self::wrong(key, "a list of objects", value))
    }

    /// Whether a stream is asked for, and whether it is to end with the number of tokens.
    pub(crate) fn stream(&self) -> Result<Option<bool>, Fault> {
        let stream = self.flag("stream")?.unwrap_or(false);
        let options = self.get("stream_options");
        if options.is_some() && !stream {
            return Err(Fault::value("stream_options", "`stream_options` is for streams: set `stream` to true"));
        }
        let usage = match options {
            None => false,
            Some(options) => {
                let object = options.as_object().ok_or_else(|| Self::wrong("stream_options", "an object", options))?;
                object.get("include_usage").and_then(Value::as_bool).unwrap_or(false)
            }
        };
        Ok(stream.then_some(usage))
    }
}

/// Whether a value is the one that a key has when it is left out.
fn asks_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Object(object) => object.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_checked() {
        let body = json!({"a": 3, "t": "x", "n": null, "stop": ["a", "b"], "logit_bias": {}, "user": "u", "seed": -1});
        let fields = Fields::new(&body, &["a", "t", "n", "stop", "seed"]).unwrap();
        assert_eq!(fields.count("a", 1, 3), Ok(Some(3)));
        assert_eq!(fields.text("n"), Ok(None));
        assert_eq!(fields.stops(), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(fields.seed("seed"), Ok(Some(u64::MAX)));
        let fault = fields.count("a", 1, 2).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("a"));
        assert_eq!(fault.message, "`a` is 3; a whole number from 1 to 2 was expected");
        assert!(fields.number("t", 0.0, 1.0).is_err_and(|fault| fault.message.contains("\"x\"")));
        let refused = |body: Value| Fields::new(&body, &[]).map(|_| ()).unwrap_err();
        assert_eq!(refused(json!({"logit_bias": {"3": 1}})).code, "unsupported_parameter");
        assert_eq!(refused(json!({"min_p": 0.1})).code, "unknown_parameter");
        assert_eq!(refused(json!([])).code, "invalid_json");
        let long = json!({"stop": "é".repeat(100), "t": 1});
        let fields = Fields::new(&long, &["stop", "t"]).unwrap();
        assert!(fields.count("stop", 0, 1).is_err_and(|fault| fault.message.contains('…')));
        let stops = |n: usize| json!({"stop": vec!["a"; n]});
        assert!(Fields::new(&stops(MOST_STOPS), &["stop"]).unwrap().stops().is_ok());
        assert!(Fields::new(&stops(MOST_STOPS + 1), &["stop"]).unwrap().stops().is_err());
    }
}

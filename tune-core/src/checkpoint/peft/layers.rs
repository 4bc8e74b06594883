//! Which layers an adapter is on, and where its rank or alpha is another: `rank_pattern`, `alpha_pattern`,
//! `exclude_modules`, `layers_to_transform` and `layers_pattern`, matched as peft 0.21 does.

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::config::is_named;

/// What an adapter's config says of single layers. What is empty says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layers {
    /// Ranks by the first expression that fits a module, or ends in it at a dot.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for alphas.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that carry no adapter, though they are among the targets.
    pub exclude_modules: Option<Excluded>,
    /// The only blocks that carry adapters, where modules are named.
    pub layers_to_transform: Vec<u64>,
    /// Expressions for what stands before a block's number; where there are none, anything may.
    pub layers_pattern: Vec<String>,
}

/// Modules that carry no adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excluded {
    /// By their whole names or what these end in.
    Names(Vec<String>),
    /// By an expression for the whole name.
    Pattern(String),
}

/// The keys that are read here.
pub(super) const KEYS: [&str; 5] =
    ["rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform", "layers_pattern"];

impl Layers {
    pub(super) fn parse(config: &Map<String, Value>) -> Result<Self, String> {
        let get = |key: &str| config.get(key).unwrap_or(&Value::Null);
        let wrong = |key: &str, expected: &str| format!("{key} is {}; {expected} was expected", get(key));
        let rank = |value: &Value| Some(value.as_u64().filter(|rank| (1..=1 << 20).contains(rank))? as usize);
        let texts = |key: &str| -> Result<Vec<String>, String> {
            let found = match get(key) {
                Value::Null => Some(Vec::new()),
                Value::String(text) => Some(vec![text.clone()].into_iter().filter(|text| !text.is_empty()).collect()),
                Value::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
                _ => None,
            };
            found.ok_or_else(|| wrong(key, "text or a list of texts"))
        };
        let layers = match get("layers_to_transform") {
            Value::Null => Some(Vec::new()),
            Value::Array(layers) => layers.iter().map(Value::as_u64).collect(),
            layer => layer.as_u64().map(|layer| vec![layer]),
        };
        let excluded = match get("exclude_modules") {
            Value::String(pattern) if !pattern.is_empty() => Some(Excluded::Pattern(pattern.clone())),
            _ => Some(texts("exclude_modules")?).filter(|names| !names.is_empty()).map(Excluded::Names),
        };
        let parsed = Self {
            rank_pattern: pattern(get("rank_pattern"), rank)
                .ok_or_else(|| wrong("rank_pattern", "ranks by modules"))?,
            alpha_pattern: pattern(get("alpha_pattern"), Value::as_f64)
                .ok_or_else(|| wrong("alpha_pattern", "numbers by modules"))?,
            exclude_modules: excluded,
            layers_to_transform: layers.ok_or_else(|| wrong("layers_to_transform", "the numbers of blocks"))?,
            layers_pattern: texts("layers_pattern")?,
        };
        parsed.check_expressions()?;
        // As peft has it.
        if !parsed.layers_to_transform.is_empty() && get("target_modules").is_string() {
            return Err("layers_to_transform cannot be used where target_modules is an expression".to_owned());
        }
        if !parsed.layers_pattern.is_empty() && parsed.layers_to_transform.is_empty() {
            return Err("layers_pattern is used with layers_to_transform alone".to_owned());
        }
        Ok(parsed)
    }

    /// Checks what is to be regular expressions.
    pub(crate) fn check_expressions(&self) -> Result<(), String> {
        let ranks = self.rank_pattern.iter().map(|(key, _)| ("rank_pattern", key));
        let alphas = self.alpha_pattern.iter().map(|(key, _)| ("alpha_pattern", key));
        let places = self.layers_pattern.iter().map(|key| ("layers_pattern", key));
        let excluded = match &self.exclude_modules {
            Some(Excluded::Pattern(pattern)) => Some(("exclude_modules", pattern)),
            Some(Excluded::Names(_)) | None => None,
        };
        ranks.chain(alphas).chain(places).chain(excluded).try_for_each(|(key, text)| regex(text, key).map(drop))
    }

    pub(super) fn write(&self, config: &mut Map<String, Value>, number: impl Fn(f64) -> Value) {
        let ranks: Map<String, Value> = self.rank_pattern.iter().map(|(key, r)| (key.clone(), json!(r))).collect();
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(key, a)| (key.clone(), number(*a))).collect();
        let excluded = match &self.exclude_modules {
            None => Value::Null,
            Some(Excluded::Names(names)) => json!(names),
            Some(Excluded::Pattern(pattern)) => json!(pattern),
        };
        let list = |is_empty: bool, list: Value| if is_empty { Value::Null } else { list };
        let layers = list(self.layers_to_transform.is_empty(), json!(self.layers_to_transform));
        let patterns = list(self.layers_pattern.is_empty(), json!(self.layers_pattern));
        let values = [ranks.into(), alphas.into(), excluded, layers, patterns];
        config.extend(KEYS.map(str::to_owned).into_iter().zip(values));
    }

    /// The rank of the adapter on a module, where it is not the one of all.
    pub(crate) fn rank(&self, module: &str) -> Result<Option<usize>, String> {
        of(&self.rank_pattern, module, "rank_pattern")
    }

    /// The same for its alpha.
    pub(crate) fn alpha(&self, module: &str) -> Result<Option<f64>, String> {
        of(&self.alpha_pattern, module, "alpha_pattern")
    }

    /// The key by which a module, which is one of the targets, carries no adapter; `is_whole` where it is named as a whole.
    pub(crate) fn left_out_by(&self, module: &str, is_whole: bool) -> Result<Option<&'static str>, String> {
        let is_excluded = match &self.exclude_modules {
            None => false,
            Some(Excluded::Names(names)) => names.iter().any(|name| is_named(module, name)),
            Some(Excluded::Pattern(pattern)) => fits(&format!("^(?:{pattern})$"), module, "exclude_modules")?,
        };
        if is_excluded {
            return Ok(Some("exclude_modules"));
        }
        if self.layers_to_transform.is_empty() || is_whole {
            return Ok(None);
        }
        let anything = ["[^.]*".to_owned()];
        let patterns = if self.layers_pattern.is_empty() { &anything[..] } else { &self.layers_pattern };
        for pattern in patterns {
            // A block's number is the first, that of an expert is behind it.
            let begin = if self.layers_pattern.is_empty() { r".*?\." } else { r"(?:.*?\.)?" };
            let expression = regex(&format!(r"^{begin}(?:{pattern})\.(\d+)\."), "layers_pattern")?;
            let found = expression.captures(module).map_err(|e| format!("layers_pattern: {e}"))?;
            // The last, for the pattern may hold groups of its own.
            if let Some(number) = found.and_then(|groups| Some(groups.get(groups.len() - 1)?.as_str().parse::<u64>())) {
                let is_among = number.is_ok_and(|number| self.layers_to_transform.contains(&number));
                return Ok((!is_among).then_some("layers_to_transform"));
            }
        }
        Ok(Some("layers_to_transform"))
    }
}

fn pattern<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Object(pattern) => pattern.iter().map(|(key, value)| Some((key.clone(), read(value)?))).collect(),
        _ => None,
    }
}

/// The value of the first key that fits.
fn of<T: Copy>(pattern: &[(String, T)], module: &str, name: &str) -> Result<Option<T>, String> {
    for (key, value) in pattern {
        if fits(&format!(r"^(?:.*\.)?(?:{key})$"), module, name)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Whether an expression fits a name; `key` is where it stands.
pub(crate) fn fits(expression: &str, module: &str, key: &str) -> Result<bool, String> {
    regex(expression, key)?.is_match(module).map_err(|e| format!("{key}: {e}"))
}

fn regex(expression: &str, key: &str) -> Result<Regex, String> {
    Regex::new(expression).map_err(|e| format!("{key} holds `{expression}`, which is no regular expression: {e}"))
}

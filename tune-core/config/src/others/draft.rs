//! A config of ours while it is put together.

use crate::emit;
use crate::value::Value;

/// The outermost keys, in the order in which they are written; others follow.
const ORDER: [&str; 14] = [
    "output_dir",
    "resume_from_checkpoint",
    "overwrite",
    "checkpointer",
    "ref_checkpointer",
    "tokenizer",
    "model",
    "dataset",
    "dataset_val",
    "shuffle",
    "batch_size",
    "loss",
    "optimizer",
    "lr_scheduler",
];

/// Keys with their values, and where these come from.
#[derive(Debug, Default)]
pub(super) struct Draft {
    keys: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    key: String,
    value: Written,
    /// The key of the other tool's.
    from: String,
}

#[derive(Debug)]
enum Written {
    /// YAML on one line.
    Inline(String),
    Keys(Draft),
    Items(Vec<Draft>),
}

impl Draft {
    /// Writes `yaml`, a value on one line, at a path such as `model.lora_rank`, which comes from their key `from`. What was there
    /// goes.
    pub(super) fn set(&mut self, path: &str, yaml: impl Into<String>, from: &str) {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        if let Some(rest) = rest {
            let found = self.keys.iter_mut().find_map(|line| match &mut line.value {
                Written::Keys(keys) if line.key == first => Some(keys),
                _ => None,
            });
            if let Some(keys) = found {
                return keys.set(rest, yaml, from);
            }
            let mut keys = Self::default();
            keys.set(rest, yaml, from);
            return self.keys.push(Line { key: first.to_owned(), value: Written::Keys(keys), from: String::new() });
        }
        self.keys.retain(|line| line.key != first);
        let line = Line { key: first.to_owned(), value: Written::Inline(yaml.into()), from: from.to_owned() };
        self.keys.push(line);
    }

    /// Writes a text.
    pub(super) fn set_text(&mut self, path: &str, text: &str, from: &str) {
        self.set(path, self::text(text), from);
    }

    /// Writes a list of mappings at an outermost key.
    pub(super) fn set_items(&mut self, key: &str, items: Vec<Self>) {
        self.keys.push(Line { key: key.to_owned(), value: Written::Items(items), from: String::new() });
    }

    /// Whether something is written at an outermost key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|line| line.key == key)
    }

    /// The config as YAML, with their keys in comments.
    pub(super) fn to_yaml(&self) -> String {
        let mut lines: Vec<&Line> = self.keys.iter().collect();
        let place = |line: &&Line| ORDER.iter().position(|key| *key == line.key).unwrap_or(ORDER.len());
        lines.sort_by_key(place);
        let mut out = String::new();
        lines.iter().for_each(|line| line.write(0, &mut out));
        out
    }
}

impl Line {
    fn write(&self, indent: usize, out: &mut String) {
        let key = emit::key(&self.key);
        match &self.value {
            Written::Inline(value) => {
                *out += &format!("{:indent$}{key}: {value}", "");
                if !self.from.is_empty() {
                    *out += &format!("  # {}", self.from);
                }
                out.push('\n');
            }
            Written::Keys(keys) => {
                *out += &format!("{:indent$}{key}:\n", "");
                keys.keys.iter().for_each(|line| line.write(indent + 2, out));
            }
            Written::Items(items) => {
                *out += &format!("{:indent$}{key}:\n", "");
                for item in items.iter().filter(|item| !item.keys.is_empty()) {
                    let start = out.len() + indent + 2;
                    item.keys.iter().for_each(|line| line.write(indent + 4, out));
                    out.replace_range(start..start + 1, "-");
                }
            }
        }
    }
}

/// A text as YAML.
pub(super) fn text(text: &str) -> String {
    emit::inline(&Value::from_text(text))
}

/// Texts as YAML.
pub(super) fn texts<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    let texts: Vec<_> = texts.into_iter().map(text).collect();
    format!("[{}]", texts.join(", "))
}

/// A number as YAML.
pub(super) fn number(number: f64) -> String {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => format!("{}", number as i128),
        false => emit::float(number),
    }
}

//! What a resumed run computes from, where it is somewhere else now: what it holds counts, and not where it is.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::words::count;

/// Keys that say where something is, and what the numbers of its content are called in a checkpoint.
const PLACES: [(&str, &[&str]); 4] = [
    ("checkpointer.checkpoint_dir", &["the base model", "the base model's config"]),
    ("ref_checkpointer.checkpoint_dir", &["the reference model"]),
    ("teacher_checkpointer.checkpoint_dir", &["the teacher"]),
    ("reward_checkpointer.checkpoint_dir", &["the reward model"]),
];
/// Keys of a dataset that say where its records are, and what the number of all records is called.
const OF_DATASETS: ([&str; 3], &[&str]) = (["source", "subset", "data_files"], &["the training data"]);

/// A key that says where something is, and said something else when the run began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    key: String,
    then: Option<Value>,
    now: Option<Value>,
    /// What a checkpoint calls its content, by what of it is needed.
    names: &'static [&'static str],
}

impl Moved {
    /// The change of a key from `then` to `now`, if `inputs` have a number that stands for the content of what it names.
    pub(super) fn of(
        key: &str,
        (then, now): (Option<&Value>, Option<&Value>),
        inputs: &BTreeMap<String, u32>,
    ) -> Option<Self> {
        let names = contents_of(key)?;
        names.iter().any(|name| inputs.contains_key(*name)).then(|| Self {
            key: key.to_owned(),
            then: then.cloned(),
            now: now.cloned(),
            names,
        })
    }

    /// Whether a checkpoint calls its content so.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.names.contains(&name)
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} then, {} now", self.key, shown(self.then.as_ref()), shown(self.now.as_ref()))
    }
}

/// A setting, for messages.
pub(super) fn shown(setting: Option<&Value>) -> String {
    let Some(setting) = setting else { return "not set".to_owned() };
    // So does a list appear among settings.
    let items = setting.as_str().and_then(|text| text.strip_suffix(" items")?.parse::<u64>().ok());
    items.map_or_else(|| setting.to_string(), |items| Value::from(count(items, "item")).to_string())
}

/// What a checkpoint calls the content of what a key names, `dataset.0.data_files.1` for instance.
fn contents_of(key: &str) -> Option<&'static [&'static str]> {
    if let Some(rest) = key.strip_prefix("dataset.") {
        let mut steps = rest.split('.').skip_while(|step| step.parse::<usize>().is_ok());
        return steps.next().filter(|step| OF_DATASETS.0.contains(step)).map(|_| OF_DATASETS.1);
    }
    PLACES.iter().find(|(place, _)| *place == key).map(|(_, names)| *names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_known_by_their_keys() {
        let data: &[&str] = &["the training data"];
        for key in ["dataset.0.data_files", "dataset.12.data_files.3", "dataset.0.source", "dataset.0.subset"] {
            assert_eq!(contents_of(key), Some(data), "{key}");
        }
        assert_eq!(contents_of("ref_checkpointer.checkpoint_dir"), Some(&["the reference model"][..]));
        for key in [
            "dataset",
            "dataset.0",
            "dataset.0.split",
            "dataset.0.columns.source",
            "batch_size",
            "model.base_adapters.0",
        ] {
            assert_eq!(contents_of(key), None, "{key}");
        }
    }
}

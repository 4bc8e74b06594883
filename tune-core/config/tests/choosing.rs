//! Another component is chosen by an override: what both have in common stays, and the rest is told.

use std::path::PathBuf;

use tune_config::{Config, Input, Loaded, load};

/// What to train on.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
enum Data {
    /// Conversations.
    #[config(name = "chat")]
    Chat(Chat),
    /// Questions.
    #[config(name = "pairs")]
    Pairs(Pairs),
}

/// Conversations.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct Chat {
    #[config(flatten)]
    files: Files,
    /// Their names.
    #[config(default)]
    columns: ChatColumns,
}

/// Questions.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct Pairs {
    #[config(flatten)]
    files: Files,
    /// Their names.
    #[config(default)]
    columns: PairColumns,
}

/// The names of columns.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct ChatColumns {
    /// The role.
    #[config(default = "role")]
    role: String,
    /// The text.
    #[config(default = "text")]
    text: String,
}

/// The names of columns.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct PairColumns {
    /// The question.
    #[config(default = "question")]
    question: String,
    /// The text.
    #[config(default = "text")]
    text: String,
}

/// Files and a part of them.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct Files {
    /// The files.
    #[config(default, one_or_many)]
    data_files: Vec<PathBuf>,
    /// The part.
    #[config(default = "train")]
    split: String,
}

/// A config with several datasets, or one.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
struct Sets {
    /// To train on.
    #[config(one_or_many)]
    dataset: Vec<Data>,
    /// To validate on.
    #[config(default, one_or_many)]
    dataset_val: Vec<Data>,
}

fn read(yaml: &str, overrides: &[&str]) -> Result<Loaded<Sets>, String> {
    let input = Input::yaml("a.yaml", yaml).overrides(overrides.iter().copied());
    load::<Sets>(input).map_err(|report| report.to_string())
}

fn good(yaml: &str, overrides: &[&str]) -> Loaded<Sets> {
    read(yaml, overrides).unwrap_or_else(|report| panic!("{yaml}{overrides:?}: {report}"))
}

/// Which components the datasets are, their parts and the numbers of their files.
fn shown(data: &[Data]) -> Vec<(&'static str, &str, usize)> {
    fn one(data: &Data) -> (&'static str, &str, usize) {
        match data {
            Data::Chat(Chat { files, .. }) => ("chat", files.split.as_str(), files.data_files.len()),
            Data::Pairs(Pairs { files, .. }) => ("pairs", files.split.as_str(), files.data_files.len()),
        }
    }
    data.iter().map(one).collect()
}

const KEYS: &str = "_component_: chat, data_files: [a, b], split: 'train[:90%]', columns: {role: r, text: t}";

/// One dataset, by itself and as a list of one.
fn written() -> [String; 2] {
    [format!("dataset: {{{KEYS}}}\n"), format!("dataset: [{{{KEYS}}}]\n")]
}

#[test]
fn a_list_of_one_keeps_what_it_knows() {
    for yaml in written() {
        for over in ["dataset=pairs", "dataset._component_=pairs", "dataset.0=pairs", "dataset.0._component_=pairs"] {
            let loaded = good(&yaml, &[over]);
            assert_eq!(shown(&loaded.config.dataset), [("pairs", "train[:90%]", 2)], "{yaml}{over}");
            let Data::Pairs(pairs) = &loaded.config.dataset[0] else { panic!() };
            assert_eq!(pairs.columns.text, "t");
            let warning = loaded.warnings.to_string();
            let expected = "warning: the key `columns.role` of `chat` is left out: `pairs` has no such key";
            assert!(warning.starts_with(expected), "{over}: {warning}");
        }
    }
    // A whole value takes the place of a whole value.
    assert_eq!(shown(&good(&written()[1], &["dataset=[pairs]"]).config.dataset), [("pairs", "train", 0)]);
    assert_eq!(shown(&good("dataset: chat\n", &["dataset=pairs"]).config.dataset), [("pairs", "train", 0)]);
}

/// A key without its place is that of the only item, also in the config that a run has written.
#[test]
fn a_list_of_one_is_its_item() {
    for yaml in written() {
        let resolved = good(&yaml, &[]).config.to_yaml();
        for yaml in [&yaml, &resolved] {
            for path in ["dataset", "dataset.0"] {
                let config = good(yaml, &[&format!("{path}.split=test")]).config;
                assert_eq!(shown(&config.dataset), [("chat", "test", 2)]);
                let config = good(yaml, &[&format!("~{path}.split")]).config;
                assert_eq!(shown(&config.dataset), [("chat", "train", 2)]);
            }
            // Where none was.
            let config = good(yaml, &["dataset_val._component_=pairs", "dataset_val.data_files=v"]).config;
            assert_eq!(shown(&config.dataset_val), [("pairs", "train", 1)]);
        }
    }
}

#[test]
fn of_several_the_place_is_asked_for() {
    let yaml = "dataset: [{_component_: chat, split: a}, {_component_: chat}]\n";
    let told = |over: &str| read(yaml, &[over]).map(|loaded| loaded.config).unwrap_err();
    let error = told("dataset=pairs");
    assert!(error.contains("`dataset` is a list of 2") && error.contains("`dataset.0=pairs`"), "{error}");
    for over in ["dataset.split=x", "~dataset.split"] {
        let error = told(over);
        assert!(error.contains("its items are 0 to 1") && error.contains("first: `dataset.0.split`"), "{error}");
    }
    // The advice leads on.
    let config = good(yaml, &["dataset.0=pairs", "dataset.0.split=x"]).config;
    assert_eq!(shown(&config.dataset), [("pairs", "x", 0), ("chat", "train", 0)]);
    assert_eq!(shown(&good(yaml, &["dataset=[pairs]"]).config.dataset), [("pairs", "train", 0)]);
    // Where nothing is lost, they are replaced.
    assert_eq!(shown(&good("dataset: [chat, pairs]\n", &["dataset=pairs"]).config.dataset), [("pairs", "train", 0)]);
}

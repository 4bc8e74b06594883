//! The explanations of the codes: their examples are what they say.

mod common;

use common::{LEAST, read};
use tune_config::codes::{self, Code, EXPLANATIONS, Example, Explanation, explain};
use tune_config::{Config, Input, Mismatch, Schema, Value, load};

/// What is said about an example: it is a part of a config, but for those that are all of one.
fn told(explanation: &Explanation, example: Example) -> Option<String> {
    let whole = [codes::MISSING_KEY, codes::NO_COMPONENT, codes::NO_CONFIG].contains(&explanation.code);
    let (yaml, overrides) = match example {
        // The config of the tests lacks only what it would be given.
        Example::Yaml(yaml) if explanation.code == codes::NO_COMPONENT => {
            (format!("output_dir: out\n{yaml}\n"), &[][..])
        }
        Example::Yaml(yaml) if whole => (yaml.to_owned(), &[][..]),
        Example::Yaml(yaml) => (format!("{LEAST}{yaml}\n"), &[][..]),
        Example::Overrides(overrides) => (LEAST.to_owned(), overrides),
    };
    read(&yaml, overrides).err()
}

/// A part of a dataset, such as `train[:10%]`.
struct Split(String);

impl Config for Split {
    const SCHEMA: Schema = Schema::Text;

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        let text = value.text()?;
        match text.contains('[') == text.ends_with(']') {
            true => Ok(Self(text.to_owned())),
            false => Err(value.refuse(format!("`{text}` is no split such as `train[:10%]`"))),
        }
    }

    fn to_value(&self) -> Value {
        Value::from_text(&self.0)
    }
}

/// A config with a type of its own.
#[derive(Config)]
#[config(crate = tune_config)]
struct Data {
    /// The part to take.
    split: Split,
}

#[test]
fn a_type_of_its_own_refuses() {
    let told = |example| match example {
        Example::Yaml(yaml) => load::<Data>(Input::yaml("a.yaml", yaml)).err().map(|report| report.to_string()),
        Example::Overrides(_) => None,
    };
    let refused = explain("E0029").expect("it is in the table");
    assert!(told(refused.wrong).is_some_and(|report| report.starts_with("error[E0029]: `train[` is no split")));
    assert_eq!(told(refused.right), None);
}

#[test]
fn every_code_is_explained_by_examples_that_are_true() {
    for explanation in EXPLANATIONS.iter().filter(|explanation| explanation.code != codes::REFUSED) {
        let code = explanation.code;
        let wrong = told(explanation, explanation.wrong).unwrap_or_default();
        assert!(wrong.contains(&format!("error[{code}]")), "{code}: {wrong}");
        let others = wrong.matches("error[E").count() - wrong.matches(&format!("error[{code}]")).count();
        assert_eq!(others, 0, "{code}: {wrong}");
        assert_eq!(told(explanation, explanation.right), None, "{code}");
    }
}

#[test]
fn codes_are_in_order_and_found() {
    assert!(EXPLANATIONS.windows(2).all(|pair| pair[0].code < pair[1].code));
    assert_eq!(explain("e0020").map(|explanation| explanation.code), Some(codes::UNKNOWN_KEY));
    assert!(explain("E9999").is_none());
    let text = explain("E0040").map(ToString::to_string).unwrap_or_default();
    assert!(text.starts_with("E0040: this is no override\n\n"), "{text}");
    assert!(text.ends_with("Wrong:\n\n    epochs 2\n\nRight:\n\n    epochs=2\n"), "{text}");
}

/// Whatever the other tests saw is in the table.
#[test]
fn no_message_has_a_code_without_an_explanation() -> std::io::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for file in std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots"))? {
        let text = std::fs::read_to_string(file?.path())?;
        seen.extend(text.match_indices("error[E").filter_map(|(at, _)| text[at + 7..at + 11].parse().ok().map(Code)));
    }
    assert!(seen.len() > 12, "{seen:?}");
    for code in seen {
        assert!(explain(&code.to_string()).is_some(), "{code}");
    }
    Ok(())
}

//! What a row of the tables can say.

use tune_yaml::{Kind, Node, Scalar, Value};

/// What becomes of a key.
#[derive(Clone, Copy)]
pub(super) struct KeyRule {
    pub(super) key: &'static str,
    pub(super) rule: Rule,
}

#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// A key that is not in our schema and has no effect here: why.
    Ignored(&'static str),
    /// A key that is not in our schema: here it is as one of these values says. Other values
    /// are refused: what is missing, and what to do.
    Only { values: &'static [&'static str], missing: &'static str, instead: &'static str },
    /// A key without effect here, whose value says what is done anyway: whether it does, and why the key has no
    /// effect. Other values are refused: what is missing, and what to do.
    AsHere { is: fn(&Node) -> bool, why: &'static str, missing: &'static str, instead: &'static str },
    /// A key of our schema, where its value is of a kind without a meaning here: which, and why.
    IgnoredIf(fn(&Node) -> bool, &'static str),
    /// A key of our schema whose value is written in another way here; `None` leaves it.
    Rewritten(fn(&Node) -> Option<String>, &'static str),
}

/// A component that is one of ours under other keys or defaults.
pub(super) struct Taken {
    /// torchtune's path.
    pub(super) path: &'static str,
    /// Our name.
    pub(super) ours: &'static str,
    /// What a user of the original would miss.
    pub(super) loses: Option<&'static str>,
    /// Its own keys.
    pub(super) keys: &'static [KeyRule],
    /// Why all keys that are unknown here have no effect, where that is so.
    pub(super) rest: Option<&'static str>,
    /// What the original takes where nothing is written.
    pub(super) defaults: &'static [TheirDefault],
}

impl Taken {
    pub(super) const fn new(path: &'static str, ours: &'static str) -> Self {
        Self { path, ours, loses: None, keys: &[], rest: None, defaults: &[] }
    }

    pub(super) const fn loses(mut self, what: &'static str) -> Self {
        self.loses = Some(what);
        self
    }

    pub(super) const fn keys(mut self, keys: &'static [KeyRule]) -> Self {
        self.keys = keys;
        self
    }

    pub(super) const fn rest(mut self, why: &'static str) -> Self {
        self.rest = Some(why);
        self
    }

    pub(super) const fn defaults(mut self, defaults: &'static [TheirDefault]) -> Self {
        self.defaults = defaults;
        self
    }
}

/// A default that is not ours.
pub(super) struct TheirDefault {
    pub(super) key: &'static str,
    /// The value, as YAML on one line.
    pub(super) value: &'static str,
    /// It does not hold where one of these keys is written.
    pub(super) unless: &'static [&'static str],
}

impl TheirDefault {
    pub(super) const fn new(key: &'static str, value: &'static str) -> Self {
        Self { key, value, unless: &[] }
    }

    /// A dataset on the Hugging Face hub, which files take the place of.
    pub(super) const fn hub(source: &'static str) -> Self {
        Self { key: "source", value: source, unless: &["data_files"] }
    }
}

/// Something that there is not here.
pub(super) struct Refused {
    /// How its path begins.
    pub(super) prefix: &'static str,
    /// What it is, in the plural.
    pub(super) what: &'static str,
    /// What to do.
    pub(super) instead: &'static str,
}

pub(super) const fn ignored(key: &'static str, why: &'static str) -> KeyRule {
    KeyRule { key, rule: Rule::Ignored(why) }
}

pub(super) const fn ignored_if(key: &'static str, is: fn(&Node) -> bool, why: &'static str) -> KeyRule {
    KeyRule { key, rule: Rule::IgnoredIf(is, why) }
}

pub(super) const fn only(
    key: &'static str,
    values: &'static [&'static str],
    missing: &'static str,
    instead: &'static str,
) -> KeyRule {
    KeyRule { key, rule: Rule::Only { values, missing, instead } }
}

/// Whether a value is null or one of those that are written in the table.
pub(super) fn is_among(value: &Node, values: &[&str]) -> bool {
    let Value::Scalar(scalar) = &value.value else { return false };
    let same = |text: &&str| {
        Scalar::plain(*text).kind() == scalar.kind() && scalar.kind() != Kind::Text || *text == scalar.text
    };
    scalar.kind() == Kind::Null || values.iter().any(same)
}

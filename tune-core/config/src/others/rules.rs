//! What a row of a tool's table can say.

use super::Tool;
use super::given::Given;
use crate::report::Diagnostic;

/// What becomes of some keys.
pub(super) struct Row {
    pub(super) keys: &'static [&'static str],
    pub(super) rule: Rule,
}

/// What becomes of a key.
pub(super) enum Rule {
    /// Its value is that of our key.
    Ours(&'static str, Kind),
    /// It is read together with others: what becomes of it, in words.
    Read(&'static str),
    /// It has no meaning here: why.
    Meaningless(&'static str),
    /// It is not supported, unless its value is null or one of `off`.
    Missing(Missing),
    /// The tool itself refuses it: what to write instead.
    Removed(&'static str),
    /// A mapping, or a list of mappings, with keys of its own.
    Inside(&'static [&'static [Row]]),
}

/// What there is not here.
#[derive(Clone, Copy)]
pub(super) struct Missing {
    /// Values that ask for nothing.
    pub(super) off: &'static [&'static str],
    /// What is missing.
    pub(super) missing: &'static str,
    /// What to do.
    pub(super) instead: &'static str,
}

/// What a value must be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole number, no smaller.
    Whole(i128),
    Number,
    Bool,
    /// A text or several.
    Texts,
    /// Whole numbers.
    Wholes,
    /// Numbers by name.
    Numbers,
}

impl Kind {
    /// The kind in words.
    pub(super) fn words(self) -> String {
        let words = match self {
            Self::Whole(least) => return format!("a whole number of at least {least}"),
            Self::Number => "a number",
            Self::Bool => "true or false",
            Self::Texts => "a text or a list of texts",
            Self::Wholes => "a list of whole numbers",
            Self::Numbers => "numbers by name",
        };
        words.to_owned()
    }
}

/// A key that has no effect in the tool itself, as others in the file are.
pub(super) struct NoEffect {
    pub(super) keys: &'static [&'static str],
    /// Whether it has none.
    pub(super) when: fn(Given<'_>) -> bool,
    /// Why.
    pub(super) why: &'static str,
}

/// A combination of keys that the tool itself refuses.
pub(super) struct Refusal {
    /// Whether it is written.
    is_written: fn(Given<'_>) -> bool,
    /// The key that is shown.
    key: &'static str,
    message: &'static str,
    instead: &'static str,
}

impl Refusal {
    /// What the tool says of a file, if it has the combination.
    pub(super) fn of(&self, tool: &Tool, given: Given<'_>) -> Option<Diagnostic> {
        let entry = given.entry(self.key).filter(|_| (self.is_written)(given))?;
        Some(tool.refuses(self.message).at(entry.key_span, "").help(self.instead))
    }
}

pub(super) const fn refusal(
    is_written: fn(Given<'_>) -> bool,
    key: &'static str,
    message: &'static str,
    instead: &'static str,
) -> Refusal {
    Refusal { is_written, key, message, instead }
}

pub(super) const fn ours(keys: &'static [&'static str], ours: &'static str, kind: Kind) -> Row {
    Row { keys, rule: Rule::Ours(ours, kind) }
}

pub(super) const fn read(keys: &'static [&'static str], becomes: &'static str) -> Row {
    Row { keys, rule: Rule::Read(becomes) }
}

pub(super) const fn meaningless(keys: &'static [&'static str], why: &'static str) -> Row {
    Row { keys, rule: Rule::Meaningless(why) }
}

pub(super) const fn missing(
    keys: &'static [&'static str],
    off: &'static [&'static str],
    missing: &'static str,
    instead: &'static str,
) -> Row {
    Row { keys, rule: Rule::Missing(Missing { off, missing, instead }) }
}

pub(super) const fn removed(keys: &'static [&'static str], instead: &'static str) -> Row {
    Row { keys, rule: Rule::Removed(instead) }
}

pub(super) const fn inside(keys: &'static [&'static str], rows: &'static [&'static [Row]]) -> Row {
    Row { keys, rule: Rule::Inside(rows) }
}

pub(super) const fn no_effect(
    keys: &'static [&'static str],
    when: fn(Given<'_>) -> bool,
    why: &'static str,
) -> NoEffect {
    NoEffect { keys, when, why }
}

/// The row of a key.
pub(super) fn find(tables: &[&'static [Row]], key: &str) -> Option<&'static Row> {
    tables.iter().copied().flatten().find(|row| row.keys.contains(&key))
}

/// A switch that is off.
pub(super) const OFF: &[&str] = &["false", "0"];

/// Of activations that others move away from a card.
pub(super) const ACTIVATIONS_STAY: &str = "activations stay in the memory of what computes them";
pub(super) const ACTIVATIONS_TO_DISK: &str = "set enable_activation_checkpointing=true; on the processor, \
                                              activation_offload_dir=FOLDER keeps what that leaves in a file";
/// Of a file of settings for DeepSpeed.
pub(super) const DEEPSPEED: &str = "several processes are started by `tune run --nproc-per-node N`; what its `offload_optimizer` has on a \
                                    disk (`nvme`), optimizer.offload_dir=FOLDER keeps in a file, on the processor";

//! A file of another tool made into a config of ours.

use tune_yaml::{Entry, Kind as Stands, Node, Scalar, Span, Value};

use super::draft::{self, Draft};
use super::given::{Given, number};
use super::rules::{Kind, Missing, Row, Rule, find};
use super::{Tool, unknown};
use crate::codes;
use crate::emit;
use crate::report::{Diagnostic, Level};

/// What a file is for.
pub(super) struct Recipe {
    pub(super) name: &'static str,
    /// Whether adapters are trained, and not all weights.
    pub(super) adapters: bool,
}

/// A conversion on its way.
pub(super) struct Conversion<'a> {
    pub(super) tool: &'static Tool,
    pub(super) given: Given<'a>,
    pub(super) recipe: Recipe,
    pub(super) draft: Draft,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Keys without a meaning here, and why they have none.
    meaningless: Vec<(Span, String, String)>,
}

impl<'a> Conversion<'a> {
    pub(super) fn new(tool: &'static Tool, given: Given<'a>, recipe: Recipe) -> Self {
        let (draft, diagnostics, meaningless) = (Draft::default(), Vec::new(), Vec::new());
        Self { tool, given, recipe, draft, diagnostics, meaningless }
    }

    /// Applies a table to the keys of a mapping, or of each mapping of a list.
    pub(super) fn rows(&mut self, node: &'a Node, rows: &[&'static [Row]]) {
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::List(items) => return items.iter().for_each(|item| self.rows(item, rows)),
            _ => return,
        };
        for entry in entries {
            let Some(row) = find(rows, &entry.key) else {
                self.diagnostics.push(unknown(self.tool, entry, rows));
                continue;
            };
            if entry.value.is_null() {
                continue;
            }
            match &row.rule {
                Rule::Ours(path, kind) => self.ours(entry, path, *kind),
                Rule::Read(_) => {}
                Rule::Meaningless(why) => self.meaningless(entry, *why),
                Rule::Missing(missing) => self.missing_unless_off(entry, *missing),
                Rule::Removed(instead) => self.diagnostics.push(removed(self.tool, entry, instead)),
                Rule::Inside(rows) => self.rows(&entry.value, rows),
            }
        }
    }

    /// A value of theirs at a key of ours.
    pub(super) fn ours(&mut self, entry: &Entry, path: &str, kind: Kind) {
        if !fits(&entry.value, kind) {
            let (key, words) = (&entry.key, kind.words());
            let error = Diagnostic::error(codes::WRONG_TYPE, format!("`{key}` must be {words}"));
            return self.diagnostics.push(error.at(entry.value.span, format!("expected {words}")));
        }
        if !self.recipe.adapters && (path.starts_with("model.") || path.starts_with("loraplus")) {
            return self.meaningless(entry, "all weights are trained, and no adapters");
        }
        let value = match kind {
            Kind::Texts => draft::texts(super::given::texts(&entry.value)),
            Kind::Whole(_) => number(&entry.value).map(draft::number).unwrap_or_default(),
            Kind::Number if matches!(&entry.value.value, Value::Scalar(Scalar { quoted: true, .. })) => {
                entry.value.as_str().unwrap_or_default().to_owned()
            }
            _ => emit::inline_node(&entry.value),
        };
        self.draft.set(path, value, &entry.key);
    }

    /// Says that a key has no meaning here.
    pub(super) fn meaningless(&mut self, entry: &Entry, why: impl Into<String>) {
        self.meaningless.push((entry.key_span, entry.key.clone(), why.into()));
    }

    fn missing_unless_off(&mut self, entry: &Entry, missing: Missing) {
        if !is_among(&entry.value, missing.off) {
            self.missing(entry, missing.missing, missing.instead);
        }
    }

    /// Says that what a key asks for is not supported: what is missing, and what to do.
    pub(super) fn missing(&mut self, entry: &Entry, missing: impl std::fmt::Display, instead: impl Into<String>) {
        let warning = Diagnostic::warning(format!("`{}` has no exact counterpart: {missing}", entry.key));
        self.diagnostics.push(warning.at(entry.key_span, "").help(instead));
    }

    /// Says something of the file as a whole.
    pub(super) fn remark(&mut self, message: impl Into<String>, instead: impl Into<String>) {
        self.diagnostics.push(Diagnostic::warning(message).help(instead));
    }

    /// Says that no recipe here can do what a key asks for.
    pub(super) fn refuse(&mut self, node: &Node, message: impl Into<String>, instead: impl Into<String>) {
        self.diagnostics.push(*refusal(node.span, message, instead));
    }

    /// Their number at our key, if it is written; else their default, if there is one that is not ours.
    pub(super) fn number_or(&mut self, path: &str, theirs: &str, default: Option<&str>) {
        let Some(entry) = self.given.entry(theirs) else {
            if let Some(default) = default {
                self.draft.set(path, default, &format!("default of {}", self.tool.name));
            }
            return;
        };
        match number(&entry.value) {
            Some(_) => self.draft.set(path, entry.value.as_str().unwrap_or_default(), &entry.key),
            None => self.ours(entry, path, Kind::Number),
        }
    }

    /// The config, and everything that is said of it.
    pub(super) fn end(mut self) -> (Recipe, Draft, Vec<Diagnostic>, Vec<String>) {
        let names = self.meaningless.iter().map(|(_, key, why)| format!("{key}: {why}")).collect();
        let message = match self.meaningless.len() {
            1 => "1 key has no meaning here".to_owned(),
            n => format!("{n} keys have no meaning here"),
        };
        let mut labels = self.meaningless.into_iter();
        if let Some((span, _, why)) = labels.next() {
            let warning = Diagnostic::warning(message).at(span, why);
            self.diagnostics.push(labels.fold(warning, |warning, (span, _, why)| warning.also(span, why)));
        }
        self.diagnostics.sort_by_key(|diagnostic| {
            (diagnostic.level == Level::Warning, diagnostic.primary.as_ref().map(|(span, _)| span.start))
        });
        (self.recipe, self.draft, self.diagnostics, names)
    }
}

/// An error: no recipe here can do this.
pub(super) fn refusal(span: Span, message: impl Into<String>, instead: impl Into<String>) -> Box<Diagnostic> {
    Box::new(Diagnostic::error(codes::NOT_HERE, message).at(span, "asked for here").help(instead))
}

/// An error of the tool's own.
pub(super) fn removed(tool: &Tool, entry: &Entry, instead: &str) -> Diagnostic {
    let message = format!("{} {} refuses `{}`", tool.name, tool.version, entry.key);
    Diagnostic::error(codes::NOT_HERE, message).at(entry.key_span, "").help(instead)
}

/// Whether a value is of a kind.
fn fits(node: &Node, kind: Kind) -> bool {
    let each = |of: fn(&Node) -> bool| match &node.value {
        Value::List(items) => items.iter().all(of),
        _ => of(node),
    };
    let whole = |node: &Node| number(node).is_some_and(|number| number.fract() == 0.0 && number.abs() < 1e15);
    match kind {
        Kind::Whole(least) => whole(node) && number(node).is_some_and(|number| number >= least as f64),
        Kind::Number => number(node).is_some_and(f64::is_finite),
        Kind::Bool => matches!(&node.value, Value::Scalar(scalar) if matches!(scalar.kind(), Stands::Bool(_))),
        Kind::Texts => each(|node| node.as_str().is_some()),
        Kind::Wholes => each(|node| number(node).is_some_and(|number| number.fract() == 0.0)),
        Kind::Numbers => match &node.value {
            Value::Map(entries) => entries.iter().all(|entry| number(&entry.value).is_some()),
            _ => false,
        },
    }
}

/// Whether a value is one of those that are written in a table.
fn is_among(value: &Node, values: &[&str]) -> bool {
    let Value::Scalar(scalar) = &value.value else {
        return match &value.value {
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            _ => false,
        };
    };
    let same = |text: &&str| {
        let listed = Scalar::plain(*text);
        *text == scalar.text
            || listed.kind() == scalar.kind() && scalar.kind() != Stands::Text
            || number(value).is_some_and(|number| text.parse() == Ok(number))
    };
    values.iter().any(same)
}

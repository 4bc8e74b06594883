//! The tables applied to what was read.

use tune_yaml::{Entry, Node, Scalar, SourceId, Span, Value};

use super::components::{REFUSED, TAKEN};
use super::rules::{KeyRule, Rule, Taken, TheirDefault, is_among};
use super::{files, generation, is_torchtune, keys};
use crate::codes;
use crate::overrides::relocate;
use crate::report::{DEFAULTS, Diagnostic};
use crate::schema::{COMPONENT, Choices, Component, Schema, Struct};

/// What was found.
#[derive(Default)]
pub(crate) struct Translation {
    /// Everything that is written in another way here.
    pub(crate) changes: Vec<Change>,
    /// Keys that were taken out, for the warning about keys without effect.
    pub(crate) dropped: Vec<Dropped>,
    /// Errors, and warnings other than that one.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// A key that was taken out, and why.
pub(crate) struct Dropped {
    pub(crate) span: Span,
    pub(crate) key: String,
    pub(crate) why: &'static str,
}

/// What is written in another way here.
pub(crate) struct Change {
    /// The key or value that it is about.
    pub(crate) span: Span,
    pub(crate) what: What,
    pub(crate) why: String,
}

pub(crate) enum What {
    /// Another text stands there.
    Replaced(String),
    /// The key goes.
    Removed(Entry),
    /// Keys stand beside it, with these values; where it is a component without keys, in it.
    Added { keys: Vec<(String, String)>, component: Option<String> },
}

/// Makes ours of what was read from the file `text`, as far as it is torchtune's; `root` has the overrides in it.
pub(crate) fn translate(schema: &Schema, root: &mut Node, text: &str, file: SourceId) -> Translation {
    let mut translator = Translator { torchtune: is_torchtune(root, file), qlora: None, out: Translation::default() };
    if translator.torchtune {
        if let Some(refused) = files::refusal(schema, root) {
            translator.out.diagnostics.push(refused);
            root.value = Value::Reported;
            return translator.out;
        }
        translator.out.diagnostics.extend(files::processes(root, text, file));
        translator.out.diagnostics.extend(files::accumulation(root));
        translator.qlora = files::qlora(text, file);
        generation::translate(schema, root, &mut translator.out);
    }
    translator.value(schema, root, "", false);
    translator.out
}

struct Translator {
    torchtune: bool,
    /// Where the file, without what overrides it, names a builder of QLoRA.
    qlora: Option<Span>,
    out: Translation,
}

impl Translator {
    fn value(&mut self, schema: &Schema, node: &mut Node, section: &str, one_or_many: bool) {
        if node.is_null() {
            return;
        }
        match (schema, &mut node.value) {
            (Schema::Optional(inner), _) => self.value(inner, node, section, one_or_many),
            (Schema::List(inner) | Schema::Array(inner, _), Value::List(items)) => {
                items.iter_mut().for_each(|item| self.value(inner, item, section, false));
            }
            (Schema::List(inner), _) if one_or_many => self.value(inner, node, section, false),
            (Schema::Map(inner), Value::Map(entries)) => {
                entries.iter_mut().for_each(|entry| self.value(inner, &mut entry.value, section, false));
            }
            (Schema::Struct(fields), _) => {
                if section == "model" {
                    self.quantized(fields, node);
                }
                self.fields(fields, node, section, None);
                if section.is_empty() {
                    self.defaults(fields, node, keys::DEFAULTS, Span::new(DEFAULTS, 0, 0), None);
                }
            }
            (Schema::Component(component), _) => self.component(component, node, section),
            (Schema::Choice(choices), _) => self.choice(choices, node),
            _ => {}
        }
    }

    /// A base model in four bits is asked for by the name of its builder, in the file or behind it. An override that says which model
    /// it is in our words (`model.architecture=null`) leaves the base as the file's builder has it.
    fn quantized(&mut self, fields: &Struct, model: &mut Node) {
        let Value::Map(entries) = &mut model.value else { return };
        let named = entries.iter_mut().find(|entry| entry.key == COMPONENT).map(|entry| &mut entry.value);
        let theirs = |name: &str| name.starts_with("torchtune.models.");
        let span = match named {
            Some(named) if named.as_str().is_some_and(theirs) => {
                let Some(name) = named.as_str().filter(|name| name.contains(".qlora_")) else { return };
                let (plain, span) = (name.replace(".qlora_", ".lora_"), named.span);
                named.value = Value::Scalar(Scalar::plain(plain));
                span
            }
            _ => match self.qlora {
                Some(span) => span,
                None => return,
            },
        };
        if keys::OF_QLORA.iter().any(|default| fields.find(default.key).is_none()) {
            let instead =
                "name the builder of plain LoRA (lora_ for qlora_): the base model takes four times the memory";
            let error = Diagnostic::error(codes::NOT_HERE, keys::NO_QUANTIZING);
            self.out.diagnostics.push(error.at(span, "the model is chosen here").help(instead));
            return;
        }
        self.defaults(fields, model, keys::OF_QLORA, span, None);
    }

    fn fields(&mut self, fields: &Struct, node: &mut Node, section: &str, of: Option<&Taken>) {
        let Value::Map(entries) = &mut node.value else { return };
        let general = if self.torchtune { keys::of(section) } else { &[] };
        let own = of.map_or(&[][..], |taken| taken.keys);
        let rest = of.and_then(|taken| taken.rest);
        entries.retain_mut(|entry| {
            let is_key = fields.find(&entry.key).is_some();
            let known = is_key || fields.find_ignored(&entry.key).is_some();
            let applies = |rule: &&KeyRule| !(is_key && matches!(rule.rule, Rule::AsHere { .. }));
            let mut rules = own.iter().chain(general).filter(applies);
            let kept = rules.all(|rule| rule.key != entry.key || self.keeps(rule, known, entry, section));
            match rest {
                Some(why) if kept && !known && entry.key != COMPONENT => self.drop(entry, why),
                _ => kept,
            }
        });
        for entry in entries {
            if let Some(key) = fields.find(&entry.key) {
                if key.name != entry.key {
                    self.replace(entry.key_span, key.name.to_owned(), String::new());
                }
                let path = if section.is_empty() { key.name.to_owned() } else { format!("{section}.{}", key.name) };
                self.value(&key.schema, &mut entry.value, &path, key.one_or_many);
            } else if let Some(ignored) = fields.find_ignored(&entry.key) {
                let (span, what) = (entry.key_span, What::Removed(entry.clone()));
                self.out.changes.push(Change { span, what, why: ignored.why.to_owned() });
            }
        }
    }

    /// What a rule does with an entry; false: it goes.
    fn keeps(&mut self, rule: &KeyRule, known: bool, entry: &mut Entry, section: &str) -> bool {
        match rule.rule {
            Rule::Ignored(why) if !known => self.drop(entry, why),
            Rule::IgnoredIf(is, why) if is(&entry.value) => self.drop(entry, why),
            Rule::Only { values, missing, .. } if !known && is_among(&entry.value, values) => self.drop(entry, missing),
            Rule::AsHere { is, why, .. } if entry.value.is_null() || is(&entry.value) => self.drop(entry, why),
            Rule::AsHere { missing, instead, .. } => self.refuse(entry, section, missing, instead),
            Rule::Only { missing, instead, .. } if !known => self.refuse(entry, section, missing, instead),
            Rule::Rewritten(new, why) => {
                if let Some(new) = new(&entry.value) {
                    self.replace(entry.value.span, new.clone(), why.to_owned());
                    entry.value.value = Value::Scalar(Scalar::plain(new));
                }
                true
            }
            _ => true,
        }
    }

    /// The key goes, with an error.
    fn refuse(&mut self, entry: &Entry, section: &str, missing: &str, instead: &str) -> bool {
        let key = if section.is_empty() { entry.key.clone() } else { format!("{section}.{}", entry.key) };
        let span = if matches!(entry.value.value, Value::Scalar(_)) { entry.value.span } else { entry.key_span };
        self.out
            .diagnostics
            .push(Diagnostic::error(codes::NOT_HERE, missing).at(span, format!("asked for by `{key}`")).help(instead));
        false
    }

    fn component(&mut self, component: &Component, node: &mut Node, section: &str) {
        let map = matches!(node.value, Value::Map(_));
        let named = match &mut node.value {
            Value::Map(entries) => {
                entries.iter_mut().find(|entry| entry.key == COMPONENT).map(|entry| &mut entry.value)
            }
            Value::Scalar(_) => Some(&mut *node),
            _ => None,
        };
        let named = named.filter(|named| !named.is_null());
        let Some((name, named)) = named.and_then(|named| Some((named.as_str()?.to_owned(), named))) else {
            let default = component.default.and_then(|at| component.variants.get(at)).and_then(|it| it.fields());
            return default.into_iter().for_each(|fields| self.fields(fields, node, section, None));
        };
        let span = named.span;
        // One name can stand for a component of one recipe and for another of the next.
        let known = component.find(&name).map(|at| component.variants[at].name);
        let is_here = |taken: &&Taken| known.map_or(component.find(taken.ours).is_some(), |known| known == taken.ours);
        let taken = TAKEN.iter().filter(|taken| taken.path == name).find(is_here);
        let found = component.find(&name).or_else(|| component.find(taken?.ours));
        let Some(variant) = found.map(|at| &component.variants[at]) else {
            if let Some(refused) = REFUSED.iter().find(|refused| name.starts_with(refused.prefix)) {
                self.out.diagnostics.push(
                    Diagnostic::error(codes::NOT_HERE, format!("{} are not supported", refused.what))
                        .at(span, "the component is chosen here")
                        .help(refused.instead),
                );
                node.value = Value::Reported;
            }
            return;
        };
        if let Some(loses) = taken.and_then(|taken| taken.loses) {
            let warning = Diagnostic::warning(format!("`{name}` is taken as `{}`", variant.name));
            self.out.diagnostics.push(warning.at(span, loses));
        }
        if variant.name != name {
            let loses = taken.and_then(|taken| taken.loses).unwrap_or_default();
            self.replace(span, variant.name.to_owned(), loses.to_owned());
            named.value = Value::Scalar(Scalar::plain(variant.name));
        }
        let Some(fields) = variant.fields() else { return };
        if let Some(taken) = taken.filter(|_| self.torchtune) {
            let alone = (!map).then_some(variant.name);
            self.defaults(fields, node, taken.defaults, span, alone);
        }
        self.fields(fields, node, section, taken);
    }

    /// Adds what torchtune takes where nothing is written; `alone` is the component that `node` is without keys.
    fn defaults(
        &mut self,
        fields: &Struct,
        node: &mut Node,
        defaults: &[TheirDefault],
        span: Span,
        alone: Option<&str>,
    ) {
        if !self.torchtune {
            return;
        }
        let mut keys = Vec::new();
        for default in defaults {
            let written = |key: &str| node.get(key).is_some_and(|entry| !entry.value.is_null());
            if fields.find(default.key).is_none()
                || written(default.key)
                || default.unless.iter().any(|key| written(key))
            {
                continue;
            }
            let Ok(mut value) = tune_yaml::parse(default.value, DEFAULTS) else { continue };
            relocate(&mut value, span);
            let entry = Entry { key: default.key.to_owned(), key_span: span, value };
            match &mut node.value {
                Value::Map(entries) => {
                    entries.retain(|entry| entry.key != default.key);
                    entries.push(entry);
                }
                Value::Scalar(_) => {
                    let key = COMPONENT.to_owned();
                    let chosen = Entry { key, key_span: span, value: Node { value: node.value.clone(), span } };
                    node.value = Value::Map(vec![chosen, entry]);
                }
                Value::List(_) | Value::Reported => continue,
            }
            keys.push((default.key.to_owned(), default.value.to_owned()));
        }
        if !keys.is_empty() {
            let what = What::Added { keys, component: alone.map(str::to_owned) };
            self.out.changes.push(Change { span, what, why: "torchtune's default".to_owned() });
        }
    }

    fn choice(&mut self, choices: &Choices, node: &Node) {
        let name = match &node.value {
            Value::Map(_) => node.get(COMPONENT).map(|entry| &entry.value),
            _ => Some(node),
        };
        let Some(name) = name.filter(|name| !name.is_null()) else { return };
        let found = name.as_str().and_then(|text| choices.find(text)).map(|at| choices.choices[at].name);
        if let Some(ours) = found.filter(|ours| Some(*ours) != name.as_str()) {
            self.replace(name.span, ours.to_owned(), String::new());
        }
    }

    fn drop(&mut self, entry: &Entry, why: &'static str) -> bool {
        self.out.dropped.push(Dropped { span: entry.key_span, key: entry.key.clone(), why });
        let what = What::Removed(entry.clone());
        self.out.changes.push(Change { span: entry.key_span, what, why: why.to_owned() });
        false
    }

    fn replace(&mut self, span: Span, new: String, why: String) {
        self.out.changes.push(Change { span, what: What::Replaced(new), why });
    }
}

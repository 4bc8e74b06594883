//! `a.b=v`, `a.0.b=v` and `~a.b` from the command line, put into the tree
//! before it is checked.
//!
//! The schema says what a step means: whether a name is an alias, whether a
//! number counts in a list, and what a component loses when another one is
//! chosen.

use tune_yaml::{Entry, Node, SourceId, Span, Value as Tree, nearest};

use crate::codes;
use crate::report::Diagnostic;
use crate::resolve::default_node;
use crate::schema::{COMPONENT, Component, Const, Key, Schema, Struct};

/// The command line as one line of text, and where each override stands in it.
pub(crate) struct CommandLine {
    pub(crate) text: String,
    /// The bytes of each override, quotes excluded.
    pub(crate) overrides: Vec<std::ops::Range<usize>>,
}

impl CommandLine {
    /// The line that was typed, more or less: arguments with blanks in quotes.
    pub(crate) fn new(command: &str, overrides: &[String]) -> Self {
        // A line break would break the line; a blank is as long.
        let one_line = |text: &str| text.replace(['\n', '\r', '\t'], " ");
        let mut line = Self { text: one_line(command), overrides: Vec::new() };
        for written in overrides {
            let quote = if written.contains(char::is_whitespace) { "'" } else { "" };
            if !line.text.is_empty() {
                line.text.push(' ');
            }
            line.text += quote;
            let start = line.text.len();
            line.text += &one_line(written);
            line.overrides.push(start..line.text.len());
            line.text += quote;
        }
        line
    }
}

/// What an override asks for.
pub(crate) struct Override {
    path: Vec<(String, Span)>,
    action: Action,
}

enum Action {
    Set(Node),
    Delete,
}

/// Reads the override that stands at `range` of the command line.
pub(crate) fn parse(
    written: &str,
    line: &CommandLine,
    range: std::ops::Range<usize>,
    source: SourceId,
) -> Result<Override, Box<Diagnostic>> {
    let whole = Span::new(source, range.start, range.end);
    let (path, start, action) = if let Some(path) = written.strip_prefix('~') {
        (path, range.start + 1, Action::Delete)
    } else if let Some((path, value)) = written.split_once('=') {
        // Bytes of the line are those of the argument, except for line breaks.
        let start = range.start + path.len() + 1;
        let node = match value.contains(['\n', '\t']) {
            true => {
                let mut node = tune_yaml::parse(value, source).map_err(|mut error| {
                    error.span = whole;
                    error.labels.clear();
                    Diagnostic::from(error)
                })?;
                relocate(&mut node, Span::new(source, start, range.end));
                node
            }
            false => tune_yaml::parse_value(&line.text, start, range.end, source).map_err(Diagnostic::from)?,
        };
        // In a file this is a comment; here it is a part of the value that would be lost.
        let behind = line.text.get(node.span.end..range.end).unwrap_or_default();
        if let Some(comment) = [value, behind].map(str::trim_start).into_iter().find(|text| text.starts_with('#')) {
            let hash = range.end - comment.len();
            return Err(Diagnostic::error(codes::NO_OVERRIDE, format!("`{path}` would be cut off at a comment"))
                .at(Span::new(source, hash, range.end), "YAML reads no further than here")
                .help(format!("put the value into quotes: `{path}=\"...\"`"))
                .into());
        }
        (path, range.start, Action::Set(node))
    } else {
        return Err(Diagnostic::error(codes::NO_OVERRIDE, format!("`{written}` is no override"))
            .at(whole, "expected `key=value` or `~key`")
            .into());
    };
    let mut at = start;
    let mut steps = Vec::new();
    for step in path.split('.') {
        steps.push((step.to_owned(), Span::new(source, at, at + step.len())));
        at += step.len() + 1;
    }
    if steps.iter().any(|(step, _)| step.is_empty() || step.contains(char::is_whitespace)) {
        return Err(Diagnostic::error(codes::NO_OVERRIDE, format!("`{written}` is no override"))
            .at(whole, "expected `key=value` or `~key`")
            .help("a path is made of keys and list positions, such as `datasets.0.path`")
            .into());
    }
    if steps[0].0.starts_with('+') {
        return Err(Diagnostic::error(codes::NO_OVERRIDE, format!("`{written}` is no override"))
            .at(whole, "keys are added without a `+`")
            .help(format!("write `{}`", written.trim_start_matches('+')))
            .into());
    }
    Ok(Override { path: steps, action })
}

/// Puts a value and all that is in it at `span`.
pub(crate) fn relocate(node: &mut Node, span: Span) {
    node.span = span;
    match &mut node.value {
        Tree::List(items) => items.iter_mut().for_each(|item| relocate(item, span)),
        Tree::Map(entries) => {
            for entry in entries {
                entry.key_span = span;
                relocate(&mut entry.value, span);
            }
        }
        Tree::Scalar(_) | Tree::Reported => {}
    }
}

/// Puts an override into the tree.
pub(crate) fn apply(schema: &Schema, root: &mut Node, with: Override) -> Result<(), Box<Diagnostic>> {
    let walk = Walk { path: &with.path };
    match with.action {
        Action::Set(value) => walk.set(Some(schema), None, root, 0, value),
        Action::Delete => walk.delete(Some(schema), root, 0),
    }
}

struct Walk<'a> {
    path: &'a [(String, Span)],
}

impl Walk<'_> {
    /// The first `steps` of the path, with dots.
    fn to(&self, steps: usize) -> String {
        let names: Vec<_> = self.path[..steps].iter().map(|(name, _)| name.as_str()).collect();
        names.join(".")
    }

    fn set(
        &self,
        schema: Option<&Schema>,
        key: Option<&Key>,
        node: &mut Node,
        at: usize,
        value: Node,
    ) -> Result<(), Box<Diagnostic>> {
        let schema = schema.map(inside);
        let Some((step, span)) = self.path.get(at) else {
            match (schema, &value.value) {
                (Some(Schema::Component(component)), Tree::Scalar(_)) if !value.is_null() => {
                    switch(component, key, node, value);
                }
                _ => *node = value,
            }
            return Ok(());
        };
        if matches!(node.value, Tree::Reported) {
            return Ok(());
        }
        match schema {
            Some(Schema::List(item)) if key.is_some_and(|key| key.one_or_many) && !is_list(node) => {
                if step.parse::<usize>().is_err() {
                    return self.set(Some(item), None, node, at, value);
                }
                let only = std::mem::replace(node, Node::plain("", node.span));
                node.value = Tree::List(if only.is_null() { Vec::new() } else { vec![only] });
                self.set_item(Some(item), node, at, value)
            }
            Some(Schema::List(item) | Schema::Array(item, _)) => self.set_item(Some(item), node, at, value),
            _ if is_list(node) => self.set_item(None, node, at, value),
            Some(
                Schema::Bool
                | Schema::Int { .. }
                | Schema::Float { .. }
                | Schema::Text
                | Schema::Path
                | Schema::Choice(_),
            ) => Err(Diagnostic::error(codes::NOTHING_INSIDE, format!("unknown key `{}`", self.to(at + 1)))
                .at(*span, format!("`{}` is a single value", self.to(at)))
                .into()),
            _ => {
                self.open(schema, node, at)?;
                if let Some(Schema::Component(component)) = schema
                    && step == COMPONENT
                    && at + 1 == self.path.len()
                {
                    switch(component, key, node, value);
                    return Ok(());
                }
                let found = child(schema, key, node, step);
                let child_schema = found.as_ref().map(|(schema, _)| *schema);
                let child_key = found.and_then(|(_, key)| key);
                let Tree::Map(entries) = &mut node.value else {
                    return Ok(());
                };
                if let Some(position) = entry_of(entries, step, child_key) {
                    let entry = &mut entries[position];
                    // A value that is empty is reported at its key.
                    if at + 1 == self.path.len() && value.is_null() {
                        entry.key_span = *span;
                    }
                    return self.set(child_schema, child_key, &mut entry.value, at + 1, value);
                }
                // What the key's default says holds for the rest of it.
                let mut absent = match (child_key.and_then(|key| key.default), child_schema) {
                    (Some(default @ (Const::List(_) | Const::Text(_))), Some(schema)) => default_node(schema, &default),
                    _ => Node::plain("", *span),
                };
                self.set(child_schema, child_key, &mut absent, at + 1, value)?;
                entries.push(Entry { key: step.clone(), key_span: *span, value: absent });
                Ok(())
            }
        }
    }

    /// Makes a mapping of a node that a key is to be set in.
    fn open(&self, schema: Option<&Schema>, node: &mut Node, at: usize) -> Result<(), Box<Diagnostic>> {
        if node.is_null() {
            node.value = Tree::Map(Vec::new());
            if at > 0 {
                node.span = self.path[at].1;
            }
        }
        match (&node.value, schema) {
            (Tree::Map(_), _) => Ok(()),
            (Tree::Scalar(_), Some(Schema::Component(_))) if node.as_str().is_some_and(|text| !text.contains("${")) => {
                let chosen = std::mem::replace(node, Node::plain("", node.span));
                node.value = Tree::Map(vec![Entry { key: COMPONENT.to_owned(), key_span: chosen.span, value: chosen }]);
                Ok(())
            }
            _ => {
                let (_, span) = &self.path[at];
                let mut diagnostic =
                    Diagnostic::error(codes::NOTHING_INSIDE, format!("cannot set `{}`", self.to(at + 1)))
                        .at(*span, format!("`{}` is no mapping", self.to(at)));
                if node.span.source != crate::report::DEFAULTS {
                    diagnostic = diagnostic.also(node.span, "it is this");
                }
                Err(diagnostic.into())
            }
        }
    }

    fn set_item(
        &self,
        schema: Option<&Schema>,
        node: &mut Node,
        at: usize,
        value: Node,
    ) -> Result<(), Box<Diagnostic>> {
        let (step, span) = &self.path[at];
        if node.is_null() {
            node.value = Tree::List(Vec::new());
        }
        let Tree::List(items) = &mut node.value else {
            return Err(Diagnostic::error(codes::NOTHING_INSIDE, format!("cannot set `{}`", self.to(at + 1)))
                .at(*span, format!("`{}` is no list", self.to(at)))
                .also(node.span, "it is this")
                .into());
        };
        let length = items.len();
        let index = match step.parse::<usize>() {
            Ok(index) if index < length => index,
            // The next one is a new one.
            Ok(index) if index == length => {
                items.push(Node::plain("", *span));
                index
            }
            _ => return Err(no_item(self, at, length)),
        };
        self.set(schema, None, &mut items[index], at + 1, value)
    }

    fn delete(&self, schema: Option<&Schema>, node: &mut Node, at: usize) -> Result<(), Box<Diagnostic>> {
        let schema = schema.map(inside);
        let (step, span) = &self.path[at];
        let last = at + 1 == self.path.len();
        match &mut node.value {
            Tree::List(items) => {
                let item = match schema {
                    Some(Schema::List(item) | Schema::Array(item, _)) => Some(*item),
                    _ => None,
                };
                let Some(index) = step.parse().ok().filter(|index| *index < items.len()) else {
                    return Err(no_item(self, at, items.len()));
                };
                if last {
                    items.remove(index);
                    return Ok(());
                }
                self.delete(item, &mut items[index], at + 1)
            }
            Tree::Map(_) => {
                let found = child(schema, None, node, step);
                let Tree::Map(entries) = &mut node.value else {
                    return Ok(());
                };
                let key = found.as_ref().and_then(|(_, key)| *key);
                let Some(position) = entry_of(entries, step, key) else {
                    let diagnostic = Diagnostic::error(
                        codes::NOTHING_TO_DELETE,
                        format!("nothing to delete at `{}`", self.to(at + 1)),
                    )
                    .at(*span, "not written in the config");
                    let near = nearest(step, entries.iter().map(|entry| entry.key.as_str()));
                    return Err(Box::new(match near {
                        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                        None => diagnostic,
                    }));
                };
                if last {
                    entries.remove(position);
                    return Ok(());
                }
                self.delete(found.map(|(schema, _)| schema), &mut entries[position].value, at + 1)
            }
            Tree::Reported => Ok(()),
            Tree::Scalar(_) => {
                Err(Diagnostic::error(codes::NOTHING_TO_DELETE, format!("nothing to delete at `{}`", self.to(at + 1)))
                    .at(*span, "not written in the config")
                    .into())
            }
        }
    }
}

fn no_item(walk: &Walk<'_>, at: usize, length: usize) -> Box<Diagnostic> {
    let (_, span) = &walk.path[at];
    let items = match length {
        0 => "it is empty".to_owned(),
        1 => "its only item is 0".to_owned(),
        _ => format!("its items are 0 to {}", length - 1),
    };
    Diagnostic::error(codes::NO_ITEM, format!("no item `{}`", walk.to(at + 1)))
        .at(*span, format!("a list: {items}"))
        .into()
}

fn is_list(node: &Node) -> bool {
    matches!(node.value, Tree::List(_))
}

/// The schema below `Option`s.
fn inside(schema: &Schema) -> &Schema {
    match schema {
        Schema::Optional(inner) => inside(inner),
        other => other,
    }
}

/// What the schema says about the key `step` of `node`.
fn child<'s>(
    schema: Option<&'s Schema>,
    key: Option<&Key>,
    node: &Node,
    step: &str,
) -> Option<(&'s Schema, Option<&'static Key>)> {
    match schema? {
        Schema::Struct(fields) => fields.find(step).map(|key| (&key.schema, Some(key))),
        Schema::Component(component) => {
            let fields = chosen(component, key, node)?;
            fields.find(step).map(|key| (&key.schema, Some(key)))
        }
        Schema::Map(inner) => Some((*inner, None)),
        _ => None,
    }
}

/// The keys of the component that `node` chooses.
fn chosen(component: &Component, key: Option<&Key>, node: &Node) -> Option<&'static Struct> {
    let written = match &node.value {
        Tree::Map(_) => node.get(COMPONENT).and_then(|entry| entry.value.as_str()),
        Tree::Scalar(_) if !node.is_null() => node.as_str(),
        _ => None,
    };
    let of_key = || match key?.default? {
        Const::Text(name) => component.find(name),
        _ => None,
    };
    let found = match written {
        Some(name) => component.find(name),
        None => of_key().or(component.default),
    };
    component.variants.get(found?)?.fields()
}

/// The entry that is written under any name of the key.
fn entry_of(entries: &[Entry], step: &str, key: Option<&Key>) -> Option<usize> {
    let names = |name: &str| name == step || key.is_some_and(|key| key.name == name || key.aliases.contains(&name));
    entries.iter().position(|entry| names(&entry.key))
}

/// Chooses another component. Keys that the old one has and the new one lacks
/// go with it; a key that neither has stays, and is reported.
fn switch(component: &Component, key: Option<&Key>, node: &mut Node, value: Node) {
    let old = chosen(component, key, node);
    let new = value.as_str().and_then(|name| component.find(name)).map(|at| &component.variants[at]);
    let Tree::Map(entries) = &mut node.value else {
        *node = value;
        return;
    };
    if let (Some(old), Some(new)) = (old, new) {
        let knows = |fields: &Struct, name: &str| fields.find(name).is_some() || fields.find_ignored(name).is_some();
        entries.retain(|entry| {
            let goes = knows(old, &entry.key) && !new.fields().is_some_and(|fields| knows(fields, &entry.key));
            entry.key == COMPONENT || !goes
        });
    }
    match entries.iter_mut().find(|entry| entry.key == COMPONENT) {
        Some(entry) => entry.value = value,
        None => entries.insert(0, Entry { key: COMPONENT.to_owned(), key_span: value.span, value }),
    }
}

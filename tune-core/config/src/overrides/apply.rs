//! An override put into the tree. The schema says what a step means: whether a
//! name is an alias, whether a number counts in a list, and what a component
//! loses when another one is chosen.

use tune_yaml::{Code, Entry, MAX_DEPTH, Node, Span, Value as Tree, nearest};

use super::switch::{chosen, switch};
use super::{Action, Override, Written};
use crate::codes;
use crate::report::Diagnostic;
use crate::resolve::default_node;
use crate::schema::{COMPONENT, Const, Key, Schema};

/// Puts an override into the tree; says what is lost by it.
pub(crate) fn apply(
    schema: &Schema,
    root: &mut Node,
    with: &Override<'_>,
) -> Result<Option<Diagnostic>, Box<Diagnostic>> {
    let mut walk = Walk { path: &with.path, warning: None };
    match &with.action {
        Action::Set(value) => walk.set(Some(schema), None, root, 0, value)?,
        Action::Delete => walk.delete(Some(schema), None, root, 0)?,
    }
    Ok(walk.warning)
}

struct Walk<'a> {
    path: &'a [(String, Span)],
    /// What another component left out.
    warning: Option<Diagnostic>,
}

impl Walk<'_> {
    /// The first `steps` of the path, with dots.
    fn to(&self, steps: usize) -> String {
        let names: Vec<_> = self.path[..steps].iter().map(|(name, _)| name.as_str()).collect();
        names.join(".")
    }

    fn set(
        &mut self,
        schema: Option<&Schema>,
        key: Option<&Key>,
        node: &mut Node,
        at: usize,
        value: &Written<'_>,
    ) -> Result<(), Box<Diagnostic>> {
        let Some((step, span)) = self.path.get(at) else {
            return self.put(schema, key, node, value);
        };
        let schema = schema.map(inside);
        if matches!(node.value, Tree::Reported) {
            return Ok(());
        }
        match schema {
            Some(Schema::List(item)) if key.is_some_and(|key| key.one_or_many) && step.parse::<usize>().is_err() => {
                match &mut node.value {
                    Tree::List(items) if items.is_empty() => node.value = Node::plain("", *span).value,
                    Tree::List(items) if holds_keys(item) => {
                        return match items.as_mut_slice() {
                            [only] => self.set(Some(item), None, only, at, value),
                            _ => Err(no_item(self, at, items)),
                        };
                    }
                    Tree::List(_) => return self.set_item(Some(item), node, at, value),
                    _ => {}
                }
                self.set(Some(item), None, node, at, value)
            }
            Some(Schema::List(item)) if key.is_some_and(|key| key.one_or_many) && !is_list(node) => {
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
            _ => self.set_key(schema, key, node, at, value),
        }
    }

    /// Sets what the step at `at`, which is a key, leads to.
    fn set_key(
        &mut self,
        schema: Option<&Schema>,
        key: Option<&Key>,
        node: &mut Node,
        at: usize,
        value: &Written<'_>,
    ) -> Result<(), Box<Diagnostic>> {
        let (step, span) = &self.path[at];
        let is_last = at + 1 == self.path.len();
        self.open(schema, node, at)?;
        if let Some(Schema::Component(component)) = schema
            && step == COMPONENT
            && is_last
        {
            let chosen = value.read(schema, None)?;
            self.warning = switch(component, key, node, chosen);
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
            if is_last && value.is_null() {
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

    /// Puts the value in the place of what the whole path leads to.
    fn put(
        &mut self,
        schema: Option<&Schema>,
        key: Option<&Key>,
        node: &mut Node,
        value: &Written<'_>,
    ) -> Result<(), Box<Diagnostic>> {
        let value = value.read(schema, key)?;
        if self.path.len() + tune_yaml::depth(&value) > MAX_DEPTH {
            return Err(Diagnostic::error(Code::TOO_LARGE, format!("more than {MAX_DEPTH} levels of nesting"))
                .at(value.span, "with the keys before it")
                .help(format!("a config has at most {MAX_DEPTH} levels"))
                .into());
        }
        let names_one = matches!(value.value, Tree::Scalar(_)) && !value.is_null();
        match schema.map(inside) {
            Some(Schema::Component(component)) if names_one => self.warning = switch(component, key, node, value),
            Some(Schema::List(Schema::Component(component))) if names_one && key.is_some_and(|key| key.one_or_many) => {
                match &mut node.value {
                    Tree::List(items) => match items.as_mut_slice() {
                        [only] => self.warning = switch(component, None, only, value),
                        several if several.iter().any(has_keys) => return Err(which(self, several.len(), &value)),
                        _ => *node = value,
                    },
                    _ => self.warning = switch(component, None, node, value),
                }
            }
            _ => *node = value,
        }
        Ok(())
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
        &mut self,
        schema: Option<&Schema>,
        node: &mut Node,
        at: usize,
        value: &Written<'_>,
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
            _ => return Err(no_item(self, at, items)),
        };
        self.set(schema, None, &mut items[index], at + 1, value)
    }

    fn delete(
        &mut self,
        schema: Option<&Schema>,
        key: Option<&Key>,
        node: &mut Node,
        at: usize,
    ) -> Result<(), Box<Diagnostic>> {
        let schema = schema.map(inside);
        let (step, _) = &self.path[at];
        let last = at + 1 == self.path.len();
        // One that stands for a list of one, by its place or as itself.
        if let Some(Schema::List(item)) = schema
            && key.is_some_and(|key| key.one_or_many)
            && matches!(node.value, Tree::Map(_))
        {
            return match step.parse::<usize>() {
                Ok(0) if last => {
                    node.value = Tree::List(Vec::new());
                    Ok(())
                }
                Ok(0) => self.delete(Some(item), None, node, at + 1),
                Ok(_) => Err(no_item(self, at, std::slice::from_ref(node))),
                Err(_) => self.delete(Some(item), None, node, at),
            };
        }
        if let Some(Schema::List(item)) = schema
            && key.is_some_and(|key| key.one_or_many)
            && holds_keys(item)
            && let Tree::List(items) = &mut node.value
            && let [only] = items.as_mut_slice()
            && step.parse::<usize>().is_err()
        {
            return self.delete(Some(item), None, only, at);
        }
        match &node.value {
            Tree::List(_) => self.delete_item(schema, node, at),
            Tree::Map(_) => self.delete_key(schema, key, node, at),
            Tree::Reported => Ok(()),
            Tree::Scalar(_) => Err(self.nothing_to_delete(at).into()),
        }
    }

    /// Deletes what the step at `at`, which is the place of an item, leads to.
    fn delete_item(&mut self, schema: Option<&Schema>, node: &mut Node, at: usize) -> Result<(), Box<Diagnostic>> {
        let Tree::List(items) = &mut node.value else {
            return Ok(());
        };
        let item = match schema {
            Some(Schema::List(item) | Schema::Array(item, _)) => Some(*item),
            _ => None,
        };
        let (step, _) = &self.path[at];
        let Some(index) = step.parse().ok().filter(|index| *index < items.len()) else {
            return Err(no_item(self, at, items));
        };
        if at + 1 == self.path.len() {
            items.remove(index);
            return Ok(());
        }
        self.delete(item, None, &mut items[index], at + 1)
    }

    /// Deletes what the step at `at`, which is a key, leads to.
    fn delete_key(
        &mut self,
        schema: Option<&Schema>,
        key: Option<&Key>,
        node: &mut Node,
        at: usize,
    ) -> Result<(), Box<Diagnostic>> {
        let (step, _) = &self.path[at];
        let found = child(schema, key, node, step);
        let Tree::Map(entries) = &mut node.value else {
            return Ok(());
        };
        let key = found.as_ref().and_then(|(_, key)| *key);
        let Some(position) = entry_of(entries, step, key) else {
            let diagnostic = self.nothing_to_delete(at);
            let near = nearest(step, entries.iter().map(|entry| entry.key.as_str()));
            return Err(Box::new(match near {
                Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                None => diagnostic,
            }));
        };
        if at + 1 == self.path.len() {
            entries.remove(position);
            return Ok(());
        }
        self.delete(found.map(|(schema, _)| schema), key, &mut entries[position].value, at + 1)
    }

    /// The step at `at` leads to nothing that is written.
    fn nothing_to_delete(&self, at: usize) -> Diagnostic {
        let what = format!("nothing to delete at `{}`", self.to(at + 1));
        Diagnostic::error(codes::NOTHING_TO_DELETE, what).at(self.path[at].1, "not written in the config")
    }
}

fn no_item(walk: &Walk<'_>, at: usize, items: &[Node]) -> Box<Diagnostic> {
    let (step, span) = &walk.path[at];
    // Its key may be meant.
    let keyed = items.len() > 1 && items.iter().any(|item| matches!(item.value, Tree::Map(_)));
    let items = match items.len() {
        0 => "it is empty".to_owned(),
        1 => "its only item is 0".to_owned(),
        length => format!("its items are 0 to {}", length - 1),
    };
    let diagnostic = Diagnostic::error(codes::NO_ITEM, format!("no item `{}`", walk.to(at + 1)))
        .at(*span, format!("a list: {items}"));
    Box::new(match keyed && step.parse::<usize>().is_err() {
        true => diagnostic.help(format!("name one of them first: `{}.0.{step}`", walk.to(at))),
        false => diagnostic,
    })
}

/// A component is chosen for a list of several.
fn which(walk: &Walk<'_>, length: usize, chosen: &Node) -> Box<Diagnostic> {
    let path = walk.to(walk.path.len());
    let name = chosen.as_str().unwrap_or_default();
    Diagnostic::error(codes::NO_ITEM, format!("`{path}` is a list of {length}: one of them, or all?"))
        .at(chosen.span, "chosen for the list")
        .help(format!("choose for one with `{path}.0={name}`, or replace them all with `{path}=[{name}]`"))
        .into()
}

/// Whether an item of a list has keys of its own, besides the name of its component.
fn has_keys(item: &Node) -> bool {
    matches!(&item.value, Tree::Map(entries) if entries.iter().any(|entry| entry.key != COMPONENT))
}

fn holds_keys(schema: &Schema) -> bool {
    matches!(inside(schema), Schema::Struct(_) | Schema::Component(_) | Schema::Map(_))
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

/// The entry that is written under any name of the key.
fn entry_of(entries: &[Entry], step: &str, key: Option<&Key>) -> Option<usize> {
    let names = |name: &str| name == step || key.is_some_and(|key| key.name == name || key.aliases.contains(&name));
    entries.iter().position(|entry| names(&entry.key))
}

//! Another component is chosen: what it has in common with the old one stays.

use tune_yaml::{Entry, Node, Span, Value as Tree};

use crate::report::Diagnostic;
use crate::schema::{COMPONENT, Component, Const, Key, Schema, Struct};

/// The keys of the component that `node` chooses.
pub(super) fn chosen(component: &Component, key: Option<&Key>, node: &Node) -> Option<&'static Struct> {
    component.variants.get(chosen_at(component, key, node)?)?.fields()
}

fn chosen_at(component: &Component, key: Option<&Key>, node: &Node) -> Option<usize> {
    let written = match &node.value {
        Tree::Map(_) => node.get(COMPONENT).and_then(|entry| entry.value.as_str()),
        Tree::Scalar(_) if !node.is_null() => node.as_str(),
        _ => None,
    };
    let of_key = || match key?.default? {
        Const::Text(name) => component.find(name),
        _ => None,
    };
    match written {
        Some(name) => component.find(name),
        None => of_key().or(component.default),
    }
}

/// Chooses another component. Keys that the old one has and the new one lacks go, which is told; a key that neither has
/// stays, and is reported.
pub(super) fn switch(component: &Component, key: Option<&Key>, node: &mut Node, value: Node) -> Option<Diagnostic> {
    let old = chosen_at(component, key, node).map(|at| &component.variants[at]);
    let new = value.as_str().and_then(|name| component.find(name)).map(|at| &component.variants[at]);
    let Tree::Map(entries) = &mut node.value else {
        *node = value;
        return None;
    };
    let mut gone = Vec::new();
    if let (Some(old), Some(new)) = (old, new)
        && let Some(fields) = old.fields()
    {
        keep(entries, fields, new.fields(), "", &mut gone);
    }
    match entries.iter_mut().find(|entry| entry.key == COMPONENT) {
        Some(entry) => entry.value = value,
        None => entries.insert(0, Entry { key: COMPONENT.to_owned(), key_span: value.span, value }),
    }
    told(&gone, old?.name, new?.name)
}

/// Takes out the keys that are among `old` and not among `new`, also within those that both have.
fn keep(
    entries: &mut Vec<Entry>,
    old: &Struct,
    new: Option<&'static Struct>,
    within: &str,
    gone: &mut Vec<(Span, String)>,
) {
    entries.retain_mut(|entry| {
        let has_effect = old.find(&entry.key);
        if has_effect.is_none() && old.find_ignored(&entry.key).is_none() {
            return true;
        }
        let ignored = new.is_some_and(|new| new.find_ignored(&entry.key).is_some());
        match (has_effect, new.and_then(|new| new.find(&entry.key))) {
            (Some(before), Some(now)) => {
                if let (Schema::Struct(before), Schema::Struct(now)) = (&before.schema, &now.schema)
                    && let Tree::Map(inner) = &mut entry.value.value
                {
                    keep(inner, before, Some(now), &format!("{within}{}.", entry.key), gone);
                }
                true
            }
            (None, Some(_)) => true,
            (_, None) if ignored => true,
            (Some(_), None) => {
                gone.push((entry.key_span, format!("{within}{}", entry.key)));
                false
            }
            (None, None) => false,
        }
    });
}

/// A warning with the keys that are gone.
fn told(gone: &[(Span, String)], old: &str, new: &str) -> Option<Diagnostic> {
    let ((first, name), rest) = gone.split_first()?;
    let message = match rest {
        [] => format!("the key `{name}` of `{old}` is left out: `{new}` has no such key"),
        _ => format!("{} keys of `{old}` are left out: `{new}` has no such keys", gone.len()),
    };
    let warning = Diagnostic::warning(message).at(*first, "left out");
    Some(rest.iter().fold(warning, |warning, (span, _)| warning.also(*span, "left out")))
}

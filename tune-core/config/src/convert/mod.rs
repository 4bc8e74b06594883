//! A config in torchtune's names as one in ours.
//!
//! The text is changed in place, so that its order and its comments stay; each
//! change is told in a comment of its own. What comes out is read again: if it
//! should not mean the same (an alias or a reference to a key that went), the
//! resolved config is written instead.

mod edits;
mod overridden;

use tune_yaml::{Node, SourceId, Value};

use crate::load::read;
use crate::schema::{COMPONENT, Schema};
use crate::torchtune::{Change, What};
use crate::{Config, Input, Report, load};

/// The config `text` of the recipe `recipe` with `overrides`, in our own names, with a comment on each change; `name`
/// is what messages call the text.
///
/// # Errors
/// A config that the recipe does not take.
pub fn convert<T: Config>(recipe: &str, name: &str, text: &str, overrides: &[String]) -> Result<String, Report> {
    let command = format!("{recipe} --convert --config {name}");
    let meant = load::<T>(Input::yaml(name, text).command(command).overrides(overrides))?.resolved.to_yaml();
    let overridden = overridden::put(&T::SCHEMA, text, overrides);
    let overridden = overridden
        .filter(|text| load::<T>(Input::yaml(name, text)).is_ok_and(|loaded| loaded.resolved.to_yaml() == meant));
    let Some(text) = &overridden else {
        // Some override cannot be put in its place.
        let head =
            format!("# Converted from {}, with overrides; run it with: {recipe} --config FILE\n", one_line(name));
        return Ok(format!("{head}\n{meant}"));
    };
    let translation = read(&T::SCHEMA, Input::yaml(name, text))?.translation;
    let mut changes = translation.changes;
    changes.sort_by_key(|change| (change.span.source.0, change.span.start));
    changes.retain(|change| change.span.source == SourceId(0) || matches!(change.what, What::Added { .. }));
    if changes.is_empty() {
        return Ok(text.clone());
    }
    let mut head = format!("# Converted from {}; run it with: {recipe} --config FILE\n", one_line(name));
    for warning in translation.diagnostics {
        for help in warning.help {
            head += &format!("# {}: {}\n", one_line(&warning.message), one_line(&help));
        }
    }
    head += "#\n";
    let root = tune_yaml::parse(text, SourceId(0))
        .unwrap_or_else(|_| Node::plain("", tune_yaml::Span::new(SourceId(0), 0, 0)));
    let converted = loop {
        let converted = format!("{head}{}", edits::apply(text, &changes, &root));
        let orphans = orphans(&T::SCHEMA, &root, &changes, &converted);
        if orphans.is_empty() {
            break converted;
        }
        changes.extend(orphans);
    };
    let means_the_same = |text: &str| {
        let Ok(read) = read(&T::SCHEMA, Input::yaml(name, text)) else { return false };
        let again = load::<T>(Input::yaml(name, text)).map(|again| again.resolved.to_yaml());
        read.translation.changes.is_empty() && again.is_ok_and(|again| again == meant)
    };
    if means_the_same(&converted) {
        return Ok(converted);
    }
    let told = changes.iter().map(|change| told(change, text)).filter(|told| !told.is_empty());
    let told: String = told.map(|told| format!("# {told}\n")).collect();
    Ok(format!("{head}{told}\n{meant}"))
}

/// The user's own keys that nothing refers to any more.
fn orphans(schema: &Schema, root: &Node, changes: &[Change], converted: &str) -> Vec<Change> {
    let (Schema::Struct(fields), Value::Map(entries)) = (schema, &root.value) else { return Vec::new() };
    let Ok((converted, aliases)) = tune_yaml::parse_noting(converted, SourceId(0)) else { return Vec::new() };
    let referred = tune_yaml::referred(&converted, &aliases);
    let known = |key: &str| fields.find(key).is_some() || fields.find_ignored(key).is_some();
    let own = entries.iter().filter(|entry| {
        let needed = referred.get(&entry.key).is_some_and(|by| by.is_empty() || by.iter().any(|key| known(key)));
        !known(&entry.key) && !needed && !changes.iter().any(|change| change.span == entry.key_span)
    });
    own.map(|entry| Change {
        span: entry.key_span,
        what: What::Removed(entry.clone()),
        why: "nothing refers to it any more".to_owned(),
    })
    .collect()
}

/// A change in words, for a comment.
fn told(change: &Change, text: &str) -> String {
    let was = text.get(change.span.start..change.span.end).unwrap_or_default();
    let why = if change.why.is_empty() { String::new() } else { format!(": {}", change.why) };
    one_line(&match &change.what {
        // The value that chooses the component says it.
        What::Replaced(_) if was == COMPONENT => String::new(),
        What::Replaced(_) => format!("was {was}{why}"),
        What::Removed(entry) => format!("`{}` is gone{why}", entry.key),
        What::Added { component: Some(_), .. } => format!("was {was}; keys added{why}"),
        What::Added { .. } => format!("added{why}"),
    })
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

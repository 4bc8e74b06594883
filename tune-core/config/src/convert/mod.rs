//! A config in torchtune's names as one in ours.
//!
//! The text is changed in place, so that its order and its comments stay; each
//! change is told in a comment of its own. What comes out is read again: if it
//! should not mean the same (an alias or a reference to a key that went), the
//! resolved config is written instead.

mod edits;

use tune_yaml::SourceId;

use crate::load::read;
use crate::schema::COMPONENT;
use crate::torchtune::{Change, What};
use crate::{Config, Input, Report, load};

/// The config `text` of the recipe `recipe`, in our own names, with a comment on each change; `name` is
/// what messages call the text.
///
/// # Errors
/// A config that the recipe does not take.
pub fn convert<T: Config>(recipe: &str, name: &str, text: &str) -> Result<String, Report> {
    let meant = load::<T>(Input::yaml(name, text))?.resolved.to_yaml();
    let translation = read(&T::SCHEMA, Input::yaml(name, text))?.translation;
    let mut changes = translation.changes;
    changes.sort_by_key(|change| (change.span.source.0, change.span.start));
    changes.retain(|change| change.span.source == SourceId(0) || matches!(change.what, What::Added { .. }));
    if changes.is_empty() {
        return Ok(text.to_owned());
    }
    let mut head = format!("# Converted from {}; run it with: {recipe} --config FILE\n", one_line(name));
    for warning in translation.diagnostics {
        for help in warning.help {
            head += &format!("# {}: {}\n", one_line(&warning.message), one_line(&help));
        }
    }
    head += "#\n";
    let converted = format!("{head}{}", edits::apply(text, &changes));
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

//! The names that a chat template's source mentions.

use std::collections::BTreeSet;

use super::ChatTemplate;

/// Identifiers of a template, and its short strings: `message.name` and `message['name']` both mention `name`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(BTreeSet<String>);

impl Names {
    pub(crate) fn of(template: &ChatTemplate) -> Self {
        let mut names = BTreeSet::new();
        let mut rest = template.source();
        while let Some(start) = rest.find('{') {
            let tag = &rest[start + 1..];
            let close = match tag.chars().next() {
                Some('{') => "}}",
                Some('%') => "%}",
                Some('#') => {
                    rest = tag.split_once("#}").map_or("", |(_, rest)| rest);
                    continue;
                }
                _ => {
                    rest = tag;
                    continue;
                }
            };
            rest = program(&tag[1..], close, &mut names);
        }
        Self(names)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Takes the names of a tag and returns what follows it.
fn program<'a>(tag: &'a str, close: &str, names: &mut BTreeSet<String>) -> &'a str {
    let mut rest = tag;
    while let Some(c) = rest.chars().next() {
        if let Some(rest) = rest.strip_prefix(close) {
            return rest;
        }
        if c == '"' || c == '\'' {
            let text = &rest[1..];
            let mut escaped = false;
            let end = text.find(|other| {
                let ends = other == c && !escaped;
                escaped = other == '\\' && !escaped;
                ends
            });
            let Some(end) = end else { return "" };
            names.insert(text[..end].to_owned());
            rest = &text[end + 1..];
        } else if c.is_alphabetic() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            names.insert(rest[..end].to_owned());
            rest = &rest[end..];
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_tags_alone() {
        let source = "tools {# documents #}{%- for m in messages if m['na\\'me'] or m[\"id\"] -%}{{ m.weight }} {a: b}{% \
                      endfor %}{{ '}}train' }}loss{{";
        let names = Names::of(&ChatTemplate::new(source.trim_end_matches("{{"), Default::default()).unwrap());
        for name in ["messages", "id", "weight", "m"] {
            assert!(names.contains(name), "{name}");
        }
        for name in ["tools", "documents", "train", "loss", "a", "name"] {
            assert!(!names.contains(name), "{name}");
        }
    }
}

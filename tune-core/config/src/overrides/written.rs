//! The value of an override. How it is read depends on its key: text and paths are what was typed, everything else is
//! YAML.

use tune_yaml::{Kind, Node, Scalar, Span, Value as Tree};

use super::relocate;
use crate::codes;
use crate::report::Diagnostic;
use crate::schema::{Key, Schema};

/// A value as it was typed.
pub(crate) struct Written<'a> {
    /// The key, for messages.
    pub(super) path: &'a str,
    pub(super) text: &'a str,
    /// The command line.
    pub(super) line: &'a str,
    /// Where the value stands in it.
    pub(super) span: Span,
}

impl Written<'_> {
    /// The value for a key of this type; without one, nothing is known of the key.
    pub(super) fn read(&self, schema: Option<&Schema>, key: Option<&Key>) -> Result<Node, Box<Diagnostic>> {
        match schema {
            None => Ok(match self.yaml() {
                // A mapping or a list without brackets is text with a colon or a dash in it.
                Ok(node) if matches!(node.value, Tree::Scalar(_)) || self.text.trim_start().starts_with(['[', '{']) => {
                    node
                }
                _ => self.literal(),
            }),
            Some(Schema::Optional(inner)) => match (inner, self.is_null()) {
                // `~` is a folder.
                (Schema::Path, true) if self.text == "~" => Ok(self.literal()),
                (_, true) => Ok(Node::plain(self.text.trim(), self.span)),
                (inner, false) => self.read(Some(inner), key),
            },
            Some(Schema::Text) => Ok(self.literal()),
            Some(Schema::Path) if self.is_null() && self.text != "~" => Ok(Node::plain(self.text.trim(), self.span)),
            Some(Schema::Path) => Ok(self.literal()),
            Some(Schema::List(item))
                if key.is_some_and(|key| key.one_or_many) && !self.text.trim_start().starts_with('[') =>
            {
                self.read(Some(item), None)
            }
            Some(_) => self.yaml(),
        }
    }

    /// Whether nothing is written, or a word for it.
    pub(super) fn is_null(&self) -> bool {
        Scalar::plain(self.text.trim()).kind() == Kind::Null
    }

    /// The text as it was typed; without its quotes where all of it stands in them, as in YAML. Nothing at all is more
    /// often an empty variable of the shell than an empty text.
    fn literal(&self) -> Node {
        if self.text.is_empty() {
            return Node::plain("", self.span);
        }
        let text = self.in_quotes().unwrap_or_else(|| self.text.to_owned());
        Node { value: Tree::Scalar(Scalar::quoted(text)), span: self.span }
    }

    /// What stands in the quotes around the whole value. YAML would fold the lines of several.
    fn in_quotes(&self) -> Option<String> {
        if !self.text.starts_with(['"', '\'']) || self.text.contains(['\n', '\r']) {
            return None;
        }
        let node = tune_yaml::parse(self.text, self.span.source).ok()?;
        match node.value {
            Tree::Scalar(scalar) if scalar.quoted && node.span.end == self.text.len() => Some(scalar.text),
            _ => None,
        }
    }

    fn yaml(&self) -> Result<Node, Box<Diagnostic>> {
        let Span { source, start, end } = self.span;
        let node = match self.text.contains(['\n', '\t']) {
            true => {
                let mut node = tune_yaml::parse(self.text, source).map_err(|mut error| {
                    error.span = self.span;
                    error.labels.clear();
                    Diagnostic::from(error)
                })?;
                relocate(&mut node, self.span);
                node
            }
            false => tune_yaml::parse_value(self.line, start, end, source).map_err(Diagnostic::from)?,
        };
        // In a file this is a comment; here it is a part of the value that would be lost.
        let behind = self.line.get(node.span.end..end).unwrap_or_default();
        if let Some(comment) = [self.text, behind].map(str::trim_start).into_iter().find(|text| text.starts_with('#')) {
            let path = self.path;
            let hash = end - comment.len();
            let value = self.text[..self.text.len() - comment.len()].trim();
            let diagnostic = Diagnostic::error(codes::NO_OVERRIDE, format!("`{path}` would be cut off at a comment"))
                .at(Span::new(source, hash, end), "YAML reads no further than here");
            return Err(Box::new(match value {
                "" => diagnostic,
                value => diagnostic.help(format!("write `{path}={value}`")),
            }));
        }
        Ok(node)
    }
}

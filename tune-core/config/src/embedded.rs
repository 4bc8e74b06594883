//! The configs that a recipe ships with, as `#[recipe]` embeds them: the
//! compiler checks them against the recipe's schema.

pub use tune_yaml::Number;
use tune_yaml::{Kind, SourceId, Span, Text};

use crate::Schema;
pub use crate::check::Findings;
use crate::check::check;
pub use crate::tree::Written;
use crate::tree::{Item, Scalar, Tree};

/// A config in a recipe.
#[derive(Debug, Clone, Copy)]
pub struct Embedded<'a> {
    /// The path of its file, for messages.
    pub name: &'a str,
    /// The text of its file.
    pub text: &'a str,
    /// What was read from it, aliases and `${}` resolved.
    pub items: &'a [Item<'a>],
}

/// So many mistakes of a config are shown.
pub const SHOWN: usize = 8;

impl<'a> Embedded<'a> {
    /// What is wrong with it.
    pub const fn check(&self, schema: &'a Schema) -> Findings<'a, SHOWN> {
        check(schema, Tree(self.items))
    }

    /// The mistake of this index in words, if there is one.
    pub const fn message(&self, findings: &Findings<'a, SHOWN>, index: usize) -> Option<Text<8192>> {
        let Some(finding) = findings.get(index) else {
            return None;
        };
        let mut text = Text::new();
        finding.show(Tree(self.items), self.name, self.text, &mut text);
        if index + 1 == SHOWN && findings.total() > SHOWN {
            text.push("\n... and ");
            text.int((findings.total() - SHOWN) as i128);
            text.push(" more in this file");
        }
        Some(text)
    }

    /// Fails to compile where there is a mistake of this index.
    ///
    /// # Panics
    /// In a `const` only.
    #[track_caller]
    pub const fn refuse(&self, findings: &Findings<'a, SHOWN>, index: usize) {
        if let Some(text) = self.message(findings, index) {
            panic!("{}", text.as_str());
        }
    }
}

/// A value: its key, the bytes of key and value, the index of what it is in
/// and the index after all that is in it.
pub const fn item<'a>(key: &'a str, bytes: [usize; 4], parent: usize, end: usize, written: Written<'a>) -> Item<'a> {
    let [key_start, key_end, start, stop] = bytes;
    let key_span = Span::new(SourceId(0), key_start, key_end);
    Item { key, key_span, span: Span::new(SourceId(0), start, stop), parent, end, written, referred: None }
}

/// The value of an outermost key that others refer to, see [`Item::referred`].
pub const fn referred<'a>(by: &'a [&'a str], item: Item<'a>) -> Item<'a> {
    Item { referred: Some(by), ..item }
}

/// Text in quotes, or what is text without them; the number that it would be.
pub const fn text(text: &str, quoted: bool, number: Option<Number>) -> Written<'_> {
    scalar(text, quoted, Kind::Text, number)
}

/// Null, or nothing.
pub const fn null(text: &str) -> Written<'_> {
    scalar(text, false, Kind::Null, None)
}

/// A truth value.
pub const fn truth(text: &str, value: bool) -> Written<'_> {
    scalar(text, false, Kind::Bool(value), None)
}

/// A whole number.
pub const fn int(text: &str, value: i128) -> Written<'_> {
    scalar(text, false, Kind::Int(value), Some(Number::Int(value)))
}

/// Any other number.
pub const fn float(text: &str, value: f64) -> Written<'_> {
    scalar(text, false, Kind::Float(value), Some(Number::Float(value)))
}

const fn scalar(text: &str, quoted: bool, kind: Kind, number: Option<Number>) -> Written<'_> {
    Written::Scalar(Scalar { text, quoted, shell: false, kind, number })
}

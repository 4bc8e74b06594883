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
pub struct Embedded {
    /// The path of its file, for messages.
    pub name: &'static str,
    /// The text of its file.
    pub text: &'static str,
    /// What was read from it, aliases and `${}` resolved.
    pub items: &'static [Item<'static>],
}

/// So many mistakes of a config are shown.
pub const SHOWN: usize = 8;

impl Embedded {
    /// What is wrong with it.
    pub const fn check(&self, schema: &'static Schema) -> Findings<'static, SHOWN> {
        check(schema, Tree(self.items))
    }

    /// Fails to compile where there is a mistake of this index.
    ///
    /// # Panics
    /// In a `const` only.
    #[track_caller]
    pub const fn refuse(&self, findings: &Findings<'static, SHOWN>, index: usize) {
        if let Some(finding) = findings.get(index) {
            let mut text = Text::<8192>::new();
            finding.show(Tree(self.items), self.name, self.text, &mut text);
            if index + 1 == SHOWN && findings.total() > SHOWN {
                text.push("\n... and ");
                text.int((findings.total() - SHOWN) as i128);
                text.push(" more in this file");
            }
            panic!("{}", text.as_str());
        }
    }
}

/// A value: its key, the bytes of key and value, the index of what it is in
/// and the index after all that is in it.
pub const fn item(
    key: &'static str,
    bytes: [usize; 4],
    parent: usize,
    end: usize,
    written: Written<'static>,
) -> Item<'static> {
    let [key_start, key_end, start, stop] = bytes;
    let key_span = Span::new(SourceId(0), key_start, key_end);
    Item { key, key_span, span: Span::new(SourceId(0), start, stop), parent, end, written }
}

/// Text in quotes, or what is text without them; the number that it would be.
pub const fn text(text: &'static str, quoted: bool, number: Option<Number>) -> Written<'static> {
    scalar(text, quoted, Kind::Text, number)
}

/// Null, or nothing.
pub const fn null(text: &'static str) -> Written<'static> {
    scalar(text, false, Kind::Null, None)
}

/// A truth value.
pub const fn truth(text: &'static str, value: bool) -> Written<'static> {
    scalar(text, false, Kind::Bool(value), None)
}

/// A whole number.
pub const fn int(text: &'static str, value: i128) -> Written<'static> {
    scalar(text, false, Kind::Int(value), Some(Number::Int(value)))
}

/// Any other number.
pub const fn float(text: &'static str, value: f64) -> Written<'static> {
    scalar(text, false, Kind::Float(value), Some(Number::Float(value)))
}

const fn scalar(text: &'static str, quoted: bool, kind: Kind, number: Option<Number>) -> Written<'static> {
    Written::Scalar(Scalar { text, quoted, shell: false, kind, number })
}

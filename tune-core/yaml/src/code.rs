//! Numbers of mistakes that stay what they are.

/// The number of a kind of mistake: `E0003`. What each means at length is in
/// the table of `tune-config`, which adds the kinds of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

impl Code {
    /// Text that is not YAML.
    pub const SYNTAX: Self = Self(1);
    /// A tab that indents.
    pub const TAB: Self = Self(2);
    /// A key that is written twice.
    pub const DUPLICATE_KEY: Self = Self(3);
    /// More than one document.
    pub const SECOND_DOCUMENT: Self = Self(4);
    /// A tag such as `!python/object`.
    pub const TAG: Self = Self(5);
    /// An alias of nothing, or of the value that it stands in.
    pub const ALIAS: Self = Self(6);
    /// A key that is a list or a mapping.
    pub const KEY: Self = Self(7);
    /// `<<` with something that is no mapping.
    pub const MERGE: Self = Self(8);
    /// More text, levels or values than a config has.
    pub const TOO_LARGE: Self = Self(9);
    /// A `${}` that is not written as one.
    pub const REFERENCE: Self = Self(10);
    /// A `${}` of a key that is not there.
    pub const UNKNOWN_REFERENCE: Self = Self(11);
    /// `${}` that need each other.
    pub const CYCLE: Self = Self(12);
    /// A `${}` of a list or mapping within text.
    pub const REFERENCE_IN_TEXT: Self = Self(13);

    /// The code as text.
    pub const fn text(self) -> crate::Text<8> {
        let mut text = crate::Text::new();
        text.push("E");
        let mut power = 1000;
        while power > 0 {
            text.int((self.0 / power % 10) as i128);
            power /= 10;
        }
        text
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text().as_str())
    }
}

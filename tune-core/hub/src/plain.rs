//! Text from elsewhere, shown without what would move the cursor, colour the terminal or turn the text around.

use std::borrow::Cow;

/// `text` with control characters escaped, but for line ends and tabs.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    let is_special = |c: char| {
        let turns = ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
        turns || c.is_control() && c != '\n' && c != '\t'
    };
    if !text.contains(is_special) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_special(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

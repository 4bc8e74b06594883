//! Text that is marked as safe HTML.

use std::borrow::Cow;

use crate::value::Str;

/// `markupsafe.escape`, of text that is not marked.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// The text as it goes into marked text.
pub(crate) fn soft(text: &Str) -> Cow<'_, str> {
    if text.safe { Cow::Borrowed(text) } else { Cow::Owned(escape(text)) }
}

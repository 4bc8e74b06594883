//! Lines of a text with carets, as rustc shows them, written by a `const fn`.

use crate::{Span, Text};

/// A place to show, with a few words for its caret.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Where.
    pub span: Span,
    /// The words; may be empty.
    pub label: &'a str,
}

impl<'a> Place<'a> {
    /// A place with its words.
    pub const fn new(span: Span, label: &'a str) -> Self {
        Self { span, label }
    }
}

impl<const N: usize> Text<N> {
    /// Adds the lines of `text` that `places` are in: the first one is what the
    /// carets are for, and the position after `name` is its. Returns the width
    /// of the line numbers, for remarks.
    pub const fn snippet(&mut self, name: &str, text: &str, places: &[Place<'_>]) -> usize {
        if places.is_empty() {
            return 1;
        }
        let mut last = 0;
        let mut at = 0;
        while at < places.len() {
            let line = Line::of(text, places[at].span).number;
            last = if line > last { line } else { last };
            at += 1;
        }
        let margin = last.ilog10() as usize + 1;
        let first = Line::of(text, places[0].span);
        self.push("\n");
        self.repeat(" ", margin);
        self.push_all(&["--> ", name, ":"]);
        self.int(first.number as i128);
        self.push(":");
        self.int(first.column as i128);
        self.empty(margin);
        let (mut shown, mut line_before) = (0, 0);
        while shown < places.len() {
            let at = nth(places, shown);
            let line = Line::of(text, places[at].span);
            if line.number != line_before {
                if shown > 0 && line.number > line_before + 1 {
                    self.push("\n...");
                }
                self.line(margin, &line);
            }
            self.mark(margin, &line, places[at], if at == 0 { "^" } else { "-" });
            line_before = line.number;
            shown += 1;
        }
        margin
    }

    /// Adds a fact or an advice below a snippet: `= note: ...`; nothing for an
    /// empty text.
    pub const fn remark(&mut self, margin: usize, kind: &str, text: &str) {
        if !text.is_empty() {
            self.push("\n");
            self.repeat(" ", margin + 1);
            self.push_all(&["= ", kind, ": ", text]);
        }
    }

    const fn empty(&mut self, margin: usize) {
        self.push("\n");
        self.repeat(" ", margin + 1);
        self.push("|");
    }

    const fn line(&mut self, margin: usize, line: &Line<'_>) {
        self.push("\n");
        let width = line.number.ilog10() as usize + 1;
        self.repeat(" ", margin - width);
        self.int(line.number as i128);
        self.push(" | ");
        self.push(line.before);
        self.push(line.marked);
        self.push(line.after);
    }

    const fn mark(&mut self, margin: usize, line: &Line<'_>, place: Place<'_>, mark: &str) {
        self.empty(margin);
        self.push(" ");
        // Tabs stay tabs, so that the caret stands where it should.
        let before = line.before.as_bytes();
        let mut at = 0;
        while at < before.len() {
            if line.before.is_char_boundary(at) {
                self.push(if before[at] == b'\t' { "\t" } else { " " });
            }
            at += 1;
        }
        let width = chars(line.marked);
        self.repeat(mark, if width == 0 { 1 } else { width });
        if !place.label.is_empty() {
            self.push_all(&[" ", place.label]);
        }
    }
}

/// The line that a place begins in; a place ends with its first line: carets
/// below a whole mapping would show the whole mapping.
struct Line<'a> {
    number: usize,
    column: usize,
    before: &'a str,
    marked: &'a str,
    after: &'a str,
}

impl<'a> Line<'a> {
    const fn of(text: &'a str, span: Span) -> Self {
        let bytes = text.as_bytes();
        let at = boundary(text, span.start);
        let (mut number, mut start, mut byte) = (1, 0, 0);
        while byte < at {
            if bytes[byte] == b'\n' {
                number += 1;
                start = byte + 1;
            }
            byte += 1;
        }
        let mut end = at;
        while end < bytes.len() && bytes[end] != b'\n' {
            end += 1;
        }
        if end > at && bytes[end - 1] == b'\r' {
            end -= 1;
        }
        let marked = boundary(text, if span.end < end { span.end } else { end });
        let marked = if marked < at { at } else { marked };
        let before = slice(text, start, at);
        Self {
            number,
            column: chars(before) + 1,
            before,
            marked: slice(text, at, marked),
            after: slice(text, marked, end),
        }
    }
}

/// The last boundary of a character that is not after `at`.
const fn boundary(text: &str, at: usize) -> usize {
    let mut at = if at < text.len() { at } else { text.len() };
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

const fn slice(text: &str, start: usize, end: usize) -> &str {
    text.split_at(end).0.split_at(start).1
}

const fn chars(text: &str) -> usize {
    let (mut count, mut at) = (0, 0);
    while at < text.len() {
        count += text.is_char_boundary(at) as usize;
        at += 1;
    }
    count
}

/// The place that comes after `rank` others in the text.
const fn nth(places: &[Place<'_>], rank: usize) -> usize {
    let mut candidate = 0;
    loop {
        let (mut earlier, mut at) = (0, 0);
        while at < places.len() {
            let (a, b) = (places[at].span.start, places[candidate].span.start);
            earlier += (a < b || a == b && at < candidate) as usize;
            at += 1;
        }
        if earlier == rank || candidate + 1 == places.len() {
            return candidate;
        }
        candidate += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SourceId;

    const TEXT: &str = "a: 1\nopt:\n  \tü: {x: y}\r\nlast: [1,\n 2]";

    const fn place<'a>(start: usize, end: usize, label: &'a str) -> Place<'a> {
        Place::new(Span::new(SourceId(0), start, end), label)
    }

    const fn show(places: &[Place<'_>]) -> Text<400> {
        let mut text = Text::new();
        text.snippet("c.yaml", TEXT, places);
        text
    }

    #[test]
    fn places_of_several_lines_in_their_order() {
        const SHOWN: Text<400> = show(&[place(18, 19, "no key"), place(0, 1, "chosen here")]);
        let lines = ["", " --> c.yaml:3:8", "  |", "1 | a: 1", "  | - chosen here", "...", "3 |   \tü: {x: y}"];
        assert_eq!(SHOWN.as_str(), lines.join("\n") + "\n  |   \t    ^ no key");
    }

    #[test]
    fn places_of_one_line_and_of_many() {
        let shown = show(&[place(18, 19, ""), place(13, 15, "in here")]);
        assert!(shown.as_str().ends_with("\n  |   \t- in here\n  |   \t    ^"), "{shown}");
        let shown = show(&[place(31, 38, "two")]);
        assert!(shown.as_str().ends_with("\n4 | last: [1,\n  |       ^^^ two"), "{shown}");
    }

    #[test]
    fn places_outside_of_the_text() {
        let shown = show(&[place(900, 1000, ""), place(13, 13, "")]);
        assert!(shown.as_str().contains("c.yaml:5:4"), "{shown}");
    }
}

//! A line that is being typed.

use console::Key;

/// How a line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Typed,
    /// Ctrl-C.
    GivenUp,
    /// Ctrl-D in an empty line.
    End,
}

/// A line with a cursor, and the lines that were typed before.
pub(super) struct Edited<'a> {
    text: Vec<char>,
    at: usize,
    history: &'a [String],
    /// Which of the lines before is shown; the one that is new is behind them.
    shown: usize,
    /// The new one, while another is shown.
    new: Vec<char>,
}

impl<'a> Edited<'a> {
    pub(super) fn new(history: &'a [String]) -> Self {
        Self { text: Vec::new(), at: 0, history, shown: history.len(), new: Vec::new() }
    }

    pub(super) fn text(&self) -> String {
        self.text.iter().collect()
    }

    /// What stands before the cursor.
    pub(super) fn before(&self) -> String {
        self.text[..self.at].iter().collect()
    }

    pub(super) fn go_to_end(&mut self) {
        self.at = self.text.len();
    }

    /// Does what a key is for, and says whether the line has ended with it.
    pub(super) fn press(&mut self, key: &Key) -> Option<Done> {
        match key {
            Key::Enter => return Some(Done::Typed),
            Key::CtrlC => return Some(Done::GivenUp),
            // Ctrl-D.
            Key::Char('\u{4}') if self.text.is_empty() => return Some(Done::End),
            Key::Char('\u{4}') | Key::Del if self.at < self.text.len() => {
                self.text.remove(self.at);
            }
            Key::Backspace | Key::Char('\u{8}') if self.at > 0 => {
                self.at -= 1;
                self.text.remove(self.at);
            }
            Key::ArrowLeft | Key::Char('\u{2}') => self.at = self.at.saturating_sub(1),
            Key::ArrowRight | Key::Char('\u{6}') => self.at = (self.at + 1).min(self.text.len()),
            Key::Home => self.at = 0,
            Key::End => self.go_to_end(),
            // Ctrl-U, Ctrl-K, Ctrl-W: to the beginning, to the end, a word.
            Key::Char('\u{15}') => drop(self.text.drain(..std::mem::take(&mut self.at))),
            Key::Char('\u{b}') => self.text.truncate(self.at),
            Key::Char('\u{17}') => {
                let is_space = |c: &char| c.is_whitespace();
                let end = self.text[..self.at].iter().rposition(|c| !is_space(c)).map_or(0, |i| i + 1);
                let start = self.text[..end].iter().rposition(is_space).map_or(0, |i| i + 1);
                self.text.drain(start..self.at);
                self.at = start;
            }
            Key::ArrowUp | Key::Char('\u{10}') => self.show(self.shown.checked_sub(1)),
            Key::ArrowDown | Key::Char('\u{e}') => self.show(Some(self.shown + 1)),
            Key::Char(c) if !c.is_control() => {
                self.text.insert(self.at, *c);
                self.at += 1;
            }
            _ => {}
        }
        None
    }

    /// Shows another of the lines that were typed before, if there is that one.
    fn show(&mut self, number: Option<usize>) {
        let Some(number) = number.filter(|&number| number <= self.history.len()) else { return };
        if self.shown == self.history.len() {
            self.new = std::mem::take(&mut self.text);
        }
        self.text = match self.history.get(number) {
            Some(line) => line.chars().collect(),
            None => std::mem::take(&mut self.new),
        };
        self.shown = number;
        self.go_to_end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(history: &[&str], keys: &[Key]) -> (String, usize, Option<Done>) {
        let history: Vec<String> = history.iter().map(|line| (*line).to_owned()).collect();
        let mut edited = Edited::new(&history);
        let done = keys.iter().fold(None, |done, key| done.or(edited.press(key)));
        (edited.text(), edited.before().chars().count(), done)
    }

    fn keys(text: &str) -> Vec<Key> {
        text.chars().map(Key::Char).collect()
    }

    #[test]
    fn a_line_is_edited_as_in_other_programs() {
        let with = |more: &[Key]| typed(&[], &[keys("a bé c"), more.to_vec()].concat());
        assert_eq!(with(&[Key::Enter]), ("a bé c".to_owned(), 6, Some(Done::Typed)));
        assert_eq!(with(&[Key::ArrowLeft, Key::ArrowLeft, Key::Backspace]).0, "a b c");
        assert_eq!(with(&[Key::Home, Key::Del, Key::Char('x')]), ("x bé c".to_owned(), 1, None));
        assert_eq!(with(&[Key::Char('\u{17}'), Key::Char('\u{17}')]), ("a ".to_owned(), 2, None));
        assert_eq!(with(&[Key::ArrowLeft, Key::Char('\u{15}')]), ("c".to_owned(), 0, None));
        assert_eq!(with(&[Key::Home, Key::ArrowRight, Key::Char('\u{b}')]).0, "a");
        assert_eq!(with(&[Key::CtrlC]).2, Some(Done::GivenUp));
        // Ctrl-D ends in an empty line alone; what is no character is not typed.
        assert_eq!(with(&[Key::Char('\u{4}'), Key::Tab, Key::Char('\u{1f}')]), ("a bé c".to_owned(), 6, None));
        assert_eq!(typed(&[], &[Key::Char('\u{4}')]).2, Some(Done::End));
        assert_eq!(typed(&[], &[Key::Backspace, Key::Del, Key::ArrowLeft, Key::ArrowRight]).1, 0);
    }

    #[test]
    fn what_was_typed_before_comes_back() {
        let up = |n: usize| vec![Key::ArrowUp; n];
        assert_eq!(typed(&["one", "two"], &up(1)).0, "two");
        assert_eq!(typed(&["one", "two"], &up(5)).0, "one");
        // The new line is not lost.
        let back = [keys("new"), up(2), vec![Key::ArrowDown; 4]].concat();
        assert_eq!(typed(&["one", "two"], &back), ("new".to_owned(), 3, None));
        assert_eq!(typed(&[], &up(1)).0, "");
    }
}

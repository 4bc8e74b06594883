//! The text of an answer as it comes, up to where a stop sequence begins.

use tune_core::tokenizer::{Streaming, Tokenizer};

/// Cuts a text that comes in pieces at the first of some stop sequences.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut {
    stops: Vec<String>,
    /// What may be the beginning of one.
    held: String,
}

impl Cut {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// The text that is known not to be part of a stop sequence, and whether one has come.
    pub(crate) fn push(&mut self, new: &str) -> (String, bool) {
        self.held += new;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let from = self.held.char_indices().map(|(at, _)| at).find(|&at| begins(at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(from);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What has not been given yet.
    pub(crate) fn held(&self) -> &str {
        &self.held
    }

    /// What is left at the end.
    pub(crate) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Text of tokens, up to a stop sequence.
#[derive(Debug, Default)]
pub(crate) struct Text {
    streaming: Streaming,
    cut: Cut,
}

impl Text {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { streaming: Streaming::default(), cut: Cut::new(stops) }
    }

    /// The text that a token completes, and whether a stop sequence has come.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> tune_core::Result<(String, bool)> {
        Ok(self.cut.push(&self.streaming.push(tokenizer, id)?))
    }

    /// What is left at the end, and whether a stop sequence has come.
    ///
    /// # Errors
    /// As [`Text::push`].
    pub(crate) fn rest(&mut self, tokenizer: &Tokenizer) -> tune_core::Result<(String, bool)> {
        let (mut text, stopped) = self.cut.push(&self.streaming.rest(tokenizer)?);
        if !stopped {
            text += &self.cut.rest();
        }
        Ok((text, stopped))
    }
}

/// The text of one token, as lists of log-probabilities show it.
pub(crate) fn of_token(tokenizer: &Tokenizer, id: u32) -> String {
    let text = tokenizer.decode(&[id], false).unwrap_or_default();
    // SentencePiece drops the space at the beginning of a text, and this is none.
    let has_space = tokenizer.token(id).is_some_and(|token| token.starts_with('\u{2581}'));
    if has_space && !text.starts_with(' ') { format!(" {text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let mut cut = Cut::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut given = Vec::new();
        for piece in pieces {
            let (text, stopped) = cut.push(piece);
            given.push(text);
            if stopped {
                return (given, true, cut.rest());
            }
        }
        (given, false, cut.rest())
    }

    #[test]
    fn text_ends_where_a_stop_sequence_begins() {
        assert_eq!(cut(&["END"], &["abE", "N", "Dc"]), (vec!["ab".into(), "".into(), "".into()], true, "".into()));
        assert_eq!(cut(&["END"], &["abE", "Nx"]), (vec!["ab".into(), "ENx".into()], false, "".into()));
        // What was held back is given at the end.
        assert_eq!(cut(&["END"], &["abEN"]), (vec!["ab".into()], false, "EN".into()));
        assert_eq!(
            cut(&["é!", "\n\n"], &["né", "\n", "x"]),
            (vec!["n".into(), "é".into(), "\nx".into()], false, "".into())
        );
        // The first in the text counts, not the first in the list.
        assert_eq!(cut(&["b", "a"], &["xab"]), (vec!["x".into()], true, "".into()));
        assert_eq!(cut(&["aab"], &["aa", "ab"]), (vec!["".into(), "a".into()], true, "".into()));
        assert_eq!(cut(&[], &["ab"]), (vec!["ab".into()], false, "".into()));
    }
}

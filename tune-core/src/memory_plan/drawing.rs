//! Answers that are drawn before they are learnt from.

use crate::data::{Batch, IGNORE, Span};

/// How answers are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawing {
    /// Answers to each prompt.
    pub samples: usize,
    /// An answer has this many tokens at most.
    pub max_new_tokens: usize,
}

impl Drawing {
    /// The prompts of a batch, each of which comes before a sample's last stretch of trained tokens, or is a text that is trained
    /// from its first token on, with answers that are as long as they may be: a row for each prompt, in which the answers to it are
    /// spans. A model reads `longest` tokens at most.
    #[must_use]
    pub fn answered(&self, batch: &Batch, longest: usize) -> Batch {
        let mut lens = Vec::with_capacity(batch.spans.len());
        for span in &batch.spans {
            let targets = &batch.targets[batch.positions_of(span)];
            let end = targets.iter().rposition(|&target| target != IGNORE).map_or(0, |last| last + 1);
            let before = targets[..end].iter().rposition(|&target| target == IGNORE).map_or(0, |before| before + 1);
            let prompt = match before {
                // A text that is a prompt as a whole.
                0 => span.len + usize::from(targets.last().is_some_and(|&target| target != IGNORE)),
                _ => before + 1,
            };
            // The last token of an answer is not read.
            lens.push((prompt, (prompt + self.max_new_tokens - 1).min(longest).max(prompt)));
        }
        let len = lens.iter().map(|(_, len)| len * self.samples).max().unwrap_or(0);
        let rows = lens.len();
        let mut answered = Batch {
            rows,
            len,
            input_ids: vec![0; rows * len],
            targets: vec![IGNORE; rows * len],
            positions: vec![0; rows * len],
            spans: Vec::with_capacity(rows * self.samples),
            origins: Vec::new(),
            labels: Vec::new(),
        };
        for (row, &(prompt, of_one)) in lens.iter().enumerate() {
            for sample in 0..self.samples {
                let span = Span { row, start: sample * of_one, len: of_one };
                let at = answered.positions_of(&span);
                answered.positions[at.clone()].iter_mut().zip(0..).for_each(|(to, position)| *to = position);
                answered.targets[at.start + prompt - 1..at.end].fill(0);
                answered.spans.push(span);
                answered.origins.push(String::new());
            }
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prompt_has_answers_that_are_as_long_as_they_may_be() {
        // Prompts of two and of three tokens; the second is the last turn of a conversation.
        let batch = Batch {
            rows: 2,
            len: 5,
            input_ids: vec![0; 10],
            targets: vec![IGNORE, 7, IGNORE, IGNORE, IGNORE, 5, IGNORE, 7, 7, IGNORE],
            positions: (0..2).flat_map(|_| 0..5).collect(),
            spans: vec![Span { row: 0, start: 0, len: 3 }, Span { row: 1, start: 0, len: 5 }],
            origins: vec![String::new(); 2],
            labels: Vec::new(),
        };
        let drawing = Drawing { samples: 2, max_new_tokens: 4 };
        let answered = drawing.answered(&batch, 100);
        assert_eq!((answered.rows, answered.len), (2, 12));
        let lens: Vec<usize> = answered.spans.iter().map(|span| span.len).collect();
        assert_eq!(lens, [5, 5, 6, 6]);
        assert!(answered.spans.iter().all(|span| answered.trained_tokens_of(span) == 4));
        // A text.
        let text = Batch { targets: vec![7, 7, IGNORE, IGNORE, IGNORE, 7, 7, 7, 7, 7], ..batch.clone() };
        let lens: Vec<usize> = drawing.answered(&text, 100).spans.iter().map(|span| span.len).collect();
        assert_eq!(lens, [6, 6, 9, 9]);
        // A model that reads no more than that.
        let cut = drawing.answered(&batch, 5);
        assert_eq!(cut.spans.iter().map(|span| span.len).collect::<Vec<_>>(), [5, 5, 5, 5]);
        assert_eq!(cut.trained_tokens_of(&cut.spans[3]), 3);
    }
}

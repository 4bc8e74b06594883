//! Answers that a reward model scores.

use super::rollout::Rollout;
use crate::data::{Batch, IGNORE, Sample, Span};
use crate::models::Decoder;
use crate::{Result, engine};

impl Rollout {
    /// Has a reward model say what each answer is worth: its score of prompt and answer together, at their last token that is not
    /// `pad`.
    ///
    /// # Errors
    /// As [`engine::scores`].
    pub fn score_with(&mut self, model: &Decoder, pad: Option<u32>) -> Result<()> {
        let last: Vec<u32> =
            self.answers.iter().map(|answer| answer.sampled.ids.last().copied().unwrap_or(0)).collect();
        let asked = match self.answers.is_empty() {
            // Of a process whose micro-batch is none: the model's blocks are gathered from all.
            true => Batch::idle(),
            false => finished(&self.batch, &last, pad),
        };
        let scores = engine::scores(model, &asked)?;
        self.answers.iter_mut().zip(scores).for_each(|(answer, score)| answer.reward = score);
        Ok(())
    }
}

/// The sequences of a batch with the `last` token of each, which the batch does not have, in one row: each is scored at its end.
pub(crate) fn finished(batch: &Batch, last: &[u32], pad: Option<u32>) -> Batch {
    let mut row = Batch {
        rows: 1,
        len: 0,
        input_ids: Vec::new(),
        targets: Vec::new(),
        positions: Vec::new(),
        spans: Vec::with_capacity(batch.spans.len()),
        origins: batch.origins.clone(),
        labels: Vec::new(),
    };
    for (span, &last) in batch.spans.iter().zip(last) {
        let mut input_ids = batch.input_ids[batch.positions_of(span)].to_vec();
        input_ids.push(last);
        let sample = Sample { targets: vec![IGNORE; input_ids.len()], input_ids, origin: String::new(), label: None }
            .scored(0, pad);
        let len = sample.input_ids.len();
        row.spans.push(Span { row: 0, start: row.len, len });
        row.positions.extend(0..len as u32);
        row.input_ids.extend(sample.input_ids);
        row.targets.extend(sample.targets);
        row.len += len;
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_scored_at_its_last_token_that_is_no_padding() {
        let batch = Batch {
            rows: 2,
            len: 3,
            input_ids: vec![5, 6, 7, 8, 9, 0],
            targets: vec![IGNORE, 7, 1, 9, 1, IGNORE],
            positions: vec![0, 1, 2, 0, 1, 0],
            spans: vec![Span { row: 0, start: 0, len: 3 }, Span { row: 1, start: 0, len: 2 }],
            origins: vec![String::new(); 2],
            labels: Vec::new(),
        };
        let whole = finished(&batch, &[1, 4], None);
        assert_eq!((whole.rows, whole.len), (1, 7));
        assert_eq!(whole.input_ids, [5, 6, 7, 1, 8, 9, 4]);
        assert_eq!(whole.positions, [0, 1, 2, 3, 0, 1, 2]);
        let scored = |batch: &Batch| (0..batch.len).filter(|&i| batch.targets[i] != IGNORE).collect::<Vec<_>>();
        assert_eq!(scored(&whole), [3, 6]);
        // Where answers end with what fills rows up, the token before counts.
        let padded = finished(&batch, &[1, 4], Some(1));
        assert_eq!(padded.input_ids, [5, 6, 7, 8, 9, 4]);
        assert_eq!(scored(&padded), [2, 5]);
        assert_eq!(padded.spans[1], Span { row: 0, start: 3, len: 3 });
    }
}

//! What a reference model says before the first step, and where a run keeps it.

use std::collections::BTreeMap;

use super::outline::fingerprints;
use super::{Opened, Run};
use crate::Result;
use crate::checkpoint::KeptAnswers;
use crate::methods::{Questions, Reference, ReferenceChoice, said_in};
use crate::words::{count, for_number};

impl Opened {
    /// The samples that a reference model is asked about before the first step, but for those of which [`Opened::kept_answers`] has found what
    /// it said.
    pub fn questions(&self) -> Questions<'_> {
        let questions = Questions::about(&self.train_data, self.validation_data.as_ref()).but_for(&self.kept_answers);
        if !self.outline.asks_how_far {
            return questions;
        }
        let plan = self.plan();
        questions.with_mismatched(plan.epochs, plan.most_batches_per_epoch(), self.outline.data.tokenizer.max_seq_len)
    }

    /// What the reference model said of all these samples before the first step of the run that is resumed, if that is kept beside its
    /// checkpoints; `None` where it is to be asked. Where that is because validation data is other now, it is asked about the new samples
    /// alone. Files that are damaged or of another run are no use. Both are said on the console. Waits until all data is tokenized.
    ///
    /// # Errors
    /// A record that cannot be tokenized, and another process that has ended.
    pub fn kept_answers(&mut self) -> Result<Option<Reference>> {
        let is_asked_once =
            self.outline.reference.as_ref().is_some_and(|asked| asked.when == ReferenceChoice::Precomputed);
        let Some(state) = self.state.as_ref().filter(|_| is_asked_once) else { return Ok(None) };
        // Who writes checkpoints looks at the file on behalf of all. Whether data and models are still what the checkpoint says is looked at when
        // the run begins.
        let output_dir = &self.outline.run.output_dir;
        let kept = match self.outline.group.is_main() {
            true => KeptAnswers::read(output_dir),
            false => Ok(None),
        };
        let (said, useless) = match kept {
            Ok(Some(kept)) if kept.inputs == state.inputs => (kept.said, None),
            Ok(Some(_)) => {
                let dir = output_dir.display();
                (BTreeMap::new(), Some(format!("{dir}: what the reference model said there is of another run")))
            }
            Ok(None) => (BTreeMap::new(), None),
            Err(why) => (BTreeMap::new(), Some(why.to_string())),
        };
        if let Some(useless) = useless {
            self.note(&format!("{useless}; the reference model is asked again"));
        }
        self.kept_answers = said_in(&self.outline.group, said.into_iter().collect())?;
        if self.questions().are_answered()? {
            return Ok(Some(Reference::Said(std::mem::take(&mut self.kept_answers))));
        }
        let samples = self.kept_answers.len();
        if samples > 0 {
            self.note(&format!(
                "What the reference model said of {} is kept: it is not asked about {}",
                count(samples, "sample"),
                for_number(samples, "it", "these")
            ));
        }
        Ok(None)
    }
}

impl Run {
    /// Keeps what a reference model said beside the run's checkpoints, for [`Opened::kept_answers`]; nothing of one that is asked at each
    /// step. That saves the time of asking again and is no part of the result: where it cannot be written, a warning says so.
    ///
    /// # Errors
    /// A record that cannot be tokenized.
    pub fn keep_answers(&mut self, reference: &Reference) -> Result<()> {
        let (Reference::Said(said), Some(run_dir)) = (reference, self.run_dir.clone()) else { return Ok(()) };
        let inputs = fingerprints(&self.train_data, &self.shape, &self.weight_fingerprints)?;
        let kept = KeptAnswers { inputs, said: said.clone() };
        let written = match KeptAnswers::read(run_dir.path()) {
            Ok(Some(there)) if there == kept => Ok(()),
            _ => kept.write(run_dir.path()),
        };
        if let Err(why) = written {
            self.console().warn(&format!("{why}; a run that is resumed here will ask the reference model again"));
        }
        Ok(())
    }
}

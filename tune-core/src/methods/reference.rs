//! The model that answers are compared with: what it says of them stays what it was before training.

use std::collections::{BTreeMap, HashSet};

use tune_config::Config;

use super::mismatched;
use super::teacher_files::key;
use crate::data::{Batch, Loader, Span};
use crate::distributed::Group;
use crate::models::Decoder;
use crate::{Error, Result, engine};

/// When the reference model says what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum ReferenceChoice {
    /// At each step. The model without its adapters takes no memory of its own; another model stays in memory.
    #[config(name = "each_step", default)]
    EachStep,
    /// Of all data before the first step; then it is forgotten, and each step is faster.
    #[config(name = "precomputed")]
    Precomputed,
}

/// A reference model, or what it said.
#[derive(Debug, Clone)]
pub enum Reference {
    /// None: the loss does without.
    Absent,
    /// It is asked at each step.
    Model(Box<Decoder>),
    /// What it said of each sample, by a key that is a hash of the sample.
    Said(BTreeMap<u64, f64>),
}

impl Reference {
    /// Asks a model about all samples, but for those of which it is [known](Questions::but_for) what it said. Waits until all data is
    /// tokenized. Of a model that is divided among processes, each asks about its share of the batches, and all know all answers.
    ///
    /// # Errors
    /// As [`engine::log_probs`], and a record that cannot be tokenized.
    pub fn ask(model: &Decoder, questions: &Questions<'_>) -> Result<Self> {
        let kept = questions.kept.into_iter().flatten();
        let mut asked = Asked { model, known: kept.clone().map(|(sample, _)| *sample).collect(), said: Vec::new() };
        questions.each_source(&mut |batches| asked.about(batches).map(|()| true))?;
        let mut said = said_in(model.mesh().all(), asked.said)?;
        said.extend(kept);
        Ok(Self::Said(said))
    }

    /// Its log-probability of each of a batch's samples, a sum over trained tokens, in the order of the spans; nothing where
    /// there is no reference model. A sample's number does not depend on the batch that it is in.
    ///
    /// # Errors
    /// As [`engine::log_probs`], and a sample that was not asked about.
    pub fn log_probs(&self, batch: &Batch) -> Result<Vec<f64>> {
        match self {
            Self::Absent => Ok(Vec::new()),
            Self::Model(model) => Ok(sums(batch, &engine::log_probs(model, batch)?)),
            Self::Said(said) => {
                let known = |(span, origin): (&Span, &String)| {
                    said.get(&key(batch, span)).copied().ok_or_else(|| {
                        Error::Training(format!("{origin}: the reference model was not asked about this sample"))
                    })
                };
                batch.spans.iter().zip(&batch.origins).map(known).collect()
            }
        }
    }
}

/// What the processes of a group know together, samples by their keys.
///
/// # Errors
/// As [`Group::gathered`].
pub(crate) fn said_in(group: &Group, mine: Vec<(u64, f64)>) -> Result<BTreeMap<u64, f64>> {
    let mine = mine.into_iter().map(|(sample, said)| [sample, said.to_bits()]).collect();
    let all: Vec<[u64; 2]> = group.gathered("what the reference model says", mine)?;
    Ok(all.into_iter().map(|[sample, said]| (sample, f64::from_bits(said))).collect())
}

/// The samples that a reference model is asked about before the first step.
#[derive(Clone, Copy)]
pub struct Questions<'a> {
    train: &'a Loader,
    validation: Option<&'a Loader>,
    /// What it said of some of them already.
    kept: Option<&'a BTreeMap<u64, f64>>,
    mismatched: Option<Mismatched>,
}

/// Which of the training data's batches are made into [`mismatched`] answers.
#[derive(Debug, Clone, Copy)]
struct Mismatched {
    epochs: u64,
    most_batches: usize,
    max_seq_len: Option<usize>,
}

/// Is shown the batches of a source, and says whether it wants more.
type See<'s> = &'s mut dyn FnMut(&mut dyn Iterator<Item = Result<Batch>>) -> Result<bool>;

impl<'a> Questions<'a> {
    /// All samples of some data.
    pub fn about(train: &'a Loader, validation: Option<&'a Loader>) -> Self {
        Self { train, validation, kept: None, mismatched: None }
    }

    /// Without those that are among these samples, by their keys: what the model said of them is known, the same in all processes.
    #[must_use]
    pub fn but_for(self, kept: &'a BTreeMap<u64, f64>) -> Self {
        Self { kept: Some(kept), ..self }
    }

    /// Whether it is known of all of them what the model said.
    ///
    /// # Errors
    /// A record that cannot be tokenized.
    pub(crate) fn are_answered(&self) -> Result<bool> {
        let Some(said) = self.kept.filter(|said| !said.is_empty()) else { return Ok(false) };
        let mut knows = true;
        self.each_source(&mut |batches| {
            for batch in batches {
                let batch = batch?;
                knows = batch.spans.iter().all(|span| said.contains_key(&key(&batch, span)));
                if !knows {
                    break;
                }
            }
            Ok(knows)
        })?;
        Ok(knows)
    }

    /// With those that a loss needs which asks how far a model has moved: the [`mismatched`] answers, cut to `max_seq_len` tokens, of the
    /// batches that these epochs train on, at most `most_batches` of each, and of the validation data's. As they hang on who shares a batch,
    /// each epoch has others where data is shuffled. A model is asked about each once.
    #[must_use]
    pub fn with_mismatched(self, epochs: u64, most_batches: usize, max_seq_len: Option<usize>) -> Self {
        Self { mismatched: Some(Mismatched { epochs, most_batches, max_seq_len }), ..self }
    }

    /// Shows the batches of one source after those of another, until `see` says that it is enough.
    fn each_source(&self, see: See<'_>) -> Result<()> {
        for (loader, is_trained) in std::iter::once((self.train, true)).chain(self.validation.map(|it| (it, false))) {
            if !see(&mut loader.epoch(0).batches(0))? {
                return Ok(());
            }
            let Some(Mismatched { epochs, most_batches, max_seq_len }) = self.mismatched else { continue };
            let (epochs, most) = if is_trained { (epochs, most_batches) } else { (1, usize::MAX) };
            for epoch in 0..epochs {
                let epoch = loader.epoch(epoch);
                if !see(&mut epoch.batches(0).take(most).map(|batch| Ok(mismatched(&batch?, max_seq_len))))? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// What a model said so far, each sample by its key.
struct Asked<'a> {
    model: &'a Decoder,
    /// The samples that some process has asked about: the same in all.
    known: HashSet<u64>,
    said: Vec<(u64, f64)>,
}

impl Asked<'_> {
    /// Asks about the samples of batches that nobody has asked about yet; each process takes its share of the batches.
    fn about(&mut self, batches: &mut dyn Iterator<Item = Result<Batch>>) -> Result<()> {
        let group = self.model.mesh().all();
        let mut rest = 0;
        for batch in batches {
            let Some(batch) = unknown(batch?, &mut self.known) else { continue };
            if rest == group.rank() {
                let of_samples = sums(&batch, &engine::log_probs(self.model, &batch)?);
                self.said.extend(batch.spans.iter().map(|span| key(&batch, span)).zip(of_samples));
            }
            rest = (rest + 1) % group.world_size();
        }
        // Who has no batch in the last round computes with the others all the same.
        if rest > 0 && rest <= group.rank() {
            engine::log_probs(self.model, &Batch::idle())?;
        }
        Ok(())
    }
}

/// The samples of a batch that are not known, if there are any; they are then. What a model says of one does not depend on the others.
fn unknown(batch: Batch, known: &mut HashSet<u64>) -> Option<Batch> {
    let new: Vec<bool> = batch.spans.iter().map(|span| known.insert(key(&batch, span))).collect();
    if new.iter().all(|is_new| *is_new) {
        return Some(batch);
    }
    let samples = batch.spans.iter().zip(&batch.origins).zip(new);
    let (spans, origins): (Vec<Span>, Vec<String>) =
        samples.filter(|(_, is_new)| *is_new).map(|((span, origin), _)| (*span, origin.clone())).unzip();
    (!spans.is_empty()).then(|| Batch { spans, origins, labels: Vec::new(), ..batch })
}

/// The sum over each sample of a batch.
fn sums(batch: &Batch, log_probs: &[f64]) -> Vec<f64> {
    batch.spans.iter().map(|span| log_probs[batch.positions_of(span)].iter().sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_asked_about_once() {
        let batch = |ids: [u32; 4]| Batch {
            rows: 2,
            len: 2,
            input_ids: ids.to_vec(),
            targets: ids.to_vec(),
            positions: vec![0, 1, 0, 1],
            spans: [0, 1].map(|row| Span { row, start: 0, len: 2 }).to_vec(),
            origins: vec!["one".to_owned(), "other".to_owned()],
            labels: vec![true, false],
        };
        let mut known = HashSet::new();
        assert_eq!(unknown(batch([1, 2, 3, 4]), &mut known), Some(batch([1, 2, 3, 4])));
        assert_eq!(unknown(batch([3, 4, 1, 2]), &mut known), None);
        let new = unknown(batch([1, 2, 5, 6]), &mut known).unwrap();
        assert_eq!((new.without_padding().input_ids, new.origins), (vec![5, 6], vec!["other".to_owned()]));
    }
}

//! What a run goes on from, and what must be as it was then.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Outline, StoredTeacher, Trained};
use crate::Result;
use crate::checkpoint::run::{self, Saved};
use crate::checkpoint::state::TrainingState;
use crate::checkpoint::{Below, Checkpoint};
use crate::data::Loader;
use crate::distributed::Group;
use crate::methods::TeacherFiles;
use crate::models::ModelSpec;

impl Outline {
    /// The checkpoint that the run goes on from, and of its state what belongs to this process of those that divide the model; `None` where
    /// it starts anew.
    ///
    /// # Errors
    /// A checkpoint that is damaged, or of a run with other settings: the message has them.
    pub fn resumed(&self, shards: &Group) -> Result<Option<(Saved, TrainingState)>> {
        match self.optimizer.offload_dir() {
            // It is read when there is a file that it goes to.
            Some(_) => self.resumed_with(TrainingState::read_without_optimizer),
            None => self.resumed_with(|dir| TrainingState::read_share(dir, shards)),
        }
    }

    pub(crate) fn resumed_with(
        &self,
        read: impl FnOnce(&Path) -> Result<TrainingState>,
    ) -> Result<Option<(Saved, TrainingState)>> {
        if self.run.start() != run::Start::Resume {
            return Ok(None);
        }
        let Some(saved) = run::latest(&self.run.output_dir)? else { return Ok(None) };
        let state = read(&saved.path)?;
        state.check_settings(&self.settings, &self.defaults)?;
        state.check_numbers(self.steps.epochs, saved.epoch, &saved.path)?;
        Ok(Some((saved, state)))
    }

    /// Numbers that stand for the weights that a run which is resumed needs again, by what they are.
    ///
    /// # Errors
    /// As [`Checkpoint::fingerprint`].
    pub(crate) fn weight_fingerprints(
        &self,
        base: &Checkpoint,
        reference: Option<&Checkpoint>,
    ) -> Result<BTreeMap<String, u32>> {
        let base = match self.trained {
            Trained::Adapters { .. } => Some(("the base model", base)),
            Trained::Weights => None,
        };
        let name =
            if self.reference.as_ref().is_some_and(|it| it.teaches) { "the teacher" } else { "the reference model" };
        let is_asked = !self.teacher_logits.as_ref().is_some_and(StoredTeacher::is_there);
        let reference = reference.filter(|_| is_asked).map(|reference| (name, reference));
        let fingerprint = |(name, model): (&str, &Checkpoint)| Ok((name.to_owned(), model.fingerprint()?));
        let mut fingerprints =
            base.into_iter().chain(reference).map(fingerprint).collect::<Result<BTreeMap<_, _>>>()?;
        // What it said may be all that there is of a teacher.
        if let Some(stored) = self.teacher_logits.as_ref().filter(|stored| stored.is_there()) {
            fingerprints.extend(TeacherFiles::header(&stored.config.path)?.teacher);
            fingerprints.insert("what the teacher said".to_owned(), TeacherFiles::fingerprint(&stored.config.path)?);
        } else if let Some(merged) = self.adapted_teacher()? {
            fingerprints.insert("the teacher's adapter".to_owned(), merged.fingerprint_of_adapters()?);
        }
        if let Some((judge, _)) = self.judge()? {
            fingerprints.insert("the reward model".to_owned(), judge.fingerprint()?);
        }
        for dir in self.base_adapters() {
            let Below { dir, crc32c } = Below::of(dir)?;
            fingerprints.insert(format!("the adapter in {}", dir.display()), crc32c);
        }
        Ok(fingerprints)
    }
}

/// What must be unchanged when a run is resumed, besides its settings: the training data, what the base model computes
/// and those `weights` that are not in the run's own checkpoints.
///
/// # Errors
/// As [`Loader::fingerprint`].
pub(crate) fn fingerprints(
    train_data: &Loader,
    model: &ModelSpec,
    weights: &BTreeMap<String, u32>,
) -> Result<BTreeMap<String, u32>> {
    let mut fingerprints = BTreeMap::from([
        ("the training data".to_string(), train_data.fingerprint()?),
        ("the base model's config".to_string(), crc32c::crc32c(format!("{model:?}").as_bytes())),
    ]);
    fingerprints.extend(weights.clone());
    Ok(fingerprints)
}

//! The model that the one in training is compared with or taught by.

use std::path::Path;

use super::{Outline, Trained, stored};
use crate::artifact::newest;
use crate::checkpoint::merge::Merged;
use crate::checkpoint::{Checkpoint, CheckpointConfig};
use crate::methods::ReferenceChoice;
use crate::models::{Decoder, ModelSpec};
use crate::{Error, Result};

/// The model that the one in training is compared with or taught by: what it says of the data does not change.
#[derive(Debug, Clone)]
pub struct Compared {
    /// When it says it.
    pub when: ReferenceChoice,
    /// Where it is; where `None`, it is the model that training starts from, without adapters.
    pub checkpointer: Option<CheckpointConfig>,
    /// Whether it is a teacher, whose logits are compared with those of the model in training.
    pub teaches: bool,
}

impl Compared {
    /// A teacher, which is asked at each step. Of a run's folder, its newest checkpoint is meant.
    ///
    /// # Errors
    /// A run's folder that cannot be read.
    pub fn teacher(mut checkpointer: CheckpointConfig) -> Result<Self> {
        for dir in std::iter::once(&mut checkpointer.checkpoint_dir).chain(&mut checkpointer.adapter_checkpoint) {
            if let Some(newest) = newest(dir)? {
                *dir = newest;
            }
        }
        Ok(Self { when: ReferenceChoice::EachStep, checkpointer: Some(checkpointer), teaches: true })
    }

    /// What it is called.
    pub(crate) fn role(&self) -> &'static str {
        if self.teaches { "teacher" } else { "reference" }
    }
}

impl Outline {
    /// The reference model's files and its shape, where it is a model of its own and not the one in training without its
    /// adapters. No weight is read.
    ///
    /// # Errors
    /// As [`Outline::base`]; an adapter on a reference model, which is to be merged first, or one that does not fit a teacher;
    /// and a teacher with another number of tokens than the student.
    pub fn reference(&self) -> Result<Option<(Checkpoint, ModelSpec)>> {
        let Some(compared) = &self.reference else { return Ok(None) };
        let config = match (&compared.checkpointer, &self.trained) {
            (Some(config), _) => config,
            (None, Trained::Weights) => &self.run.checkpointer,
            (None, Trained::Adapters { .. }) => return Ok(None),
        };
        if let (Some(dir), false) = (&config.adapter_checkpoint, compared.teaches) {
            return Err(Error::file(
                dir,
                "a reference model is a whole one: merge the adapter into its base, and set \
                 ref_checkpointer.checkpoint_dir to the merged model",
            ));
        }
        let reference = config.open()?;
        let shape = ModelSpec::of(&reference)?;
        Decoder::skeleton(shape.clone(), &reference)?;
        if compared.teaches {
            let student = self.shape(&self.run.checkpointer.open()?)?.vocab_size;
            if shape.vocab_size != student {
                return Err(Error::file(
                    reference.path(),
                    format!(
                        "the teacher has logits of {} tokens and the student of {student}: they cannot be compared; take a \
                         teacher of the student's own family, or have it write answers and train on these with `lora` or \
                         `full`",
                        shape.vocab_size
                    ),
                ));
            }
            self.adapted_teacher()?;
        }
        Ok(Some((reference, shape)))
    }

    /// The folder of the teacher's adapter, if it has one.
    fn adapter_of_teacher(&self) -> Option<&Path> {
        let compared = self.reference.as_ref().filter(|compared| compared.teaches)?;
        compared.checkpointer.as_ref()?.adapter_checkpoint.as_deref()
    }

    /// The teacher with its adapter, weights still on disk, where it has one.
    ///
    /// # Errors
    /// An adapter for another base.
    pub(crate) fn adapted_teacher(&self) -> Result<Option<Merged>> {
        let (Some(compared), Some(dir)) = (&self.reference, self.adapter_of_teacher()) else { return Ok(None) };
        let Some(config) = &compared.checkpointer else { return Ok(None) };
        stored::adapted(config.open()?, dir.to_owned()).map(Some)
    }

    /// What the model is compared with, in words; `reference` is the model of its own, if it is one.
    pub(crate) fn describe_reference(&self, reference: Option<&Checkpoint>) -> Option<String> {
        let Some(Compared { when, teaches, .. }) = &self.reference else { return self.describe_stored(None) };
        let mut model = match reference {
            Some(reference) => reference.path().display().to_string(),
            None => "the base model, which is this one without its adapters".to_owned(),
        };
        if let Some(adapter) = self.adapter_of_teacher() {
            model += &format!(" + {}", adapter.display());
        }
        Some(match when {
            ReferenceChoice::EachStep if *teaches => model,
            ReferenceChoice::EachStep => format!("{model}, asked at each step"),
            ReferenceChoice::Precomputed if *teaches => return self.describe_stored(Some(model)),
            ReferenceChoice::Precomputed => format!("{model}, asked of all data before the first step"),
        })
    }
}

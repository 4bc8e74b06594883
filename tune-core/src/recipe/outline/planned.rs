//! What a plan of memory is made of.

use super::{Compared, Outline, Trained};
use crate::Result;
use crate::checkpoint::state::TrainingState;
use crate::data::{Batch, Loader};
use crate::device::{Compute, DeviceConfig};
use crate::engine::Loss;
use crate::memory_plan::{Asked, Copied, Drawing, MemoryPlan, PlannedCard, Processes, ReferencePass, Setting};
use crate::methods::{ReferenceChoice, TeacherFiles};
use crate::models::{InBlocks, ModelSpec};
use crate::peft::LoraOptions;
use crate::recipe::Plan;

/// Steps from a run's beginning that a memory plan goes through, besides the most demanding one.
const FIRST_STEPS: usize = 4;

impl Outline {
    /// What the run needs of memory of the device that was opened for it, or of the one that the config names, in each of some
    /// `processes`, where it goes on from `state`, if it does; `asked` is what the model is asked meanwhile. To be asked when the data is there
    /// and the weights are still on disk, see [`MemoryPlan::new`].
    ///
    /// # Errors
    /// A precision that is not trained in, data that cannot be read, `TUNE_MEMORY` or `TUNE_CUDA_MEMORY` without a size.
    pub fn memory_plan(
        &self,
        device: Option<&Compute>,
        processes: Processes,
        (model, in_blocks): (&ModelSpec, &InBlocks),
        (train_data, validation_data): (&Loader, Option<&Loader>),
        asked: Asked,
        state: Option<&TrainingState>,
    ) -> Result<MemoryPlan> {
        let card = match (device, self.run.device) {
            (Some(Compute::Card(card)), _) => Some(PlannedCard::new(Some(card))?),
            (None, DeviceConfig::Cuda(_)) => Some(PlannedCard::new(None)?),
            _ => None,
        };
        let (reference_model, reference_lora) = match (self.adapted_teacher()?, self.reference()?) {
            (Some(adapted), _) => {
                let (shape, lora) = adapted.beside()?;
                (Some(shape), lora)
            }
            (None, reference) => (reference.map(|(_, shape)| shape), None),
        };
        let reference = self.reference.as_ref().map(|Compared { when, teaches, .. }| ReferencePass {
            model: reference_model,
            lora: reference_lora,
            each_step: *when == ReferenceChoice::EachStep,
            // One that is asked beforehand is not there together with its student.
            teaches: *teaches && *when == ReferenceChoice::EachStep,
        });
        let said = self.teacher_logits.as_ref().map(|stored| stored.config.top_k.min(model.vocab_size));
        let said_of_token = said.map_or(0, TeacherFiles::bytes_of_position);
        let trained = match train_data.known_len() {
            Some(_) => train_data.reports()?.iter().map(|report| report.trained_tokens).sum(),
            None => usize::MAX,
        };
        // What it says goes to files by and by.
        let said_together = trained.saturating_mul(said_of_token).min(TeacherFiles::TOGETHER) as u64;
        let plan = self.steps.plan().of_all(processes.all());
        let Plan { gradient_accumulation_steps, epochs, .. } = plan;
        // What is learnt from and validated on is as long as can be.
        let longest = model.max_position_embeddings;
        let drawn = |mut steps: Vec<Vec<Batch>>, samples: Option<usize>| {
            if let Some(drawing) = self.drawing {
                let drawing = Drawing { samples: samples.unwrap_or(drawing.samples), ..drawing };
                steps.iter_mut().flatten().for_each(|batch| *batch = drawing.answered(batch, longest));
            }
            steps
        };
        let of_data = train_data.demanding_steps(
            epochs,
            plan.most_batches_per_epoch(),
            gradient_accumulation_steps,
            FIRST_STEPS,
        )?;
        let validation_steps =
            validation_data.map_or(Ok(Vec::new()), |data| data.demanding_steps(1, usize::MAX, 1, 0))?;
        // A student has its own answers to some batches and the data's to others, and is validated on these.
        let is_taught = reference.as_ref().is_some_and(|reference: &ReferencePass| reference.teaches);
        let (steps, validation_steps) = match is_taught && self.drawing.is_some() {
            true => ([of_data.clone(), drawn(of_data, None)].concat(), validation_steps),
            false => (drawn(of_data, None), drawn(validation_steps, Some(1))),
        };
        MemoryPlan::new(&Setting {
            model: model.clone(),
            in_blocks: in_blocks.clone(),
            dtype: self.run.dtype.training_dtype()?,
            lora: match &self.trained {
                Trained::Adapters { lora, .. } => Some(LoraOptions::clone(lora)),
                Trained::Weights => None,
            },
            optimizer: self.optimizer.clone(),
            optimizer_state_held: state.map_or(0, TrainingState::bytes),
            optimizer_in_backward: self.optimizer_in_bwd,
            activation_checkpointing: self.steps.enable_activation_checkpointing,
            activation_offload_dir: self.steps.activation_offload_dir.clone(),
            gradient_accumulation_steps,
            clips_gradients: self.steps.clip_grad_norm.is_some(),
            packed: self.data.is_packed(),
            loss: match self.data.is_of_pairs() || self.data.is_labelled() || (self.drawing.is_some() && !is_taught) {
                _ if self.head.is_some() => Loss::Scores,
                true => Loss::LogProbs,
                false => Loss::Tokens,
            },
            copied: match &self.trained {
                _ if !self.run.enable_async_checkpointing => None,
                Trained::Adapters { merged: true, .. } => Some(Copied::WithMerged),
                _ => Some(Copied::Trained),
            },
            merges: matches!(&self.trained, Trained::Adapters { merged: true, .. }),
            drawing: self.drawing,
            fake_quantizer: self.fake_quantizer,
            reference,
            mismatched: self.asks_how_far.then(|| self.data.tokenizer.max_seq_len.unwrap_or(usize::MAX)),
            said_of_token,
            said_together,
            value: self.value()?.map(|(_, shape)| shape),
            judge: self.judge()?.map(|(_, shape)| shape),
            batch_size: self.data.batch_size,
            rows_of_update: self.rows_of_update,
            card,
            processes,
            steps,
            validation_steps,
            asked,
        })
    }
}

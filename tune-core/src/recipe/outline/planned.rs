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

/// The micro-batches of some steps.
type Batches = Vec<Vec<Batch>>;

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
        let reference = self.reference_pass()?;
        let said = self.teacher_logits.as_ref().map(|stored| stored.config.top_k.min(model.vocab_size));
        let said_of_token = said.map_or(0, TeacherFiles::bytes_of_position);
        let trained = match train_data.known_len() {
            Some(_) => train_data.reports()?.iter().map(|report| report.trained_tokens).sum(),
            None => usize::MAX,
        };
        // What it says goes to files by and by.
        let said_together = trained.saturating_mul(said_of_token).min(TeacherFiles::TOGETHER) as u64;
        let plan = self.steps.plan().of_all(processes.all());
        let is_taught = reference.as_ref().is_some_and(|reference| reference.teaches);
        let (steps, validation_steps) = self.planned_steps(plan, model, (train_data, validation_data), is_taught)?;
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
            gradient_accumulation_steps: plan.gradient_accumulation_steps,
            clips_gradients: self.steps.clip_grad_norm.is_some(),
            packed: self.data.is_packed(),
            loss: self.planned_loss(is_taught),
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

    /// What the model is compared with, if it is.
    fn reference_pass(&self) -> Result<Option<ReferencePass>> {
        let (model, lora) = match (self.adapted_teacher()?, self.reference()?) {
            (Some(adapted), _) => {
                let (shape, lora) = adapted.beside()?;
                (Some(shape), lora)
            }
            (None, reference) => (reference.map(|(_, shape)| shape), None),
        };
        Ok(self.reference.as_ref().map(|Compared { when, teaches, .. }| {
            let each_step = *when == ReferenceChoice::EachStep;
            // One that is asked beforehand is not there together with its student.
            ReferencePass { model, lora, each_step, teaches: *teaches && each_step }
        }))
    }

    /// The steps and the validation that are gone through, by their batches: those of the data, or prompts with answers as long as they
    /// may be.
    fn planned_steps(
        &self,
        plan: Plan,
        model: &ModelSpec,
        (train_data, validation_data): (&Loader, Option<&Loader>),
        is_taught: bool,
    ) -> Result<(Batches, Batches)> {
        let Plan { gradient_accumulation_steps, epochs, .. } = plan;
        let most = plan.most_batches_per_epoch();
        let steps = train_data.demanding_steps(epochs, most, gradient_accumulation_steps, FIRST_STEPS)?;
        let validation = validation_data.map_or(Ok(Vec::new()), |data| data.demanding_steps(1, usize::MAX, 1, 0))?;
        let Some(drawing) = self.drawing else { return Ok((steps, validation)) };
        let answered = |mut steps: Batches, drawing: Drawing| {
            let longest = model.max_position_embeddings;
            steps.iter_mut().flatten().for_each(|batch| *batch = drawing.answered(batch, longest));
            steps
        };
        Ok(match is_taught {
            // A student has its own answers to some batches and the data's to others, and is validated on these.
            true => ([steps.clone(), answered(steps, drawing)].concat(), validation),
            false => (answered(steps, drawing), answered(validation, Drawing { samples: 1, ..drawing })),
        })
    }

    fn planned_loss(&self, is_taught: bool) -> Loss {
        let is_of_answers =
            self.data.is_of_pairs() || self.data.is_labelled() || (self.drawing.is_some() && !is_taught);
        match (&self.head, is_of_answers) {
            (Some(_), _) => Loss::Scores,
            (None, true) => Loss::LogProbs,
            (None, false) => Loss::Tokens,
        }
    }
}

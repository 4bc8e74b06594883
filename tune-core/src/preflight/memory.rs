//! The memory plan, within a check and alone.

use crate::Result;
use crate::eval::ExactMatch;
use crate::memory;
use crate::memory_plan::{MemoryPlan, Processes};
use crate::preflight::data::Data;
use crate::preflight::model::Model;
use crate::preflight::report::Report;
use crate::recipe::Outline;

/// What the run would take, where all that it follows from is sound.
pub(super) fn look(
    outline: &Outline,
    processes: Processes,
    model: Option<&Model>,
    data: &Data,
    report: &mut Report<'_>,
) {
    let (Some(shape), Some(train)) = (model.and_then(|model| model.shape.as_ref()), &data.train) else { return };
    let Some(in_blocks) = model.and_then(|model| model.in_blocks.as_ref()) else { return };
    let device = outline.run.device.open().ok();
    let (of_data, asked) = ((train, data.validation.as_ref()), data.asked.clone());
    let planned = outline.memory_plan(device.as_ref(), processes, (shape, in_blocks), of_data, asked, None);
    let Some(plan) = report.take(planned) else { return };
    let of = plan.available.as_ref().map_or_else(String::new, |available| format!(", of {available}"));
    // `--plan` has them all.
    let parts = plan.parts().into_iter().filter(|(_, size)| *size > plan.peak() / 100);
    let parts: Vec<String> = parts.map(|(name, size)| format!("{name} {}", memory::size(size))).collect();
    let each = if processes.all() > 1 { format!(" in each of {} processes", processes.all()) } else { String::new() };
    report.fact("memory", format!("{} at most{each}{of}\n{}", memory::size(plan.peak()), parts.join("; ")));
    report.take(plan.check());
}

/// Shows the plan. Returns whether the run fits.
pub(super) fn plan(outline: &Outline, processes: Processes, mut report: Report<'_>) -> bool {
    match make(outline, processes) {
        Ok(plan) => {
            report.line(plan.to_string().trim_end());
            plan.fits()
        }
        Err(error) => {
            report.error(error);
            report.close()
        }
    }
}

fn make(outline: &Outline, processes: Processes) -> Result<MemoryPlan> {
    let (base, shape) = outline.base()?;
    let in_blocks = outline.in_blocks(&base, &shape)?;
    let (tokenizer, _) = outline.tokenizer(&base, None)?;
    let seed = outline.run.seed.unwrap_or_default();
    let train = outline.train_data(&tokenizer, seed)?;
    let validation = outline.validation_data(&tokenizer, seed)?;
    // All of it, so that the largest batch is among what is known.
    train.len()?;
    validation.as_ref().map(|data| data.len()).transpose()?;
    // A card need not be here.
    let device = outline.run.device.open().ok();
    let evaluation = outline.evaluation(&tokenizer, shape.max_position_embeddings)?;
    let questions = outline.exact_match.as_ref().map(|config| ExactMatch::read(config, &tokenizer)).transpose()?;
    let asked = outline.asked(Some(&evaluation), questions.as_ref());
    let data = (&train, validation.as_ref());
    outline.memory_plan(device.as_ref(), processes, (&shape, &in_blocks), data, asked, None)
}

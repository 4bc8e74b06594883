//! What would become of a run: everything that can be known before weights are read.
//!
//! `--check` goes through the [`Outline`] of a run as its `setup` would, with the same functions, but does not stop at
//! the first mistake. Nothing is written to the run's folder. `--plan` says how much memory the run would take.

mod data;
mod memory;
mod model;
mod report;
mod samples;
pub(crate) mod storage;

use std::io::Write;

use tune_config::cli::Purpose;

use crate::checkpoint::state::TrainingState;
use crate::memory_plan::Processes;
use crate::recipe::{Outline, Recipe, fingerprints};
use crate::{Result, environment};
use report::Report;

/// Answers `--check` or `--plan`, in colour where that is asked for. Returns whether the run can start; of
/// [`Purpose::Plan`], whether it fits.
pub fn answer<R: Recipe<Config = C>, C>(config: &C, purpose: Purpose, out: &mut dyn Write, color: bool) -> bool {
    let mut report = Report::new(out, color);
    // What is looked at in the following computes on threads.
    if let Err(error) = environment::check() {
        report.error(error);
        return report.close();
    }
    match (R::outline(config), purpose) {
        (Ok(mut outline), Purpose::Plan(n)) => {
            match outline.look_up_tokens().and_then(|()| on_this_machine(&outline, n)) {
                Ok(processes) => return memory::plan(&outline, processes, report),
                Err(error) => report.error(error),
            }
        }
        (Ok(mut outline), Purpose::Check(n)) => {
            report.take(outline.look_up_tokens());
            let processes = report.take(on_this_machine(&outline, n));
            check(&outline, processes.unwrap_or(Processes::ONE), &mut report);
        }
        (Ok(_), Purpose::Run) => {}
        (Err(error), _) => report.error(error),
    }
    report.close()
}

/// The processes of a run, all of which share this machine.
fn on_this_machine(outline: &Outline, processes: usize) -> Result<Processes> {
    outline.check_updates(processes)?;
    Ok(Processes { layout: outline.run.mesh.layout(processes)?, on_a_machine: processes })
}

/// Everything, each part as far as what it needs is sound.
fn check(outline: &Outline, processes: Processes, report: &mut Report<'_>) {
    model::device(outline, processes.layout, report);
    let model = model::open(outline, report);
    let reference = report.take(outline.reference()).flatten().map(|(reference, _)| reference);
    if let Some(compared) = outline.describe_reference(reference.as_ref()) {
        report.fact(outline.role_of_compared(), compared);
    }
    let scoring = report.take(outline.describe_scoring());
    scoring.iter().flatten().for_each(|(role, said)| report.fact(role, said));
    let state = report.take(outline.resumed_with(TrainingState::read_without_optimizer)).flatten().map(|(_, s)| s);
    let tokenizer = model.as_ref().and_then(|model| model::tokenizer(outline, model, state.as_ref(), report));
    if let (Some(reference), Some(tokenizer)) = (&reference, &tokenizer) {
        report.take(outline.check_reference(reference, tokenizer));
    }
    if let (Some(_), Some(tokenizer)) = (&scoring, &tokenizer) {
        report.take(outline.check_all_scoring(tokenizer));
    }
    let seed = state.as_ref().map(|state| state.seed).or(outline.run.seed).unwrap_or_default();

    let data = data::look(outline, tokenizer.as_ref(), model.as_ref(), seed, report);
    if let (Some(state), Some(train_data), Some(model)) = (&state, &data.train, &model)
        && let Some(shape) = &model.shape
    {
        let weights = outline.weight_fingerprints(&model.base, reference.as_ref());
        let now = weights.and_then(|weights| fingerprints(train_data, shape, &weights));
        let moved = state.moved(&outline.settings, &outline.defaults);
        if report.take(now.and_then(|now| state.check_inputs(&now, &moved))).is_some() {
            moved.iter().for_each(|moved| report.fact("moved", format!("{moved}, with the same content")));
        }
    }
    if let (Some(train_data), Some(tokenizer)) = (&data.train, &tokenizer)
        && let Some(shape) = model.as_ref().and_then(|model| model.shape.as_ref())
    {
        report.take(outline.teacher_files(shape, tokenizer, train_data));
        report.take(outline.check_prompts(train_data, tokenizer));
    }
    memory::look(outline, processes, model.as_ref(), &data, report);
    let batches = data.train.as_ref().and_then(|data| data.known_len());
    storage::look(outline, model.as_ref(), batches, report);
    outline.schedule_warnings(batches).into_iter().for_each(|warning| report.warning(warning));
    if let Some(tokenizer) = &tokenizer {
        samples::show(outline, tokenizer, data.train.as_ref(), report);
    }
}

//! The passes of a run on paper, one after the other: asked, validated, drawn, trained.

use super::{Drawing, ReferencePass, Setting, parameters};
use crate::Result;
use crate::data::Batch;
use crate::engine::{Loss, Paper, State, StepOnPaper};
use crate::eval::Answers;
use crate::kernels::Element;
use crate::kernels::ledger::Ledger;
use crate::methods::judged::finished;
use crate::methods::mismatched;
use crate::models::{InBlocks, ModelSpec};
use crate::peft::LoraOptions;

/// Micro-batches of a step that are gone through, at most.
const MICRO_BATCHES: usize = 16;

/// The account of a run's steps and validations on paper, its models in weights and activations of `T`. A step finds the memory as the
/// one before left it, and batches of other sizes touch other parts of it; the last one comes twice.
///
/// # Errors
/// As [`LoraOptions::resolved`](crate::peft::LoraOptions::resolved) and [`crate::engine::forward_backward`].
pub(super) fn replay<T: Element>(setting: &Setting) -> Result<Ledger> {
    let lora = setting.lora.as_ref().map(|lora| lora.resolved(&setting.model)).transpose()?;
    let on_paper = StepOnPaper {
        model: &setting.model,
        in_blocks: &setting.in_blocks,
        lora: lora.as_ref(),
        activation_checkpointing: setting.activation_checkpointing,
        offloads_inputs: setting.activation_offload_dir.is_some(),
        optimizer_in_backward: setting.optimizer_in_backward == Some(true),
        layout: setting.processes.layout,
        teacher: None,
        fake: setting.fake_quantizer,
    };
    let lora_of_reference = match &setting.reference {
        Some(ReferencePass { model: Some(model), lora: Some(lora), .. }) => Some(lora.resolved(model)?),
        _ => None,
    };
    // The same model without adapters, or another one.
    let frozen = setting.reference.as_ref().map(|reference| {
        let model = reference.model.as_ref().unwrap_or(&setting.model);
        StepOnPaper { model, lora: lora_of_reference.as_ref(), fake: None, ..on_paper }
    });
    let teaches = setting.reference.as_ref().is_some_and(|reference| reference.teaches);
    let (teacher, reference) = if teaches { (frozen, None) } else { (None, frozen) };
    // Models that score are computed as they are, and of the same batches.
    let none_in_blocks = InBlocks::default();
    let scoring = |model| StepOnPaper {
        model,
        lora: None,
        in_blocks: &none_in_blocks,
        optimizer_in_backward: false,
        fake: None,
        ..on_paper
    };
    let replay = Replay {
        setting,
        trained: StepOnPaper { teacher: teacher.as_ref(), ..on_paper },
        reference,
        value: setting.value.as_ref().map(scoring),
        judge: setting.judge.as_ref().map(scoring),
        // Where a teacher is there, all that is drawn is asked of it as data is, and validated is what the data has.
        is_rewarded: setting.drawing.is_some() && !teaches,
        paper: match setting.card {
            Some(_) => Paper::<T>::card(),
            None => Paper::<T>::new(rayon::current_num_threads()),
        },
    };
    replay.run()?;
    Ok(replay.paper.ledger)
}

/// The models of a run on paper, and the memory that they share.
struct Replay<'a, T: Element> {
    setting: &'a Setting,
    /// The model that is trained, with its teacher if it has one.
    trained: StepOnPaper<'a>,
    /// The model that it is compared with, if that is no teacher.
    reference: Option<StepOnPaper<'a>>,
    /// The value model that is trained beside it.
    value: Option<StepOnPaper<'a>>,
    /// The model that says what answers are worth.
    judge: Option<StepOnPaper<'a>>,
    /// Whether what is learnt from is drawn and rewarded.
    is_rewarded: bool,
    paper: Paper<T>,
}

impl<T: Element> Replay<'_, T> {
    fn run(&self) -> Result<()> {
        let setting = self.setting;
        let mut state = self.state(&setting.model, setting.lora.as_ref())?;
        let value = setting.value.as_ref().map(|value| self.state(value, None)).transpose()?;
        let mut state_of_value = value.flatten();
        let mut all = setting.steps.iter().chain(&setting.validation_steps).flatten();
        all.try_for_each(|batch| self.ask(&batch.without_padding(), false))?;
        // Before the first step, too.
        self.validate()?;
        for step in setting.steps.iter().chain(setting.steps.last()) {
            self.step(step, state.as_mut(), state_of_value.as_mut())?;
        }
        self.validate()
    }

    /// The optimizer's state of a model, where a card has it.
    fn state(&self, model: &ModelSpec, lora: Option<&LoraOptions>) -> Result<Option<State>> {
        let setting = self.setting;
        let state = |_| {
            let shapes = parameters::shapes(model, lora, setting.processes.layout.shards)?;
            Ok(State::new(setting.optimizer.clone(), model, shapes))
        };
        setting.card.as_ref().map(state).transpose()
    }

    /// A step with its micro-batches over all processes; where a card computes, with the states of the two models that are trained.
    fn step(&self, step: &[Batch], state: Option<&mut State>, state_of_value: Option<&mut State>) -> Result<()> {
        let (setting, processes) = (self.setting, self.setting.processes.all());
        let batches = largest_of(&of_fullest_rank(step, processes));
        // From the second micro-batch on the gradients of the first are there: two say as much as many.
        let each = setting.gradient_accumulation_steps.div_ceil(processes);
        let count = each.clamp(1, batches.len().max(2));
        let micro_batches: Vec<&Batch> = batches.iter().cycle().take(count).collect();
        micro_batches.iter().try_for_each(|batch| self.ask_about_mismatched(batch))?;
        // All answers of a step are there before the first of them is learnt from.
        if let Some(Drawing { samples, .. }) = setting.drawing {
            for batch in &batches {
                self.draw(batch, samples)?;
                self.ask(batch, true)?;
                self.score(batch, true)?;
            }
        }
        let before = |batch: &Batch| if self.is_rewarded { Ok(()) } else { self.ask(batch, true) };
        self.trained.train_with(&micro_batches, &self.paper, setting.loss, before, state)?;
        match &self.value {
            Some(value) => value.train_with(&micro_batches, &self.paper, Loss::Scores, |_| Ok(()), state_of_value),
            None => Ok(()),
        }
    }

    /// A validation, and what the model is asked beside its data.
    fn validate(&self) -> Result<()> {
        for batch in self.setting.validation_steps.iter().flatten() {
            let batch = batch.without_padding();
            if self.is_rewarded {
                self.draw(&batch, 1)?;
                self.score(&batch, false)?;
            } else {
                self.ask_about_mismatched(&batch)?;
                self.ask(&batch, true)?;
                self.trained.evaluate(&batch, &self.paper)?;
            }
        }
        let asked = &self.setting.asked;
        asked.texts.iter().try_for_each(|batch| self.trained.evaluate(batch, &self.paper))?;
        let answer = |Answers { prompts, max_new_tokens }: &Answers| {
            self.trained.generate(prompts, *max_new_tokens, &self.paper)
        };
        asked.answers.iter().try_for_each(answer)
    }

    /// What answers are worth; where the value model learns from them, it is asked, too.
    fn score(&self, batch: &Batch, learns: bool) -> Result<()> {
        if let Some(judge) = &self.judge {
            judge.evaluate(&finished(batch, &vec![0; batch.spans.len()], None), &self.paper)?;
        }
        self.value.iter().filter(|_| learns).try_for_each(|value| value.evaluate(batch, &self.paper))
    }

    /// Asks the reference model, if this is when it is asked: at each step, or before the first.
    fn ask(&self, batch: &Batch, each_step: bool) -> Result<()> {
        let asked_each_step = self.setting.reference.as_ref().map(|reference| reference.each_step);
        match &self.reference {
            Some(reference) if asked_each_step == Some(each_step) => reference.evaluate(batch, &self.paper),
            _ => Ok(()),
        }
    }

    /// Draws answers, if this is a batch of prompts: of the data that a student learns besides, a row may have no answer.
    fn draw(&self, batch: &Batch, samples: usize) -> Result<()> {
        let is_answered = || batch.spans.iter().all(|span| batch.trained_tokens_of(span) > 0);
        match self.setting.drawing {
            Some(_) if is_answered() => self.trained.draw(batch, samples, &self.paper),
            _ => Ok(()),
        }
    }

    /// Asks all models about the answers to each other's prompts, where the method wants that.
    fn ask_about_mismatched(&self, batch: &Batch) -> Result<()> {
        let Some(most) = self.setting.mismatched else { return Ok(()) };
        let others = mismatched(batch, Some(most)).without_padding();
        self.trained.evaluate(&others, &self.paper)?;
        self.ask(&others, true)
    }
}

/// The micro-batches of the process that has the largest one of a step: micro-batch `i` belongs to rank `i % processes`.
fn of_fullest_rank(step: &[Batch], processes: usize) -> Vec<&Batch> {
    let largest = (0..step.len()).max_by_key(|&i| step[i].tokens()).unwrap_or_default();
    step.iter().skip(largest % processes).step_by(processes).collect()
}

/// The largest micro-batches of a step in their order, without padding.
fn largest_of(step: &[&Batch]) -> Vec<Batch> {
    let mut numbers: Vec<usize> = (0..step.len()).collect();
    numbers.sort_by_key(|&i| std::cmp::Reverse(step[i].tokens()));
    numbers.truncate(MICRO_BATCHES);
    numbers.sort_unstable();
    numbers.into_iter().map(|i| step[i].without_padding()).collect()
}

//! What a training run needs of memory, before a weight is read.
//!
//! Everything follows from the model's shape, the settings and the largest batch. What the engine takes for activations
//! and gradients is replayed on paper, buffer by buffer, by the arithmetic that places them; weights, adapters and
//! the optimizer's state are counted; what the process holds already is asked of the system. Of a run on a card it is the card's
//! memory that is planned.
//!
//! ```no_run
//! # use tune_core::prelude::*;
//! # fn example(setting: &memory_plan::Setting) -> Result<()> {
//! let plan = MemoryPlan::new(setting)?;
//! println!("{plan}");
//! plan.check()?;
//! # Ok(())
//! # }
//! ```

mod advice;
mod card;
mod drawing;
mod parameters;
mod table;

use std::path::PathBuf;

use candle_core::DType;
use half::bf16;
use tune_config::cli::heaps;

pub use crate::memory::{Available, available, parse_size};
pub use advice::{Advice, Change};
pub use card::PlannedCard;
pub use drawing::Drawing;
pub(crate) use table::processor;

use crate::data::Batch;
use crate::distributed::{Layout, Mesh};
use crate::engine::{Loss, Paper, State, StepOnPaper};
use crate::eval::Answers;
use crate::kernels::Element;
use crate::kernels::buffers::HUGE;
use crate::kernels::ledger::Ledger;
use crate::memory::{available_beside, peak_memory, resident_memory};
use crate::methods::judged::finished;
use crate::methods::mismatched;
use crate::models::{FakeQuantizer, InBlocks, ModelSpec};
use crate::offload::check_room;
use crate::optim::OptimizerConfig;
use crate::peft::LoraOptions;
use crate::{Error, Result};

/// Code, stacks and the allocator's own, which come into memory only as a run uses them.
const STILL_TO_COME: u64 = 4 << 20;

/// The stack of a thread.
const STACK: u64 = 2 << 20;

/// Micro-batches of a step that are gone through, at most.
const MICRO_BATCHES: usize = 16;

/// What memory depends on.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The model's shape.
    pub model: ModelSpec,
    /// The weights that are held in blocks.
    pub in_blocks: InBlocks,
    /// Of other weights and of activations: f32 or bf16.
    pub dtype: DType,
    /// The adapters that are trained; `None` where the model's own weights are.
    pub lora: Option<LoraOptions>,
    /// What moves the parameters.
    pub optimizer: OptimizerConfig,
    /// Bytes of the optimizer's state that are in memory already, as a run that goes on has read them.
    pub optimizer_state_held: u64,
    /// Whether gradients are applied in the backward pass; `None` where the recipe has no such key.
    pub optimizer_in_backward: Option<bool>,
    /// Whether blocks are run again in the backward pass.
    pub activation_checkpointing: bool,
    /// The folder in which the inputs of blocks are kept until then, if they are not in memory.
    pub activation_offload_dir: Option<PathBuf>,
    /// Micro-batches of a step, over all processes.
    pub gradient_accumulation_steps: usize,
    /// Whether gradients are clipped, which needs all of them at a time.
    pub clips_gradients: bool,
    /// Whether the samples of a row share its length; otherwise each may be as long as is allowed.
    pub packed: bool,
    /// What the loss is made of.
    pub loss: Loss,
    /// What is copied to be saved while training goes on, if it is.
    pub copied: Option<Copied>,
    /// Whether a model with its adapters merged is saved.
    pub merges: bool,
    /// How answers are drawn that are learnt from, if they are. `steps` then have the prompts with answers, as
    /// [`Drawing::answered`] makes them; where there is a teacher, those of the data come before them.
    pub drawing: Option<Drawing>,
    /// How weights are rounded while it trains, if they are.
    pub fake_quantizer: Option<FakeQuantizer>,
    /// What the model is compared with, if it is.
    pub reference: Option<ReferencePass>,
    /// Where all models are asked about the answers of a batch to each other's prompts, too, the tokens that these are cut to. Such a batch
    /// has two rows at least.
    pub mismatched: Option<usize>,
    /// Bytes of what a teacher said of a trained token, where that is read as training comes to it; 0 where it is not.
    pub said_of_token: usize,
    /// Bytes of what a teacher that is asked beforehand has said when these are written; 0 where none is.
    pub said_together: u64,
    /// The value model that is trained beside the model, all of it, on the same batches, if there is one.
    pub value: Option<ModelSpec>,
    /// The reward model that scores each answer that is drawn, if there is one.
    pub judge: Option<ModelSpec>,
    /// Rows of a batch that is full.
    pub batch_size: usize,
    /// Rows of an update, where these must be whole batches.
    pub rows_of_update: Option<usize>,
    /// The card that computes, if it is not the processor.
    pub card: Option<PlannedCard>,
    /// Who trains, and among whom parameters, gradients and the optimizer's state are divided. The plan is that of the process which
    /// needs most.
    pub processes: Processes,
    /// The micro-batches of some steps over all processes in their order, those of the most demanding one last, see
    /// [`Loader::demanding_steps`](crate::data::Loader::demanding_steps). Where there are fewer than a step has, the others are
    /// like them.
    pub steps: Vec<Vec<Batch>>,
    /// The same of the validation data, where there is any.
    pub validation_steps: Vec<Vec<Batch>>,
    /// What the model is asked before, between and after the steps.
    pub asked: Asked,
}

/// What a checkpoint that is written in the background has a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// What is trained, and the optimizer's state.
    Trained,
    /// That, and the model with its adapters merged.
    WithMerged,
}

/// What a model is asked while it trains, as far as it decides how much memory that takes.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Texts whose tokens' probabilities are wanted.
    pub texts: Vec<Batch>,
    /// Prompts that it answers, whose keys and values are kept meanwhile.
    pub answers: Vec<Answers>,
}

/// The processes that train together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processes {
    /// How many there are, and how a model is divided among them.
    pub layout: Layout,
    /// How many of them share the memory of a machine.
    pub on_a_machine: usize,
}

impl Processes {
    /// A process by itself.
    pub const ONE: Self = Self { layout: Layout::ONE, on_a_machine: 1 };

    /// Those of a run, as one of them sees it.
    #[must_use]
    pub fn of(mesh: &Mesh) -> Self {
        Self { layout: mesh.layout(), on_a_machine: mesh.all().place().local_world_size }
    }

    /// How many there are.
    #[must_use]
    pub fn all(&self) -> usize {
        self.layout.processes()
    }
}

/// A model that says what it says of the data and is not trained.
#[derive(Debug, Clone)]
pub struct ReferencePass {
    /// Its shape; `None` where it is the trained model itself without its adapters.
    pub model: Option<ModelSpec>,
    /// The adapters beside its weights, if it has any.
    pub lora: Option<LoraOptions>,
    /// Whether it stays in memory and is asked at each step; otherwise it is asked before the trained model is there.
    pub each_step: bool,
    /// Whether it is a teacher: its logits and the trained model's are there together, and no validation asks it.
    pub teaches: bool,
}

/// Elements of the adapters of a whole model.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(crate) fn of_adapters(model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    parameters::of_adapters(model, lora, 1)
}

/// Elements of the model's own weights that are trained beside adapters, in all processes together.
///
/// # Errors
/// As [`LoraOptions::resolved`].
pub(crate) fn of_whole(model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    parameters::of_whole(model, lora, 1)
}

/// The bytes of an optimizer's state for what a process trains, adapters or all weights, by those for a parameter's name and shape.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(crate) fn of_state(
    model: &ModelSpec,
    lora: Option<&LoraOptions>,
    processes: usize,
    bytes: &dyn Fn(&str, &[usize]) -> u64,
) -> Result<u64> {
    parameters::of_state(model, lora, processes, bytes)
}

/// What a run needs, in bytes.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// What the process holds before weights are read, and code that comes in later. On a card: code, and the workspace of products.
    pub program: u64,
    /// The model's own weights, but for those in blocks.
    pub weights: u64,
    /// The model's weights in blocks.
    pub quantized: u64,
    /// Those of a reference model that stays beside it.
    pub reference: u64,
    /// Those of models that score answers: a value model, and a reward model.
    pub scoring: u64,
    /// The adapters.
    pub adapters: u64,
    /// Gradients, when most memory is in use: of one model at a time.
    pub gradients: u64,
    /// The optimizer's state, as far as it is in memory.
    pub optimizer: u64,
    /// What of it is in a file.
    pub offloaded: u64,
    /// What is in a file of the inputs of blocks, for the largest batch.
    pub offloaded_inputs: u64,
    /// Parameters of which this process has a share, as they are gathered from all for a while, when most memory is in use.
    pub gathered: u64,
    /// What the forward pass keeps for the backward pass and what either needs on the way, when most memory is in use.
    pub activations: u64,
    /// The last norm, the output layer and the loss, when most memory is in use.
    pub output: u64,
    /// What the engine's memory has beyond that: gaps between buffers, and the rest of pages.
    pub gaps: u64,
    /// The most that reading the weights takes, all that the process then holds included.
    pub loading: u64,
    /// What saving takes besides: a copy of all that is saved, where it is written in the background, or the largest of the tensors
    /// that all processes give their parts of.
    pub saving: u64,
    /// What the process held at its worst before this plan was made.
    pub so_far: u64,
    /// What there is for the process, where the system tells.
    pub available: Option<Available>,
    /// Addresses that the process will take and that are no memory.
    addresses: u64,
    setting: Setting,
}

impl MemoryPlan {
    /// Makes the plan of a run. On the processor it is to be made where the run is, with the tokenizer and the
    /// data at hand and the weights still on disk: what the process holds then is part of it. On a card it is of the card's memory.
    ///
    /// # Errors
    /// For a dtype that the engine does not train in, and as [`available`].
    pub fn new(setting: &Setting) -> Result<Self> {
        if let Some(card) = &setting.card {
            let connected = if setting.processes.all() > 1 { card::CONNECTED } else { 0 };
            let plan = Self::with_program(setting, card::PROGRAM + connected)?;
            return Ok(Self { available: card.available.clone(), ..plan });
        }
        let held = resident_memory().unwrap_or(0).saturating_sub(setting.optimizer_state_held);
        let mut plan = Self::with_program(setting, held + STILL_TO_COME)?;
        plan.so_far = peak_memory().unwrap_or(0);
        plan.available = available_beside(plan.addresses, setting.processes.on_a_machine)?;
        Ok(plan)
    }

    /// The plan of a process that holds so many bytes besides what is counted here.
    fn with_program(setting: &Setting, program: u64) -> Result<Self> {
        let (weight, card) = (setting.dtype.size_in_bytes() as u64, setting.card.is_some());
        let processes = setting.processes.layout.shards;
        let elements = parameters::of_model(&setting.model, processes);
        let of = |of: fn(&ModelSpec, &LoraOptions, usize) -> Result<u64>| {
            setting.lora.as_ref().map_or(Ok(0), |lora| of(&setting.model, lora, processes))
        };
        let (adapted, whole) = (of(parameters::of_adapters)?, of(parameters::of_whole)?);
        let copied = match setting.lora {
            Some(_) => whole,
            // A trained weight is read and then copied into a variable, one after the other.
            None => parameters::last(&setting.model) / processes as u64,
        };
        let engine = match setting.dtype {
            DType::F32 => engine::<f32>(setting)?,
            DType::BF16 => engine::<bf16>(setting)?,
            other => {
                return Err(Error::setup(format!("models are trained in f32 and bf16, not in {other:?}")));
            }
        };
        let worst = engine.worst();
        let trained_tokens = setting.steps.iter().flatten().map(Batch::trained_tokens).max().unwrap_or(0);
        let said = (trained_tokens * setting.said_of_token) as u64;
        let (of_blocks, quantized) = parameters::of_blocks(&setting.in_blocks, processes);
        let weights = elements.saturating_sub(of_blocks) * weight;
        let passing = most_of_one(setting, &|name, dims| setting.optimizer.passing_bytes(name, dims))?;
        let optimizer = match card {
            true => {
                let of_one = |name: &str, dims: &[usize]| setting.optimizer.parts_on_card(name, dims);
                of_all(setting, &|name, dims| of_one(name, dims).into_iter().sum::<usize>() as u64)?
            }
            false => of_all(setting, &|name, dims| setting.optimizer.held_bytes(name, dims))? + passing,
        };
        let offloads = setting.optimizer.offload_dir().is_some();
        let offloaded = match offloads {
            true => of_all(setting, &|name, dims| setting.optimizer.state_bytes(name, dims))? - (optimizer - passing),
            false => 0,
        };
        let scoring = setting.value.iter().chain(&setting.judge);
        let scoring = scoring.map(|model| parameters::of_model(model, processes) * weight).sum();
        let copied =
            setting.value.as_ref().map_or(copied, |value| copied.max(parameters::last(value) / processes as u64));
        let (page, state) = if card { (tune_cuda::PIECE as usize, optimizer) } else { (HUGE, 0) };
        // A reference model of its own: it stays, or it was there before.
        // A card keeps a copy of adapters in the type of activations beside them.
        let of_adapter = 4 + if card && setting.dtype == DType::BF16 { 2 } else { 0 };
        let own = match &setting.reference {
            Some(ReferencePass { model: Some(model), lora, each_step, .. }) => {
                let adapters = match lora {
                    Some(lora) => {
                        of_adapter * parameters::of_adapters(model, lora, processes)?
                            + parameters::beside_adapters(model, lora)?
                    }
                    None => 0,
                };
                Some((parameters::of_model(model, processes) * weight + adapters, *each_step))
            }
            _ => None,
        };
        let (reference, before) = match own {
            Some((weights, true)) => (weights, 0),
            // What a card has got once stays there.
            Some((weights, false)) if card => (weights, 0),
            Some((weights, false)) => (0, weights + engine.touched(HUGE) + setting.said_together),
            // The model without its adapters has copies of what is trained whole.
            None if setting.reference.as_ref().is_some_and(|reference| reference.each_step) => (whole * weight, 0),
            None => (0, 0),
        };
        // Of what is in blocks each process reads all, one matrix after the other, and keeps its share.
        let read = (copied * weight).max(if processes > 1 { setting.in_blocks.largest() } else { 0 });
        // State that is kept in a file is read as a parameter's, where a run goes on, and as a tensor, where it is saved.
        let (state_read, state_saved) = match offloads {
            true => (
                most_of_one(setting, &|name, dims| setting.optimizer.state_bytes(name, dims))?,
                most_of_one(setting, &|_, dims| 4 * dims.iter().product::<usize>() as u64)?,
            ),
            false => (0, 0),
        };
        // A weight that is saved may be made for it: merged, or converted.
        let saved = 4 * setting.model.output().elements();
        let beside = setting.lora.as_ref().map_or(Ok(0), |lora| parameters::beside_adapters(&setting.model, lora))?;
        let adapters = of_adapter * adapted + beside;
        Ok(Self {
            program,
            weights,
            quantized,
            reference,
            scoring,
            adapters,
            gradients: worst.gradients,
            optimizer,
            offloaded,
            offloaded_inputs: if setting.activation_offload_dir.is_some() { inputs_of_blocks(setting) } else { 0 },
            activations: worst.activations + said,
            output: worst.output,
            gathered: worst.gathered,
            gaps: engine.touched(page).saturating_sub(worst.total() - worst.state + state),
            loading: program
                + (weights + quantized + reference + scoring + adapters + read.max(state_read)).max(before),
            saving: match setting.copied {
                Some(copied) => parameters::copied_to_save(setting, copied)? + parameters::made_to_merge(setting),
                None => {
                    let gathered = if processes > 1 { parameters::gathered_to_save(setting)? } else { 0 };
                    gathered.max(state_saved).max(parameters::made_to_merge(setting))
                }
            },
            so_far: 0,
            available: None,
            addresses: addresses(&engine) + saved,
            setting: setting.clone(),
        })
    }

    /// The most that the process will have held, or that the card will have held of it.
    #[must_use]
    pub fn peak(&self) -> u64 {
        match self.setting.card {
            Some(_) => self.training(),
            None => (self.training() + self.saving).max(self.loading).max(self.so_far),
        }
    }

    /// On how many processes the run is.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.setting.processes.all()
    }

    /// What it holds while it trains.
    fn training(&self) -> u64 {
        let engine = self.gradients + self.activations + self.output + self.gathered + self.gaps;
        let models = self.weights + self.quantized + self.reference + self.scoring + self.adapters;
        self.program + models + self.optimizer + engine
    }

    /// Whether the run fits; `true` where the system does not tell what is available.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.available.as_ref().is_none_or(|available| self.peak() <= available.bytes)
    }

    /// Stops a run that cannot fit.
    ///
    /// # Errors
    /// It needs more than is available: the message has the largest parts, and the settings that would make it fit. There is no room for
    /// the file of activations.
    pub fn check(&self) -> Result<()> {
        if let Some(dir) = &self.setting.activation_offload_dir {
            let all = self.offloaded_inputs.saturating_mul(self.setting.processes.on_a_machine as u64);
            check_room(dir, "activation_offload_dir", "the largest batch's activations", all)?;
        }
        match &self.available {
            Some(available) if !self.fits() => Err(Error::setup(self.does_not_fit(available))),
            _ => Ok(()),
        }
    }
}

/// The bytes of the inputs of all blocks, for the largest batch.
fn inputs_of_blocks(setting: &Setting) -> u64 {
    let tokens = setting.steps.iter().flatten().map(Batch::tokens).max().unwrap_or(0);
    let of = |model: &ModelSpec| tokens * model.blocks.len() * model.hidden_size * setting.dtype.size_in_bytes();
    // One model after the other is trained.
    std::iter::once(&setting.model).chain(&setting.value).map(|model| of(model) as u64).sum()
}

/// The bytes of optimizer state for all that a process trains, by those for a parameter's name and shape.
fn of_all(setting: &Setting, bytes: &dyn Fn(&str, &[usize]) -> u64) -> Result<u64> {
    let processes = setting.processes.layout.shards;
    let value = setting.value.as_ref().map_or(Ok(0), |value| parameters::of_state(value, None, processes, bytes))?;
    Ok(parameters::of_state(&setting.model, setting.lora.as_ref(), processes, bytes)? + value)
}

/// The most of such bytes that one of its parameters has.
fn most_of_one(setting: &Setting, bytes: &dyn Fn(&str, &[usize]) -> u64) -> Result<u64> {
    let processes = setting.processes.layout.shards;
    let value = setting.value.as_ref().map_or(Ok(0), |value| parameters::most(value, None, processes, bytes))?;
    Ok(parameters::most(&setting.model, setting.lora.as_ref(), processes, bytes)?.max(value))
}

/// Bytes of addresses that a run takes besides its memory: what the engine asks the system for and does not touch, the stacks
/// of the threads that tokenize and read ahead, and the heaps that threads have of their own.
fn addresses(engine: &Ledger) -> u64 {
    let threads = rayon::current_num_threads() as u64 + 2;
    engine.asked().saturating_sub(engine.touched(HUGE)) + threads * STACK + heaps::reserve()
}

/// Steps and a validation, on paper. A step finds the memory as the one before left it, and batches of other sizes touch
/// other parts of it; the last one comes twice.
fn engine<T: Element>(setting: &Setting) -> Result<Ledger> {
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
    // Where a teacher is there, all that is drawn is asked of it as data is, and validated is what the data has.
    let taught = setting.reference.as_ref().is_some_and(|reference| reference.teaches);
    let rewarded = setting.drawing.is_some() && !taught;
    let of_reference = match &setting.reference {
        Some(ReferencePass { model: Some(model), lora: Some(lora), .. }) => Some(lora.resolved(model)?),
        _ => None,
    };
    // The same model without adapters, or another one.
    let reference = setting.reference.as_ref().map(|reference| {
        let model = reference.model.as_ref().unwrap_or(&setting.model);
        (StepOnPaper { model, lora: of_reference.as_ref(), fake: None, ..on_paper }, reference.each_step)
    });
    // They are computed as they are, and of the same batches.
    let whole = InBlocks::default();
    let scoring = |model| StepOnPaper {
        model,
        lora: None,
        in_blocks: &whole,
        optimizer_in_backward: false,
        fake: None,
        ..on_paper
    };
    let (value, judge) = (setting.value.as_ref().map(scoring), setting.judge.as_ref().map(scoring));
    let (teacher, reference) = match taught {
        true => (reference.map(|(teacher, _)| teacher), None),
        false => (None, reference),
    };
    let on_paper = StepOnPaper { teacher: teacher.as_ref(), ..on_paper };
    let state = |model: &ModelSpec, lora: Option<&LoraOptions>| {
        let shapes = parameters::shapes(model, lora, setting.processes.layout.shards)?;
        Ok::<_, Error>(State::new(setting.optimizer.clone(), model, shapes))
    };
    let (paper, mut state, mut state_of_value) = match setting.card {
        Some(_) => {
            let of_value = setting.value.as_ref().map(|value| state(value, None)).transpose()?;
            (Paper::<T>::card(), Some(state(&setting.model, setting.lora.as_ref())?), of_value)
        }
        None => (Paper::<T>::new(rayon::current_num_threads()), None, None),
    };
    let score = |batch: &Batch, learns: bool| {
        if let Some(judge) = &judge {
            judge.evaluate(&finished(batch, &vec![0; batch.spans.len()], None), &paper)?;
        }
        value.iter().filter(|_| learns).try_for_each(|value| value.evaluate(batch, &paper))
    };
    let ask = |batch: &Batch, each_step: bool| match &reference {
        Some((reference, when)) if *when == each_step => reference.evaluate(batch, &paper),
        _ => Ok(()),
    };
    // Of the data that a student learns besides, a row may have no answer.
    let is_answered = |batch: &Batch| batch.spans.iter().all(|span| batch.trained_tokens_of(span) > 0);
    let draw = |batch: &Batch, samples: usize| match setting.drawing {
        Some(_) if is_answered(batch) => on_paper.draw(batch, samples, &paper),
        _ => Ok(()),
    };
    let ask_how_far = |batch: &Batch| match setting.mismatched {
        Some(most) => {
            let others = mismatched(batch, Some(most)).without_padding();
            on_paper.evaluate(&others, &paper).and_then(|()| ask(&others, true))
        }
        None => Ok(()),
    };
    let validate = || {
        setting.validation_steps.iter().flatten().try_for_each(|batch| {
            let batch = batch.without_padding();
            if rewarded {
                return draw(&batch, 1).and_then(|()| score(&batch, false));
            }
            ask_how_far(&batch)?;
            ask(&batch, true)?;
            on_paper.evaluate(&batch, &paper)
        })?;
        setting.asked.texts.iter().try_for_each(|batch| on_paper.evaluate(batch, &paper))?;
        setting
            .asked
            .answers
            .iter()
            .try_for_each(|Answers { prompts, max_new_tokens }| on_paper.generate(prompts, *max_new_tokens, &paper))
    };
    let all = setting.steps.iter().chain(&setting.validation_steps).flatten();
    all.into_iter().try_for_each(|batch| ask(&batch.without_padding(), false))?;
    // Before the first step, too.
    validate()?;
    for step in setting.steps.iter().chain(setting.steps.last()) {
        let batches = largest_of(&of_fullest_rank(step, setting.processes.all()));
        // From the second micro-batch on the gradients of the first are there: two say as much as many.
        let each = setting.gradient_accumulation_steps.div_ceil(setting.processes.all());
        let count = each.clamp(1, batches.len().max(2));
        let micro_batches: Vec<&Batch> = batches.iter().cycle().take(count).collect();
        micro_batches.iter().try_for_each(|batch| ask_how_far(batch))?;
        // All answers of a step are there before the first of them is learnt from.
        if let Some(Drawing { samples, .. }) = setting.drawing {
            let scored = |batch| ask(batch, true).and_then(|()| score(batch, true));
            batches.iter().try_for_each(|batch| draw(batch, samples).and_then(|()| scored(batch)))?;
        }
        let before = |batch: &Batch| if rewarded { Ok(()) } else { ask(batch, true) };
        on_paper.train_with(&micro_batches, &paper, setting.loss, before, state.as_mut())?;
        if let Some(value) = &value {
            value.train_with(&micro_batches, &paper, Loss::Scores, |_| Ok(()), state_of_value.as_mut())?;
        }
    }
    validate()?;
    drop((state, state_of_value));
    Ok(paper.ledger)
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

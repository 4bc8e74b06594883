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
mod counted;
mod drawing;
mod parameters;
mod replay;
mod setting;
mod table;

use candle_core::DType;
use half::bf16;
use tune_config::cli::heaps;

pub use crate::memory::{Available, available, parse_size};
pub use advice::{Advice, Change};
pub use card::PlannedCard;
pub use drawing::Drawing;
pub(crate) use parameters::{of_adapters, of_state, of_whole};
pub use setting::{Asked, Copied, Processes, ReferencePass, Setting};
pub(crate) use table::processor;

use crate::kernels::buffers::HUGE;
use crate::kernels::ledger::Ledger;
use crate::memory::{available_beside, peak_memory, resident_memory};
use crate::offload::check_room;
use crate::{Error, Result};
use counted::OptimizerState;
use replay::replay;

/// Code, stacks and the allocator's own, which come into memory only as a run uses them.
const STILL_TO_COME: u64 = 4 << 20;

/// The stack of a thread.
const STACK: u64 = 2 << 20;

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
            // Of what else connects processes by their cards, NCCL's part is no longer free.
            let courier = crate::distributed::current().card().map_or(0, |_| tune_cuda::COURIER as u64);
            let plan = Self::with_program(setting, card::PROGRAM + connected + courier)?;
            return Ok(Self { available: card.available.clone(), ..plan });
        }
        let held = resident_memory().unwrap_or(0).saturating_sub(setting.optimizer_state_held);
        let mut plan = Self::with_program(setting, held + STILL_TO_COME)?;
        plan.so_far = peak_memory().unwrap_or(0);
        plan.available = available_beside(plan.addresses, setting.processes.on_a_machine)?;
        Ok(plan)
    }

    /// The plan of a process that holds this many bytes besides what is counted here.
    fn with_program(setting: &Setting, program: u64) -> Result<Self> {
        let adapters = counted::adapters(setting)?;
        let engine = match setting.dtype {
            DType::F32 => replay::<f32>(setting)?,
            DType::BF16 => replay::<bf16>(setting)?,
            other => {
                return Err(Error::setup(format!("models are trained in f32 and bf16, not in {other:?}")));
            }
        };
        let worst = engine.worst();
        let (weights, quantized) = counted::weights(setting);
        let reference = counted::Reference::of(setting, &engine)?;
        let scoring = counted::scoring(setting);
        let state = OptimizerState::of(setting)?;
        let models = weights + quantized + reference.stays + scoring + adapters;
        // On a card the optimizer's state is in the engine's memory.
        let (page, state_in_engine) =
            if setting.card.is_some() { (tune_cuda::PIECE as usize, state.held) } else { (HUGE, 0) };
        // A weight that is saved may be made for it: merged, or converted.
        let saved = 4 * setting.model.output().elements();
        Ok(Self {
            program,
            weights,
            quantized,
            reference: reference.stays,
            scoring,
            adapters,
            gradients: worst.gradients,
            optimizer: state.held,
            offloaded: state.offloaded,
            offloaded_inputs: counted::inputs_in_file(setting),
            activations: worst.activations + counted::said(setting),
            output: worst.output,
            gathered: worst.gathered,
            gaps: engine.touched(page).saturating_sub(worst.total() - worst.state + state_in_engine),
            loading: program + (models + counted::read_beside(setting)?.max(state.read)).max(reference.before),
            saving: counted::saving(setting, state.saved)?,
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

/// Bytes of addresses that a run takes besides its memory: what the engine asks the system for and does not touch, the stacks
/// of the threads that tokenize and read ahead, and the heaps that threads have of their own.
fn addresses(engine: &Ledger) -> u64 {
    let threads = rayon::current_num_threads() as u64 + 2;
    engine.asked().saturating_sub(engine.touched(HUGE)) + threads * STACK + heaps::reserve()
}

//! What the memory of a run depends on.

use std::path::PathBuf;

use candle_core::DType;

use super::{Drawing, PlannedCard};
use crate::data::Batch;
use crate::distributed::{Layout, Mesh};
use crate::engine::Loss;
use crate::eval::Answers;
use crate::models::{FakeQuantizer, InBlocks, ModelSpec};
use crate::optim::OptimizerConfig;
use crate::peft::LoraOptions;

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

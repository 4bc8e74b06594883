//! What a config says of a run, before anything is read.

mod checks;
mod stored;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::Value as Json;
use tune_config::Config;

use super::{Data, EvaluationKeys, Plan, RunKeys, StepKeys, VAL_LOSS, settings};
use crate::artifact::newest;
use crate::checkpoint::merge::{Merged, Part};
use crate::checkpoint::run::{self, Saved};
use crate::checkpoint::state::TrainingState;
use crate::checkpoint::{Below, Checkpoint, CheckpointConfig, peft};
use crate::data::{Batch, DataConfig, Loader, LoaderOptions};
use crate::device::{Compute, DeviceConfig};
use crate::distributed::{self, Group};
use crate::engine::Loss;
use crate::eval::ExactMatchConfig;
use crate::memory_plan::{Asked, Copied, Drawing, MemoryPlan, PlannedCard, Processes, ReferencePass, Setting};
use crate::methods::{ReferenceChoice, TeacherFiles, TokenLoss};
use crate::models::{
    Architecture, Decoder, FakeQuantizer, FreshWeights, Head, InBlocks, InitConfig, ModelSpec, Quantization,
};
use crate::optim::{OptimizerConfig, SchedulerConfig};
use crate::peft::LoraOptions;
use crate::tokenizer::{Limits, Tokenizer, TokenizerFiles};
use crate::{Error, Result};

pub use stored::{StoredTeacher, TeacherLogitsConfig};

/// Steps from a run's beginning that a memory plan goes through, besides the most demanding one.
const FIRST_STEPS: usize = 4;

/// What is trained, and so what is saved.
#[derive(Debug, Clone)]
pub enum Trained {
    /// The model's own weights.
    Weights,
    /// Adapters on frozen weights.
    Adapters {
        /// Which ones.
        lora: Box<LoraOptions>,
        /// Whether a merged model is saved beside them.
        merged: bool,
    },
}

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

/// A run in outline. [`Outline::open`] opens it piece by piece with the methods here, and a preflight looks at the same
/// pieces, so the two cannot disagree.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Where the run begins, where it computes and what it leaves behind.
    pub run: RunKeys,
    /// What is trained and validated on.
    pub data: Data,
    /// How long is trained, and what a step is made of.
    pub steps: StepKeys,
    /// What moves what is trained.
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    pub lr_scheduler: SchedulerConfig,
    /// What is trained.
    pub trained: Trained,
    /// How the base model is held in memory where it is frozen.
    pub quantization: Quantization,
    /// The model that the checkpoint must hold, if that is said.
    pub architecture: Option<Architecture>,
    /// Questions that the model is asked.
    pub exact_match: Option<ExactMatchConfig>,
    /// What else is measured while it trains, and what follows from it. A recipe that has these keys calls [`Run::evaluate`](super::Run::evaluate).
    pub evaluation: EvaluationKeys,
    /// The names of what validation finds that says which model is better.
    pub validated: &'static [&'static str],
    /// What is minimized of each trained token, where it is not cross-entropy alone.
    pub loss: TokenLoss,
    /// Whether gradients are applied in the backward pass; `None` where the recipe has no such key.
    pub optimizer_in_bwd: Option<bool>,
    /// What the model is compared with; `None` where it is compared with nothing.
    pub reference: Option<Compared>,
    /// What a teacher says of the training data, where that is stored: then `reference` is a teacher that is still to be asked.
    pub teacher_logits: Option<StoredTeacher>,
    /// How fresh weights are drawn, of a model that begins with these; `None` where it begins with those that are there.
    pub fresh: Option<InitConfig>,
    /// The head that scores sequences; `None` where tokens are predicted.
    pub head: Option<Head>,
    /// Where the value model begins that is trained beside the model, `Some(None)` from the same base; `None` where there is none.
    pub value: Option<Option<CheckpointConfig>>,
    /// The reward model that says what answers are worth, if one does.
    pub judge: Option<CheckpointConfig>,
    /// Whether the loss asks how far the model has moved: about the answers of each batch to each other's prompts.
    pub asks_how_far: bool,
    /// How answers are drawn that are learnt from; `None` where the data has what is learnt.
    pub drawing: Option<Drawing>,
    /// Rows of an update, where these must be whole batches.
    pub rows_of_update: Option<usize>,
    /// How the model is computed as if it were quantized, if it is.
    pub fake_quantizer: Option<FakeQuantizer>,
    /// The settings that a resumed run must share.
    pub settings: BTreeMap<String, Json>,
    /// What holds where they say nothing.
    pub defaults: BTreeMap<String, Json>,
    /// The whole config as YAML.
    pub yaml: String,
    /// Who trains together.
    pub group: Group,
}

impl Outline {
    /// The outline of a run that trains all weights of whatever model is there. A recipe says what is otherwise by
    /// `Outline { architecture, ..Outline::new(...) }`.
    pub fn new(
        config: &impl Config,
        run: &RunKeys,
        data: impl Into<Data>,
        steps: &StepKeys,
        optimizer: &OptimizerConfig,
        lr_scheduler: &SchedulerConfig,
    ) -> Self {
        let (group, mut settings) = (distributed::current(), settings(config));
        // What counts is how many there are in a step over all processes: another number of them may go on.
        if let Some(value) = settings.get_mut("gradient_accumulation_steps") {
            *value = steps.plan().of_all(group.world_size()).gradient_accumulation_steps.into();
        }
        Self {
            run: run.clone(),
            data: data.into(),
            steps: steps.clone(),
            optimizer: optimizer.clone(),
            lr_scheduler: lr_scheduler.clone(),
            trained: Trained::Weights,
            quantization: Quantization::default(),
            architecture: None,
            exact_match: None,
            evaluation: EvaluationKeys::default(),
            validated: &[VAL_LOSS],
            loss: TokenLoss::CROSS_ENTROPY,
            optimizer_in_bwd: None,
            reference: None,
            teacher_logits: None,
            fresh: None,
            head: None,
            value: None,
            judge: None,
            asks_how_far: false,
            drawing: None,
            rows_of_update: None,
            fake_quantizer: None,
            settings,
            defaults: settings::defaults(config),
            yaml: config.to_yaml(),
            group,
        }
    }

    /// How batches become steps and epochs, in all processes together.
    pub fn plan(&self) -> Plan {
        self.steps.plan().of_all(self.group.world_size())
    }

    /// The device, and the dtype of weights and activations.
    ///
    /// # Errors
    /// As [`DeviceConfig::open`] and [`Precision::training_dtype`](crate::device::Precision::training_dtype).
    pub fn device(&self) -> Result<(Compute, DType)> {
        Ok((self.run.device.open()?, self.run.dtype.training_dtype()?))
    }

    /// The base model's files and its shape. No weight is read.
    ///
    /// # Errors
    /// Files that are missing or broken, a family that is not supported, another model than the one that is asked for,
    /// weights that are not those of the model's shape.
    pub fn base(&self) -> Result<(Checkpoint, ModelSpec)> {
        let base = self.open_base()?;
        let shape = self.shape(&base)?;
        self.check_weights(&base, &shape)?;
        let (shape, _) = self.grown(&base, shape)?;
        Ok((base, shape))
    }

    /// The base model's files; of a model that begins with fresh weights, those without weights.
    ///
    /// # Errors
    /// As [`CheckpointConfig::open`].
    pub(crate) fn open_base(&self) -> Result<Checkpoint> {
        match self.fresh {
            Some(_) => self.run.checkpointer.open_without_weights(),
            None => self.run.checkpointer.open(),
        }
    }

    /// Checks that the base model has all weights of its shape, or that fresh ones can be drawn.
    ///
    /// # Errors
    /// As [`Decoder::load`] and [`FreshWeights::new`].
    pub(crate) fn check_weights(&self, base: &Checkpoint, shape: &ModelSpec) -> Result<()> {
        match &self.fresh {
            Some(init) => FreshWeights::new(shape, base.config(), init, 0).map(drop),
            None => Decoder::skeleton(shape.clone(), base).map(drop),
        }
    }

    /// What is said of a model that begins with fresh weights.
    pub(crate) fn said_of_fresh(&self) -> Option<&'static str> {
        let there = || self.run.checkpointer.open().is_ok_and(|there| there.names().next().is_some());
        self.fresh.map(|_| match there() {
            true => "with fresh weights (those that are there are not read)",
            false => "with fresh weights",
        })
    }

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

    /// The tokens that the run adds to the tokenizer.
    fn new_tokens(&self) -> &[String] {
        match &self.trained {
            Trained::Adapters { lora, .. } => &lora.new_tokens,
            Trained::Weights => &[],
        }
    }

    /// Looks up the ids of the tokens whose rows are trained and that the config names by their texts.
    ///
    /// # Errors
    /// A text that is no single token; a tokenizer that cannot be read.
    pub(crate) fn look_up_tokens(&mut self) -> Result<()> {
        let tokens = match &self.trained {
            Trained::Adapters { lora, .. } if !lora.tokens.texts.is_empty() => {
                let (tokenizer, _) = self.tokenizer(&self.open_base()?, None)?;
                lora.tokens.looked_up(&tokenizer)?
            }
            _ => return Ok(()),
        };
        if let Trained::Adapters { lora, .. } = &mut self.trained {
            lora.tokens = tokens;
        }
        Ok(())
    }

    /// The base with the adapters that the run stands on, if it stands on any.
    ///
    /// # Errors
    /// As [`Merged::open`].
    pub(crate) fn below(&self) -> Result<Option<Merged>> {
        let parts: Vec<Part> = self.base_adapters().iter().map(|dir| Part { dir: dir.clone(), weight: 1.0 }).collect();
        let is_dora = |dir: &PathBuf| peft::read_config(dir).map(|config| config.use_dora);
        let trains_dora = matches!(&self.trained, Trained::Adapters { lora, .. } if lora.dora);
        if !parts.is_empty()
            && (trains_dora || self.base_adapters().iter().map(is_dora).collect::<Result<Vec<_>>>()?.contains(&true))
        {
            return Err(Error::setup(
                "model.base_adapters: DoRA sets the lengths of rows, and neither stands on other adapters nor has others stand on it: \
                 merge the adapters first (`tune merge`), and start from the merged model",
            ));
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let below = Merged::open(self.run.checkpointer.open()?, &parts)?;
        if below.spec().tie_word_embeddings != below.spec_of_base().tie_word_embeddings {
            return Err(Error::setup(
                "model.base_adapters change the output layer of a model in which it is the embedding table, and make two of them: \
                 merge the adapters first (`tune merge`), and start from the merged model",
            ));
        }
        Ok(Some(below))
    }

    fn base_adapters(&self) -> &[PathBuf] {
        match &self.trained {
            Trained::Adapters { lora, .. } => &lora.base_adapters,
            Trained::Weights => &[],
        }
    }

    /// The adapter whose tokenizer the run has: the last that it stands on.
    fn last_below(&self) -> Option<&Path> {
        self.base_adapters().last().map(PathBuf::as_path)
    }

    /// The shape with what adapters below bring along and embeddings for the run's new tokens, and what there is to say of these.
    ///
    /// # Errors
    /// As [`TokenizerFiles::add`](crate::tokenizer::TokenizerFiles::add).
    pub(crate) fn grown(&self, base: &Checkpoint, shape: ModelSpec) -> Result<(ModelSpec, Vec<String>)> {
        let shape = self.below()?.map_or(shape, |below| below.spec());
        if self.new_tokens().is_empty() {
            return Ok((shape, Vec::new()));
        }
        let (tokenizer, _, found) = self.data.tokenizer.open_adding(base, self.last_below(), self.new_tokens())?;
        let lines = found.lines(shape.vocab_size);
        let rows = if found.added.is_empty() { 0 } else { tokenizer.vocab_size() };
        Ok((ModelSpec { vocab_size: shape.vocab_size.max(rows), ..shape }, lines))
    }

    /// The shape of a model that is opened.
    pub(crate) fn shape(&self, base: &Checkpoint) -> Result<ModelSpec> {
        let shape = ModelSpec::of(base)?;
        if let Some(architecture) = self.architecture {
            architecture.check(&shape, base.path())?;
        }
        Ok(match &self.head {
            Some(head) => shape.with_scores(head.labels().len()),
            None => shape,
        })
    }

    /// Which weights of the base model are held in blocks.
    ///
    /// # Errors
    /// A matrix that cannot be quantized, and what cannot be done with weights in blocks: start adapters from them, or merge.
    pub fn in_blocks(&self, base: &Checkpoint, shape: &ModelSpec) -> Result<InBlocks> {
        let Trained::Adapters { merged, ref lora } = self.trained else { return Ok(InBlocks::default()) };
        let nf4 = self.quantization.nf4;
        let in_blocks = InBlocks::of(base, shape, self.run.dtype.training_dtype()?, self.quantization)?;
        let in_blocks = in_blocks.without(&shape.weights_of(&lora.save)?);
        if lora.start.takes_of_weight() {
            for (name, _) in lora.of_model(shape)? {
                if let Some(format) = in_blocks.format(&format!("{name}.weight")) {
                    return Err(Error::setup(format!(
                        "model.init_lora_weights={} changes the weights that adapters are on, and `{name}` is held quantized \
                         ({format}): set {}, or model.init_lora_weights=kaiming",
                        lora.start.name(),
                        if nf4 { "model.quantize_base=false" } else { "model.keep_quantized=false" },
                    )));
                }
            }
        }
        if !lora.base_adapters.is_empty() && !in_blocks.is_empty() {
            return Err(Error::setup(format!(
                "model.base_adapters are merged into weights, and the base is held quantized ({}): set {} to hold it in dtype",
                in_blocks.describe(),
                if nf4 { "model.quantize_base=false" } else { "model.keep_quantized=false" },
            )));
        }
        if merged && !in_blocks.is_empty() {
            return Err(Error::setup(format!(
                "adapters are not merged into a base that is held quantized ({}): set save_adapter_weights_only=true, or \
                 {} to hold it in dtype",
                in_blocks.describe(),
                if nf4 { "model.quantize_base=false" } else { "model.keep_quantized=false" },
            )));
        }
        Ok(in_blocks)
    }

    /// The tokenizer for the base model, and the files to carry into what is saved. A chat template that writes the date
    /// goes on with the day on which the run began, where it goes on from `state`.
    ///
    /// # Errors
    /// As [`TokenizerConfig::open`](crate::tokenizer::TokenizerConfig::open).
    pub fn tokenizer(&self, base: &Checkpoint, state: Option<&TrainingState>) -> Result<(Tokenizer, TokenizerFiles)> {
        let (tokenizer, files, _) = self.data.tokenizer.open_adding(base, self.last_below(), self.new_tokens())?;
        let tokenizer = match self.base_adapters() {
            [] => tokenizer,
            _ => {
                let (shape, _) = self.grown(base, ModelSpec::of(base)?)?;
                tokenizer.for_model(Limits { embeddings: shape.vocab_size, ..Limits::of_config(base.config()) })
            }
        };
        match state.and_then(|state| state.now) {
            Some(now) => Ok((tokenizer.at(now), files)),
            None => Ok((tokenizer, files)),
        }
    }

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

    /// The training data in batches.
    ///
    /// # Errors
    /// As [`Loader::open`].
    pub fn train_data(&self, tokenizer: &Tokenizer, seed: u64) -> Result<Loader> {
        self.loader(&self.data.dataset, tokenizer, self.loader_options(tokenizer, seed))
    }

    /// The validation data in batches, in the order of the files; `None` where there is none.
    ///
    /// # Errors
    /// As [`Loader::open`].
    pub fn validation_data(&self, tokenizer: &Tokenizer, seed: u64) -> Result<Option<Loader>> {
        if self.data.dataset_val.is_empty() {
            return Ok(None);
        }
        let options = LoaderOptions { shuffle: false, ..self.loader_options(tokenizer, seed) };
        self.loader(&self.data.dataset_val, tokenizer, options).map(Some)
    }

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

    pub(crate) fn loader_options(&self, tokenizer: &Tokenizer, seed: u64) -> LoaderOptions {
        let pad_id = tokenizer.pad().unwrap_or(0);
        LoaderOptions {
            batch_size: self.data.batch_size,
            shuffle: self.data.shuffle,
            seed,
            pad_id,
            must_stop: true,
            ..Default::default()
        }
    }

    pub(crate) fn loader(
        &self,
        configs: &[DataConfig],
        tokenizer: &Tokenizer,
        options: LoaderOptions,
    ) -> Result<Loader> {
        Loader::open(configs, tokenizer, self.data.tokenizer.max_seq_len, options)
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

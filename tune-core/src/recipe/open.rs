//! A run before it begins: everything is opened and checked, and nothing is written.

use std::sync::Arc;

use candle_core::DType;

use super::outline::fingerprints;
use super::{Outline, Run, Trained, Validations, already_complete, write_config};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::run::{RunDir, Saved};
use crate::checkpoint::state::TrainingState;
use crate::data::Loader;
use crate::device::{Compute, choose_seed};
use crate::eval::ExactMatch;
use crate::memory_plan;
use crate::metrics::{Console, Metrics};
use crate::models::{Decoder, FrozenBase, InBlocks, ModelSpec, Parameter};
use crate::optim::Optimizer;
use crate::tokenizer::{Tokenizer, TokenizerFiles};

/// What an [`Outline`] names, opened and found sound. The weights are still on disk.
pub struct Opened {
    /// The model to start from.
    pub base: Checkpoint,
    /// Its shape.
    pub shape: ModelSpec,
    /// Which of its weights are held in blocks, where it is frozen.
    pub in_blocks: InBlocks,
    /// Where it is trained.
    pub device: Compute,
    /// The dtype of weights and activations.
    pub dtype: DType,
    /// Where all randomness starts.
    pub seed: u64,
    /// The reference model and its shape, where there is one that is not the model itself.
    pub reference: Option<(Checkpoint, ModelSpec)>,
    /// The checkpoint that the run goes on from, if it does.
    pub resumed: Option<Saved>,
    /// The training data in batches. A recipe that makes its own puts it here.
    pub train_data: Loader,
    /// The validation data in batches, if there is any.
    pub validation_data: Option<Loader>,
    state: Option<TrainingState>,
    outline: Outline,
    console: Console,
    tokenizer: Tokenizer,
    tokenizer_files: TokenizerFiles,
    exact_match: Option<ExactMatch>,
    /// A line on each dataset.
    summaries: Vec<String>,
}

impl Outline {
    /// Opens everything but the weights, finds the checkpoint to go on from, and checks that the run fits into memory
    /// and onto the disk. What deserves attention is said on the console.
    ///
    /// # Errors
    /// Whatever is not sound. Nothing has been written.
    pub fn open(self, mut console: Console) -> Result<Opened> {
        let (device, chosen) = self.run.device.choose()?;
        chosen.iter().for_each(|line| console.note(line));
        let dtype = self.run.dtype.training_dtype()?;
        let (base, shape) = self.base()?;
        let reference = self.reference()?;
        let in_blocks = self.in_blocks(&base, &shape)?;
        self.check_output_dir(&base)?;
        let (resumed, state) = self.resumed()?.unzip();
        let (tokenizer, tokenizer_files) = self.tokenizer(&base, state.as_ref())?;
        self.warnings(&base, &tokenizer).iter().for_each(|warning| console.warn(warning));
        if let Some((reference, _)) = &reference {
            self.check_reference(reference, &tokenizer)?;
        }
        let seed = state.as_ref().map_or_else(|| choose_seed(self.run.seed), |state| state.seed);

        let train_data = self.train_data(&tokenizer, seed)?;
        let validation_data = self.validation_data(&tokenizer, seed)?;
        let data = || std::iter::once(&train_data).chain(&validation_data);
        let news = data().flat_map(|loader| loader.news(shape.max_position_embeddings));
        news.for_each(|line| console.note(&line));
        let summaries = data().flat_map(Loader::summary).collect();
        let exact_match = self.exact_match.as_ref().map(|c| ExactMatch::read(c, &tokenizer)).transpose()?;
        self.schedule_warnings(train_data.known_len()).iter().for_each(|warning| console.warn(warning));
        let data = (&train_data, validation_data.as_ref());
        self.check_memory(&device, (&shape, &in_blocks), data.0, data.1, state.as_ref())?;
        self.check_storage(&base, &shape, &train_data, state.as_ref())?;
        Ok(Opened {
            base,
            shape,
            in_blocks,
            device,
            dtype,
            seed,
            reference,
            resumed,
            state,
            outline: self,
            console,
            tokenizer,
            tokenizer_files,
            train_data,
            validation_data,
            exact_match,
            summaries,
        })
    }
}

impl Opened {
    /// The data, that of the training first.
    pub fn data(&self) -> impl Iterator<Item = &Loader> {
        std::iter::once(&self.train_data).chain(&self.validation_data)
    }

    /// Says something that deserves patience before the run begins.
    pub fn note(&mut self, text: &str) {
        self.console.note(text);
    }

    /// The weights of the base model where it is frozen.
    pub fn frozen_base(&self) -> FrozenBase<'_> {
        FrozenBase { checkpoint: &self.base, in_blocks: &self.in_blocks }
    }

    /// Begins the run, with the model as it is now. Where it goes on from a checkpoint, checks that data and base model are
    /// what they were, and gives the optimizer its state. Then, with all of that known to be sound, makes the
    /// run's folder, writes the resolved config, says on the console what is about to be trained, and opens the logs.
    ///
    /// # Errors
    /// A base model or data that changed, state that is not this optimizer's, and a folder or log that cannot be made.
    pub fn begin(mut self, title: &str, model: &Decoder, optimizer: &mut dyn Optimizer) -> Result<Run> {
        let reference = self.reference.as_ref().map(|(reference, _)| reference);
        let weight_fingerprints = self.outline.weight_fingerprints(&self.base, reference)?;
        let compared = self.outline.describe_reference(reference);
        if let Some(state) = &mut self.state {
            state.check_inputs(&fingerprints(&self.train_data, &self.shape, &weight_fingerprints)?)?;
            optimizer.set_state(std::mem::take(&mut state.optimizer), model.trainable())?;
        }
        let Self { base, shape, in_blocks, seed, resumed, state, outline, mut console, train_data, .. } = self;
        let position = state.as_ref().map_or_else(Default::default, |state| state.position);
        let validations = state.as_ref().map_or_else(Default::default, Validations::of);
        let keys = &outline.run;

        let run_dir = RunDir::open(&keys.output_dir, base.path(), keys.start())?;
        write_config(&keys.output_dir, &outline.yaml)?;
        let mut facts = vec![
            ("base model", format!("{}{}", base.path().display(), held(&in_blocks))),
            ("data", self.summaries.join("\n")),
            ("trained", trained_share(&outline.trained, model)),
            ("steps", outline.steps.plan().describe(train_data.known_len())),
            ("seed", seed.to_string()),
            ("output", keys.output_dir.display().to_string()),
        ];
        if let Some(compared) = compared {
            facts.insert(1, ("reference", compared));
        }
        console.report(title, &facts);
        let is_complete = state.as_ref().is_some_and(|state| state.position.step == state.total_steps);
        if let Some(saved) = resumed.as_ref().filter(|_| is_complete) {
            let start = match outline.trained {
                Trained::Weights => "checkpointer.checkpoint_dir",
                Trained::Adapters { .. } => "checkpointer.adapter_checkpoint",
            };
            console.note(&already_complete(saved, start));
        }
        let (start, every) = (position.log_start(), keys.log_every_n_steps);
        let metrics = Metrics::open(&keys.metric_logger, &keys.output_dir, start, every, console)?;
        Ok(Run {
            extra: state.map(|state| state.extra).unwrap_or_default(),
            outline,
            run_dir,
            metrics,
            base,
            weight_fingerprints,
            shape,
            tokenizer: self.tokenizer,
            tokenizer_files: self.tokenizer_files,
            train_data: Arc::new(train_data),
            validation_data: self.validation_data.map(Arc::new),
            exact_match: self.exact_match,
            seed,
            position,
            validations,
            last_saved: resumed,
        })
    }
}

/// What a line on the base model says of its weights in blocks.
fn held(in_blocks: &InBlocks) -> String {
    match in_blocks.is_empty() {
        true => String::new(),
        false => {
            format!("\nheld quantized: {}, together {}", in_blocks.describe(), memory_plan::size(in_blocks.bytes()))
        }
    }
}

/// How much of the model is trained, in words.
fn trained_share(trained: &Trained, model: &Decoder) -> String {
    match trained {
        Trained::Weights => format!("all {} parameters", model.parameter_count()),
        Trained::Adapters { .. } => {
            let adapters: usize = model.trainable().iter().map(Parameter::elem_count).sum();
            let total = model.parameter_count() + adapters;
            format!("{adapters} of {total} parameters ({:.2} %)", 100.0 * adapters as f64 / total as f64)
        }
    }
}

//! A run before it begins: everything is opened and checked, and nothing is written.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

use super::end::{already_complete, stopped_before};
use super::outline::fingerprints;
use super::{Measured, Outline, Plan, Run, Trained, write_config};
use crate::checkpoint::merge::Merged;
use crate::checkpoint::run::{RunDir, Saved};
use crate::checkpoint::state::TrainingState;
use crate::checkpoint::{self, Checkpoint};
use crate::data::Loader;
use crate::device::{Compute, choose_seed};
use crate::distributed::Mesh;
use crate::eval::{Evaluation, ExactMatch};
use crate::memory;
use crate::methods::TeacherFiles;
use crate::metrics::{Console, Metrics};
use crate::models::{
    Decoder, FrozenBase, Grown, InBlocks, LoadOptions, LoraOptions, ModelSpec, Parameter, WeightSource, WithHead,
};
use crate::optim::Optimizer;
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use crate::words::count;
use crate::{Error, Result};

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
    /// Who trains together, and who divides the model with whom.
    pub mesh: Mesh,
    /// What a reference model said of some samples before the run that is resumed, see [`Opened::kept_answers`].
    pub(super) kept_answers: BTreeMap<u64, f64>,
    /// The base with the adapters that the run stands on, if it stands on any.
    below: Option<Merged>,
    pub(super) state: Option<TrainingState>,
    pub(super) outline: Outline,
    console: Console,
    tokenizer: Tokenizer,
    tokenizer_files: TokenizerFiles,
    exact_match: Option<ExactMatch>,
    evaluation: Evaluation,
    /// A line on each dataset.
    summaries: Vec<String>,
}

/// In place of a sum that is not known.
const UNKNOWN: &str = "?";

impl Outline {
    /// Opens everything but the weights, finds the checkpoint to go on from, and checks that the run fits into memory
    /// and onto the disk. What deserves attention is said on the console.
    ///
    /// # Errors
    /// Whatever is not sound. Nothing has been written.
    pub fn open(mut self, mut console: Console) -> Result<Opened> {
        self.look_up_tokens()?;
        if !self.group.is_main() {
            console = Console::silent();
        }
        if let Some(stored) = self.teacher_logits.as_ref().filter(|stored| !stored.is_there())
            && !self.group.is_single()
        {
            return Err(Error::file(
                &stored.config.path,
                "is not there: the teacher is asked by one process alone, whose files several then learn from; start one first",
            ));
        }
        let layout = self.run.mesh.layout(self.group.world_size())?;
        let mesh = Mesh::new(&self.group, layout)?;
        let (device, chosen) = self.run.device.choose_among(&self.group)?;
        self.check_optimizer(&device, layout)?;
        self.check_head()?;
        let mesh = match &device {
            Compute::Card(card) => mesh.connect(card)?,
            Compute::Processor => mesh,
        };
        chosen.iter().for_each(|line| console.note(line));
        let dtype = self.run.dtype.training_dtype()?;
        let (base, shape) = self.base()?;
        let reference = self.reference()?;
        self.check_adapters(&shape)?;
        let below = self.below()?;
        let (_, said) = self.grown(&base, ModelSpec::of(&base)?)?;
        said.iter().for_each(|line| console.note(line));
        self.check_drawing(&shape)?;
        let in_blocks = self.in_blocks(&base, &shape)?;
        self.check_fake_quantizer(&shape, &in_blocks)?;
        self.check_output_dir(&base)?;
        let (resumed, state) = self.resumed(mesh.shards())?.unzip();
        let (tokenizer, tokenizer_files) = self.tokenizer(&base, state.as_ref())?;
        self.warnings(&base, &tokenizer).iter().for_each(|warning| console.warn(warning));
        if let Some((reference, _)) = &reference {
            self.check_reference(reference, &tokenizer)?;
        }
        self.check_all_scoring(&tokenizer)?;
        let seed = state.as_ref().map_or_else(|| choose_seed(self.run.seed), |state| state.seed);
        let seed = self.group.broadcast("the seed", 0, vec![seed]).wait()?.first().copied().unwrap_or(seed);

        let train_data = self.train_data(&tokenizer, seed)?;
        let validation_data = self.validation_data(&tokenizer, seed)?;
        self.teacher_files(&shape, &tokenizer, &train_data)?;
        self.check_prompts(&train_data, &tokenizer)?;
        let data = || std::iter::once(&train_data).chain(&validation_data);
        let news = data().flat_map(|loader| loader.news(shape.max_position_embeddings));
        news.for_each(|line| console.note(&line));
        let summaries = data().flat_map(Loader::summary).collect();
        let exact_match = self.exact_match.as_ref().map(|c| ExactMatch::read(c, &tokenizer)).transpose()?;
        let evaluation = self.evaluation(&tokenizer, shape.max_position_embeddings)?;
        self.schedule_warnings(train_data.known_len()).iter().for_each(|warning| console.warn(warning));
        let data = (&train_data, validation_data.as_ref());
        let asked = self.asked(Some(&evaluation), exact_match.as_ref());
        self.check_memory(&device, &mesh, (&shape, &in_blocks), data, asked, state.as_ref())?;
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
            below,
            state,
            mesh,
            outline: self,
            console,
            tokenizer,
            tokenizer_files,
            train_data,
            validation_data,
            exact_match,
            evaluation,
            summaries,
            kept_answers: BTreeMap::new(),
        })
    }

    /// Refuses processes that would not do the same: with another config, other data, another model or another program.
    fn check_same(&self, train_data: &Loader, shape: &ModelSpec) -> Result<()> {
        if self.group.is_single() {
            return Ok(());
        }
        // Of data that is still being tokenized nothing is known yet, here or there.
        let data = train_data.known_len().map(|_| train_data.fingerprint()).transpose()?;
        let said =
            self.teacher_logits.as_ref().map(|stored| TeacherFiles::fingerprint(&stored.config.path)).transpose()?;
        let program = std::env::current_exe().ok().and_then(|path| checkpoint::of_file(&path).ok());
        let mine = [
            ("config", Some(crc32c::crc32c(format!("{:?}", self.settings).as_bytes()))),
            ("model", Some(crc32c::crc32c(format!("{shape:?}").as_bytes()))),
            ("data", data),
            ("program", program.map(|sum| sum.crc32c)),
            ("folder of what the teacher said", said),
        ];
        let text = mine.map(|(_, sum)| sum.map_or(UNKNOWN.to_owned(), |sum| sum.to_string())).join(" ");
        let all = self.group.texts("what each process trains", &text)?;
        for (i, (what, _)) in mine.iter().enumerate() {
            let sums = || all.iter().map(|text| text.split(' ').nth(i).unwrap_or(UNKNOWN)).enumerate();
            let mut known = sums().filter(|(_, sum)| *sum != UNKNOWN);
            let Some((first, expected)) = known.next() else { continue };
            if let Some((rank, _)) = known.find(|(_, sum)| *sum != expected) {
                return Err(Error::setup(format!(
                    "rank {rank} has another {what} than rank {first}: all processes of a run are to be started with the \
                     same program, config and files"
                )));
            }
        }
        Ok(())
    }
}

impl Opened {
    /// How batches become steps and epochs, those of all processes.
    pub fn plan(&self) -> Plan {
        self.outline.plan()
    }

    /// Says something that deserves patience before the run begins.
    pub fn note(&mut self, text: &str) {
        self.console.note(text);
    }

    /// The folder of the adapter that training goes on from, if there is one: that of the checkpoint that the run is resumed from, or the
    /// one that the config names.
    pub fn adapter_to_go_on_from(&self) -> Option<PathBuf> {
        let resumed = self.resumed.as_ref().map(|saved| saved.path.clone());
        resumed.or_else(|| self.outline.run.checkpointer.adapter_checkpoint.clone())
    }

    /// These adapters with the ids of the tokens that the config names by their texts.
    #[must_use]
    pub fn with_token_ids(&self, lora: LoraOptions) -> LoraOptions {
        match &self.outline.trained {
            Trained::Adapters { lora: found, .. } => {
                LoraOptions { tokens: found.tokens.clone(), output_tokens: found.output_tokens.clone(), ..lora }
            }
            Trained::Weights => lora,
        }
    }

    /// The weights of the base model where it is frozen, with rows for new tokens.
    pub fn frozen_base(&self) -> Grown<'_> {
        match &self.below {
            None => Grown::Base(FrozenBase { checkpoint: &self.base, in_blocks: &self.in_blocks }),
            Some(below) => Grown::Merged(below),
        }
    }

    /// The same below the head that scores sequences.
    ///
    /// # Errors
    /// As [`WithHead::new`].
    pub fn with_head<'a>(&self, base: &'a dyn WeightSource) -> Result<WithHead<'a>> {
        WithHead::new(base, &self.shape, self.base.config(), self.seed)
    }

    /// Loads this process's part of the teacher, whose adapter, if it has one, is computed beside its weights.
    ///
    /// # Errors
    /// As [`Decoder::load_shard`]; an adapter for another base; and no teacher at all.
    pub fn load_teacher(&self, frozen: &LoadOptions) -> Result<Decoder> {
        match (self.outline.adapted_teacher()?, &self.reference) {
            (Some(adapted), _) if self.mesh.divides() && adapted.has_magnitudes() => Err(Error::setup(
                "the teacher's adapter has magnitudes (DoRA), which need whole weights: merge it into its base (`tune merge`) and name \
                 the merged model in teacher_checkpointer.checkpoint_dir",
            )),
            (Some(adapted), _) => adapted.trained_shard(frozen, &self.mesh),
            (None, Some((checkpoint, shape))) => Decoder::load_shard(shape.clone(), checkpoint, frozen, &self.mesh),
            (None, None) => Err(Error::setup("there is no teacher: set teacher_checkpointer.checkpoint_dir")),
        }
    }

    /// What the teacher says of the training data. Where that is not stored yet, the teacher is loaded, asked about all of it, and
    /// gone when this returns; what it says is written into a folder that then is there.
    ///
    /// # Errors
    /// As [`Opened::load_teacher`] and [`TeacherFiles::write`]; files that are damaged; and a config without `teacher_logits`.
    pub fn teacher_files(&mut self, frozen: &LoadOptions) -> Result<TeacherFiles> {
        let Some(stored) = self.outline.teacher_logits.clone() else {
            return Err(Error::setup("what a teacher says is stored nowhere: set teacher_logits.path"));
        };
        let path = &stored.config.path;
        if !stored.is_there() {
            self.console
                .note(&format!("Asking the teacher about all training data; what it says goes to {}", path.display()));
            let teacher = self.load_teacher(frozen)?;
            let header =
                self.outline.teacher_header(&stored, self.shape.vocab_size, &self.tokenizer, &self.train_data)?;
            let all: usize = self.train_data.reports()?.iter().map(|report| report.samples).sum();
            let console = &mut self.console;
            let mut tell =
                |samples| console.note(&format!("The teacher was asked about {samples} of {}", count(all, "sample")));
            TeacherFiles::write(path, header, &teacher, &self.train_data, &mut tell)?;
        }
        let files = TeacherFiles::open(path)?;
        files.check_sums()?;
        Ok(files)
    }

    /// Begins the run, with the model as it is now. Where it goes on from a checkpoint, checks that data and base model are
    /// what they were, and gives the optimizer its state. Then, with all of that known to be sound, makes the
    /// run's folder, writes the resolved config, says on the console what is about to be trained, and opens the logs.
    ///
    /// # Errors
    /// A base model or data that changed, state that is not this optimizer's, and a folder or log that cannot be made.
    pub fn begin(mut self, title: &str, model: &Decoder, optimizer: &mut dyn Optimizer) -> Result<Run> {
        self.outline.check_same(&self.train_data, &self.shape)?;
        let is_main = self.outline.group.is_main();
        let reference = self.reference.as_ref().map(|(reference, _)| reference);
        // Who writes checkpoints looks at the files on behalf of all.
        let weight_fingerprints = match is_main {
            true => self.outline.weight_fingerprints(&self.base, reference)?,
            false => Default::default(),
        };
        let stands_on = self.below.take().map(|below| {
            let dirs: Vec<String> = below.parts().map(|part| part.dir.display().to_string()).collect();
            format!("\nwith the adapters in {}", dirs.join(", then "))
        });
        let compared = self.outline.describe_reference(reference);
        if let Some(state) = self.state.as_ref().filter(|_| is_main) {
            let moved = state.moved(&self.outline.settings, &self.outline.defaults);
            state.check_inputs(&fingerprints(&self.train_data, &self.shape, &weight_fingerprints)?, &moved)?;
            moved
                .iter()
                .for_each(|moved| self.console.note(&format!("{moved}. The content is the same: the run goes on")));
        }
        self.give_state(optimizer, model.trainable(), false)?;
        if let Some(dir) = &self.outline.steps.activation_offload_dir {
            model.offload_inputs(dir);
        }

        // All have seen what is there.
        self.outline.group.barrier("the beginning of the run").wait()?;
        let run_dir = self.make_folder()?;
        let facts = self.facts(model, &stands_on.unwrap_or_default(), compared)?;
        self.console.report(title, &facts);
        self.say_if_complete();
        let mut run = self.into_run(weight_fingerprints, run_dir)?;
        if run.stops_early()
            && let Some(saved) = run.last_saved.clone()
        {
            run.console().note(&stopped_before(&saved));
        }
        Ok(run)
    }

    /// Makes the run's folder, with the resolved config in it. Returns it in the process that writes checkpoints; from here on, the others
    /// have their logs there.
    fn make_folder(&mut self) -> Result<Option<Arc<RunDir>>> {
        let (keys, group) = (&self.outline.run, &self.outline.group);
        let run_dir = match group.is_main() {
            true => Some(Arc::new(RunDir::open(&keys.output_dir, self.base.path(), keys.start())?)),
            false => None,
        };
        if group.is_main() {
            write_config(&keys.output_dir, &self.outline.yaml)?;
        }
        group.barrier("the run's folder").wait()?;
        if !group.is_main() {
            self.console = log_of_rank(&keys.output_dir, group.rank())?;
        }
        Ok(run_dir)
    }

    /// What is about to be trained: each fact with its name. The base `stands_on` adapters, and is `compared` with another model.
    fn facts(&self, model: &Decoder, stands_on: &str, compared: Option<String>) -> Result<Vec<(&'static str, String)>> {
        let outline = &self.outline;
        let fresh = outline.said_of_fresh().map(|said| format!(", {said}")).unwrap_or_default();
        let base = format!("{}{fresh}{}{stands_on}", self.base.path().display(), held(&self.in_blocks));
        let mut facts = vec![("base model", base)];
        facts.extend(compared.map(|compared| (outline.role_of_compared(), compared)));
        facts.extend(outline.describe_scoring()?);
        facts.extend([
            ("data", self.summaries.join("\n")),
            ("trained", trained_share(&outline.trained, model)),
            ("steps", outline.plan().describe(self.train_data.known_len())),
            ("seed", self.seed.to_string()),
            ("output", outline.run.output_dir.display().to_string()),
        ]);
        if !outline.group.is_single() {
            facts.push(("processes", self.mesh.layout().to_string()));
        }
        let evaluated = self.evaluation.describe();
        if !evaluated.is_empty() {
            facts.push(("evaluated", evaluated.join("\n")));
        }
        Ok(facts)
    }

    /// Says so where nothing is left to train of the run that is resumed.
    fn say_if_complete(&mut self) {
        let is_complete = self.state.as_ref().is_some_and(|state| state.position.step == state.total_steps);
        if let Some(saved) = self.resumed.as_ref().filter(|_| is_complete) {
            let start = match self.outline.trained {
                Trained::Weights => "checkpointer.checkpoint_dir",
                Trained::Adapters { .. } => "checkpointer.adapter_checkpoint",
            };
            self.console.note(&already_complete(saved, start));
        }
    }

    /// Opens the logs.
    fn into_run(self, weight_fingerprints: BTreeMap<String, u32>, run_dir: Option<Arc<RunDir>>) -> Result<Run> {
        let position = self.state.as_ref().map_or_else(Default::default, |state| state.position);
        let measured = self.state.as_ref().map_or_else(Default::default, Measured::of);
        let keys = &self.outline.run;
        let loggers = if self.outline.group.is_main() { &keys.metric_logger[..] } else { &[] };
        let mut settings = self.outline.settings.clone();
        settings.insert("seed".to_owned(), self.seed.into());
        let (start, every) = (position.log_start(), keys.log_every_n_steps);
        let metrics = Metrics::open(loggers, &keys.output_dir, &settings, start, every, self.console)?;
        Ok(Run {
            extra: self.state.map(|state| state.extra).unwrap_or_default(),
            outline: self.outline,
            mesh: self.mesh,
            run_dir,
            metrics,
            base: Arc::new(self.base),
            weight_fingerprints,
            shape: self.shape,
            tokenizer: self.tokenizer,
            tokenizer_files: Arc::new(self.tokenizer_files),
            train_data: Arc::new(self.train_data),
            validation_data: self.validation_data.map(Arc::new),
            exact_match: self.exact_match,
            seed: self.seed,
            position,
            evaluation: self.evaluation,
            measured,
            last_saved: self.resumed,
            unread: None,
            settled: None,
            background: None,
            is_ending: Cell::new(false),
        })
    }
}

/// What a process that shows nothing writes instead: a log of its own.
fn log_of_rank(output_dir: &Path, rank: usize) -> Result<Console> {
    let folder = output_dir.join("logs");
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let path = folder.join(format!("rank_{rank}.log"));
    let file = File::options().create(true).append(true).open(&path).map_err(Error::io("create", &path))?;
    Ok(Console::lines(file))
}

/// What a line on the base model says of its weights in blocks.
fn held(in_blocks: &InBlocks) -> String {
    match in_blocks.is_empty() {
        true => String::new(),
        false => {
            format!("\nheld quantized: {}, together {}", in_blocks.describe(), memory::size(in_blocks.bytes()))
        }
    }
}

/// How much of the model is trained, in words.
fn trained_share(trained: &Trained, model: &Decoder) -> String {
    match trained {
        Trained::Weights => format!("all {} parameters", model.parameter_count()),
        Trained::Adapters { .. } => {
            let is_adapter = |parameter: &&Parameter| parameter.name().contains(".lora_");
            let count = |all: &mut dyn Iterator<Item = &Parameter>| -> usize { all.map(Parameter::elem_count).sum() };
            let trained = count(&mut model.trainable().iter());
            let total = model.parameter_count() + count(&mut model.trainable().iter().filter(is_adapter));
            format!("{trained} of {total} parameters ({:.2} %)", 100.0 * trained as f64 / total as f64)
        }
    }
}

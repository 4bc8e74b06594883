//! Full fine-tuning of a causal language model: every weight is trained.
//!
//!     cargo run --release -p recipes --bin full -- --config configs/full/tiny.yaml epochs=2

use std::sync::Arc;

use tune_core::prelude::*;

/// What `full` is told.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    compile = "everything here is compiled",
    profiler = "use a profiler of the system, such as perf",
    log_peak_memory_stats = "the peak is always logged",
    enable_activation_offloading = "activations stay where they are made"
))]
pub(crate) struct FullConfig {
    /// Checkpoints, logs and the resolved config go here.
    #[config(may_change)]
    output_dir: PathBuf,
    /// Go on from the newest checkpoint in output_dir.
    #[config(default = false, may_change)]
    resume_from_checkpoint: bool,
    /// Delete the checkpoints of an earlier run in output_dir and start anew.
    #[config(default = false, may_change)]
    overwrite: bool,

    /// The model.
    #[config(default)]
    model: ModelConfig,
    /// The checkpoint to start from, and what is saved.
    checkpointer: CheckpointConfig,

    /// Text to tokens.
    #[config(default)]
    tokenizer: TokenizerConfig,
    /// What is trained on: one dataset or several.
    #[config(one_or_many)]
    dataset: Vec<DatasetConfig>,
    /// What the model is validated on.
    #[config(default, one_or_many, may_change)]
    dataset_val: Vec<DatasetConfig>,
    /// Validate after so many steps, besides at the end of each epoch.
    #[config(range = 1.., may_change)]
    run_val_every_n_steps: Option<u64>,

    /// Where all randomness starts; null is a fresh one, which is printed.
    seed: Option<u64>,
    /// Take the samples in a new order in each epoch.
    #[config(default = true)]
    shuffle: bool,
    /// Sequences per micro-batch.
    #[config(default = 2, range = 1..)]
    batch_size: usize,
    /// Micro-batches whose gradients make one step.
    #[config(default = 1, range = 1..)]
    gradient_accumulation_steps: usize,
    /// Passes over the data.
    #[config(default = 1, range = 1..)]
    epochs: u64,
    /// End each epoch after so many steps.
    #[config(range = 1..)]
    max_steps_per_epoch: Option<usize>,

    /// Apply each gradient in the backward pass as soon as it is complete, and free it: less memory.
    /// Leaves no room for accumulation and clipping.
    #[config(default = false)]
    optimizer_in_bwd: bool,
    /// What moves the weights.
    #[config(default)]
    optimizer: OptimizerConfig,
    /// How the learning rate changes over the run.
    #[config(default)]
    lr_scheduler: SchedulerConfig,
    /// What is minimized.
    #[config(default)]
    loss: LossConfig,
    /// Scale gradients down to this norm.
    #[config(range = 1e-6..)]
    clip_grad_norm: Option<f64>,

    /// cpu, cuda or cuda:N.
    #[config(default = "cpu")]
    device: DeviceConfig,
    /// Precision of weights and activations.
    #[config(default)]
    dtype: Precision,
    /// Keep only each block's input for the backward pass: less memory, a third more time.
    #[config(default = false, may_change)]
    enable_activation_checkpointing: bool,

    /// Where metrics are recorded: one place or several.
    #[config(default = ["jsonl"], one_or_many, may_change)]
    metric_logger: Vec<MetricLoggerConfig>,
    /// Record every so many steps.
    #[config(default = 1, range = 1.., may_change)]
    log_every_n_steps: u64,
}

/// A run that trains all weights.
pub(crate) struct FullFinetune {
    cfg: FullConfig,
    seed: u64,
    /// What the chat template takes for now, where it writes the date.
    now: Option<i64>,
    run_dir: RunDir,
    metrics: Metrics,
    base: Checkpoint,
    model: Decoder,
    tokenizer_files: TokenizerFiles,
    /// What the trained model ends its answers with.
    stop_tokens: StopTokens,
    train_data: Arc<Loader>,
    validation_data: Option<Loader>,
    plan: Plan,
    position: Position,
    validations: Validations,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
    last_saved: Option<Saved>,
}

impl Recipe for FullFinetune {
    type Config = FullConfig;

    fn outline(cfg: &FullConfig) -> Result<Outline<'_>> {
        if cfg.optimizer_in_bwd && (cfg.gradient_accumulation_steps > 1 || cfg.clip_grad_norm.is_some()) {
            return Err(Error::setup(
                "optimizer_in_bwd applies each gradient at once: set gradient_accumulation_steps=1 and clip_grad_norm=null, \
                 or optimizer_in_bwd=false",
            ));
        }
        if let Some(dir) = &cfg.checkpointer.adapter_checkpoint {
            return Err(Error::file(
                dir,
                "checkpointer.adapter_checkpoint is for lora; full trains the model's own weights",
            ));
        }
        Ok(Outline {
            output_dir: &cfg.output_dir,
            start: run_start(cfg.resume_from_checkpoint, cfg.overwrite),
            settings: settings(cfg),
            checkpointer: &cfg.checkpointer,
            architecture: cfg.model.architecture,
            trained: Trained::Weights,
            tokenizer: &cfg.tokenizer,
            dataset: &cfg.dataset,
            dataset_val: &cfg.dataset_val,
            exact_match: None,
            seed: cfg.seed,
            shuffle: cfg.shuffle,
            batch_size: cfg.batch_size,
            plan: Plan {
                gradient_accumulation_steps: cfg.gradient_accumulation_steps,
                max_steps_per_epoch: cfg.max_steps_per_epoch,
                epochs: cfg.epochs,
            },
            optimizer: &cfg.optimizer,
            optimizer_in_bwd: Some(cfg.optimizer_in_bwd),
            lr_scheduler: &cfg.lr_scheduler,
            clip_grad_norm: cfg.clip_grad_norm,
            activation_checkpointing: cfg.enable_activation_checkpointing,
            device: cfg.device,
            dtype: cfg.dtype,
            metric_logger: &cfg.metric_logger,
        })
    }

    fn setup(cfg: FullConfig) -> Result<Self> {
        let outline = Self::outline(&cfg)?;
        let (device, dtype) = outline.device()?;
        let mut console = Console::stderr();
        hub::watch(Downloads::stderr());

        let (base, shape) = outline.base()?;
        let (tokenizer, tokenizer_files) = cfg.tokenizer.open(&base)?;
        outline.warnings(&base, &tokenizer).iter().for_each(|w| console.warn(w));
        outline.check_output_dir(&base)?;
        let (resumed, state) = outline.resumed()?.unzip();
        let seed = state.as_ref().map_or_else(|| choose_seed(cfg.seed), |state| state.seed);
        // A chat template that writes the date goes on with the day on which the run began.
        let tokenizer = match state.as_ref().and_then(|state| state.now) {
            Some(now) => tokenizer.at(now),
            None => tokenizer,
        };

        let train_data = outline.train_data(&tokenizer, seed)?;
        let validation_data = outline.validation_data(&tokenizer, seed)?;
        let data = || std::iter::once(&train_data).chain(&validation_data);
        let news = data().flat_map(|loader| loader.news(shape.max_position_embeddings));
        news.for_each(|line| console.note(&line));
        let summaries: Vec<String> = data().flat_map(Loader::summary).collect();
        outline.schedule_warnings(train_data.known_len()).iter().for_each(|warning| console.warn(warning));
        outline.check_memory(&shape, &train_data, validation_data.as_ref(), state.as_ref())?;
        outline.check_storage(&base, &shape, &train_data, state.as_ref())?;

        let options = LoadOptions { dtype, device, train_weights: true, lora: None };
        let model = match &resumed {
            Some(saved) => Decoder::load(shape, &Checkpoint::open(&saved.path)?, &options)?,
            None => Decoder::load(shape, &base, &options)?,
        };
        let plan = outline.plan;
        let mut optimizer = cfg.optimizer.build();
        let mut complete = false;
        let mut position = Position::default();
        let mut validations = Validations::default();
        if let Some(state) = state {
            state.check_inputs(&inputs(&train_data, &model.config, None)?)?;
            position = Position::of(&state);
            validations = Validations::of(&state);
            complete = state.step == state.total_steps;
            optimizer.set_state(state.optimizer, model.trainable())?;
        }

        let steps = match train_data.known_len() {
            Some(n) => format!("{} in {} epochs of {}", plan.total_steps(n), plan.epochs, plan.steps_per_epoch(n)),
            None => format!("{} epochs; the steps are counted while training runs", plan.epochs),
        };

        // Everything is known to be sound: only now is anything written.
        let run_dir = RunDir::open(&cfg.output_dir, base.path(), outline.start)?;
        write_config(&cfg.output_dir, &cfg.to_yaml())?;
        console.report(
            "Full fine-tuning",
            &[
                ("base model", base.path().display().to_string()),
                ("data", summaries.join("\n")),
                ("trained", format!("all {} parameters", model.parameter_count())),
                ("steps", steps),
                ("seed", seed.to_string()),
                ("output", cfg.output_dir.display().to_string()),
            ],
        );
        if let Some(saved) = resumed.as_ref().filter(|_| complete) {
            console.note(&already_complete(saved, "checkpointer.checkpoint_dir"));
        }
        let metrics =
            Metrics::open(&cfg.metric_logger, &cfg.output_dir, position.log_start(), cfg.log_every_n_steps, console)?;
        Ok(Self {
            seed,
            now: tokenizer.now(),
            run_dir,
            metrics,
            base,
            model,
            tokenizer_files,
            stop_tokens: tokenizer.stop_tokens().clone(),
            train_data: Arc::new(train_data),
            validation_data,
            plan,
            position,
            validations,
            optimizer,
            schedule: cfg.lr_scheduler.build(),
            last_saved: resumed,
            cfg,
        })
    }

    fn train(&mut self) -> Result<()> {
        self.metrics.begin(self.position.step, self.train_data.known_len().map(|n| self.plan.total_steps(n)));
        let mut throughput = Throughput::default();
        // From here on, Ctrl-C and SIGTERM make the next step an error, for `save_early`.
        let mut steps = Steps::ahead(&self.train_data, self.plan, self.position)?;
        // Before the first step; or where an earlier process was stopped before it had validated what it saved.
        if self.validate()? && self.last_saved.is_some() {
            self.save_checkpoint()?;
        }
        loop {
            throughput.begin();
            let Some(Step { batches, epoch, batches_in_epoch, ends_epoch }) = steps.next().transpose()? else { break };
            let step = self.position.step + 1;
            let lr = self.optimizer.base_lr() * self.schedule.factor(self.position.step, || self.total_steps())?;

            // The loss is a mean over the trained tokens of the whole step, not a mean of means.
            let trained_tokens: usize = batches.iter().map(Batch::trained_tokens).sum();
            let scale = 1.0 / trained_tokens as f64;
            let mut gradients = Gradients::default();
            let mut loss = 0.0;
            let options =
                RunOptions { scale, activation_checkpointing: self.cfg.enable_activation_checkpointing, dropout: None };
            let grad_norm = if self.cfg.optimizer_in_bwd {
                let optimizer = self.optimizer.as_mut();
                let mut sink = InBackward { optimizer, lr, step, squared_norm: 0.0 };
                for batch in &batches {
                    loss += scale * forward_backward(&self.model, batch, options, &mut sink)?;
                }
                sink.squared_norm.sqrt()
            } else {
                for batch in &batches {
                    loss += scale * forward_backward(&self.model, batch, options, &mut gradients)?;
                }
                gradients.norm()?
            };
            check_finite(
                step,
                loss,
                Some(grad_norm),
                &batches,
                self.last_saved.as_ref().map(|saved| saved.path.as_path()),
            )?;
            let clip = self.cfg.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
            gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step)?;
            batches.iter().for_each(|b| throughput.count(b.tokens(), b.trained_tokens()));

            self.position = match ends_epoch {
                true => Position { step, epoch: epoch + 1, batches_in_epoch: 0 },
                false => Position { step, epoch, batches_in_epoch },
            };

            self.metrics.log_step(&StepMetrics {
                step,
                epoch,
                loss,
                lr,
                grad_norm: Some(grad_norm),
                pace: throughput.end(),
                peak_memory_bytes: peak_memory(),
            })?;
            self.validate()?;
            if self.position.saves(&self.cfg.checkpointer) {
                self.save_checkpoint()?;
            }
            self.tell_of_data()?;
        }
        Ok(())
    }

    fn position(&self) -> Position {
        self.position
    }

    fn last_saved(&self) -> Option<&Saved> {
        self.last_saved.as_ref()
    }

    fn save_checkpoint(&mut self) -> Result<Saved> {
        let state = TrainingState {
            step: self.position.step as usize,
            epoch: self.position.epoch as usize,
            batches_in_epoch: self.position.batches_in_epoch,
            total_steps: self.total_steps()? as usize,
            seed: self.seed,
            now: self.now,
            settings: settings(&self.cfg),
            inputs: inputs(&self.train_data, &self.model.config, None)?,
            extra: self.validations.extra().collect(),
            optimizer: self.optimizer.state(),
        };
        let (weights, _) = self.model.merged_weights()?;
        let bytes = weights.values().map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum();
        let shard = self.cfg.checkpointer.max_shard_bytes();
        let console = self.metrics.console();
        let saved = save(&self.run_dir, &self.cfg.checkpointer, self.position, &state, bytes, console, |dir| {
            let generation = self.base.generation_config();
            let (config, generation) = self.stop_tokens.export(self.base.config(), generation.as_ref());
            checkpoint::hf::write(dir, &config, weights.clone(), &self.tokenizer_files, Some(&generation), shard)
        })?;
        self.last_saved = Some(saved.clone());
        Ok(saved)
    }

    fn cleanup(mut self) -> Result<()> {
        self.metrics.close()?;
        let Some(saved) = &self.last_saved else { return Ok(()) };
        say!("{}", end_of_run(saved, None, &self.validations, None));
        Ok(())
    }
}

impl FullFinetune {
    /// Steps of the whole run. Waits until all data is tokenized.
    fn total_steps(&self) -> Result<u64> {
        Ok(self.plan.total_steps(self.train_data.len()?))
    }

    /// Says what is known of large data once all of it is tokenized, some steps after the beginning.
    fn tell_of_data(&mut self) -> Result<()> {
        let longest = self.model.config.max_position_embeddings;
        let mut news = self.train_data.news(longest);
        if !news.is_empty() {
            let total = self.total_steps()?;
            self.metrics.console().set_total(total);
            let warnings = Self::outline(&self.cfg)?.schedule_warnings(self.train_data.known_len());
            news.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
        }
        news.extend(self.validation_data.iter().flat_map(|data| data.news(longest)));
        news.iter().for_each(|line| self.metrics.console().note(line));
        Ok(())
    }

    /// The loss on the validation data, where that is due and not known yet. Returns whether it was.
    fn validate(&mut self) -> Result<bool> {
        let step = self.position.step;
        let is_due = self.position.validates(self.cfg.run_val_every_n_steps, &self.cfg.checkpointer);
        let Some(loader) = self.validation_data.as_ref().filter(|_| is_due && !self.validations.has(step)) else {
            return Ok(false);
        };
        let mut throughput = Throughput::default();
        throughput.begin();
        let mut sum = 0.0;
        for batch in loader.epoch(0).batches(0) {
            check_stop()?;
            let batch = batch?;
            sum += engine::evaluate(&self.model, &batch)?;
            throughput.count(batch.tokens(), batch.trained_tokens());
        }
        let pace = throughput.end();
        let loss = sum / pace.trained_tokens as f64;
        self.validations.add(step, loss);
        let epoch = self.position.epoch_of_last_step() as u64;
        self.metrics.log_validation(&ValidationMetrics { step, epoch, loss, pace })?;
        Ok(true)
    }
}

/// Trains all weights of a model.
#[recipe(preflight = FullFinetune, configs = [
    "../configs/full/tiny.yaml",
    "../configs/full/smollm2_135m.yaml",
    "../configs/full/make_tiny.yaml",
])]
fn full(cfg: FullConfig) -> Result<()> {
    init_process_group()?;
    let mut recipe = FullFinetune::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

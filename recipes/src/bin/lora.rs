//! LoRA fine-tuning of a causal language model.
//!
//!     cargo run --release -p recipes --bin lora -- --config configs/lora/tiny.yaml epochs=2

use std::sync::Arc;

use tune_core::prelude::*;

/// What `lora` is told.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    compile = "everything here is compiled",
    profiler = "use a profiler of the system, such as perf",
    log_peak_memory_stats = "the peak is always logged",
    enable_activation_offloading = "activations stay where they are made"
))]
pub(crate) struct LoraConfig {
    /// Checkpoints, logs and the resolved config go here.
    #[config(may_change)]
    output_dir: PathBuf,
    /// Go on from the newest checkpoint in output_dir.
    #[config(default = false, may_change)]
    resume_from_checkpoint: bool,
    /// Delete the checkpoints of an earlier run in output_dir and start anew.
    #[config(default = false, may_change)]
    overwrite: bool,

    /// The adapters.
    #[config(default)]
    model: LoraModel,
    /// The base model, and what is saved.
    checkpointer: CheckpointConfig,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,

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
    /// Held-out questions that the model is asked before and after training.
    #[config(may_change)]
    exact_match: Option<ExactMatchConfig>,

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

    /// What moves the adapters.
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

/// A run of low-rank adaptation.
pub(crate) struct LoraFinetune {
    cfg: LoraConfig,
    seed: u64,
    run_dir: RunDir,
    metrics: Metrics,
    base: Checkpoint,
    adapters: peft::LoraOptions,
    model: Decoder,
    tokenizer: Tokenizer,
    tokenizer_files: TokenizerFiles,
    train_data: Arc<Loader>,
    validation_data: Option<Loader>,
    exact_match: Option<ExactMatch>,
    /// The share of questions that the base model answered rightly.
    right_before: Option<f64>,
    plan: Plan,
    position: Position,
    validations: Validations,
    base_fingerprint: u32,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
    last_saved: Option<Saved>,
}

impl Recipe for LoraFinetune {
    type Config = LoraConfig;

    fn outline(cfg: &LoraConfig) -> Result<Outline<'_>> {
        Ok(Outline {
            output_dir: &cfg.output_dir,
            start: run_start(cfg.resume_from_checkpoint, cfg.overwrite),
            settings: settings(cfg),
            checkpointer: &cfg.checkpointer,
            architecture: cfg.model.architecture,
            trained: Trained::Adapters { lora: cfg.model.options(0), merged: !cfg.save_adapter_weights_only },
            tokenizer: &cfg.tokenizer,
            dataset: &cfg.dataset,
            dataset_val: &cfg.dataset_val,
            exact_match: cfg.exact_match.as_ref(),
            seed: cfg.seed,
            shuffle: cfg.shuffle,
            batch_size: cfg.batch_size,
            plan: Plan {
                gradient_accumulation_steps: cfg.gradient_accumulation_steps,
                max_steps_per_epoch: cfg.max_steps_per_epoch,
                epochs: cfg.epochs,
            },
            optimizer: &cfg.optimizer,
            optimizer_in_bwd: None,
            lr_scheduler: &cfg.lr_scheduler,
            clip_grad_norm: cfg.clip_grad_norm,
            activation_checkpointing: cfg.enable_activation_checkpointing,
            device: cfg.device,
            dtype: cfg.dtype,
            metric_logger: &cfg.metric_logger,
        })
    }

    fn setup(cfg: LoraConfig) -> Result<Self> {
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
        let exact_match = cfg.exact_match.as_ref().map(|c| ExactMatch::read(c, &tokenizer)).transpose()?;
        outline.schedule_warnings(train_data.known_len()).iter().for_each(|warning| console.warn(warning));
        outline.check_memory(&shape, &train_data, validation_data.as_ref(), state.as_ref())?;
        outline.check_storage(&base, &shape, &train_data, state.as_ref())?;

        let adapters = cfg.model.options(seed);
        let options = LoadOptions { dtype, device, train_weights: false, lora: Some(adapters.clone()) };
        let model = Decoder::load(shape, &base, &options)?;
        if let Some(dir) = resumed.as_ref().map(|r| &r.path).or(cfg.checkpointer.adapter_checkpoint.as_ref()) {
            adapters.load_into(&model, dir)?;
        }
        let base_fingerprint = base.fingerprint()?;
        let plan = outline.plan;
        let mut optimizer = cfg.optimizer.build();
        let mut complete = false;
        let mut position = Position::default();
        let mut validations = Validations::default();
        let mut right_before = None;
        if let Some(state) = state {
            state.check_inputs(&inputs(&train_data, &model.config, Some(base_fingerprint))?)?;
            position = Position::of(&state);
            validations = Validations::of(&state);
            complete = state.step == state.total_steps;
            right_before = state.extra.get("right_before").and_then(serde_json::Value::as_f64);
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
            "LoRA fine-tuning",
            &[
                ("base model", base.path().display().to_string()),
                ("data", summaries.join("\n")),
                ("trained", trained_share(&model)),
                ("steps", steps),
                ("seed", seed.to_string()),
                ("output", cfg.output_dir.display().to_string()),
            ],
        );
        if let Some(saved) = resumed.as_ref().filter(|_| complete) {
            console.note(&already_complete(saved, "checkpointer.adapter_checkpoint"));
        }
        let metrics =
            Metrics::open(&cfg.metric_logger, &cfg.output_dir, position.log_start(), cfg.log_every_n_steps, console)?;
        Ok(Self {
            seed,
            run_dir,
            metrics,
            base,
            adapters,
            model,
            tokenizer,
            tokenizer_files,
            train_data: Arc::new(train_data),
            validation_data,
            exact_match,
            right_before,
            plan,
            position,
            validations,
            base_fingerprint,
            optimizer,
            schedule: cfg.lr_scheduler.build(),
            last_saved: resumed,
            cfg,
        })
    }

    fn train(&mut self) -> Result<()> {
        if let (Some(questions), None) = (&self.exact_match, self.right_before) {
            let answers = questions.ask(&self.model, &self.tokenizer)?;
            print_answers("Before training", &answers);
            self.right_before = Some(eval::share_right(&answers));
        }
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
            for (i, batch) in batches.iter().enumerate() {
                let options = RunOptions {
                    scale,
                    activation_checkpointing: self.cfg.enable_activation_checkpointing,
                    dropout: Some(dropout_key(self.seed, step, i)),
                };
                loss += scale * forward_backward(&self.model, batch, options, &mut gradients)?;
                throughput.count(batch.tokens(), batch.trained_tokens());
            }
            let grad_norm = gradients.norm()?;
            check_finite(
                step,
                loss,
                Some(grad_norm),
                &batches,
                self.last_saved.as_ref().map(|saved| saved.path.as_path()),
            )?;
            let clip = self.cfg.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
            gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step)?;

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
        // A run that was complete is asked for its merged model.
        let is_merged = |saved: &Saved| self.cfg.save_adapter_weights_only || saved.path.join("merged").is_dir();
        if self.last_saved.as_ref().is_some_and(|saved| !is_merged(saved)) {
            self.save_checkpoint()?;
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
            now: self.tokenizer.now(),
            settings: settings(&self.cfg),
            inputs: inputs(&self.train_data, &self.model.config, Some(self.base_fingerprint))?,
            extra: self
                .validations
                .extra()
                .chain(self.right_before.map(|share| ("right_before".to_string(), share.into())))
                .collect(),
            optimizer: self.optimizer.state(),
        };
        let merged = if self.cfg.save_adapter_weights_only { None } else { Some(self.model.merged_weights()?) };
        let weights = peft::adapter_weights(&self.model)?;
        let merged_bytes = merged.iter().flat_map(|(w, _)| w.values());
        let bytes =
            weights.values().chain(merged_bytes).map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum();
        let adapter = self.adapters.adapter_config(&self.base);
        let console = self.metrics.console();
        let saved = save(&self.run_dir, &self.cfg.checkpointer, self.position, &state, bytes, console, |dir| {
            checkpoint::peft::write(dir, &adapter, &weights, &self.tokenizer_files)?;
            let Some((weights, tied)) = merged.clone() else { return Ok(()) };
            let stop = self.tokenizer.stop_tokens();
            let (mut config, generation) = stop.export(self.base.config(), self.base.generation_config().as_ref());
            config["tie_word_embeddings"] = tied.into();
            let shard = self.cfg.checkpointer.max_shard_bytes();
            let (dir, files) = (dir.join("merged"), &self.tokenizer_files);
            checkpoint::hf::write(&dir, &config, weights, files, Some(&generation), shard)
        })?;
        self.last_saved = Some(saved.clone());
        Ok(saved)
    }

    fn cleanup(mut self) -> Result<()> {
        self.metrics.close()?;
        let Some(saved) = &self.last_saved else { return Ok(()) };
        let mut question = None;
        if let Some(questions) = &self.exact_match {
            // From the adapter as it was saved, not as it is in memory.
            self.adapters.load_into(&self.model, &saved.path)?;
            let answers = questions.ask(&self.model, &self.tokenizer)?;
            print_answers("After training", &answers);
            let percent = |share: f64| format!("{:.1} %", 100.0 * share);
            say!(
                "\nHeld-out answers exactly right: {} before, {} after, of {}",
                self.right_before.map_or("unknown".to_string(), percent),
                percent(eval::share_right(&answers)),
                answers.len()
            );
            question = answers.first().map(|answer| answer.question.clone());
        }
        say!("{}", end_of_run(saved, Some(self.base.path()), &self.validations, question.as_deref()));
        Ok(())
    }
}

impl LoraFinetune {
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

/// How much of the model is trained, in words.
fn trained_share(model: &Decoder) -> String {
    let trained: usize = model.trainable().values().map(|v| v.elem_count()).sum();
    let total = model.parameter_count() + trained;
    format!("{trained} of {total} parameters ({:.2} %)", 100.0 * trained as f64 / total as f64)
}

/// A few questions, wrong answers first: they say more.
fn print_answers(title: &str, answers: &[Answer]) {
    say!("\n{title}:");
    let (right, wrong): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.is_right());
    for answer in wrong.into_iter().chain(right).take(3) {
        let verdict = if answer.is_right() { "right" } else { "wrong" };
        say!("  {} -> {} ({verdict}; expected {})", answer.question, answer.given, answer.expected);
    }
}

/// Trains low-rank adapters on a frozen base model.
#[recipe(preflight = LoraFinetune, configs = ["../configs/lora/tiny.yaml", "../configs/lora/smollm2_135m.yaml"])]
fn lora(cfg: LoraConfig) -> Result<()> {
    init_process_group()?;
    let mut recipe = LoraFinetune::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

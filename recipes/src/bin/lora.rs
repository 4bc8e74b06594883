//! LoRA fine-tuning of a causal language model.
//!
//!     cargo run --release -p recipes --bin lora -- --config configs/lora/tiny.yaml epochs=2

use tune_core::prelude::*;

/// What `lora` is told.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    loss = "training minimizes the cross-entropy of the next token, a mean over a step's trained tokens"
))]
pub(crate) struct LoraConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The adapters.
    #[config(default)]
    model: LoraModel,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,

    /// Datasets, and how they become batches.
    #[config(flatten)]
    data: DataKeys,
    /// Held-out questions that the model is asked before and after training.
    #[config(may_change)]
    exact_match: Option<ExactMatchConfig>,
    /// What else is measured while it trains: tasks, samples, early stopping.
    #[config(flatten)]
    evaluation: EvaluationKeys,

    /// Epochs, accumulation, clipping and checkpointing.
    #[config(flatten)]
    steps: StepKeys,
    /// Add noise of this size to the embeddings of tokens while training (NEFTune): 5 to 15. None where null.
    #[config(range = 0.0..)]
    neftune_noise_alpha: Option<f64>,
    /// What a token's loss has beside its cross-entropy.
    #[config(flatten)]
    loss: TokenLoss,
    /// What moves the adapters.
    #[config(default)]
    optimizer: OptimizerConfig,
    /// Move the adapters' `B` at this multiple of the learning rate (LoRA+); 16, say. As fast as `A` where null.
    #[config(range = 0.0..)]
    loraplus_lr_ratio: Option<f64>,
    /// How the learning rate changes over the run.
    #[config(default)]
    lr_scheduler: SchedulerConfig,
}

/// A run of low-rank adaptation.
pub(crate) struct LoraFinetune {
    cfg: LoraConfig,
    run: Run,
    model: Decoder,
    adapters: peft::LoraOptions,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

/// The share of questions that the base model answered rightly, as checkpoints remember it.
const RIGHT_BEFORE: &str = "right_before";

impl Recipe for LoraFinetune {
    type Config = LoraConfig;

    fn outline(cfg: &LoraConfig) -> Result<Outline> {
        Ok(Outline {
            trained: Trained::Adapters {
                lora: Box::new(cfg.model.options(0)?),
                merged: !cfg.save_adapter_weights_only,
            },
            architecture: cfg.model.architecture,
            quantization: cfg.model.quantization(),
            exact_match: cfg.exact_match.clone(),
            evaluation: cfg.evaluation.clone(),
            loss: cfg.loss,
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: LoraConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let opened = Self::outline(&cfg)?.open(Console::stderr())?;

        let start = opened.adapter_to_go_on_from();
        let adapters = opened.with_token_ids(cfg.model.options(opened.seed)?).going_on_from(start.as_deref())?;
        let options = LoadOptions {
            dtype: opened.dtype,
            device: opened.device.clone(),
            train_weights: false,
            lora: Some(adapters.clone()),
        };
        let model = Decoder::load_shard(opened.shape.clone(), &opened.frozen_base(), &options, &opened.mesh)?;
        if let Some(dir) = &start {
            adapters.load_into(&model, dir)?;
        }
        let mut optimizer = cfg.optimizer.build_for_adapters(cfg.loraplus_lr_ratio);

        // Everything is known to be sound: only now is anything written.
        let run = opened.begin("LoRA fine-tuning", &model, optimizer.as_mut())?;
        Ok(Self { run, model, adapters, optimizer, schedule: cfg.lr_scheduler.build(), cfg })
    }

    fn train(&mut self) -> Result<()> {
        if let (Some(questions), None) = (self.run.exact_match(), self.right_before()) {
            let answers = questions.ask(&self.model, self.run.tokenizer())?;
            say!("{}", eval::excerpt("Before training", &answers));
            self.run.extra.insert(RIGHT_BEFORE.to_owned(), eval::share_right(&answers).into());
        }
        // From here on, Ctrl-C and SIGTERM make the next step an error, for `save_early`.
        let steps = self.run.steps()?;
        // Before the first step; or where an earlier process was stopped before it had measured what it saved.
        if self.run.measure(&self.model)? && self.run.last_saved().is_some() {
            self.save_checkpoint()?;
        }
        for step in steps {
            let step = step?;
            // ---- one optimizer step ----------------------------------------------------------------
            let lr = self.optimizer.base_lr() * self.schedule.factor(step.number - 1, || self.run.total_steps())?;
            self.optimizer.prepare_all(self.model.trainable(), step.number)?;
            // The loss is a mean over the trained tokens of the whole step, not a mean of means.
            let scale = 1.0 / step.trained_tokens() as f64;
            let mut gradients = Gradients::default();
            let mut loss = Later::default();
            for (i, batch) in step.micro_batches() {
                let key = dropout_key(self.run.seed(), step.number, i);
                let options = RunOptions {
                    scale,
                    activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                    dropout: Some(key),
                    noise: self.cfg.neftune_noise_alpha.map(|alpha| EmbeddingNoise { alpha, key }),
                    loss: self.cfg.loss,
                    ..RunOptions::PLAIN
                };
                loss.add(scale, queue_forward_backward(&self.model, batch, options, &mut gradients)?);
            }
            // A card may still be computing them: they are read when the next step is under way.
            let (grad_norm, clip) = gradients.clip(self.cfg.steps.clip_grad_norm)?;
            self.run.check_known(&step, &loss, &grad_norm)?;
            gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step.number)?;
            // ----------------------------------------------------------------------------------------
            self.run.finish_later(&step, loss, lr, grad_norm)?;
            self.run.measure(&self.model)?;
            if self.run.saves() {
                self.save_checkpoint()?;
            }
            if self.run.stops_early() {
                break;
            }
        }
        // A run that was complete is asked for its merged model.
        let lacks_merged = |saved: &Saved| !self.cfg.save_adapter_weights_only && !saved.path.join("merged").is_dir();
        if self.run.last_saved().is_some_and(lacks_merged) {
            self.save_checkpoint()?;
        }
        Ok(())
    }

    fn run(&self) -> &Run {
        &self.run
    }

    fn save_checkpoint(&mut self) -> Result<Saved> {
        let mut weights = Weights::adapter(&self.adapters, &self.model)?;
        if !self.cfg.save_adapter_weights_only {
            weights = weights.with_merged(&self.model)?;
        }
        self.run.save(&weights, self.optimizer.as_ref())
    }

    fn cleanup(mut self) -> Result<()> {
        self.run.close()?;
        let mut question = None;
        if let (Some(questions), Some(saved)) = (self.run.exact_match(), self.run.last_saved()) {
            // From the adapter as it was saved, not as it is in memory.
            self.adapters.load_into(&self.model, &saved.path)?;
            let answers = questions.ask(&self.model, self.run.tokenizer())?;
            say!("{}", eval::excerpt("After training", &answers));
            let percent = |share: f64| format!("{:.1} %", 100.0 * share);
            say!(
                "\nHeld-out answers exactly right: {} before, {} after, of {}",
                self.right_before().map_or("unknown".to_string(), percent),
                percent(eval::share_right(&answers)),
                answers.len()
            );
            question = answers.first().map(|answer| answer.question.clone());
        }
        if let Some(results) = self.run.results(question.as_deref()) {
            say!("{results}");
        }
        Ok(())
    }
}

impl LoraFinetune {
    fn right_before(&self) -> Option<f64> {
        self.run.extra.get(RIGHT_BEFORE)?.as_f64()
    }
}

/// Trains low-rank adapters on a frozen base model.
#[recipe(preflight = LoraFinetune, configs = ["../configs/lora/tiny.yaml", "../configs/lora/smollm2_135m.yaml"])]
fn lora(cfg: LoraConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = LoraFinetune::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

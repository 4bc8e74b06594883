//! Pretraining of a causal language model, from fresh weights or continued, on documents.
//!
//!     cargo run --release -p recipes --bin pretrain -- --config configs/pretrain/tiny.yaml epochs=2

use tune_core::prelude::*;

/// What `pretrain` is told.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    loss = "training minimizes the cross-entropy of the next token, a mean over a step's trained tokens"
))]
pub(crate) struct PretrainConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The model.
    #[config(default)]
    model: ModelConfig,
    /// Begin with fresh weights: checkpoint_dir then needs only config.json and a tokenizer. If false, training goes on from its weights.
    #[config(default = true)]
    from_scratch: bool,
    /// How fresh weights are drawn.
    #[config(default)]
    init: InitConfig,

    /// Text, and how it becomes rows.
    #[config(flatten)]
    data: PretrainKeys,

    /// What else is measured while it trains: tasks, samples, early stopping.
    #[config(flatten)]
    evaluation: EvaluationKeys,

    /// Epochs, accumulation, clipping and checkpointing.
    #[config(flatten)]
    steps: StepKeys,
    /// Apply each gradient in the backward pass as soon as it is complete, and free it: less memory.
    /// Leaves no room for accumulation and clipping.
    #[config(default = false)]
    optimizer_in_bwd: bool,
    /// What a token's loss has beside its cross-entropy.
    #[config(flatten)]
    loss: TokenLoss,
    /// What moves the weights.
    #[config(default)]
    optimizer: OptimizerConfig,
    /// How the learning rate changes over the run.
    #[config(default)]
    lr_scheduler: SchedulerConfig,
}

/// A run that makes a model, or trains one on.
pub(crate) struct Pretrain {
    cfg: PretrainConfig,
    run: Run,
    model: Decoder,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

impl Recipe for Pretrain {
    type Config = PretrainConfig;

    fn outline(cfg: &PretrainConfig) -> Result<Outline> {
        if cfg.optimizer_in_bwd && (cfg.steps.gradient_accumulation_steps > 1 || cfg.steps.clip_grad_norm.is_some()) {
            return Err(Error::setup(
                "optimizer_in_bwd applies each gradient at once: set gradient_accumulation_steps=1 and clip_grad_norm=null, \
                 or optimizer_in_bwd=false",
            ));
        }
        if let Some(dir) = &cfg.run.checkpointer.adapter_checkpoint {
            return Err(Error::file(
                dir,
                "checkpointer.adapter_checkpoint is for lora; pretrain trains the model's own weights",
            ));
        }
        if !cfg.from_scratch && cfg.init != InitConfig::default() {
            return Err(Error::setup(
                "init says how fresh weights are drawn, and from_scratch=false goes on from those that are there: remove one of \
                 the two",
            ));
        }
        if cfg.from_scratch {
            cfg.run.checkpointer.refuse_reading("from_scratch=true begins with fresh weights")?;
        }
        Ok(Outline {
            architecture: cfg.model.architecture,
            fresh: cfg.from_scratch.then_some(cfg.init),
            optimizer_in_bwd: Some(cfg.optimizer_in_bwd),
            evaluation: cfg.evaluation.clone(),
            loss: cfg.loss,
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: PretrainConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let opened = Self::outline(&cfg)?.open(Console::stderr())?;

        let options =
            LoadOptions { dtype: opened.dtype, device: opened.device.clone(), train_weights: true, lora: None };
        let load =
            |weights: &dyn WeightSource| Decoder::load_shard(opened.shape.clone(), weights, &options, &opened.mesh);
        let model = match &opened.resumed {
            Some(saved) => load(&Checkpoint::open(&saved.path)?)?,
            None if cfg.from_scratch => {
                load(&FreshWeights::new(&opened.shape, opened.base.config(), &cfg.init, opened.seed)?)?
            }
            None => load(&opened.base)?,
        };
        let mut optimizer = cfg.optimizer.build();

        // Everything is known to be sound: only now is anything written.
        let run = opened.begin("Pretraining", &model, optimizer.as_mut())?;
        Ok(Self { run, model, optimizer, schedule: cfg.lr_scheduler.build(), cfg })
    }

    fn train(&mut self) -> Result<()> {
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
            let activation_checkpointing = self.cfg.steps.enable_activation_checkpointing;
            let options = RunOptions { scale, activation_checkpointing, loss: self.cfg.loss, ..RunOptions::PLAIN };
            // A card may still be computing loss and norm: they are read when the next step is under way.
            let mut loss = Later::default();
            let grad_norm;
            if self.cfg.optimizer_in_bwd {
                let optimizer = self.optimizer.as_mut();
                let mut sink = InBackward::new(optimizer, lr, step.number);
                for batch in &step.batches {
                    loss.add(scale, queue_forward_backward(&self.model, batch, options, &mut sink)?);
                }
                grad_norm = sink.norm()?;
                self.run.check_known(&step, &loss, &grad_norm)?;
            } else {
                let mut gradients = Gradients::default();
                for batch in &step.batches {
                    loss.add(scale, queue_forward_backward(&self.model, batch, options, &mut gradients)?);
                }
                let clip;
                (grad_norm, clip) = gradients.clip(self.cfg.steps.clip_grad_norm)?;
                self.run.check_known(&step, &loss, &grad_norm)?;
                gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step.number)?;
            }
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
        Ok(())
    }

    fn run(&self) -> &Run {
        &self.run
    }

    fn save_checkpoint(&mut self) -> Result<Saved> {
        let weights = Weights::model(&self.model)?;
        self.run.save(&weights, self.optimizer.as_ref())
    }

    fn cleanup(mut self) -> Result<()> {
        self.run.close()?;
        if let Some(results) = self.run.results(None) {
            say!("{results}");
        }
        Ok(())
    }
}

/// Makes a model of text, from nothing or from a model that is there.
#[recipe(preflight = Pretrain, configs = [
    "../configs/pretrain/tiny.yaml",
    "../configs/pretrain/smollm2_135m.yaml",
    "../configs/pretrain/make_tiny.yaml",
])]
fn pretrain(cfg: PretrainConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = Pretrain::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

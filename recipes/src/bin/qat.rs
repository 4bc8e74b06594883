//! Quantization-aware training: a model is trained as if it were quantized already, so that it loses less when it is. All of
//! its weights are trained, or adapters on it.
//!
//!     cargo run --release -p recipes --bin qat -- --config configs/qat/tiny.yaml quantizer.format=q8_0

use tune_core::prelude::*;

/// What `qat` is told.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    loss = "training minimizes the cross-entropy of the next token, a mean over a step's trained tokens"
))]
pub(crate) struct QatConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The model, of which adapters or all weights are trained.
    #[config(default)]
    model: LoraOrFullModel,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,

    /// How the model will be quantized.
    #[config(default)]
    quantizer: FakeQuantizer,
    /// Train the first N steps on weights that are not rounded; none where null.
    fake_quant_after_n_steps: Option<u64>,

    /// Datasets, and how they become batches.
    #[config(flatten)]
    data: DataKeys,

    /// What else is measured while it trains: tasks, samples, early stopping.
    #[config(flatten)]
    evaluation: EvaluationKeys,

    /// What a token's loss has beside its cross-entropy.
    #[config(flatten)]
    loss: TokenLoss,

    /// Epochs, accumulation, clipping and checkpointing.
    #[config(flatten)]
    steps: StepKeys,
    /// Apply each gradient in the backward pass as soon as it is complete, and free it: less memory.
    /// Leaves no room for accumulation and clipping, and is for all weights.
    #[config(default = false)]
    optimizer_in_bwd: bool,
    /// What moves the weights or the adapters.
    #[config(default)]
    optimizer: OptimizerConfig,
    /// How the learning rate changes over the run.
    #[config(default)]
    lr_scheduler: SchedulerConfig,
}

/// A run of quantization-aware training.
pub(crate) struct QuantizationAware {
    cfg: QatConfig,
    run: Run,
    model: Decoder,
    /// None where all weights are trained.
    adapters: Option<peft::LoraOptions>,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

impl Recipe for QuantizationAware {
    type Config = QatConfig;

    fn outline(cfg: &QatConfig) -> Result<Outline> {
        let trained = match cfg.model.adapters(0)? {
            Some(lora) => Trained::Adapters { lora: Box::new(lora), merged: !cfg.save_adapter_weights_only },
            None => Trained::Weights,
        };
        if let (Trained::Weights, Some(dir)) = (&trained, &cfg.run.checkpointer.adapter_checkpoint) {
            return Err(Error::file(
                dir,
                "checkpointer.adapter_checkpoint needs model.lora_rank: all weights are trained",
            ));
        }
        let plain = cfg.steps.gradient_accumulation_steps <= 1 && cfg.steps.clip_grad_norm.is_none();
        if cfg.optimizer_in_bwd && !(plain && matches!(trained, Trained::Weights)) {
            return Err(Error::setup(
                "optimizer_in_bwd applies each gradient at once, to the model's own weights: set \
                 gradient_accumulation_steps=1, clip_grad_norm=null and model.lora_rank=null, or optimizer_in_bwd=false",
            ));
        }
        Ok(Outline {
            optimizer_in_bwd: matches!(trained, Trained::Weights).then_some(cfg.optimizer_in_bwd),
            trained,
            architecture: cfg.model.architecture,
            fake_quantizer: Some(cfg.quantizer),
            evaluation: cfg.evaluation.clone(),
            loss: cfg.loss,
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: QatConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let opened = Self::outline(&cfg)?.open(Console::stderr())?;

        let start = opened.adapter_to_go_on_from();
        let adapters = cfg.model.adapters(opened.seed)?.map(|lora| opened.with_token_ids(lora));
        let adapters = adapters.map(|lora| lora.going_on_from(start.as_deref())).transpose()?;
        let options = LoadOptions {
            dtype: opened.dtype,
            device: opened.device.clone(),
            train_weights: adapters.is_none(),
            lora: adapters.clone(),
        };
        let resumed = opened.resumed.as_ref().map(|saved| &saved.path);
        let model = match (&adapters, resumed) {
            (None, Some(dir)) => {
                Decoder::load_shard(opened.shape.clone(), &Checkpoint::open(dir)?, &options, &opened.mesh)?
            }
            _ => Decoder::load_shard(opened.shape.clone(), &opened.frozen_base(), &options, &opened.mesh)?,
        };
        if let (Some(adapters), Some(dir)) = (&adapters, &start) {
            adapters.load_into(&model, dir)?;
        }
        let mut optimizer = cfg.optimizer.build();

        // Everything is known to be sound: only now is anything written.
        let run = opened.begin("Quantization-aware training", &model, optimizer.as_mut())?;
        Ok(Self { run, model, adapters, optimizer, schedule: cfg.lr_scheduler.build(), cfg })
    }

    fn train(&mut self) -> Result<()> {
        // From here on, Ctrl-C and SIGTERM make the next step an error, for `save_early`.
        let steps = self.run.steps()?;
        // As in the step that was taken last, or that comes first.
        self.fake_quantize(self.run.position().step.max(1))?;
        // Before the first step; or where an earlier process was stopped before it had measured what it saved.
        if self.run.measure(&self.model)? && self.run.last_saved().is_some() {
            self.save_checkpoint()?;
        }
        for step in steps {
            let step = step?;
            self.fake_quantize(step.number)?;
            // ---- one optimizer step ----------------------------------------------------------------
            let lr = self.optimizer.base_lr() * self.schedule.factor(step.number - 1, || self.run.total_steps())?;
            self.optimizer.prepare_all(self.model.trainable(), step.number)?;
            // The loss is a mean over the trained tokens of the whole step, not a mean of means.
            let scale = 1.0 / step.trained_tokens() as f64;
            let options = |i| RunOptions {
                scale,
                activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                dropout: Some(dropout_key(self.run.seed(), step.number, i)),
                noise: None,
                loss: self.cfg.loss,
                ..RunOptions::PLAIN
            };
            let mut loss = 0.0;
            let grad_norm;
            if self.cfg.optimizer_in_bwd {
                let mut sink = InBackward::new(self.optimizer.as_mut(), lr, step.number);
                for (i, batch) in step.micro_batches() {
                    loss += scale * forward_backward(&self.model, batch, options(i), &mut sink)?;
                }
                grad_norm = sink.squared_norm()?.sqrt();
                check_finite(&step, loss, grad_norm, self.run.last_saved())?;
            } else {
                let mut gradients = Gradients::default();
                for (i, batch) in step.micro_batches() {
                    loss += scale * forward_backward(&self.model, batch, options(i), &mut gradients)?;
                }
                grad_norm = gradients.norm()?;
                check_finite(&step, loss, grad_norm, self.run.last_saved())?;
                let clip = self.cfg.steps.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
                gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step.number)?;
            }
            // ----------------------------------------------------------------------------------------
            self.run.finish(&step, loss, lr, Some(grad_norm))?;
            self.run.measure(&self.model)?;
            if self.run.saves() {
                self.save_checkpoint()?;
            }
            if self.run.stops_early() {
                break;
            }
        }
        // A run that was complete is asked for its merged model.
        let wants_merged = self.adapters.is_some() && !self.cfg.save_adapter_weights_only;
        if self.run.last_saved().is_some_and(|saved| wants_merged && !saved.path.join("merged").is_dir()) {
            self.save_checkpoint()?;
        }
        Ok(())
    }

    fn run(&self) -> &Run {
        &self.run
    }

    /// Saves the weights as they are, not as they are rounded.
    fn save_checkpoint(&mut self) -> Result<Saved> {
        let weights = match &self.adapters {
            None => Weights::model(&self.model)?,
            Some(adapters) if self.cfg.save_adapter_weights_only => Weights::adapter(adapters, &self.model)?,
            Some(adapters) => Weights::adapter(adapters, &self.model)?.with_merged(&self.model)?,
        };
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

impl QuantizationAware {
    /// Has the model computed as step `number` computes it.
    fn fake_quantize(&mut self, number: u64) -> Result<()> {
        let is_rounded = number > self.cfg.fake_quant_after_n_steps.unwrap_or(0);
        self.model.fake_quantize(is_rounded.then_some(self.cfg.quantizer))
    }
}

/// Trains a model for what it loses when it is quantized.
#[recipe(preflight = QuantizationAware, configs = [
    "../configs/qat/tiny.yaml",
    "../configs/qat/smollm2_135m.yaml",
    "../configs/qat/lora_smollm2_135m.yaml",
])]
fn qat(cfg: QatConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = QuantizationAware::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

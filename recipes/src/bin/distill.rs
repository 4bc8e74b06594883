//! Knowledge distillation: a student learns a larger teacher's probabilities of every next token, with adapters or with all of
//! its weights.
//!
//!     cargo run --release -p recipes --bin distill -- --config configs/distill/tiny.yaml kd_loss=reverse_kl

use tune_core::prelude::*;

/// What `distill` is told.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    loss = "beside the divergence, training minimizes the cross-entropy of the next token",
    teacher_model = "the teacher's checkpoint says what it is"
))]
pub(crate) struct DistillConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The student, of which adapters or all weights are trained.
    #[config(default)]
    model: LoraOrFullModel,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,
    /// The teacher, and how it is read: a model, an adapter on one, or the folder of a run. It is not trained.
    teacher_checkpointer: CheckpointConfig,

    /// Datasets, and how they become batches.
    #[config(flatten)]
    data: DataKeys,

    /// What else is measured while it trains: tasks, samples, early stopping.
    #[config(flatten)]
    evaluation: EvaluationKeys,

    /// Epochs, accumulation, clipping and checkpointing.
    #[config(flatten)]
    steps: StepKeys,
    /// How far the student is from its teacher.
    #[config(default)]
    kd_loss: DivergenceLoss,
    /// What the divergence counts in what is minimized; the rest is cross-entropy.
    #[config(default = 0.5, range = 0.0..=1.0)]
    kd_ratio: f64,
    /// What moves the weights or the adapters.
    #[config(default)]
    optimizer: OptimizerConfig,
    /// Move the adapters' `B` at this multiple of the learning rate (LoRA+); 16, say. As fast as `A` where null.
    #[config(range = 0.0..)]
    loraplus_lr_ratio: Option<f64>,
    /// How the learning rate changes over the run.
    #[config(default)]
    lr_scheduler: SchedulerConfig,
}

/// A run of knowledge distillation.
pub(crate) struct Distillation {
    cfg: DistillConfig,
    run: Run,
    model: Decoder,
    /// None where all weights are trained.
    adapters: Option<peft::LoraOptions>,
    teacher: Decoder,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

impl Recipe for Distillation {
    type Config = DistillConfig;

    fn outline(cfg: &DistillConfig) -> Result<Outline> {
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
        if let (Trained::Weights, Some(_)) = (&trained, cfg.loraplus_lr_ratio) {
            return Err(Error::setup("loraplus_lr_ratio needs model.lora_rank: all weights are trained"));
        }
        Ok(Outline {
            trained,
            architecture: cfg.model.architecture,
            reference: Some(Compared::teacher(cfg.teacher_checkpointer.clone())?),
            evaluation: cfg.evaluation.clone(),
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: DistillConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let opened = Self::outline(&cfg)?.open(Console::stderr())?;
        let start = opened.adapter_to_go_on_from();
        let adapters = cfg.model.adapters(opened.seed)?.map(|lora| lora.going_on_from(start.as_deref())).transpose()?;
        let frozen =
            LoadOptions { dtype: opened.dtype, device: opened.device.clone(), train_weights: false, lora: None };
        let options = LoadOptions { train_weights: adapters.is_none(), lora: adapters.clone(), ..frozen.clone() };

        let teacher = opened.load_teacher(&frozen)?;
        let resumed = opened.resumed.as_ref().map(|saved| &saved.path);
        let model = match (&adapters, resumed) {
            (None, Some(dir)) => Decoder::load(opened.shape.clone(), &Checkpoint::open(dir)?, &options)?,
            _ => Decoder::load(opened.shape.clone(), &opened.frozen_base(), &options)?,
        };
        if let (Some(adapters), Some(dir)) = (&adapters, &start) {
            adapters.load_into(&model, dir)?;
        }
        let mut optimizer = cfg.optimizer.build_for_adapters(cfg.loraplus_lr_ratio);

        // Everything is known to be sound: only now is anything written.
        let run = opened.begin("Knowledge distillation", &model, optimizer.as_mut())?;
        Ok(Self { run, model, adapters, teacher, optimizer, schedule: cfg.lr_scheduler.build(), cfg })
    }

    fn train(&mut self) -> Result<()> {
        let mixture = self.cfg.kd_loss.mixed(self.cfg.kd_ratio);
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
            // Both losses are means over the trained tokens of the whole step.
            let scale = 1.0 / step.trained_tokens() as f64;
            let mut gradients = Gradients::default();
            let (mut cross_entropy, mut divergence) = (0.0, 0.0);
            for (i, batch) in step.micro_batches() {
                let options = RunOptions {
                    scale,
                    activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                    dropout: Some(dropout_key(self.run.seed(), step.number, i)),
                    ..RunOptions::PLAIN
                };
                let of_batch = engine::distill(&self.model, &self.teacher, batch, mixture, options, &mut gradients)?;
                cross_entropy += scale * of_batch.cross_entropy;
                divergence += scale * of_batch.divergence;
            }
            let (loss, grad_norm) = (mixture.of(cross_entropy, divergence), gradients.norm()?);
            check_finite(&step, loss, grad_norm, self.run.last_saved())?;
            let clip = self.cfg.steps.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
            gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step.number)?;
            // ----------------------------------------------------------------------------------------
            let both = vec![Extra::new("class_loss", cross_entropy), Extra::shown("kd_loss", divergence)];
            self.run.finish_with(&step, loss, lr, Some(grad_norm), both)?;
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

/// Teaches a student what a larger model says.
#[recipe(preflight = Distillation, configs = [
    "../configs/distill/tiny.yaml",
    "../configs/distill/smollm2_135m.yaml",
])]
fn distill(cfg: DistillConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = Distillation::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

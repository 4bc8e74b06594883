//! Preference optimization: a model learns from pairs of answers, of which one is preferred to the other, with adapters or
//! with all of its weights.
//!
//!     cargo run --release -p recipes --bin dpo -- --config configs/dpo/tiny.yaml loss=ipo

use tune_core::methods::{objective, pairs};
use tune_core::prelude::*;

/// What `dpo` is told.
#[derive(Debug, Clone, Config)]
pub(crate) struct DpoConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The model, of which adapters or all weights are trained.
    #[config(default)]
    model: LoraOrFullModel,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,
    /// The model that answers are compared with, and how it is read; where null, the one that training starts from.
    ref_checkpointer: Option<CheckpointConfig>,
    /// When that model is asked: at each step, or once before the first.
    #[config(default)]
    reference: ReferenceChoice,

    /// Datasets of pairs, and how they become batches.
    #[config(flatten)]
    data: PreferenceKeys,

    /// What else is measured while it trains: tasks, samples, early stopping.
    #[config(flatten)]
    evaluation: EvaluationKeys,

    /// Epochs, accumulation, clipping and checkpointing.
    #[config(flatten)]
    steps: StepKeys,
    /// What is minimized.
    #[config(default)]
    loss: PreferenceLoss,
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

/// A run of preference optimization.
pub(crate) struct PreferenceOptimization {
    cfg: DpoConfig,
    run: Run,
    model: Decoder,
    /// None where all weights are trained.
    adapters: Option<peft::LoraOptions>,
    reference: Reference,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

impl Recipe for PreferenceOptimization {
    type Config = DpoConfig;

    fn outline(cfg: &DpoConfig) -> Result<Outline> {
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
        let needs_reference = cfg.loss.needs_reference();
        if !needs_reference && cfg.ref_checkpointer.is_some() {
            return Err(Error::setup("this loss compares with no other model: remove ref_checkpointer"));
        }
        let reference = Compared { when: cfg.reference, checkpointer: cfg.ref_checkpointer.clone(), teaches: false };
        Ok(Outline {
            trained,
            architecture: cfg.model.architecture,
            reference: needs_reference.then_some(reference),
            evaluation: cfg.evaluation.clone(),
            validated: PreferenceMetrics::VALIDATED,
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: DpoConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let mut opened = Self::outline(&cfg)?.open(Console::stderr())?;
        // What the reference model said before the first step, where a run is resumed.
        let kept = opened.kept_answers()?;
        if cfg.loss.needs_reference() && cfg.reference == ReferenceChoice::Precomputed && kept.is_none() {
            opened.note("Asking the reference model about the pairs");
        }
        let start = opened.adapter_to_go_on_from();
        let adapters = cfg.model.adapters(opened.seed)?.map(|lora| opened.with_token_ids(lora));
        let adapters = adapters.map(|lora| lora.going_on_from(start.as_deref())).transpose()?;
        let frozen =
            LoadOptions { dtype: opened.dtype, device: opened.device.clone(), train_weights: false, lora: None };
        let options = LoadOptions { train_weights: adapters.is_none(), lora: adapters.clone(), ..frozen.clone() };

        let ask = |model: Decoder| match cfg.reference {
            ReferenceChoice::EachStep => Ok(Reference::Model(Box::new(model))),
            ReferenceChoice::Precomputed => Reference::ask(&model, &opened.questions()),
        };
        // A reference that is a model of its own comes first: one that is asked once is gone when the other is loaded.
        let own_reference = match &opened.reference {
            Some((checkpoint, shape)) if kept.is_none() => {
                Some(ask(Decoder::load_shard(shape.clone(), checkpoint, &frozen, &opened.mesh)?)?)
            }
            _ => kept,
        };
        let resumed = opened.resumed.as_ref().map(|saved| &saved.path);
        let model = match (&adapters, resumed) {
            (None, Some(dir)) => {
                Decoder::load_shard(opened.shape.clone(), &Checkpoint::open(dir)?, &options, &opened.mesh)?
            }
            _ => Decoder::load_shard(opened.shape.clone(), &opened.frozen_base(), &options, &opened.mesh)?,
        };
        let reference = match own_reference {
            Some(reference) => reference,
            None if cfg.loss.needs_reference() => ask(model.without_adapters()?)?,
            None => Reference::Absent,
        };
        if let (Some(adapters), Some(dir)) = (&adapters, &start) {
            adapters.load_into(&model, dir)?;
        }
        let mut optimizer = cfg.optimizer.build_for_adapters(cfg.loraplus_lr_ratio);

        // Everything is known to be sound: only now is anything written.
        let mut run = opened.begin("Preference optimization", &model, optimizer.as_mut())?;
        run.keep_answers(&reference)?;
        let schedule = cfg.lr_scheduler.build();
        Ok(Self { run, model, adapters, reference, optimizer, schedule, cfg })
    }

    fn train(&mut self) -> Result<()> {
        // From here on, Ctrl-C and SIGTERM make the next step an error, for `save_early`.
        let steps = self.run.steps()?;
        // Before the first step; or where an earlier process was stopped before it had measured what it saved.
        if self.measure()? && self.run.last_saved().is_some() {
            self.save_checkpoint()?;
        }
        for step in steps {
            let step = step?;
            // ---- one optimizer step ----------------------------------------------------------------
            let lr = self.optimizer.base_lr() * self.schedule.factor(step.number - 1, || self.run.total_steps())?;
            self.optimizer.prepare_all(self.model.trainable(), step.number)?;
            // The loss is a mean over the pairs of the whole step, each of which is a row.
            let scale = 1.0 / step.rows() as f64;
            let mut gradients = Gradients::default();
            let mut seen = PreferenceMetrics::default();
            for (i, batch) in step.micro_batches() {
                let options = RunOptions {
                    scale,
                    activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                    dropout: Some(dropout_key(self.run.seed(), step.number, i)),
                    ..RunOptions::PLAIN
                };
                let reference = self.reference.log_probs(batch)?;
                minimize(&self.model, batch, options, &mut gradients, |log_probs| {
                    let pairs = pairs(batch, log_probs, &reference);
                    let losses = self.cfg.loss.of(&pairs);
                    seen.add(&pairs, &losses);
                    Ok(objective(batch, &losses))
                })?;
            }
            let seen = seen.of_all(self.run.group())?;
            let (loss, grad_norm) = (seen.loss(), gradients.norm()?);
            check_finite(&step, loss, grad_norm, self.run.last_saved())?;
            let clip = self.cfg.steps.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
            gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step.number)?;
            // ----------------------------------------------------------------------------------------
            self.run.finish_with(&step, loss, lr, Some(grad_norm), seen.logged())?;
            self.measure()?;
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

impl PreferenceOptimization {
    /// Validates and evaluates the model where that is due; says whether it was.
    fn measure(&mut self) -> Result<bool> {
        let (validates, evaluates) = (self.run.validates(), self.run.evaluates());
        if validates {
            self.validate()?;
        }
        if evaluates {
            self.run.evaluate(&self.model)?;
        }
        Ok(validates || evaluates)
    }

    /// Loss and rewards on the validation data.
    fn validate(&mut self) -> Result<()> {
        let Some(steps) = self.run.validation_steps()? else { return Ok(()) };
        let (mut seen, mut pace) = (PreferenceMetrics::default(), Pace::default());
        for step in steps {
            let step = step?;
            for batch in &step.batches {
                let log_probs = engine::log_probs(&self.model, batch)?;
                let pairs = pairs(batch, &log_probs, &self.reference.log_probs(batch)?);
                seen.add(&pairs, &self.cfg.loss.of(&pairs));
            }
            pace += step.pace();
        }
        let seen = seen.of_all(self.run.group())?;
        self.run.finish_validation(seen.loss(), pace, seen.logged())
    }
}

/// Learns from pairs of answers, of which one is preferred to the other.
#[recipe(preflight = PreferenceOptimization, configs = [
    "../configs/dpo/tiny.yaml",
    "../configs/dpo/smollm2_135m.yaml",
    "../configs/dpo/full_smollm2_135m.yaml",
])]
fn dpo(cfg: DpoConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = PreferenceOptimization::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

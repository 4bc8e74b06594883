//! Reward models and classifiers: a head on a model learns to score sequences, of pairs of answers or of texts with labels, with
//! adapters below it or with all weights. transformers' `AutoModelForSequenceClassification` loads what is saved.
//!
//!     cargo run --release -p recipes --bin reward -- --config configs/reward/tiny.yaml loss.margin=0.5

use tune_core::engine::scores;
use tune_core::methods::{ScoreLoss, classification};
use tune_core::prelude::*;
use tune_core::recipe::EarlyStoppingConfig;

/// What `reward` is told.
#[derive(Debug, Clone, Config)]
pub(crate) struct RewardModelConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The model, of which adapters or all weights are trained; the head is trained with either.
    #[config(default)]
    model: LoraOrFullModel,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,

    /// Datasets of pairs or of texts with labels, and how they become batches.
    #[config(flatten)]
    data: ScoredKeys,
    /// End the run where a metric no longer gets better.
    #[config(may_change)]
    early_stopping: Option<EarlyStoppingConfig>,

    /// Epochs, accumulation, clipping and checkpointing.
    #[config(flatten)]
    steps: StepKeys,
    /// What is minimized of pairs. Of texts with labels it is cross-entropy.
    #[config(default)]
    loss: PairwiseLoss,
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

/// A run that trains a model to score sequences.
pub(crate) struct RewardModeling {
    cfg: RewardModelConfig,
    run: Run,
    model: Decoder,
    /// None where all weights are trained.
    adapters: Option<peft::LoraOptions>,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

impl RewardModelConfig {
    /// The adapters to add, with the head beside them.
    fn adapters(&self, seed: u64) -> Result<Option<peft::LoraOptions>> {
        Ok(self.model.adapters(seed)?.map(peft::LoraOptions::with_head))
    }

    /// What the scores of a micro-batch lose: two of each pair, or as many of each text as there are classes.
    fn loss_of(&self, batch: &Batch, scores: &[f64]) -> ScoreLoss {
        match self.data.labels.is_empty() {
            true => self.loss.of(scores),
            false => classification(batch, scores),
        }
    }
}

impl Recipe for RewardModeling {
    type Config = RewardModelConfig;

    fn outline(cfg: &RewardModelConfig) -> Result<Outline> {
        let trained = match cfg.adapters(0)? {
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
        let head = cfg.data.head()?;
        if !cfg.data.labels.is_empty() && !cfg.loss.is_plain() {
            return Err(Error::setup(
                "loss is about pairs of answers; texts with labels have cross-entropy: remove it",
            ));
        }
        let validated = if cfg.data.labels.is_empty() { ScoreMetrics::OF_PAIRS } else { ScoreMetrics::OF_CLASSES };
        Ok(Outline {
            trained,
            architecture: cfg.model.architecture,
            head: Some(head),
            evaluation: EvaluationKeys { early_stopping: cfg.early_stopping.clone(), ..EvaluationKeys::default() },
            validated,
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: RewardModelConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let opened = Self::outline(&cfg)?.open(Console::stderr())?;
        let start = opened.adapter_to_go_on_from();
        let adapters = cfg.adapters(opened.seed)?.map(|lora| lora.going_on_from(start.as_deref())).transpose()?;
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
            _ => Decoder::load_shard(
                opened.shape.clone(),
                &opened.with_head(&opened.frozen_base())?,
                &options,
                &opened.mesh,
            )?,
        };
        if let (Some(adapters), Some(dir)) = (&adapters, &start) {
            adapters.load_into(&model, dir)?;
        }
        let mut optimizer = cfg.optimizer.build_for_adapters(cfg.loraplus_lr_ratio);

        // Everything is known to be sound: only now is anything written.
        let run = opened.begin("Reward modeling", &model, optimizer.as_mut())?;
        let schedule = cfg.lr_scheduler.build();
        Ok(Self { run, model, adapters, optimizer, schedule, cfg })
    }

    fn train(&mut self) -> Result<()> {
        // From here on, Ctrl-C and SIGTERM make the next step an error, for `save_early`.
        let steps = self.run.steps()?;
        // Before the first step; or where an earlier process was stopped before it had measured what it saved.
        if self.validate()? && self.run.last_saved().is_some() {
            self.save_checkpoint()?;
        }
        for step in steps {
            let step = step?;
            // ---- one optimizer step ----------------------------------------------------------------
            let lr = self.optimizer.base_lr() * self.schedule.factor(step.number - 1, || self.run.total_steps())?;
            self.optimizer.prepare_all(self.model.trainable(), step.number)?;
            // The loss is a mean over the pairs of the whole step, each of which is a row, or over its texts, each of which has one target.
            let count = if self.cfg.data.labels.is_empty() { step.rows() } else { step.trained_tokens() };
            let mut gradients = Gradients::default();
            let mut seen = ScoreMetrics::default();
            for (i, batch) in step.micro_batches() {
                let options = RunOptions {
                    scale: 1.0 / count as f64,
                    activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                    dropout: Some(dropout_key(self.run.seed(), step.number, i)),
                    ..RunOptions::PLAIN
                };
                minimize_scores(&self.model, batch, options, &mut gradients, |scores| {
                    let loss = self.cfg.loss_of(batch, scores);
                    seen.add(&loss.seen);
                    Ok(loss.objective)
                })?;
            }
            let seen = seen.of_all(self.run.group())?;
            let (loss, grad_norm) = (seen.loss(), gradients.norm()?);
            check_finite(&step, loss, grad_norm, self.run.last_saved())?;
            let clip = self.cfg.steps.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
            gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step.number)?;
            // ----------------------------------------------------------------------------------------
            self.run.finish_with(&step, loss, lr, Some(grad_norm), seen.logged())?;
            self.validate()?;
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

impl RewardModeling {
    /// Loss, rewards and accuracy on the validation data, where these are due; says whether they were.
    fn validate(&mut self) -> Result<bool> {
        if !self.run.validates() {
            return Ok(false);
        }
        let Some(steps) = self.run.validation_steps()? else { return Ok(true) };
        let (mut seen, mut pace) = (ScoreMetrics::default(), Pace::default());
        for step in steps {
            let step = step?;
            for batch in &step.batches {
                seen.add(&self.cfg.loss_of(batch, &scores(&self.model, batch)?).seen);
            }
            pace += step.pace();
        }
        let seen = seen.of_all(self.run.group())?;
        self.run.finish_validation(seen.loss(), pace, seen.logged())?;
        Ok(true)
    }
}

/// Trains a model to score sequences: a reward model on pairs of answers, or a classifier on texts with labels.
#[recipe(preflight = RewardModeling, configs = [
    "../configs/reward/tiny.yaml",
    "../configs/reward/tiny_classifier.yaml",
    "../configs/reward/smollm2_135m.yaml",
    "../configs/reward/classifier_smollm2_135m.yaml",
])]
fn reward(cfg: RewardModelConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = RewardModeling::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

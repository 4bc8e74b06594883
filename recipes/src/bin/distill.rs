//! Knowledge distillation: a student learns a larger teacher's probabilities of every next token, with adapters or with all of
//! its weights.
//!
//!     cargo run --release -p recipes --bin distill -- --config configs/distill/tiny.yaml kd_loss=reverse_kl

use std::borrow::Cow;

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
    /// The teacher, and how it is read: a model, an adapter on one, or the folder of a run. It is not trained. May be left out where what it says is stored.
    teacher_checkpointer: Option<CheckpointConfig>,
    /// Keep what the teacher says of the training data, its likeliest tokens, in files: it is asked once, before the first step, and no later run on the same data loads it. Where null, it is asked at each step, of all tokens.
    teacher_logits: Option<TeacherLogitsConfig>,

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
    /// What the logits of both are divided by in the divergence, and not in cross-entropy: above 1, unlikely tokens count more. As in TRL, gradients are not scaled up again.
    #[config(default = 1.0, range = 0.01..)]
    kd_temperature: f64,
    /// What the divergence counts in what is minimized; the rest is cross-entropy.
    #[config(default = 0.5, range = 0.0..=1.0)]
    kd_ratio: f64,
    /// Let the student draw answers itself, and learn what the teacher would have said at each of their tokens: of these the divergence alone is minimized, whatever kd_ratio is. Where null, all answers are those of the data.
    on_policy: Option<OnPolicyConfig>,
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
    teacher: Teacher,
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
        let (reference, teacher_logits) = teacher(cfg)?;
        let mut outline = Outline {
            trained,
            architecture: cfg.model.architecture,
            reference,
            teacher_logits,
            drawing: cfg.on_policy.as_ref().map(|own| Drawing { samples: 1, max_new_tokens: own.max_new_tokens }),
            evaluation: cfg.evaluation.clone(),
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        };
        if outline.teacher_logits.is_some() {
            // What it said says which teacher it was: a run goes on when that one is gone.
            outline.settings.retain(|key, _| !key.starts_with("teacher_checkpointer"));
        }
        Ok(outline)
    }

    fn setup(cfg: DistillConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let mut opened = Self::outline(&cfg)?.open(Console::stderr())?;
        let start = opened.adapter_to_go_on_from();
        let adapters = cfg.model.adapters(opened.seed)?.map(|lora| opened.with_token_ids(lora));
        let adapters = adapters.map(|lora| lora.going_on_from(start.as_deref())).transpose()?;
        let frozen =
            LoadOptions { dtype: opened.dtype, device: opened.device.clone(), train_weights: false, lora: None };
        let options = LoadOptions { train_weights: adapters.is_none(), lora: adapters.clone(), ..frozen.clone() };

        // One that is asked beforehand is gone when the student is loaded.
        let teacher = match cfg.teacher_logits {
            None => Teacher::Model(Box::new(opened.load_teacher(&frozen)?)),
            Some(_) => Teacher::Said(opened.teacher_files(&frozen)?),
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
        let mut optimizer = cfg.optimizer.build_for_adapters(cfg.loraplus_lr_ratio);

        // Everything is known to be sound: only now is anything written but what a teacher said.
        let run = opened.begin("Knowledge distillation", &model, optimizer.as_mut())?;
        Ok(Self { run, model, adapters, teacher, optimizer, schedule: cfg.lr_scheduler.build(), cfg })
    }

    fn train(&mut self) -> Result<()> {
        let [mixture, divergence_alone] =
            [self.cfg.kd_ratio, 1.0].map(|ratio| self.cfg.kd_loss.mixed(ratio).at(self.cfg.kd_temperature));
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
            let batches = self.answered(&step)?;
            // Both losses are means over the trained tokens of the whole step, those of other processes among them.
            let (trained, own_tokens) = match &self.cfg.on_policy {
                None => (step.trained_tokens(), 0),
                Some(_) => self.trained_tokens(&batches)?,
            };
            let scale = 1.0 / trained as f64;
            let mut gradients = Gradients::default();
            let (mut cross_entropy, mut divergence, mut of_own) = (0.0, 0.0, 0.0);
            for (i, batch) in &batches {
                let options = RunOptions {
                    scale,
                    activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                    dropout: Some(dropout_key(self.run.seed(), step.number, *i)),
                    ..RunOptions::PLAIN
                };
                let is_own = matches!(batch, Cow::Owned(_));
                let minimized = if is_own { divergence_alone } else { mixture };
                let taught = self.teacher.teach(&self.model, batch, minimized, options, &mut gradients)?;
                // While this process has a batch of the data's, another may have one of the student's.
                let [of_answers, of_teacher] = taught.here;
                if is_own {
                    of_own += scale * of_teacher;
                } else {
                    cross_entropy += scale * of_answers;
                    divergence += scale * of_teacher;
                }
            }
            let of_all = vec![cross_entropy, divergence, of_own];
            let of_all = self.run.group().all_reduce("the losses of a step", of_all).wait()?;
            let (cross_entropy, divergence, of_own) = (of_all[0], of_all[1], of_all[2]);
            let (loss, grad_norm) = (mixture.of(cross_entropy, divergence) + of_own, gradients.norm()?);
            check_finite(&step, loss, grad_norm, self.run.last_saved())?;
            let clip = self.cfg.steps.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
            gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, step.number)?;
            // ----------------------------------------------------------------------------------------
            let mut losses = Vec::new();
            // What the student drew itself says nothing of how well it knows the data.
            if own_tokens < trained {
                let of_data = (trained - own_tokens) as f64 / trained as f64;
                losses.push(Extra::new("class_loss", cross_entropy / of_data));
            }
            losses.push(Extra::shown("kd_loss", divergence + of_own));
            if self.cfg.on_policy.is_some() {
                losses.push(Extra::new("own_tokens", own_tokens as f64 / trained as f64));
            }
            let pace = match &self.cfg.on_policy {
                None => step.pace(),
                Some(_) => step.pace_of(batches.iter().map(|(_, batch)| &**batch))?,
            };
            self.run.finish_paced(&step, loss, lr, Some(grad_norm), losses, pace)?;
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

impl Distillation {
    /// The micro-batches of a step with their numbers: those of the data, and in the place of some of them the same prompts with answers
    /// that the student draws as it is. In a run that is resumed, or on other processes, they are the same again.
    fn answered<'s>(&self, step: &'s Step) -> Result<Vec<(usize, Cow<'s, Batch>)>> {
        let (seed, number) = (self.run.seed(), step.number);
        let of_batch = |(i, batch): (usize, &'s Batch)| {
            let Some(own) = &self.cfg.on_policy else { return Ok((i, Cow::Borrowed(batch))) };
            let draws = |i| own.draws(sampling_key(seed, number, i, (usize::MAX, 0)));
            if draws(i) {
                let key = |prompt| sampling_key(seed, number, i, (prompt, 0));
                return Ok((i, Cow::Owned(own.draw(&self.model, batch, self.run.tokenizer(), key)?)));
            }
            if step.beside(i).any(draws) {
                own.draw_along(&self.model)?;
            }
            Ok((i, Cow::Borrowed(batch)))
        };
        step.micro_batches().map(of_batch).collect()
    }

    /// The trained tokens of a step's micro-batches, those of all processes, and how many of them the student drew.
    fn trained_tokens(&self, batches: &[(usize, Cow<'_, Batch>)]) -> Result<(usize, usize)> {
        let (mut all, mut own) = (0, 0);
        for (_, batch) in batches {
            all += batch.trained_tokens() as u64;
            own += if matches!(batch, Cow::Owned(_)) { batch.trained_tokens() as u64 } else { 0 };
        }
        let of_all = self.run.group().all_reduce("the tokens that a student drew", vec![all, own]).wait()?;
        Ok((of_all[0] as usize, of_all[1] as usize))
    }
}

/// The teacher that is asked, at each step or beforehand, and where what it says is kept, if it is. Where that is there already, nobody
/// is asked.
fn teacher(cfg: &DistillConfig) -> Result<(Option<Compared>, Option<StoredTeacher>)> {
    let asked = cfg.teacher_checkpointer.clone().map(Compared::teacher).transpose()?;
    let Some(config) = cfg.teacher_logits.clone() else {
        return match asked {
            Some(asked) => Ok((Some(asked), None)),
            None => Err(Error::setup("there is no teacher: set teacher_checkpointer.checkpoint_dir")),
        };
    };
    if cfg.on_policy.is_some() {
        return Err(Error::setup(
            "on_policy asks the teacher about answers that are not there yet, and teacher_logits keeps what it says of the data: \
             remove one of the two",
        ));
    }
    cfg.kd_loss.mixed(cfg.kd_ratio).at(cfg.kd_temperature).check_stored()?;
    let teacher = asked.as_ref().and_then(|asked| asked.checkpointer.clone());
    let stored = StoredTeacher { config, teacher };
    match asked {
        _ if stored.is_there() => Ok((None, Some(stored))),
        Some(asked) => Ok((Some(Compared { when: ReferenceChoice::Precomputed, ..asked }), Some(stored))),
        None => Err(Error::file(
            &stored.config.path,
            "has no teacher.json: set teacher_checkpointer.checkpoint_dir to the teacher that is to be asked, or \
             teacher_logits.path to where what it says is",
        )),
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

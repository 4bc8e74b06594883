//! Reinforcement learning: a model draws several answers to each prompt, and learns from what these are worth, with adapters or
//! with all of its weights.
//!
//!     cargo run --release -p recipes --bin grpo -- --config configs/grpo/tiny.yaml loss=dr_grpo

use tune_core::device::Compute;
use tune_core::eval::EvaluationConfig;
use tune_core::methods::prompts;
use tune_core::prelude::*;
use tune_core::recipe::EarlyStoppingConfig;

/// What `grpo` is told.
#[derive(Debug, Clone, Config)]
pub(crate) struct GrpoConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The model, of which adapters or all weights are trained.
    #[config(default)]
    model: LoraOrFullModel,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,

    /// Datasets of prompts with the answers that are expected, and how they become batches; `batch_size` is the number of prompts.
    #[config(flatten)]
    data: DataKeys,
    /// Answers that are drawn to each prompt.
    #[config(default = 8, range = 2..=65536)]
    samples: usize,
    /// What logits are divided by, both where answers are drawn and where they are learnt from: 1 is by the model's own probabilities, less makes likely tokens likelier.
    #[config(default = 1.0, range = 0.01..)]
    temperature: f64,
    /// The most tokens of an answer: a longer one is cut off.
    #[config(default = 256, range = 1..)]
    max_new_tokens: usize,
    /// What an answer is worth.
    #[config(default)]
    reward: RewardConfig,

    /// Tasks that the model is measured on while it trains: files of items, as `tune eval` takes them.
    #[config(default, one_or_many, may_change)]
    evaluation: Vec<EvaluationConfig>,
    /// Also evaluate every N steps, not only before the first step and at the end of each epoch.
    #[config(range = 1.., may_change)]
    run_eval_every_n_steps: Option<u64>,
    /// End the run where a metric no longer gets better; `val_loss` is minus the mean reward of the validation data.
    #[config(may_change)]
    early_stopping: Option<EarlyStoppingConfig>,

    /// Epochs, accumulation, clipping and checkpointing.
    #[config(flatten)]
    steps: StepKeys,
    /// Updates from the answers of a step. From the second on the model is another one than drew them.
    #[config(default = 1, range = 1..=65536)]
    updates: u64,
    /// What is minimized.
    #[config(default)]
    loss: PolicyLoss,
    /// What the divergence from the model that training starts from counts. At 0 there is no such reference.
    #[config(default = 0.0, range = 0.0..)]
    kl_beta: f64,
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

/// A run of reinforcement learning.
pub(crate) struct PolicyOptimization {
    cfg: GrpoConfig,
    run: Run,
    model: Decoder,
    /// None where all weights are trained.
    adapters: Option<peft::LoraOptions>,
    /// The model that training starts from, where the divergence from it counts.
    reference: Option<Decoder>,
    reward: Reward,
    stop: StopOptions,
    /// Whether a card computes, whose kernels for one new token round otherwise than those of training.
    is_on_card: bool,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

impl Recipe for PolicyOptimization {
    type Config = GrpoConfig;

    fn outline(cfg: &GrpoConfig) -> Result<Outline> {
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
        let reference = Compared { when: ReferenceChoice::EachStep, checkpointer: None, teaches: false };
        let evaluation = EvaluationKeys {
            evaluation: cfg.evaluation.clone(),
            samples: None,
            run_eval_every_n_steps: cfg.run_eval_every_n_steps,
            early_stopping: cfg.early_stopping.clone(),
        };
        Ok(Outline {
            trained,
            architecture: cfg.model.architecture,
            reference: (cfg.kl_beta > 0.0).then_some(reference),
            drawing: Some(Drawing { samples: cfg.samples, max_new_tokens: cfg.max_new_tokens }),
            evaluation,
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: GrpoConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let opened = Self::outline(&cfg)?.open(Console::stderr())?;
        let start = opened.adapter_to_go_on_from();
        let adapters = cfg.model.adapters(opened.seed)?.map(|lora| opened.with_token_ids(lora));
        let adapters = adapters.map(|lora| lora.going_on_from(start.as_deref())).transpose()?;
        let frozen =
            LoadOptions { dtype: opened.dtype, device: opened.device.clone(), train_weights: false, lora: None };
        let options = LoadOptions { train_weights: adapters.is_none(), lora: adapters.clone(), ..frozen.clone() };

        let resumed = opened.resumed.as_ref().map(|saved| &saved.path);
        let model = match (&adapters, resumed) {
            (None, Some(dir)) => {
                Decoder::load_shard(opened.shape.clone(), &Checkpoint::open(dir)?, &options, &opened.mesh)?
            }
            _ => Decoder::load_shard(opened.shape.clone(), &opened.frozen_base(), &options, &opened.mesh)?,
        };
        let reference = match (&opened.reference, &adapters) {
            (Some((checkpoint, shape)), _) => {
                Some(Decoder::load_shard(shape.clone(), checkpoint, &frozen, &opened.mesh)?)
            }
            (None, Some(_)) if cfg.kl_beta > 0.0 => Some(model.without_adapters()?),
            (None, _) => None,
        };
        if let (Some(adapters), Some(dir)) = (&adapters, &start) {
            adapters.load_into(&model, dir)?;
        }
        let mut optimizer = cfg.optimizer.build_for_adapters(cfg.loraplus_lr_ratio);
        let reward = Reward::new(&cfg.reward)?;
        let is_on_card = !matches!(opened.device, Compute::Processor);

        // Everything is known to be sound: only now is anything written.
        let run = opened.begin("Reinforcement learning", &model, optimizer.as_mut())?;
        let stop_tokens = run.tokenizer().stop_tokens().iter().copied().collect();
        let stop = StopOptions { max_new_tokens: cfg.max_new_tokens, stop_tokens };
        let schedule = cfg.lr_scheduler.build();
        Ok(Self { run, model, adapters, reference, reward, stop, is_on_card, optimizer, schedule, cfg })
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
            // ---- answers to the step's prompts, drawn by the model as it is -------------------------
            let (mut rollouts, mut references) = (Vec::new(), Vec::new());
            let (mut seen, mut totals) = (PolicyMetrics::default(), Totals::default());
            let (seed, temperature) = (self.run.seed(), self.cfg.temperature);
            let drawing = SamplerOptions { temperature, ..SamplerOptions::AS_THEY_ARE };
            for (i, batch) in step.micro_batches() {
                let rollout = self.answer(batch, self.cfg.samples, |prompt, sample| {
                    // By the probabilities that are learnt from, and the same again in a run that is resumed.
                    let key = sampling_key(seed, step.number, i, (prompt, sample));
                    Sampler::new(drawing, key)
                })?;
                references.push(match &self.reference {
                    Some(reference) => engine::log_probs_at(reference, &rollout.batch, temperature)?,
                    None => Vec::new(),
                });
                seen.add(&rollout);
                totals = totals.and(rollout.totals(&self.cfg.loss, self.cfg.max_new_tokens));
                rollouts.push(rollout);
            }
            // An answer counts what it counts among those of all processes.
            let totals = totals.of_all(self.run.group())?;
            // ---- optimizer steps -------------------------------------------------------------------
            let lr = self.optimizer.base_lr() * self.schedule.factor(step.number - 1, || self.run.total_steps())?;
            let (mut loss, mut grad_norm) = (0.0, 0.0);
            for update in 1..=self.cfg.updates {
                let number = (step.number - 1) * self.cfg.updates + update;
                self.optimizer.prepare_all(self.model.trainable(), number)?;
                let mut gradients = Gradients::default();
                loss = 0.0;
                for (rollout, reference) in rollouts.iter_mut().zip(&references) {
                    let options = RunOptions {
                        // What an answer counts in the step is part of its loss.
                        scale: 1.0,
                        activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                        temperature,
                        ..RunOptions::PLAIN
                    };
                    let batch = rollout.batch.clone();
                    loss += minimize(&self.model, &batch, options, &mut gradients, |log_probs| {
                        if update == 1 {
                            rollout.check_on_policy(log_probs, self.is_on_card)?;
                        }
                        let weights = (totals, self.cfg.kl_beta);
                        Ok(rollout.objective(&self.cfg.loss, log_probs, reference, weights, &mut seen))
                    })?;
                }
                grad_norm = gradients.norm()?;
                check_finite(&step, loss, grad_norm, self.run.last_saved())?;
                let clip = self.cfg.steps.clip_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
                gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip, number)?;
            }
            // ----------------------------------------------------------------------------------------
            let pace = step.pace_of(rollouts.iter().map(|rollout| &rollout.batch))?;
            let seen = seen.of_all(self.run.group())?;
            self.run.finish_paced(&step, loss, lr, Some(grad_norm), seen.logged(), pace)?;
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

impl PolicyOptimization {
    /// Answers to the prompts of a batch, with what they are worth. A reward of your own goes in here, in place of the config's.
    fn answer(&mut self, batch: &Batch, samples: usize, sampler: impl Fn(usize, usize) -> Sampler) -> Result<Rollout> {
        let prompts = prompts(batch, self.run.tokenizer())?;
        let ids: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.ids[..]).collect();
        let groups = sample_groups(&self.model, &ids, samples, &self.stop, sampler)?;
        let rollout = Rollout::new(&prompts, groups, self.run.tokenizer(), &self.cfg.loss, |prompt, answer| {
            self.reward.of(prompt, answer)
        });
        // A reward that fails in one process ends the run in all.
        self.run.group().agreed("what answers are worth", rollout)
    }

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

    /// The mean reward of the likeliest answers to the validation data's prompts. As less is better of what is validated, minus that
    /// is the loss.
    fn validate(&mut self) -> Result<()> {
        let Some(steps) = self.run.validation_steps()? else { return Ok(()) };
        let (mut seen, mut pace) = (PolicyMetrics::default(), Pace::default());
        for step in steps {
            let step = step?;
            for batch in &step.batches {
                seen.add(&self.answer(batch, 1, |_, _| Sampler::greedy())?);
            }
            pace += step.pace();
        }
        let seen = seen.of_all(self.run.group())?;
        self.run.finish_validation(-seen.reward(), pace, seen.logged())
    }
}

/// Draws answers and learns from what they are worth.
#[recipe(preflight = PolicyOptimization, configs = ["../configs/grpo/tiny.yaml", "../configs/grpo/smollm2_135m.yaml"])]
fn grpo(cfg: GrpoConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = PolicyOptimization::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

//! Proximal policy optimization: a model draws answers to prompts and learns from what they are worth, with adapters or with all of
//! its weights, while a value model beside it learns to say what they will be worth.
//!
//!     cargo run --release -p recipes --bin ppo -- --config configs/ppo/tiny.yaml ppo_epochs=4

use tune_core::device::Compute;
use tune_core::distributed::current;
use tune_core::eval::EvaluationConfig;
use tune_core::methods::{prompts, texts};
use tune_core::prelude::*;
use tune_core::recipe::EarlyStoppingConfig;

/// What `ppo` is told.
#[derive(Debug, Clone, Config)]
#[config(ignored(
    policy_model = "the folder of a model says what it is",
    reward_and_value_model = "the folders of these models say what they are",
    forward_batch_size = "answers to the prompts of a micro-batch are drawn together",
    num_steps = "epochs and max_steps_per_epoch say how long is trained",
    optimizer_in_bwd = "the two models are trained one after the other, and the gradients of one are there at a time"
))]
pub(crate) struct PpoConfig {
    /// Folders, seed, device, precision and logs.
    #[config(flatten)]
    run: RunKeys,

    /// The model, of which adapters or all weights are trained.
    #[config(default)]
    model: LoraOrFullModel,
    /// Save the adapter alone; if false, a merged model is written beside it.
    #[config(default = true, may_change)]
    save_adapter_weights_only: bool,
    /// Where the value model begins: a reward model, or a base, on which a fresh head is put; where null, the model's own base.
    value_checkpointer: Option<CheckpointConfig>,
    /// The reference; where null, the model that training starts from, without adapters.
    #[config(alias = "ref_policy_checkpointer")]
    ref_checkpointer: Option<CheckpointConfig>,

    /// Datasets of prompts, with the answers that are expected or as plain texts without any; `batch_size` is the number of prompts.
    #[config(flatten)]
    data: DataKeys,
    /// Answers that are drawn to each prompt.
    #[config(default = 1, range = 1..=65536)]
    samples: usize,
    /// What logits are divided by, both where answers are drawn and where they are learnt from: 1 is by the model's own probabilities, less makes likely tokens likelier.
    #[config(default = 1.0, range = 0.01..)]
    temperature: f64,
    /// The most tokens of an answer: a longer one is cut off.
    #[config(default = 256, range = 1.., alias = "max_generated_tokens")]
    max_new_tokens: usize,
    /// Tokens that end an answer besides the model's own, by their numbers.
    #[config(default)]
    stop_token_ids: Vec<u32>,
    /// What an answer is worth.
    #[config(default)]
    reward: RewardConfig,
    /// A reward model, as `reward` makes them: its scores are what answers are worth, in the place of `reward`.
    reward_checkpointer: Option<CheckpointConfig>,
    /// What answers are worth that were cut off or are too short.
    #[config(flatten)]
    penalties: Penalties,

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
    /// How often the answers of a step are learnt from.
    #[config(flatten)]
    updates: UpdateKeys,
    /// How advantages are made of rewards and values.
    #[config(flatten)]
    advantages: AdvantageKeys,
    /// What is minimized.
    #[config(default)]
    loss: PpoLoss,
    /// What moves the weights or the adapters, and the value model.
    #[config(default)]
    optimizer: OptimizerConfig,
    /// The learning rate of the value model; that of the optimizer where null.
    #[config(range = 0.0..)]
    value_lr: Option<f64>,
    /// Move the adapters' `B` at this multiple of the learning rate (LoRA+); 16, say. As fast as `A` where null.
    #[config(range = 0.0..)]
    loraplus_lr_ratio: Option<f64>,
    /// How the learning rate changes over the run.
    #[config(default)]
    lr_scheduler: SchedulerConfig,
}

/// A run of proximal policy optimization.
pub(crate) struct ProximalPolicyOptimization {
    cfg: PpoConfig,
    run: Run,
    model: Decoder,
    /// None where all weights are trained.
    adapters: Option<peft::LoraOptions>,
    /// None where the divergence from it costs nothing.
    reference: Option<Decoder>,
    value: ValueModel,
    reward: Reward,
    /// In the place of the reward, where there is one, with the token that fills its rows up.
    judge: Option<(Decoder, Option<u32>)>,
    stop: StopOptions,
    /// Whether a card computes, whose kernels for one new token round otherwise than those of training.
    is_on_card: bool,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
}

impl PpoConfig {
    /// Micro-batches of an update in this process, and the most updates of a step.
    fn updates(&self) -> Result<(usize, u64)> {
        let accumulated = self.steps.gradient_accumulation_steps;
        self.updates.of_step(self.data.rows.batch_size, accumulated, current().world_size())
    }
}

impl Recipe for ProximalPolicyOptimization {
    type Config = PpoConfig;

    fn outline(cfg: &PpoConfig) -> Result<Outline> {
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
        let compares = cfg.reward_checkpointer.is_none() && !matches!(cfg.reward, RewardConfig::Program(_));
        if cfg.data.are_texts()? && compares {
            return Err(Error::setup(
                "reward compares answers with those that are expected, and a dataset of texts has none: set \
                 reward_checkpointer.checkpoint_dir to a reward model, or reward=program",
            ));
        }
        if cfg.reward_checkpointer.is_some() && !matches!(cfg.reward, RewardConfig::Exact(_)) {
            return Err(Error::setup("reward and reward_checkpointer both say what answers are worth: leave one out"));
        }
        cfg.updates()?;
        let checkpointer = cfg.ref_checkpointer.clone();
        let reference = Compared { when: ReferenceChoice::EachStep, checkpointer, teaches: false };
        let evaluation = EvaluationKeys {
            evaluation: cfg.evaluation.clone(),
            samples: None,
            run_eval_every_n_steps: cfg.run_eval_every_n_steps,
            early_stopping: cfg.early_stopping.clone(),
        };
        Ok(Outline {
            trained,
            architecture: cfg.model.architecture,
            reference: (cfg.advantages.kl_coeff > 0.0).then_some(reference),
            value: Some(cfg.value_checkpointer.clone()),
            judge: cfg.reward_checkpointer.clone(),
            drawing: Some(Drawing { samples: cfg.samples, max_new_tokens: cfg.max_new_tokens }),
            rows_of_update: cfg.updates.ppo_batch_size,
            evaluation,
            ..Outline::new(cfg, &cfg.run, &cfg.data, &cfg.steps, &cfg.optimizer, &cfg.lr_scheduler)
        })
    }

    fn setup(cfg: PpoConfig) -> Result<Self> {
        hub::watch(Downloads::stderr());
        let mut opened = Self::outline(&cfg)?.open(Console::stderr())?;
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
            (None, Some(_)) if cfg.advantages.kl_coeff > 0.0 => Some(model.without_adapters()?),
            (None, _) => None,
        };
        if let (Some(adapters), Some(dir)) = (&adapters, &start) {
            adapters.load_into(&model, dir)?;
        }
        let value = opened.load_value(cfg.optimizer.build())?;
        let judge = opened.load_judge()?;
        let is_on_card = !matches!(opened.device, Compute::Processor);
        let reward = Reward::new(&cfg.reward)?;
        let mut optimizer = cfg.optimizer.build_for_adapters(cfg.loraplus_lr_ratio);

        // Everything is known to be sound: only now is anything written.
        let run = opened.begin("Proximal policy optimization", &model, optimizer.as_mut())?;
        let stop_tokens = run.tokenizer().stop_tokens().iter().chain(&cfg.stop_token_ids).copied().collect();
        let stop = StopOptions { max_new_tokens: cfg.max_new_tokens, stop_tokens };
        let schedule = cfg.lr_scheduler.build();
        Ok(Self { run, model, adapters, reference, value, reward, judge, stop, is_on_card, optimizer, schedule, cfg })
    }

    fn train(&mut self) -> Result<()> {
        let (micro_batches, most_updates) = self.cfg.updates()?;
        // From here on, Ctrl-C and SIGTERM make the next step an error, for `save_early`.
        let steps = self.run.steps()?;
        // Before the first step; or where an earlier process was stopped before it had measured what it saved.
        if self.measure()? && self.run.last_saved().is_some() {
            self.save_checkpoint()?;
        }
        for step in steps {
            let step = step?;
            // ---- answers to the step's prompts, drawn by the model as it is -------------------------
            let (mut drawn, mut seen) = (Vec::new(), PpoMetrics::default());
            let (seed, temperature) = (self.run.seed(), self.cfg.temperature);
            let drawing = SamplerOptions { temperature, ..SamplerOptions::AS_THEY_ARE };
            for (i, batch) in step.micro_batches() {
                let mut rollout = self.answer(batch, self.cfg.samples, |prompt, sample| {
                    // By the probabilities that are learnt from, and the same again in a run that is resumed.
                    let key = sampling_key(seed, step.number, i, (prompt, sample));
                    Sampler::new(drawing, key)
                })?;
                if self.is_on_card {
                    // What a token costs and all ratios are by what training computes.
                    let log_probs = engine::log_probs_at(&self.model, &rollout.batch, temperature)?;
                    rollout.check_on_policy(&log_probs, true)?;
                }
                let reference = match &self.reference {
                    Some(reference) => engine::log_probs_at(reference, &rollout.batch, temperature)?,
                    None => Vec::new(),
                };
                let values = |states: &Batch| engine::scores(&self.value.model, states);
                let experience = Experience::new(rollout, &reference, &self.cfg.advantages, values)?;
                seen.add(&experience);
                drawn.push(experience);
            }
            // Advantages are spread around the mean of all processes' tokens.
            self.cfg.advantages.estimate(&mut drawn, self.run.group())?;
            // ---- optimizer steps -------------------------------------------------------------------
            let factor = self.schedule.factor(step.number - 1, || self.run.total_steps())?;
            let lr = self.optimizer.base_lr() * factor;
            let value_lr = self.cfg.value_lr.unwrap_or(self.optimizer.base_lr()) * factor;
            let options = RunOptions {
                // What a token counts in the update is part of its loss.
                scale: 1.0,
                activation_checkpointing: self.cfg.steps.enable_activation_checkpointing,
                temperature,
                ..RunOptions::PLAIN
            };
            let clip = |norm: f64| self.cfg.steps.clip_grad_norm.map_or(1.0, |max| clip_factor(norm, max));
            let (mut update, mut grad_norm) = (0, 0.0);
            for _ in 0..self.cfg.updates.ppo_epochs {
                for part in drawn.chunks_mut(micro_batches) {
                    update += 1;
                    let number = (step.number - 1) * most_updates + update;
                    // A token counts what it counts among those of all processes.
                    let count = Experience::tokens_of_all(part, self.run.group())?;
                    // The policy.
                    self.optimizer.prepare_all(self.model.trainable(), number)?;
                    let (mut gradients, mut loss) = (Gradients::default(), 0.0);
                    for experience in part.iter_mut() {
                        let batch = experience.rollout.batch.clone();
                        loss += minimize(&self.model, &batch, options, &mut gradients, |log_probs| {
                            if update == 1 {
                                experience.rollout.check_on_policy(log_probs, self.is_on_card)?;
                            }
                            Ok(experience.of_policy(&self.cfg.loss, log_probs, count, &mut seen))
                        })?;
                    }
                    grad_norm = gradients.norm()?;
                    check_finite(&step, loss, grad_norm, self.run.last_saved())?;
                    gradients.apply(&self.model, self.optimizer.as_mut(), lr, clip(grad_norm), number)?;
                    // The value model.
                    let ValueModel { model, optimizer, .. } = &mut self.value;
                    optimizer.prepare_all(model.trainable(), number)?;
                    let (mut gradients, mut loss) = (Gradients::default(), 0.0);
                    for experience in part.iter() {
                        loss += minimize_scores(model, &experience.states, options, &mut gradients, |values| {
                            Ok(experience.of_values(&self.cfg.loss, values, count, &mut seen))
                        })?;
                    }
                    let norm = gradients.norm()?;
                    check_finite(&step, loss, norm, self.run.last_saved()).map_err(|why| {
                        Error::Training(format!("the value model (its learning rate is value_lr): {why}"))
                    })?;
                    gradients.apply(model, optimizer.as_mut(), value_lr, clip(norm), number)?;
                }
            }
            // ----------------------------------------------------------------------------------------
            let pace = step.pace_of(drawn.iter().map(|one| &one.rollout.batch))?;
            let seen = seen.of_all(self.run.group())?;
            let loss = seen.loss(&self.cfg.loss);
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
        self.run.save(&weights.with_value(&self.value)?, self.optimizer.as_ref())
    }

    fn cleanup(mut self) -> Result<()> {
        self.run.close()?;
        if let Some(results) = self.run.results(None) {
            say!("{results}");
        }
        Ok(())
    }
}

impl ProximalPolicyOptimization {
    /// Answers to the prompts of a batch, with what they are worth. A reward of your own goes in here, in place of the config's.
    fn answer(&mut self, batch: &Batch, samples: usize, sampler: impl Fn(usize, usize) -> Sampler) -> Result<Rollout> {
        let tokenizer = self.run.tokenizer();
        let prompts = if self.cfg.data.are_texts()? { texts(batch, tokenizer) } else { prompts(batch, tokenizer) }?;
        let ids: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.ids[..]).collect();
        let groups = sample_groups(&self.model, &ids, samples, &self.stop, sampler)?;
        let rollout = Rollout::drawn(&prompts, groups, tokenizer, |prompt, answer| match &self.judge {
            Some(_) => Ok(0.0),
            None => self.reward.of(prompt, answer),
        });
        // A reward that fails in one process ends the run in all.
        let mut rollout = self.run.group().agreed("what answers are worth", rollout)?;
        if let Some((judge, pad)) = &self.judge {
            rollout.score_with(judge, *pad)?;
        }
        self.cfg.penalties.apply(&mut rollout.answers);
        Ok(rollout)
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
        let (mut seen, mut pace) = (PpoMetrics::default(), Pace::default());
        for step in steps {
            let step = step?;
            for batch in &step.batches {
                seen.add_answers(&self.answer(batch, 1, |_, _| Sampler::greedy())?);
            }
            pace += step.pace();
        }
        let seen = seen.of_all(self.run.group())?;
        self.run.finish_validation(-seen.reward(), pace, seen.logged())
    }
}

/// Draws answers and learns from what they are worth, with a value model beside the model.
#[recipe(preflight = ProximalPolicyOptimization, configs = ["../configs/ppo/tiny.yaml", "../configs/ppo/smollm2_135m.yaml"])]
fn ppo(cfg: PpoConfig) -> Result<()> {
    let _group = init_process_group()?;
    let mut recipe = ProximalPolicyOptimization::setup(cfg)?;
    recipe.train().or_else(|why| recipe.save_early(why))?;
    recipe.cleanup()
}

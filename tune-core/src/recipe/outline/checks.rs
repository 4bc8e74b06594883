//! What is wrong with a run, or probably not meant, before it begins.

use std::path::PathBuf;

use super::{Outline, Trained};
use crate::checkpoint::state::TrainingState;
use crate::checkpoint::{Checkpoint, CheckpointConfig, run};
use crate::data::Loader;
use crate::device::Compute;
use crate::distributed::{Layout, Mesh};
use crate::memory_plan::{Asked, Drawing, Processes};
use crate::methods::{UpdateKeys, prompts};
use crate::models::{Head, InBlocks, ModelSpec, TrainedTokens, tied_start};
use crate::preflight::storage;
use crate::recipe::value::other_token;
use crate::tokenizer::{Tokenizer, listed};
use crate::words::count;
use crate::{Error, Result};

impl Outline {
    /// Refuses a reference model whose tokens are others than the trained model's.
    ///
    /// # Errors
    /// The first token that is another one; a tokenizer that cannot be read.
    pub fn check_reference(&self, reference: &Checkpoint, tokenizer: &Tokenizer) -> Result<()> {
        let role = self.role_of_compared();
        let (theirs, _) = self.data.tokenizer.open(reference)?;
        let ids = 0..u32::try_from(tokenizer.vocab_size().max(theirs.vocab_size())).unwrap_or(u32::MAX);
        match ids.into_iter().find(|&id| tokenizer.token(id) != theirs.token(id)) {
            None => Ok(()),
            Some(id) => Err(other_token(role, reference, id, (tokenizer, &theirs))),
        }
    }

    /// Checks the adapters against the model.
    ///
    /// # Errors
    /// Layers that cannot carry one, patterns that fit none.
    pub fn check_adapters(&self, shape: &ModelSpec) -> Result<()> {
        let Trained::Adapters { lora, .. } = &self.trained else { return Ok(()) };
        let layers = lora.of_model(shape)?;
        lora.whole_of(shape, &layers)?;
        if lora.start.takes_of_weight() && shape.tie_word_embeddings && layers.contains_key("lm_head") {
            return Err(tied_start(lora.start));
        }
        Ok(())
    }

    /// Refuses an optimizer that cannot move what is trained, where it is.
    ///
    /// # Errors
    /// One that needs whole parameters, on several processes that divide them; one whose gradients are taken elsewhere than at the weights that are
    /// evaluated, where answers are drawn.
    pub(crate) fn check_optimizer(&self, device: &Compute, layout: Layout) -> Result<()> {
        if let (2.., Some(why)) = (layout.shards, self.optimizer.needs_whole_parameters()) {
            return Err(Error::setup(format!(
                "{why}: start one process, or set optimizer=adamw without ema_decay, whose state is divided among processes, or \
                 data_parallel_shard_dim=1 data_parallel_replicate_dim={}, which gives each process the whole model",
                layout.processes()
            )));
        }
        self.check_offloading(device)?;
        match self.optimizer.moves_between_weights() {
            Some(setting) if self.drawing.is_some() => Err(Error::setup(format!(
                "{setting} takes gradients at other weights than those that answers are drawn with: learn from them with another \
                 one, or set optimizer=adamw without ema_decay"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses updates of whole micro-batches that this many processes cannot share.
    ///
    /// # Errors
    /// As [`UpdateKeys::of_step`].
    pub(crate) fn check_updates(&self, processes: usize) -> Result<()> {
        let updates = UpdateKeys { ppo_epochs: 1, ppo_batch_size: self.rows_of_update };
        let accumulated = self.steps.gradient_accumulation_steps;
        updates.of_step(self.data.batch_size, accumulated, processes).map(drop)
    }

    /// Refuses what cannot be kept in a file.
    ///
    /// # Errors
    /// What is on a card; an optimizer that has no state, or whose state is copied for checkpoints in the background; activations of which
    /// more than the inputs of blocks are kept.
    fn check_offloading(&self, device: &Compute) -> Result<()> {
        if self.steps.activation_offload_dir.is_some() {
            let refused = match device {
                Compute::Card(_) => "keeps what the processor computes, for now: leave it out, or set device=cpu",
                Compute::Processor if !self.steps.enable_activation_checkpointing => {
                    "keeps the inputs of blocks and nothing else: set enable_activation_checkpointing=true"
                }
                Compute::Processor => "",
            };
            if !refused.is_empty() {
                return Err(Error::setup(format!("activation_offload_dir {refused}")));
            }
        }
        if self.optimizer.offload_dir().is_none() {
            return Ok(());
        }
        if let Some(why) = self.optimizer.has_nothing_to_offload() {
            return Err(Error::setup(format!(
                "optimizer.offload_dir: {why}: leave it out, or choose another optimizer"
            )));
        }
        let refused = match device {
            Compute::Card(_) => {
                "keeps the state of an optimizer that works on the processor, for now: leave it out, or set device=cpu"
            }
            Compute::Processor if self.run.enable_async_checkpointing => {
                "keeps the optimizer's state out of memory, where enable_async_checkpointing copies it: leave out one of them"
            }
            Compute::Processor => return Ok(()),
        };
        Err(Error::setup(format!("optimizer.offload_dir {refused}")))
    }

    /// Refuses what a head that scores sequences, of the model or of one beside it, is not trained with.
    ///
    /// # Errors
    /// Adapters below, new tokens.
    pub(crate) fn check_head(&self) -> Result<()> {
        if self.head.is_none() && self.value.is_none() && self.judge.is_none() {
            return Ok(());
        }
        let Trained::Adapters { lora, .. } = &self.trained else { return Ok(()) };
        let refused = [
            ("base_adapters", lora.base_adapters.is_empty(), "merge them into the base first (`tune merge`)"),
            ("new_tokens", lora.new_tokens.is_empty(), "leave them out"),
        ];
        let place = if self.head.is_some() { "below a head" } else { "beside a model" };
        match refused.iter().find(|(_, is_empty, _)| !is_empty) {
            Some((key, _, way)) => Err(Error::setup(format!(
                "model.{key} cannot be trained {place} that scores sequences, for now: {way}"
            ))),
            None => Ok(()),
        }
    }

    /// Checks that the model can be computed as if it were quantized, where that is asked for.
    ///
    /// # Errors
    /// As [`Decoder::fake_quantize`](crate::models::Decoder::fake_quantize).
    pub fn check_fake_quantizer(&self, shape: &ModelSpec, in_blocks: &InBlocks) -> Result<()> {
        let Some(quantizer) = self.fake_quantizer else { return Ok(()) };
        if matches!(&self.trained, Trained::Adapters { lora, .. } if lora.trains_rows()) {
            return Err(TrainedTokens::not_quantized());
        }
        let has_magnitudes = matches!(&self.trained, Trained::Adapters { lora, .. } if lora.dora);
        let in_blocks = (!in_blocks.is_empty()).then(|| in_blocks.describe());
        quantizer.check(shape, has_magnitudes, in_blocks.as_deref())
    }

    /// Refuses what answers cannot be drawn with such that training computes the same.
    ///
    /// # Errors
    /// Dropout, frequencies that depend on a sequence's length, more new tokens than the model reads.
    pub fn check_drawing(&self, shape: &ModelSpec) -> Result<()> {
        let Some(Drawing { max_new_tokens, .. }) = self.drawing else { return Ok(()) };
        // Who is told of each token what a teacher thinks of it learns as well from answers that another one drew.
        let must_be_own = !self.reference.as_ref().is_some_and(|compared| compared.teaches);
        if let Trained::Adapters { lora, .. } = &self.trained
            && must_be_own
            && lora.dropout > 0.0
        {
            return Err(Error::setup(
                "model.lora_dropout: answers are drawn without dropout and must be learnt from without it; set \
                 model.lora_dropout=0",
            ));
        }
        if must_be_own && shape.rotary.iter().any(|table| table.depends_on_length()) {
            return Err(Error::setup(format!(
                "the positions of this model ({}) are scaled by the length of a sequence, so a token that is drawn is not what \
                 training computes in the finished answer; choose a model whose positions are not, or train on finished answers \
                 with `dpo`, `lora` or `full`",
                shape.model_type
            )));
        }
        let longest = shape.max_position_embeddings;
        if max_new_tokens >= longest {
            let key = if must_be_own { "max_new_tokens" } else { "on_policy.max_new_tokens" };
            return Err(Error::setup(format!(
                "{key} is {max_new_tokens}, and the model reads {longest} tokens at most, prompts included: set {key}={}, say",
                longest / 2
            )));
        }
        Ok(())
    }

    /// Refuses data without prompts where a student is to answer them: if it answers few, the first may come late.
    ///
    /// # Errors
    /// As [`prompts`], and a record that cannot be tokenized.
    pub(crate) fn check_prompts(&self, data: &Loader, tokenizer: &Tokenizer) -> Result<()> {
        let is_taught = self.reference.as_ref().is_some_and(|compared| compared.teaches);
        if !is_taught || self.drawing.is_none() {
            return Ok(());
        }
        data.epoch(0).batches(0).next().map_or(Ok(()), |batch| prompts(&batch?, tokenizer).map(drop))
    }

    /// What deserves the user's attention of the model and its tokenizer without being an error.
    pub fn warnings(&self, base: &Checkpoint, tokenizer: &Tokenizer) -> Vec<String> {
        let mut warnings = base.warnings().to_vec();
        warnings.extend(self.data.tokenizer.warning());
        if let Some(dir) = &self.run.checkpointer.adapter_checkpoint {
            warnings.extend(crate::peft::other_base(dir, base));
        }
        if let Trained::Adapters { lora, merged } = &self.trained {
            if lora.alpha == 0.0 {
                warnings.push(
                    "model.lora_alpha is 0, so adapters add nothing to their layers and learn nothing".to_owned(),
                );
            }
            if let Ok(shape) = ModelSpec::of(base) {
                warnings.extend(lora.shared(&shape).into_iter().chain(lora.of_tied(&shape)));
            }
            warnings.extend(match &self.head {
                None => self.unlisted_stop_tokens(base, tokenizer, *merged),
                Some(head) => other_padding(head, base, tokenizer),
            });
        }
        warnings
    }

    /// An adapter cannot tell others where answers end: they ask the base model's files.
    fn unlisted_stop_tokens(&self, base: &Checkpoint, tokenizer: &Tokenizer, merged: bool) -> Option<String> {
        let stop = tokenizer.stop_tokens();
        let unlisted = stop.unlisted();
        if unlisted.is_empty() {
            return None;
        }
        let names = listed(unlisted.iter().filter_map(|&id| tokenizer.token(id)));
        let file = if base.generation_config().is_some() { "generation_config.json" } else { "config.json" };
        let ids = stop.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let merged = match merged {
            true => "the merged model has it",
            false => "save_adapter_weights_only=false also saves a merged model that has it",
        };
        Some(format!(
            "answers end with {names}, which `eos_token_id` in the base model's {file} does not list: transformers \
             does not stop there when it runs the adapter on this base, unless generate() is given eos_token_id=[{ids}]; \
             {merged}"
        ))
    }

    /// Refuses an output folder in which saving would touch what training starts from, or another model that the run opens.
    ///
    /// # Errors
    /// As [`run::check_output_dir`].
    pub fn check_output_dir(&self, base: &Checkpoint) -> Result<()> {
        std::iter::once(base.path())
            .chain(self.run.checkpointer.adapter_checkpoint.as_deref())
            .chain(self.base_adapters().iter().map(PathBuf::as_path))
            .chain(self.models_beside().map(|model| model.checkpoint_dir.as_path()))
            .try_for_each(|start| run::check_output_dir(&self.run.output_dir, start))
    }

    /// Where the models are that the trained one is compared with, or that score what it draws.
    fn models_beside(&self) -> impl Iterator<Item = &CheckpointConfig> {
        let reference = self.reference.iter().filter_map(|compared| compared.checkpointer.as_ref());
        reference.chain(self.value.iter().flatten()).chain(&self.judge)
    }

    /// Refuses a run that cannot fit, with the settings that would make it fit.
    ///
    /// # Errors
    /// As [`Outline::memory_plan`] and [`check`](crate::memory_plan::MemoryPlan::check).
    pub fn check_memory(
        &self,
        device: &Compute,
        mesh: &Mesh,
        model: (&ModelSpec, &InBlocks),
        data: (&Loader, Option<&Loader>),
        asked: Asked,
        state: Option<&TrainingState>,
    ) -> Result<()> {
        let processes = Processes::of(mesh);
        self.memory_plan(Some(device), processes, model, data, asked, state)?.check()
    }

    /// Refuses a run whose checkpoints find no room, or whose folders cannot be written, before it has computed anything.
    /// `state` is that of the run that goes on.
    ///
    /// # Errors
    /// As `--check` has them.
    pub fn check_storage(
        &self,
        base: &Checkpoint,
        shape: &ModelSpec,
        train_data: &Loader,
        state: Option<&TrainingState>,
    ) -> Result<()> {
        storage::check(self, base, shape, train_data.known_len(), state)
    }

    /// Settings that are allowed and probably not meant. `batches` are those of an epoch, if they are known.
    pub fn schedule_warnings(&self, batches: Option<usize>) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.optimizer.lr() == 0.0 {
            warnings.push("optimizer.lr is 0, so no step changes a weight".to_owned());
        }
        let warmup = self.lr_scheduler.build().warmup_steps;
        let total = batches.map(|batches| self.plan().total_steps(batches));
        if let Some(total) = total.filter(|&total| total > 0 && total <= warmup) {
            let reached = 100.0 * (total - 1) as f64 / warmup as f64;
            warnings.push(format!(
                "the learning rate rises for {warmup} steps (lr_scheduler.num_warmup_steps), and the run has {}: it ends \
                 at {reached:.0} % of optimizer.lr; set lr_scheduler.num_warmup_steps={}, say",
                count(total, "step"),
                total / 10
            ));
        }
        warnings.extend(self.selection_warnings(batches));
        warnings
    }
}

/// What there is to say where an adapter's base names another token that fills rows up than the one beside whose absence scores were
/// learnt: transformers asks the base's config where a sequence ends.
fn other_padding(head: &Head, base: &Checkpoint, tokenizer: &Tokenizer) -> Option<String> {
    let pad = tokenizer.pad()?;
    let there = &base.config()["pad_token_id"];
    (there.as_u64() != Some(pad.into())).then(|| {
        format!(
            "transformers takes a score at the last token that is not `pad_token_id`, which is {there} in the base model's config.json \
             and {pad} here: load the adapter on AutoModelForSequenceClassification.from_pretrained(BASE, num_labels={}, \
             pad_token_id={pad}); a merged model has it (save_adapter_weights_only=false)",
            head.labels().len()
        )
    })
}

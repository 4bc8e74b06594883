//! The device, the model's files and shape, the tokenizer and its chat template.

use crate::Error;
use crate::checkpoint::state::TrainingState;
use crate::checkpoint::{self, Checkpoint};
use crate::device::Compute;
use crate::distributed::Layout;
use crate::memory;
use crate::memory_plan;
use crate::models::{InBlocks, ModelSpec, nothing_to_train};
use crate::preflight::report::{Report, percent};
use crate::recipe::{Outline, Trained};
use crate::tokenizer::{ChatTemplate, Tokenizer, listed};
use crate::words::count;

/// The base model, as far as it is sound.
pub(super) struct Model {
    pub(super) base: Checkpoint,
    pub(super) shape: Option<ModelSpec>,
    /// Which of its weights are held in blocks, where that can be said.
    pub(super) in_blocks: Option<InBlocks>,
}

/// Whether the run can compute where it is told to.
pub(super) fn device(outline: &Outline, layout: Layout, report: &mut Report<'_>) {
    if let Some((device, dtype)) = report.take(outline.device()) {
        if matches!(device, Compute::Card(_)) && layout.processes() > 1 {
            report.take(tune_cuda::open_nccl().map_err(|error| Error::setup(error.to_string())));
        }
        report.take(outline.check_optimizer(&device, layout));
        report.take(outline.check_head());
        report.fact("device", format!("{device}, {}", dtype_name(dtype)));
    }
}

/// The base model. Where only its weights are not as they should be, the rest is looked at all the same.
pub(super) fn open(outline: &Outline, report: &mut Report<'_>) -> Option<Model> {
    let base = match outline.open_base() {
        Ok(base) => base,
        Err(error) => {
            report.error(error);
            let base = Checkpoint::without_weights(&outline.run.checkpointer.checkpoint_dir).ok()?;
            let shape = report.take(outline.shape(&base));
            return Some(Model { base, shape, in_blocks: None });
        }
    };
    let shape = report.take(outline.shape(&base));
    let sound = shape.as_ref().filter(|shape| report.take(outline.check_weights(&base, shape)).is_some());
    if let Some(shape) = sound {
        report.fact("model", describe(&base, shape, outline.said_of_fresh()));
        report.take(outline.check_drawing(shape));
    }
    let sound = sound.is_some();
    let grown = shape.and_then(|shape| report.take(outline.grown(&base, shape)));
    if let (true, Some((shape, _))) = (sound, &grown) {
        trained(outline, shape, report);
    }
    let shape = grown.map(|(shape, said)| {
        said.into_iter().for_each(|line| report.fact("tokens", line));
        if let Ok(Some(below)) = outline.below() {
            let dirs: Vec<String> = below.parts().map(|part| part.dir.display().to_string()).collect();
            report.fact("stands on", dirs.join(", then "));
        }
        shape
    });
    let in_blocks = shape.as_ref().and_then(|shape| report.take(outline.in_blocks(&base, shape)));
    if let (Some(shape), Some(in_blocks)) = (&shape, &in_blocks) {
        report.take(outline.check_fake_quantizer(shape, in_blocks));
    }
    if let Some(in_blocks) = in_blocks.as_ref().filter(|in_blocks| !in_blocks.is_empty()) {
        report.fact("quantized", quantized(in_blocks));
    }
    Some(Model { base, shape, in_blocks })
}

fn quantized(in_blocks: &InBlocks) -> String {
    format!(
        "matrices are held quantized, {}: {} elements in {}",
        in_blocks.describe(),
        in_blocks.elements(),
        memory::size(in_blocks.bytes())
    )
}

fn describe(base: &Checkpoint, model: &ModelSpec, fresh: Option<&str>) -> String {
    let stored = match (fresh, base.names().next().and_then(|name| base.stored_dtype(name))) {
        (Some(said), _) => said.to_owned(),
        (None, Some(dtype)) => format!("stored in {}", dtype_name(dtype)),
        (None, None) => "quantized".to_owned(),
    };
    format!(
        "{}: {}, {} of width {}, {} parameters, {stored}",
        base.path().display(),
        model.model_type,
        count(model.blocks.len(), "block"),
        model.hidden_size,
        model.parameter_count(),
    )
}

fn trained(outline: &Outline, model: &ModelSpec, report: &mut Report<'_>) {
    let total = model.parameter_count() as usize;
    let Trained::Adapters { lora, .. } = &outline.trained else {
        return report.fact("trained", "all parameters");
    };
    let counted = outline.check_adapters(model);
    let counted = counted
        .and_then(|()| Ok((memory_plan::of_adapters(model, lora, 1)?, memory_plan::of_whole(model, lora, 1)?)))
        .and_then(|n| Ok((n, lora.describe(model)?)));
    let Some(((adapted, whole), adapters)) = report.take(counted) else { return };
    let (adapted, elements) = (adapted as usize, (adapted + whole) as usize);
    if adapted == 0 {
        return report.error(nothing_to_train());
    }
    let share = percent(elements, total + adapted);
    report.fact("trained", format!("{elements} parameters, {share} of all: {adapters}"));
    if let Some(dir) = &outline.run.checkpointer.adapter_checkpoint {
        let adapter = checkpoint::peft::read(dir).and_then(|(config, _)| lora.check(&config, dir, model));
        report.take(adapter);
    }
}

/// The tokenizer with its chat template, as the run has it.
pub(super) fn tokenizer(
    outline: &Outline,
    model: &Model,
    state: Option<&TrainingState>,
    report: &mut Report<'_>,
) -> Option<Tokenizer> {
    let (tokenizer, _) = report.take(outline.tokenizer(&model.base, state))?;
    outline.warnings(&model.base, &tokenizer).into_iter().for_each(|warning| report.warning(warning));
    let stop: Vec<String> = tokenizer.stop_tokens().iter().filter_map(|&id| tokenizer.token(id)).collect();
    report.fact("tokenizer", format!("{} tokens; generation stops at {}", tokenizer.vocab_size(), listed(&stop)));
    if stop.is_empty() {
        report.error(Error::setup(
            "the model has no stop token, so its answers would never end: name it as `eos_token` in \
             tokenizer_config.json, or give its id as `eos_token_id` in generation_config.json",
        ));
    }
    if let Some(rows) = model.shape.as_ref().map(|shape| shape.vocab_size).filter(|&n| n < tokenizer.vocab_size()) {
        report.warning(format!(
            "the tokenizer has {} tokens and the model {rows} embeddings: samples and prompts with one of the tokens \
             that it lacks are refused",
            tokenizer.vocab_size()
        ));
    }
    report.fact("template", template(outline, tokenizer.chat_template()));
    Some(tokenizer)
}

fn template(outline: &Outline, template: Option<&ChatTemplate>) -> String {
    let origin = match &outline.data.tokenizer.chat_template {
        Some(path) => path.display().to_string(),
        None => "the checkpoint's own".to_owned(),
    };
    match template {
        None => "the model has no chat template".to_owned(),
        Some(template) if template.marks_generation() => {
            format!("{origin}; its `{{% generation %}}` marks say what is trained")
        }
        Some(_) => format!("{origin}; answers are found by rendering what stands before them"),
    }
}

fn dtype_name(dtype: candle_core::DType) -> &'static str {
    match dtype {
        candle_core::DType::F32 => "fp32",
        candle_core::DType::F16 => "fp16",
        other => other.as_str(),
    }
}

//! The models, and the memory for their sequences.

use std::path::Path;

use tune_core::artifact::{Receipt, Source};
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::config::{complain, files};
use tune_core::engine::Sequences;
use tune_core::memory_plan::available;
use tune_core::metrics::resident_memory;
use tune_core::models::{Decoder, LoadOptions};

use crate::server::Served;
use crate::tools::Form;
use crate::{Args, LARGEST, Result};

/// Memory for sequences where nothing is said of it.
const CACHE: u64 = 1 << 30;

/// What is served, and what computes it, in the same order.
pub(crate) struct Loaded {
    pub(crate) models: Vec<Served>,
    pub(crate) decoders: Vec<Decoder>,
}

/// Loads the base once, and each adapter on it.
///
/// # Errors
/// What cannot be read, or does not belong together.
pub(crate) fn load(args: &Args) -> Result<Loaded> {
    let source = Source::find(&args.model, args.base.as_deref(), &args.adapter)?;
    let template = args.chat_template.as_deref().map(template).transpose()?;
    let first = source.open()?;
    if let Some(said) = Receipt::brief(first.base().path()) {
        complain!("{said}");
    }
    let mut opened = vec![(args.name.clone().unwrap_or_else(|| name_of(&args.model)), first)];
    for (name, adapter) in &args.also {
        if opened.iter().any(|(other, _)| other == name) {
            return Err(format!("two models are called `{name}`").into());
        }
        let parts = [Part { dir: adapter.clone(), weight: 1.0 }];
        let on_base = Source::of_adapters(&parts, Some(&source.base))?;
        opened.push((name.clone(), Merged::open(Checkpoint::open(&on_base.base)?, &on_base.parts)?));
    }
    let (device, chosen) = args.device.choose()?;
    chosen.iter().for_each(|line| complain!("{line}"));
    let options = LoadOptions { dtype: args.dtype.dtype(), device, train_weights: false, lora: None };
    let (mut models, mut decoders): (Vec<Served>, Vec<Decoder>) = (Vec::new(), Vec::new());
    for (name, merged) in &opened {
        merged.warnings().iter().for_each(|warning| complain!("warning: {warning}"));
        let decoder = match decoders.first().zip(opened.first()) {
            None => merged.trained(&options)?,
            Some((model, (_, first))) => merged.trained_on(model, first)?,
        };
        let mut tokenizer = merged.tokenizer().clone();
        if let Some(template) = &template {
            tokenizer = tokenizer.with_chat_template(template)?;
        }
        if tokenizer.chat_template().is_none() {
            complain!(
                "`{name}` has no chat template: it continues texts at /v1/completions and holds no conversations"
            );
        }
        models.push(Served {
            name: name.clone(),
            stop_tokens: tokenizer.stop_tokens().iter().copied().collect(),
            form: tokenizer.chat_template().and_then(|template| Form::of(template.source())),
            tokenizer,
        });
        decoders.push(decoder);
    }
    Ok(Loaded { models, decoders })
}

fn template(file: &Path) -> Result<String> {
    let bytes = files::read(file, LARGEST).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(String::from_utf8(bytes).map_err(|_| format!("{}: is not UTF-8 text", file.display()))?)
}

/// What a model is called whose place is all that is known.
fn name_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    if let Some(on_the_hub) = text.strip_prefix("hf://") {
        return on_the_hub.to_owned();
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The tokens of sequences that there is to be memory for: `given` bytes of it, or what is enough.
///
/// # Errors
/// There is not so much memory.
pub(crate) fn room(model: &Decoder, sequences: usize, given: Option<u64>) -> Result<usize> {
    let of_token = (Sequences::bytes_per_token(model) as u64).max(1);
    let enough = (sequences as u64).saturating_mul(model.config.max_position_embeddings as u64);
    let room = enough.min(given.unwrap_or(CACHE) / of_token);
    if room < 2 {
        return Err(format!("--cache-memory: a token takes {of_token} bytes, so no sequence has room").into());
    }
    if model.device().is_cpu()
        && let (Some(available), Some(own)) = (available()?, resident_memory())
        && room.saturating_mul(of_token) > available.bytes.saturating_sub(own)
    {
        let (mib, left) = ((room * of_token) >> 20, available.bytes.saturating_sub(own) >> 20);
        return Err(format!(
            "{room} tokens of sequences take {mib} MiB, and there are {left} MiB {}; set --cache-memory to less",
            available.origin
        )
        .into());
    }
    Ok(usize::try_from(room).unwrap_or(usize::MAX))
}

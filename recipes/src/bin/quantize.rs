//! Quantization: a model, or a model with an adapter, becomes a GGUF file of few bits, for llama.cpp, Ollama and `generate`.
//!
//!     cargo run --release -p recipes --bin quantize -- --config configs/quantize/tiny.yaml quantizer.format=q8_0

use tune_core::artifact::{Columns, GgufFile, Prompts, Source};
use tune_core::checkpoint::gguf::FileKind;
use tune_core::checkpoint::merge::Part;
use tune_core::config::complain;
use tune_core::prelude::*;

/// What weights become.
#[derive(Debug, Clone, Copy, Config)]
pub(crate) enum Quantizer {
    /// The blocks of a GGUF file: a few numbers of a row with a scale of their own.
    #[config(name = "gguf", default)]
    Gguf(Blocks),
}

/// The blocks of a GGUF file.
#[derive(Debug, Clone, Copy, Config)]
pub(crate) struct Blocks {
    /// The kind of file.
    #[config(default)]
    format: FileKind,
}

/// Writes a model as a GGUF file of few bits, and proves it.
#[recipe(configs = ["../configs/quantize/tiny.yaml", "../configs/quantize/quantization.yaml"])]
fn quantize(
    /// The model: a Hugging Face folder, a .gguf file, an adapter, a checkpoint, a run's folder, or hf://org/name.
    checkpoint_dir: PathBuf,
    /// A folder with a PEFT adapter for it, or hf://org/name; it is merged before.
    adapter_dir: Option<PathBuf>,
    /// What the weights become.
    #[config(default)]
    quantizer: Quantizer,
    /// Keep errors small where much comes through a weight: an importance matrix of `llama-imatrix`, or text or chats to run the
    /// model over, whose matrix is left beside the new file.
    importance: Option<PathBuf>,
    /// The most chunks of 512 tokens of text or chats that the model is run over; null is 128.
    #[config(range = 1..)]
    importance_chunks: Option<usize>,
    /// Prompts that the file is compared with the model on, a line each; null is eight held-out questions.
    prompts: Option<PathBuf>,
    /// The file goes here, with a receipt and a Modelfile for Ollama.
    output_dir: PathBuf,
    /// What the file is called, without .gguf; null is the model's name and the format.
    name: Option<String>,
    /// Say what would be written, and write nothing.
    #[config(default = false)]
    dry_run: bool,
) -> Result<()> {
    if !init_process_group()?.is_single() {
        return Err(Error::setup("a model is quantized by one process: start one, without --nproc-per-node"));
    }
    hub::watch(Downloads::stderr());
    if importance.is_none() && importance_chunks.is_some() {
        return Err(Error::setup("importance_chunks says how much of `importance` is read: set both, or neither"));
    }
    let Quantizer::Gguf(Blocks { format }) = quantizer;
    let name = name.unwrap_or_else(|| format!("{}-{}", name_of(&checkpoint_dir), format.name()));
    if name.contains(['/', '\\']) {
        return Err(Error::setup(format!("name: `{name}` is no file's name; output_dir says which folder it is in")));
    }
    let to = output_dir.join(format!("{name}.gguf"));

    let parts: Vec<Part> = adapter_dir.into_iter().map(|dir| Part { dir, weight: 1.0 }).collect();
    let source = Source::find(&checkpoint_dir, None, &parts)?;
    let merged = source.open()?;
    merged.warnings().iter().for_each(|warning| complain!("warning: {warning}"));
    let columns = importance.map(|file| Columns::of(&file, importance_chunks, &to)).transpose()?;
    // Everything is looked at before something is written.
    let prompts = Prompts::read(prompts.as_deref(), merged.tokenizer(), merged.spec().max_position_embeddings)?;
    let file = GgufFile::of_model(&to, (&source, &merged), format, None, columns)?;
    file.lines().iter().for_each(|line| say!("{line}"));
    if dry_run {
        return Ok(());
    }

    let modelfile = file.modelfile();
    let (written, found) = file.write(&mut |done, most| {
        if done.is_multiple_of(16) {
            complain!("{done} chunks of at most {most}");
        }
    })?;
    found.iter().for_each(|line| say!("{line}"));
    say!("reading it again, and comparing it with the model");
    let findings = written.prove(&prompts)?;
    findings.notes.iter().for_each(|note| complain!("note: {note}"));
    findings.sound()?;
    findings.lines().iter().for_each(|line| say!("  {line}"));
    say!("{}", written.name(findings)?);
    say!("for Ollama: ollama create {name} -f {}", modelfile.display());
    Ok(())
}

/// What a model is called: its folder or file, or its name on the hub, without a revision.
fn name_of(model: &Path) -> String {
    let path = std::path::absolute(model).unwrap_or_else(|_| model.to_owned());
    let last = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_on_the_hub = model.to_string_lossy().starts_with(hub::SCHEME);
    let last = if is_on_the_hub { last.split('@').next().unwrap_or_default() } else { &last };
    match last.strip_suffix(".gguf").unwrap_or(last) {
        "" => "model".to_owned(),
        name => name.to_owned(),
    }
}

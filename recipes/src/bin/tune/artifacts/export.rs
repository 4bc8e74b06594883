//! `export` and `quantize`: GGUF files, for llama.cpp, Ollama and what is made of them.

use std::path::PathBuf;

use tune_core::artifact::{Columns, GgufFile, Source, part};
use tune_core::checkpoint::gguf::FileKind;
use tune_core::checkpoint::merge::Part;
use tune_core::config::{complain, say};

use super::{Common, open, prove_and_name};
use crate::Result;

/// A model or an adapter, and the file that it becomes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model's folder, a GGUF file, `hf://org/name`, a run, or an adapter, which becomes a file of its own for its base.
    model: PathBuf,
    /// The new file.
    #[arg(long, short = 'o', value_name = "FILE.gguf")]
    to: PathBuf,
    /// f32, f16, bf16, q8_0, q4_0, q4_k_m, q5_k_m or q6_k; by default bf16, and f16 for adapters.
    #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = kind)]
    kind: Option<FileKind>,
    /// Merge this adapter into the model; `ADAPTER=0.5` takes half of it. Can be said several times.
    #[arg(long, value_name = "ADAPTER[=WEIGHT]", value_parser = part)]
    adapter: Vec<Part>,
    /// The model that an adapter is for; by default the one that it names.
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Merge an adapter into its base, where one is named in place of a model.
    #[arg(long)]
    merged: bool,
    /// What the model is called in the file; by default as its file.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    common: Common,
}

/// How much the columns of weights count.
#[derive(clap::Args)]
pub(crate) struct By {
    /// Keep errors small where much comes through a weight (importance matrix): a file of `llama-imatrix`, or text or chats to run the model over; their matrix is then left beside the new file.
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Run the model over at most N chunks of 512 tokens of text or chats, in place of 128.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "importance")]
    importance_chunks: Option<u32>,
}

/// A GGUF file, and the smaller one that it becomes.
#[derive(clap::Args)]
pub(crate) struct Quantize {
    /// A GGUF file (or a model's folder).
    model: PathBuf,
    /// The new file.
    #[arg(long, short = 'o', value_name = "FILE.gguf")]
    to: PathBuf,
    /// q8_0, q4_0, q4_k_m, q5_k_m or q6_k; f32, f16 and bf16 make a quantized file large again.
    #[arg(long = "type", short = 't', value_name = "TYPE", value_parser = kind)]
    kind: FileKind,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    common: Common,
}

/// Writes the smaller file.
///
/// # Errors
/// As [`run`].
pub(crate) fn quantize(args: Quantize) -> Result<()> {
    let Quantize { model, to, kind, by, common } = args;
    let export =
        Args { model, to, kind: Some(kind), adapter: vec![], base: None, merged: true, name: None, by, common };
    run(&export)
}

/// Writes the file, and a Modelfile beside it.
///
/// # Errors
/// What cannot be read or written, a model that the format cannot hold, and a result that is not what was trained.
pub(crate) fn run(args: &Args) -> Result<()> {
    let source = Source::find(&args.model, args.base.as_deref(), &args.adapter)?;
    let merged = open(&source)?;
    let chunks = args.by.importance_chunks.map(usize::try_from).transpose()?;
    let columns = args.by.importance.as_ref().map(|file| Columns::of(file, chunks, &args.to)).transpose()?;
    let alone = args.adapter.is_empty() && !args.merged && source.parts.len() == 1;
    let file = match columns {
        Some(_) if alone => {
            return Err(
                "an adapter's file is not quantized, so `--importance` makes no difference to it: say `--merged`"
                    .into(),
            );
        }
        None if alone => GgufFile::of_adapter(&args.to, (&source, &merged), args.kind.unwrap_or(FileKind::F16))?,
        columns => {
            let kind = args.kind.unwrap_or(FileKind::Bf16);
            GgufFile::of_model(&args.to, (&source, &merged), kind, args.name.as_deref(), columns)?
        }
    };
    file.lines().iter().for_each(|line| say!("{line}"));
    if args.common.dry_run {
        return Ok(());
    }
    let (prompts, modelfile) = (args.common.prompts(&merged)?, file.modelfile());
    let (written, found) = file.write(&mut |done, most| {
        if done.is_multiple_of(16) {
            complain!("{done} chunks of at most {most}");
        }
    })?;
    found.iter().for_each(|line| say!("{line}"));
    prove_and_name(written, &prompts)?;
    let model = args.to.file_stem().unwrap_or_default().display();
    say!("for Ollama: ollama create {model} -f {}", modelfile.display());
    Ok(())
}

fn kind(text: &str) -> Result<FileKind, String> {
    FileKind::named(text).ok_or_else(|| {
        let names: Vec<&str> = FileKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("`{text}` is no kind of file that is written here; there are {}", names.join(", "))
    })
}

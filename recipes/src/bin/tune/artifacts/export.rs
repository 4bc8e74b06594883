//! `export` and `quantize`: GGUF files, for llama.cpp, Ollama and what is made of them.

use std::fs;
use std::path::{Path, PathBuf};

use tune_core::artifact::{Aside, Source, Target, part};
use tune_core::checkpoint::gguf::adapter::AdapterExport;
use tune_core::checkpoint::gguf::{Export, FileKind, modelfile};
use tune_core::checkpoint::human;
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::config::say;

use super::{Common, importance, open, prove_and_name};
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
    by: importance::Args,
    #[command(flatten)]
    common: Common,
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
    by: importance::Args,
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
    let file = file_name(&args.to)?;
    let source = Source::find(&args.model, args.base.as_deref(), &args.adapter)?;
    let merged = open(&source)?;
    let name = args.name.clone().unwrap_or_else(|| file.trim_end_matches(".gguf").to_owned());
    let kind = args.kind.unwrap_or(FileKind::Bf16);
    let mut by = args.by.given(&args.to)?;
    let alone = args.adapter.is_empty() && !args.merged && !source.parts.is_empty();
    let (mut target, bytes) = match source.parts.as_slice() {
        [_] if alone && by.is_some() => {
            return Err(
                "an adapter's file is not quantized, so `--importance` makes no difference to it: say `--merged`"
                    .into(),
            );
        }
        [adapter] if alone => {
            let kind = args.kind.unwrap_or(FileKind::F16);
            let export = AdapterExport::new(&adapter.dir, &merged.spec_of_base(), kind)?;
            let bytes = export.bytes();
            (Target::Adapter(export, kind), bytes)
        }
        _ => {
            let export = match &by {
                None => Export::new(&merged, kind, &name)?,
                Some(by) => by.export(&merged, kind, &name)?,
            };
            let bytes = export.bytes();
            (Target::Gguf(export), bytes)
        }
    };
    say!("base      {}", source.base.display());
    for part in merged.parts() {
        say!("adapter   {}{}", part.dir.display(), super::merge::weight(part));
    }
    if let (Some(by), Target::Gguf(export)) = (&by, &target) {
        by.tell(export);
    }
    say!("writes    {}, {} as {}", args.to.display(), human(bytes), shown(&target));
    Aside::check(&args.to, bytes)?;
    let beside = modelfile_of(&args.to);
    let besides = [Some(beside.as_path()), by.as_ref().and_then(importance::Given::beside)];
    if let Some(there) = besides.into_iter().flatten().find(|path| path.exists()) {
        return Err(format!(
            "{} is there already, and nothing is written over: choose another name, or remove it",
            there.display()
        )
        .into());
    }
    if args.common.dry_run {
        return Ok(());
    }
    let prompts = args.common.prompts(merged.tokenizer(), merged.spec().max_position_embeddings)?;
    let aside = Aside::begin(&args.to, bytes)?;
    let mut origin = None;
    if let Some(by) = &mut by {
        let made = by.make(&merged, &aside)?;
        if made {
            target = Target::Gguf(by.export(&merged, kind, &name)?);
        }
        origin = Some(by.origin(&aside, made)?);
    }
    match &target {
        Target::Gguf(export) => export.write(&aside.path())?,
        Target::Adapter(export, _) => export.write(&aside.path())?,
        Target::Folder(_) => return Err("a folder is no GGUF file".into()),
    }
    let own = aside.beside(&beside.file_name().unwrap_or_default().to_string_lossy());
    fs::write(&own, text_of_modelfile(&file, &target, &source, &merged))
        .map_err(|error| format!("cannot write {}: {error}", own.display()))?;
    prove_and_name(aside, &args.to, &source, &merged, &target, &prompts, origin)?;
    let model = file.trim_end_matches(".gguf");
    say!("for Ollama: ollama create {model} -f {}", beside.display());
    Ok(())
}

fn text_of_modelfile(file: &str, target: &Target<'_>, source: &Source, merged: &Merged) -> String {
    let base = source.base.display().to_string();
    let base = matches!(target, Target::Adapter(..)).then_some(base.as_str());
    modelfile(file, base, merged.tokenizer())
}

/// The Modelfile of a file: `model.Modelfile` for `model.gguf`.
fn modelfile_of(to: &Path) -> PathBuf {
    to.with_extension("Modelfile")
}

/// The formats of a file's tensors.
fn shown(target: &Target<'_>) -> String {
    let Target::Gguf(export) = target else { return target.weights().to_owned() };
    let formats: Vec<String> = export.formats().iter().map(|(name, count)| format!("{count} tensors {name}")).collect();
    format!("{} ({})", export.kind().name(), formats.join(", "))
}

fn file_name(to: &Path) -> Result<String> {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.ends_with(".gguf") && name.len() > ".gguf".len() {
        true => Ok(name),
        false => Err(format!("{}: the name of a GGUF file ends in .gguf", to.display()).into()),
    }
}

fn kind(text: &str) -> Result<FileKind, String> {
    FileKind::named(text).ok_or_else(|| {
        let names: Vec<&str> = FileKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("`{text}` is no kind of file that is written here; there are {}", names.join(", "))
    })
}

//! `verify`: whether an artifact is still what was trained.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tune_core::artifact::{Kind, Origin, Prompts, Receipt, Source, Target, part, proof};
use tune_core::checkpoint::gguf::adapter::AdapterExport;
use tune_core::checkpoint::gguf::{Export, FileKind, Importance, form};
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::checkpoint::{Checkpoint, Sum};
use tune_core::config::say;
use tune_core::device::Precision;

use super::{open, tell};
use crate::Result;

/// An artifact, and what it is to be compared with.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A merged model's folder, or a GGUF file.
    artifact: PathBuf,
    /// The model that it is made of; by default the one that its receipt names.
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// An adapter that it is made of; by default those that its receipt names.
    #[arg(long, value_name = "ADAPTER[=WEIGHT]", value_parser = part)]
    adapter: Vec<Part>,
    /// The importance matrix that it was quantized by; by default the one that its receipt names.
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Prompts to compare on, a line each, in place of eight held-out questions.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Only compare the files with their checksums.
    #[arg(long)]
    files_only: bool,
}

/// Compares an artifact with its receipt and with what it is made of.
///
/// # Errors
/// It is not what it should be, or it cannot be told.
pub(crate) fn run(args: &Args) -> Result<()> {
    let artifact = &args.artifact;
    if !artifact.exists() {
        return Err(format!("{} does not exist", artifact.display()).into());
    }
    let receipt = match (&args.base, Receipt::read(artifact)) {
        (_, Ok(receipt)) => Some(receipt),
        (Some(_), Err(_)) if !args.files_only => None,
        (_, Err(error)) => return Err(error.into()),
    };
    let mut faults = Vec::new();
    if let Some(receipt) = &receipt {
        faults.extend(changed_files(&receipt.files, &Receipt::sums(artifact)?));
        if faults.is_empty() {
            say!(
                "{} has the checksums of its receipt ({}, {})",
                shown(receipt.files.len()),
                receipt.program,
                receipt.weights
            );
        }
    }
    if args.files_only || !faults.is_empty() {
        return finish(artifact, &faults);
    }
    let source = match &args.base {
        Some(base) => Source { base: base.clone(), parts: args.adapter.clone() },
        None => {
            let made_of = receipt.as_ref().map(|receipt| receipt.made_of.clone()).ok_or("there is no receipt")?;
            Source { base: made_of.base.clone(), parts: made_of.parts() }
        }
    };
    say!("comparing it with {}", source.shown());
    let merged = open(&source).map_err(|error| {
        format!("what {} is made of cannot be read, so it cannot be compared: {error}\n  `--files-only` compares checksums alone", artifact.display())
    })?;
    let (kind, weights) = match &receipt {
        Some(receipt) => (receipt.kind, receipt.weights.clone()),
        None => found(artifact, &merged)?,
    };
    let importance = match (&args.importance, &receipt) {
        (Some(file), _) => Some(Importance::read(file)?),
        (None, Some(Receipt { made_of: Origin { importance: Some(matrix), .. }, .. })) => Some(matrix.open(artifact)?),
        (None, _) => None,
    };
    let target = target(artifact, (kind, &weights), &source, &merged, importance.as_ref())?;
    let longest = merged.spec().max_position_embeddings;
    let prompts = Prompts::read(args.prompts.as_deref(), merged.tokenizer(), longest)?;
    let findings = proof::check(artifact, &merged, &target, &prompts)?;
    tell(&findings);
    faults.extend(findings.faults);
    if let Some(receipt) = &receipt
        && args.base.is_none()
        && merged.base().fingerprint()? != receipt.made_of.base_fingerprint
    {
        faults.push(format!("{} is no longer the base that it was made of", source.base.display()));
    }
    finish(artifact, &faults)
}

fn finish(artifact: &Path, faults: &[String]) -> Result<()> {
    if faults.is_empty() {
        say!("{} is what was trained", artifact.display());
        return Ok(());
    }
    Err(format!("{} is not what was trained:\n  {}", artifact.display(), faults.join("\n  ")).into())
}

fn shown(files: usize) -> String {
    if files == 1 { "the file".to_owned() } else { format!("each of the {files} files") }
}

/// Files that are not those of the receipt.
fn changed_files(then: &BTreeMap<String, Sum>, now: &BTreeMap<String, Sum>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, sum) in then {
        match now.get(name) {
            None => faults.push(format!("{name} is missing")),
            Some(found) if found.bytes != sum.bytes => {
                faults.push(format!("{name} has {} bytes, and had {}", found.bytes, sum.bytes));
            }
            Some(found) if found != sum => {
                faults.push(format!("{name} has another content than it had: its checksum differs"));
            }
            Some(_) => {}
        }
    }
    // Weights that nobody wrote may be taken in place of the right ones; other files are no matter.
    let is_weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let added = now.keys().filter(|name| !then.contains_key(*name) && is_weights(name));
    faults.extend(added.map(|name| format!("{name} was not there: weights may be read from it")));
    faults
}

/// What an artifact without a receipt is.
fn found(artifact: &Path, merged: &Merged) -> Result<(Kind, String)> {
    if artifact.is_dir() {
        let checkpoint = Checkpoint::open(artifact)?;
        let dtype = checkpoint.stored_dtype("model.embed_tokens.weight").unwrap_or_else(|| merged.stored_dtype());
        let precisions = [(Precision::Fp32, "f32"), (Precision::Bf16, "bf16"), (Precision::Fp16, "f16")];
        let name =
            precisions.into_iter().find(|(precision, _)| precision.dtype() == dtype).map_or("f32", |(_, name)| name);
        return Ok((Kind::Folder, name.to_owned()));
    }
    let head = form(artifact)?;
    let kind = if head.is_adapter { Kind::GgufAdapter } else { Kind::Gguf };
    match head.kind {
        Some(kind_of_file) => Ok((kind, kind_of_file.name().to_owned())),
        None => Err(format!("{}: is a GGUF file of a kind that is not written here", artifact.display()).into()),
    }
}

/// What the artifact is to be.
fn target<'m>(
    artifact: &Path,
    (kind, weights): (Kind, &str),
    source: &Source,
    merged: &'m Merged,
    importance: Option<&Importance>,
) -> Result<Target<'m>> {
    let of_file =
        || FileKind::named(weights).ok_or_else(|| format!("{}: `{weights}` is no kind of file", artifact.display()));
    Ok(match kind {
        Kind::Folder => Target::Folder(match weights {
            "bf16" => Precision::Bf16.dtype(),
            "f16" => Precision::Fp16.dtype(),
            _ => Precision::Fp32.dtype(),
        }),
        Kind::Gguf => Target::Gguf(match importance {
            None => Export::new(merged, of_file()?, "")?,
            Some(importance) => Export::by_importance(merged, of_file()?, "", (importance, ""))?,
        }),
        Kind::GgufAdapter => {
            let [adapter] = source.parts.as_slice() else {
                return Err("an adapter's file is made of one adapter: name it with --adapter".into());
            };
            Target::Adapter(AdapterExport::new(&adapter.dir, &merged.spec_of_base(), of_file()?)?, of_file()?)
        }
    })
}

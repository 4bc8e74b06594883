//! `merge`, `export`, `quantize` and `verify`: what is handed on, and the proof that it is what was trained.

pub(crate) mod export;
mod importance;
pub(crate) mod merge;
pub(crate) mod verify;

use std::path::{Path, PathBuf};

use tune_core::artifact::{
    Aside, Findings, Origin, OriginImportance, OriginPart, Prompts, Receipt, Source, Target, proof,
};
use tune_core::checkpoint::merge::Merged;
use tune_core::config::{complain, files, say};
use tune_core::tokenizer::Tokenizer;

use crate::Result;

/// No file of prompts is longer.
const LARGEST: u64 = 16 << 20;

/// What all of them can be told.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Prompts to compare on, a line each, in place of eight held-out questions.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Common {
    /// The prompts to compare on.
    fn prompts(&self, tokenizer: &Tokenizer, longest: usize) -> Result<Prompts> {
        prompts(self.prompts.as_deref(), tokenizer, longest)
    }
}

fn prompts(file: Option<&Path>, tokenizer: &Tokenizer, longest: usize) -> Result<Prompts> {
    let Some(file) = file else { return Ok(Prompts::held_out(tokenizer, longest)?) };
    let bytes = files::read(file, LARGEST).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{}: is not UTF-8 text", file.display()))?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return Err(format!("{}: holds no prompt; a line each was expected", file.display()).into());
    }
    Ok(Prompts::of(&lines, tokenizer, longest)?)
}

/// Where the folder that a path is in says it is, so that the receipt holds elsewhere, too.
fn absolute(path: &Path) -> PathBuf {
    match path.to_string_lossy().starts_with("hf://") {
        true => path.to_owned(),
        false => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Opens what is to be written from, and says what deserves attention.
fn open(source: &Source) -> Result<Merged> {
    let merged = source.open()?;
    merged.warnings().iter().for_each(|warning| complain!("warning: {warning}"));
    Ok(merged)
}

/// Reads what was written aside again, compares it, and gives it its name with a receipt.
///
/// # Errors
/// It is not what it was to be: then nothing is left of it.
fn prove_and_name(
    aside: Aside,
    to: &Path,
    source: &Source,
    merged: &Merged,
    target: &Target<'_>,
    prompts: &Prompts,
    importance: Option<OriginImportance>,
) -> Result<()> {
    say!("reading it again, and comparing it with what was trained");
    let path = aside.path();
    let findings = proof::check(&path, merged, target, prompts)?;
    tell(&findings);
    if !findings.faults.is_empty() {
        return Err(
            format!("what was written is not what was trained, and was removed:{}", listed(&findings.faults)).into()
        );
    }
    let receipt = Receipt {
        version: 1,
        program: concat!("tune ", env!("CARGO_PKG_VERSION")).to_owned(),
        kind: target.kind(),
        weights: target.weights().to_owned(),
        made_of: Origin {
            base: absolute(&source.base),
            base_fingerprint: merged.base().fingerprint()?,
            adapters: source
                .parts
                .iter()
                .map(|part| OriginPart { path: absolute(&part.dir), weight: part.weight })
                .collect(),
            importance,
        },
        files: Receipt::sums(&path)?,
        proof: findings.proof,
    };
    receipt.write(&path)?;
    aside.name()?;
    say!("saved to {}; its receipt is {}", to.display(), Receipt::path_of(to).display());
    Ok(())
}

/// What was found, on the way to success or failure.
fn tell(findings: &Findings) {
    if findings.faults.is_empty() {
        findings.lines().iter().for_each(|line| say!("  {line}"));
    }
    findings.notes.iter().for_each(|note| complain!("note: {note}"));
}

/// Sentences as a list.
fn listed(faults: &[String]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

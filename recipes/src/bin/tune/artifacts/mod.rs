//! `merge`, `export`, `quantize` and `verify`: what is handed on, and the proof that it is what was trained.

pub(crate) mod export;
pub(crate) mod merge;
pub(crate) mod verify;

use std::path::PathBuf;

use tune_core::artifact::{Findings, Prompts, Source, Written};
use tune_core::checkpoint::merge::Merged;
use tune_core::config::{complain, say};

use crate::Result;

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
    fn prompts(&self, merged: &Merged) -> Result<Prompts> {
        Ok(Prompts::read(self.prompts.as_deref(), merged.tokenizer(), merged.spec().max_position_embeddings)?)
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
fn prove_and_name(written: Written<'_>, prompts: &Prompts) -> Result<()> {
    say!("reading it again, and comparing it with what was trained");
    let findings = written.prove(prompts)?;
    tell(&findings);
    say!("{}", written.name(findings)?);
    Ok(())
}

/// What was found, on the way to success or failure.
fn tell(findings: &Findings) {
    if findings.faults.is_empty() {
        findings.lines().iter().for_each(|line| say!("  {line}"));
    }
    findings.notes.iter().for_each(|note| complain!("note: {note}"));
}

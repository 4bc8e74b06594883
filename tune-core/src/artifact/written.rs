//! What was written aside, on its way to its name.

use std::path::{Path, PathBuf};

use super::{Aside, Findings, Origin, OriginImportance, OriginPart, Prompts, Receipt, Source, Target, absolute, proof};
use crate::Result;
use crate::checkpoint::merge::Merged;

/// An artifact that is written, and has no name yet. It is removed if this is dropped before [`Written::name`].
#[derive(Debug)]
pub struct Written<'m> {
    aside: Aside,
    to: PathBuf,
    source: &'m Source,
    merged: &'m Merged,
    target: Target<'m>,
    importance: Option<OriginImportance>,
}

impl<'m> Written<'m> {
    /// What was written to the [path](Aside::path) of `aside` and will be `to`, made of `source`.
    #[must_use]
    pub fn new(
        aside: Aside,
        to: &Path,
        (source, merged): (&'m Source, &'m Merged),
        target: Target<'m>,
        importance: Option<OriginImportance>,
    ) -> Self {
        Self { aside, to: to.to_owned(), source, merged, target, importance }
    }

    /// Reads it again and compares it with what was trained.
    ///
    /// # Errors
    /// As [`proof::check`]. What is wrong with the artifact is among the findings.
    pub fn prove(&self, prompts: &Prompts) -> Result<Findings> {
        proof::check(&self.aside.path(), self.merged, &self.target, prompts)
    }

    /// Writes the receipt and gives everything its name. Says where it is, in a line.
    ///
    /// # Errors
    /// Findings with faults; names that are taken meanwhile; a full disk.
    pub fn name(self, findings: Findings) -> Result<String> {
        findings.sound()?;
        let path = self.aside.path();
        let parts = self.source.parts.iter();
        let receipt = Receipt {
            version: 1,
            program: concat!("tune ", env!("CARGO_PKG_VERSION")).to_owned(),
            kind: self.target.kind(),
            weights: self.target.weights().to_owned(),
            made_of: Origin {
                base: absolute(&self.source.base),
                base_fingerprint: self.merged.base().fingerprint()?,
                adapters: parts.map(|part| OriginPart { path: absolute(&part.dir), weight: part.weight }).collect(),
                importance: self.importance,
            },
            files: Receipt::sums(&path)?,
            proof: findings.proof,
        };
        receipt.write(&path)?;
        self.aside.name()?;
        Ok(format!("saved to {}; its receipt is {}", self.to.display(), Receipt::path_of(&self.to).display()))
    }
}

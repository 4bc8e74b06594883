//! An importance matrix that is there, or that is made of text beside the file that is quantized by it.

use std::path::{Path, PathBuf};

use super::{Aside, OriginImportance, absolute, importance};
use crate::checkpoint::gguf::{Export, FileKind, Importance};
use crate::checkpoint::merge::Merged;
use crate::words::count;
use crate::{Error, Result};

/// Chunks of text that a model is run over, unless it is said how many.
const CHUNKS: usize = 128;

/// How much the columns of weights count where a model is quantized.
#[derive(Debug)]
pub struct Columns {
    file: PathBuf,
    chunks: usize,
    /// Where the matrix will be.
    place: PathBuf,
    /// Empty as long as it is not made.
    matrix: Importance,
}

impl Columns {
    /// By `file`, an importance matrix, or text or chats that a model is run over: their matrix will be beside the new file `to`, made of
    /// this many `chunks` at most, 128 where that is not said.
    ///
    /// # Errors
    /// A matrix that cannot be read, or whose chunks are said though they were counted when it was made.
    pub fn of(file: &Path, chunks: Option<usize>, to: &Path) -> Result<Self> {
        let (matrix, place) = match Importance::is_one(file) {
            true => (Importance::read(file)?, file.to_owned()),
            false => (Importance::default(), to.with_extension("imatrix.gguf")),
        };
        let columns = Self { file: file.to_owned(), chunks: chunks.unwrap_or(CHUNKS), place, matrix };
        match columns.is_made() && chunks.is_some() {
            true => Err(Error::file(
                file,
                "is an importance matrix already: leave the number of chunks out, which says how much text one is made of",
            )),
            false => Ok(columns),
        }
    }

    fn is_made(&self) -> bool {
        !self.matrix.is_empty()
    }

    /// The file of a model; before the matrix is made, one of the same size.
    ///
    /// # Errors
    /// A kind of file for which it does not matter; a matrix of another model; a model that the format cannot hold.
    pub(super) fn export<'m>(&self, merged: &'m Merged, kind: FileKind, name: &str) -> Result<Export<'m>> {
        if !kind.takes_importance() {
            let kinds: Vec<&str> =
                FileKind::ALL.iter().filter(|kind| kind.takes_importance()).map(|kind| kind.name()).collect();
            return Err(Error::setup(format!(
                "an importance matrix makes no difference to a file of {}: choose one of {}, or leave the matrix out",
                kind.name(),
                kinds.join(", ")
            )));
        }
        let file = self.place.file_name().unwrap_or_default().to_string_lossy();
        Export::by_importance(merged, kind, name, (&self.matrix, &file))
    }

    /// What it is, in a line.
    pub(super) fn line(&self, export: &Export<'_>) -> String {
        let file = self.file.display();
        match self.is_made() {
            true => format!("columns   {file}, for {} of the tensors", export.by_columns()),
            false => format!("columns   at most {} chunks of {file}, which the model is run over", self.chunks),
        }
    }

    /// The file that will be beside the new one, if one will be.
    pub(super) fn beside(&self) -> Option<&Path> {
        (!self.is_made()).then_some(self.place.as_path())
    }

    /// Makes the matrix, where it is not there, and writes it beside the new file; says so in a line. `told` is given the number of chunks
    /// that are done, and that of all at most.
    ///
    /// # Errors
    /// Data that cannot be read or holds no text, a model that does not fit into memory, a full disk.
    pub(super) fn make(
        &mut self,
        merged: &Merged,
        aside: &Aside,
        told: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<String>> {
        if self.is_made() {
            return Ok(None);
        }
        let most = self.chunks;
        self.matrix = importance(merged, &self.file, most, &mut |done| told(done, most))?;
        self.matrix.write(&self.written(aside))?;
        Ok(Some(format!(
            "the model was run over {} of {} tokens; their importance matrix is {}",
            count(self.matrix.chunks, "chunk"),
            self.matrix.chunk_size,
            self.place.display()
        )))
    }

    /// Where a matrix that was made is until everything gets its name.
    fn written(&self, aside: &Aside) -> PathBuf {
        aside.beside(&self.place.file_name().unwrap_or_default().to_string_lossy())
    }

    /// What the receipt says of it; `made` says whether it was made here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn origin(&self, aside: &Aside, made: bool) -> Result<OriginImportance> {
        let there = if made { self.written(aside) } else { self.file.clone() };
        OriginImportance::new(&self.matrix, absolute(&self.place), &there)
    }
}

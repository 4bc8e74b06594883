//! How much the columns of weights count where a model is quantized: `--importance`.

use std::path::{Path, PathBuf};

use tune_core::artifact::{self, Aside, OriginImportance};
use tune_core::checkpoint::gguf::{Export, FileKind, Importance};
use tune_core::checkpoint::merge::Merged;
use tune_core::config::{complain, say};

use super::absolute;
use crate::Result;

/// Chunks of text that a model is run over, unless it is said how many.
const CHUNKS: u32 = 128;

/// What is said of columns.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Keep errors small where much comes through a weight (importance matrix): a file of `llama-imatrix`, or text or chats to run the model over; their matrix is then left beside the new file.
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Run the model over at most so many chunks of 512 tokens of text or chats, in place of 128.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "importance")]
    importance_chunks: Option<u32>,
}

/// An importance matrix that is there, or is still to be made.
pub(super) struct Given<'a> {
    file: &'a Path,
    chunks: u32,
    /// Where the matrix will be.
    place: PathBuf,
    /// Empty as long as it is not made.
    matrix: Importance,
}

impl Args {
    /// What is to be taken for the file `to`, if anything.
    ///
    /// # Errors
    /// A matrix that cannot be read.
    pub(super) fn given<'a>(&'a self, to: &Path) -> Result<Option<Given<'a>>> {
        let Some(file) = self.importance.as_deref() else { return Ok(None) };
        let chunks = self.importance_chunks.unwrap_or(CHUNKS);
        let (matrix, place) = match Importance::is_one(file) {
            true => (Importance::read(file)?, file.to_owned()),
            false => (Importance::default(), to.with_extension("imatrix.gguf")),
        };
        let given = Given { file, chunks, place, matrix };
        if given.is_made() && self.importance_chunks.is_some() {
            return Err(format!(
                "{} is an importance matrix already: `--importance-chunks` says how much text one is made of",
                file.display()
            )
            .into());
        }
        Ok(Some(given))
    }
}

impl Given<'_> {
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
            return Err(format!(
                "an importance matrix makes no difference to a file of {}: choose one of {}, or leave `--importance` out",
                kind.name(),
                kinds.join(", ")
            )
            .into());
        }
        let file = self.place.file_name().unwrap_or_default().to_string_lossy();
        Ok(Export::by_importance(merged, kind, name, (&self.matrix, &file))?)
    }

    /// What it is, in a line.
    pub(super) fn tell(&self, export: &Export<'_>) {
        let file = self.file.display();
        match self.is_made() {
            true => say!("columns   {file}, for {} of the tensors", export.by_columns()),
            false => say!("columns   at most {} chunks of {file}, which the model is run over", self.chunks),
        }
    }

    /// The file that will be beside the new one, if one will be.
    pub(super) fn beside(&self) -> Option<&Path> {
        (!self.is_made()).then_some(self.place.as_path())
    }

    /// Makes the matrix, where it is not there, and writes it beside the new file. Says whether it did.
    ///
    /// # Errors
    /// Data that cannot be read or holds no text, a model that does not fit into memory, a full disk.
    pub(super) fn make(&mut self, merged: &Merged, aside: &Aside) -> Result<bool> {
        if self.is_made() {
            return Ok(false);
        }
        let chunks = self.chunks;
        let mut told = |done: usize| {
            if done.is_multiple_of(16) {
                complain!("{done} chunks of at most {chunks}");
            }
        };
        self.matrix = artifact::importance(merged, self.file, usize::try_from(chunks)?, &mut told)?;
        self.matrix.write(&self.written(aside))?;
        say!(
            "the model was run over {} chunks of {} tokens; their importance matrix is {}",
            self.matrix.chunks,
            self.matrix.chunk_size,
            self.place.display()
        );
        Ok(true)
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
        let there = if made { self.written(aside) } else { self.file.to_owned() };
        Ok(OriginImportance::new(&self.matrix, absolute(&self.place), &there)?)
    }
}

//! What one process writes and those that divide its model have: it asks for one piece after the other, and the others give their
//! parts. Where a model is there several times, the first is written.

use std::path::Path;

use crate::checkpoint::run::Saved;
use crate::distributed::Mesh;
use crate::models::Piece;
use crate::{Error, Result};

/// What ends the questions.
const OVER: u64 = u64::MAX;

/// The pieces of a checkpoint, of which each process has a part.
pub(super) struct Together<'a> {
    mesh: &'a Mesh,
    pieces: &'a [Piece<'a>],
}

impl<'a> Together<'a> {
    pub(super) fn new(mesh: &'a Mesh, pieces: &'a [Piece<'a>]) -> Self {
        Self { mesh, pieces }
    }

    /// The same pieces for the process that writes: whoever makes one has the others give their parts.
    pub(super) fn asked(&self) -> Vec<Piece<'a>> {
        let group = self.mesh.all();
        let ask = |(i, piece): (usize, &'a Piece<'a>)| {
            let make = move || {
                if !group.is_single() {
                    group.broadcast("a piece of the checkpoint", 0, vec![i as u64]).wait()?;
                }
                piece.make()
            };
            let asked = Piece::new(piece.name.clone(), piece.dtype, piece.shape.clone(), make);
            if group.is_single() { asked.copied_by(|| piece.begin_copy()) } else { asked }
        };
        self.pieces.iter().enumerate().map(ask).collect()
    }

    /// Tells the others that all is written, or that it is not.
    pub(super) fn end(&self, saved: Result<Saved>) -> Result<Saved> {
        let group = self.mesh.all();
        if group.is_single() {
            return saved;
        }
        let path = saved.as_ref().map_or(String::new(), |saved| saved.path.display().to_string());
        group.broadcast("a piece of the checkpoint", 0, vec![OVER]).wait()?;
        group.texts("the checkpoint", &path)?;
        saved
    }

    /// Gives this process's parts, until the one that writes is done. `step` and `epoch` are those of the checkpoint.
    ///
    /// # Errors
    /// Where it could not be written.
    pub(super) fn serve(&self, step: u64, epoch: u64) -> Result<Saved> {
        let group = self.mesh.all();
        loop {
            let asked = group.broadcast("a piece of the checkpoint", 0, vec![0u64]).wait()?;
            match asked.first().and_then(|&i| self.pieces.get(usize::try_from(i).ok()?)) {
                Some(piece) if self.mesh.replicas().is_main() => drop(piece.make()?),
                // Another copy of the model is written.
                Some(_) => {}
                None => break,
            }
        }
        match group.texts("the checkpoint", "")?.first().map(String::as_str) {
            None | Some("") => Err(Error::Training("rank 0 could not save the checkpoint, and says why".to_owned())),
            Some(path) => Ok(Saved { path: Path::new(path).to_path_buf(), step, epoch }),
        }
    }
}

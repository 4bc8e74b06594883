//! Checkpoints that are written while training goes on, of a copy of what is trained.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use candle_core::DType;

use super::save::save_pieces;
use super::weights::{Beside, Form};
use crate::checkpoint::run::{RunDir, Saved};
use crate::checkpoint::state::TrainingState;
use crate::checkpoint::{Checkpoint, CheckpointConfig};
use crate::metrics::Console;
use crate::models::{CopyOfPiece, Head, ModelSpec, Piece};
use crate::tokenizer::{StopTokens, TokenizerFiles};
use crate::{Error, Result};

/// Where checkpoints of a run are written, and what goes with them.
pub(super) struct Place {
    pub(super) run_dir: Arc<RunDir>,
    pub(super) config: CheckpointConfig,
    /// The metric that says which checkpoint is the best.
    pub(super) by: String,
    pub(super) base: Arc<Checkpoint>,
    pub(super) tokenizer: Arc<TokenizerFiles>,
    pub(super) stop: StopTokens,
    pub(super) shape: ModelSpec,
    /// The head that scores sequences, if there is one.
    pub(super) head: Option<Head>,
    /// The token that fills rows up.
    pub(super) pad: Option<u32>,
}

impl Place {
    /// Writes one: the pieces of the models and of their optimizers' state. Where there is no room and no console, nobody waits for it.
    ///
    /// # Errors
    /// As [`save_pieces`].
    pub(super) fn write(
        &self,
        state: &TrainingState,
        form: &Form,
        (models, optimizer): (&[Piece<'_>], &[Piece<'_>]),
        bytes: u64,
        console: Option<&mut Console>,
    ) -> Result<Saved> {
        let beside = Beside {
            base: &self.base,
            tokenizer: &self.tokenizer,
            stop: &self.stop,
            shape: &self.shape,
            head: self.head.as_ref(),
            pad: self.pad,
            shard: self.config.max_shard_bytes(),
        };
        let write = |dir: &Path| form.write(dir, models, &beside);
        save_pieces(&self.run_dir, &self.config, &self.by, (state, optimizer), bytes, console, write)
    }
}

/// A checkpoint that is copied and not yet written.
pub(super) struct Copied {
    pub(super) state: TrainingState,
    pub(super) form: Form,
    /// The weights of the models and the state of their optimizers behind them.
    pub(super) pieces: Vec<CopiedPiece>,
    /// How many of them are weights of the models.
    pub(super) of_models: usize,
    pub(super) bytes: u64,
}

/// A piece that stays as it was when it was copied. A card may still be copying it.
pub(super) struct CopiedPiece {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    copy: CopyOfPiece,
}

impl CopiedPiece {
    /// Copies a piece, or begins to. What is made of it is a copy already where it `is_gathered`.
    ///
    /// # Errors
    /// As [`Piece::make`].
    pub(super) fn of(piece: &Piece<'_>, is_gathered: bool) -> Result<Self> {
        let copy = match piece.begin_copy() {
            Some(copy) => copy,
            None => {
                let made = piece.make()?;
                let made = if is_gathered { made } else { made.copy()? };
                Arc::new(move || Ok(made.clone()))
            }
        };
        Ok(Self { name: piece.name.clone(), dtype: piece.dtype, shape: piece.shape.clone(), copy })
    }
}

impl Copied {
    fn write(&self, place: &Place) -> Result<Saved> {
        let piece = |of: &CopiedPiece| {
            let copy = Arc::clone(&of.copy);
            Piece::new(of.name.clone(), of.dtype, of.shape.clone(), move || copy())
        };
        let pieces: Vec<Piece<'_>> = self.pieces.iter().map(piece).collect();
        place.write(&self.state, &self.form, pieces.split_at(self.of_models), self.bytes, None)
    }
}

/// A checkpoint that is being written, here or by another process.
pub(super) struct Background {
    /// What it will be.
    saved: Saved,
    thread: Option<JoinHandle<Result<Saved>>>,
}

impl Background {
    /// Begins to write.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(super) fn begin(saved: Saved, copied: Copied, place: Place) -> Result<Self> {
        let thread = std::thread::Builder::new()
            .name("save".to_owned())
            .spawn(move || copied.write(&place))
            .map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        Ok(Self { saved, thread: Some(thread) })
    }

    /// One that another process writes.
    pub(super) fn elsewhere(saved: Saved) -> Self {
        Self { saved, thread: None }
    }

    /// Whether it is written, or cannot be.
    pub(super) fn is_over(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Waits until it is written.
    ///
    /// # Errors
    /// Where it could not be.
    pub(super) fn wait(mut self) -> Result<Saved> {
        let step = self.saved.step;
        let Some(thread) = self.thread.take() else { return Ok(self.saved.clone()) };
        let lost = || Err(Error::Training("the thread that writes checkpoints has ended".to_owned()));
        thread.join().unwrap_or_else(|_| lost()).map_err(|error| match error {
            Error::Full { path, message } => Error::Full { path, message: format!("{message}; {}", behind(step)) },
            error => Error::Training(format!("{error}; {}", behind(step))),
        })
    }
}

fn behind(step: u64) -> String {
    format!("the checkpoint of step {step} was being written while training went on (enable_async_checkpointing)")
}

/// A run that ends early leaves no checkpoint half written.
impl Drop for Background {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

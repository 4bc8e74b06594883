//! Where the inputs of blocks are until the backward pass, if nothing else of a block is kept.

use std::sync::Arc;

use super::backend::Backend;
use crate::Result;
use crate::offload::{OffloadFile, Region};

/// Who keeps inputs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keeper<'a> {
    /// They stay where they are.
    Memory,
    /// They are written to a file, and read from it.
    File(&'a Arc<OffloadFile>),
    /// As if there were a file: their memory goes, and other memory comes.
    Paper,
}

/// An input that is kept.
pub(super) enum Input<A> {
    Here(A),
    InFile(Region),
    OnPaper,
}

impl Keeper<'_> {
    /// Keeps the input of a block, which is number `number` of those that are kept. All are of the same size.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) fn keep<B: Backend>(self, backend: &B, number: usize, input: B::Acts) -> Result<Input<B::Acts>> {
        match self {
            Self::Memory => Ok(Input::Here(input)),
            Self::Paper => Ok(Input::OnPaper),
            Self::File(file) => {
                let Some(bytes) = backend.content(&input) else { return Ok(Input::Here(input)) };
                let region = file.part((number * bytes.len()) as u64, bytes.len() as u64)?;
                region.write(0, bytes)?;
                Ok(Input::InFile(region))
            }
        }
    }
}

impl<A> Input<A> {
    /// Brings it back, `[rows, cols]`.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) fn bring<B: Backend<Acts = A>>(self, backend: &B, (rows, cols): (usize, usize)) -> Result<A> {
        match self {
            Self::Here(input) => Ok(input),
            Self::OnPaper => Ok(backend.acts(rows, cols)),
            Self::InFile(region) => {
                let mut input = backend.acts(rows, cols);
                if let Some(bytes) = backend.content_mut(&mut input) {
                    region.read(0, bytes)?;
                }
                Ok(input)
            }
        }
    }

    /// It will be asked for soon.
    pub(super) fn expect(&self) {
        if let Self::InFile(region) = self {
            region.will_read(0, region.len());
        }
    }
}

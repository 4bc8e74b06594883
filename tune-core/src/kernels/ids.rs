//! Token ids that a vocabulary has: kernels read and write rows by them.

use crate::{Error, Result};

/// The target of a position that is not trained.
pub const IGNORE: u32 = u32::MAX;

/// Refuses a token that a vocabulary of so many does not have.
pub(crate) fn check_token_ids(ids: &[u32], vocab: usize) -> Result<()> {
    check("token id", ids.iter(), vocab)
}

/// Refuses a target that a vocabulary of so many does not have.
pub(crate) fn check_targets(targets: &[u32], vocab: usize) -> Result<()> {
    check("target token id", targets.iter().filter(|&&t| t != IGNORE), vocab)
}

fn check<'a>(what: &str, mut ids: impl Iterator<Item = &'a u32>, vocab: usize) -> Result<()> {
    match ids.find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::setup(format!(
            "{what} {id} is outside the model's vocabulary of {vocab}; the tokenizer and the checkpoint do not belong together"
        ))),
        None => Ok(()),
    }
}

//! Importance matrices of data: a model is run over text, and what its layers are given is summed up.

use std::path::Path;

use super::proof::precision;
use crate::checkpoint::gguf::Importance;
use crate::checkpoint::merge::Merged;
use crate::data::{Loader, LoaderOptions, running_text};
use crate::device::Compute;
use crate::engine::{Inputs, observe};
use crate::models::LoadOptions;
use crate::{Error, Result};

/// The tokens of a chunk, as in llama.cpp's `llama-imatrix`.
pub const CHUNK: usize = 512;

/// The importance matrix of a model on the first `chunks` rows of `data`, of 512 tokens each or as many as the model takes: documents or
/// conversations, see [`running_text`]. `told` is given the number of rows that are done.
///
/// # Errors
/// Data that cannot be read or holds no text, and a model that does not fit into memory.
pub fn importance(merged: &Merged, data: &Path, chunks: usize, told: &mut dyn FnMut(usize)) -> Result<Importance> {
    let spec = merged.spec();
    let len = CHUNK.min(spec.max_position_embeddings);
    let loader = Loader::open([&running_text(data)?], merged.tokenizer(), Some(len), LoaderOptions::default())?;
    let dtype = precision(&spec)?.ok_or_else(|| {
        Error::setup("the model does not fit into memory: an importance matrix needs it to be run over the data")
    })?;
    let options = LoadOptions { dtype, device: Compute::Processor, train_weights: false, lora: None };
    let (model, inputs) = (merged.trained(&options)?, Inputs::default());
    let mut done = 0;
    for batch in loader.epoch(0).batches(0).take(chunks) {
        observe(&model, &batch?, &inputs)?;
        done += 1;
        told(done);
    }
    let mut matrix = Importance::of_inputs(&spec, inputs)?;
    matrix.datasets = vec![data.display().to_string()];
    (matrix.chunks, matrix.chunk_size) = (u32::try_from(done).unwrap_or(u32::MAX), len as u32);
    Ok(matrix)
}

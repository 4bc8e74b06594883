//! Text from a model, one token at a time.

mod sampler;

pub use sampler::{Sampler, SamplerOptions};

use crate::models::{Decoder, KvCache};
use crate::{Error, Result};

/// When a generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOptions {
    /// At most so many new tokens.
    pub max_new_tokens: usize,
    /// Any of these ends it and is not part of the answer.
    pub stop_tokens: Vec<u32>,
}

/// The tokens that follow `prompt`, without the stop token. `on_token` sees each as it comes.
///
/// # Errors
/// An empty prompt, one that leaves no room in the model's longest sequence, or a token outside the vocabulary.
pub fn generate(
    model: &Decoder,
    prompt: &[u32],
    sampler: &mut Sampler,
    stop: &StopOptions,
    mut on_token: impl FnMut(u32) -> Result<()>,
) -> Result<Vec<u32>> {
    let longest = model.config.max_position_embeddings;
    if prompt.is_empty() {
        return Err(Error::setup("the prompt is empty: there is nothing to continue"));
    }
    if prompt.len() >= longest {
        return Err(Error::setup(format!(
            "the prompt has {} tokens; the model reads at most {longest}, answer included",
            prompt.len()
        )));
    }
    let mut cache = KvCache::new(model.blocks.len());
    let mut answer = Vec::new();
    let mut newest = prompt.to_vec();
    while answer.len() < stop.max_new_tokens && cache.len() + newest.len() < longest {
        let token = sampler.sample(&model.next_logits(&newest, &mut cache)?);
        if stop.stop_tokens.contains(&token) {
            break;
        }
        answer.push(token);
        on_token(token)?;
        newest = vec![token];
    }
    Ok(answer)
}

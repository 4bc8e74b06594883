//! Text from a model, one token at a time.
//!
//! What is drawn for a prompt depends on the model, the prompt and its sampler alone, not on what is answered beside it.

mod continuous;
mod groups;
mod sampler;
mod talk;

pub use continuous::{Continuous, Event, Request, Scored};
pub use groups::{Sampled, sample_groups};
pub use sampler::{Sampler, SamplerOptions};
pub use talk::{End, Reply, Talk};

pub use crate::engine::Kernels;
use crate::engine::{Drawn, Sequences};
use crate::models::Decoder;
use crate::{Error, Result};

/// When a generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOptions {
    /// At most this many new tokens.
    pub max_new_tokens: usize,
    /// Any of these ends it and is not part of the answer.
    pub stop_tokens: Vec<u32>,
}

/// The tokens that follow `prompt`, without the stop token, by the fastest kernels. `on_token` sees each as it comes.
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
    let samplers = std::slice::from_mut(sampler);
    let mut answers = generate_many(model, &[prompt], samplers, stop, Kernels::Fast, |_, token| on_token(token))?;
    Ok(answers.pop().unwrap_or_default())
}

/// The tokens that follow each of `prompts`, drawn by its own sampler, all of them at a time. `on_token` sees each with the
/// number of its prompt. What follows a prompt does not depend on the others. With [`Kernels::OfTraining`] the log-probabilities
/// behind each token are, to the last bit, those of training.
///
/// # Errors
/// As [`generate`], for any of them; and another number of samplers than of prompts.
pub fn generate_many(
    model: &Decoder,
    prompts: &[&[u32]],
    samplers: &mut [Sampler],
    stop: &StopOptions,
    kernels: Kernels,
    mut on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let longest = model.config.max_position_embeddings;
    if samplers.len() != prompts.len() {
        return Err(Error::setup(format!("{} samplers for {} prompts", samplers.len(), prompts.len())));
    }
    for prompt in prompts {
        if prompt.is_empty() {
            return Err(Error::setup("the prompt is empty: there is nothing to continue"));
        }
        if prompt.len() >= longest {
            return Err(Error::setup(format!(
                "the prompt has {} tokens; the model reads at most {longest}, answer included",
                prompt.len()
            )));
        }
    }
    // The last token is drawn, and not read.
    let room = |prompt: &&[u32]| longest.min(prompt.len() + stop.max_new_tokens.saturating_sub(1));
    let mut sequences = Sequences::new(model, &prompts.iter().map(room).collect::<Vec<_>>(), kernels)?;
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut newest: Vec<(usize, Vec<u32>)> = Vec::new();
    if stop.max_new_tokens > 0 {
        newest.extend(prompts.iter().map(|prompt| prompt.to_vec()).enumerate());
    }
    while !newest.is_empty() {
        let new: Vec<_> = newest.iter().map(|(i, ids)| (*i, ids.as_slice(), samplers[*i].next(None))).collect();
        let drawn = sequences.draw(&new)?;
        let running: Vec<usize> = newest.drain(..).map(|(i, _)| i).collect();
        for (i, Drawn { token, .. }) in running.into_iter().zip(drawn) {
            if stop.stop_tokens.contains(&token) {
                continue;
            }
            answers[i].push(token);
            on_token(i, token)?;
            if answers[i].len() < stop.max_new_tokens && sequences.len(i) + 1 < longest {
                newest.push((i, vec![token]));
            }
        }
    }
    Ok(answers)
}

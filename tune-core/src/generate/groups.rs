//! Several answers to each prompt, drawn by the model's own probabilities.

use super::{Continuous, End, Sampler, StopOptions};
use crate::engine::{Behind, Draw, Drawn, Kernels, New, Sequences, Wanted};
use crate::models::Decoder;
use crate::{Error, Result};

/// An answer that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its tokens, with the stop token where it ended by one.
    pub ids: Vec<u32>,
    /// The log-probability of each, in nats, by the model's distribution at the temperature of its sampler, at 0 by its own: to the last
    /// bit what [`engine::log_probs_at`](crate::engine::log_probs_at) gives for it. (On a card the last bits may differ.)
    pub log_probs: Vec<f64>,
    /// How it ended.
    pub end: End,
}

/// `samples` answers to each of `prompts`, all of them at a time. `sampler` makes what draws an answer, given the numbers of its
/// prompt and of the answer; what is drawn depends on nothing else. A prompt is read once: its answers begin with copies of its keys
/// and values.
///
/// Processes that divide a model draw at the same time, each its own answers and as many prompts as it has, or none: who is done
/// reads on with the others until all are, for each block is gathered from all.
///
/// # Errors
/// Another process that is gone; an empty prompt, one that leaves no room in the model's longest sequence, a token outside the vocabulary.
pub fn sample_groups(
    model: &Decoder,
    prompts: &[&[u32]],
    samples: usize,
    stop: &StopOptions,
    sampler: impl Fn(usize, usize) -> Sampler,
) -> Result<Vec<Vec<Sampled>>> {
    if samples == 0 || stop.max_new_tokens == 0 {
        return Err(Error::setup("a prompt is to be answered once or more often, by one token or more"));
    }
    let longest = model.config.max_position_embeddings;
    let mut rooms = Vec::with_capacity(prompts.len() * samples);
    for prompt in prompts {
        let room = Continuous::room_for(&model.config, prompt, stop.max_new_tokens)?;
        rooms.extend(std::iter::repeat_n(room, samples));
    }
    let shards = model.mesh().shards();
    if prompts.is_empty() && shards.is_single() {
        return Ok(Vec::new());
    }
    // A process that has nothing to read while others do reads one token again and again.
    let idle = rooms.len();
    let capacities: Vec<usize> = rooms.iter().copied().chain((!shards.is_single()).then_some(1)).collect();
    let mut sequences = Sequences::new(model, &capacities, Kernels::OfTraining)?;
    let mut samplers: Vec<Sampler> = (0..rooms.len()).map(|i| sampler(i / samples, i % samples)).collect();
    let mut next = |i: usize| {
        let temperature = samplers[i].temperature_of_log_probs();
        samplers[i].next(Some(temperature))
    };
    // The first answer to a prompt reads it, and all of them draw by its logits.
    let first: Vec<Draw> = (0..rooms.len()).map(&mut next).collect();
    let new = prompts.iter().zip(first.chunks(samples)).enumerate().map(|(i, (prompt, draws))| New {
        sequence: i * samples,
        ids: prompt,
        wanted: Wanted::Tokens(draws),
    });
    let new: Vec<New<'_>> = new.collect();
    let mut drawn: Vec<Drawn> = match new.is_empty() {
        true => read_along(&mut sequences, idle)?,
        false => sequences.extend_with(&new)?.into_iter().flat_map(Behind::into_tokens).collect(),
    };
    let copies: Vec<(usize, usize)> =
        (0..rooms.len()).map(|i| (i / samples * samples, i)).filter(|(from, to)| from != to).collect();
    sequences.copy(&copies)?;

    let mut answers: Vec<Sampled> =
        rooms.iter().map(|_| Sampled { ids: Vec::new(), log_probs: Vec::new(), end: End::Length }).collect();
    let mut running: Vec<usize> = (0..rooms.len()).collect();
    // Of all processes.
    let mut goes_on = shards.all_reduce("answers that are drawn", vec![running.len() as u64]).wait()?[0] > 0;
    while goes_on {
        let mut newest: Vec<(usize, u32)> = Vec::with_capacity(running.len());
        for (&i, Drawn { token, log_prob }) in running.iter().zip(drawn) {
            let answer = &mut answers[i];
            answer.ids.push(token);
            answer.log_probs.extend(log_prob);
            if stop.stop_tokens.contains(&token) {
                answer.end = End::Stop;
            } else if answer.ids.len() < stop.max_new_tokens {
                match sequences.len(i) + 1 < longest {
                    true => newest.push((i, token)),
                    false => answer.end = End::Full,
                }
            }
        }
        let new: Vec<_> = newest.iter().map(|(i, token)| (*i, std::slice::from_ref(token), next(*i))).collect();
        goes_on = shards.all_reduce("answers that are drawn", vec![new.len() as u64]).wait()?[0] > 0;
        drawn = match (new.is_empty(), goes_on) {
            (false, _) => sequences.draw(&new)?,
            (true, true) => read_along(&mut sequences, idle)?,
            (true, false) => Vec::new(),
        };
        running = newest.iter().map(|(i, _)| *i).collect();
    }
    let mut answers = answers.into_iter();
    Ok(prompts.iter().map(|_| answers.by_ref().take(samples).collect()).collect())
}

/// Takes part in gathering the blocks that others need, and keeps nothing of what comes out.
fn read_along(sequences: &mut Sequences<'_>, idle: usize) -> Result<Vec<Drawn>> {
    sequences.truncate(idle, 0);
    sequences.draw(&[(idle, &[0][..], Draw::LIKELIEST)])?;
    Ok(Vec::new())
}

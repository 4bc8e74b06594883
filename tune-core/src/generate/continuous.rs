//! Continuous batching: sequences join and leave between tokens.

use super::{End, Sampler};
use crate::engine::{Behind, Draw, Drawn, Kernels, New, Sequences, Wanted, log_prob};
use crate::models::{Decoder, ModelSpec};
use crate::{Error, Result};

/// Of a prompt whose tokens are scored, this many are read at a time: the logits of all of them are in memory.
const SCORED: usize = 64;

/// What a model is asked for.
#[derive(Debug)]
pub struct Request {
    /// The number of the model.
    pub model: usize,
    /// The tokens that are to be continued.
    pub prompt: Vec<u32>,
    /// What draws the next one.
    pub sampler: Sampler,
    /// At most this many new tokens; with none, the prompt is only read.
    pub max_new_tokens: usize,
    /// Any of these ends the answer and is not part of it.
    pub stop_tokens: Vec<u32>,
    /// Whether tokens get their log-probabilities, and those of how many likeliest ones.
    pub scores: Option<usize>,
    /// Whether the prompt's tokens get them, too.
    pub scores_prompt: bool,
}

/// A token with its log-probability behind the tokens before it, by the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The token.
    pub id: u32,
    /// Where it was asked for. The first token of a sequence has none.
    pub log_prob: Option<f64>,
    /// The likeliest tokens in its place, the likeliest first.
    pub likeliest: Vec<(u32, f64)>,
}

/// What happened to a sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Tokens of its prompt were read that are to be scored.
    Read(Vec<Scored>),
    /// A new token.
    Token(Scored),
    /// A stop token, which is no part of the answer; the end follows.
    Stop(Scored),
    /// It has ended, and left.
    End(End),
}

/// Sequences of several models, each of which gets one token a step, whatever model it is of.
///
/// What is drawn for a sequence does not depend on the others. Long prompts are read in pieces, so that running answers do not
/// wait for them; where frequencies depend on a sequence's length, whole.
pub struct Continuous<'m> {
    models: Vec<&'m Decoder>,
    sequences: Sequences<'m>,
    running: Vec<Running>,
    /// Tokens of prompts that are read in a step, at most.
    piece: usize,
    /// Whether prompts may be read in pieces.
    in_pieces: bool,
    /// Who is read first in the next step.
    first: usize,
}

struct Running {
    sequence: usize,
    request: Request,
    /// Tokens of the prompt that have been read.
    read: usize,
    /// New tokens.
    drawn: usize,
    /// The newest of them, which has not been read.
    newest: Option<u32>,
}

impl Running {
    fn is_reading(&self) -> bool {
        self.read < self.request.prompt.len()
    }
}

impl<'m> Continuous<'m> {
    /// Memory for `room` tokens of sequences of `models`, which differ in their adapters alone. In a step about `piece` tokens of
    /// prompts are read.
    ///
    /// # Errors
    /// As [`Sequences::of_many`].
    pub fn new(models: &[&'m Decoder], room: usize, piece: usize, kernels: Kernels) -> Result<Self> {
        let sequences = Sequences::of_many(models, room, kernels)?;
        let in_pieces = !models.iter().any(|model| model.config.rotary.iter().any(|table| table.depends_on_length()));
        Ok(Self { models: models.to_vec(), sequences, running: Vec::new(), piece: piece.max(2), in_pieces, first: 0 })
    }

    /// How many sequences are running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether no sequence is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// How many sequences of a model are running.
    #[must_use]
    pub fn of_model(&self, model: usize) -> usize {
        self.running.iter().filter(|running| running.request.model == model).count()
    }

    /// The tokens that a request takes memory for.
    ///
    /// # Errors
    /// No prompt, one that leaves no room in the model's longest sequence, a token outside the vocabulary.
    pub fn room_for(model: &ModelSpec, prompt: &[u32], max_new_tokens: usize) -> Result<usize> {
        let (longest, vocab) = (model.max_position_embeddings, model.vocab_size);
        if prompt.is_empty() {
            return Err(Error::setup("the prompt is empty: there is nothing to continue"));
        }
        if prompt.len() >= longest + usize::from(max_new_tokens == 0) {
            return Err(Error::setup(format!(
                "the prompt has {} tokens; the model reads at most {longest}, answer included",
                prompt.len()
            )));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::setup(format!("the token {id} is not in the model's vocabulary of {vocab}")));
        }
        // The last token is drawn, and not read.
        Ok(longest.min(prompt.len() + max_new_tokens.saturating_sub(1)))
    }

    /// Has a sequence join in the next step; returns its number. Gives the request back where there is no room now.
    ///
    /// # Errors
    /// As [`Continuous::room_for`].
    pub fn join(&mut self, request: Request) -> Result<Result<usize, Request>> {
        let room = Self::room_for(&self.models[request.model].config, &request.prompt, request.max_new_tokens)?;
        let Some(sequence) = self.sequences.join(request.model, room) else { return Ok(Err(request)) };
        self.running.push(Running { sequence, request, read: 0, drawn: 0, newest: None });
        Ok(Ok(sequence))
    }

    /// Ends a sequence; its memory is free at once.
    pub fn leave(&mut self, sequence: usize) {
        if let Some(i) = self.running.iter().position(|running| running.sequence == sequence) {
            self.running.remove(i);
            self.sequences.leave(sequence);
        }
    }

    /// Draws a token for each sequence whose prompt is read, and reads some of the other prompts. Returns what happened, by the
    /// numbers of sequences.
    ///
    /// # Errors
    /// What fails on a card.
    pub fn step(&mut self) -> Result<Vec<(usize, Event)>> {
        let taken = self.take();
        let draws: Vec<Draw> = taken.iter().map(|&(i, count)| self.running[i].next(count)).collect();
        let new = taken.iter().zip(&draws).map(|(&(i, count), draw)| {
            let running = &self.running[i];
            let ids = match &running.newest {
                Some(id) => std::slice::from_ref(id),
                None => &running.request.prompt[running.read..][..count],
            };
            New { sequence: running.sequence, ids, wanted: running.wants(count, draw) }
        });
        let behind = self.sequences.extend_with(&new.collect::<Vec<_>>())?;
        let mut events = Vec::new();
        let mut ended = Vec::new();
        for (((i, count), draw), behind) in taken.into_iter().zip(&draws).zip(behind) {
            let running = &mut self.running[i];
            let (sequence, vocab) = (running.sequence, self.models[running.request.model].config.vocab_size);
            if running.newest.take().is_none() {
                if let Behind::Logits(logits) = &behind {
                    events.extend(running.score(logits, vocab, count).map(|event| (sequence, event)));
                }
                running.read += count;
                if running.is_reading() {
                    continue;
                }
            }
            let scored = match behind {
                Behind::Logits(logits) => {
                    let last = &logits[logits.len() - vocab..];
                    Scored::new(draw.token(last), last, running.request.scores)
                }
                Behind::Tokens(drawn) => {
                    let Some(&Drawn { token, log_prob }) = drawn.first() else { continue };
                    Scored { id: token, log_prob, likeliest: Vec::new() }
                }
            };
            let longest = self.models[running.request.model].config.max_position_embeddings;
            let end = running.take_token(scored, self.sequences.len(sequence) + 1 >= longest, |event| {
                events.push((sequence, event));
            });
            if let Some(end) = end {
                events.push((sequence, Event::End(end)));
                ended.push(sequence);
            }
        }
        ended.into_iter().for_each(|sequence| self.leave(sequence));
        Ok(events)
    }

    /// Who gets on in this step, by its place among those who are running, and of how many tokens of its prompt.
    fn take(&mut self) -> Vec<(usize, usize)> {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let (mut left, count) = (self.piece, self.running.len());
        let mut next = self.first;
        for i in (0..count).map(|i| (self.first + i) % count) {
            let running = &self.running[i];
            if !running.is_reading() {
                taken.push((i, 0));
                continue;
            }
            let rest = running.request.prompt.len() - running.read;
            let most = if running.request.scores_prompt { left.min(SCORED) } else { left };
            // One token alone would be computed as a new one is, which rounds otherwise: it is never the rest.
            let piece = match self.in_pieces && rest > most + 1 {
                true => most,
                false => rest,
            };
            if left < 2 {
                continue;
            }
            taken.push((i, piece));
            left = left.saturating_sub(piece);
            next = if piece < rest { i } else { i + 1 };
        }
        self.first = next % count.max(1);
        taken.sort_unstable();
        taken
    }
}

impl Running {
    /// Whether a token is drawn when `count` more tokens of the prompt are read.
    fn draws(&self, count: usize) -> bool {
        self.request.max_new_tokens > 0 && self.read + count >= self.request.prompt.len()
    }

    /// What is drawn then; of a prompt that goes on any token, which nobody looks at and which is less than its logits are.
    fn next(&mut self, count: usize) -> Draw {
        match self.draws(count) {
            true => self.request.sampler.next(self.request.scores.map(|_| 1.0)),
            false => Draw::LIKELIEST,
        }
    }

    /// What is wanted then. Logits come here only for those who ask for other tokens' scores than that of the drawn one.
    fn wants<'d>(&self, count: usize, draw: &'d Draw) -> Wanted<'d> {
        let Request { scores, scores_prompt, .. } = &self.request;
        if self.newest.is_none() && *scores_prompt && scores.is_some() {
            return Wanted::Every;
        }
        match self.draws(count) && scores.is_some_and(|likeliest| likeliest > 0) {
            true => Wanted::Last,
            false => Wanted::Tokens(std::slice::from_ref(draw)),
        }
    }

    /// The scores of `count` tokens of the prompt, where they are asked for. The logits `[count, vocab]` behind a token score the
    /// next one.
    fn score(&self, logits: &[f32], vocab: usize, count: usize) -> Option<Event> {
        let likeliest = self.request.scores.filter(|_| self.request.scores_prompt)?;
        let prompt = &self.request.prompt;
        let mut scored = Vec::with_capacity(count + 1);
        if self.read == 0 {
            scored.push(Scored { id: prompt[0], log_prob: None, likeliest: Vec::new() });
        }
        for (logits, &id) in logits.chunks_exact(vocab).zip(&prompt[self.read + 1..]) {
            scored.push(Scored::new(id, logits, Some(likeliest)));
        }
        Some(Event::Read(scored))
    }

    /// Goes on by the token that was drawn; returns how the answer ended, if it did.
    fn take_token(&mut self, scored: Scored, is_full: bool, tell: impl FnOnce(Event)) -> Option<End> {
        if self.request.max_new_tokens == 0 {
            return Some(End::Length);
        }
        let id = scored.id;
        if self.request.stop_tokens.contains(&id) {
            tell(Event::Stop(scored));
            return Some(End::Stop);
        }
        tell(Event::Token(scored));
        self.drawn += 1;
        self.newest = Some(id);
        match (self.drawn >= self.request.max_new_tokens, is_full) {
            (true, _) => Some(End::Length),
            (false, true) => Some(End::Full),
            (false, false) => None,
        }
    }
}

impl Scored {
    fn new(id: u32, logits: &[f32], scores: Option<usize>) -> Self {
        let Some(count) = scores else { return Self { id, log_prob: None, likeliest: Vec::new() } };
        let own = log_prob(logits, id);
        let of_all = f64::from(logits[id as usize]) - own;
        let mut first: Vec<u32> = Vec::with_capacity(count + 1);
        for (other, &logit) in logits.iter().enumerate() {
            if count == 0 || (first.len() == count && logit <= logits[first[count - 1] as usize]) {
                continue;
            }
            first.insert(first.partition_point(|&before| logits[before as usize] >= logit), other as u32);
            first.truncate(count);
        }
        let of_one = |other: u32| if other == id { own } else { f64::from(logits[other as usize]) - of_all };
        Self { id, log_prob: Some(own), likeliest: first.into_iter().map(|other| (other, of_one(other))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_add_up() {
        let logits: Vec<f32> = [0.1f32, 0.4, 0.2, 0.25, 0.05].iter().map(|p| p.ln()).collect();
        let scored = Scored::new(2, &logits, Some(3));
        let ids: Vec<u32> = scored.likeliest.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3, 2]);
        assert!((scored.log_prob.unwrap() - 0.2f64.ln()).abs() < 1e-6);
        for ((_, found), p) in scored.likeliest.iter().zip([0.4f64, 0.25, 0.2]) {
            assert!((found - p.ln()).abs() < 1e-6);
        }
        assert_eq!(Scored::new(2, &logits, Some(0)).likeliest, []);
        assert_eq!(Scored::new(2, &logits, None).log_prob, None);
        // Among equals the lowest id is likelier, as for the sampler.
        assert_eq!(Scored::new(0, &[1.0, 2.0, 2.0], Some(1)).likeliest[0].0, 1);
    }
}

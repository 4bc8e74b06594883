//! A conversation with a model: what it has read stays in memory from turn to turn.

use super::{Sampler, StopOptions};
use crate::engine::{Draw, Kernels, Sequences};
use crate::models::Decoder;
use crate::{Error, Result};

/// Room is taken for this many tokens at a time.
const STEP: usize = 1024;

/// A model that remembers what it has read.
pub struct Talk<'m> {
    model: &'m Decoder,
    sequences: Option<Sequences<'m>>,
    room: usize,
    /// The tokens that it has read.
    past: Vec<u32>,
}

/// How an answer came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model ended it.
    Stop,
    /// It has as many tokens as it may have.
    Length,
    /// The conversation is as long as the model can read.
    Full,
    /// Whoever saw the tokens did not want more.
    Interrupted,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// How it ended.
    pub end: End,
    /// Tokens of the prompt that were read now, and not known from before.
    pub read: usize,
}

impl<'m> Talk<'m> {
    /// A conversation that has not begun.
    #[must_use]
    pub fn new(model: &'m Decoder) -> Self {
        Self { model, sequences: None, room: 0, past: Vec::new() }
    }

    /// The tokens that follow `prompt`, which is the whole conversation so far. `on_token` sees each as it comes, and says
    /// whether to go on.
    ///
    /// # Errors
    /// An empty prompt, or one that leaves no room in the model's longest sequence.
    pub fn answer(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        stop: &StopOptions,
        mut on_token: impl FnMut(u32) -> Result<bool>,
    ) -> Result<Reply> {
        let longest = self.model.config.max_position_embeddings;
        if prompt.is_empty() {
            return Err(Error::setup("the prompt is empty: there is nothing to continue"));
        }
        if prompt.len() >= longest {
            return Err(Error::setup(format!(
                "the conversation has {} tokens; the model reads at most {longest}, answer included",
                prompt.len()
            )));
        }
        let common = self.past.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is read again: what follows it is asked for.
        self.keep(common.min(prompt.len() - 1), longest.min(prompt.len() + stop.max_new_tokens))?;
        let read = prompt.len() - self.past.len();
        let mut new = prompt[self.past.len()..].to_vec();
        let mut reply = Reply { tokens: Vec::new(), end: End::Length, read };
        while reply.tokens.len() < stop.max_new_tokens {
            let token = self.read(&new, sampler.next(None))?;
            if stop.stop_tokens.contains(&token) {
                reply.end = End::Stop;
                break;
            }
            reply.tokens.push(token);
            if !on_token(token)? {
                reply.end = End::Interrupted;
                break;
            }
            if self.past.len() + 1 >= longest {
                reply.end = End::Full;
                break;
            }
            new = vec![token];
        }
        Ok(reply)
    }

    /// Forgets all but the first `len` tokens, and takes room for `room` of them.
    fn keep(&mut self, len: usize, room: usize) -> Result<()> {
        if room > self.room || self.sequences.is_none() {
            self.room = room.next_multiple_of(STEP).min(self.model.config.max_position_embeddings.max(room));
            // What was there before is read again: that is seldom, and simpler than moving it.
            self.sequences = Some(Sequences::new(self.model, &[self.room], Kernels::Fast)?);
            self.past.clear();
            return Ok(());
        }
        if let Some(sequences) = &mut self.sequences {
            sequences.truncate(0, len);
        }
        self.past.truncate(len);
        Ok(())
    }

    /// Reads tokens, and draws the one that follows.
    fn read(&mut self, ids: &[u32], draw: Draw) -> Result<u32> {
        let Some(sequences) = &mut self.sequences else { return Ok(0) };
        let drawn = sequences.draw(&[(0, ids, draw)])?;
        self.past.extend(ids);
        Ok(drawn.first().map_or(0, |drawn| drawn.token))
    }
}

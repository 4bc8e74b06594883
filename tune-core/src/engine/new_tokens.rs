//! What sequences grow by, and what is wanted behind it: logits, or tokens that are drawn by them.

use super::log_prob_at;
use crate::kernels::attention::Stretch;
use crate::kernels::{Draw, Rotary};
use crate::models::Decoder;

/// What a sequence grows by.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its number.
    pub sequence: usize,
    /// The new tokens.
    pub ids: &'a [u32],
    /// What is wanted.
    pub wanted: Wanted<'a>,
}

/// What is wanted of a sequence that grows.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// The logits `[vocab]` behind its last token.
    Last,
    /// The logits `[new tokens, vocab]` behind every new token.
    Every,
    /// Tokens to follow its last one. They are drawn where logits are: a card keeps these.
    Tokens(&'a [Draw]),
}

/// What is behind the new tokens of a sequence, as it was wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Behind {
    /// Logits.
    Logits(Vec<f32>),
    /// Tokens, one for each draw.
    Tokens(Vec<Drawn>),
}

impl Behind {
    /// The logits; none where tokens were wanted.
    #[must_use]
    pub fn into_logits(self) -> Vec<f32> {
        match self {
            Self::Logits(logits) => logits,
            Self::Tokens(_) => Vec::new(),
        }
    }

    /// The tokens; none where logits were wanted.
    #[must_use]
    pub fn into_tokens(self) -> Vec<Drawn> {
        match self {
            Self::Logits(_) => Vec::new(),
            Self::Tokens(tokens) => tokens,
        }
    }
}

/// A token that was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// It.
    pub token: u32,
    /// Its log-probability in nats, if that was wanted: on the processor that of [`log_prob_at`], to the last bit.
    pub log_prob: Option<f64>,
}

/// What is new in a step by the newest tokens of sequences. All other numbers that it reads are where they were.
#[derive(Clone, Copy)]
pub(crate) struct NewTokens<'a> {
    /// Whose step it is.
    pub(crate) model: &'a Decoder,
    /// The tokens.
    pub(crate) ids: &'a [u32],
    /// Where their keys and values go, of `keys` rows.
    pub(crate) rows: &'a [usize],
    pub(crate) keys: usize,
    /// Where each looks.
    pub(crate) stretches: &'a [Stretch],
    /// The angles of their positions, by each of the model's tables.
    pub(crate) rotary: &'a [Rotary],
    /// Those whose logits are computed.
    pub(crate) wanted: &'a [usize],
    /// What is drawn, each by the logits of one of these, given by its place among them.
    pub(crate) draws: &'a [(usize, Draw)],
    /// Whether anybody wants the logits themselves.
    pub(crate) wants_logits: bool,
}

/// What comes of a step: `[wanted, vocab]` if anybody wants that, and what was drawn.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    pub(crate) logits: Vec<f32>,
    pub(crate) drawn: Vec<Drawn>,
}

impl NewTokens<'_> {
    /// What comes of the step, for logits that are here.
    pub(crate) fn drawn_by(&self, logits: Vec<f32>) -> Answered {
        let vocab = self.model.config.vocab_size;
        let draw = |&(row, draw): &(usize, Draw)| {
            let logits = &logits[row * vocab..][..vocab];
            let token = draw.token(logits);
            Drawn { token, log_prob: draw.scored.map(|temperature| log_prob_at(logits, token, temperature)) }
        };
        let drawn = self.draws.iter().map(draw).collect();
        Answered { logits: if self.wants_logits { logits } else { Vec::new() }, drawn }
    }
}

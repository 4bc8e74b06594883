//! An optimizer's state in blocks of eight bits on a card, and the steps that change it there.

use std::sync::Arc;

use candle_core::{TensorId, Var};
use tune_cuda::{AdamW, Buffer, Maps, Moved8bit};

use super::Number;
use super::card::{Card, of_card};
use super::trained::{Numbers, OnCard, Trained, held};
use crate::Result;

/// A running mean on a card: a code for each number, and a scale for each block of them.
#[derive(Debug)]
pub(crate) struct BlocksOnCard {
    card: Arc<Card>,
    codes: Buffer<u8>,
    scales: Buffer<f32>,
}

impl BlocksOnCard {
    pub(crate) fn of(card: &Arc<Card>, codes: &[u8], scales: &[f32]) -> Self {
        let context = &card.context;
        Self { codes: context.upload(codes), scales: context.upload(scales), card: Arc::clone(card) }
    }

    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        self.codes.len()
    }

    /// The codes, when all work so far is done.
    pub(crate) fn codes(&self) -> Result<Vec<u8>> {
        self.card.context.download(&self.codes).map_err(of_card)
    }

    /// The scales, when all work so far is done.
    pub(crate) fn scales(&self) -> Result<Vec<f32>> {
        self.card.context.download(&self.scales).map_err(of_card)
    }
}

/// One parameter of a step, and what it is moved by.
pub(crate) struct Move8bit<'a> {
    /// The parameter.
    pub(crate) var: &'a Var,
    /// Its gradient.
    pub(crate) gradient: &'a OnCard,
    /// The means of gradients and of their squares.
    pub(crate) means: &'a mut [BlocksOnCard; 2],
    /// What random rounding uses.
    pub(crate) key: u64,
}

/// How they are moved: step `step` (from 1) of a rule, with gradients times `scale`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step8bit<'a> {
    pub(crate) rule: AdamW,
    pub(crate) maps: Maps<'a>,
    pub(crate) scale: f64,
    pub(crate) step: u64,
}

impl Card {
    /// Moves parameters, in one go for each type of weight. Returns when that is queued.
    ///
    /// # Errors
    /// A tensor that no card trains, and one that a run holds at this moment.
    pub(crate) fn step_8bit(&self, how: Step8bit<'_>, moves: Vec<Move8bit<'_>>) -> Result<()> {
        self.with_trained(moves, |one| one.var, |taken| self.go_8bit(how, taken))
    }

    fn go_8bit(&self, how: Step8bit<'_>, taken: &mut [(TensorId, Trained, Move8bit<'_>)]) -> Result<()> {
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        for (_, trained, Move8bit { gradient, means: [first, second], key, .. }) in taken {
            let copy = trained.rounded.as_mut().map(|copy| Arc::get_mut(copy).ok_or_else(held)).transpose()?;
            trained.ahead = true;
            let (first, second) = ((&mut first.codes, &mut first.scales), (&mut second.codes, &mut second.scales));
            let (gradient, key) = (&gradient.values, *key);
            match &mut trained.numbers {
                Numbers::F32(weight) => {
                    let weight = Arc::get_mut(weight).ok_or_else(held)?;
                    wide.push(Moved8bit { weight, first, second, gradient, key, copy });
                }
                Numbers::Bf16(weight) => {
                    let weight = Arc::get_mut(weight).ok_or_else(held)?;
                    narrow.push(Moved8bit { weight, first, second, gradient, key, copy: None });
                }
            }
        }
        self.sweep_8bit(how, wide);
        self.sweep_8bit(how, narrow);
        Ok(())
    }

    fn sweep_8bit<W: Number>(&self, Step8bit { rule, maps, scale, step }: Step8bit<'_>, moved: Vec<Moved8bit<'_, W>>) {
        if !moved.is_empty() {
            self.context.adamw_8bit(moved, maps, rule, scale as f32, step);
        }
    }
}

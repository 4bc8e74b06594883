//! Where gradients go: gathered for a step, or applied as they come.

use super::by_place::ByPlace;
use super::{Gradient, Optimizer};
use crate::distributed::Group;
use crate::engine;
use crate::models::{Decoder, Parameter};
use crate::{Later, Result};

/// Takes each trained parameter's gradient once per micro-batch.
pub trait GradientSink: Send {
    /// The gradient of the scaled loss with respect to `parameter`, in f32 or in its dtype.
    fn take(&mut self, parameter: &Parameter, gradient: Gradient) -> Result<()>;

    /// Gives away what was added up so far for `parameter`, if that is on a card, so that the next gradient is added to it where it is
    /// computed. Whoever takes it hands in the sum.
    fn begun(&mut self, _parameter: &Parameter) -> Option<Gradient> {
        None
    }
}

/// The gradients of one optimizer step, summed over its micro-batches in f32, in the order of their parameters' places. Where several
/// processes train together they are those of the rows that are here.
#[derive(Debug, Default)]
pub struct Gradients {
    sums: ByPlace<Gradient>,
    group: Group,
}

impl GradientSink for Gradients {
    fn take(&mut self, parameter: &Parameter, gradient: Gradient) -> Result<()> {
        join(&mut self.group, parameter);
        match self.sums.get_mut(parameter) {
            Some(sum) => sum.add(&gradient)?,
            None => self.sums.insert(parameter, gradient.widened()?),
        }
        Ok(())
    }

    fn begun(&mut self, parameter: &Parameter) -> Option<Gradient> {
        self.sums.get(parameter)?.card()?;
        self.sums.take(parameter)
    }
}

impl Gradients {
    /// The gradient of the parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Gradient> {
        self.iter().find_map(|(of, gradient)| (of == name).then_some(gradient))
    }

    /// Names and gradients, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Gradient)> {
        self.sums.iter().map(|(_, name, gradient)| (&**name, gradient))
    }

    /// The 2-norm over all of them, in all processes that divide the model: each is to ask.
    ///
    /// # Errors
    /// What failed on the card that they are on, those of the tensor library, and another process that is gone.
    pub fn norm(&self) -> Result<f64> {
        Ok(total(&self.group, self.squares()?.read()?)?.sqrt())
    }

    fn squares(&self) -> Result<Squares> {
        let mut squares = Squares::default();
        squares.add(&self.iter().map(|(_, gradient)| gradient).collect::<Vec<_>>())?;
        Ok(squares)
    }

    /// Their norm before they are clipped ([`Gradients::norm`]), and what brings it down to `max_norm` if there is one. Where all are on one
    /// card nobody waits for either: the norm is read when it is asked for, and the factor stays there.
    ///
    /// # Errors
    /// As [`Gradients::norm`].
    pub fn clip(&self, max_norm: Option<f64>) -> Result<(Later, Clip)> {
        let squares = self.squares()?;
        let factor = match squares.alone_on_card().filter(|_| self.group.is_single()) {
            Some(on_card) => max_norm.map(|max_norm| on_card.clip_factor(max_norm)),
            None => {
                let norm = total(&self.group, squares.read()?)?.sqrt();
                return Ok((norm.into(), max_norm.map_or(1.0, |max_norm| clip_factor(norm, max_norm)).into()));
            }
        };
        let norm = Later::of(move || Ok(squares.read()?.sqrt()));
        Ok((norm, factor.map_or(1.0.into(), |factor| Clip(How::OnCard(factor)))))
    }

    /// Takes step `step` (from 1) with them, multiplied by a number or as [`Gradients::clip`] says, and leaves none behind.
    ///
    /// # Errors
    /// Those of the optimizer.
    pub fn apply(
        &mut self,
        model: &Decoder,
        optimizer: &mut dyn Optimizer,
        lr: f64,
        clip: impl Into<Clip>,
        step: u64,
    ) -> Result<()> {
        let (scale, factor) = match clip.into().0 {
            How::By(scale) => (scale, None),
            How::OnCard(factor) if optimizer.works_on_cards() => (1.0, Some(factor)),
            How::OnCard(factor) => (factor.read()?, None),
        };
        let mut on_card = Vec::new();
        for (place, mut gradient) in std::mem::take(&mut self.sums).into_values() {
            let Some(parameter) = model.trainable().at(place) else { continue };
            if let (Some(factor), Some(gradient)) = (&factor, gradient.on_card_mut()) {
                match optimizer.clips_on_cards() {
                    true => gradient.multiply_in_step(factor),
                    false => gradient.multiply(factor),
                }
            }
            match gradient.card() {
                // All at once.
                Some(_) if optimizer.works_on_cards() => on_card.push((parameter, gradient)),
                _ => update(optimizer, parameter, &gradient, lr, scale, step)?,
            }
        }
        let all: Vec<_> = on_card.iter().map(|(parameter, gradient)| (*parameter, gradient)).collect();
        optimizer.update_all(&all, lr, scale, step)
    }
}

/// What gradients are multiplied by in a step.
#[derive(Debug)]
pub struct Clip(How);

#[derive(Debug)]
enum How {
    By(f64),
    /// A number that is known on a card alone.
    OnCard(engine::Factor),
}

impl From<f64> for Clip {
    fn from(factor: f64) -> Self {
        Self(How::By(factor))
    }
}

/// Notes whose shards gradients are.
fn join(group: &mut Group, parameter: &Parameter) {
    if let (Some(shard), true) = (parameter.shard(), group.is_single()) {
        *group = shard.mesh.shards().clone();
    }
}

/// A sum over what is here, over all processes that divide the model. Those that have the same part have the same gradients.
fn total(group: &Group, here: f64) -> Result<f64> {
    Ok(group.all_reduce("the norm of the gradient", vec![here]).wait()?.into_iter().sum())
}

/// Moves a parameter by an optimizer that may know nothing of cards: what is on one comes here for that, and goes back.
fn update(
    optimizer: &mut dyn Optimizer,
    parameter: &Parameter,
    gradient: &Gradient,
    lr: f64,
    scale: f64,
    step: u64,
) -> Result<()> {
    let Some(card) = gradient.card().filter(|_| !optimizer.works_on_cards()) else {
        return optimizer.update(parameter, gradient, lr, scale, step);
    };
    card.fetch([parameter.var()])?;
    optimizer.update(parameter, &gradient.to_tensor()?.into(), lr, scale, step)?;
    card.forget(parameter.var());
    Ok(())
}

/// The sum of the squares of gradients. A card is asked for its part at once, and waited for when the sum is read.
#[derive(Debug, Default)]
struct Squares {
    /// Of the processor's, if there are such.
    here: Option<f64>,
    on_cards: Vec<engine::Squares>,
}

impl Squares {
    /// Adds one of the processor's, or some of a card's.
    fn add(&mut self, gradients: &[&Gradient]) -> Result<()> {
        let on_card: Vec<_> = gradients.iter().filter_map(|gradient| gradient.on_card()).collect();
        self.on_cards.extend(engine::Squares::of(&on_card));
        for gradient in gradients.iter().filter(|gradient| gradient.card().is_none()) {
            *self.here.get_or_insert(0.0) += gradient.squared_norm()?;
        }
        Ok(())
    }

    /// The part of a card, where all is of one that was asked once.
    fn alone_on_card(&self) -> Option<&engine::Squares> {
        self.on_cards.first().filter(|_| self.on_cards.len() == 1 && self.here.is_none())
    }

    fn read(&self) -> Result<f64> {
        let mut sum = self.here.unwrap_or(0.0);
        for squares in &self.on_cards {
            sum = squares.read()?.into_iter().fold(sum, |sum, one| sum + one);
        }
        Ok(sum)
    }
}

/// The factor that brings a gradient of norm `norm` down to `max_norm`, as PyTorch computes it.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// The optimizer in the backward pass: each gradient is applied and freed as soon as it is complete,
/// so that no step ever holds them all. Leaves no room for accumulation or clipping.
pub struct InBackward<'a> {
    optimizer: &'a mut dyn Optimizer,
    lr: f64,
    step: u64,
    squares: Squares,
    group: Group,
}

impl<'a> InBackward<'a> {
    /// Step `step` (from 1) of an optimizer with this learning rate.
    pub fn new(optimizer: &'a mut dyn Optimizer, lr: f64, step: u64) -> Self {
        Self { optimizer, lr, step, squares: Squares::default(), group: Group::single() }
    }

    /// The sum of the squares of all gradients so far, in all processes that divide the model: each is to ask.
    ///
    /// # Errors
    /// What failed on the card that they were on, and another process that is gone.
    pub fn squared_norm(&self) -> Result<f64> {
        total(&self.group, self.squares.read()?)
    }

    /// The norm of all gradients, in all processes that divide the model: each is to ask. Nobody waits for a card.
    ///
    /// # Errors
    /// As [`InBackward::squared_norm`].
    pub fn norm(self) -> Result<Later> {
        let Self { squares, group, .. } = self;
        match group.is_single() {
            true if squares.here.is_none() && !squares.on_cards.is_empty() => {
                Ok(Later::of(move || Ok(squares.read()?.sqrt())))
            }
            _ => Ok(total(&group, squares.read()?)?.sqrt().into()),
        }
    }
}

impl GradientSink for InBackward<'_> {
    fn take(&mut self, parameter: &Parameter, gradient: Gradient) -> Result<()> {
        join(&mut self.group, parameter);
        self.squares.add(&[&gradient])?;
        update(self.optimizer, parameter, &gradient, self.lr, 1.0, self.step)
    }
}

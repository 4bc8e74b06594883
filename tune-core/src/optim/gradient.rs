//! Gradients on their way from the engine to the optimizer.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use super::update::{TASK, add_assign, squared_norm, sum_of_squares};
use super::values::{Real, Values};
use crate::engine::{Card, OnCard, Squares};
use crate::kernels::buffers::Buffer;
use crate::kernels::{parallel, simd};

/// The gradient of one parameter.
#[derive(Debug)]
pub struct Gradient(Data);

#[derive(Debug)]
enum Data {
    /// Memory of the processor's engine, which goes back to its pool.
    Pooled {
        values: Buffer<f32>,
        shape: Shape,
    },
    /// Memory of a card, where it stays.
    OnCard(OnCard),
    Tensor(Tensor),
}

impl From<OnCard> for Gradient {
    fn from(values: OnCard) -> Self {
        Self(Data::OnCard(values))
    }
}

impl From<Tensor> for Gradient {
    fn from(tensor: Tensor) -> Self {
        Self(Data::Tensor(tensor))
    }
}

impl Gradient {
    pub(crate) fn pooled(values: Buffer<f32>, shape: &Shape) -> Result<Self> {
        if values.len() != shape.elem_count() {
            bail!("a gradient of {} elements for a parameter {shape:?}", values.len());
        }
        Ok(Self(Data::Pooled { values, shape: shape.clone() }))
    }

    /// The parameter's shape.
    pub fn shape(&self) -> &Shape {
        match &self.0 {
            Data::Pooled { shape, .. } => shape,
            Data::OnCard(values) => values.shape(),
            Data::Tensor(tensor) => tensor.shape(),
        }
    }

    /// Its numbers on a card, if they are on one.
    pub(crate) fn on_card(&self) -> Option<&OnCard> {
        match &self.0 {
            Data::OnCard(values) => Some(values),
            _ => None,
        }
    }

    /// The same, to be had.
    pub(crate) fn into_on_card(self) -> Option<OnCard> {
        match self.0 {
            Data::OnCard(values) => Some(values),
            _ => None,
        }
    }

    /// The card that it is on.
    pub(crate) fn card(&self) -> Option<&Arc<Card>> {
        self.on_card().map(OnCard::card)
    }

    /// Its numbers on a card, to be changed.
    pub(super) fn on_card_mut(&mut self) -> Option<&mut OnCard> {
        match &mut self.0 {
            Data::OnCard(values) => Some(values),
            _ => None,
        }
    }

    /// A tensor of the processor: of its own, or the tensor that it is.
    ///
    /// # Errors
    /// What failed on the card that it is on, and those of the tensor library.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &self.0 {
            Data::Pooled { values, shape } => Tensor::from_slice(values, shape, &Device::Cpu),
            Data::OnCard(values) => values.read().map_err(candle_core::Error::wrap),
            Data::Tensor(tensor) => Ok(tensor.clone()),
        }
    }

    /// In f32, unless it is f64: what several gradients are added up in.
    pub(crate) fn widened(self) -> Result<Self> {
        match self.0 {
            Data::Tensor(t) if !matches!(t.dtype(), DType::F32 | DType::F64) => Ok(t.to_dtype(DType::F32)?.into()),
            _ => Ok(self),
        }
    }

    /// Adds another gradient of the same parameter, in place.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        match (&mut self.0, &other.0) {
            (Data::Pooled { values, .. }, Data::Pooled { values: more, .. }) if values.len() == more.len() => {
                parallel::each_chunk(values, TASK, |task, sum| {
                    let more = &more[task * TASK..][..sum.len()];
                    simd(
                        #[inline(always)]
                        || sum.iter_mut().zip(more).for_each(|(s, m)| *s += m),
                    );
                });
                Ok(())
            }
            (Data::OnCard(sum), Data::OnCard(more)) if sum.shape() == more.shape() => {
                sum.add(more);
                Ok(())
            }
            (Data::Tensor(sum), Data::Tensor(more)) => add_assign(sum, more),
            _ => bail!("gradients of different kinds for one parameter"),
        }
    }

    /// The sum of squares, in an order that depends on the size alone.
    pub(crate) fn squared_norm(&self) -> Result<f64> {
        match &self.0 {
            Data::Pooled { values, .. } => Ok(sum_of_squares(values)),
            Data::OnCard(values) => match Squares::of(&[values]) {
                Some(squares) => Ok(squares.read().map_err(candle_core::Error::wrap)?.into_iter().sum()),
                None => Ok(0.0),
            },
            Data::Tensor(tensor) => squared_norm(tensor),
        }
    }

    pub(super) fn values<R: Real>(&self) -> Result<Values<'_, R>> {
        match &self.0 {
            Data::Pooled { values, .. } => Ok(Values::of_f32(values)),
            Data::OnCard(_) => bail!("a gradient on a card is not the processor's to read"),
            Data::Tensor(tensor) => Values::of(tensor),
        }
    }
}

//! Gradients on their way from the engine to those who asked for them.

use std::collections::VecDeque;

use candle_core::{Device, Shape, Tensor};
use tune_cuda::Collective;

use super::cpu::Cpu;
use super::cuda::{Cuda, Number, OnCard};
use super::reference::Reference;
use super::run::Sink;
use super::{Gradient, GradientSink};
use crate::distributed::Pending;
use crate::kernels::Element;
use crate::kernels::buffers::Buffer;
use crate::models::{Decoder, ParamId, Parameter, Shard};
use crate::{Error, Result};

/// Gradients that are under way at a time: as many as a block has, about.
pub(super) const UNDER_WAY: usize = 12;

/// Hands gradients over with the parameters that they are of. Where several processes train together, a gradient is summed over
/// all of them, and what is here of it is handed over: some rows, or all. That goes on while the next block is computed.
pub(super) struct ToModel<'a> {
    model: &'a Decoder,
    sink: &'a mut dyn GradientSink,
    under_way: VecDeque<(ParamId, Scattered)>,
}

/// What is here of a sum over all processes.
enum Scattered {
    F32(Pending<Buffer<f32>>),
    F64(Pending<Vec<f64>>),
    OnCard(Collective<tune_cuda::Buffer<f32>>),
}

impl<'a> ToModel<'a> {
    pub(super) fn new(model: &'a Decoder, sink: &'a mut dyn GradientSink) -> Self {
        Self { model, sink, under_way: VecDeque::new() }
    }

    fn parameter(&self, id: ParamId) -> Result<&'a Parameter> {
        self.model.trainable().of(id).ok_or_else(|| self.lost(id))
    }

    fn hand_over(&mut self, id: ParamId, gradient: impl FnOnce(&Shape) -> candle_core::Result<Gradient>) -> Result<()> {
        let parameter = self.parameter(id)?;
        self.sink.take(parameter, gradient(parameter.var().shape())?)
    }

    /// Begins to sum a gradient over all processes.
    fn sum(&mut self, id: ParamId, begin: impl FnOnce(&str, Option<&Shard>, &Tensor) -> Scattered) -> Result<()> {
        let parameter = self.parameter(id)?;
        let of = format!("the gradient of {}", parameter.name());
        self.under_way.push_back((id, begin(&of, parameter.shard(), parameter.var())));
        self.finish(UNDER_WAY)
    }

    /// Hands over those that were begun first, until this many are left under way.
    fn finish(&mut self, left: usize) -> Result<()> {
        while self.under_way.len() > left {
            match self.under_way.pop_front() {
                Some((id, Scattered::F32(pending))) => {
                    let here = pending.wait()?;
                    self.hand_over(id, |shape| Gradient::pooled(here, shape))?;
                }
                Some((id, Scattered::F64(pending))) => {
                    let here = pending.wait()?;
                    self.hand_over(id, |shape| Ok(Tensor::from_vec(here, shape, &Device::Cpu)?.into()))?;
                }
                Some((id, Scattered::OnCard(begun))) => self.hand_over_on_card(id, begun.wait())?,
                None => break,
            }
        }
        Ok(())
    }

    fn hand_over_on_card(&mut self, id: ParamId, gradient: tune_cuda::Buffer<f32>) -> Result<()> {
        let card = self.model.card().ok_or_else(|| self.lost(id))?;
        self.hand_over(id, |shape| Ok(OnCard::new(card, gradient, shape)?.into()))
    }

    fn lost(&self, id: ParamId) -> Error {
        let name = id.name(&self.model.config);
        Error::Training(format!(
            "{name} got a gradient and is not trained; this is a bug of the program, please report it"
        ))
    }
}

impl<T: Element> Sink<Cpu<'_, T>> for ToModel<'_> {
    fn take(&mut self, id: ParamId, gradient: Buffer<f32>) -> Result<()> {
        let mesh = self.model.mesh();
        if mesh.is_single() {
            return self.hand_over(id, |shape| Gradient::pooled(gradient, shape));
        }
        self.sum(id, |of, shard, here| {
            Scattered::F32(match shard {
                Some(shard) => {
                    let mine = Buffer::new(here.elem_count());
                    mesh.reduce_scatter(of, gradient, shard.counts(here), mine, Buffer::new)
                }
                None => mesh.all().all_reduce_in_place(of, gradient, Buffer::new),
            })
        })
    }

    fn end(&mut self, _: &Cpu<'_, T>) -> Result<()> {
        self.finish(0)
    }
}

impl<T: Number> Sink<Cuda<T>> for ToModel<'_> {
    fn take(&mut self, id: ParamId, gradient: tune_cuda::Buffer<f32>) -> Result<()> {
        let Some(cards) = self.model.mesh().cards() else { return self.hand_over_on_card(id, gradient) };
        self.sum(id, |of, shard, here| {
            Scattered::OnCard(match shard {
                Some(shard) => cards.reduce_scatter(of, gradient, &shard.counts(here)),
                None => cards.all_reduce(of, gradient),
            })
        })
    }

    /// What earlier micro-batches have begun is a sum over all processes already, where there are several: it is added to behind theirs.
    fn begin(&mut self, backend: &Cuda<T>) {
        if !self.model.mesh().is_single() {
            return;
        }
        for (id, parameter) in self.model.trainable().with_ids().filter(|(id, _)| id.is_begun()) {
            if let Some(begun) = self.sink.begun(parameter).and_then(Gradient::into_on_card) {
                backend.begin(id, begun.into_values());
            }
        }
    }

    fn end(&mut self, backend: &Cuda<T>) -> Result<()> {
        self.finish(0)?;
        backend.unused().into_iter().try_for_each(|(id, gradient)| Sink::<Cuda<T>>::take(self, id, gradient))
    }
}

impl Sink<Reference> for ToModel<'_> {
    fn take(&mut self, id: ParamId, gradient: Vec<f64>) -> Result<()> {
        let mesh = self.model.mesh();
        if mesh.is_single() {
            return self.hand_over(id, |shape| Ok(Tensor::from_vec(gradient, shape, &Device::Cpu)?.into()));
        }
        self.sum(id, |of, shard, here| {
            let scratch = |len| vec![0.0; len];
            Scattered::F64(match shard {
                Some(shard) => {
                    let mine = vec![0.0; here.elem_count()];
                    mesh.reduce_scatter(of, gradient, shard.counts(here), mine, scratch)
                }
                None => mesh.all().all_reduce_in_place(of, gradient, scratch),
            })
        })
    }

    fn end(&mut self, _: &Reference) -> Result<()> {
        self.finish(0)
    }
}

//! Gradients on their way from the engine to those who asked for them.

use std::collections::VecDeque;

use candle_core::{Device, Shape, Tensor};

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

/// Hands gradients over with the parameters that they are of. Where these are divided among processes, a gradient is summed over
/// all of them, and the rows that are here are handed over; that goes on while the next block is computed.
pub(super) struct ToModel<'a> {
    model: &'a Decoder,
    sink: &'a mut dyn GradientSink,
    under_way: VecDeque<(ParamId, Scattered)>,
}

/// The rows that are here of a sum over all processes.
enum Scattered {
    F32(Pending<Buffer<f32>>),
    F64(Pending<Vec<f64>>),
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
    fn scatter(&mut self, id: ParamId, begin: impl FnOnce(&str, &Shard, &Tensor) -> Scattered) -> Result<()> {
        let parameter = self.parameter(id)?;
        let shard = parameter.shard().ok_or_else(|| self.lost(id))?;
        let of = format!("the gradient of {}", parameter.name());
        self.under_way.push_back((id, begin(&of, shard, parameter.var())));
        self.finish(UNDER_WAY)
    }

    /// Hands over those that were begun first, until so many are left under way.
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
                None => break,
            }
        }
        Ok(())
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
        if self.model.group().is_single() {
            return self.hand_over(id, |shape| Gradient::pooled(gradient, shape));
        }
        self.scatter(id, |of, shard, here| {
            let mine = Buffer::new(here.elem_count());
            Scattered::F32(shard.group.reduce_scatter(of, gradient, shard.counts(here), mine, Buffer::new))
        })
    }

    fn end(&mut self, _: &Cpu<'_, T>) -> Result<()> {
        self.finish(0)
    }
}

impl<T: Number> Sink<Cuda<T>> for ToModel<'_> {
    fn take(&mut self, id: ParamId, gradient: tune_cuda::Buffer<f32>) -> Result<()> {
        let card = self.model.card().ok_or_else(|| self.lost(id))?;
        self.hand_over(id, |shape| Ok(OnCard::new(card, gradient, shape)?.into()))
    }

    fn begin(&mut self, backend: &Cuda<T>) {
        for (id, parameter) in self.model.trainable().with_ids().filter(|(id, _)| id.is_begun()) {
            if let Some(begun) = self.sink.begun(parameter).and_then(Gradient::into_on_card) {
                backend.begin(id, begun.into_values());
            }
        }
    }

    fn end(&mut self, backend: &Cuda<T>) -> Result<()> {
        backend.unused().into_iter().try_for_each(|(id, gradient)| Sink::<Cuda<T>>::take(self, id, gradient))
    }
}

impl Sink<Reference> for ToModel<'_> {
    fn take(&mut self, id: ParamId, gradient: Vec<f64>) -> Result<()> {
        if self.model.group().is_single() {
            return self.hand_over(id, |shape| Ok(Tensor::from_vec(gradient, shape, &Device::Cpu)?.into()));
        }
        self.scatter(id, |of, shard, here| {
            let mine = vec![0.0; here.elem_count()];
            Scattered::F64(shard.group.reduce_scatter(of, gradient, shard.counts(here), mine, |len| vec![0.0; len]))
        })
    }

    fn end(&mut self, _: &Reference) -> Result<()> {
        self.finish(0)
    }
}

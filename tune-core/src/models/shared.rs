//! Several adapters on the weights of one model.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::adapter::LoraOptions;
use super::decoder::{Decoder, LoadOptions};
use super::linear::{Linear, Weight};
use super::parameter::ParamId;
use super::spec::ModelSpec;
use super::weights::WeightSource;
use crate::device::Compute;
use crate::{Error, Result};

impl Decoder {
    /// The model that `config` describes, with fresh adapters and without those that this one has. The weights are shared, but for
    /// those that are its `own`.
    ///
    /// # Errors
    /// A layer that cannot carry one, weights that are trained or divided among processes, a card that is too small.
    pub fn with_adapters(
        &self,
        config: ModelSpec,
        lora: Option<LoraOptions>,
        own: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        if !self.mesh().is_single() {
            return Err(Error::setup("weights that are divided among processes are not shared with other adapters"));
        }
        let name = |id: ParamId| id.name(&self.config);
        let (norm, head) = self.top();
        let mut weights = BTreeMap::from([
            (name(ParamId::Embedding), self.embedding().clone()),
            (name(ParamId::LastNorm), Weight::Tensor(norm.clone())),
        ]);
        let mut linears: Vec<&Linear> = Vec::new();
        for block in &self.blocks {
            for (norm, weight) in &block.norms {
                weights.insert(name(ParamId::Norm(block.index, *norm)), Weight::Tensor(weight.clone()));
            }
            linears.extend(block.linears.iter().map(|(_, linear)| linear));
        }
        linears.extend((!self.config.tie_word_embeddings && !config.tie_word_embeddings).then_some(head));
        for linear in linears {
            weights.insert(format!("{}.weight", linear.name), linear.weight.clone());
            if let Some(bias) = &linear.bias {
                weights.insert(format!("{}.bias", linear.name), Weight::Tensor(bias.clone()));
            }
        }
        let device = self.card().map_or(Compute::Processor, |card| Compute::Card(Arc::clone(card)));
        let options = LoadOptions { dtype: self.dtype(), device, train_weights: false, lora };
        weights.extend(own.into_iter().map(|(name, tensor)| (name, Weight::Tensor(tensor))));
        Self::load(config, &Shared(weights), &options)
    }
}

/// The weights of a model in memory, which another one shares.
struct Shared(BTreeMap<String, Weight>);

impl WeightSource for Shared {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let missing = || Error::setup(format!("the weight `{name}` is missing"));
        match self.0.get(name).ok_or_else(missing)? {
            Weight::Tensor(tensor) if tensor.dims() == shape => Ok(tensor.to_dtype(dtype)?.to_device(device)?),
            weight => Err(Error::setup(format!("the weight `{name}` has shape {:?}, not {shape:?}", weight.dims()?))),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2], dtype: DType, device: &Device) -> Result<Weight> {
        match self.0.get(name) {
            Some(Weight::Quantized(of)) if of.dims() == (shape[0], shape[1]) => Ok(Weight::Quantized(Arc::clone(of))),
            _ => self.weight(name, &shape, dtype, device).map(Weight::Tensor),
        }
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

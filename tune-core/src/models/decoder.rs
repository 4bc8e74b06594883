//! The whole model: embedding, blocks, norm, output layer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::adapter::{LoraOptions, add_adapter};
use super::block::Block;
use super::linear::Linear;
use super::slots::{Layers, Slot};
use super::spec::{LayerSpec, ModelSpec, Site};
use super::weights::{Unread, WeightSource};
use crate::checkpoint::Checkpoint;
use crate::device::Compute;
use crate::engine::Card;
use crate::{Error, Result};

/// How a model is put together from its weights.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The dtype of weights and activations.
    pub dtype: DType,
    /// What computes it.
    pub device: Compute,
    /// Whether the model's own weights are trained.
    pub train_weights: bool,
    /// Adapters to add; the weights are then frozen.
    pub lora: Option<LoraOptions>,
}

/// A decoder-only language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Its shape.
    pub config: ModelSpec,
    /// Its blocks, bottom first.
    pub blocks: Vec<Block>,
    embed_tokens: Tensor,
    norm: Tensor,
    lm_head: Linear,
    /// Everything that is trained, in name order.
    trainable: BTreeMap<String, Var>,
    /// What computes it, if not the processor.
    card: Option<Arc<Card>>,
}

impl Decoder {
    /// Builds the model from its weights.
    ///
    /// # Errors
    /// A weight that is missing, of another shape, or used by nothing; adapters for no layer at all.
    pub fn load(config: ModelSpec, source: &dyn WeightSource, options: &LoadOptions) -> Result<Self> {
        let mut builder = Builder { source, options, trainable: BTreeMap::new(), used: BTreeSet::new() };
        if let Some(lora) = &options.lora {
            lora.names(&config)?;
        }
        let c = &config;
        let embed_tokens = builder.weight("model.embed_tokens", &[c.vocab_size, c.hidden_size])?;
        // Grown as weights are found: the number is only what config.json says.
        let mut blocks = Vec::new();
        for (index, spec) in c.blocks.iter().enumerate() {
            let prefix = format!("model.layers.{index}");
            let mut linears = Vec::new();
            for layer in c.layers(index) {
                linears.push((layer.site, builder.linear(&format!("{prefix}.{}", layer.site.path()), &layer)?));
            }
            let mut norms = Vec::new();
            for (norm, width) in c.norms(index) {
                norms.push((norm, builder.weight(&format!("{prefix}.{}", norm.path(spec.norms)), &[width])?));
            }
            blocks.push(Block { index, norms, linears: Layers::new(linears) });
        }
        let norm = builder.weight("model.norm", &[c.hidden_size])?;
        let lm_head = if c.tie_word_embeddings {
            builder.adapted("lm_head", Slot::LmHead.into(), embed_tokens.clone(), None)?
        } else {
            builder.linear("lm_head", &c.output())?
        };
        builder.refuse_unused(c.tie_word_embeddings)?;
        if options.lora.is_some() && builder.trainable.is_empty() {
            return Err(nothing_to_train());
        }
        let mut model = Self { blocks, embed_tokens, norm, lm_head, trainable: builder.trainable, config, card: None };
        model.compute_on(&options.device);
        Ok(model)
    }

    /// The model in `source` without its numbers: every weight is there and has its shape, and none is read.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub(crate) fn skeleton(config: ModelSpec, source: &Checkpoint) -> Result<Self> {
        let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
        Self::load(config, &Unread(source), &options)
    }

    /// What is trained, in name order: weights by their Hugging Face name, adapters as
    /// `<layer>.lora_A.weight` and `<layer>.lora_B.weight`.
    pub fn trainable(&self) -> &BTreeMap<String, Var> {
        &self.trainable
    }

    /// Has something else compute it; its tensors stay where they are.
    pub fn compute_on(&mut self, device: &Compute) {
        self.card = match device {
            Compute::Processor => None,
            Compute::Card(card) => Some(Arc::clone(card)),
        };
    }

    /// The card that computes it, if it is not the processor.
    pub(crate) fn card(&self) -> Option<&Arc<Card>> {
        self.card.as_ref()
    }

    /// The number of its own weights' elements, adapters left out; a tied output layer counts once.
    pub fn parameter_count(&self) -> usize {
        self.config.parameter_count() as usize
    }

    /// The dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.embed_tokens.dtype()
    }

    /// Where the model lives.
    pub fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    /// Whether the embedding table is trained.
    pub fn trains_embedding(&self) -> bool {
        self.embed_tokens.is_variable()
    }

    /// The embedding table, `[vocab, hidden]`.
    pub(crate) fn embedding(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// The last norm's weight `[hidden]` and the output layer.
    pub(crate) fn top(&self) -> (&Tensor, &Linear) {
        (&self.norm, &self.lm_head)
    }

    /// The model's own weights as they are now, adapters merged in, by Hugging Face name.
    ///
    /// A tied output layer stays tied (and is left out) unless an adapter on it was merged;
    /// the second value says whether it still is.
    pub fn merged_weights(&self) -> Result<(BTreeMap<String, Tensor>, bool)> {
        let mut weights = BTreeMap::new();
        let mut put = |name: &str, t: Tensor| weights.insert(name.to_owned(), t);
        put("model.embed_tokens.weight", self.embed_tokens.detach());
        put("model.norm.weight", self.norm.detach());
        for block in &self.blocks {
            let prefix = format!("model.layers.{}", block.index);
            let norms = self.config.blocks[block.index].norms;
            for (norm, weight) in &block.norms {
                put(&format!("{prefix}.{}.weight", norm.path(norms)), weight.detach());
            }
            for (_, linear) in block.linears.iter() {
                put(&format!("{}.weight", linear.name), linear.merged()?);
                if let Some(bias) = &linear.bias {
                    put(&format!("{}.bias", linear.name), bias.detach());
                }
            }
        }
        let tied = self.config.tie_word_embeddings && self.lm_head.adapter.is_none();
        if !tied {
            put("lm_head.weight", self.lm_head.merged()?);
        }
        Ok((weights, tied))
    }
}

/// No layer is chosen to carry an adapter.
pub(crate) fn nothing_to_train() -> Error {
    Error::setup(
        "no layer gets an adapter, so that there is nothing to train: name some in model.lora_attn_modules, \
         or set model.apply_lora_to_mlp or model.apply_lora_to_output",
    )
}

/// Takes weights from the source and notes what is trained.
struct Builder<'a> {
    source: &'a dyn WeightSource,
    options: &'a LoadOptions,
    trainable: BTreeMap<String, Var>,
    /// Names of the weights that were taken.
    used: BTreeSet<String>,
}

impl Builder<'_> {
    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor(format!("{name}.weight"), shape)
    }

    fn tensor(&mut self, name: String, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.source.weight(&name, shape, self.options.dtype, &Device::Cpu)?;
        self.used.insert(name.clone());
        if !self.options.train_weights {
            return Ok(tensor);
        }
        let var = Var::from_tensor(&tensor)?;
        let tensor = var.as_tensor().clone();
        self.trainable.insert(name, var);
        Ok(tensor)
    }

    /// A weight that nothing here uses, a bias say, means that the model would compute something else.
    fn refuse_unused(&self, tied: bool) -> Result<()> {
        let known = |name: &str| name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
        let names = self.source.names();
        let mut unused = names.iter().filter(|n| !self.used.contains(*n) && !known(n));
        let Some(first) = unused.next() else { return Ok(()) };
        Err(Error::setup(format!(
            "the checkpoint has {} weights that the model of its config.json does not use, the first `{first}`; \
             weights and config do not belong together, or the model is of a kind that is not supported",
            1 + unused.count()
        )))
    }

    fn linear(&mut self, name: &str, layer: &LayerSpec) -> Result<Linear> {
        let weight = self.weight(name, &[layer.out, layer.inner])?;
        let bias = if layer.bias { Some(self.tensor(format!("{name}.bias"), &[layer.out])?) } else { None };
        self.adapted(name, layer.site, weight, bias)
    }

    fn adapted(&mut self, name: &str, site: Site, weight: Tensor, bias: Option<Tensor>) -> Result<Linear> {
        let lora = self.options.lora.as_ref();
        let adapter = match lora.and_then(|lora| Some((lora, lora.of_layer(name, site)?))) {
            Some((lora, of_layer)) => {
                if weight.is_variable() {
                    return Err(Error::setup("adapters need frozen weights: train either the weights or adapters"));
                }
                Some(add_adapter(name, &weight, lora, of_layer, &mut self.trainable)?)
            }
            None => None,
        };
        Ok(Linear { name: name.to_string(), weight, bias, adapter })
    }
}

//! A model is put together from its weights.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};

use super::{Decoder, check_connected};
use crate::checkpoint::Checkpoint;
use crate::device::Compute;
use crate::distributed::Mesh;
use crate::kernels::Share;
use crate::models::adapter::{Adapter, LoraOptions, Magnitude, OfLayer, Start, fresh_adapter};
use crate::models::block::Block;
use crate::models::head::WithHead;
use crate::models::linear::{Linear, Weight};
use crate::models::parameter::{Of, ParamId, Trainable};
use crate::models::shard::Shard;
use crate::models::slots::Layers;
use crate::models::spec::{LayerSpec, ModelSpec};
use crate::models::start::part_of;
use crate::models::tokens::TokenRows;
use crate::models::weights::{Unread, WeightSource};
use crate::models::whole::{HEAD, SCORE, SCORES_SEQUENCES, TABLE};
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
    /// Adapters to add; the weights are then frozen, but for those that these options train whole.
    pub lora: Option<LoraOptions>,
}

impl Decoder {
    /// Builds the model from its weights.
    ///
    /// # Errors
    /// A weight that is missing, of another shape, or used by nothing; adapters for no layer at all.
    pub fn load(config: ModelSpec, source: &dyn WeightSource, options: &LoadOptions) -> Result<Self> {
        Self::load_shard(config, source, options, &Mesh::default())
    }

    /// Builds the part of the model that is this process's: of each parameter its share of the rows, and of what is in blocks its
    /// share of these. Every process of the mesh is to do so.
    ///
    /// # Errors
    /// As [`Decoder::load`]; and a card that is not the one by which the mesh connects this process with others
    /// ([`Mesh::connect`]).
    pub fn load_shard(
        config: ModelSpec,
        source: &dyn WeightSource,
        options: &LoadOptions,
        mesh: &Mesh,
    ) -> Result<Self> {
        check_connected(mesh, &options.device)?;
        let lora = options.lora.as_ref().map(|lora| lora.resolved(&config)).transpose()?;
        let options = &LoadOptions { lora, ..options.clone() };
        if let (true, Some(lora)) = (mesh.divides(), &options.lora) {
            refuse_of_whole_weights(lora)?;
        }
        let mut builder =
            Builder { config: &config, source, options, mesh, trainable: BTreeMap::new(), used: BTreeSet::new() };
        let c = &config;
        let embed_tokens = builder.matrix(ParamId::Embedding, (c.vocab_size, c.hidden_size))?;
        let tokens = builder.token_rows(ParamId::Tokens, &embed_tokens)?;
        // Grown as weights are found: the number is only what config.json says.
        let mut blocks = Vec::new();
        for index in 0..c.blocks.len() {
            let mut linears = Vec::new();
            for layer in c.layers(index) {
                let of = |of| ParamId::InBlock(index, layer.site, of);
                linears.push((layer.site, builder.linear(of, &layer)?));
            }
            let mut norms = Vec::new();
            for (norm, width) in c.norms(index) {
                norms.push((norm, builder.tensor(ParamId::Norm(index, norm), &[width])?));
            }
            blocks.push(Block { index, norms, linears: Layers::new(linears) });
        }
        let norm = builder.tensor(ParamId::LastNorm, &[c.hidden_size])?;
        let lm_head = if c.tie_word_embeddings {
            builder.adapted(ParamId::Output, &c.output(), embed_tokens.clone(), None)?
        } else {
            builder.linear(ParamId::Output, &c.output())?
        };
        let output_tokens = builder.token_rows(ParamId::OutputTokens, &lm_head.weight)?;
        builder.refuse_unused(c.tie_word_embeddings)?;
        if options.lora.is_some() && builder.trainable.is_empty() {
            return Err(nothing_to_train());
        }
        let (trainable, dtype) = (Trainable::new(builder.trainable), options.dtype);
        let mut model = Self {
            blocks,
            embed_tokens,
            tokens,
            output_tokens,
            norm,
            lm_head,
            trainable,
            config,
            dtype,
            card: None,
            mesh: mesh.clone(),
            fake_quantizer: None,
            inputs_file: OnceLock::new(),
        };
        model.compute_on(&options.device)?;
        Ok(model)
    }

    /// The model in `source` without its numbers: every weight is there and has its shape, and none is read.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub(crate) fn skeleton(config: ModelSpec, source: &Checkpoint) -> Result<Self> {
        let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
        match config.scores {
            None => Self::load(config, &Unread(source), &options),
            Some(_) => {
                let unread = Unread(source);
                let with_head = WithHead::new(&unread, &config, source.config(), 0)?;
                Self::load(config, &with_head, &options)
            }
        }
    }
}

/// Refuses adapters that are made of whole weights, of which each process has only a share.
fn refuse_of_whole_weights(lora: &LoraOptions) -> Result<()> {
    let undivided = "data_parallel_shard_dim=1 and data_parallel_replicate_dim to the number of processes, which gives each the \
                     whole model";
    if lora.dora {
        return Err(Error::setup(format!(
            "magnitudes (DoRA) need whole weights: set model.use_dora=false, or {undivided}"
        )));
    }
    if lora.start.takes_of_weight() {
        return Err(Error::setup(format!(
            "model.init_lora_weights={} takes its start from whole weights: set model.init_lora_weights=kaiming, or {undivided}",
            lora.start.name()
        )));
    }
    Ok(())
}

/// No layer is chosen to carry an adapter.
pub(crate) fn nothing_to_train() -> Error {
    Error::setup(
        "no layer gets an adapter, so there is nothing to train: name some in model.lora_attn_modules, \
         or set model.apply_lora_to_mlp or model.apply_lora_to_output",
    )
}

/// The output layer cannot lack what the embedding table has.
pub(crate) fn tied_start(start: Start) -> Error {
    Error::setup(format!(
        "model.init_lora_weights={} changes the weights that adapters are on, and the output layer of this model is its \
         embedding table: leave `lm_head` out, or set model.init_lora_weights=kaiming",
        start.name()
    ))
}

/// Takes weights from the source and notes what is trained.
struct Builder<'a> {
    config: &'a ModelSpec,
    source: &'a dyn WeightSource,
    options: &'a LoadOptions,
    mesh: &'a Mesh,
    trainable: BTreeMap<String, (ParamId, Var, Option<Shard>)>,
    /// Names of the weights that were taken.
    used: BTreeSet<String>,
}

impl Builder<'_> {
    /// Whether the model's own weight of this name is trained.
    fn trains(&self, name: &str) -> bool {
        self.options.train_weights || self.options.lora.as_ref().is_some_and(|lora| lora.whole.contains(name))
    }

    /// A weight that may be in blocks where it is frozen.
    fn matrix(&mut self, id: ParamId, (rows, cols): (usize, usize)) -> Result<Weight> {
        let name = id.name(self.config);
        if self.trains(&name) {
            return Ok(Weight::Tensor(self.tensor(id, &[rows, cols])?));
        }
        if self.mesh.divides() && !self.source.is_in_blocks(&name) {
            return Ok(Weight::Tensor(self.tensor(id, &[rows, cols])?));
        }
        let weight = self.source.matrix(&name, [rows, cols], self.options.dtype, &Device::Cpu)?;
        self.used.insert(name);
        Ok(match weight {
            // One after the other is there as a whole for a moment.
            Weight::Quantized(whole) if self.mesh.divides() => {
                let units = self.mesh.shards().share(whole.format().units(whole.dims()));
                Weight::Share(Share::of(&whole, units).into())
            }
            weight => weight,
        })
    }

    fn tensor(&mut self, id: ParamId, shape: &[usize]) -> Result<Tensor> {
        let name = id.name(self.config);
        let (dtype, rows) = (self.options.dtype, shape[0]);
        let tensor = match self.mesh.divides() {
            false => self.source.weight(&name, shape, dtype, &Device::Cpu)?,
            true => self.source.rows(&name, shape, self.mesh.shards().share(rows), dtype, &Device::Cpu)?,
        };
        self.used.insert(name.clone());
        if !self.trains(&name) {
            return Ok(tensor);
        }
        let var = Var::from_tensor(&tensor)?;
        let tensor = var.as_tensor().clone();
        self.trainable.insert(name, (id, var, self.shard(rows)));
        Ok(tensor)
    }

    /// Rows of single tokens of a table, the embedding table's or the output layer's, if some are trained.
    fn token_rows(&mut self, id: ParamId, table: &Weight) -> Result<Option<TokenRows>> {
        let Some(lora) = &self.options.lora else { return Ok(None) };
        let (tokens, name) = match id {
            ParamId::OutputTokens => (&lora.output_tokens, HEAD),
            _ => (&lora.tokens, TABLE),
        };
        if tokens.is_empty() {
            return Ok(None);
        }
        let count = tokens.ids.len();
        let here = self.mesh.divides().then(|| self.mesh.shards().share(count));
        let model = (self.config, self.options.dtype);
        let rows = TokenRows::read(tokens, model, (name, table), self.source, here)?;
        self.trainable.insert(id.name(self.config), (id, rows.rows.clone(), self.shard(count)));
        Ok(Some(rows))
    }

    /// A weight that nothing here uses, a bias say, means that the model would compute something else.
    fn refuse_unused(&self, tied: bool) -> Result<()> {
        let known = |name: &str| name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
        let names = self.source.names();
        let mut unused = names.iter().filter(|n| !self.used.contains(*n) && !known(n));
        let Some(first) = unused.next() else { return Ok(()) };
        let what = if first == SCORE {
            SCORES_SEQUENCES.to_owned()
        } else {
            format!(
                "has {} weights that the model of its config.json does not use, the first `{first}`; weights and config do not \
             belong together, or the model is of a kind that is not supported",
                1 + unused.count()
            )
        };
        Err(match self.source.path() {
            Some(path) => Error::file(path, what),
            None => Error::setup(format!("the checkpoint {what}")),
        })
    }

    fn shard(&self, rows: usize) -> Option<Shard> {
        self.mesh.divides().then(|| Shard { mesh: self.mesh.clone(), rows })
    }

    fn linear(&mut self, id: impl Fn(Of) -> ParamId, layer: &LayerSpec) -> Result<Linear> {
        let weight = self.matrix(id(Of::Weight), (layer.out, layer.inner))?;
        let bias = if layer.bias { Some(self.tensor(id(Of::Bias), &[layer.out])?) } else { None };
        self.adapted(id, layer, weight, bias)
    }

    /// A layer with this weight, and with an adapter where it gets one.
    fn adapted(
        &mut self,
        id: impl Fn(Of) -> ParamId,
        layer: &LayerSpec,
        weight: Weight,
        bias: Option<Tensor>,
    ) -> Result<Linear> {
        let of_weight = id(Of::Weight).name(self.config);
        let name = of_weight.strip_suffix(".weight").unwrap_or(&of_weight).to_string();
        // Borrowed from the options, which outlive this builder.
        let options = self.options;
        let Some((lora, of_layer)) = options.lora.as_ref().and_then(|lora| Some((lora, lora.of_layer(&name)?))) else {
            return Ok(Linear { name, weight, bias, adapter: None });
        };
        if weight.is_variable() {
            return Err(Error::setup("adapters need frozen weights: train either the weights or adapters"));
        }
        if lora.start.takes_of_weight() && self.config.tie_word_embeddings && of_weight == HEAD {
            return Err(tied_start(lora.start));
        }
        let (adapter, weight) = self.adapter(&id, layer, (&name, weight), lora, of_layer)?;
        Ok(Linear { name, weight, bias, adapter: Some(adapter) })
    }

    /// The adapter of a layer, and what it leaves of the layer's weight.
    fn adapter(
        &mut self,
        id: &impl Fn(Of) -> ParamId,
        layer: &LayerSpec,
        (name, mut weight): (&str, Weight),
        lora: &LoraOptions,
        of_layer: OfLayer,
    ) -> Result<(Adapter, Weight)> {
        let [a, b] = [Of::LoraA, Of::LoraB].map(|of| (id(of).name(self.config), id(of)));
        let (sides, dtype) = ((layer.out, layer.inner), self.options.dtype);
        let mut adapter = fresh_adapter(&a.0, sides, dtype, lora, of_layer, self.mesh.shards())?;
        let whole = weight.clone();
        if lora.start.takes_of_weight() {
            let part = part_of(name, &weight, lora, of_layer)?;
            adapter.a.set(&part.a.to_dtype(adapter.a.dtype())?)?;
            adapter.b.set(&part.b.to_dtype(adapter.b.dtype())?)?;
            (adapter.begun, weight) = (Some((part.a, part.b)), part.rest);
        }
        if lora.dora {
            let magnitude = Magnitude::of(&whole, &weight, dtype)?;
            let id = id(Of::LoraMagnitude);
            self.trainable.insert(id.name(self.config), (id, magnitude.weight.clone(), None));
            adapter.magnitude = Some(magnitude);
        }
        self.trainable.insert(a.0, (a.1, adapter.a.clone(), self.shard(adapter.rank)));
        self.trainable.insert(b.0, (b.1, adapter.b.clone(), self.shard(layer.out)));
        Ok((adapter, weight))
    }
}

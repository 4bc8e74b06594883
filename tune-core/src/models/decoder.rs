//! The whole model: embedding, blocks, norm, output layer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor, Var};

use super::adapter::{Adapter, LoraOptions, Magnitude, Start, fresh_adapter};
use super::block::Block;
use super::fake_quant::FakeQuantizer;
use super::head::WithHead;
use super::linear::{Linear, Weight, merged};
use super::parameter::{Of, ParamId, Parameter, Trainable};
use super::shard::{Here, Shard, gather};
use super::slots::Layers;
use super::spec::{LayerSpec, ModelSpec};
use super::start::part_of;
use super::tokens::{TokenRows, TrainedTokens};
use super::weights::{Unread, WeightSource};
use super::whole::{HEAD, SCORE, SCORES_SEQUENCES, TABLE};
use crate::checkpoint::Checkpoint;
use crate::device::Compute;
use crate::distributed::Mesh;
use crate::engine::{self, Card};
use crate::kernels::Share;
use crate::offload::OffloadFile;
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

/// A decoder-only language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Its shape.
    pub config: ModelSpec,
    /// Its blocks, bottom first.
    pub blocks: Vec<Block>,
    embed_tokens: Weight,
    /// Rows that stand in for some of the table's, if there are such.
    tokens: Option<TokenRows>,
    /// The same of an output layer of its own.
    output_tokens: Option<TokenRows>,
    norm: Tensor,
    lm_head: Linear,
    trainable: Trainable,
    /// The dtype of weights and activations.
    dtype: DType,
    /// What computes it, if not the processor.
    card: Option<Arc<Card>>,
    /// Who trains it, and among whom its parameters are divided.
    mesh: Mesh,
    /// How it is computed as if it were quantized, if it is.
    fake_quantizer: Option<FakeQuantizer>,
    /// Where the inputs of blocks are until the backward pass, if they are in a file.
    inputs_file: OnceLock<Arc<OffloadFile>>,
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
        if mesh.divides() && options.lora.as_ref().is_some_and(|lora| lora.dora) {
            return Err(Error::setup(
                "magnitudes (DoRA) need whole weights: set model.use_dora=false, or data_parallel_shard_dim=1 and \
                 data_parallel_replicate_dim to the number of processes, which gives each the whole model",
            ));
        }
        if let (true, Some(lora)) = (mesh.divides(), &options.lora)
            && lora.start.takes_of_weight()
        {
            return Err(Error::setup(format!(
                "model.init_lora_weights={} takes its start from whole weights: set model.init_lora_weights=kaiming, or \
                 data_parallel_shard_dim=1 and data_parallel_replicate_dim to the number of processes, which gives each the \
                 whole model",
                lora.start.name()
            )));
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

    /// Has the inputs of blocks that are kept for the backward pass, where nothing else is
    /// ([`RunOptions::activation_checkpointing`](crate::engine::RunOptions::activation_checkpointing)), written to a file in this
    /// folder, from now on and for all of its clones to come. On the processor alone; the gradients are the same.
    pub fn offload_inputs(&self, dir: &Path) {
        self.inputs_file.get_or_init(|| OffloadFile::new(dir, "activation_offload_dir"));
    }

    /// The file that they are in, if they are in one.
    pub(crate) fn inputs_file(&self) -> Option<&Arc<OffloadFile>> {
        self.inputs_file.get()
    }

    /// What is trained, in name order: weights by their Hugging Face name, adapters as
    /// `<layer>.lora_A.weight` and `<layer>.lora_B.weight`. Where a card computes, they are what [`Decoder::fetch`] brought last, and
    /// whoever changes them calls [`Decoder::changed`].
    pub fn trainable(&self) -> &Trainable {
        &self.trainable
    }

    /// Brings into [`Decoder::trainable`] what a card has made of it. Where the processor computes, it is always there.
    ///
    /// # Errors
    /// What failed on the card.
    pub fn fetch(&self) -> Result<()> {
        self.card.as_ref().map_or(Ok(()), |card| card.fetch(self.trainable.iter().map(Parameter::var)))
    }

    /// Has a card read again what is trained, whose tensors were changed.
    pub fn changed(&self) {
        if let Some(card) = &self.card {
            self.trainable.iter().for_each(|parameter| card.forget(parameter.var()));
        }
    }

    /// Has something else compute it; its tensors stay where they are, and a card gets copies.
    ///
    /// # Errors
    /// As [`Decoder::fetch`]; a card that is too small, or is not the one by which this process is connected with others.
    pub fn compute_on(&mut self, device: &Compute) -> Result<()> {
        self.fetch()?;
        check_connected(&self.mesh, device)?;
        self.card = match device {
            Compute::Processor => None,
            Compute::Card(card) => Some(Arc::clone(card)),
        };
        self.trainable.compute_on(self.card.as_ref());
        self.changed();
        match &self.card {
            Some(_) => engine::read_parameters(self),
            None => Ok(()),
        }
    }

    /// Has it computed from here on as if its weights were quantized, or, with `None`, as they are. The weights stay what they are.
    ///
    /// # Errors
    /// A model that cannot be quantized so.
    pub fn fake_quantize(&mut self, how: Option<FakeQuantizer>) -> Result<()> {
        if let Some(new) = how.filter(|_| self.fake_quantizer != how) {
            if self.has_token_rows() {
                return Err(TrainedTokens::not_quantized());
            }
            let has_magnitude = |linear: &Linear| linear.adapter.as_ref().is_some_and(|a| a.magnitude.is_some());
            let in_blocks = self.linears().find_map(|linear| linear.weight.format()).map(|format| format.to_string());
            new.check(&self.config, self.linears().any(has_magnitude), in_blocks.as_deref())?;
        }
        self.fake_quantizer = how;
        Ok(())
    }

    /// How it is computed as if it were quantized, if it is.
    pub fn fake_quantizer(&self) -> Option<FakeQuantizer> {
        self.fake_quantizer
    }

    fn has_token_rows(&self) -> bool {
        self.tokens.is_some() || self.output_tokens.is_some()
    }

    /// All linear layers.
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let blocks = self.blocks.iter().flat_map(|block| block.linears.iter().map(|(_, linear)| linear));
        blocks.chain(std::iter::once(&self.lm_head))
    }

    /// The same model as it is without its adapters' updates, and with nothing that is trained. Weights that are frozen are shared, the
    /// others copied. Where an adapter began with a part of its weight, that part stays beside it.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn without_adapters(&self) -> Result<Self> {
        let without = |linear: &Linear| -> Result<Linear> {
            let begun = linear.adapter.as_ref().and_then(|adapter| Some((adapter, adapter.begun.as_ref()?)));
            let adapter = match begun {
                None => None,
                Some((adapter, (a, b))) => Some(Adapter {
                    a: Var::from_tensor(&a.to_dtype(adapter.a.dtype())?)?,
                    b: Var::from_tensor(&b.to_dtype(adapter.b.dtype())?)?,
                    magnitude: None,
                    ..adapter.clone()
                }),
            };
            let bias = linear.bias.as_ref().map(frozen).transpose()?;
            Ok(Linear { name: linear.name.clone(), weight: frozen_weight(&linear.weight)?, bias, adapter })
        };
        let none = Trainable::new(BTreeMap::new());
        let mut model = Self { trainable: none, tokens: None, output_tokens: None, ..self.clone() };
        model.lm_head = without(&self.lm_head)?;
        model.embed_tokens = match self.config.tie_word_embeddings && self.embed_tokens.is_variable() {
            true => model.lm_head.weight.clone(),
            false => frozen_weight(&self.embed_tokens)?,
        };
        model.norm = frozen(&self.norm)?;
        for block in &mut model.blocks {
            for (_, norm) in &mut block.norms {
                *norm = frozen(norm)?;
            }
            let linears = block.linears.iter().map(|(site, linear)| Ok((site, without(linear)?)));
            block.linears = Layers::new(linears.collect::<Result<Vec<_>>>()?);
        }
        Ok(model)
    }

    /// The `A` and `B` that adapters began with and that their weights lack, by the names of their layers.
    pub(crate) fn begun(&self) -> BTreeMap<&str, &(Tensor, Tensor)> {
        let all = self.linears();
        all.filter_map(|linear| Some((&*linear.name, linear.adapter.as_ref()?.begun.as_ref()?))).collect()
    }

    /// Who trains it, and among whom its parameters are divided: each process has some rows of each.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// All of a weight with so many rows, of which some are here.
    fn whole(&self, name: &str, here: &Tensor, rows: usize) -> Result<Tensor> {
        if !self.mesh.divides() {
            return Ok(here.detach());
        }
        let mut dims = here.dims().to_vec();
        dims[0] = rows;
        let gathered = gather(self.mesh.shards(), name, vec![Here::Rows(here.clone(), rows)]).wait()?;
        gathered.into_iter().next().map_or_else(|| Ok(here.detach()), |gathered| gathered.into_tensor(&dims))
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
        self.dtype
    }

    /// Where the model lives.
    pub fn device(&self) -> &Device {
        self.norm.device()
    }

    /// Whether the embedding table is trained.
    pub fn trains_embedding(&self) -> bool {
        self.embed_tokens.is_variable()
    }

    /// The embedding table, `[vocab, hidden]`.
    pub(crate) fn embedding(&self) -> &Weight {
        &self.embed_tokens
    }

    /// The rows that stand in for some of the embedding table's.
    pub(crate) fn tokens(&self) -> Option<&TokenRows> {
        self.tokens.as_ref()
    }

    /// The rows that stand in for some of the output layer's: those of the embedding table where the two are one.
    pub(crate) fn output_tokens(&self) -> Option<&TokenRows> {
        if self.config.tie_word_embeddings { self.tokens.as_ref() } else { self.output_tokens.as_ref() }
    }

    /// The last norm's weight `[hidden]` and the output layer.
    pub(crate) fn top(&self) -> (&Tensor, &Linear) {
        (&self.norm, &self.lm_head)
    }

    /// The model's own weights as they are now, adapters merged in, by Hugging Face name.
    ///
    /// A tied output layer stays tied (and is left out) unless an adapter on it was merged;
    /// the second value says whether it still is.
    ///
    /// # Errors
    /// As [`Decoder::pieces`] and [`Piece::make`].
    pub fn merged_weights(&self) -> Result<(BTreeMap<String, Tensor>, bool)> {
        let (pieces, tied) = self.pieces()?;
        let made = pieces.iter().map(|piece| Ok((piece.name.clone(), piece.make()?)));
        Ok((made.collect::<Result<_>>()?, tied))
    }

    /// The weights of [`Decoder::merged_weights`], each to be made when it is asked for, in the order of names.
    ///
    /// # Errors
    /// A weight in blocks.
    pub fn pieces(&self) -> Result<(Vec<Piece<'_>>, bool)> {
        let c = &self.config;
        let mut pieces = Vec::new();
        let table = self.embed_tokens.tensor("model.embed_tokens")?;
        let table = self.piece("model.embed_tokens.weight".to_owned(), table, c.vocab_size, None);
        pieces.push(self.with_tokens(table, self.tokens.as_ref()));
        pieces.push(self.piece("model.norm.weight".to_owned(), &self.norm, c.hidden_size, None));
        for block in &self.blocks {
            let prefix = format!("model.layers.{}", block.index);
            let norms = c.blocks[block.index].norms;
            for ((norm, weight), (_, width)) in block.norms.iter().zip(c.norms(block.index)) {
                pieces.push(self.piece(format!("{prefix}.{}.weight", norm.path(norms)), weight, width, None));
            }
            for ((_, linear), LayerSpec { out, .. }) in block.linears.iter().zip(c.layers(block.index)) {
                pieces.push(self.layer_piece(linear, out)?);
                if let Some(bias) = &linear.bias {
                    pieces.push(self.piece(format!("{}.bias", linear.name), bias, out, None));
                }
            }
        }
        let tied = c.tie_word_embeddings && self.lm_head.adapter.is_none();
        if !tied {
            let head = self.layer_piece(&self.lm_head, c.outputs())?;
            pieces.push(self.with_tokens(head, self.output_tokens.as_ref()));
        }
        pieces.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((pieces, tied))
    }

    /// A table with rows of single tokens in it, if there are such.
    fn with_tokens<'a>(&'a self, table: Piece<'a>, tokens: Option<&'a TokenRows>) -> Piece<'a> {
        let Some(tokens) = tokens else { return table };
        let (name, dtype, shape) = (table.name.clone(), table.dtype, table.shape.clone());
        let make = move || {
            self.fetch()?;
            let rows = self.whole("the rows of trained tokens", &tokens.rows, tokens.ids.len())?;
            tokens.put_into(&table.make()?, &rows)
        };
        Piece::new(name, dtype, shape, make)
    }

    fn layer_piece<'a>(&'a self, linear: &'a Linear, out: usize) -> Result<Piece<'a>> {
        let weight = linear.weight.tensor(&linear.name)?;
        Ok(self.piece(format!("{}.weight", linear.name), weight, out, linear.adapter.as_ref()))
    }

    /// A weight of so many rows, with an adapter's update added.
    fn piece<'a>(&'a self, name: String, here: &'a Tensor, rows: usize, adapter: Option<&'a Adapter>) -> Piece<'a> {
        let mut shape = here.dims().to_vec();
        shape[0] = rows;
        let of = name.clone();
        let make = move || {
            self.fetch()?;
            let weight = self.whole(&of, here, rows)?;
            let Some(adapter) = adapter else { return Ok(weight) };
            let (a, b) = (self.whole(&of, &adapter.a, adapter.rank)?, self.whole(&of, &adapter.b, rows)?);
            let magnitudes = adapter.magnitude.as_ref().map(|magnitude| magnitude.weight.as_tensor());
            merged(&weight, std::iter::once((&a, &b, adapter.scale)), magnitudes)
        };
        let piece = Piece::new(name, here.dtype(), shape, make);
        match self.card.as_ref().filter(|_| adapter.is_none() && self.mesh.is_single()) {
            Some(card) => piece.copied_by(move || card.copy_of(here)),
            None => piece,
        }
    }
}

/// A weight of a model as it is saved, which is made when it is asked for.
pub struct Piece<'a> {
    /// Its Hugging Face name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    make: Box<dyn Fn() -> Result<Tensor> + 'a>,
    /// Begins to copy it as it is now.
    copy: Option<Box<dyn Fn() -> Option<CopyOfPiece> + 'a>>,
}

/// A copy of a [`Piece`] that was begun while training went on: the tensor, when the copy is there.
pub(crate) type CopyOfPiece = Arc<dyn Fn() -> Result<Tensor> + Send + Sync>;

impl std::fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({} {:?} {:?})", self.name, self.dtype, self.shape)
    }
}

impl<'a> Piece<'a> {
    /// One that `make` makes.
    pub(crate) fn new(name: String, dtype: DType, shape: Vec<usize>, make: impl Fn() -> Result<Tensor> + 'a) -> Self {
        Self { name, dtype, shape, make: Box::new(make), copy: None }
    }

    /// A tensor that is there.
    pub(crate) fn of(name: &str, tensor: &'a Tensor) -> Self {
        Self::new(name.to_owned(), tensor.dtype(), tensor.dims().to_vec(), || Ok(tensor.clone()))
    }

    /// The same, of which `copy` begins a copy while training goes on, or says that there is none to be had so.
    pub(crate) fn copied_by(self, copy: impl Fn() -> Option<CopyOfPiece> + 'a) -> Self {
        Self { copy: Some(Box::new(copy)), ..self }
    }

    /// The same once more.
    pub(crate) fn again(&self) -> Piece<'_> {
        let again = Piece::new(self.name.clone(), self.dtype, self.shape.clone(), || self.make());
        again.copied_by(|| self.begin_copy())
    }

    /// Begins to copy it as it is now, where a card does that beside its work; `None` elsewhere.
    pub(crate) fn begin_copy(&self) -> Option<CopyOfPiece> {
        self.copy.as_ref().and_then(|copy| copy())
    }

    /// The bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.size_in_bytes() as u64
    }

    /// Makes it. Where a model is divided among several processes, each is to ask for it at the same time.
    ///
    /// # Errors
    /// Those of the tensor library, and another process that is gone.
    pub fn make(&self) -> Result<Tensor> {
        (self.make)()
    }
}

/// A weight as it is now, which stays so.
fn frozen(tensor: &Tensor) -> Result<Tensor> {
    Ok(if tensor.is_variable() { tensor.detach().copy()? } else { tensor.clone() })
}

fn frozen_weight(weight: &Weight) -> Result<Weight> {
    match weight {
        Weight::Tensor(tensor) => Ok(Weight::Tensor(frozen(tensor)?)),
        Weight::Quantized(_) | Weight::Share(_) => Ok(weight.clone()),
    }
}

/// Refuses a card of which those of the other processes know nothing, and to have none where they have some.
fn check_connected(mesh: &Mesh, device: &Compute) -> Result<()> {
    let is_connected = match (mesh.cards(), device) {
        _ if mesh.is_single() => true,
        (None, Compute::Processor) => true,
        (Some(cards), Compute::Card(card)) => Arc::ptr_eq(cards.card(), card),
        _ => false,
    };
    match is_connected {
        true => Ok(()),
        false => Err(Error::setup(
            "several processes train on processors, or on a card each by which their mesh connects them (`Mesh::connect`)",
        )),
    }
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

    fn adapted(
        &mut self,
        id: impl Fn(Of) -> ParamId,
        layer: &LayerSpec,
        mut weight: Weight,
        bias: Option<Tensor>,
    ) -> Result<Linear> {
        let of_weight = id(Of::Weight).name(self.config);
        let name = of_weight.strip_suffix(".weight").unwrap_or(&of_weight).to_string();
        let lora = self.options.lora.as_ref();
        let adapter = match lora.and_then(|lora| Some((lora, lora.of_layer(&name)?))) {
            Some((lora, of_layer)) => {
                if weight.is_variable() {
                    return Err(Error::setup("adapters need frozen weights: train either the weights or adapters"));
                }
                let [a, b] = [Of::LoraA, Of::LoraB].map(|of| (id(of).name(self.config), id(of)));
                let (sides, dtype) = ((layer.out, layer.inner), self.options.dtype);
                let mut adapter = fresh_adapter(&a.0, sides, dtype, lora, of_layer, self.mesh.shards())?;
                let whole = weight.clone();
                if lora.start.takes_of_weight() {
                    if self.config.tie_word_embeddings && of_weight == "lm_head.weight" {
                        return Err(tied_start(lora.start));
                    }
                    let part = part_of(&name, &weight, lora, of_layer)?;
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
                Some(adapter)
            }
            None => None,
        };
        Ok(Linear { name, weight, bias, adapter })
    }
}

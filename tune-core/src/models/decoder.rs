//! The whole model: embedding, blocks, norm, output layer.

mod load;
mod pieces;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor, Var};

pub use load::LoadOptions;
pub(crate) use load::{nothing_to_train, tied_start};
pub(crate) use pieces::CopyOfPiece;
pub use pieces::Piece;

use super::adapter::Adapter;
use super::block::Block;
use super::fake_quant::FakeQuantizer;
use super::linear::{Linear, Weight};
use super::parameter::{Parameter, Trainable};
use super::slots::Layers;
use super::spec::ModelSpec;
use super::tokens::{TokenRows, TrainedTokens};
use crate::device::Compute;
use crate::distributed::Mesh;
use crate::engine::{self, Card};
use crate::offload::OffloadFile;
use crate::{Error, Result};

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

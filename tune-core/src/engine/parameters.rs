//! Where a run finds a model's parameters.

use candle_core::Tensor;

use super::backend::{Backend, Reads};
use crate::Result;
use crate::kernels::Dropout;
use crate::models::{BlockNorm, Decoder, Layers, Linear, Weight};

/// Where the parameters of a model are: what is opened is there for as long as the result lives.
pub(crate) trait Parameters<B: Backend> {
    /// The parameters of a block; `next` is the block that will follow, and may be fetched meanwhile.
    fn open(&self, backend: &B, block: usize, next: Option<usize>) -> Result<BlockParams<B>>;

    /// The embedding table.
    fn embedding(&self, backend: &B) -> Result<B::Param>;

    /// The last norm and the output layer.
    fn top(&self, backend: &B) -> Result<(NormParams<B>, LayerParams<B>)>;

    /// Whether the embedding table is trained.
    fn trains_embedding(&self) -> bool;

    /// The lowest block in which something is trained, or the number of blocks.
    fn lowest_trained_block(&self) -> usize;
}

/// The parameters of a block.
pub(crate) struct BlockParams<B: Backend> {
    pub(crate) norms: Vec<(BlockNorm, NormParams<B>)>,
    pub(crate) layers: Layers<LayerParams<B>>,
}

/// A norm's weight.
pub(crate) struct NormParams<B: Backend> {
    pub(crate) weight: B::Param,
    /// Its length.
    pub(crate) width: usize,
    pub(crate) trained: bool,
}

/// A linear layer.
pub(crate) struct LayerParams<B: Backend> {
    /// `[out, inner]`.
    pub(crate) weight: B::Param,
    /// Whether it is in blocks.
    pub(crate) quantized: bool,
    /// `[out]`.
    pub(crate) bias: Option<B::Param>,
    /// Whether weight and bias are trained.
    pub(crate) trained: bool,
    pub(crate) out: usize,
    /// The rows of the weight that each of its results has.
    pub(crate) parts: Vec<usize>,
    pub(crate) inner: usize,
    pub(crate) adapter: Option<AdapterParams<B>>,
}

/// A layer's low-rank update, which is trained.
pub(crate) struct AdapterParams<B: Backend> {
    /// `[rank, inner]`.
    pub(crate) a: B::Param,
    /// `[out, rank]`.
    pub(crate) b: B::Param,
    pub(crate) rank: usize,
    /// `alpha / rank`.
    pub(crate) scale: f64,
    pub(crate) dropout: Option<Dropout>,
}

/// A model in memory, with the key of a pass's dropout.
#[derive(Clone, Copy)]
pub(super) struct Held<'m> {
    pub(super) model: &'m Decoder,
    pub(super) dropout: Option<u64>,
}

impl<'m> Held<'m> {
    fn layer<B: Reads<'m>>(&self, backend: &B, linear: &'m Linear, parts: Vec<usize>) -> Result<LayerParams<B>> {
        let (out, inner) = linear.weight.dims()?;
        let adapter = match &linear.adapter {
            None => None,
            Some(adapter) => Some(AdapterParams {
                a: backend.param(&adapter.a)?,
                b: backend.param(&adapter.b)?,
                rank: adapter.a.dim(0)?,
                scale: adapter.scale,
                dropout: linear.dropout(self.dropout),
            }),
        };
        Ok(LayerParams {
            weight: matrix(backend, &linear.weight)?,
            quantized: linear.weight.quantized().is_some(),
            bias: linear.bias.as_ref().map(|bias| backend.param(bias)).transpose()?,
            parts,
            trained: linear.weight.is_variable(),
            out,
            inner,
            adapter,
        })
    }
}

fn matrix<'m, B: Reads<'m>>(backend: &B, weight: &'m Weight) -> Result<B::Param> {
    match weight {
        Weight::Tensor(tensor) => backend.param(tensor),
        Weight::Quantized(of) => backend.quantized(of),
    }
}

fn norm_params<'m, B: Reads<'m>>(backend: &B, weight: &'m Tensor) -> Result<NormParams<B>> {
    let width = weight.elem_count();
    Ok(NormParams { weight: backend.param(weight)?, width, trained: weight.is_variable() })
}

impl<'m, B: Reads<'m>> Parameters<B> for Held<'m> {
    fn open(&self, backend: &B, block: usize, _: Option<usize>) -> Result<BlockParams<B>> {
        let mut layers = Vec::new();
        let own = &self.model.blocks[block];
        for ((site, linear), spec) in own.linears.iter().zip(self.model.config.layers(block)) {
            layers.push((site, self.layer(backend, linear, spec.parts)?));
        }
        let norm = |(norm, weight): &'m (BlockNorm, Tensor)| Ok((*norm, norm_params(backend, weight)?));
        Ok(BlockParams { norms: own.norms.iter().map(norm).collect::<Result<_>>()?, layers: Layers::new(layers) })
    }

    fn embedding(&self, backend: &B) -> Result<B::Param> {
        matrix(backend, self.model.embedding())
    }

    fn top(&self, backend: &B) -> Result<(NormParams<B>, LayerParams<B>)> {
        let (norm, head) = self.model.top();
        let norm = norm_params(backend, norm)?;
        Ok((norm, self.layer(backend, head, vec![self.model.config.vocab_size])?))
    }

    fn trains_embedding(&self) -> bool {
        self.model.trains_embedding()
    }

    fn lowest_trained_block(&self) -> usize {
        let blocks = &self.model.blocks;
        blocks.iter().position(|block| block.is_trained()).unwrap_or(blocks.len())
    }
}

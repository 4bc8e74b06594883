//! Where a run finds a model's parameters.

use std::sync::Arc;

use candle_core::Tensor;

use super::backend::{Backend, Reads};
use crate::kernels::fake_quant::Levels;
use crate::kernels::{Dropout, Share};
use crate::models::{BlockNorm, Decoder, LayerSpec, Layers, Linear, Site, TokenRows, Weight};
use crate::{Error, Result};

/// Where the parameters of a model are: what is opened is there for as long as the result lives.
pub(crate) trait Parameters<B: Backend> {
    /// The parameters of a block; `next` is the block that will follow, and may be fetched meanwhile.
    fn open(&self, backend: &B, block: usize, next: Option<usize>) -> Result<BlockParams<B>>;

    /// Takes back the parameters of a block that the backward pass will open again: whoever went a long way for them may keep them.
    fn give_back(&self, _block: usize, _params: BlockParams<B>) {}

    /// The embedding table.
    fn embedding(&self, backend: &B) -> Result<B::Param>;

    /// The last norm and the output layer.
    fn top(&self, backend: &B) -> Result<(NormParams<B>, LayerParams<B>)>;

    /// Whether the embedding table is trained.
    fn trains_embedding(&self) -> bool;

    /// The rows of the embedding table that are trained, in the place of those that it has.
    fn tokens(&self, backend: &B) -> Result<Option<TokenParams<B>>>;

    /// The tokens that have such rows.
    fn trained_tokens(&self) -> Option<&Arc<[u32]>>;

    /// The lowest block in which something is trained, or the number of blocks.
    fn lowest_trained_block(&self) -> usize;

    /// A number of this process's tokens, summed over all processes that train together.
    ///
    /// # Errors
    /// Another process is gone.
    fn total(&self, of_tokens: f64) -> Result<f64> {
        Ok(of_tokens)
    }
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

/// Rows of single tokens, which are trained and stand in for those of a frozen table or output layer.
pub(crate) struct TokenParams<B: Backend> {
    /// Whose they are, in the order of the rows.
    pub(crate) ids: Arc<[u32]>,
    /// `[tokens, hidden]`.
    pub(crate) rows: B::Param,
}

/// A linear layer.
pub(crate) struct LayerParams<B: Backend> {
    /// The block that it is in, and which of its layers it is; the output layer is in none.
    pub(crate) place: Option<(usize, Site)>,
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
    /// The weight as it is, where `weight` is rounded.
    pub(crate) exact: Option<Exact<B>>,
    /// Rows that stand in for some of the weight's.
    pub(crate) tokens: Option<TokenParams<B>>,
}

/// A weight that is rounded in products.
pub(crate) struct Exact<B: Backend> {
    /// `[out, inner]`.
    pub(crate) weight: B::Param,
    pub(crate) levels: Levels,
    /// Whether the layer's inputs are rounded, too.
    pub(crate) rounds_inputs: bool,
}

impl<B: Backend> LayerParams<B> {
    /// The same with a weight that is rounded.
    fn rounded(mut self, backend: &B, levels: Levels, rounds_inputs: bool) -> Result<Self> {
        let rounded = backend.rounded(&self.weight, (self.out, self.inner), levels)?;
        let weight = std::mem::replace(&mut self.weight, rounded);
        self.exact = Some(Exact { weight, levels, rounds_inputs });
        Ok(self)
    }
}

/// A layer's low-rank update, which is trained.
pub(crate) struct AdapterParams<B: Backend> {
    /// `[rank, inner]`.
    pub(crate) a: B::Param,
    /// `[out, rank]`.
    pub(crate) b: B::Param,
    pub(crate) rank: usize,
    /// What the update is scaled by.
    pub(crate) scale: f64,
    /// What the layer's results are scaled by, where they are (DoRA).
    pub(crate) scaling: Option<B::Scaling>,
    pub(crate) dropout: Option<Dropout>,
}

/// Where a parameter is read.
#[derive(Clone, Copy)]
pub(super) enum Source<'m> {
    Tensor(&'m Tensor),
    /// Some of its blocks are here.
    Share(&'m Arc<Share>),
}

/// Reads a parameter of which all is here.
fn whole<'m, B: Reads<'m>>(backend: &B, source: Source<'m>) -> Result<B::Param> {
    match source {
        Source::Tensor(tensor) => backend.param(tensor),
        Source::Share(_) => Err(Error::Training(
            "a parameter is divided and its model is not; this is a bug of the program, please report it".to_owned(),
        )),
    }
}

/// Reads rows of single tokens, if there are such.
pub(super) fn token_rows<'m, B: Reads<'m>>(
    tokens: Option<&'m TokenRows>,
    read: &mut dyn FnMut(Source<'m>) -> Result<B::Param>,
) -> Result<Option<TokenParams<B>>> {
    let Some(TokenRows { ids, rows }) = tokens else { return Ok(None) };
    Ok(Some(TokenParams { ids: Arc::clone(ids), rows: read(Source::Tensor(rows))? }))
}

/// A model in memory, with the key of a pass's dropout.
#[derive(Clone, Copy)]
pub(super) struct Held<'m> {
    pub(super) model: &'m Decoder,
    pub(super) dropout: Option<u64>,
}

impl<'m> Held<'m> {
    /// The parameters of a block; `read` gives those that are tensors or shares.
    pub(super) fn block<B: Reads<'m>>(
        &self,
        backend: &B,
        block: usize,
        read: &mut dyn FnMut(Source<'m>) -> Result<B::Param>,
    ) -> Result<BlockParams<B>> {
        let (own, spec) = (&self.model.blocks[block], &self.model.config);
        let mut layers = Vec::new();
        for ((site, linear), spec) in own.linears.iter().zip(spec.layers(block)) {
            let levels = self.model.fake_quantizer().and_then(|fake| fake.of_layer(&self.model.config, block, &spec));
            let params = self.layer(backend, linear, (spec, levels), read)?;
            layers.push((site, LayerParams { place: Some((block, site)), ..params }));
        }
        let mut norms = Vec::new();
        for ((norm, weight), (_, width)) in own.norms.iter().zip(spec.norms(block)) {
            norms.push((
                *norm,
                NormParams { weight: read(Source::Tensor(weight))?, width, trained: weight.is_variable() },
            ));
        }
        Ok(BlockParams { norms, layers: Layers::new(layers) })
    }

    /// The last norm and the output layer.
    pub(super) fn head<B: Reads<'m>>(
        &self,
        backend: &B,
        read: &mut dyn FnMut(Source<'m>) -> Result<B::Param>,
    ) -> Result<(NormParams<B>, LayerParams<B>)> {
        let ((norm, head), spec) = (self.model.top(), &self.model.config);
        let (width, trained) = (spec.hidden_size, norm.is_variable());
        let norm = NormParams { weight: read(Source::Tensor(norm))?, width, trained };
        let levels = self.model.fake_quantizer().and_then(|fake| fake.of_output(spec));
        let head = self.layer(backend, head, (spec.output(), levels), read)?;
        Ok((norm, LayerParams { tokens: token_rows(self.model.output_tokens(), read)?, ..head }))
    }

    /// The embedding table that is computed with, of the one that was read.
    pub(super) fn table<B: Backend>(&self, backend: &B, table: B::Param) -> Result<B::Param> {
        let spec = &self.model.config;
        match self.model.fake_quantizer().and_then(|fake| fake.of_embedding(spec)) {
            Some(levels) => backend.rounded(&table, (spec.vocab_size, spec.hidden_size), levels),
            None => Ok(table),
        }
    }

    fn layer<B: Reads<'m>>(
        &self,
        backend: &B,
        linear: &'m Linear,
        (spec, levels): (LayerSpec, Option<Levels>),
        read: &mut dyn FnMut(Source<'m>) -> Result<B::Param>,
    ) -> Result<LayerParams<B>> {
        let adapter = match &linear.adapter {
            None => None,
            Some(adapter) => Some(AdapterParams {
                a: read(Source::Tensor(&adapter.a))?,
                b: read(Source::Tensor(&adapter.b))?,
                rank: adapter.rank,
                scale: adapter.scale,
                scaling: None,
                dropout: linear.dropout(self.dropout),
            }),
        };
        let magnitude = linear.adapter.as_ref().and_then(|adapter| adapter.magnitude.as_ref());
        let params = LayerParams {
            place: None,
            weight: match &linear.weight {
                Weight::Tensor(tensor) => read(Source::Tensor(tensor))?,
                Weight::Share(share) => read(Source::Share(share))?,
                Weight::Quantized(of) => backend.quantized(of)?,
            },
            quantized: linear.weight.format().is_some(),
            bias: linear.bias.as_ref().map(|bias| read(Source::Tensor(bias))).transpose()?,
            trained: linear.weight.is_variable(),
            out: spec.out,
            parts: spec.parts,
            inner: spec.inner,
            adapter,
            exact: None,
            tokens: None,
        };
        let params = match levels.zip(self.model.fake_quantizer()) {
            Some((levels, fake)) => params.rounded(backend, levels, fake.rounds_inputs())?,
            None => params,
        };
        Ok(match magnitude {
            None => params,
            Some(magnitude) => params.scaled_by(backend, backend.scaling(magnitude)?),
        })
    }
}

impl<'m, B: Reads<'m>> Parameters<B> for Held<'m> {
    fn open(&self, backend: &B, block: usize, _: Option<usize>) -> Result<BlockParams<B>> {
        self.block(backend, block, &mut |source| whole(backend, source))
    }

    fn embedding(&self, backend: &B) -> Result<B::Param> {
        let table = match self.model.embedding() {
            Weight::Tensor(tensor) => backend.param(tensor)?,
            Weight::Quantized(of) => backend.quantized(of)?,
            Weight::Share(share) => whole(backend, Source::Share(share))?,
        };
        self.table(backend, table)
    }

    fn top(&self, backend: &B) -> Result<(NormParams<B>, LayerParams<B>)> {
        self.head(backend, &mut |source| whole(backend, source))
    }

    fn trains_embedding(&self) -> bool {
        self.model.trains_embedding()
    }

    fn tokens(&self, backend: &B) -> Result<Option<TokenParams<B>>> {
        token_rows(self.model.tokens(), &mut |source| whole(backend, source))
    }

    fn trained_tokens(&self) -> Option<&Arc<[u32]>> {
        self.model.tokens().map(|tokens| &tokens.ids)
    }

    fn lowest_trained_block(&self) -> usize {
        let blocks = &self.model.blocks;
        blocks.iter().position(|block| block.is_trained()).unwrap_or(blocks.len())
    }

    fn total(&self, of_tokens: f64) -> Result<f64> {
        let totals = self.model.mesh().all().all_reduce("the loss", vec![of_tokens]).wait()?;
        Ok(totals.into_iter().sum())
    }
}

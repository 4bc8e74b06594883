//! A model's parameters on paper, as they are stored and as they are read.

use std::sync::Arc;

use super::memory::Machine;
use super::{Paper, StepOnPaper};
use crate::Result;
use crate::engine::parameters::{AdapterParams, BlockParams, Exact, LayerParams, NormParams, Parameters, TokenParams};
use crate::kernels::fake_quant::Levels;
use crate::kernels::ledger::Entry;
use crate::kernels::{Dropout, Element};
use crate::models::{BlockNorm, LayerSpec, Layers, ParamId, TABLE};

/// A parameter as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stored {
    /// So many elements in the type of activations.
    Own(usize),
    /// So many elements of f32.
    F32(usize),
    /// So many bytes of blocks.
    Blocks(usize),
}

/// Gives what is read of a parameter, in the order in which a model has them: memory of its own, or none.
pub(super) type Read<'a> = &'a mut dyn FnMut(Stored) -> Option<Entry>;

impl StepOnPaper<'_> {
    /// Reads what is in memory: adapters are f32, and what is of another type is converted.
    fn held<T: Element>(paper: &Paper<T>) -> impl FnMut(Stored) -> Option<Entry> {
        let converts = T::IS_BF16 && paper.machine != Machine::Card;
        move |stored| match stored {
            Stored::F32(len) if converts => Some(paper.take::<T>(len)),
            _ => None,
        }
    }

    /// The parameters of a block.
    pub(super) fn block<T: Element>(&self, paper: &Paper<T>, block: usize, read: Read<'_>) -> BlockParams<Paper<T>> {
        let mut layers = Vec::new();
        for layer in self.model.layers(block) {
            let name = format!("model.layers.{block}.{}", layer.site.path());
            let (site, levels) = (layer.site, self.fake.and_then(|fake| fake.of_layer(self.model, block, &layer)));
            let params = self.layer(paper, &name, &format!("{name}.weight"), layer, read);
            layers.push((site, self.rounded(paper, params, levels)));
        }
        let norm = |(norm, width): (BlockNorm, usize)| (norm, self.norm(ParamId::Norm(block, norm), width, read));
        BlockParams { norms: self.model.norms(block).into_iter().map(norm).collect(), layers: Layers::new(layers) }
    }

    /// The last norm and the output layer.
    pub(super) fn head<T: Element>(
        &self,
        paper: &Paper<T>,
        read: Read<'_>,
    ) -> (NormParams<Paper<T>>, LayerParams<Paper<T>>) {
        let name = self.model.output_name();
        let own = format!("{name}.weight");
        let weight = if self.model.tie_word_embeddings { TABLE } else { own.as_str() };
        let norm = self.norm(ParamId::LastNorm, self.model.hidden_size, read);
        let params = self.layer(paper, &name, weight, self.model.output(), read);
        let params = self.rounded(paper, params, self.fake.and_then(|fake| fake.of_output(self.model)));
        let ids = if self.model.tie_word_embeddings { self.ids() } else { self.output_ids() };
        (norm, LayerParams { tokens: self.rows_of(ids, read), ..params })
    }

    /// The rows of single tokens of the embedding table.
    pub(super) fn token_rows<T: Element>(&self, read: Read<'_>) -> Option<TokenParams<Paper<T>>> {
        self.rows_of(self.ids(), read)
    }

    fn rows_of<T: Element>(&self, ids: Option<&Arc<[u32]>>, read: Read<'_>) -> Option<TokenParams<Paper<T>>> {
        let ids = Arc::clone(ids?);
        Some(TokenParams { rows: read(Stored::F32(ids.len() * self.model.hidden_size)), ids })
    }

    /// The tokens that have such rows.
    pub(super) fn ids(&self) -> Option<&Arc<[u32]>> {
        self.lora.map(|lora| &lora.tokens.ids).filter(|ids| !ids.is_empty())
    }

    /// The tokens that have rows of an output layer of its own.
    fn output_ids(&self) -> Option<&Arc<[u32]>> {
        self.lora.map(|lora| &lora.output_tokens.ids).filter(|ids| !ids.is_empty())
    }

    /// A layer whose weight is rounded, in memory of its own, where there are levels.
    fn rounded<T: Element>(
        &self,
        paper: &Paper<T>,
        mut params: LayerParams<Paper<T>>,
        levels: Option<Levels>,
    ) -> LayerParams<Paper<T>> {
        if let Some((levels, fake)) = levels.zip(self.fake) {
            let rounded = Some(paper.take::<T>(params.out * params.inner));
            let weight = std::mem::replace(&mut params.weight, rounded);
            params.exact = Some(Exact { weight, levels, rounds_inputs: fake.rounds_inputs() });
        }
        params
    }

    /// The embedding table.
    pub(super) fn table<T: Element>(&self, paper: &Paper<T>, read: Read<'_>) -> Option<Entry> {
        let (rows, cols) = (self.model.vocab_size, self.model.hidden_size);
        let table = read(self.matrix(TABLE, rows, cols));
        match self.fake.and_then(|fake| fake.of_embedding(self.model)) {
            Some(_) => Some(paper.take::<T>(rows * cols)),
            None => table,
        }
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Stored {
        match self.in_blocks.format(name) {
            Some(format) => Stored::Blocks(format.bytes(rows, cols).unwrap_or_default() as usize),
            None => Stored::Own(rows * cols),
        }
    }

    /// A layer of this name, whose weight may be that of another.
    fn layer<T: Element>(
        &self,
        paper: &Paper<T>,
        name: &str,
        weight: &str,
        layer: LayerSpec,
        read: Read<'_>,
    ) -> LayerParams<Paper<T>> {
        let LayerSpec { out, parts, inner, bias, .. } = layer;
        let adapter = self.lora.and_then(|lora| Some((lora, lora.of_layer(name)?.rank)));
        let adapter = adapter.map(|(lora, rank)| AdapterParams {
            a: read(Stored::F32(rank * inner)),
            b: read(Stored::F32(out * rank)),
            rank,
            scale: 1.0,
            scaling: None,
            dropout: (lora.dropout > 0.0).then(|| Dropout::new(lora.dropout, 0)),
        });
        let params = LayerParams {
            place: None,
            weight: read(self.matrix(weight, out, inner)),
            quantized: self.in_blocks.format(weight).is_some(),
            bias: bias.then(|| read(Stored::Own(out))),
            trained: self.trains(weight),
            out,
            parts,
            inner,
            adapter,
            exact: None,
            tokens: None,
        };
        match self.lora.is_some_and(|lora| lora.dora) && params.adapter.is_some() {
            true => params.scaled_by(paper, (out, None)),
            false => params,
        }
    }

    fn norm<T: Element>(&self, id: ParamId, width: usize, read: Read<'_>) -> NormParams<Paper<T>> {
        NormParams { weight: read(Stored::Own(width)), width, trained: self.trains(&id.name(self.model)) }
    }

    /// Whether the model's own weight of this name is trained.
    fn trains(&self, weight: &str) -> bool {
        self.lora.is_none_or(|lora| lora.whole.contains(weight))
    }
}

impl<T: Element> Parameters<Paper<T>> for StepOnPaper<'_> {
    fn open(&self, paper: &Paper<T>, block: usize, _: Option<usize>) -> Result<BlockParams<Paper<T>>> {
        Ok(self.block(paper, block, &mut Self::held(paper)))
    }

    fn embedding(&self, paper: &Paper<T>) -> Result<Option<Entry>> {
        Ok(self.table(paper, &mut Self::held(paper)))
    }

    fn top(&self, paper: &Paper<T>) -> Result<(NormParams<Paper<T>>, LayerParams<Paper<T>>)> {
        Ok(self.head(paper, &mut Self::held(paper)))
    }

    fn trains_embedding(&self) -> bool {
        self.trains(TABLE)
    }

    fn tokens(&self, paper: &Paper<T>) -> Result<Option<TokenParams<Paper<T>>>> {
        Ok(self.token_rows(&mut Self::held(paper)))
    }

    fn trained_tokens(&self) -> Option<&Arc<[u32]>> {
        self.ids()
    }

    fn lowest_trained_block(&self) -> usize {
        let Some(lora) = self.lora else { return 0 };
        let blocks = self.model.blocks.len();
        let name = |block: &usize, layer: &LayerSpec| format!("model.layers.{block}.{}", layer.site.path());
        let adapted =
            |block: &usize| self.model.layers(*block).iter().any(|layer| lora.of_layer(&name(block, layer)).is_some());
        let is_whole =
            |block: &usize| lora.whole.iter().any(|name| name.starts_with(&format!("model.layers.{block}.")));
        (0..blocks).find(|block| adapted(block) || is_whole(block)).unwrap_or(blocks)
    }
}

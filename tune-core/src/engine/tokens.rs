//! Rows of single tokens where these enter the model: they stand in for those of the embedding table.

use std::collections::HashMap;

use super::backend::Backend;
use crate::models::{EmbeddingSpec, ModelSpec};

/// The positions of a batch at which there are tokens with a row of their own.
pub(super) struct Among<'a> {
    /// The tokens that have one, in the order of the rows.
    ids: &'a [u32],
    /// Where they are in the batch.
    places: Vec<usize>,
    /// The row at each place.
    rows: Vec<u32>,
}

impl<'a> Among<'a> {
    /// The places of `ids` among the tokens of a batch.
    pub(super) fn of(ids: &'a [u32], tokens: &[u32]) -> Self {
        let row_of: HashMap<u32, u32> = ids.iter().copied().zip(0..).collect();
        let found = tokens.iter().enumerate().filter_map(|(place, token)| Some((place, *row_of.get(token)?)));
        let (places, rows) = found.unzip();
        Self { ids, places, rows }
    }

    /// Their embeddings in the place of those that are in `x` `[m, hidden]`.
    pub(super) fn embed<B: Backend>(&self, backend: &B, shape: &ModelSpec, own: &B::Param, x: &mut B::Acts) {
        let (width, count) = (shape.hidden_size, self.places.len());
        if count > 0 {
            let mut embedded = backend.acts(count, width);
            backend.lookup(own, width, &self.rows, self.how(shape), &mut embedded);
            backend.scatter(&embedded, width, &self.places, x);
        }
    }

    /// The gradient of the rows, `[tokens, hidden]`, for that of all embeddings `g` `[m, hidden]`: it is added to what the rows have as
    /// rows of the output layer, if they are such.
    pub(super) fn gradient<B: Backend>(
        &self,
        backend: &B,
        shape: &ModelSpec,
        g: &B::Acts,
        of_output: Option<B::Sums>,
    ) -> B::Sums {
        let (width, count) = (shape.hidden_size, self.places.len());
        let mut sum = of_output.unwrap_or_else(|| {
            let mut zeros = backend.gradient(self.ids.len(), width);
            backend.clear(&mut zeros);
            zeros
        });
        if count > 0 {
            let mut of_places = backend.acts(count, width);
            backend.gather(g, width, &self.places, &mut of_places);
            backend.lookup_back(&of_places, width, &self.rows, self.how(shape), &mut sum);
        }
        sum
    }

    /// How rows become embeddings, where padding is a row instead of a token.
    fn how(&self, shape: &ModelSpec) -> EmbeddingSpec {
        let row = |padding| self.ids.iter().zip(0..).find(|(id, _)| **id == padding).map(|(_, row)| row);
        EmbeddingSpec { padding: shape.embedding.padding.and_then(row), ..shape.embedding }
    }
}

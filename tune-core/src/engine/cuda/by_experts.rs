//! Products of all experts at once, each expert's rows by places that the card alone knows.

use std::sync::Arc;

use tune_cuda::{ByExperts as Term, Routes, Table, View, ViewMut};

use super::weights::Param;
use super::{Cuda, Number};
use crate::engine::backend::{AtPlaces, ByExperts};

impl<T: Number> Cuda<T> {
    /// See [`crate::engine::backend::Backend::multiply_places`].
    pub(super) fn by_experts(&self, routes: &Routes, by: ByExperts<'_, Self>) {
        let ByExperts { out, inner, rank, of_tokens, factor, products } = by;
        let (mut rows, mut low_ranks, mut results) = (Vec::new(), Vec::new(), Vec::<ViewMut<'_, T>>::new());
        let (mut weights, mut adapters) = (Vec::new(), Vec::new());
        for AtPlaces { x, weights: own, adapters: beside, y } in products {
            rows.push(x.view(inner));
            weights.extend(matrices(own, (out, inner)));
            if let Some((h, b)) = beside {
                low_ranks.push(h.view(rank));
                adapters.extend(matrices(b, (out, rank)));
            }
            results.push(y.view_mut(out));
        }
        let table = self.card.table(&weights);
        let own = Term { x: &rows, of_tokens, weights: &weights, table: &table };
        let of_adapters: Option<Arc<Table>> = (!adapters.is_empty()).then(|| self.card.table(&adapters));
        let beside =
            of_adapters.as_deref().map(|table| Term { x: &low_ranks, of_tokens: false, weights: &adapters, table });
        self.context().multiply_grouped(routes, own, beside, factor as f32, &mut results);
    }
}

/// Weights as a kernel reads them.
fn matrices<T: Number>(of: Vec<&Param<T>>, (out, inner): (usize, usize)) -> impl Iterator<Item = View<'_, T>> {
    of.into_iter().map(move |weight| weight.numbers().part(0, (out, inner), inner))
}

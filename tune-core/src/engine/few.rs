//! Experts of the newest tokens of sequences, all at once: a token of each goes to a few experts, and nobody waits to be told to which.
//!
//! It is asked for where a backend has few places for its experts, and where these are alike: weights that are numbers, and adapters of
//! one rank, without dropout. Any other layer is computed expert by expert, see [`super::experts`].

use super::backend::{AtPlaces, Backend, ByExperts, Experts};
use super::block::Block;
use super::linear::Plain;
use super::parameters::{AdapterParams, LayerParams};
use crate::models::Slot;
use crate::models::Slot::{DownProj, GateProj, UpProj};

/// The layers in one place of all experts, which are alike.
pub(super) struct All<'a, B: Backend> {
    layers: Vec<&'a LayerParams<B>>,
    each: Plain,
}

impl<B: Backend> All<'_, B> {
    fn adapters(&self) -> impl Iterator<Item = &AdapterParams<B>> {
        self.layers.iter().filter_map(|layer| layer.adapter.as_ref())
    }
}

impl<B: Backend> Block<'_, B> {
    /// The gates of experts and what is beside these, where all experts are computed at once.
    pub(super) fn few(&self, how: Experts) -> Option<[All<'_, B>; 2]> {
        let places = self.run.tokens() * how.chosen;
        if !(self.run.is_of_newest() && self.run.backend.has_few_places(places, how.count)) {
            return None;
        }
        let all = [self.all(GateProj, how)?, self.all(UpProj, how)?];
        self.all(DownProj, how).map(|_| all)
    }

    /// What they make of the tokens `x` `[m, hidden]` that go to them, each a row for each place.
    pub(super) fn gate_and_up_at_once(
        &self,
        [gate, up]: [All<'_, B>; 2],
        x: &B::Acts,
        routes: &B::Routes,
        places: usize,
    ) -> (B::Acts, B::Acts) {
        let [mut of_gate, mut of_up] = [&gate, &up].map(|of| self.run.backend.acts(places, of.each.out));
        let x = (x, true, places);
        if gate.each == up.each {
            self.at_once(vec![(&gate, &mut of_gate), (&up, &mut of_up)], gate.each, x, routes);
        } else {
            self.at_once(vec![(&gate, &mut of_gate)], gate.each, x, routes);
            self.at_once(vec![(&up, &mut of_up)], up.each, x, routes);
        }
        (of_gate, of_up)
    }

    /// What the last layers of experts make of `x` `[places, ..]`.
    pub(super) fn down_at_once(&self, x: &B::Acts, routes: &B::Routes, places: usize) -> B::Acts {
        let (how, _) = self.experts().unwrap_or_default();
        let Some(down) = self.all(DownProj, how) else { unreachable!("they were asked for with the gates") };
        let mut y = self.run.backend.acts(places, down.each.out);
        self.at_once(vec![(&down, &mut y)], down.each, (x, false, places), routes);
        y
    }

    fn all(&self, slot: Slot, how: Experts) -> Option<All<'_, B>> {
        let of_experts = self.params.layers.iter().filter(|(site, _)| site.slot == slot);
        let mut layers: Vec<_> = of_experts.filter_map(|(site, layer)| Some((site.expert?, layer))).collect();
        layers.sort_unstable_by_key(|(expert, _)| *expert);
        let layers: Vec<&LayerParams<B>> = layers.into_iter().map(|(_, layer)| layer).collect();
        let each = layers.first()?.plain()?;
        let are_alike = layers.len() == how.count && layers.iter().all(|layer| layer.plain() == Some(each));
        are_alike.then_some(All { layers, each })
    }

    /// Products by layers that are like `each`, with the same input: rows of tokens, or of places.
    fn at_once(
        &self,
        layers: Vec<(&All<'_, B>, &mut B::Acts)>,
        each: Plain,
        (x, of_tokens, places): (&B::Acts, bool, usize),
        routes: &B::Routes,
    ) {
        let (backend, Plain { out, inner, adapter }) = (self.run.backend, each);
        let (rank, scale) = adapter.unwrap_or_default();
        let low_rank = adapter.map(|_| {
            let mut low_rank: Vec<B::Acts> = layers.iter().map(|_| backend.acts(places, rank)).collect();
            let products = layers.iter().zip(&mut low_rank).map(|((of, _), y)| {
                let weights = of.adapters().map(|adapter| &adapter.a).collect();
                AtPlaces { x, weights, adapters: None, y }
            });
            let products = products.collect();
            let by = ByExperts { out: rank, inner, rank: 0, of_tokens, factor: scale, products };
            backend.multiply_places(routes, by);
            low_rank
        });
        let products = layers.into_iter().enumerate().map(|(i, (of, y))| {
            let weights = of.layers.iter().map(|layer| &layer.weight).collect();
            let b = || of.adapters().map(|adapter| &adapter.b).collect();
            AtPlaces { x, weights, adapters: low_rank.as_ref().map(|low_rank| (&low_rank[i], b())), y }
        });
        let products = products.collect();
        backend.multiply_places(routes, ByExperts { out, inner, rank, of_tokens, factor: 1.0, products });
    }
}

//! The body of a block's second half: a gated network, or several of which each token takes some, see [`super::experts`].

use super::backend::{Backend, Experts, Part, PartMut};
use super::block::{Block, Input, Target};
use super::experts::Routed;
use super::linear::{Layer, LowRank, input_gradient};
use super::run::Found;
use crate::models::Slot::{DownProj, GateProj, GateUpProj, UpProj};
use crate::models::{Activation, Half, MlpSpec, Site};

/// What the forward pass keeps for the backward one.
pub(super) struct Gated<B: Backend> {
    /// `[m, inner]` each; of experts, a row for each of a token's places.
    pub(super) gate: B::Acts,
    pub(super) up: B::Acts,
    /// What the adapters make of their inputs, where there are no experts.
    pub(super) low_rank: Vec<LowRank<B>>,
    pub(super) low_rank_of_down: LowRank<B>,
    pub(super) routed: Option<Routed<B>>,
}

impl<B: Backend> Block<'_, B> {
    pub(super) fn layer(&self, site: Site) -> Layer<'_, B> {
        Layer { backend: self.run.backend, params: self.params.layers.of(site) }
    }

    fn gates(&self) -> Vec<(Site, Layer<'_, B>)> {
        self.layers(&[GateUpProj, GateProj, UpProj].map(Site::from))
    }

    pub(super) fn experts(&self) -> Option<(Experts, usize)> {
        match self.spec.mlp {
            MlpSpec::Gated { .. } => None,
            MlpSpec::Experts { count, chosen, inner, renormalized, .. } => {
                Some((Experts { count, chosen, renormalized }, inner))
            }
        }
    }

    pub(super) fn activation(&self) -> Activation {
        match self.spec.mlp {
            MlpSpec::Gated { activation, .. } | MlpSpec::Experts { activation, .. } => activation,
        }
    }

    /// The half up to its activation; experts by routes that were kept, if they were.
    pub(super) fn gate_and_up(&self, x: &Input<'_, B>, m: usize, kept: Option<B::Routes>) -> Gated<B> {
        if let Some((how, inner)) = self.experts() {
            return self.route(x.get(), how, inner, kept);
        }
        let mut projected = self.project(&self.gates(), x.get(), m);
        let (up, gate) = (projected.results.pop(), projected.results.pop());
        let none = || self.run.backend.acts(0, 0);
        Gated {
            gate: gate.unwrap_or_else(none),
            up: up.unwrap_or_else(none),
            low_rank: projected.low_rank,
            low_rank_of_down: None,
            routed: None,
        }
    }

    /// The rest of the half, into `y`.
    pub(super) fn down(&self, gated: &mut Gated<B>, target: &Target<'_, B>, y: &mut B::Acts) {
        let (backend, m) = (self.run.backend, self.run.tokens());
        let rows = gated.routed.as_ref().map_or(m, Routed::rows);
        let mut activated = backend.acts(rows, self.spec.mlp.inner());
        backend.gate(self.activation(), &gated.gate, &gated.up, &mut activated);
        match &mut gated.routed {
            Some(routed) => self.experts_down(routed, &activated, target, y),
            None => {
                let down = self.layer(DownProj.into());
                gated.low_rank_of_down = down.low_rank(Part::new(&activated, m, down.inner()), None);
                down.forward(&activated, m, &gated.low_rank_of_down, target.finish(m, down.out()), y);
            }
        }
    }

    /// See [`Block::half_back`].
    pub(super) fn mlp_backward(
        &self,
        middle: &B::Acts,
        saved: Gated<B>,
        gradient: &B::Acts,
        onto: Option<&B::Acts>,
        found: &mut Found<B>,
    ) -> Option<B::Acts> {
        let Gated { gate: mut g_gate, up: mut g_up, low_rank, low_rank_of_down, routed } = saved;
        if let Some(routed) = routed {
            return Some(self.experts_backward(middle, (g_gate, g_up), routed, gradient, onto, found));
        }
        let (backend, m, down) = (self.run.backend, self.run.tokens(), self.layer(DownProj.into()));
        let mut activated = self.run.acts(down.inner());
        let back = down.back_of(gradient, m);
        let input = back.rounds_inputs().then(|| {
            let mut input = self.run.acts(down.inner());
            backend.gate(self.activation(), &g_gate, &g_up, &mut input);
            input
        });
        let x = input.as_ref().map(|input| Part::new(input, m, down.inner()));
        input_gradient(&[&back], None, x, None, PartMut::new(&mut activated, m, down.inner()));
        drop(input);
        backend.gate_back(self.activation(), &mut g_gate, &mut g_up, &mut activated);
        let x = Part::new(&activated, m, down.inner());
        let low_rank_of_down = low_rank_of_down.or_else(|| down.low_rank(x, None));
        down.train(&back, &down.fed_back(x), &low_rank_of_down, None, self.id(DownProj.into()), found);
        drop((back, activated));
        let normed = self.normed(middle, Half::Mlp);
        self.project_back(&self.gates(), &[g_gate, g_up], &low_rank, normed, onto, true, found)
    }
}

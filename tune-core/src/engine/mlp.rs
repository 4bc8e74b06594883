//! The body of a block's second half: a gated network, or several of which each token takes some.

use super::backend::{Backend, Experts, Finish, Part, PartMut};
use super::block::{Block, Input, Target};
use super::linear::{Layer, LowRank, input_gradient};
use super::run::Found;
use crate::kernels::experts::Routes;
use crate::models::Slot::{DownProj, GateProj, GateUpProj, Router, UpProj};
use crate::models::{Activation, Half, MlpSpec, Of, Site, Slot};

/// What the forward pass keeps for the backward one.
pub(super) struct Gated<B: Backend> {
    /// `[m, inner]` each; of experts, a row for each of a token's places.
    gate: B::Acts,
    up: B::Acts,
    /// What the adapters make of their inputs.
    low_rank: Vec<LowRank<B>>,
    low_rank_of_down: LowRank<B>,
    routed: Option<Routed<B>>,
}

/// Which experts tokens go to.
struct Routed<B: Backend> {
    /// The router's, `[m, experts]`.
    logits: B::Sums,
    routes: Routes,
}

/// The three layers of an expert.
const OF_EXPERT: [Slot; 3] = [GateProj, UpProj, DownProj];

impl<B: Backend> Block<'_, B> {
    pub(super) fn layer(&self, site: Site) -> Layer<'_, B> {
        Layer { backend: self.run.backend, params: self.params.layers.of(site) }
    }

    fn gates(&self) -> Vec<(Site, Layer<'_, B>)> {
        self.layers(&[GateUpProj, GateProj, UpProj].map(Site::from))
    }

    fn experts(&self) -> Option<(Experts, usize)> {
        match self.spec.mlp {
            MlpSpec::Gated { .. } => None,
            MlpSpec::Experts { count, chosen, inner, renormalized, .. } => {
                Some((Experts { count, chosen, renormalized }, inner))
            }
        }
    }

    fn activation(&self) -> Activation {
        match self.spec.mlp {
            MlpSpec::Gated { activation, .. } | MlpSpec::Experts { activation, .. } => activation,
        }
    }

    /// The half up to its activation.
    pub(super) fn gate_and_up(&self, x: &Input<'_, B>, m: usize) -> Gated<B> {
        if let Some((how, inner)) = self.experts() {
            return self.route(x.get(), how, inner);
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
        let rows = gated.routed.as_ref().map_or(m, |routed| routed.routes.tokens.len());
        let mut activated = backend.acts(rows, self.spec.mlp.inner());
        backend.gate(self.activation(), &gated.gate, &gated.up, &mut activated);
        match &gated.routed {
            Some(routed) => self.experts_down(&routed.routes, &activated, target, y),
            None => {
                let down = self.layer(DownProj.into());
                gated.low_rank_of_down = down.low_rank(&activated, m, None);
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
        let Gated { gate: mut g_gate, up: mut g_up, low_rank, mut low_rank_of_down, routed } = saved;
        if let Some(routed) = routed {
            return Some(self.experts_backward(middle, (g_gate, g_up), &routed, gradient, onto, found));
        }
        let (backend, m, down) = (self.run.backend, self.run.tokens(), self.layer(DownProj.into()));
        let mut activated = self.run.acts(down.inner());
        let back = down.back_of(gradient, m);
        input_gradient(&[&back], None, None, &mut activated);
        backend.gate_back(self.activation(), &mut g_gate, &mut g_up, &mut activated);
        if low_rank_of_down.is_none() {
            low_rank_of_down = down.low_rank(&activated, m, None);
        }
        down.train(&back, &activated, &low_rank_of_down, self.id(DownProj.into()), found);
        drop((back, activated));
        let normed = self.normed(middle, Half::Mlp);
        self.project_back(&self.gates(), &[g_gate, g_up], &low_rank, normed, onto, true, found)
    }

    /// What the gates of experts make of the tokens that go to them.
    fn route(&self, x: &B::Acts, how: Experts, inner: usize) -> Gated<B> {
        let (backend, m, width) = (self.run.backend, self.run.tokens(), self.run.shape.hidden_size);
        let mut logits = backend.sums(m, how.count);
        self.layer(Router.into()).forward_sums(x, m, &None, &mut logits);
        let routes = backend.route(&logits, m, how);
        let rows = routes.tokens.len();
        let mut of_experts = backend.acts(rows, width);
        backend.gather(x, width, &routes.tokens, &mut of_experts);
        let (mut gate, mut up) = (backend.acts(rows, inner), backend.acts(rows, inner));
        for (expert, first, count) in occupied(&routes) {
            for (slot, y) in [(GateProj, &mut gate), (UpProj, &mut up)] {
                let layer = self.layer(Site { slot, expert: Some(expert) });
                let x = Part::rows(&of_experts, first, count, width);
                layer.forward_part(x, &None, (0, inner), Finish::Store, PartMut::rows(y, first, count, inner));
            }
        }
        Gated { gate, up, low_rank: Vec::new(), low_rank_of_down: None, routed: Some(Routed { logits, routes }) }
    }

    fn experts_down(&self, routes: &Routes, activated: &B::Acts, target: &Target<'_, B>, y: &mut B::Acts) {
        let (backend, m, width) = (self.run.backend, self.run.tokens(), self.run.shape.hidden_size);
        let rows = routes.tokens.len();
        let mut results = backend.acts(rows, width);
        for (expert, first, count) in occupied(routes) {
            let layer = self.layer(Site { slot: DownProj, expert: Some(expert) });
            let x = Part::rows(activated, first, count, layer.inner());
            let to = PartMut::rows(&mut results, first, count, width);
            layer.forward_part(x, &None, (0, width), Finish::Store, to);
        }
        let onto = match target {
            Target::Onto(x) => Some(Part::new(*x, m, width)),
            Target::Beside => None,
        };
        backend.combine(Part::new(&results, rows, width), routes, true, onto, PartMut::new(y, m, width));
    }

    fn experts_backward(
        &self,
        middle: &B::Acts,
        (mut g_gate, mut g_up): (B::Acts, B::Acts),
        routed: &Routed<B>,
        gradient: &B::Acts,
        onto: Option<&B::Acts>,
        found: &mut Found<B>,
    ) -> B::Acts {
        let (backend, m, width, inner) =
            (self.run.backend, self.run.tokens(), self.run.shape.hidden_size, self.spec.mlp.inner());
        let routes = &routed.routes;
        let rows = routes.tokens.len();
        let layer = |slot, expert| self.layer(Site { slot, expert: Some(expert) });
        // With w the weight of a place and g the gradient of its token: that of what the expert made is w g, and that of w
        // is the product of g with what the expert made, or of g through the layer with that layer's input.
        let mut g = backend.acts(rows, width);
        backend.gather(gradient, width, &routes.tokens, &mut g);
        let mut g_activated = backend.acts(rows, inner);
        for (expert, first, count) in occupied(routes) {
            let down = layer(DownProj, expert);
            let back = down.back(vec![Part::rows(&g, first, count, width)]);
            back.input_into(PartMut::rows(&mut g_activated, first, count, inner));
        }
        let mut activated = backend.acts(rows, inner);
        backend.gate(self.activation(), &g_gate, &g_up, &mut activated);
        let of_places = backend.row_dots(Part::new(&activated, rows, inner), Part::new(&g_activated, rows, inner));
        drop(activated);
        let weights = routes.weights_of_places();
        backend.scale_rows(PartMut::new(&mut g_activated, rows, inner), &weights);
        backend.gate_back(self.activation(), &mut g_gate, &mut g_up, &mut g_activated);
        let activated = g_activated;
        backend.scale_rows(PartMut::new(&mut g, rows, width), &weights);

        let normed = self.normed(middle, Half::Mlp);
        let mut of_experts = backend.acts(rows, width);
        backend.gather(normed.get(), width, &routes.tokens, &mut of_experts);
        for expert in 0..routes.starts.len() - 1 {
            let (first, end) = (routes.starts[expert], routes.starts[expert + 1]);
            let inputs = [
                (&g_gate, &of_experts, inner, width),
                (&g_up, &of_experts, inner, width),
                (&g, &activated, width, inner),
            ];
            for (slot, (g, x, out, inner)) in OF_EXPERT.into_iter().zip(inputs) {
                let site = Site { slot, expert: Some(expert as u32) };
                if !self.layer(site).params.trained {
                    continue;
                }
                let mut own = backend.gradient(out, inner);
                let (g, x) = (Part::rows(g, first, end - first, out), Part::rows(x, first, end - first, inner));
                match end > first {
                    true => self.layer(site).weight_gradient(x, g, 0, false, &mut own),
                    false => backend.clear(&mut own),
                }
                found.push((self.id(site)(Of::Weight), own));
            }
        }
        drop((g, activated));
        // The gradient of the experts' inputs takes the memory that these had.
        let mut g_experts = of_experts;
        for (expert, first, count) in occupied(routes) {
            let backs = [(GateProj, &g_gate), (UpProj, &g_up)].map(|(slot, g)| (layer(slot, expert), g));
            let backs = backs.map(|(layer, g)| layer.back(vec![Part::rows(g, first, count, inner)]));
            let [gate, up] = &backs;
            gate.input_with(up, PartMut::rows(&mut g_experts, first, count, width));
        }
        drop((g_gate, g_up));

        let (router, (how, _)) = (self.layer(Router.into()), self.experts().unwrap_or_default());
        let of_weights: Vec<f64> = routes.places.iter().map(|&place| of_places[place]).collect();
        let mut g_logits = backend.acts(m, how.count);
        backend.route_back(&routed.logits, how, routes, &of_weights, &mut g_logits);
        let back = router.back_of(&g_logits, m);
        router.train(&back, normed.get(), &None, self.id(Router.into()), found);
        let mut through_router = self.run.acts(width);
        input_gradient(&[&back], None, onto, &mut through_router);
        let mut g_input = match normed {
            Input::Normed(normed) => normed,
            Input::Stream(_) => self.run.acts(width),
        };
        let onto = Some(Part::new(&through_router, m, width));
        backend.combine(Part::new(&g_experts, rows, width), routes, false, onto, PartMut::new(&mut g_input, m, width));
        g_input
    }
}

/// The experts that some token goes to: their numbers, their first places, and how many they have.
fn occupied(routes: &Routes) -> impl Iterator<Item = (u32, usize, usize)> {
    let places = routes.starts.windows(2).map(|pair| (pair[0], pair[1] - pair[0]));
    places.enumerate().map(|(expert, (first, count))| (expert as u32, first, count)).filter(|(.., count)| *count > 0)
}

//! Several gated networks in place of one, of which each token takes some (a mixture of experts).
//!
//! What goes to experts is gathered expert by expert, a row for each of a token's places; an expert's layers compute its rows. For
//! the dropout of adapters, a row counts as its token's.

use super::backend::{Backend, Experts, Finish, Part, PartMut, Selection};
use super::block::{Block, Input, Target};
use super::linear::{Layer, LowRank, input_gradient};
use super::mlp::Gated;
use super::run::Found;
use crate::models::Slot::{DownProj, GateProj, Router, UpProj};
use crate::models::{Half, Site, Slot};

/// Which experts tokens go to.
pub(super) struct Routed<B: Backend> {
    /// The router's, `[m, experts]`.
    logits: B::Sums,
    /// What the router's adapter makes of its input.
    low_rank: LowRank<B>,
    routes: B::Routes,
    /// Places.
    rows: usize,
    to: To<B>,
}

/// Whose rows are computed how.
enum To<B: Backend> {
    /// The experts that some token goes to, one after the other.
    Each(Vec<Occupied<B>>),
    /// All at once; there is no way back.
    AllAtOnce,
}

impl<B: Backend> Routed<B> {
    /// Rows of what experts compute.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// What need not be found again.
    pub(super) fn into_routes(self) -> B::Routes {
        self.routes
    }
}

/// An expert that some token goes to.
struct Occupied<B: Backend> {
    expert: u32,
    /// The first of its rows, and how many it has.
    first: usize,
    count: usize,
    /// What its adapters make of their inputs.
    gate: LowRank<B>,
    up: LowRank<B>,
    down: LowRank<B>,
}

impl<B: Backend> Occupied<B> {
    /// Those of the experts, whose first places are these.
    fn of(starts: &[usize]) -> Vec<Self> {
        let ends = starts.windows(2).enumerate();
        let occupied = ends.filter(|(_, ends)| ends[0] < ends[1]).map(|(expert, ends)| Self {
            expert: expert as u32,
            first: ends[0],
            count: ends[1] - ends[0],
            gate: None,
            up: None,
            down: None,
        });
        occupied.collect()
    }

    /// Its rows of `[.., cols]`.
    fn rows<'x>(&self, x: &'x B::Acts, cols: usize) -> Part<'x, B::Acts> {
        Part::rows(x, self.first, self.count, cols)
    }

    /// The same to be written.
    fn rows_mut<'x>(&self, x: &'x mut B::Acts, cols: usize) -> PartMut<'x, B::Acts> {
        PartMut::rows(x, self.first, self.count, cols)
    }

    /// Its rows as places.
    fn places<'x>(&self, routes: &'x B::Routes) -> Option<Selection<'x, B>> {
        Some(Selection::Places { routes, first: self.first, count: self.count })
    }
}

impl<B: Backend> Block<'_, B> {
    fn of_expert(&self, expert: u32, slot: Slot) -> Layer<'_, B> {
        self.layer(Site { slot, expert: Some(expert) })
    }

    /// What the gates of experts make of the tokens that go to them, by routes that were kept or that are found now.
    pub(super) fn route(&self, x: &B::Acts, how: Experts, inner: usize, kept: Option<B::Routes>) -> Gated<B> {
        let (backend, m, width) = (self.run.backend, self.run.tokens(), self.run.shape.hidden_size);
        let (router, mut logits) = (self.layer(Router.into()), backend.sums(m, how.count));
        let low_rank = router.low_rank(Part::new(x, m, width), None);
        router.forward_sums(x, m, &low_rank, &mut logits);
        let rows = m * how.chosen;
        if let Some(layers) = self.few(how) {
            let routes = backend.route(&logits, m, how, false);
            let (gate, up) = self.gate_and_up_at_once(layers, x, &routes, rows);
            let routed = Some(Routed { logits, low_rank, routes, rows, to: To::AllAtOnce });
            return Gated { gate, up, low_rank: Vec::new(), low_rank_of_down: None, routed };
        }
        let mut routes = kept.unwrap_or_else(|| backend.route(&logits, m, how, true));
        let mut of_experts = backend.acts(rows, width);
        backend.to_places(x, width, &routes, &mut of_experts);
        let (mut gate, mut up) = (backend.acts(rows, inner), backend.acts(rows, inner));
        // The shapes of products are known from here on, as late as can be.
        let mut occupied = Occupied::<B>::of(&backend.starts(&mut routes));
        for of in &mut occupied {
            let (x, places) = (of.rows(&of_experts, width), of.places(&routes));
            let layer = self.of_expert(of.expert, GateProj);
            of.gate = layer.low_rank(x, places);
            layer.forward_part(&layer.fed(x), &of.gate, (0, inner), Finish::Store, of.rows_mut(&mut gate, inner));
            let layer = self.of_expert(of.expert, UpProj);
            of.up = layer.low_rank(x, places);
            layer.forward_part(&layer.fed(x), &of.up, (0, inner), Finish::Store, of.rows_mut(&mut up, inner));
        }
        let routed = Some(Routed { logits, low_rank, routes, rows, to: To::Each(occupied) });
        Gated { gate, up, low_rank: Vec::new(), low_rank_of_down: None, routed }
    }

    /// The rest of the half, into `y`.
    pub(super) fn experts_down(
        &self,
        routed: &mut Routed<B>,
        activated: &B::Acts,
        target: &Target<'_, B>,
        y: &mut B::Acts,
    ) {
        let (backend, m, width) = (self.run.backend, self.run.tokens(), self.run.shape.hidden_size);
        let (rows, Routed { routes, to, .. }) = (routed.rows(), routed);
        let results = match to {
            To::AllAtOnce => self.down_at_once(activated, routes, rows),
            To::Each(occupied) => {
                let mut results = backend.acts(rows, width);
                for of in occupied {
                    let layer = self.of_expert(of.expert, DownProj);
                    let x = of.rows(activated, layer.inner());
                    of.down = layer.low_rank(x, of.places(routes));
                    let y = of.rows_mut(&mut results, width);
                    layer.forward_part(&layer.fed(x), &of.down, (0, width), Finish::Store, y);
                }
                results
            }
        };
        let onto = match target {
            Target::Onto(x) => Some(Part::new(*x, m, width)),
            Target::Beside => None,
        };
        backend.combine(Part::new(&results, rows, width), routes, true, onto, PartMut::new(y, m, width));
    }

    /// See [`Block::half_back`]; `g_gate` and `g_up` are what the gates made.
    pub(super) fn experts_backward(
        &self,
        middle: &B::Acts,
        (mut g_gate, mut g_up): (B::Acts, B::Acts),
        routed: Routed<B>,
        gradient: &B::Acts,
        onto: Option<&B::Acts>,
        found: &mut Found<B>,
    ) -> B::Acts {
        let (backend, m, width, inner) =
            (self.run.backend, self.run.tokens(), self.run.shape.hidden_size, self.spec.mlp.inner());
        let rows = routed.rows();
        let Routed { logits, low_rank: low_rank_of_router, routes, to, .. } = routed;
        let mut occupied = match to {
            To::Each(occupied) => occupied,
            To::AllAtOnce => unreachable!("sequences that grow are not trained on"),
        };
        let (how, _) = self.experts().unwrap_or_default();
        let id = |expert, slot| self.id(Site { slot, expert: Some(expert) });
        // With w the weight of a place and g the gradient of its token: that of what the expert made is w g, and that of w
        // is the product of g with what the expert made, or of g through the layer with that layer's input.
        let mut g = backend.acts(rows, width);
        backend.to_places(gradient, width, &routes, &mut g);
        let mut g_activated = backend.acts(rows, inner);
        for of in &occupied {
            let back = self.of_expert(of.expert, DownProj).back(vec![of.rows(&g, width)]);
            input_gradient(&[&back], of.places(&routes), None, None, of.rows_mut(&mut g_activated, inner));
        }
        let mut activated = backend.acts(rows, inner);
        backend.gate(self.activation(), &g_gate, &g_up, &mut activated);
        let of_places = backend.row_dots(Part::new(&activated, rows, inner), Part::new(&g_activated, rows, inner));
        drop(activated);
        backend.weigh_places(PartMut::new(&mut g_activated, rows, inner), &routes);
        backend.gate_back(self.activation(), &mut g_gate, &mut g_up, &mut g_activated);
        let activated = g_activated;
        backend.weigh_places(PartMut::new(&mut g, rows, width), &routes);

        let first = found.len();
        let is_empty = |expert: &u32| occupied.binary_search_by_key(expert, |of| of.expert).is_err();
        for expert in (0..how.count as u32).filter(is_empty) {
            for slot in [GateProj, UpProj, DownProj] {
                self.of_expert(expert, slot).train_on_nothing(id(expert, slot), found);
            }
        }
        for of in &mut occupied {
            let (down, places, x) =
                (self.of_expert(of.expert, DownProj), of.places(&routes), of.rows(&activated, inner));
            // What comes back through the adapter is of w g here.
            let back = down.back(vec![of.rows(&g, width)]);
            let low_rank = of.down.take().or_else(|| down.low_rank(x, places));
            down.train(&back, &down.fed_back(x), &low_rank, places, id(of.expert, DownProj), found);
        }
        drop((g, activated));

        let normed = self.normed(middle, Half::Mlp);
        let mut of_experts = backend.acts(rows, width);
        backend.to_places(normed.get(), width, &routes, &mut of_experts);
        for of in &occupied {
            let (places, x) = (of.places(&routes), of.rows(&of_experts, width));
            let (gate, up) = (self.of_expert(of.expert, GateProj), self.of_expert(of.expert, UpProj));
            let of_gate = gate.back(vec![of.rows(&g_gate, inner)]);
            gate.train(&of_gate, &gate.fed_back(x), &of.gate, places, id(of.expert, GateProj), found);
            let of_up = up.back(vec![of.rows(&g_up, inner)]);
            up.train(&of_up, &up.fed_back(x), &of.up, places, id(of.expert, UpProj), found);
            // The gradient of its input takes the memory that this had.
            input_gradient(&[&of_gate, &of_up], places, None, None, of.rows_mut(&mut of_experts, width));
        }
        let g_experts = of_experts;
        drop((g_gate, g_up, occupied));
        // Processes add gradients up in the order in which they leave: it must not depend on which experts were chosen.
        found[first..].sort_by_key(|(id, _)| *id);

        let router = self.layer(Router.into());
        let mut g_logits = backend.acts(m, how.count);
        backend.route_back(&logits, how, &routes, &of_places, &mut g_logits);
        let back = router.back_of(&g_logits, m);
        let x = Part::new(normed.get(), m, width);
        router.train(&back, &router.fed_back(x), &low_rank_of_router, None, self.id(Router.into()), found);
        let mut through_router = self.run.acts(width);
        input_gradient(&[&back], None, None, onto, PartMut::new(&mut through_router, m, width));
        let mut g_input = match normed {
            Input::Normed(normed) => normed,
            Input::Stream(_) => self.run.acts(width),
        };
        let onto = Some(Part::new(&through_router, m, width));
        backend.combine(Part::new(&g_experts, rows, width), &routes, false, onto, PartMut::new(&mut g_input, m, width));
        g_input
    }
}

//! One transformer block, its two halves forward and back.
//!
//! A half is a norm, a body and a norm, the outer two where the block has them, and its result is added to the residual
//! stream. What a half saves for its backward pass is what is written down in its `Saved`; what is cheap to make again
//! (norms, the gate's activation) is made again. In shapes, `m` is the number of tokens.

use super::attention::Attended;
use super::backend::{Backend, Finish, Norm, Part, PartMut};
use super::experts::Routed;
use super::linear::{Back, Fed, Layer, LowRank, input_gradient};
use super::mlp::Gated;
use super::parameters::{BlockParams, NormParams};
use super::run::{Found, Run};
use crate::models::{BlockNorm, BlockSpec, Half, Of, ParamId, Site};

/// A block whose parameters are at hand.
pub(super) struct Block<'a, B: Backend> {
    pub(super) run: &'a Run<'a, B>,
    pub(super) index: usize,
    pub(super) spec: &'a BlockSpec,
    pub(super) params: BlockParams<B>,
}

/// What the forward pass keeps for the backward one besides the block's input.
pub(super) struct Saved<B: Backend> {
    attended: Attended<B>,
    /// What the first half adds to the residual stream, before its norm, where that is normed.
    added: Option<B::Acts>,
    /// The residual stream between the halves, `[m, hidden]`.
    middle: B::Acts,
    gated: Gated<B>,
    /// As `added`, of the second half.
    added_by_mlp: Option<B::Acts>,
}

/// What is left of a block's forward pass for its backward one.
pub(super) enum Left<B: Backend> {
    /// All that this needs.
    All(Saved<B>),
    /// The forward pass is run again, but experts are found by these routes.
    Routes(Option<B::Routes>),
}

/// Keys and values of sequences that grow, `[rows, kv_heads * head_dim]` each, of one block.
pub(super) struct Past<B: Backend> {
    pub(super) keys: B::Acts,
    pub(super) values: B::Acts,
    /// Rows of either.
    pub(super) rows: usize,
    /// Elements of a row.
    pub(super) width: usize,
}

/// Where a half's body puts its result: onto the residual stream, or, where that is normed first, beside it.
pub(super) enum Target<'x, B: Backend> {
    Onto(&'x B::Acts),
    Beside,
}

impl<B: Backend> Target<'_, B> {
    pub(super) fn finish(&self, m: usize, width: usize) -> Finish<'_, B> {
        match self {
            Self::Onto(x) => Finish::Onto(Part::new(*x, m, width)),
            Self::Beside => Finish::Store,
        }
    }
}

/// What layers with the same input make of it: results, and what their adapters make of the input.
pub(super) struct Projected<B: Backend> {
    pub(super) results: Vec<B::Acts>,
    pub(super) low_rank: Vec<LowRank<B>>,
}

impl<B: Backend> Block<'_, B> {
    /// The residual stream `[m, hidden]` after this block, and what its backward pass needs, if that is to be kept.
    pub(super) fn forward(&self, x: &B::Acts, keep: bool) -> (B::Acts, Left<B>) {
        let (y, saved) = self.run_through(x, None);
        if keep {
            return (y, Left::All(saved));
        }
        let routed = saved.gated.routed.filter(|_| self.run.backend.keeps_routes());
        (y, Left::Routes(routed.map(Routed::into_routes)))
    }

    /// The same for the newest tokens of sequences whose past is given; theirs is added to it.
    pub(super) fn forward_on(&self, x: &B::Acts, past: &mut Past<B>) -> B::Acts {
        self.run_through(x, Some(past)).0
    }

    fn run_through(&self, x: &B::Acts, past: Option<&mut Past<B>>) -> (B::Acts, Saved<B>) {
        let (attended, added, middle) = self.first_half(x, past);
        let mut gated = self.gate_and_up(&self.normed(&middle, Half::Mlp), self.run.tokens(), None);
        let (added_by_mlp, y) = self.half(&middle, Half::Mlp, |target, y| self.down(&mut gated, target, y));
        (y, Saved { attended, added, middle, gated, added_by_mlp })
    }

    /// The same for the backward pass, by routes that were kept, without the last product.
    fn run_again(&self, x: &B::Acts, routes: Option<B::Routes>) -> Saved<B> {
        let (attended, added, middle) = self.first_half(x, None);
        let mut gated = self.gate_and_up(&self.normed(&middle, Half::Mlp), self.run.tokens(), routes);
        // That product is needed where what comes of it is normed.
        let added_by_mlp = self.norm(BlockNorm::After(Half::Mlp)).map(|_| {
            let mut added = self.run.acts(self.run.shape.hidden_size);
            self.down(&mut gated, &Target::Beside, &mut added);
            added
        });
        Saved { attended, added, middle, gated, added_by_mlp }
    }

    fn first_half(&self, x: &B::Acts, past: Option<&mut Past<B>>) -> (Attended<B>, Option<B::Acts>, B::Acts) {
        let mut attended = self.attend(self.normed(x, Half::Attention), past);
        let (added, middle) =
            self.half(x, Half::Attention, |target, y| self.attention_output(&mut attended, target, y));
        (attended, added, middle)
    }

    /// The residual stream `x` after a half whose body writes its result where it is told. What it adds is kept where
    /// that is normed.
    fn half(
        &self,
        x: &B::Acts,
        half: Half,
        body: impl FnOnce(&Target<'_, B>, &mut B::Acts),
    ) -> (Option<B::Acts>, B::Acts) {
        let (m, width) = (self.run.tokens(), self.run.shape.hidden_size);
        let mut y = self.run.acts(width);
        let Some(norm) = self.norm(BlockNorm::After(half)) else {
            body(&Target::Onto(x), &mut y);
            return (None, y);
        };
        let mut added = self.run.acts(width);
        body(&Target::Beside, &mut added);
        let onto = Some(Part::new(x, m, width));
        let to = PartMut::new(&mut y, m, width);
        self.run.backend.norm(Part::new(&added, m, width), &norm.weight, self.run.norm(), onto, to);
        (Some(added), y)
    }

    /// Turns the gradient of the block's output into that of its input `x`; returns those of what is
    /// trained. Where not all is left of the forward pass, that is run again, but for its last product.
    pub(super) fn backward(&self, x: &B::Acts, left: Left<B>, gradient: &mut B::Acts, wants_input: bool) -> Found<B> {
        let mut found = Found::<B>::new();
        let Saved { attended, added, middle, gated, added_by_mlp } = match left {
            Left::All(saved) => saved,
            Left::Routes(routes) => self.run_again(x, routes),
        };
        self.half_back(&middle, Half::Mlp, added_by_mlp, gradient, &mut found, |g, onto, found| {
            self.mlp_backward(&middle, gated, g, onto, found)
        });
        self.half_back(x, Half::Attention, added, gradient, &mut found, |g, onto, found| {
            self.attention_backward(x, attended, g, onto, wants_input, found)
        });
        found
    }

    /// Turns the gradient of the residual stream after a half into that of the stream before it, `x`. `body` is given the
    /// gradient of its result and returns that of its input, if it is wanted, added to what it is given as the last.
    fn half_back(
        &self,
        x: &B::Acts,
        half: Half,
        added: Option<B::Acts>,
        gradient: &mut B::Acts,
        found: &mut Found<B>,
        body: impl FnOnce(&B::Acts, Option<&B::Acts>, &mut Found<B>) -> Option<B::Acts>,
    ) {
        let before = self.norm(BlockNorm::Before(half));
        let of_body = added.map(|added| {
            let mut g = self.run.backend.zeros(self.run.tokens(), self.run.shape.hidden_size);
            self.norm_backward(&added, BlockNorm::After(half), gradient, &mut g, found);
            g
        });
        // The gradient of the stream passes by the half; a norm's backward pass adds to it, and where there is none the
        // body does.
        let onto = if before.is_some() { None } else { Some(&*gradient) };
        let g_input = body(of_body.as_ref().unwrap_or(gradient), onto, found);
        drop(of_body);
        match (g_input, before) {
            (Some(g), Some(_)) => self.norm_backward(x, BlockNorm::Before(half), &g, gradient, found),
            (Some(g), None) => *gradient = g,
            (None, _) => {}
        }
    }

    /// Adds to `gradient` what comes through a norm of `x`, and to `found` the norm's own gradient.
    fn norm_backward(
        &self,
        x: &B::Acts,
        which: BlockNorm,
        g_normed: &B::Acts,
        gradient: &mut B::Acts,
        found: &mut Found<B>,
    ) {
        let (m, width) = (self.run.tokens(), self.run.shape.hidden_size);
        self.norm_part_backward(Part::new(x, m, width), which, g_normed, gradient, found);
    }

    /// The same for rows that may be several norms each.
    pub(super) fn norm_part_backward(
        &self,
        x: Part<'_, B::Acts>,
        which: BlockNorm,
        g_normed: &B::Acts,
        gradient: &mut B::Acts,
        found: &mut Found<B>,
    ) {
        let Some(params) = self.norm(which) else { return };
        let norm = self.norm_of(params);
        let mut own = params.trained.then(|| self.run.backend.gradient(1, norm.width));
        let (g, onto) = (Part::new(g_normed, x.rows, x.cols), PartMut::new(gradient, x.rows, x.cols));
        self.run.backend.norm_back(x, &params.weight, norm, g, onto, own.as_mut());
        found.extend(own.map(|own| (ParamId::Norm(self.index, which), own)));
    }

    /// The input of a half's layers where that is normed; the stream itself is it otherwise.
    pub(super) fn normed<'x>(&self, x: &'x B::Acts, half: Half) -> Input<'x, B> {
        let Some(norm) = self.norm(BlockNorm::Before(half)) else { return Input::Stream(x) };
        let (m, width) = (self.run.tokens(), self.run.shape.hidden_size);
        let mut normed = self.run.acts(width);
        let to = PartMut::new(&mut normed, m, width);
        self.run.backend.norm(Part::new(x, m, width), &norm.weight, self.run.norm(), None, to);
        Input::Normed(normed)
    }

    pub(super) fn norm(&self, which: BlockNorm) -> Option<&NormParams<B>> {
        self.params.norms.iter().find(|(norm, _)| *norm == which).map(|(_, params)| params)
    }

    pub(super) fn norm_of(&self, params: &NormParams<B>) -> Norm {
        Norm { width: params.width, ..self.run.norm() }
    }

    /// Whether the norm of a half's input is trained.
    pub(super) fn trains_norm(&self, half: Half) -> bool {
        self.norm(BlockNorm::Before(half)).is_some_and(|norm| norm.trained)
    }

    /// Those of some layers that the block has.
    pub(super) fn layers(&self, sites: &[Site]) -> Vec<(Site, Layer<'_, B>)> {
        let layer =
            |&site: &Site| Some((site, Layer { backend: self.run.backend, params: self.params.layers.get(site)? }));
        sites.iter().filter_map(layer).collect()
    }

    /// What layers make of their input `[m, in]`.
    pub(super) fn project(&self, layers: &[(Site, Layer<'_, B>)], x: &B::Acts, m: usize) -> Projected<B> {
        let (mut results, mut low_ranks) = (Vec::new(), Vec::new());
        let x = Part::new(x, m, self.run.shape.hidden_size);
        let fed = Fed::of(layers.first().map(|(_, layer)| *layer), x);
        for (_, layer) in layers {
            let low_rank = layer.low_rank(x, None);
            for part in layer.parts() {
                let mut y = self.run.backend.acts(m, part.1);
                layer.forward_part(&fed, &low_rank, part, Finish::Store, PartMut::new(&mut y, m, part.1));
                results.push(y);
            }
            low_ranks.push(low_rank);
        }
        Projected { results, low_rank: low_ranks }
    }

    /// The backward pass of [`Block::project`] for the gradients of its results: to `found` those of what is trained;
    /// returns that of the input, if it is wanted, in the memory of `x` or, where that is the residual stream, in other.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn project_back(
        &self,
        layers: &[(Site, Layer<'_, B>)],
        gradients: &[B::Acts],
        low_ranks: &[LowRank<B>],
        x: Input<'_, B>,
        onto: Option<&B::Acts>,
        wants_input: bool,
        found: &mut Found<B>,
    ) -> Option<B::Acts> {
        let m = self.run.tokens();
        let mut rest = gradients.iter();
        let backs: Vec<Back<'_, B>> = layers
            .iter()
            .map(|(_, layer)| layer.back(layer.parts().zip(&mut rest).map(|(p, g)| Part::new(g, m, p.1)).collect()))
            .collect();
        let width = self.run.shape.hidden_size;
        let trained = layers.iter().map(|(_, layer)| *layer).find(|layer| layer.params.trained);
        let fed = Fed::of(trained, Part::new(x.get(), m, width));
        for (((site, layer), back), low_rank) in layers.iter().zip(&backs).zip(low_ranks) {
            layer.train(back, &fed, low_rank, None, self.id(*site), found);
        }
        drop(fed);
        if !wants_input {
            return None;
        }
        let rounded = backs.first().is_some_and(Back::rounds_inputs);
        let (x, mut gx) = match x {
            Input::Normed(normed) if !rounded => (None, normed),
            x => (rounded.then_some(x), self.run.acts(width)),
        };
        let x = x.as_ref().map(|x| Part::new(x.get(), m, width));
        input_gradient(&backs.iter().collect::<Vec<_>>(), None, x, onto, PartMut::new(&mut gx, m, width));
        Some(gx)
    }

    /// What the parts of a layer are called.
    pub(super) fn id(&self, site: Site) -> impl Fn(Of) -> ParamId + use<B> {
        let index = self.index;
        move |of| ParamId::InBlock(index, site, of)
    }
}

/// The input of a half's layers.
pub(super) enum Input<'x, B: Backend> {
    Normed(B::Acts),
    Stream(&'x B::Acts),
}

impl<B: Backend> Input<'_, B> {
    pub(super) fn get(&self) -> &B::Acts {
        match self {
            Self::Normed(normed) => normed,
            Self::Stream(x) => x,
        }
    }
}

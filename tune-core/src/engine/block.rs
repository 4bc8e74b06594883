//! One transformer block, its two halves forward and back.
//!
//! What a block saves for its backward pass is written down in [`Saved`]; what is cheap to make again (norms, the gate's
//! activation) is made again. In shapes, `m` is the number of tokens.

use super::backend::{Backend, Finish, Part, PartMut};
use super::linear::{Layer, LowRank, input_gradient};
use super::parameters::{BlockParams, Of, ParamId};
use super::run::{Found, Run};
use crate::kernels::attention::Attention;
use crate::kernels::rope::Turn;
use crate::models::Slot::{self, DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
use crate::models::{Half, PerSlot};

/// A block whose parameters are at hand.
pub(super) struct Block<'a, B: Backend> {
    pub(super) run: &'a Run<'a, B>,
    pub(super) index: usize,
    pub(super) params: BlockParams<B>,
}

/// What the forward pass keeps for the backward one besides the block's input: the results of
/// matrix products and of the attention. Norms and the gate's activation are made again.
pub(super) struct Saved<B: Backend> {
    attended: Attended<B>,
    /// The residual stream between the halves, `[m, hidden]`.
    middle: B::Acts,
    gated: Gated<B>,
}

/// The same of the first half.
struct Attended<B: Backend> {
    /// Queries and keys after rotation, and values, `[m, heads * head_dim]` each.
    qkv: [B::Acts; 3],
    /// The attention's output, `[m, heads * head_dim]`.
    out: B::Acts,
    /// `[heads, m]`.
    lse: B::Sums,
    /// What the adapters make of their inputs.
    low_rank: PerSlot<LowRank<B>>,
}

/// The same of the second half.
struct Gated<B: Backend> {
    /// `[m, intermediate]` each.
    gate: B::Acts,
    up: B::Acts,
    /// What the adapters make of their inputs.
    low_rank: PerSlot<LowRank<B>>,
}

/// Keys and values of sequences that grow, `[rows, kv_heads * head_dim]` each, of one block.
pub(super) struct Past<B: Backend> {
    pub(super) keys: B::Acts,
    pub(super) values: B::Acts,
    /// Rows of either.
    pub(super) rows: usize,
}

/// The layers that make queries, keys and values.
const QKV: [Slot; 3] = [QProj, KProj, VProj];

impl<B: Backend> Block<'_, B> {
    /// The residual stream `[m, hidden]` after this block, and what its backward pass needs, if that is to be kept.
    pub(super) fn forward(&self, x: &B::Acts, keep: bool) -> (B::Acts, Option<Saved<B>>) {
        let (y, saved) = self.run_through(x, None);
        (y, keep.then_some(saved))
    }

    /// The same for the newest tokens of sequences whose past is given; theirs is added to it.
    pub(super) fn forward_on(&self, x: &B::Acts, past: &mut Past<B>) -> B::Acts {
        self.run_through(x, Some(past)).0
    }

    fn run_through(&self, x: &B::Acts, past: Option<&mut Past<B>>) -> (B::Acts, Saved<B>) {
        let m = self.run.tokens();
        let down = self.layer(DownProj);
        let (attended, middle) = self.attend(x, past);
        let mut gated = self.gate_and_up(&middle);
        let mut activated = self.run.acts(down.inner());
        self.run.backend.gate(&gated.gate, &gated.up, &mut activated);
        gated.low_rank[DownProj] = down.low_rank(&activated, m, None);
        let mut y = self.run.acts(down.out());
        let onto = Finish::Onto(Part::new(&middle, m, down.out()));
        down.forward(&activated, m, &gated.low_rank[DownProj], onto, &mut y);
        (y, Saved { attended, middle, gated })
    }

    /// The first half.
    fn attend(&self, x: &B::Acts, past: Option<&mut Past<B>>) -> (Attended<B>, B::Acts) {
        let (backend, m) = (self.run.backend, self.run.tokens());
        let normed = self.normed(x, Half::Attention);
        let mut low_rank = PerSlot::new(|_| None);
        let mut qkv = QKV.map(|slot| {
            let layer = self.layer(slot);
            low_rank[slot] = layer.low_rank(&normed, m, None);
            let mut y = self.run.acts(layer.out());
            layer.forward(&normed, m, &low_rank[slot], Finish::Store, &mut y);
            y
        });
        drop(normed);
        self.turn(&mut qkv, Turn::Forward);
        let o = self.layer(OProj);
        let mut out = self.run.acts(o.inner());
        let mut lse = backend.sums(self.run.shape.num_attention_heads, m);
        let [q, k, v] = self.heads(&qkv);
        let (k, v) = match past {
            None => (k, v),
            Some(past) => {
                let (rows, width) = (&self.run.rows_in_past, k.cols);
                backend.scatter(&qkv[1], width, rows, &mut past.keys);
                backend.scatter(&qkv[2], width, rows, &mut past.values);
                (Part::new(&past.keys, past.rows, width), Part::new(&past.values, past.rows, width))
            }
        };
        backend.attend(&self.attention(), [q, k, v], PartMut::new(&mut out, m, o.inner()), &mut lse);
        low_rank[OProj] = o.low_rank(&out, m, None);
        let mut middle = self.run.acts(o.out());
        o.forward(&out, m, &low_rank[OProj], Finish::Onto(Part::new(x, m, o.out())), &mut middle);
        (Attended { qkv, out, lse, low_rank }, middle)
    }

    /// The second half up to its activation.
    fn gate_and_up(&self, middle: &B::Acts) -> Gated<B> {
        let m = self.run.tokens();
        let layers = [self.layer(GateProj), self.layer(UpProj)];
        let normed = self.normed(middle, Half::Mlp);
        let mut low_rank = PerSlot::new(|_| None);
        low_rank[GateProj] = layers[0].low_rank(&normed, m, None);
        low_rank[UpProj] = layers[1].low_rank(&normed, m, None);
        let [mut gate, mut up] = layers.map(|layer| self.run.acts(layer.out()));
        layers[0].forward(&normed, m, &low_rank[GateProj], Finish::Store, &mut gate);
        layers[1].forward(&normed, m, &low_rank[UpProj], Finish::Store, &mut up);
        Gated { gate, up, low_rank }
    }

    /// Turns the gradient of the block's output into that of its input `x`; returns those of what is
    /// trained. Without `saved` the forward pass is run again, but for its last product.
    pub(super) fn backward(
        &self,
        x: &B::Acts,
        saved: Option<Saved<B>>,
        gradient: &mut B::Acts,
        wants_input: bool,
    ) -> Found<B> {
        let mut found = Found::<B>::new();
        let Saved { attended, middle, gated } = saved.unwrap_or_else(|| {
            let (attended, middle) = self.attend(x, None);
            let gated = self.gate_and_up(&middle);
            Saved { attended, middle, gated }
        });
        self.mlp_backward(&middle, gated, gradient, &mut found);
        self.attention_backward(x, attended, gradient, wants_input, &mut found);
        found
    }

    fn mlp_backward(&self, middle: &B::Acts, saved: Gated<B>, gradient: &mut B::Acts, found: &mut Found<B>) {
        let (backend, m) = (self.run.backend, self.run.tokens());
        let Gated { gate: mut g_gate, up: mut g_up, mut low_rank } = saved;
        let [gate, up, down] = [GateProj, UpProj, DownProj].map(|slot| self.layer(slot));
        let mut activated = self.run.acts(down.inner());
        let back = down.back_of(gradient, m);
        input_gradient(&[&back], None, &mut activated);
        backend.gate_back(&mut g_gate, &mut g_up, &mut activated);
        if low_rank[DownProj].is_none() {
            low_rank[DownProj] = down.low_rank(&activated, m, None);
        }
        down.train(&back, &activated, &low_rank[DownProj], self.id(DownProj), found);
        drop((back, activated));

        let normed = self.normed(middle, Half::Mlp);
        let backs = (gate.back_of(&g_gate, m), up.back_of(&g_up, m));
        gate.train(&backs.0, &normed, &low_rank[GateProj], self.id(GateProj), found);
        up.train(&backs.1, &normed, &low_rank[UpProj], self.id(UpProj), found);
        let mut g_normed = normed;
        input_gradient(&[&backs.0, &backs.1], None, &mut g_normed);
        drop(backs);
        drop((g_gate, g_up));
        self.norm_backward(middle, Half::Mlp, &g_normed, gradient, found);
    }

    fn attention_backward(
        &self,
        x: &B::Acts,
        saved: Attended<B>,
        gradient: &mut B::Acts,
        wants_input: bool,
        found: &mut Found<B>,
    ) {
        let (backend, m) = (self.run.backend, self.run.tokens());
        let Attended { qkv, out, lse, low_rank } = saved;
        let (inputs, o) = (QKV.map(|slot| self.layer(slot)), self.layer(OProj));
        let back = o.back_of(gradient, m);
        o.train(&back, &out, &low_rank[OProj], self.id(OProj), found);
        let wants_normed = wants_input || self.params.norms[Half::Attention as usize].trained;
        if !wants_normed && inputs.iter().all(Layer::is_frozen) {
            return;
        }
        let mut g_out = self.run.acts(o.inner());
        input_gradient(&[&back], None, &mut g_out);
        drop(back);
        let mut g_qkv = inputs.map(|layer| self.run.acts(layer.out()));
        {
            let [gq, gk, gv] = &mut g_qkv;
            let width = |i: usize| inputs[i].out();
            let of_inputs =
                [PartMut::new(gq, m, width(0)), PartMut::new(gk, m, width(1)), PartMut::new(gv, m, width(2))];
            let of_out = |x| Part::new(x, m, o.inner());
            backend.attend_back(&self.attention(), self.heads(&qkv), (of_out(&out), &lse), of_out(&g_out), of_inputs);
        }
        drop((qkv, out, lse, g_out));
        self.turn(&mut g_qkv, Turn::Back);

        let normed = self.normed(x, Half::Attention);
        let backs: [_; 3] = std::array::from_fn(|i| inputs[i].back_of(&g_qkv[i], m));
        for (i, slot) in QKV.into_iter().enumerate() {
            inputs[i].train(&backs[i], &normed, &low_rank[slot], self.id(slot), found);
        }
        if !wants_normed {
            return;
        }
        let mut g_normed = normed;
        input_gradient(&backs.each_ref(), None, &mut g_normed);
        self.norm_backward(x, Half::Attention, &g_normed, gradient, found);
    }

    /// Adds to `gradient` what comes through the norm of `x`, and to `found` the norm's own gradient.
    fn norm_backward(&self, x: &B::Acts, half: Half, g_normed: &B::Acts, gradient: &mut B::Acts, found: &mut Found<B>) {
        let (norm, m, width) = (&self.params.norms[half as usize], self.run.tokens(), self.run.shape.hidden_size);
        let mut own = norm.trained.then(|| self.run.backend.gradient(1, width));
        let part = |x| Part::new(x, m, width);
        let onto = PartMut::new(gradient, m, width);
        self.run.backend.norm_back(part(x), &norm.weight, self.run.norm(), part(g_normed), onto, own.as_mut());
        found.extend(own.map(|own| (ParamId::Norm(self.index, half), own)));
    }

    /// The input of a half's layers.
    fn normed(&self, x: &B::Acts, half: Half) -> B::Acts {
        let (m, width) = (self.run.tokens(), self.run.shape.hidden_size);
        let mut normed = self.run.acts(width);
        let weight = &self.params.norms[half as usize].weight;
        self.run.backend.norm(Part::new(x, m, width), weight, self.run.norm(), PartMut::new(&mut normed, m, width));
        normed
    }

    fn layer(&self, slot: Slot) -> Layer<'_, B> {
        Layer { backend: self.run.backend, params: &self.params.layers[slot] }
    }

    /// What the parts of a layer are called.
    fn id(&self, slot: Slot) -> impl Fn(Of) -> ParamId {
        let index = self.index;
        move |of| ParamId::InBlock(index, slot, of)
    }

    fn attention(&self) -> Attention<'_> {
        Attention { shape: self.run.shape.attention(), stretches: &self.run.stretches }
    }

    /// Queries, keys and values as attention takes them.
    fn heads<'x>(&self, qkv: &'x [B::Acts; 3]) -> [Part<'x, B::Acts>; 3] {
        std::array::from_fn(|i| Part::new(&qkv[i], self.run.tokens(), self.layer(QKV[i]).out()))
    }

    /// Turns queries and keys, or their gradients.
    fn turn(&self, qkv: &mut [B::Acts; 3], turn: Turn) {
        for (x, slot) in qkv.iter_mut().zip([QProj, KProj]) {
            let x = PartMut::new(x, self.run.tokens(), self.layer(slot).out());
            self.run.backend.rotate(x, &self.run.rotary, turn);
        }
    }
}

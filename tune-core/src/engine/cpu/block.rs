//! One transformer block, its two halves forward and back.

use super::linear::{Layer, LowRank, input_gradient};
use super::weights::Weight;
use super::{NamedGradients, Run};
use crate::Result;
use crate::kernels::attention::Attention;
use crate::kernels::buffers::Buffer;
use crate::kernels::gemm::Finish;
use crate::kernels::rope::Turn;
use crate::kernels::view::{View, ViewMut};
use crate::kernels::{Element, rms_norm, rope, swiglu};
use crate::models::Slot::{self, DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
use crate::models::{Block, Half, PerSlot};

/// A block as the kernels see it.
pub(super) struct CpuBlock<'a, T: Element> {
    run: &'a Run<'a>,
    block: &'a Block,
    norms: [Weight<'a, T>; 2],
    layers: PerSlot<Layer<'a, T>>,
}

/// What the forward pass keeps for the backward one besides the block's input: the results of
/// matrix products and of the attention. Norms and the gate's activation are made again.
pub(super) struct Saved<T: Element> {
    /// Queries and keys after rotation, and values, `[m, heads * head_dim]` each.
    q: Buffer<T>,
    k: Buffer<T>,
    v: Buffer<T>,
    /// The attention's output, `[m, heads * head_dim]`.
    attended: Buffer<T>,
    /// `[heads, m]`.
    lse: Buffer<f32>,
    /// The residual stream between the halves, `[m, hidden]`.
    middle: Buffer<T>,
    /// `[m, intermediate]` each.
    gate: Buffer<T>,
    up: Buffer<T>,
    /// What the adapters make of their inputs.
    low_rank: PerSlot<LowRank<T>>,
}

impl<'r> Run<'r> {
    pub(super) fn block<'a, T: Element>(&'a self, block: &'a Block) -> Result<CpuBlock<'a, T>> {
        let [first, second] = &block.norms;
        Ok(CpuBlock {
            run: self,
            block,
            norms: [Weight::new(first)?, Weight::new(second)?],
            layers: PerSlot::try_new(|slot| Layer::new(self, &block.linears[slot]))?,
        })
    }
}

impl<T: Element> CpuBlock<'_, T> {
    /// The residual stream `[m, hidden]` after this block, and what its backward pass needs, if that is to be kept.
    pub(super) fn forward(&self, x: &[T], keep: bool) -> (Buffer<T>, Option<Saved<T>>) {
        let down = &self.layers[DownProj];
        let mut saved = self.attend(x);
        self.gate_and_up(&mut saved);
        let mut activated = Buffer::new(self.run.tokens() * down.inner);
        swiglu::forward(&saved.gate, &saved.up, &mut activated);
        saved.low_rank[DownProj] = down.low_rank(&activated, None);
        let mut y = Buffer::new(self.run.tokens() * down.out);
        down.forward(&activated, &saved.low_rank[DownProj], &mut y, Finish::Onto(View::new(&saved.middle, down.out)));
        (y, keep.then_some(saved))
    }

    /// The first half; the second half's part of the result is empty.
    fn attend(&self, x: &[T]) -> Saved<T> {
        let m = self.run.tokens();
        let normed = self.normed(x, Half::Attention);
        let mut low_rank = PerSlot::new(|_| None);
        let mut project = |slot| {
            let layer = &self.layers[slot];
            low_rank[slot] = layer.low_rank(&normed, None);
            let mut y = Buffer::new(m * layer.out);
            layer.forward(&normed, &low_rank[slot], &mut y, Finish::Store);
            y
        };
        let (mut q, mut k, v) = (project(QProj), project(KProj), project(VProj));
        drop(normed);
        self.turn(&mut q, QProj, Turn::Forward);
        self.turn(&mut k, KProj, Turn::Forward);
        let o = &self.layers[OProj];
        let mut attended = Buffer::new(m * o.inner);
        let mut lse = Buffer::new(m * self.block.attention.heads);
        self.attention().forward(self.heads([&q, &k, &v]), ViewMut::new(&mut attended, o.inner), &mut lse);
        low_rank[OProj] = o.low_rank(&attended, None);
        let mut middle = Buffer::new(m * o.out);
        o.forward(&attended, &low_rank[OProj], &mut middle, Finish::Onto(View::new(x, o.out)));
        Saved { q, k, v, attended, lse, middle, gate: Buffer::new(0), up: Buffer::new(0), low_rank }
    }

    /// The second half up to its activation.
    fn gate_and_up(&self, saved: &mut Saved<T>) {
        let m = self.run.tokens();
        let (gate, up) = (&self.layers[GateProj], &self.layers[UpProj]);
        let normed = self.normed(&saved.middle, Half::Mlp);
        saved.low_rank[GateProj] = gate.low_rank(&normed, None);
        saved.low_rank[UpProj] = up.low_rank(&normed, None);
        saved.gate = Buffer::new(m * gate.out);
        saved.up = Buffer::new(m * up.out);
        gate.forward(&normed, &saved.low_rank[GateProj], &mut saved.gate, Finish::Store);
        up.forward(&normed, &saved.low_rank[UpProj], &mut saved.up, Finish::Store);
    }

    fn attention(&self) -> Attention<'_> {
        Attention { shape: self.block.attention, spans: &self.run.pass.spans, len: self.run.batch.len }
    }

    /// Queries, keys and values as attention takes them.
    fn heads<'x>(&self, qkv: [&'x [T]; 3]) -> [View<'x, T>; 3] {
        let [q, k, v] = qkv;
        [(q, QProj), (k, KProj), (v, VProj)].map(|(x, slot)| View::new(x, self.layers[slot].out))
    }

    /// Turns queries, keys or their gradients.
    fn turn(&self, x: &mut [T], slot: Slot, turn: Turn) {
        rope::turn(ViewMut::new(x, self.layers[slot].out), &self.run.pass.rotary, turn);
    }

    /// The input of a half's layers.
    fn normed(&self, x: &[T], half: Half) -> Buffer<T> {
        let weight = &self.norms[half as usize];
        let mut normed = Buffer::new(self.run.tokens() * weight.len());
        let width = weight.len();
        rms_norm::forward(View::new(x, width), weight, self.block.eps as f32, ViewMut::new(&mut normed, width));
        normed
    }

    /// Turns the gradient of the block's output into that of its input `x`; returns those of what is
    /// trained. Without `saved` the forward pass is run again, but for its last product.
    pub(super) fn backward(
        &self,
        x: &[T],
        saved: Option<Saved<T>>,
        gradient: &mut Buffer<T>,
        wants_input: bool,
    ) -> NamedGradients {
        let mut found = NamedGradients::new();
        let mut saved = saved.unwrap_or_else(|| {
            let mut saved = self.attend(x);
            self.gate_and_up(&mut saved);
            saved
        });
        self.mlp_backward(&mut saved, gradient, &mut found);
        self.attention_backward(x, saved, gradient, wants_input, &mut found);
        found
    }

    fn mlp_backward(&self, saved: &mut Saved<T>, gradient: &mut [T], found: &mut NamedGradients) {
        let [gate, up, down] = [GateProj, UpProj, DownProj].map(|slot| &self.layers[slot]);
        let mut g_activated = Buffer::new(self.run.tokens() * down.inner);
        let back = down.back_of(gradient);
        input_gradient(&[&back], None, &mut g_activated);
        swiglu::backward(&mut saved.gate, &mut saved.up, &mut g_activated);
        let activated = g_activated;
        if saved.low_rank[DownProj].is_none() {
            saved.low_rank[DownProj] = down.low_rank(&activated, None);
        }
        down.train(&back, &activated, &saved.low_rank[DownProj], found);
        drop((back, activated));

        let normed = self.normed(&saved.middle, Half::Mlp);
        let (g_gate, g_up) = (gate.back_of(&saved.gate), up.back_of(&saved.up));
        gate.train(&g_gate, &normed, &saved.low_rank[GateProj], found);
        up.train(&g_up, &normed, &saved.low_rank[UpProj], found);
        let mut g_normed = normed;
        input_gradient(&[&g_gate, &g_up], None, &mut g_normed);
        drop((g_gate, g_up));
        (saved.gate, saved.up) = (Buffer::new(0), Buffer::new(0));
        self.norm_backward(&saved.middle, Half::Mlp, &g_normed, gradient, found);
    }

    fn attention_backward(
        &self,
        x: &[T],
        saved: Saved<T>,
        gradient: &mut [T],
        wants_input: bool,
        found: &mut NamedGradients,
    ) {
        let Saved { q, k, v, attended, lse, low_rank, .. } = saved;
        let [of_q, of_k, of_v, o] = [QProj, KProj, VProj, OProj].map(|slot| &self.layers[slot]);
        let back = o.back_of(gradient);
        o.train(&back, &attended, &low_rank[OProj], found);
        let wants_normed = wants_input || self.block.norm(Half::Attention).is_variable();
        if !wants_normed && [of_q, of_k, of_v].iter().all(|l| l.is_frozen()) {
            return;
        }
        let m = self.run.tokens();
        let mut g_attended = Buffer::new(m * o.inner);
        input_gradient(&[&back], None, &mut g_attended);
        drop(back);
        let (mut gq, mut gk, mut gv) =
            (Buffer::new(m * of_q.out), Buffer::new(m * of_k.out), Buffer::new(m * of_v.out));
        self.attention().backward(
            self.heads([&q, &k, &v]),
            (View::new(&attended, o.inner), &lse),
            View::new(&g_attended, o.inner),
            [ViewMut::new(&mut gq, of_q.out), ViewMut::new(&mut gk, of_k.out), ViewMut::new(&mut gv, of_v.out)],
        );
        drop((q, k, v, attended, lse, g_attended));
        self.turn(&mut gq, QProj, Turn::Back);
        self.turn(&mut gk, KProj, Turn::Back);

        let normed = self.normed(x, Half::Attention);
        let (gq, gk, gv) = (of_q.back_of(&gq), of_k.back_of(&gk), of_v.back_of(&gv));
        of_q.train(&gq, &normed, &low_rank[QProj], found);
        of_k.train(&gk, &normed, &low_rank[KProj], found);
        of_v.train(&gv, &normed, &low_rank[VProj], found);
        if !wants_normed {
            return;
        }
        let mut g_normed = normed;
        input_gradient(&[&gq, &gk, &gv], None, &mut g_normed);
        self.norm_backward(x, Half::Attention, &g_normed, gradient, found);
    }

    /// Adds to `gradient` what comes through the norm of `x`, and to `found` the norm's own gradient.
    fn norm_backward(&self, x: &[T], half: Half, g_normed: &[T], gradient: &mut [T], found: &mut NamedGradients) {
        let (weight, trained) = (&self.norms[half as usize], self.block.norm(half).is_variable());
        let (eps, width) = (self.block.eps as f32, weight.len());
        let [x, g_normed] = [x, g_normed].map(|of| View::new(of, width));
        if let Some(own) = rms_norm::backward(x, weight, eps, g_normed, ViewMut::new(gradient, width), trained) {
            found.push((format!("model.layers.{}.{}.weight", self.block.index, half.norm()), own));
        }
    }
}

//! One transformer block, its two halves forward and back.

use super::linear::{Hidden, Layer, input_gradient};
use super::weights::Weight;
use super::{Found, Run};
use crate::Result;
use crate::kernels::attention::Attention;
use crate::kernels::buffers::Buffer;
use crate::kernels::gemm::{At, set};
use crate::kernels::rope::Turn;
use crate::kernels::{Element, rms_norm, rope, swiglu};
use crate::models::Block;

/// A block as the kernels see it.
pub(super) struct CpuBlock<'a, T: Element> {
    run: &'a Run<'a>,
    block: &'a Block,
    input_layernorm: Weight<'a, T>,
    post_attention_layernorm: Weight<'a, T>,
    q: Layer<'a, T>,
    k: Layer<'a, T>,
    v: Layer<'a, T>,
    o: Layer<'a, T>,
    gate: Layer<'a, T>,
    up: Layer<'a, T>,
    down: Layer<'a, T>,
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
    hidden: HiddenAll<T>,
}

/// What the adapters make of their inputs.
struct HiddenAll<T: Element> {
    q: Hidden<T>,
    k: Hidden<T>,
    v: Hidden<T>,
    o: Hidden<T>,
    gate: Hidden<T>,
    up: Hidden<T>,
    down: Hidden<T>,
}

impl<'r> Run<'r> {
    pub(super) fn block<'a, T: Element>(&'a self, block: &'a Block) -> Result<CpuBlock<'a, T>> {
        Ok(CpuBlock {
            run: self,
            block,
            input_layernorm: Weight::new(&block.input_layernorm)?,
            post_attention_layernorm: Weight::new(&block.post_attention_layernorm)?,
            q: Layer::new(self, &block.q_proj)?,
            k: Layer::new(self, &block.k_proj)?,
            v: Layer::new(self, &block.v_proj)?,
            o: Layer::new(self, &block.o_proj)?,
            gate: Layer::new(self, &block.gate_proj)?,
            up: Layer::new(self, &block.up_proj)?,
            down: Layer::new(self, &block.down_proj)?,
        })
    }
}

impl<T: Element> CpuBlock<'_, T> {
    /// The residual stream `[m, hidden]` after this block, and what its backward pass needs, if that is to be kept.
    pub(super) fn forward(&self, x: &[T], keep: bool) -> (Buffer<T>, Option<Saved<T>>) {
        let mut saved = self.attend(x);
        self.gate_and_up(&mut saved);
        let mut activated = Buffer::new(self.run.tokens() * self.down.inner);
        swiglu::forward(&saved.gate, &saved.up, &mut activated);
        saved.hidden.down = self.down.hidden(&activated, None);
        let width = self.down.out;
        let mut y = Buffer::new(self.run.tokens() * width);
        self.down.forward(&activated, &saved.hidden.down, &mut y, plus(&saved.middle, width));
        (y, keep.then_some(saved))
    }

    /// The first half; the second half's part of the result is empty.
    fn attend(&self, x: &[T]) -> Saved<T> {
        let m = self.run.tokens();
        let normed = self.normed(x, &self.input_layernorm);
        let project = |layer: &Layer<'_, T>| {
            let hidden = layer.hidden(&normed, None);
            let mut y = Buffer::new(m * layer.out);
            layer.forward(&normed, &hidden, &mut y, set);
            (y, hidden)
        };
        let ((mut q, hidden_q), (mut k, hidden_k), (v, hidden_v)) =
            (project(&self.q), project(&self.k), project(&self.v));
        drop(normed);
        rope::turn(&mut q, self.q.out, &self.run.pass.rotary, Turn::Forward);
        rope::turn(&mut k, self.k.out, &self.run.pass.rotary, Turn::Forward);
        let mut attended = Buffer::new(m * self.q.out);
        let mut lse = Buffer::new(m * self.block.attention.heads);
        self.attention().forward(&q, &k, &v, &mut attended, &mut lse);
        let hidden_o = self.o.hidden(&attended, None);
        let mut middle = Buffer::new(m * self.o.out);
        self.o.forward(&attended, &hidden_o, &mut middle, plus(x, self.o.out));
        let hidden = HiddenAll { q: hidden_q, k: hidden_k, v: hidden_v, o: hidden_o, gate: None, up: None, down: None };
        Saved { q, k, v, attended, lse, middle, gate: Buffer::new(0), up: Buffer::new(0), hidden }
    }

    /// The second half up to its activation.
    fn gate_and_up(&self, saved: &mut Saved<T>) {
        let m = self.run.tokens();
        let normed = self.normed(&saved.middle, &self.post_attention_layernorm);
        saved.hidden.gate = self.gate.hidden(&normed, None);
        saved.hidden.up = self.up.hidden(&normed, None);
        saved.gate = Buffer::new(m * self.gate.out);
        saved.up = Buffer::new(m * self.up.out);
        self.gate.forward(&normed, &saved.hidden.gate, &mut saved.gate, set);
        self.up.forward(&normed, &saved.hidden.up, &mut saved.up, set);
    }

    fn attention(&self) -> Attention<'_> {
        Attention { shape: self.block.attention, spans: &self.run.pass.spans, len: self.run.batch.len }
    }

    fn normed(&self, x: &[T], weight: &[T]) -> Buffer<T> {
        let mut normed = Buffer::new(self.run.tokens() * weight.len());
        rms_norm::forward(x, weight, self.block.eps as f32, &mut normed);
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
    ) -> Found {
        let mut found = Found::new();
        let mut saved = saved.unwrap_or_else(|| {
            let mut saved = self.attend(x);
            self.gate_and_up(&mut saved);
            saved
        });
        self.mlp_backward(&mut saved, gradient, &mut found);
        self.attention_backward(x, saved, gradient, wants_input, &mut found);
        found
    }

    fn mlp_backward(&self, saved: &mut Saved<T>, gradient: &mut [T], found: &mut Found) {
        let mut g_activated = Buffer::new(self.run.tokens() * self.down.inner);
        let back = self.down.back(gradient);
        input_gradient(&[&back], None, &mut g_activated);
        swiglu::backward(&mut saved.gate, &mut saved.up, &mut g_activated);
        let activated = g_activated;
        if saved.hidden.down.is_none() {
            saved.hidden.down = self.down.hidden(&activated, None);
        }
        self.down.train(&back, &activated, &saved.hidden.down, found);
        drop((back, activated));

        let normed = self.normed(&saved.middle, &self.post_attention_layernorm);
        let (g_gate, g_up) = (self.gate.back(&saved.gate), self.up.back(&saved.up));
        self.gate.train(&g_gate, &normed, &saved.hidden.gate, found);
        self.up.train(&g_up, &normed, &saved.hidden.up, found);
        let mut g_normed = normed;
        input_gradient(&[&g_gate, &g_up], None, &mut g_normed);
        drop((g_gate, g_up));
        (saved.gate, saved.up) = (Buffer::new(0), Buffer::new(0));
        self.norm_backward(
            &saved.middle,
            &self.post_attention_layernorm,
            "post_attention_layernorm",
            &g_normed,
            gradient,
            found,
        );
    }

    fn attention_backward(&self, x: &[T], saved: Saved<T>, gradient: &mut [T], wants_input: bool, found: &mut Found) {
        let Saved { q, k, v, attended, lse, hidden, .. } = saved;
        let back = self.o.back(gradient);
        self.o.train(&back, &attended, &hidden.o, found);
        let norm_trained = self.block.input_layernorm.is_variable();
        if !wants_input && !norm_trained && [&self.q, &self.k, &self.v].iter().all(|l| l.is_frozen()) {
            return;
        }
        let m = self.run.tokens();
        let mut g_attended = Buffer::new(m * self.o.inner);
        input_gradient(&[&back], None, &mut g_attended);
        drop(back);
        let (mut gq, mut gk, mut gv) =
            (Buffer::new(m * self.q.out), Buffer::new(m * self.k.out), Buffer::new(m * self.v.out));
        self.attention().backward((&q, &k, &v), (&attended, &lse), &g_attended, (&mut gq, &mut gk, &mut gv));
        drop((q, k, v, attended, lse, g_attended));
        rope::turn(&mut gq, self.q.out, &self.run.pass.rotary, Turn::Back);
        rope::turn(&mut gk, self.k.out, &self.run.pass.rotary, Turn::Back);

        let normed = self.normed(x, &self.input_layernorm);
        let (gq, gk, gv) = (self.q.back(&gq), self.k.back(&gk), self.v.back(&gv));
        self.q.train(&gq, &normed, &hidden.q, found);
        self.k.train(&gk, &normed, &hidden.k, found);
        self.v.train(&gv, &normed, &hidden.v, found);
        if !wants_input && !norm_trained {
            return;
        }
        let mut g_normed = normed;
        input_gradient(&[&gq, &gk, &gv], None, &mut g_normed);
        self.norm_backward(x, &self.input_layernorm, "input_layernorm", &g_normed, gradient, found);
    }

    /// Adds to `gradient` what comes through a norm of `x`, and to `found` the norm's own gradient.
    fn norm_backward(&self, x: &[T], weight: &[T], name: &str, g_normed: &[T], gradient: &mut [T], found: &mut Found) {
        let name = format!("model.layers.{}.{name}.weight", self.block.index);
        let trained = self.run.model.trainable().contains_key(&name);
        if let Some(own) = rms_norm::backward(x, weight, self.block.eps as f32, g_normed, gradient, trained) {
            found.push((name, own));
        }
    }
}

/// Stores sums added to rows of `width` of the residual stream.
fn plus<T: Element>(residual: &[T], width: usize) -> impl Fn(At, &[f32], &mut [T]) + Sync {
    move |at, sums, dst| {
        let row = &residual[at.row * width + at.col..][..sums.len()];
        for ((d, s), r) in dst.iter_mut().zip(sums).zip(row) {
            *d = T::from_f32(r.to_f32() + s);
        }
    }
}

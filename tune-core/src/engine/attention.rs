//! The body of a block's first half: queries, keys and values, attention, and the layer of its output.

use super::backend::{Backend, Part, PartMut};
use super::block::{Block, Input, Past, Target};
use super::linear::{Layer, LowRank, input_gradient};
use super::run::Found;
use crate::kernels::attention::Attention;
use crate::kernels::rope::Turn;
use crate::models::Slot::{KProj, OProj, QProj, QkvProj, VProj};
use crate::models::{BlockNorm, Half, Site};

/// What the forward pass keeps for the backward one.
pub(super) struct Attended<B: Backend> {
    /// Queries and keys as attention takes them, normed and turned, and values, `[m, heads * head_dim]` each.
    qkv: Vec<B::Acts>,
    /// Queries and keys before their norms, where they have some.
    raw: Option<[B::Acts; 2]>,
    /// The attention's output, `[m, heads * head_dim]`.
    out: B::Acts,
    /// `[heads, m]`.
    lse: B::Sums,
    /// What the adapters make of their inputs: of the layers of queries, keys and values, and of the output.
    low_rank: Vec<LowRank<B>>,
    low_rank_of_output: LowRank<B>,
}

impl<B: Backend> Block<'_, B> {
    fn inputs(&self) -> Vec<(Site, Layer<'_, B>)> {
        self.layers(&[QkvProj, QProj, KProj, VProj].map(Site::from))
    }

    /// The layer of the attention's output.
    fn output(&self) -> Layer<'_, B> {
        self.layer(OProj.into())
    }

    /// The widths of queries, keys and values.
    fn widths(&self) -> [usize; 3] {
        let (queries, keys) = self.spec.attention.widths();
        [queries, keys, keys]
    }

    /// Up to what attention gives. Keys and values of newest tokens are added to their past, where that is given.
    pub(super) fn attend(&self, x: Input<'_, B>, past: Option<&mut Past<B>>) -> Attended<B> {
        let (backend, m) = (self.run.backend, self.run.tokens());
        let projected = self.project(&self.inputs(), x.get(), m);
        drop(x);
        let mut qkv = projected.results;
        let raw = self.norm_heads(&mut qkv);
        self.turn(&mut qkv, Turn::Forward);
        let width = self.widths()[0];
        let mut out = self.run.acts(width);
        let mut lse = backend.sums(self.spec.attention.shape.heads, m);
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
        backend.attend(&self.attention(), [q, k, v], PartMut::new(&mut out, m, width), &mut lse);
        Attended { qkv, raw, out, lse, low_rank: projected.low_rank, low_rank_of_output: None }
    }

    /// The last layer, into `y`.
    pub(super) fn attention_output(&self, attended: &mut Attended<B>, target: &Target<'_, B>, y: &mut B::Acts) {
        let (m, layer) = (self.run.tokens(), self.output());
        attended.low_rank_of_output = layer.low_rank(Part::new(&attended.out, m, layer.inner()), None);
        layer.forward(&attended.out, m, &attended.low_rank_of_output, target.finish(m, layer.out()), y);
    }

    /// Norms queries and keys, where they are; returns them as they were.
    fn norm_heads(&self, qkv: &mut [B::Acts]) -> Option<[B::Acts; 2]> {
        let mut normed = |i: usize, which: BlockNorm| {
            let params = self.norm(which)?;
            let (m, width) = (self.run.tokens(), self.widths()[i]);
            let mut y = self.run.acts(width);
            let (x, to) = (Part::new(&qkv[i], m, width), PartMut::new(&mut y, m, width));
            self.run.backend.norm(x, &params.weight, self.norm_of(params), None, to);
            Some(std::mem::replace(&mut qkv[i], y))
        };
        let queries = normed(0, BlockNorm::Queries)?;
        Some([queries, normed(1, BlockNorm::Keys)?])
    }

    /// See [`Block::half_back`].
    pub(super) fn attention_backward(
        &self,
        x: &B::Acts,
        saved: Attended<B>,
        gradient: &B::Acts,
        onto: Option<&B::Acts>,
        wants_input: bool,
        found: &mut Found<B>,
    ) -> Option<B::Acts> {
        let (backend, m) = (self.run.backend, self.run.tokens());
        let Attended { qkv, raw, out, lse, low_rank, low_rank_of_output } = saved;
        let (inputs, layer) = (self.inputs(), self.output());
        let back = layer.back_of(gradient, m);
        let output_input = Part::new(&out, m, layer.inner());
        layer.train(&back, &layer.fed_back(output_input), &low_rank_of_output, None, self.id(OProj.into()), found);
        let wants_normed = wants_input || self.trains_norm(Half::Attention);
        let trains_heads = self.norm(BlockNorm::Queries).is_some_and(|norm| norm.trained);
        if !wants_normed && !trains_heads && inputs.iter().all(|(_, layer)| layer.is_frozen()) {
            return None;
        }
        let mut g_out = self.run.acts(layer.inner());
        let rounded = back.rounds_inputs().then_some(output_input);
        input_gradient(&[&back], None, rounded, None, PartMut::new(&mut g_out, m, layer.inner()));
        drop(back);
        let widths = self.widths();
        let mut g_qkv: Vec<B::Acts> = widths.iter().map(|&width| self.run.acts(width)).collect();
        if let [gq, gk, gv] = &mut g_qkv[..] {
            let of_out = |x| Part::new(x, m, widths[0]);
            let of_inputs =
                [PartMut::new(gq, m, widths[0]), PartMut::new(gk, m, widths[1]), PartMut::new(gv, m, widths[2])];
            let y = (of_out(&out), &lse);
            backend.attend_back(&self.attention(), self.heads(&qkv), y, of_out(&g_out), of_inputs);
        }
        drop((qkv, out, lse, g_out));
        self.turn(&mut g_qkv, Turn::Back);
        for (i, (raw, which)) in raw.into_iter().flatten().zip([BlockNorm::Queries, BlockNorm::Keys]).enumerate() {
            let mut g = backend.zeros(m, widths[i]);
            self.norm_part_backward(Part::new(&raw, m, widths[i]), which, &g_qkv[i], &mut g, found);
            g_qkv[i] = g;
        }
        let normed = self.normed(x, Half::Attention);
        self.project_back(&inputs, &g_qkv, &low_rank, normed, onto, wants_normed, found)
    }

    fn attention(&self) -> Attention<'_> {
        let shape = self.spec.attention.shape;
        Attention { shape, stretches: &self.run.stretches }
    }

    /// Queries, keys and values as attention takes them.
    fn heads<'x>(&self, qkv: &'x [B::Acts]) -> [Part<'x, B::Acts>; 3] {
        let widths = self.widths();
        std::array::from_fn(|i| Part::new(&qkv[i], self.run.tokens(), widths[i]))
    }

    /// Turns queries and keys, or their gradients, where the block turns them.
    fn turn(&self, qkv: &mut [B::Acts], turn: Turn) {
        let Some(table) = self.spec.attention.rotary else { return };
        for (x, width) in qkv.iter_mut().zip(self.widths()).take(2) {
            let x = PartMut::new(x, self.run.tokens(), width);
            self.run.backend.rotate(x, &self.run.rotary[table], turn);
        }
    }
}

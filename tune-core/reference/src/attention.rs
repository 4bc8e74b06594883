//! Causal attention over packed sequences (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>; the backward pass from the
//! logarithm of the normalizer: Dao 2023, <https://arxiv.org/abs/2307.08691>).
//!
//! Query head `h` reads key and value head `h / (heads / kv_heads)`. The query at position `i` of a span sees the keys at
//! `j ≤ i` of the same span, with a window `w` only those with `i - j < w`. For `z = scale · q · k` and `s = z`, or
//! `s = cap · tanh(z / cap)`:
//!
//! `lse_i = ln Σ_j exp(s_ij)`, `p_ij = exp(s_ij - lse_i)`, `out_i = Σ_j p_ij v_j`.

use std::ops::Range;

use crate::products::dot;
use crate::softcap;
use crate::{View, ViewMut};

/// The heads of a layer and how they look back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// How many positions a token sees, itself included; all earlier ones if `None`.
    pub window: Option<usize>,
    /// The cap of the scores.
    pub softcap: Option<f64>,
}

/// The gradients of queries, keys and values, to be written.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[tokens, heads · head_dim]`.
    pub q: ViewMut<'a>,
    /// `[tokens, kv_heads · head_dim]`.
    pub k: ViewMut<'a>,
    /// `[tokens, kv_heads · head_dim]`.
    pub v: ViewMut<'a>,
}

impl Attention {
    /// Attention for `q` `[tokens, heads · head_dim]` and `k`, `v` `[tokens, kv_heads · head_dim]` within each of `spans` (ranges
    /// of tokens) into `out`, shaped as `q`, and the logarithms of the normalizers into `lse` `[heads, tokens]`.
    /// Tokens outside every span give zero in both.
    pub fn forward(&self, [q, k, v]: [View<'_>; 3], spans: &[Range<usize>], out: &mut ViewMut<'_>, lse: &mut [f64]) {
        let tokens = q.rows();
        self.check([q, k, v], spans, lse.len() / self.heads);
        assert!(
            (out.rows(), out.cols()) == (tokens, q.cols()) && k.rows() == tokens,
            "attention: shapes that do not fit"
        );
        out.fill(0.0);
        lse.fill(0.0);
        for span in spans {
            for i in span.clone() {
                for head in 0..self.heads {
                    let keys = self.seen(span.start, i);
                    let out = &mut out.row(i)[self.of(head)];
                    lse[head * tokens + i] = self.one(head, &q.row(i)[self.of(head)], (k, v), keys, out);
                }
            }
        }
    }

    /// Attention of the `q.rows()` newest tokens of one sequence over all of its keys and values: the last row of `q`
    /// `[new, heads · head_dim]` is at the position of the last row of `k`, `v` `[length, kv_heads · head_dim]`. The same as the
    /// last rows of [`Attention::forward`] over the whole sequence.
    pub fn cached(&self, q: View<'_>, (k, v): (View<'_>, View<'_>), out: &mut ViewMut<'_>) {
        let (new, length) = (q.rows(), k.rows());
        self.check([q, k, v], &[], length);
        assert!(new <= length && (out.rows(), out.cols()) == (new, q.cols()), "attention: shapes that do not fit");
        for i in 0..new {
            for head in 0..self.heads {
                let keys = self.seen(0, length - new + i);
                self.one(head, &q.row(i)[self.of(head)], (k, v), keys, &mut out.row(i)[self.of(head)]);
            }
        }
    }

    /// Stores the gradients for `g`, that of the output `out`, both shaped as `q`. With `D_i = g_i · out_i`,
    /// `ds_ij = p_ij (g_i · v_j - D_i)` and `dz_ij = ds_ij`, times `1 - (s_ij / cap)²` if there is a cap:
    /// `dq_i = scale Σ_j dz_ij k_j`, `dk_j = scale Σ_i dz_ij q_i`, `dv_j = Σ_i p_ij g_i`.
    pub fn backward(
        &self,
        [q, k, v]: [View<'_>; 3],
        spans: &[Range<usize>],
        (out, lse): (View<'_>, &[f64]),
        g: View<'_>,
        into: &mut Gradients<'_>,
    ) {
        let tokens = q.rows();
        self.check([q, k, v], spans, lse.len() / self.heads);
        for x in [out, g] {
            assert_eq!((x.rows(), x.cols()), (tokens, q.cols()), "attention: shapes that do not fit");
        }
        into.q.fill(0.0);
        into.k.fill(0.0);
        into.v.fill(0.0);
        for span in spans {
            for (i, head) in span.clone().flat_map(|i| (0..self.heads).map(move |head| (i, head))) {
                let (own, shared) = (self.of(head), self.of(self.kv_head(head)));
                let (q, g) = (&q.row(i)[own.clone()], &g.row(i)[own.clone()]);
                let d = dot(g, &out.row(i)[own.clone()]);
                for j in self.seen(span.start, i) {
                    let (k, v) = (&k.row(j)[shared.clone()], &v.row(j)[shared.clone()]);
                    let s = self.score(q, k);
                    let p = (s - lse[head * tokens + i]).exp();
                    let ds = p * (dot(g, v) - d);
                    let dz = self.scale * self.softcap.map_or(ds, |cap| ds * softcap::slope(s, cap));
                    add(dz, k, &mut into.q.row(i)[own.clone()]);
                    add(dz, q, &mut into.k.row(j)[shared.clone()]);
                    add(p, g, &mut into.v.row(j)[shared.clone()]);
                }
            }
        }
    }

    /// One query of one head: its output is stored, the logarithm of its normalizer returned.
    fn one(&self, head: usize, q: &[f64], (k, v): (View<'_>, View<'_>), keys: Range<usize>, out: &mut [f64]) -> f64 {
        let cols = self.of(self.kv_head(head));
        let scores: Vec<f64> = keys.clone().map(|j| self.score(q, &k.row(j)[cols.clone()])).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
        out.fill(0.0);
        for (j, s) in keys.zip(scores) {
            add((s - lse).exp(), &v.row(j)[cols.clone()], out);
        }
        lse
    }

    fn score(&self, q: &[f64], k: &[f64]) -> f64 {
        let z = self.scale * dot(q, k);
        self.softcap.map_or(z, |cap| softcap::cap(z, cap))
    }

    /// The keys that the query at `i` sees in a span that begins at `start`.
    fn seen(&self, start: usize, i: usize) -> Range<usize> {
        let first = self.window.map_or(0, |w| (i + 1).saturating_sub(w));
        first.max(start)..i + 1
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// The columns of a head.
    fn of(&self, head: usize) -> Range<usize> {
        head * self.head_dim..(head + 1) * self.head_dim
    }

    fn check(&self, [q, k, v]: [View<'_>; 3], spans: &[Range<usize>], tokens: usize) {
        assert!(self.heads.is_multiple_of(self.kv_heads) && self.window != Some(0), "attention: heads or a window");
        let kv = (k.rows(), self.kv_heads * self.head_dim);
        let fits = q.cols() == self.heads * self.head_dim && (k.rows(), k.cols()) == kv && (v.rows(), v.cols()) == kv;
        assert!(fits && tokens == k.rows(), "attention: shapes that do not fit");
        assert!(spans.iter().all(|s| s.end <= tokens), "attention: a span outside of the tokens");
    }
}

fn add(factor: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

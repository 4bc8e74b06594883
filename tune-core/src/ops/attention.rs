//! Causal attention over packed sequences: grouped heads, a sliding window, nothing kept but the output.
//!
//! A tile of queries sees just the keys it may attend to, so the work is
//! triangular and no score matrix of size sequence × sequence ever exists; the
//! backward pass makes each tile's probabilities again.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::matmul::{Strided, Threads, gemm};
use super::real::{self, Real, Values, dispatch, tensor};
use super::{AttentionShape, reference};
use crate::data::Span;

/// Queries handled at once.
const TILE: usize = 64;

/// Causal attention inside each span, for `q` `[batch, seq, heads * head_dim]` and `k`, `v`
/// `[batch, seq, kv_heads * head_dim]`, giving the shape of `q`. Positions outside every span give zero.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape, spans: &Arc<[Span]>) -> Result<Tensor> {
    let (batch, seq, q_width) = q.dims3()?;
    let kv = (batch, seq, shape.kv_heads * shape.head_dim);
    if q_width != shape.heads * shape.head_dim || k.dims3()? != kv || v.dims3()? != kv {
        bail!("attention: q {:?}, k {:?}, v {:?} do not fit {shape:?}", q.shape(), k.shape(), v.shape());
    }
    if let Some(s) = spans.iter().find(|s| s.row >= batch || s.start + s.len > seq) {
        bail!("attention: {s:?} lies outside {batch} rows of {seq}");
    }
    if !q.device().is_cpu() {
        return reference::attention(q, k, v, shape, spans);
    }
    q.apply_op3(k, v, Attention { shape, spans: Arc::clone(spans) })
}

/// Attention of the newest tokens, `q` `[1, new, heads * head_dim]`, over all keys and values
/// so far, `[1, past + new, kv_heads * head_dim]`. For inference: no gradient.
pub fn attention_with_cache(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    if !q.device().is_cpu() {
        return reference::attention_with_cache(q, k, v, shape);
    }
    dispatch!(q.dtype(), cached::<_>(q, k, v, shape))
}

fn cached<R: Real>(q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    let (_, new, width) = q.dims3()?;
    let total = k.dim(1)?;
    let (qs, ks, vs) = (Values::<R>::of(q)?, Values::<R>::of(k)?, Values::<R>::of(v)?);
    let all = Heads { shape, q: &qs, k: &ks, v: &vs, queries: new, keys: total };
    let heads: Vec<Vec<R>> = (0..shape.heads).into_par_iter().map(|h| all.forward(h)).collect();
    let mut out = vec![R::zero(); new * width];
    for (h, values) in heads.iter().enumerate() {
        scatter(values, shape.head_dim, &mut out, width, h * shape.head_dim);
    }
    Ok(tensor(out, q.shape(), q.dtype()))
}

/// One span of all heads: slices that begin at the span's first row.
struct Heads<'a, R> {
    shape: AttentionShape,
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
    queries: usize,
    /// At least `queries`; the queries are the newest of these positions.
    keys: usize,
}

/// The gradients of one key-value head and of the query heads that it serves.
struct GroupGradients<R> {
    /// `[group][len, head_dim]`.
    q: Vec<Vec<R>>,
    /// `[len, head_dim]`.
    k: Vec<R>,
    /// `[len, head_dim]`.
    v: Vec<R>,
}

impl<'a, R: Real> Heads<'a, R> {
    fn q_width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    fn kv_width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    fn query(&self, values: &'a [R], head: usize, row: usize) -> Strided<'a, R> {
        Strided::rows(&values[row * self.q_width() + head * self.shape.head_dim..], self.q_width())
    }

    fn key(&self, values: &'a [R], kv_head: usize, row: usize) -> Strided<'a, R> {
        Strided::rows(&values[row * self.kv_width() + kv_head * self.shape.head_dim..], self.kv_width())
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.shape.heads / self.shape.kv_heads)
    }

    /// The tiles as (first query, queries, first key, keys).
    fn tiles(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> + use<R> {
        let (queries, past, shape) = (self.queries, self.keys - self.queries, self.shape);
        (0..queries).step_by(TILE).map(move |i| {
            let rows = TILE.min(queries - i);
            let first = shape.first_key(past + i);
            (i, rows, first, past + i + rows - first)
        })
    }

    /// The attention probabilities of one tile, `[rows, keys]`.
    fn probabilities(&self, head: usize, (i, rows, first, keys): (usize, usize, usize, usize)) -> Vec<R> {
        let past = self.keys - self.queries;
        let mut p = vec![R::zero(); rows * keys];
        let (q, k) = (self.query(self.q, head, i), self.key(self.k, self.kv_head(head), first));
        gemm(
            (rows, self.shape.head_dim, keys),
            R::of(self.shape.scale),
            q,
            k.t(),
            R::zero(),
            &mut p,
            keys,
            Threads::One,
        );
        for (r, p) in p.chunks_mut(keys).enumerate() {
            let position = past + i + r;
            let visible = self.shape.first_key(position) - first..position + 1 - first;
            p[..visible.start].fill(R::zero());
            p[visible.end..].fill(R::zero());
            softmax(&mut p[visible]);
        }
        p
    }

    /// One query head's output, `[queries, head_dim]`.
    fn forward(&self, head: usize) -> Vec<R> {
        let dim = self.shape.head_dim;
        let mut out = vec![R::zero(); self.queries * dim];
        for tile @ (i, rows, first, keys) in self.tiles() {
            let p = self.probabilities(head, tile);
            let v = self.key(self.v, self.kv_head(head), first);
            gemm(
                (rows, keys, dim),
                R::one(),
                Strided::rows(&p, keys),
                v,
                R::zero(),
                &mut out[i * dim..],
                dim,
                Threads::One,
            );
        }
        out
    }

    /// With probabilities `P`, output `O` and its gradient `G`:
    /// `dV = Pᵀ G`, `dS = P ∘ (G Vᵀ - rowsum(G ∘ O))`, `dQ = scale · dS K`, `dK = scale · dSᵀ Q`.
    fn backward(&self, kv_head: usize, out: &'a [R], grad: &'a [R]) -> GroupGradients<R> {
        let (dim, group) = (self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        let scale = R::of(self.shape.scale);
        let len = self.queries;
        let mut result = GroupGradients {
            q: vec![vec![R::zero(); len * dim]; group],
            k: vec![R::zero(); len * dim],
            v: vec![R::zero(); len * dim],
        };
        for g in 0..group {
            let head = kv_head * group + g;
            for tile @ (i, rows, first, keys) in self.tiles() {
                let mut p = self.probabilities(head, tile);
                let g_out = self.query(grad, head, i);
                let dv = &mut result.v[first * dim..];
                gemm((keys, rows, dim), R::one(), Strided::rows(&p, keys).t(), g_out, R::one(), dv, dim, Threads::One);

                let mut dp = vec![R::zero(); rows * keys];
                let v = self.key(self.v, kv_head, first);
                gemm((rows, dim, keys), R::one(), g_out, v.t(), R::zero(), &mut dp, keys, Threads::One);
                let o = self.query(out, head, i);
                for (r, (p, dp)) in p.chunks_mut(keys).zip(dp.chunks(keys)).enumerate() {
                    let (o, g) = (&o.data[r * o.row..][..dim], &g_out.data[r * g_out.row..][..dim]);
                    let delta = real::sum([o, g], |[o, g]| o * g);
                    p.iter_mut().zip(dp).for_each(|(p, &dp)| *p *= dp - delta);
                }

                let ds = Strided::rows(&p, keys);
                let k = self.key(self.k, kv_head, first);
                gemm((rows, keys, dim), scale, ds, k, R::zero(), &mut result.q[g][i * dim..], dim, Threads::One);
                let q = self.query(self.q, head, i);
                gemm((keys, rows, dim), scale, ds.t(), q, R::one(), &mut result.k[first * dim..], dim, Threads::One);
            }
        }
        result
    }
}

fn softmax<R: Real>(scores: &mut [R]) {
    let max = real::max(scores);
    let inverse = real::exp_and_sum(scores, max).recip();
    scores.iter_mut().for_each(|s| *s *= inverse);
}

/// Puts one head's `[len, dim]` into rows of `width`, from column `at`.
fn scatter<R: Real>(head: &[R], dim: usize, rows: &mut [R], width: usize, at: usize) {
    for (row, values) in rows.chunks_mut(width).zip(head.chunks(dim)) {
        row[at..at + dim].copy_from_slice(values);
    }
}

struct Attention {
    shape: AttentionShape,
    spans: Arc<[Span]>,
}

impl Attention {
    /// The part of `q`, `k` and `v` that one span covers; `len` positions a row.
    fn heads<'a, R: Real>(&self, q: &'a [R], k: &'a [R], v: &'a [R], len: usize, span: &Span) -> Heads<'a, R> {
        let first = span.row * len + span.start;
        let rows = |x: &'a [R], width: usize| &x[first * width..(first + span.len) * width];
        let (qw, kw) = (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim);
        Heads { shape: self.shape, q: rows(q, qw), k: rows(k, kw), v: rows(v, kw), queries: span.len, keys: span.len }
    }

    fn forward<R: Real>(
        &self,
        q: (&CpuStorage, &Layout),
        k: (&CpuStorage, &Layout),
        v: (&CpuStorage, &Layout),
    ) -> Result<Vec<R>> {
        let (_, len, width) = q.1.shape().dims3()?;
        let (qs, ks, vs) = (
            Values::<R>::of_storage(q.0, q.1)?,
            Values::<R>::of_storage(k.0, k.1)?,
            Values::<R>::of_storage(v.0, v.1)?,
        );
        let tasks: Vec<(&Span, usize)> =
            self.spans.iter().flat_map(|s| (0..self.shape.heads).map(move |h| (s, h))).collect();
        let outputs: Vec<Vec<R>> =
            tasks.par_iter().map(|&(span, h)| self.heads(&qs, &ks, &vs, len, span).forward(h)).collect();
        let mut out = vec![R::zero(); qs.len()];
        for ((span, h), values) in tasks.into_iter().zip(&outputs) {
            let first = (span.row * len + span.start) * width;
            scatter(values, self.shape.head_dim, &mut out[first..], width, h * self.shape.head_dim);
        }
        Ok(out)
    }

    fn backward<R: Real>(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (_, len, q_width) = q.dims3()?;
        let (dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let (kv_width, group) = (kv_heads * dim, self.shape.heads / kv_heads);
        let (qs, ks, vs) = (Values::<R>::of(q)?, Values::<R>::of(k)?, Values::<R>::of(v)?);
        let (os, gs) = (Values::<R>::of(out)?, Values::<R>::of(grad)?);
        let tasks: Vec<(&Span, usize)> = self.spans.iter().flat_map(|s| (0..kv_heads).map(move |h| (s, h))).collect();
        let parts: Vec<GroupGradients<R>> = tasks
            .par_iter()
            .map(|&(span, h)| {
                let first = (span.row * len + span.start) * q_width;
                let rows = first..first + span.len * q_width;
                self.heads(&qs, &ks, &vs, len, span).backward(h, &os[rows.clone()], &gs[rows])
            })
            .collect();
        let (mut gq, mut gk, mut gv) =
            (vec![R::zero(); qs.len()], vec![R::zero(); ks.len()], vec![R::zero(); vs.len()]);
        for ((span, h), part) in tasks.into_iter().zip(&parts) {
            let first = span.row * len + span.start;
            for (g, values) in part.q.iter().enumerate() {
                scatter(values, dim, &mut gq[first * q_width..], q_width, (h * group + g) * dim);
            }
            scatter(&part.k, dim, &mut gk[first * kv_width..], kv_width, h * dim);
            scatter(&part.v, dim, &mut gv[first * kv_width..], kv_width, h * dim);
        }
        Ok([tensor(gq, q.shape(), q.dtype()), tensor(gk, k.shape(), k.dtype()), tensor(gv, v.shape(), v.dtype())])
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = match q {
            CpuStorage::F64(_) => real::storage(self.forward::<f64>((q, lq), (k, lk), (v, lv))?, q.dtype()),
            _ => real::storage(self.forward::<f32>((q, lq), (k, lk), (v, lv))?, q.dtype()),
        };
        Ok((out, lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [gq, gk, gv] = dispatch!(q.dtype(), self.backward::<_>(q, k, v, out, grad))?;
        Ok((Some(gq), Some(gk), Some(gv)))
    }
}

//! Attention, forward and backward.

use std::ops::Range;

use tune_cuda::{Attention, Context, Qkv, QkvMut, Spans, Stretch};
use tune_reference as reference;
use tune_reference::ViewMut;

use super::checks::Checks;
use super::numbers::{Matrix, Number, random, widened};

struct Case {
    heads: [usize; 2],
    dim: usize,
    tokens: usize,
    spans: Vec<Range<usize>>,
    window: Option<usize>,
    softcap: Option<f64>,
    pad: usize,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dim in [64, 80, 128, 256] {
        let case = |tokens, spans: &[Range<usize>], window, softcap, pad| Case {
            heads: [4, 2],
            dim,
            tokens,
            spans: spans.to_vec(),
            window,
            softcap,
            pad,
        };
        cases.push(case(1, std::slice::from_ref(&(0..1)), None, None, 0));
        cases.push(case(257, &[0..129, 129..130, 140..257], None, None, 8));
        cases.push(case(130, std::slice::from_ref(&(1..129)), Some(37), Some(3.0), 0));
        cases.push(case(70, std::slice::from_ref(&(0..70)), None, None, 3));
    }
    let small = Case { heads: [3, 1], dim: 20, tokens: 45, spans: Vec::new(), window: Some(7), softcap: None, pad: 1 };
    cases.push(Case { spans: std::iter::once(0..44).collect(), ..small });
    cases.push(Case {
        heads: [2, 2],
        dim: 128,
        tokens: 700,
        spans: std::iter::once(0..700).collect(),
        window: None,
        softcap: None,
        pad: 0,
    });
    cases
}

pub(crate) fn check<T: Number>(context: &Context, checks: &mut Checks, most: usize) {
    for case in cases().into_iter().take(most) {
        let ([heads, kv_heads], dim, tokens) = (case.heads, case.dim, case.tokens);
        let scale = 1.0 / (dim as f64).sqrt();
        let theirs = reference::attention::Attention {
            heads,
            kv_heads,
            head_dim: dim,
            scale,
            window: case.window,
            softcap: case.softcap,
        };
        let ours = Attention {
            heads,
            kv_heads,
            head_dim: dim,
            scale: scale as f32,
            window: case.window,
            softcap: case.softcap.map(|c| c as f32),
        };
        let (wide, narrow) = ((tokens, heads * dim), (tokens, kv_heads * dim));
        let q = Matrix::<T>::random(context, 1, wide, case.pad, 2.0);
        let [k, v] = [2, 3].map(|n| Matrix::<T>::random(context, n, narrow, case.pad, 2.0));
        let g = Matrix::<T>::random(context, 4, wide, case.pad, 1.0);
        let views = [
            reference::View::new(&q.host, wide.1),
            reference::View::new(&k.host, narrow.1),
            reference::View::new(&v.host, narrow.1),
        ];
        let (mut out, mut lse) = (vec![0.0; tokens * wide.1], vec![0.0; heads * tokens]);
        theirs.forward(views, &case.spans, &mut ViewMut::new(&mut out, wide.1), &mut lse);
        let [mut dq, mut dk, mut dv] = [wide, narrow, narrow].map(|(rows, cols)| vec![0.0; rows * cols]);
        let mut into = reference::attention::Gradients {
            q: ViewMut::new(&mut dq, wide.1),
            k: ViewMut::new(&mut dk, narrow.1),
            v: ViewMut::new(&mut dv, narrow.1),
        };
        let kept = (reference::View::new(&out, wide.1), &lse[..]);
        theirs.backward(views, &case.spans, kept, reference::View::new(&g.host, wide.1), &mut into);
        let spans = Spans::new(&case.spans, tokens);
        let qkv = || Qkv { q: q.view(), k: k.view(), v: v.view() };
        let name = format!("{tokens} x {heads}/{kv_heads} x {dim} {:?} {:?} + {}", case.window, case.softcap, case.pad);
        let tolerance = if T::NAME == "f32" { 1e-5 } else { 6e-3 };
        let forward = || {
            let mut out = Matrix::<T>::poisoned(context, wide, case.pad);
            let mut lse = context.buffer::<f32>(heads * tokens);
            context.fill(&mut lse, 0xff);
            context.attend(&ours, &spans, qkv(), out.view_mut(), &mut lse);
            (out, lse)
        };
        let read =
            |lse: tune_cuda::Buffer<f32>| Ok::<_, String>(widened(&context.download(&lse).map_err(|e| e.to_string())?));
        checks.compare("attention", T::NAME, &name, tolerance, &[out.clone()], || Ok(vec![forward().0.read(context)?]));
        checks.compare("attention normalizer", T::NAME, &name, 1e-5, &[lse.clone()], || Ok(vec![read(forward().1)?]));
        checks.compare("attention gradient", T::NAME, &name, 2.5 * tolerance, &[dq, dk, dv], || {
            let (out, lse) = forward();
            let mut into = [wide, narrow, narrow].map(|shape| Matrix::<T>::poisoned(context, shape, case.pad));
            let [a, b, c] = &mut into;
            let gradients = QkvMut { q: a.view_mut(), k: b.view_mut(), v: c.view_mut() };
            context.attend_back(&ours, &spans, qkv(), (out.view(), &lse), g.view(), gradients);
            into.iter().map(|m| m.read(context)).collect()
        });
    }
}

/// New tokens of sequences whose past is in a cache: what a run over the whole sequences gives for them.
pub(crate) fn behind_a_past<T: Number>(context: &Context, checks: &mut Checks) {
    const BEFORE: usize = 5; // rows of the cache that are nobody's
    let lengths = [45usize, 130, 7, 300];
    let tokens: usize = lengths.iter().sum();
    for (fresh, dim, window, softcap) in [
        (1, 128, None, None),
        (1, 64, Some(50), Some(4.0)),
        (5, 128, None, None),
        (3, 80, Some(9), None),
        (2, 256, None, None),
    ] {
        let (heads, kv_heads) = (8, 2);
        let scale = 1.0 / f64::from(dim).sqrt();
        let dim = dim as usize;
        let how = Attention {
            heads,
            kv_heads,
            head_dim: dim,
            scale: scale as f32,
            window,
            softcap: softcap.map(|c| c as f32),
        };
        let theirs = reference::attention::Attention { heads, kv_heads, head_dim: dim, scale, window, softcap };
        let (wide, narrow) = (heads * dim, kv_heads * dim);
        let q = random::<T>(1, tokens * wide, 2.0);
        let [k, v] = [2, 3].map(|n| random::<T>(n, (BEFORE + tokens) * narrow, 2.0));
        let hosts = [widened(&q), widened(&k[BEFORE * narrow..]), widened(&v[BEFORE * narrow..])];
        let mut spans = Vec::new();
        let (mut start, mut stretches, mut newest) = (0, Vec::new(), Vec::new());
        for len in lengths {
            spans.push(start..start + len);
            stretches.push(Stretch { queries: newest.len(), len: fresh, keys: BEFORE + start, past: len - fresh });
            start += len;
            newest.extend(start - fresh..start);
        }
        let (mut out, mut lse) = (vec![0.0; tokens * wide], vec![0.0; heads * tokens]);
        let views = [
            reference::View::new(&hosts[0], wide),
            reference::View::new(&hosts[1], narrow),
            reference::View::new(&hosts[2], narrow),
        ];
        theirs.forward(views, &spans, &mut ViewMut::new(&mut out, wide), &mut lse);
        let rows = |x: &[f64]| newest.iter().flat_map(|&t| x[t * wide..(t + 1) * wide].to_vec()).collect::<Vec<_>>();
        let right = rows(&out);
        let right_lse: Vec<f64> =
            (0..heads).flat_map(|h| newest.iter().map(move |&t| h * tokens + t)).map(|at| lse[at]).collect();
        let some: Vec<T> = newest.iter().flat_map(|&t| q[t * wide..(t + 1) * wide].to_vec()).collect();
        let q = Matrix::of(context, &some, (newest.len(), wide), 0);
        let [k, v] = [&k, &v].map(|x| Matrix::of(context, x, (BEFORE + tokens, narrow), 8));
        let spans = Spans::behind(&stretches, newest.len(), BEFORE + tokens);
        let tolerance = if T::NAME == "f32" { 1e-5 } else { 6e-3 };
        let name = format!("{fresh} new, {heads}/{kv_heads} x {dim} {window:?} {softcap:?}");
        checks.compare("attention behind a past", T::NAME, &name, tolerance, &[right, right_lse], || {
            let mut out = Matrix::<T>::poisoned(context, (newest.len(), wide), 8);
            let mut lse = context.buffer::<f32>(heads * newest.len());
            context.fill(&mut lse, 0xff);
            context.attend(&how, &spans, Qkv { q: q.view(), k: k.view(), v: v.view() }, out.view_mut(), &mut lse);
            let lse = widened(&context.download(&lse).map_err(|e| e.to_string())?);
            Ok(vec![out.read(context)?, lse])
        });
    }
}

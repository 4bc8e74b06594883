use std::ops::Range;

use tune_reference::attention::{Attention, Gradients};
use tune_reference::{View, ViewMut};

use super::{agrees, close, dot, numbers};

struct Case {
    how: Attention,
    tokens: usize,
    spans: Vec<Range<usize>>,
}

/// One span alone.
fn one(span: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(span).collect()
}

fn cases() -> Vec<Case> {
    let plain = Attention { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0, window: None, softcap: None };
    let grouped = Attention { heads: 4, kv_heads: 2, head_dim: 3, scale: 0.7, ..plain };
    vec![
        Case { how: plain, tokens: 1, spans: one(0..1) },
        Case { how: grouped, tokens: 9, spans: vec![0..4, 4..5, 5..5, 6..9] },
        Case { how: Attention { window: Some(2), ..grouped }, tokens: 7, spans: one(0..6) },
        Case { how: Attention { softcap: Some(0.8), window: Some(3), ..grouped }, tokens: 6, spans: one(1..6) },
    ]
}

impl Case {
    fn widths(&self) -> (usize, usize) {
        (self.how.heads * self.how.head_dim, self.how.kv_heads * self.how.head_dim)
    }

    fn inputs(&self) -> [Vec<f64>; 3] {
        let (wide, narrow) = self.widths();
        [numbers(1, self.tokens * wide), numbers(2, self.tokens * narrow), numbers(3, self.tokens * narrow)]
    }

    fn views<'a>(&self, q: &'a [f64], k: &'a [f64], v: &'a [f64]) -> [View<'a>; 3] {
        let (wide, narrow) = self.widths();
        [View::new(q, wide), View::new(k, narrow), View::new(v, narrow)]
    }

    fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut out, mut lse) = (vec![f64::NAN; q.len()], vec![f64::NAN; self.how.heads * self.tokens]);
        let wide = self.widths().0;
        self.how.forward(self.views(q, k, v), &self.spans, &mut ViewMut::new(&mut out, wide), &mut lse);
        (out, lse)
    }
}

/// The softmax written out, without its logarithm.
fn by_definition(case: &Case, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let ((wide, narrow), d) = (case.widths(), case.how.head_dim);
    let mut out = vec![0.0; q.len()];
    for span in &case.spans {
        for (i, h) in span.clone().flat_map(|i| (0..case.how.heads).map(move |h| (i, h))) {
            let at = h * case.how.kv_heads / case.how.heads * d;
            let seen = span.clone().filter(|&j| j <= i && case.how.window.is_none_or(|w| i - j < w));
            let weights: Vec<(usize, f64)> = seen
                .map(|j| {
                    let z = case.how.scale * dot(&q[i * wide + h * d..][..d], &k[j * narrow + at..][..d]);
                    (j, case.how.softcap.map_or(z, |c| c * (z / c).tanh()).exp())
                })
                .collect();
            let total: f64 = weights.iter().map(|(_, w)| w).sum();
            for (j, w) in weights {
                (0..d).for_each(|c| out[i * wide + h * d + c] += w / total * v[j * narrow + at + c]);
            }
        }
    }
    out
}

#[test]
fn outputs_are_those_of_the_definition() {
    for case in cases() {
        let [q, k, v] = case.inputs();
        close("output", &case.forward(&q, &k, &v).0, &by_definition(&case, &q, &k, &v), 1e-13);
    }
}

#[test]
fn gradients_come_from_the_output_and_the_normalizer() {
    for case in cases() {
        let ([q, k, v], (wide, narrow)) = (case.inputs(), case.widths());
        let g = numbers(4, q.len());
        let (out, lse) = case.forward(&q, &k, &v);
        let [mut gq, mut gk, mut gv] = [&q, &k, &v].map(|x| vec![f64::NAN; x.len()]);
        let mut into = Gradients {
            q: ViewMut::new(&mut gq, wide),
            k: ViewMut::new(&mut gk, narrow),
            v: ViewMut::new(&mut gv, narrow),
        };
        let kept = (View::new(&out, wide), &lse[..]);
        case.how.backward(case.views(&q, &k, &v), &case.spans, kept, View::new(&g, wide), &mut into);
        agrees("q", &q, &gq, |q| dot(&g, &case.forward(q, &k, &v).0));
        agrees("k", &k, &gk, |k| dot(&g, &case.forward(&q, k, &v).0));
        agrees("v", &v, &gv, |v| dot(&g, &case.forward(&q, &k, v).0));
    }
}

#[test]
fn new_tokens_see_the_cache_as_the_whole_does() {
    for case in cases() {
        let whole = Case { spans: one(0..case.tokens), ..case };
        let ([q, k, v], wide) = (whole.inputs(), whole.widths().0);
        let (out, _) = whole.forward(&q, &k, &v);
        for new in 1..=whole.tokens {
            let from = (whole.tokens - new) * wide;
            let mut last = vec![f64::NAN; new * wide];
            let [q, k, v] = whole.views(&q[from..], &k, &v);
            whole.how.cached(q, (k, v), &mut ViewMut::new(&mut last, wide));
            close("cached", &last, &out[from..], 1e-14);
        }
    }
}

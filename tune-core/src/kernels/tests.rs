//! Each kernel, in f32 and in bf16, against the operation of the same name in f64.

use candle_core::{Device, Tensor, Var};
use half::bf16;

use super::attention::{Attention, AttentionShape};
use super::rope::{Rotary, Turn};
use super::{Element, rms_norm, rope, swiglu};
use crate::data::Span;
use crate::ops;

fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    crate::models::uniform(seed, count, 1.5).into_iter().map(T::from_f32).collect()
}

fn f64s<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|v| f64::from(v.to_f32())).collect()
}

fn var<T: Element>(x: &[T], shape: &[usize]) -> Var {
    Var::from_vec(f64s(x), shape, &Device::Cpu).unwrap()
}

/// The gradients of `sum(y · grad)` with respect to `vars`.
fn gradients<T: Element>(y: &Tensor, grad: &[T], vars: &[&Var]) -> Vec<Vec<f64>> {
    let grad = Tensor::from_vec(f64s(grad), y.shape(), &Device::Cpu).unwrap();
    let store = (y * grad).unwrap().sum_all().unwrap().backward().unwrap();
    vars.iter().map(|v| store.get(v).unwrap().flatten_all().unwrap().to_vec1().unwrap()).collect()
}

/// Within rounding of the largest value.
fn assert_close<T: Element>(what: &str, got: &[T], right: &[f64]) {
    let tolerance = if T::IS_BF16 { 2e-2 } else { 3e-6 };
    let largest = right.iter().fold(1f64, |m, v| m.max(v.abs()));
    assert_eq!(got.len(), right.len(), "{what}");
    for (i, (g, r)) in f64s(got).iter().zip(right).enumerate() {
        assert!((g - r).abs() <= tolerance * largest, "{what}[{i}]: {g}, not {r}");
    }
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn check_attention<T: Element>(
    spans: &[Span],
    rows: usize,
    len: usize,
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
) {
    let dim = 32;
    let shape = AttentionShape { heads, kv_heads, head_dim: dim, scale: 0.25, window };
    let tokens = rows * len;
    let (q, g) = (numbers::<T>(tokens * heads * dim, 1), numbers::<T>(tokens * heads * dim, 4));
    let (k, v) = (numbers::<T>(tokens * kv_heads * dim, 2), numbers::<T>(tokens * kv_heads * dim, 3));
    let at = |width: usize| [rows, len, width];
    let (vq, vk, vv) = (var(&q, &at(heads * dim)), var(&k, &at(kv_heads * dim)), var(&v, &at(kv_heads * dim)));
    let right = ops::attention(&vq, &vk, &vv, shape, &spans.into()).unwrap();
    let right_gradients = gradients(&right, &g, &[&vq, &vk, &vv]);

    let attention = Attention { shape, spans, len };
    let (mut out, mut lse) = (q.clone(), vec![7f32; tokens * heads]);
    attention.forward(&q, &k, &v, &mut out, &mut lse);
    assert_close("attention", &out, &values(&right));
    let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), v.clone());
    attention.backward((&q, &k, &v), (&out, &lse), &g, (&mut gq, &mut gk, &mut gv));
    assert_close("gq", &gq, &right_gradients[0]);
    assert_close("gk", &gk, &right_gradients[1]);
    assert_close("gv", &gv, &right_gradients[2]);
}

#[test]
fn attention_over_packed_rows() {
    let spans = [
        Span { row: 0, start: 0, len: 50 },
        Span { row: 0, start: 50, len: 1 },
        Span { row: 0, start: 51, len: 200 },
        Span { row: 1, start: 0, len: 97 },
    ];
    check_attention::<f32>(&spans, 2, 256, 6, 2, None);
    check_attention::<bf16>(&spans, 2, 256, 6, 2, None);
}

#[test]
fn attention_longer_than_a_block_of_keys_and_a_chunk_of_queries() {
    let spans = [Span { row: 0, start: 0, len: 1100 }];
    check_attention::<f32>(&spans, 1, 1100, 2, 2, None);
    check_attention::<f32>(&spans, 1, 1100, 2, 1, Some(300));
}

#[test]
fn attention_through_a_window() {
    let spans = [Span { row: 0, start: 3, len: 120 }, Span { row: 1, start: 0, len: 60 }];
    for window in [1, 7, 64] {
        check_attention::<f32>(&spans, 2, 130, 4, 4, Some(window));
    }
}

fn check_rows<T: Element>() {
    let (rows, width) = (150, 96);
    let (x, w, g) = (numbers::<T>(rows * width, 1), numbers::<T>(width, 2), numbers::<T>(rows * width, 3));
    let (vx, vw) = (var(&x, &[rows, width]), var(&w, &[width]));
    let right = ops::rms_norm(&vx, &vw, 1e-5).unwrap();
    let right_gradients = gradients(&right, &g, &[&vx, &vw]);
    let mut y = x.clone();
    rms_norm::forward(&x, &w, 1e-5, &mut y);
    assert_close("rms_norm", &y, &values(&right));
    let mut gx = numbers::<T>(rows * width, 4);
    let with_residual: Vec<f64> = f64s(&gx).iter().zip(&right_gradients[0]).map(|(r, g)| r + g).collect();
    let mut without = gx.clone();
    let gw = rms_norm::backward(&x, &w, 1e-5, &g, &mut gx, true).unwrap();
    assert_close("rms_norm gx", &gx, &with_residual);
    assert_close("rms_norm gw", &gw, &right_gradients[1]);
    assert!(rms_norm::backward(&x, &w, 1e-5, &g, &mut without, false).is_none());
    assert_eq!(without, gx);

    let up = numbers::<T>(rows * width, 5);
    let vu = var(&up, &[rows, width]);
    let right = ops::swiglu(&vx, &vu).unwrap();
    let right_gradients = gradients(&right, &g, &[&vx, &vu]);
    swiglu::forward(&x, &up, &mut y);
    assert_close("swiglu", &y, &values(&right));
    let (mut gate, mut up, mut again) = (x.clone(), up, g.clone());
    swiglu::backward(&mut gate, &mut up, &mut again);
    assert_eq!(again, y);
    assert_close("swiglu gate", &gate, &right_gradients[0]);
    assert_close("swiglu up", &up, &right_gradients[1]);

    let positions: Vec<u32> = (0..rows as u32).map(|i| i % 70).collect();
    let rotary = Rotary::new(&positions, &[1.0, 0.5, 0.25, 0.1, 0.01, 0.001, 1e-4, 1e-5]);
    let vx = var(&x, &[1, rows, width]);
    let right = ops::rope(&vx, &rotary).unwrap();
    let right_gradients = gradients(&right, &g, &[&vx]);
    let mut y = x;
    rope::turn(&mut y, width, &rotary, Turn::Forward);
    assert_close("rope", &y, &values(&right));
    let mut gx = g;
    rope::turn(&mut gx, width, &rotary, Turn::Back);
    assert_close("rope gx", &gx, &right_gradients[0]);
}

#[test]
fn norm_gate_and_rotation() {
    check_rows::<f32>();
    check_rows::<bf16>();
}

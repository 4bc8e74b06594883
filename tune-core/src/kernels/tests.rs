//! Each kernel, in f32 and in bf16, against plain loops in f64.

use std::ops::Range;

use half::bf16;
use tune_reference as plain;

use super::attention::{Attention, AttentionShape, Stretch};
use super::rms_norm::Kind;
use super::rope::{Rotary, Turn};
use super::team::Team;
use super::view::{View, ViewMut};
use super::{Element, gate, rms_norm, rope};
use crate::kernels::{Activation, RopeScaling, RotarySpec};

fn norm_kind(from_one: bool) -> Kind {
    Kind { eps: 1e-5, from_one }
}

/// Angles of tokens at `positions`, in heads of `head_dim` elements of which the first 16 are turned.
fn rotary(positions: &[u32], head_dim: usize) -> Rotary {
    let table = RotarySpec { dim: 16, theta: 100.0, scaling: RopeScaling::None };
    Rotary::new(&table, head_dim, positions, &vec![1; positions.len()])
}

fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    crate::models::uniform(seed, count, 1.5).into_iter().map(T::from_f32).collect()
}

fn f64s<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|v| f64::from(v.to_f32())).collect()
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

fn check_attention<T: Element>(
    spans: &[Range<usize>],
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
) {
    check_capped_attention::<T>(spans, tokens, heads, kv_heads, window, None);
    check_capped_attention::<T>(spans, tokens, heads, kv_heads, window, Some(2.5));
}

fn check_capped_attention<T: Element>(
    spans: &[Range<usize>],
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    window: Option<usize>,
    softcap: Option<f64>,
) {
    let dim = 32;
    let shape = AttentionShape { heads, kv_heads, head_dim: dim, scale: 0.25, window, softcap };
    let (q, g) = (numbers::<T>(tokens * heads * dim, 1), numbers::<T>(tokens * heads * dim, 4));
    let (k, v) = (numbers::<T>(tokens * kv_heads * dim, 2), numbers::<T>(tokens * kv_heads * dim, 3));
    let (q_width, kv_width) = (heads * dim, kv_heads * dim);
    let [wq, wk, wv, wg] = [&q, &k, &v, &g].map(|x| f64s(x));
    let wide = |x, width| plain::View::new(x, width);
    let wide_qkv = [wide(&wq, q_width), wide(&wk, kv_width), wide(&wv, kv_width)];
    let right = plain::attention::Attention { heads, kv_heads, head_dim: dim, scale: 0.25, window, softcap };
    let (mut right_out, mut right_lse) = (wq.clone(), vec![0.0; tokens * heads]);
    right.forward(wide_qkv, spans, &mut plain::ViewMut::new(&mut right_out, q_width), &mut right_lse);
    let mut right_gradients = [wq.clone(), wk.clone(), wv.clone()];
    let [of_q, of_k, of_v] = &mut right_gradients;
    let mut into = plain::attention::Gradients {
        q: plain::ViewMut::new(of_q, q_width),
        k: plain::ViewMut::new(of_k, kv_width),
        v: plain::ViewMut::new(of_v, kv_width),
    };
    right.backward(wide_qkv, spans, (wide(&right_out, q_width), &right_lse), wide(&wg, q_width), &mut into);

    let stretches: Vec<Stretch> =
        spans.iter().map(|s| Stretch { queries: s.start, len: s.len(), keys: s.start, past: 0 }).collect();
    let attention = Attention { shape, stretches: &stretches };
    let qkv = [View::new(&q, q_width), View::new(&k, kv_width), View::new(&v, kv_width)];
    let (mut out, mut lse) = (q.clone(), vec![7f32; tokens * heads]);
    let threads = rayon::current_num_threads();
    let memory = |len: usize| vec![f32::NAN; len];
    let mut forward_memory = memory(attention.forward_workspace::<T>(threads));
    let mut backward_memory = memory(attention.backward_workspace::<T>(threads));
    attention.forward(qkv, ViewMut::new(&mut out, q_width), &mut lse, &mut forward_memory);
    assert_close("attention", &out, &right_out);
    assert_close("lse", &lse, &right_lse);

    // The last token of each span as a new token, beside those of the others and alone.
    let newest: Vec<Stretch> = (spans.iter().enumerate())
        .map(|(i, s)| Stretch { queries: i, len: 1, keys: s.start, past: s.len() - 1 })
        .collect();
    let of_newest = |stretches: &[Stretch], q: &[T]| {
        let attention = Attention { shape, stretches };
        let (mut out, mut lse) = (q.to_vec(), vec![7f32; stretches.len() * heads]);
        let mut memory = memory(attention.newest_workspace(threads));
        let qkv = [View::new(q, q_width), qkv[1], qkv[2]];
        let team = Team::new();
        team.lead(|| attention.newest(qkv, &ViewMut::new(&mut out, q_width), &mut lse, &mut memory, &team));
        (out, lse)
    };
    let last: Vec<T> = spans.iter().flat_map(|s| q[(s.end - 1) * q_width..s.end * q_width].to_vec()).collect();
    let (together, lse_together) = of_newest(&newest, &last);
    for (i, span) in spans.iter().enumerate() {
        let row = i * q_width..(i + 1) * q_width;
        let (alone, lse_alone) = of_newest(&[Stretch { queries: 0, ..newest[i] }], &last[row.clone()]);
        assert_eq!(together[row.clone()], alone);
        assert_close("of a new token", &alone, &right_out[(span.end - 1) * q_width..span.end * q_width]);
        let of_heads =
            |lse: &[f32], count: usize, token: usize| (0..heads).map(|h| lse[h * count + token]).collect::<Vec<_>>();
        assert_eq!(of_heads(&lse_together, spans.len(), i), lse_alone);
        let right: Vec<f64> = (0..heads).map(|head| right_lse[head * tokens + span.end - 1]).collect();
        assert_close("lse of a new token", &lse_alone, &right);
    }
    let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), v.clone());
    let [of_q, of_k, of_v] = [(&mut gq, q_width), (&mut gk, kv_width), (&mut gv, kv_width)];
    let gradients = [ViewMut::new(of_q.0, of_q.1), ViewMut::new(of_k.0, of_k.1), ViewMut::new(of_v.0, of_v.1)];
    let (attended, grad) = (View::new(&out, q_width), View::new(&g, q_width));
    attention.backward(qkv, (attended, &lse), grad, gradients, &mut backward_memory);
    assert_close("gq", &gq, &right_gradients[0]);
    assert_close("gk", &gk, &right_gradients[1]);
    assert_close("gv", &gv, &right_gradients[2]);

    // The same bits where queries, keys and values are columns of one matrix, and their gradients of another.
    let width = q_width + 2 * kv_width;
    let mut fused = numbers::<T>(tokens * width, 5);
    let (part, rest) = ViewMut::new(&mut fused, width).split_cols(q_width);
    let (second, third) = rest.split_cols(kv_width);
    for (mut part, from) in [part, second, third].into_iter().zip(qkv) {
        (0..tokens).for_each(|token| part.row(token).copy_from_slice(from.row(token)));
    }
    let columns = [0..q_width, q_width..q_width + kv_width, q_width + kv_width..width];
    let of = |data, i: usize| View::new(data, width).part(0..tokens, columns[i].clone());
    let qkv = [0, 1, 2].map(|i| of(&fused[..], i));
    let (mut out_again, mut lse_again) = (q.clone(), vec![7f32; tokens * heads]);
    attention.forward(qkv, ViewMut::new(&mut out_again, q_width), &mut lse_again, &mut forward_memory);
    assert!(out_again == out && lse_again == lse);
    let mut gradients = numbers::<T>(tokens * width, 6);
    let (first, rest) = ViewMut::new(&mut gradients, width).split_cols(q_width);
    let (second, third) = rest.split_cols(kv_width);
    attention.backward(qkv, (attended, &lse), grad, [first, second, third], &mut backward_memory);
    for (i, right) in [gq, gk, gv].iter().enumerate() {
        let (got, right) = (of(&gradients, i), View::new(right, columns[i].len()));
        assert!((0..tokens).all(|token| got.row(token) == right.row(token)));
    }
}

#[test]
fn attention_over_packed_rows() {
    let spans = [0..50, 50..51, 51..251, 256..353];
    check_attention::<f32>(&spans, 512, 6, 2, None);
    check_attention::<bf16>(&spans, 512, 6, 2, None);
}

#[test]
fn attention_longer_than_a_block_of_keys_and_a_chunk_of_queries() {
    check_attention::<f32>(&[0..1100, 1100..1103], 1103, 2, 2, None);
    check_attention::<f32>(&[0..1100, 1100..1103], 1103, 2, 1, Some(300));
}

#[test]
fn attention_through_a_window() {
    for window in [1, 7, 64] {
        check_attention::<f32>(&[3..123, 130..190], 260, 4, 4, Some(window));
    }
}

/// What follows a past has the bits of the whole sequence, whatever else is computed beside it.
fn check_past<T: Element>(window: Option<usize>) {
    let (heads, kv_heads, dim, len) = (6, 2, 32, 700);
    let shape = AttentionShape { heads, kv_heads, head_dim: dim, scale: 0.25, window, softcap: None };
    let (q_width, kv_width) = (heads * dim, kv_heads * dim);
    let (q, k, v) = (numbers::<T>(len * q_width, 1), numbers::<T>(len * kv_width, 2), numbers::<T>(len * kv_width, 3));
    let run = |stretches: &[Stretch], queries: usize| {
        let attention = Attention { shape, stretches };
        let mut memory = vec![f32::NAN; attention.forward_workspace::<T>(rayon::current_num_threads())];
        let (mut out, mut lse) = (q[..queries * q_width].to_vec(), vec![0f32; queries * heads]);
        let from = View::new(&q, q_width).part(len - queries..len, 0..q_width);
        let keys_and_values = [View::new(&k, kv_width), View::new(&v, kv_width)];
        let [k, v] = keys_and_values;
        attention.forward([from, k, v], ViewMut::new(&mut out, q_width), &mut lse, &mut memory);
        out
    };
    let whole = run(&[Stretch { queries: 0, len, keys: 0, past: 0 }], len);
    for queries in [1, 2, 40, 300] {
        let newest = run(&[Stretch { queries: 0, len: queries, keys: 0, past: len - queries }], queries);
        assert!(newest == whole[(len - queries) * q_width..], "{queries} queries, window {window:?}");
    }
}

#[test]
fn newest_tokens_have_the_bits_of_the_whole() {
    for window in [None, Some(1), Some(300)] {
        check_past::<f32>(window);
        check_past::<bf16>(window);
    }
}

/// Adds the gradient of a norm's input to `residual`; returns that of the weight.
fn norm_back<T: Element>(x: View<'_, T>, w: &[T], kind: Kind, g: View<'_, T>, residual: ViewMut<'_, T>) -> Vec<f32> {
    let mut own = vec![f32::NAN; w.len()];
    let mut memory = vec![f32::NAN; rms_norm::workspace(x.rows(), w.len())];
    rms_norm::backward(x, w, kind, g, residual, Some(&mut own), &mut memory);
    own
}

fn check_norm<T: Element>(from_one: bool) {
    let (rows, width) = (150, 96);
    let (x, w, g) = (numbers::<T>(rows * width, 1), numbers::<T>(width, 2), numbers::<T>(rows * width, 3));
    let [wx, ww, wg] = [&x, &w, &g].map(|x| f64s(x));
    let wide = |x| plain::View::new(x, width);
    let (kind, norm) = (norm_kind(from_one), plain::norm::Norm { eps: 1e-5, from_one });
    let mut right = wx.clone();
    plain::norm::forward(wide(&wx), &ww, norm, None, &mut plain::ViewMut::new(&mut right, width));
    let mut y = x.clone();
    let at = View::new(&x, width);
    rms_norm::forward(at, &w, kind, ViewMut::new(&mut y, width));
    assert_close("rms_norm", &y, &right);
    plain::norm::forward(wide(&wx), &ww, norm, Some(wide(&wg)), &mut plain::ViewMut::new(&mut right, width));
    rms_norm::forward_onto(at, &w, kind, View::new(&g, width), ViewMut::new(&mut y, width));
    assert_close("rms_norm onto", &y, &right);
    let mut gx = numbers::<T>(rows * width, 4);
    let (mut with_residual, mut of_weight) = (f64s(&gx), vec![0.0; width]);
    let mut into = plain::ViewMut::new(&mut with_residual, width);
    plain::norm::backward(wide(&wx), &ww, norm, wide(&wg), &mut into, Some(&mut of_weight));
    let mut without = gx.clone();
    let grad = View::new(&g, width);
    let gw = norm_back(at, &w, kind, grad, ViewMut::new(&mut gx, width));
    assert_close("rms_norm gx", &gx, &with_residual);
    assert_close("rms_norm gw", &gw, &of_weight);
    rms_norm::backward(at, &w, kind, grad, ViewMut::new(&mut without, width), None, &mut []);
    assert_eq!(without, gx);
}

fn check_gate<T: Element>(activation: Activation, act: plain::gate::Activation) {
    let (rows, width) = (150, 96);
    let (x, g, up) = (numbers::<T>(rows * width, 1), numbers::<T>(rows * width, 3), numbers::<T>(rows * width, 5));
    let [wx, wg, wu] = [&x, &g, &up].map(|x| f64s(x));
    let wide = |x| plain::View::new(x, width);
    let (mut right, mut y) = (wx.clone(), x.clone());
    plain::gate::forward(act, wide(&wx), wide(&wu), &mut plain::ViewMut::new(&mut right, width));
    let (mut of_gate, mut of_up) = (wx.clone(), wx.clone());
    {
        let mut into = [&mut of_gate, &mut of_up].map(|x| plain::ViewMut::new(x, width));
        let [of_gate, of_up] = &mut into;
        plain::gate::backward(act, wide(&wx), wide(&wu), wide(&wg), of_gate, of_up);
    }
    gate::forward(activation, &x, &up, &mut y);
    assert_close("gate", &y, &right);
    let (mut of_x, mut up, mut again) = (x, up, g);
    gate::backward(activation, &mut of_x, &mut up, &mut again);
    assert_eq!(again, y);
    assert_close("gate gate", &of_x, &of_gate);
    assert_close("gate up", &up, &of_up);
}

/// In heads of `head_dim` elements, all of which are turned, or the first ones.
fn check_rotation<T: Element>(head_dim: usize) {
    let (rows, width) = (150, 96);
    let (x, g) = (numbers::<T>(rows * width, 1), numbers::<T>(rows * width, 3));
    let [wx, wg] = [&x, &g].map(|x| f64s(x));
    let positions: Vec<u32> = (0..rows as u32).map(|i| i % 70).collect();
    let rotary = rotary(&positions, head_dim);
    let f64s_of = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let (cos, sin) = (f64s_of(&rotary.cos), f64s_of(&rotary.sin));
    let turned = |of: &[f64], turn| {
        let mut turned = of.to_vec();
        let tables = (plain::View::new(&cos, 8), plain::View::new(&sin, 8));
        plain::rotary::turn(&mut plain::ViewMut::new(&mut turned, width), head_dim, tables, turn);
        turned
    };
    let mut y = x;
    rope::turn(ViewMut::new(&mut y, width), &rotary, Turn::Forward);
    assert_close("rope", &y, &turned(&wx, plain::rotary::Turn::Forward));
    let mut gx = g;
    rope::turn(ViewMut::new(&mut gx, width), &rotary, Turn::Back);
    assert_close("rope gx", &gx, &turned(&wg, plain::rotary::Turn::Back));
}

#[test]
fn norm_gate_and_rotation() {
    for from_one in [false, true] {
        check_norm::<f32>(from_one);
        check_norm::<bf16>(from_one);
    }
    for (ours, plain) in
        [(Activation::Silu, plain::gate::Activation::Silu), (Activation::GeluTanh, plain::gate::Activation::GeluTanh)]
    {
        check_gate::<f32>(ours, plain);
        check_gate::<bf16>(ours, plain);
    }
    for head_dim in [16, 24] {
        check_rotation::<f32>(head_dim);
        check_rotation::<bf16>(head_dim);
    }
}

/// Norms of each head, and rotation, in the middle columns of a matrix: as of rows of their own.
fn check_columns<T: Element>() {
    const HEADS: usize = 3;
    const DIM: usize = 16;
    const BEFORE: usize = 5;
    const WIDTH: usize = 60;
    fn middle<T>(data: &mut [T]) -> ViewMut<'_, T> {
        ViewMut::new(data, WIDTH).split_cols(BEFORE).1.split_cols(HEADS * DIM).0
    }
    let rows = 150;
    let (all, w) = (numbers::<T>(rows * WIDTH, 1), numbers::<T>(DIM, 2));
    let inside = BEFORE..BEFORE + HEADS * DIM;
    let pick = |data: &[T]| -> Vec<T> {
        let part = View::new(data, WIDTH).part(0..rows, inside.clone());
        (0..rows).flat_map(|row| part.row(row).to_vec()).collect()
    };
    let x = pick(&all);
    let positions: Vec<u32> = (0..rows as u32).collect();
    let rotary = rotary(&positions, DIM);
    let mut turned = x.clone();
    rope::turn(ViewMut::new(&mut turned, HEADS * DIM), &rotary, Turn::Forward);
    let mut normed = x.clone();
    rms_norm::forward(View::new(&x, DIM), &w, norm_kind(false), ViewMut::new(&mut normed, DIM));

    let mut wide = all.clone();
    rope::turn(middle(&mut wide), &rotary, Turn::Forward);
    assert_eq!(pick(&wide), turned);
    rms_norm::forward(View::new(&all, WIDTH).part(0..rows, inside.clone()), &w, norm_kind(false), middle(&mut wide));
    assert_eq!(pick(&wide), normed);
    let outside = |data: &[T]| -> Vec<T> {
        data.chunks(WIDTH).flat_map(|row| [&row[..inside.start], &row[inside.end..]].concat()).collect()
    };
    assert_eq!(outside(&wide), outside(&all));

    let g = numbers::<T>(rows * HEADS * DIM, 3);
    let (mut gx, mut gx_wide) = (x.clone(), all.clone());
    let gw = norm_back(View::new(&x, DIM), &w, norm_kind(false), View::new(&g, DIM), ViewMut::new(&mut gx, DIM));
    let (at, grad) = (View::new(&all, WIDTH).part(0..rows, inside.clone()), View::new(&g, HEADS * DIM));
    let gw_wide = norm_back(at, &w, norm_kind(false), grad, middle(&mut gx_wide));
    assert_eq!(pick(&gx_wide), gx);
    // Summed in groups of other rows.
    assert_close("gw of heads", &gw_wide, &f64s(&gw));
}

#[test]
fn heads_in_columns_of_wider_rows() {
    check_columns::<f32>();
    check_columns::<bf16>();
}

//! Kernels against the layers, losses and derivatives of `candle-nn`, which know nothing of them: beside the plain loops, which
//! are ours, one opinion that is not.

use candle_core::{D, Device, IndexOp, Tensor, Var};
use candle_nn::{loss, ops, rotary_emb};

use super::attention::{Attention, AttentionShape, Stretch};
use super::rms_norm::{self, Kind};
use super::rope::{self, Rotary, Turn};
use super::view::{View, ViewMut};
use super::{gate, softmax};
use crate::kernels::TokenLoss;
use crate::kernels::{Activation, RopeScaling, RotarySpec};

const CPU: Device = Device::Cpu;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    crate::models::uniform(seed, count, 1.5)
}

fn tensor(values: &[f32], shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::from_slice(values, shape, &CPU).unwrap()
}

fn assert_close(what: &str, ours: &[f32], theirs: &Tensor) {
    let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = theirs.iter().fold(1f32, |m, v| m.max(v.abs()));
    for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert!((ours - theirs).abs() <= 5e-6 * largest, "{what}[{i}]: {ours}, and candle says {theirs}");
    }
}

#[test]
fn norms_and_their_gradients() {
    let (rows, width) = (70, 96);
    let (x, w, g) = (numbers(rows * width, 1), numbers(width, 2), numbers(rows * width, 3));
    let kind = Kind { eps: 1e-5, from_one: false };
    let mut y = vec![0f32; rows * width];
    rms_norm::forward(View::new(&x, width), &w, kind, ViewMut::new(&mut y, width));
    let (theirs, factor) =
        (Var::from_tensor(&tensor(&x, (rows, width))).unwrap(), Var::from_tensor(&tensor(&w, width)).unwrap());
    assert_close("norm", &y, &ops::rms_norm(&theirs, &factor, 1e-5).unwrap());

    let (mut gx, mut gw) = (vec![0f32; rows * width], vec![0f32; width]);
    let mut memory = vec![f32::NAN; rms_norm::workspace(rows, width)];
    let onto = ViewMut::new(&mut gx, width);
    rms_norm::backward(View::new(&x, width), &w, kind, View::new(&g, width), onto, Some(&mut gw), &mut memory);
    // The one that is put together from operations has derivatives.
    let result = ops::rms_norm_slow(&theirs, &factor, 1e-5).unwrap();
    let gradients = (result * tensor(&g, (rows, width))).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("norm gx", &gx, gradients.get(&theirs).unwrap());
    assert_close("norm gw", &gw, gradients.get(&factor).unwrap());
}

#[test]
fn losses_and_their_gradients() {
    let (rows, vocab) = (5, 1003);
    let logits = numbers(rows * vocab, 4);
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 250).collect();
    let theirs = Var::from_tensor(&tensor(&logits, (rows, vocab))).unwrap();
    let loss = loss::cross_entropy(&theirs, &Tensor::from_slice(&targets, rows, &CPU).unwrap()).unwrap();
    let gradient = loss.backward().unwrap().get(&theirs).unwrap().clone();
    let (mut ours, mut sum) = (logits, 0.0);
    for (row, &target) in ours.chunks_exact_mut(vocab).zip(&targets) {
        sum +=
            softmax::loss_and_gradient::<f32>(row, target as usize, TokenLoss::CROSS_ENTROPY, Some(1.0 / rows as f32));
    }
    assert_close("loss", &[sum / rows as f32], &loss);
    assert_close("gradient of logits", &ours, &gradient);
}

#[test]
fn rotations() {
    let (tokens, heads, dim) = (40, 3, 32);
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let table = RotarySpec { dim, theta: 10_000.0, scaling: RopeScaling::None };
    let rotary = Rotary::new(&table, dim, &positions, &vec![tokens; tokens]);
    let x = numbers(tokens * heads * dim, 5);
    let mut ours = x.clone();
    rope::turn(ViewMut::new(&mut ours, heads * dim), &rotary, Turn::Forward);
    let [cos, sin] = [&rotary.cos, &rotary.sin].map(|angles| tensor(angles, (tokens, dim / 2)));
    let by_head = tensor(&x, (1, tokens, heads, dim)).transpose(1, 2).unwrap().contiguous().unwrap();
    let theirs = rotary_emb::rope(&by_head, &cos, &sin).unwrap();
    assert_close("rotation", &ours, &theirs.transpose(1, 2).unwrap().contiguous().unwrap());
}

#[test]
fn gates_and_their_gradients() {
    let (gate, up, g) = (numbers(300, 6), numbers(300, 7), numbers(300, 8));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let [theirs_gate, theirs_up] = [&gate, &up].map(|x| Var::from_tensor(&tensor(x, 300)).unwrap());
        let activated = match activation {
            Activation::Silu => ops::silu(&theirs_gate).unwrap(),
            Activation::GeluTanh => theirs_gate.gelu().unwrap(),
        };
        let theirs = (activated * theirs_up.as_tensor()).unwrap();
        let mut y = vec![0f32; 300];
        gate::forward(activation, &gate, &up, &mut y);
        assert_close("gate", &y, &theirs);
        let gradients = (theirs * tensor(&g, 300)).unwrap().sum_all().unwrap().backward().unwrap();
        let (mut of_gate, mut of_up, mut result) = (gate.clone(), up.clone(), g.clone());
        gate::backward(activation, &mut of_gate, &mut of_up, &mut result);
        assert_close("gate's gradient", &of_gate, gradients.get(&theirs_gate).unwrap());
        assert_close("input's gradient", &of_up, gradients.get(&theirs_up).unwrap());
    }
}

/// Causal attention of one sequence, put together from products and softmax, with its derivatives.
#[test]
fn attention_and_its_gradients() {
    let (tokens, heads, kv_heads, dim) = (70, 4, 2, 32);
    let widths = [heads * dim, kv_heads * dim, kv_heads * dim];
    let [q, k, v] = [0, 1, 2].map(|i| numbers(tokens * widths[i], 9 + i as u64));
    let shape = AttentionShape { heads, kv_heads, head_dim: dim, scale: 0.2, window: None, softcap: None };
    let stretches = [Stretch { queries: 0, len: tokens, keys: 0, past: 0 }];
    let attention = Attention { shape, stretches: &stretches };
    let threads = rayon::current_num_threads();
    let qkv = [View::new(&q, widths[0]), View::new(&k, widths[1]), View::new(&v, widths[2])];
    let (mut out, mut lse) = (vec![0f32; tokens * widths[0]], vec![0f32; tokens * heads]);
    let mut memory = vec![f32::NAN; attention.forward_workspace::<f32>(threads)];
    attention.forward(qkv, ViewMut::new(&mut out, widths[0]), &mut lse, &mut memory);

    let vars =
        [&q, &k, &v].into_iter().zip(widths).map(|(x, width)| Var::from_tensor(&tensor(x, (tokens, width))).unwrap());
    let vars: Vec<Var> = vars.collect();
    let causal: Vec<f32> =
        (0..tokens * tokens).map(|i| if i % tokens > i / tokens { f32::NEG_INFINITY } else { 0.0 }).collect();
    let causal = tensor(&causal, (tokens, tokens));
    let outputs: Vec<Tensor> = (0..heads)
        .map(|head| {
            let columns =
                |i: usize, head: usize| vars[i].i((.., head * dim..(head + 1) * dim)).unwrap().contiguous().unwrap();
            let of_keys = head / (heads / kv_heads);
            let scores = columns(0, head).matmul(&columns(1, of_keys).t().unwrap()).unwrap();
            let scores = (scores * 0.2).unwrap().broadcast_add(&causal).unwrap();
            ops::softmax(&scores, D::Minus1).unwrap().matmul(&columns(2, of_keys)).unwrap()
        })
        .collect();
    let theirs = Tensor::cat(&outputs, 1).unwrap();
    assert_close("attention", &out, &theirs);

    let g = numbers(tokens * widths[0], 12);
    let gradients = (theirs * tensor(&g, (tokens, widths[0]))).unwrap().sum_all().unwrap().backward().unwrap();
    let [mut gq, mut gk, mut gv] = widths.map(|width| vec![0f32; tokens * width]);
    let into = [ViewMut::new(&mut gq, widths[0]), ViewMut::new(&mut gk, widths[1]), ViewMut::new(&mut gv, widths[2])];
    let mut memory = vec![f32::NAN; attention.backward_workspace::<f32>(threads)];
    let attended = (View::new(&out, widths[0]), &lse[..]);
    attention.backward(qkv, attended, View::new(&g, widths[0]), into, &mut memory);
    for (what, ours, theirs) in [("gq", gq, &vars[0]), ("gk", gk, &vars[1]), ("gv", gv, &vars[2])] {
        assert_close(what, &ours, gradients.get(theirs).unwrap());
    }
}

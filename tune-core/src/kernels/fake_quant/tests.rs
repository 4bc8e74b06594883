//! Against torchao's functions (`tests/python/make_fake_quant.py`), plain loops in f64, and files.

#[path = "../../../cuda/harness/rounded.rs"]
mod rounded;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use half::bf16;
use tune_reference::fake_quant as plain;

use super::*;
use crate::kernels::Quantized;
use crate::models::Format;
use rounded::{Rounding, hash_of};

fn fixture() -> HashMap<String, Tensor> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/fake_quant/numbers.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn numbers(of: &HashMap<String, Tensor>, name: &str) -> Vec<f32> {
    of[name].flatten_all().unwrap().to_vec1().unwrap()
}

/// Zero where torchao's is, and elsewhere equal but for the rounding of `g s (1 / s)`. With the least scale, 2^-126, `g s` is a multiple
/// of 2^-149 there.
fn assert_gradients(what: &str, got: &[f32], right: &[f32]) {
    assert!(right.contains(&0.0) || what.starts_with("int4_weight_only"), "{what}: nothing is beyond the ends");
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        assert!((*got == 0.0) == (*right == 0.0), "{what}[{i}]: {got}, not {right}");
        let rounding = 3.0 * f32::EPSILON * right.abs() + 0.5f32.powi(24);
        assert!((got - right).abs() <= rounding, "{what}[{i}]: {got}, not {right}");
    }
}

#[test]
fn weights_are_torchao_s_to_the_bit() {
    let of = fixture();
    let w = numbers(&of, "weight");
    for group in [32, 128] {
        for (name, levels) in
            [("int8_dyn_act_int4_weight", Levels::Int4 { group }), ("int4_weight_only", Levels::Int4Affine { group })]
        {
            let mut rounded = vec![f32::NAN; w.len()];
            weight(levels, &w, &mut rounded);
            assert_eq!(rounded, numbers(&of, &format!("{name}.{group}")), "{name}, {group}");
            let mut g = numbers(&of, "weight_gradient");
            weight_back(levels, &w, &mut g);
            assert_gradients(name, &g, &numbers(&of, &format!("{name}.{group}.gradient")));
        }
    }
}

#[test]
fn tokens_are_torchao_s_to_the_bit() {
    let of = fixture();
    let x = numbers(&of, "inputs");
    let cols = of["inputs"].dims()[1];
    let mut rounded = vec![f32::NAN; x.len()];
    tokens(View::new(&x, cols), ViewMut::new(&mut rounded, cols));
    assert_eq!(rounded, numbers(&of, "inputs.rounded"));
    let (mut g, right) = (numbers(&of, "inputs_gradient"), numbers(&of, "inputs.rounded.gradient"));
    tokens_back(View::new(&x, cols), None, ViewMut::new(&mut g, cols));
    assert_gradients("inputs", &g, &right);
    // What else the gradient is made of is not limited.
    let mut sums = numbers(&of, "inputs_gradient");
    tokens_back(View::new(&x, cols), Some(View::new(&x, cols)), ViewMut::new(&mut sums, cols));
    assert_eq!(sums, g.iter().zip(&x).map(|(g, x)| g + x).collect::<Vec<_>>());
}

/// In f64 another level may be the nearest where two are about as near.
fn check_plain<T: Element>() {
    let (cols, rows) = (96, 64);
    let x: Vec<T> = crate::models::uniform(3, cols * rows, 1.5).into_iter().map(T::from_f32).collect();
    let gradient: Vec<f32> = crate::models::uniform(4, cols * rows, 1.0);
    let wide: Vec<f64> = x.iter().map(|x| f64::from(x.to_f32())).collect();
    let tolerance = if T::IS_BF16 { 1e-2 } else { 1e-5 };
    for (levels, of, group) in [
        (Some(Levels::Int4 { group: 32 }), plain::Levels::Int4, 32),
        (Some(Levels::Int4Affine { group: 48 }), plain::Levels::Int4Affine, 48),
        (None, plain::Levels::Int8, cols),
    ] {
        let (mut y, mut g) = (vec![T::from_f32(f32::NAN); x.len()], gradient.clone());
        match levels {
            Some(levels) => {
                weight(levels, &x, &mut y);
                weight_back(levels, &x, &mut g);
            }
            None => {
                tokens(View::new(&x, cols), ViewMut::new(&mut y, cols));
                let mut narrow: Vec<T> = g.iter().copied().map(T::from_f32).collect();
                tokens_back(View::new(&x, cols), None, ViewMut::new(&mut narrow, cols));
                g = narrow.into_iter().map(T::to_f32).collect();
            }
        }
        let (mut right, mut right_g) = (wide.clone(), gradient.iter().copied().map(f64::from).collect::<Vec<_>>());
        for (x, g) in wide.chunks_exact(group).zip(right_g.chunks_exact_mut(group)) {
            plain::backward(of, x, g);
        }
        right.chunks_exact_mut(group).for_each(|x| plain::round(of, x));
        let far = |a: f64, b: f64| (a - b).abs() > tolerance * 1.5;
        let others = y.iter().zip(&right).filter(|(y, right)| far(y.to_f32().into(), **right)).count();
        let other_gradients = g.iter().zip(&right_g).filter(|(g, right)| far(f64::from(**g), **right)).count();
        // The farthest number of a group is as near to one level as to the next.
        let ties = if of == plain::Levels::Int4 { 2 * x.len() / group } else { 0 };
        assert!(
            others + other_gradients <= x.len() / 200 + ties,
            "{of:?}: {others} numbers, {other_gradients} gradients"
        );
        assert!(y.iter().zip(&right).all(|(y, right)| (f64::from(y.to_f32()) - right).abs() < 0.25), "{of:?}");
    }
}

#[test]
fn plain_loops_give_the_same() {
    check_plain::<f32>();
    check_plain::<bf16>();
}

#[test]
fn blocks_are_what_a_file_holds() {
    let (rows, cols) = (5, 512);
    let x = crate::models::uniform(5, rows * cols, 0.3);
    for (format, stored) in [
        (TensorFormat::Q4_0, Format::Q4_0),
        (TensorFormat::Q8_0, Format::Q8_0),
        (TensorFormat::Q5_0, Format::Q5_0),
        (TensorFormat::Q5_1, Format::Q5_1),
        (TensorFormat::Q4K, Format::Q4K),
        (TensorFormat::Q5K, Format::Q5K),
        (TensorFormat::Q6K, Format::Q6K),
        (TensorFormat::F16, Format::F16),
    ] {
        let mut rounded = vec![f32::NAN; x.len()];
        weight(Levels::Blocks(format), &x, &mut rounded);
        let of_file = Quantized::of_file(stored, (rows, cols), format.encode(&x)).dequantized();
        assert_eq!(rounded, of_file, "{stored}");
        assert_ne!(rounded, x, "{stored}");
    }
}

fn hashes<T: Element>(kind: &str, group: usize, count: usize) -> [u64; 2] {
    let stored = |seed| rounded::numbers(count, seed).into_iter().map(T::from_f32).collect::<Vec<T>>();
    let (x, mut y) = (stored(7), vec![T::from_f32(f32::NAN); count]);
    let levels = match kind {
        "int8" => {
            tokens(View::new(&x, group), ViewMut::new(&mut y, group));
            let mut g = stored(8);
            tokens_back(View::new(&x, group), None, ViewMut::new(&mut g, group));
            return [hash_of(&y), hash_of(&g)];
        }
        "int4" => Levels::Int4 { group },
        "int4_affine" => Levels::Int4Affine { group },
        file => {
            let format =
                [TensorFormat::F16, TensorFormat::Bf16, TensorFormat::Q8_0, TensorFormat::Q4_0, TensorFormat::Q4_1]
                    .into_iter()
                    .chain([
                        TensorFormat::Q5_0,
                        TensorFormat::Q5_1,
                        TensorFormat::Q4K,
                        TensorFormat::Q5K,
                        TensorFormat::Q6K,
                    ])
                    .find(|format| format.name().eq_ignore_ascii_case(file));
            weight(Levels::Blocks(format.unwrap()), &x, &mut y);
            return [hash_of(&y), 0];
        }
    };
    let mut g = rounded::numbers(count, 8);
    weight(levels, &x, &mut y);
    weight_back(levels, &x, &mut g);
    [hash_of(&y), hash_of(&g)]
}

/// The kernels of cards have these very bits (`cuda/harness/tests/fake_quant.cpp`, `fake_blocks.cpp`).
#[test]
fn bits_are_those_that_cards_have() {
    let roundings = rounded::roundings().unwrap();
    for Rounding { kind, group, count, hashes: right } in &roundings {
        let (group, count) = (*group, *count);
        let found = [hashes::<f32>(kind, group, count), hashes::<bf16>(kind, group, count)];
        assert_eq!(found, *right, "{kind} of {count} in groups of {group}");
    }
    assert_eq!(roundings.len(), 22);
}

//! The gradient of every operation against finite differences and against its plain composition, in f64.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use tune_core::data::{IGNORE, Span};
use tune_core::ops::{self, AttentionShape, Dropout, LoraFactors, OutputHead, Rotary, reference};

type Op<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;

/// Numbers that look random and are the same everywhere.
fn values(shape: &[usize], salt: u64) -> Tensor {
    let count: usize = shape.iter().product();
    let number = |i: usize| (Dropout::mix(salt, i as u64) >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0;
    Tensor::from_vec((0..count).map(number).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// `sum(op(inputs) · weights)`: a scalar that depends on every output in its own way.
fn probe(op: Op, inputs: &[Tensor]) -> Tensor {
    let y = op(inputs).unwrap();
    let weights = values(y.dims(), 99).to_dtype(y.dtype()).unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

fn gradients(op: Op, inputs: &[Tensor]) -> Vec<Vec<f64>> {
    let vars: Vec<Tensor> = inputs.iter().map(|t| Var::from_tensor(t).unwrap().into_inner()).collect();
    let grads = probe(op, &vars).backward().unwrap();
    vars.iter().map(|v| flat(grads.get(v).expect("every input gets a gradient"))).collect()
}

fn assert_close(what: &str, ours: &[f64], theirs: &[f64], tolerance: f64) {
    let scale = theirs.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{what}[{i}]: {a} instead of {b}");
    }
}

fn check(inputs: &[Tensor], fused: Op, plain: Op) {
    assert_close("forward", &flat(&fused(inputs).unwrap()), &flat(&plain(inputs).unwrap()), 1e-10);
    let ours = gradients(fused, inputs);
    for (i, (a, b)) in ours.iter().zip(gradients(plain, inputs)).enumerate() {
        assert_close(&format!("gradient {i} against the composition"), a, &b, 1e-9);
    }

    const STEP: f64 = 1e-5;
    for (i, input) in inputs.iter().enumerate() {
        let base = flat(input);
        let numeric: Vec<f64> = (0..base.len())
            .map(|j| {
                let at = |delta: f64| {
                    let mut moved = base.clone();
                    moved[j] += delta;
                    let mut inputs = inputs.to_vec();
                    inputs[i] = Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap();
                    flat(&probe(fused, &inputs))[0]
                };
                (at(STEP) - at(-STEP)) / (2.0 * STEP)
            })
            .collect();
        assert_close(&format!("gradient {i} against finite differences"), &ours[i], &numeric, 1e-6);
    }

    // The same in the precision that models are trained in.
    let single: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
    for (i, (a, b)) in gradients(fused, &single).iter().zip(&ours).enumerate() {
        assert_close(&format!("gradient {i} in f32"), a, b, 1e-4);
    }
}

#[test]
fn linear() {
    let inputs = [values(&[2, 3, 5], 1), values(&[4, 5], 2)];
    check(&inputs, &|t| ops::linear(&t[0], &t[1]), &|t| reference::linear(&t[0], &t[1]));
}

#[test]
fn frozen_linear_passes_the_gradient_on_and_keeps_none() {
    let weight = values(&[4, 5], 2);
    let frozen = |t: &Tensor| weight.to_dtype(t.dtype()).unwrap();
    let inputs = [values(&[2, 3, 5], 1)];
    check(&inputs, &|t| ops::linear(&t[0], &frozen(&t[0])), &|t| reference::linear(&t[0], &frozen(&t[0])));

    let x = Var::from_tensor(&inputs[0]).unwrap();
    let grads = ops::linear(&x, &weight).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&weight).is_none());
}

#[test]
fn lora_linear_with_and_without_dropout() {
    let weight = values(&[4, 5], 2);
    let inputs = [values(&[2, 3, 5], 1), values(&[2, 5], 3), values(&[4, 2], 4)];
    for dropout in [None, Some(Dropout::new(0.4, 17))] {
        let lora = |t: &[Tensor]| LoraFactors { a: t[1].clone(), b: t[2].clone(), scale: 1.5, dropout };
        let frozen = |t: &Tensor| weight.to_dtype(t.dtype()).unwrap();
        check(&inputs, &|t| ops::lora_linear(&t[0], &frozen(&t[0]), &lora(t)), &|t| {
            reference::lora_linear(&t[0], &frozen(&t[0]), &lora(t))
        });
    }
}

#[test]
fn rms_norm() {
    let inputs = [values(&[2, 3, 6], 1), values(&[6], 2)];
    check(&inputs, &|t| ops::rms_norm(&t[0], &t[1], 1e-5), &|t| reference::rms_norm(&t[0], &t[1], 1e-5));
    let weight = values(&[6], 2);
    let frozen = |t: &Tensor| weight.to_dtype(t.dtype()).unwrap();
    check(&inputs[..1], &|t| ops::rms_norm(&t[0], &frozen(&t[0]), 1e-5), &|t| {
        reference::rms_norm(&t[0], &frozen(&t[0]), 1e-5)
    });
}

#[test]
fn rope() {
    let rotary = Rotary::new(&[0, 1, 2, 0, 1, 7], &[1.0, 0.1]);
    check(&[values(&[2, 3, 8], 1)], &|t| ops::rope(&t[0], &rotary), &|t| reference::rope(&t[0], &rotary));
}

#[test]
fn swiglu() {
    let inputs = [values(&[2, 3, 4], 1), values(&[2, 3, 4], 2)];
    check(&inputs, &|t| ops::swiglu(&t[0], &t[1]), &|t| reference::swiglu(&t[0], &t[1]));
}

#[test]
fn embedding() {
    let ids = [3, 0, 3, 1, 4, 3];
    check(&[values(&[5, 4], 1)], &|t| ops::embedding(&ids, 2, &t[0]), &|t| reference::embedding(&ids, 2, &t[0]));
}

#[test]
fn attention_packed_grouped_and_windowed() {
    // Two samples and padding in the first row, one that starts late in the second.
    let spans: Arc<[Span]> =
        [Span { row: 0, start: 0, len: 3 }, Span { row: 0, start: 3, len: 4 }, Span { row: 1, start: 2, len: 6 }]
            .into();
    for window in [None, Some(2)] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 3, scale: 0.7, window };
        let inputs = [values(&[2, 8, 12], 1), values(&[2, 8, 6], 2), values(&[2, 8, 6], 3)];
        check(&inputs, &|t| ops::attention(&t[0], &t[1], &t[2], shape, &spans), &|t| {
            reference::attention(&t[0], &t[1], &t[2], shape, &spans)
        });
    }
}

#[test]
fn attention_over_several_tiles() {
    let len = 150;
    let spans: Arc<[Span]> = [Span { row: 0, start: 0, len }].into();
    for window in [None, Some(70)] {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 2, scale: 0.7, window };
        let inputs = [values(&[1, len, 4], 1), values(&[1, len, 2], 2), values(&[1, len, 2], 3)];
        let fused: Op = &|t| ops::attention(&t[0], &t[1], &t[2], shape, &spans);
        let plain: Op = &|t| reference::attention(&t[0], &t[1], &t[2], shape, &spans);
        assert_close("forward", &flat(&fused(&inputs).unwrap()), &flat(&plain(&inputs).unwrap()), 1e-10);
        for (a, b) in gradients(fused, &inputs).iter().zip(gradients(plain, &inputs)) {
            assert_close("gradient", a, &b, 1e-9);
        }
    }
}

#[test]
fn attention_with_a_cache_is_the_end_of_attention_without() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 3, scale: 0.7, window: Some(5) };
    let [q, k, v] = [values(&[1, 9, 12], 1), values(&[1, 9, 6], 2), values(&[1, 9, 6], 3)];
    let spans: Arc<[Span]> = [Span { row: 0, start: 0, len: 9 }].into();
    let whole = ops::attention(&q, &k, &v, shape, &spans).unwrap();
    let newest = q.narrow(1, 7, 2).unwrap().contiguous().unwrap();
    let cached = ops::attention_with_cache(&newest, &k, &v, shape).unwrap();
    assert_close("newest", &flat(&cached), &flat(&whole.narrow(1, 7, 2).unwrap()), 1e-12);
    let plain = reference::attention_with_cache(&newest, &k, &v, shape).unwrap();
    assert_close("composition", &flat(&cached), &flat(&plain), 1e-10);
}

/// The loss makes its gradients itself, so it is compared with the composition directly.
#[test]
fn cross_entropy_of_every_kind_of_head() {
    let targets = [2, IGNORE, 0, 6, IGNORE, 3];
    let hidden = values(&[2, 3, 4], 1);
    let adapter = |dropout| LoraFactors {
        a: Var::from_tensor(&values(&[2, 4], 3)).unwrap().into_inner(),
        b: Var::from_tensor(&values(&[7, 2], 4)).unwrap().into_inner(),
        scale: 1.5,
        dropout,
    };
    let frozen = values(&[7, 4], 2);
    let trained = Var::from_tensor(&frozen).unwrap().into_inner();
    for head in [
        OutputHead { weight: frozen.clone(), lora: None },
        OutputHead { weight: trained, lora: None },
        OutputHead { weight: frozen.clone(), lora: Some(adapter(None)) },
        OutputHead { weight: frozen, lora: Some(adapter(Some(Dropout::new(0.4, 5)))) },
    ] {
        let input = Var::from_tensor(&hidden).unwrap();
        let loss = reference::cross_entropy(&input, &head, &targets).unwrap();
        let plain = (&loss * 0.3).unwrap().backward().unwrap();
        let fused = ops::cross_entropy(&hidden, &head, &targets, Some(0.3)).unwrap();
        assert_close("loss", &[fused.sum], &flat(&loss), 1e-12);
        let evaluated = ops::cross_entropy(&hidden, &head, &targets, None).unwrap();
        assert!(evaluated.gradients.is_none());
        assert_close("loss without gradients", &[evaluated.sum], &flat(&loss), 1e-12);

        let ours = fused.gradients.unwrap();
        assert_close("hidden", &flat(&ours.hidden), &flat(plain.get(&input).unwrap()), 1e-10);
        assert_eq!(ours.weight.is_some(), head.weight.is_variable());
        if let Some(g) = ours.weight {
            assert_close("weight", &flat(&g), &flat(plain.get(&head.weight).unwrap()), 1e-10);
        }
        if let (Some((a, b)), Some(lora)) = (ours.lora, &head.lora) {
            assert_close("A", &flat(&a), &flat(plain.get(&lora.a).unwrap()), 1e-10);
            assert_close("B", &flat(&b), &flat(plain.get(&lora.b).unwrap()), 1e-10);
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let weight = values(&[5, 4], 1);
    assert!(ops::embedding(&[5], 1, &weight).unwrap_err().to_string().contains("token id 5 is outside"));
    let head = OutputHead { weight, lora: None };
    let error = ops::cross_entropy(&values(&[1, 1, 4], 2), &head, &[9], None).unwrap_err();
    assert!(error.to_string().contains("target token id 9 is outside"));
}

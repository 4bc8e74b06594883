//! Steps of optimizers on the card, beside the same steps on the processor.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tune_core::config::say;
use tune_core::data::{Batch, Span};
use tune_core::device::Compute;
use tune_core::{Later, Result};

use tune_core::engine::{Card, Gradient, RunOptions, forward_backward, queue_forward_backward};
use tune_core::models::{Decoder, LoadOptions, ModelSpec, Parameter, Trainable};
use tune_core::optim::{
    AdamW, AdamW8bit, Averaged, Gradients, InBackward, Lion, Muon, Optimizer, ScheduleFree, Sgd, clip_factor,
};
use tune_core::peft::{LoraModule, LoraOptions, adapter_weights, set_trainable};

use super::{card, error, fixture, lora, run, values};

/// No size is a multiple of what a thread reads at once, and the embedding is longer than a piece of a launch.
fn odd_model(dtype: DType, lora: Option<LoraOptions>, device: Compute) -> Decoder {
    let (vocab, wide, inner, head) = (1933, 36, 51, 12);
    let config = json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": wide, "intermediate_size": inner,
        "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": head,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    let mut dice = 7u64;
    let mut numbers = |shape: &[usize]| {
        let some = (0..shape.iter().product::<usize>()).map(|_| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 40) as f32 / (1u64 << 24) as f32 - 0.4
        });
        Tensor::from_vec(some.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
    };
    let mut weights = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), numbers(&[vocab, wide])),
        ("model.norm.weight".to_owned(), numbers(&[wide])),
    ]);
    for (name, shape) in [
        ("self_attn.q_proj", &[3 * head, wide][..]),
        ("self_attn.k_proj", &[head, wide]),
        ("self_attn.v_proj", &[head, wide]),
        ("self_attn.o_proj", &[wide, 3 * head]),
        ("mlp.gate_proj", &[inner, wide]),
        ("mlp.up_proj", &[inner, wide]),
        ("mlp.down_proj", &[wide, inner]),
        ("input_layernorm", &[wide]),
        ("post_attention_layernorm", &[wide]),
    ] {
        weights.insert(format!("model.layers.0.{name}.weight"), numbers(shape));
    }
    let options = LoadOptions { dtype, device, train_weights: lora.is_none(), lora };
    Decoder::load(ModelSpec::from_json(&config).unwrap(), &weights, &options).unwrap()
}

fn odd_batch() -> Batch {
    let len = 11;
    let ids: Vec<u32> = (0..len as u32).map(|i| i * 397 % 1933).collect();
    Batch {
        rows: 1,
        len,
        targets: ids[1..].iter().copied().chain([3]).collect(),
        input_ids: ids,
        positions: (0..len as u32).collect(),
        spans: vec![Span { row: 0, start: 0, len }],
        origins: vec!["made up".into()],
        labels: Vec::new(),
    }
}

fn odd_lora() -> LoraOptions {
    let modules = vec![LoraModule::QProj, LoraModule::DownProj, LoraModule::LmHead];
    LoraOptions { modules, rank: 3, alpha: 6.0, dropout: 0.0, seed: 5, ..Default::default() }
}

fn bits_of(t: &Tensor) -> Vec<u64> {
    values(t).into_iter().map(f64::to_bits).collect()
}

/// Bits of what is trained, by name.
fn weights(model: &Decoder) -> BTreeMap<String, Vec<u64>> {
    model.fetch().unwrap();
    model.trainable().iter().map(|p| (p.name().to_string(), bits_of(p.var().as_tensor()))).collect()
}

/// Those and the bits of the optimizer's state.
fn bits(model: &Decoder, optimizer: &dyn Optimizer) -> BTreeMap<String, Vec<u64>> {
    let mut bits = weights(model);
    bits.extend(optimizer.state().unwrap().iter().map(|(name, state)| (name.clone(), bits_of(state))));
    bits
}

#[track_caller]
fn same(what: &str, found: &BTreeMap<String, Vec<u64>>, right: &BTreeMap<String, Vec<u64>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>(), "{what}");
    for (name, found) in found {
        let right = &right[name];
        let wrong: Vec<usize> = (0..right.len()).filter(|&i| found[i] != right[i]).collect();
        assert!(wrong.is_empty(), "{what}: {name} has other bits in {} places, the first {:?}", wrong.len(), wrong[0]);
    }
}

/// Each weight goes the same way. Knows nothing of cards.
struct SignDescent;

impl Optimizer for SignDescent {
    fn base_lr(&self) -> f64 {
        0.01
    }
    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, _: f64, _: u64) -> Result<()> {
        let var = parameter.var();
        let direction = gradient.to_tensor()?.sign()?.to_dtype(var.dtype())?;
        Ok(var.set(&(var.as_tensor() - (direction * lr)?)?)?)
    }
    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::new())
    }
    fn set_state(&mut self, _: BTreeMap<String, Tensor>, _: &Trainable) -> Result<()> {
        Ok(())
    }
}

fn adamw() -> Box<dyn Optimizer> {
    Box::new(AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.1))
}

fn optimizers() -> [(&'static str, [Box<dyn Optimizer>; 3]); 9] {
    let three = |make: &dyn Fn() -> Box<dyn Optimizer>| [make(), make(), make()];
    [
        ("adamw", three(&adamw)),
        ("sgd", three(&|| Box::new(Sgd::new(1e-1, 0.0, 0.1)))),
        ("sgd with momentum", three(&|| Box::new(Sgd::new(1e-1, 0.8, 0.1)))),
        ("lion", three(&|| Box::new(Lion::new(1e-3, [0.9, 0.99], 0.1)))),
        ("adamw in eight bits", three(&|| Box::new(AdamW8bit::new(1e-2, [0.9, 0.99], 1e-8, 0.1)))),
        ("schedule-free adamw", three(&|| Box::new(ScheduleFree::new(1e-2, [0.9, 0.99], 1e-8, 0.1)))),
        ("averaged adamw", three(&|| Box::new(Averaged::new(adamw(), 0.8)))),
        ("averaged, of one's own", three(&|| Box::new(Averaged::new(Box::new(SignDescent), 0.8)))),
        ("one of one's own", three(&|| Box::new(SignDescent))),
    ]
}

/// With the same gradients every bit of weights and state is that of the processor's optimizers: f32 weights, bf16 weights that are
/// rounded at random, and f32 adapters of which a bf16 model reads copies. So it is where the card's state was saved and read back,
/// and where each gradient is used up as it comes.
#[test]
fn bits_of_the_processors_steps() {
    let Some(card) = card() else { return };
    let batch = odd_batch();
    for (dtype, lora) in [(DType::F32, None), (DType::BF16, None), (DType::BF16, Some(odd_lora()))] {
        for (name, [mut here, mut there, mut at_once]) in optimizers() {
            let what = format!("{name}, {dtype:?}, adapters: {}", lora.is_some());
            let on_card = || odd_model(dtype, lora.clone(), Compute::Card(Arc::clone(&card)));
            let (twin, model, other) = (odd_model(dtype, lora.clone(), Compute::Processor), on_card(), on_card());
            for step in 1..=3 {
                here.prepare_all(twin.trainable(), step).unwrap();
                there.prepare_all(model.trainable(), step).unwrap();
                same(&format!("{what}, before step {step}"), &weights(&model), &weights(&twin));
                let (_, mut gradients) = run(&model, &batch, false);
                let scale = 0.7;
                for (name, gradient) in gradients.iter() {
                    let gradient: Gradient = gradient.to_tensor().unwrap().into();
                    here.update(twin.trainable().get(name).unwrap(), &gradient, 1e-2, scale, step).unwrap();
                }
                gradients.apply(&model, there.as_mut(), 1e-2, scale, step).unwrap();
                let right = bits(&twin, here.as_ref());
                same(&format!("{what}, step {step}"), &bits(&model, there.as_ref()), &right);
                if step == 2 {
                    // As a resume has it.
                    let state = there.state().unwrap();
                    there.set_state(state, model.trainable()).unwrap();
                    model.changed();
                }
            }
            // The scale of one, and no step before: as two ways of the card.
            let fresh = on_card();
            let [mut first, _, _] = optimizers().into_iter().find(|(n, _)| *n == name).unwrap().1;
            let options = RunOptions { scale: 0.1, ..RunOptions::PLAIN };
            let mut gradients = Gradients::default();
            forward_backward(&fresh, &batch, options, &mut gradients).unwrap();
            let norm = gradients.norm().unwrap();
            first.prepare_all(fresh.trainable(), 1).unwrap();
            gradients.apply(&fresh, first.as_mut(), 1e-2, 1.0, 1).unwrap();
            at_once.prepare_all(other.trainable(), 1).unwrap();
            let mut sink = InBackward::new(at_once.as_mut(), 1e-2, 1);
            forward_backward(&other, &batch, options, &mut sink).unwrap();
            let in_backward = sink.squared_norm().unwrap().sqrt();
            assert!((norm - in_backward).abs() <= 1e-12 * norm, "{what}: norms {norm} and {in_backward}");
            same(
                &format!("{what}, in the backward pass"),
                &bits(&other, at_once.as_ref()),
                &bits(&fresh, first.as_ref()),
            );
        }
    }
}

/// Muon's steps are the processor's but for the order of sums. Each goes on with what the other has saved.
#[test]
fn matrices_are_made_orthogonal() {
    let Some(card) = card() else { return };
    let batch = odd_batch();
    for (lora, nesterov) in [(None, true), (None, false), (Some(odd_lora()), true)] {
        let muon = || {
            let mut muon = Muon::new(1e-2, 0.1, AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.1));
            muon.nesterov = nesterov;
            muon
        };
        let (mut here, mut there) = (muon(), muon());
        let (twin, model) = (
            odd_model(DType::F32, lora.clone(), Compute::Processor),
            odd_model(DType::F32, lora.clone(), Compute::Card(Arc::clone(&card))),
        );
        let numbers = |model: &Decoder| -> BTreeMap<String, Vec<f64>> {
            model.fetch().unwrap();
            model.trainable().iter().map(|p| (p.name().to_string(), values(p.var().as_tensor()))).collect()
        };
        let start = numbers(&model);
        for step in 1..=4 {
            let (_, mut gradients) = run(&model, &batch, false);
            for (name, gradient) in gradients.iter() {
                let gradient: Gradient = gradient.to_tensor().unwrap().into();
                here.update(twin.trainable().get(name).unwrap(), &gradient, 1e-2, 0.7, step).unwrap();
            }
            gradients.apply(&model, &mut there, 1e-2, 0.7, step).unwrap();
            if step == 2 {
                let (of_here, of_there) = (here.state().unwrap(), there.state().unwrap());
                here.set_state(of_there, twin.trainable()).unwrap();
                there.set_state(of_here, model.trainable()).unwrap();
            }
        }
        let (found, right) = (numbers(&model), numbers(&twin));
        for (name, start) in &start {
            let moved = |to: &[f64]| to.iter().zip(start).map(|(to, from)| to - from).collect::<Vec<f64>>();
            let (found, right) = (moved(&found[name]), moved(&right[name]));
            let off = error(&found, &right);
            let what = format!("{name}, adapters: {}, nesterov: {nesterov}", lora.is_some());
            assert!(right.iter().any(|x| x.abs() > 1e-4), "{what}: nothing moved");
            assert!(off <= 1e-3, "{what}: steps are off by {off:.1e}");
        }
    }
}

/// A step whose loss, norm and clipping nobody waits for has the bits of one that does.
#[test]
fn steps_that_nobody_waits_for() {
    let Some(card) = card() else { return };
    let (batch, max_norm) = (odd_batch(), 0.25);
    for (dtype, lora) in [(DType::F32, None), (DType::BF16, None), (DType::BF16, Some(odd_lora()))] {
        for (name, [mut waiting, mut queued, _]) in optimizers() {
            let what = format!("{name}, {dtype:?}, adapters: {}", lora.is_some());
            let models: [Decoder; 2] =
                std::array::from_fn(|_| odd_model(dtype, lora.clone(), Compute::Card(Arc::clone(&card))));
            for step in 1..=2 {
                waiting.prepare_all(models[0].trainable(), step).unwrap();
                queued.prepare_all(models[1].trainable(), step).unwrap();
                let (mut here, mut there) = (Gradients::default(), Gradients::default());
                let (mut loss, mut later) = (0.0, Later::default());
                for scale in [0.25, 0.5] {
                    let options = RunOptions { scale, ..RunOptions::PLAIN };
                    loss += scale * forward_backward(&models[0], &batch, options, &mut here).unwrap();
                    later.add(scale, queue_forward_backward(&models[1], &batch, options, &mut there).unwrap());
                }
                let norm = here.norm().unwrap();
                assert!(norm > max_norm, "{what}: a norm of {norm} is not clipped");
                here.apply(&models[0], waiting.as_mut(), 1e-2, clip_factor(norm, max_norm), step).unwrap();
                let (norm_later, clip) = there.clip(Some(max_norm)).unwrap();
                there.apply(&models[1], queued.as_mut(), 1e-2, clip, step).unwrap();
                assert!(later.known().is_none() && norm_later.known().is_none(), "{what}: somebody waited");
                assert_eq!(later.wait().unwrap().to_bits(), loss.to_bits(), "{what}: the loss of step {step}");
                assert_eq!(norm_later.wait().unwrap().to_bits(), norm.to_bits(), "{what}: the norm of step {step}");
            }
            same(&what, &bits(&models[1], queued.as_ref()), &bits(&models[0], waiting.as_ref()));
        }
    }
}

/// Gradients of micro-batches are added up on the card, and their norm is that of the processor's.
#[test]
fn norms_and_sums_of_gradients() {
    let Some(card) = card() else { return };
    let batch = odd_batch();
    let model = odd_model(DType::F32, None, Compute::Card(card));
    let options = |scale| RunOptions { scale, ..RunOptions::PLAIN };
    let gathered = |scales: &[f64]| {
        let mut gradients = Gradients::default();
        for &scale in scales {
            forward_backward(&model, &batch, options(scale), &mut gradients).unwrap();
        }
        gradients
    };
    let (twice, thrice) = (gathered(&[0.25, 0.5]), gathered(&[0.75]));
    let mut squares = 0.0;
    for ((name, two), (_, three)) in twice.iter().zip(thrice.iter()) {
        let [two, three] = [two, three].map(|g| values(&g.to_tensor().unwrap()));
        // Sums in another order, some of which cancel.
        assert!(error(&two, &three) < 1e-5, "{name}");
        squares += two.iter().map(|x| x * x).sum::<f64>();
    }
    let norm = twice.norm().unwrap();
    assert!((norm - squares.sqrt()).abs() < 1e-6 * norm, "{norm} instead of {}", squares.sqrt());
}

/// A run that is saved and read back, on the same card, has the bits of one that was not.
#[test]
fn a_resume_has_the_same_bits() {
    let Some(card) = card() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let fixture = fixture("llama_tied");
        let batch = fixture.batch();
        let device = Compute::Card(Arc::clone(&card));
        let fresh = || {
            let mut model = fixture.model(dtype, Some(lora()));
            model.compute_on(&device).unwrap();
            (model, AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.01))
        };
        let steps = |(model, optimizer): &mut (Decoder, AdamW), range: std::ops::RangeInclusive<u64>| {
            for step in range {
                let (_, mut gradients) = run(model, &batch, false);
                gradients.apply(model, optimizer, 1e-2, 1.0, step).unwrap();
            }
        };
        let (mut whole, mut before, mut after) = (fresh(), fresh(), fresh());
        steps(&mut whole, 1..=6);
        steps(&mut before, 1..=3);
        set_trainable(&after.0, &adapter_weights(&before.0).unwrap(), "a checkpoint").unwrap();
        after.1.set_state(before.1.state().unwrap(), after.0.trainable()).unwrap();
        steps(&mut after, 4..=6);
        same(&format!("{dtype:?}"), &bits(&after.0, &after.1), &bits(&whole.0, &whole.1));
    }
}

/// Twenty steps on the processor and on the card, side by side.
#[test]
fn the_same_training() {
    let Some(card) = card() else { return };
    let fixture = fixture("llama_tied");
    let batch = fixture.batch();
    for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 2e-2)] {
        let losses = [None, Some(&card)].map(|card: Option<&Arc<Card>>| {
            let mut model = fixture.model(dtype, Some(lora()));
            if let Some(card) = card {
                model.compute_on(&Compute::Card(Arc::clone(card))).unwrap();
            }
            let mut optimizer = AdamW::new(1e-2, [0.9, 0.99], 1e-8, 0.01);
            let step = |step| {
                let (loss, mut gradients) = run(&model, &batch, false);
                gradients.apply(&model, &mut optimizer, 1e-2, 1.0, step).unwrap();
                loss
            };
            (1..=20).map(step).collect::<Vec<f64>>()
        });
        let [here, there] = &losses;
        say!("{dtype:?}: processor {:.5} .. {:.5}, card {:.5} .. {:.5}", here[0], here[19], there[0], there[19]);
        assert!(here[19] < 0.9 * here[0], "nothing was learnt: {here:?}");
        assert!(error(there, here) < tolerance, "{dtype:?}: {there:?} instead of {here:?}");
    }
}

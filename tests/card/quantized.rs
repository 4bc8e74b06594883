//! Bases in blocks of few bits: dequantized, they are the numbers that the processor has, and adapters learn on them as they do there.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use half::bf16;
use serde_json::json;
use tune_core::checkpoint::Checkpoint;
use tune_core::config::say;
use tune_core::data::Batch;
use tune_core::device::Compute;
use tune_core::engine::{self, Card, RunOptions, Sequences, forward_backward};
use tune_core::models::{Decoder, Format, FrozenBase, InBlocks, LoadOptions, ModelSpec, Quantization, WeightSource};
use tune_core::optim::{AdamW, Gradients};
use tune_core::peft::LoraOptions;
use tune_cuda::{Beside, BlockFormat, Context, Element, Onto, Term};

use super::blocks::{KEEP, NF4, batch, dequantized, write};
use super::families::Fixture;
use super::made_up::{MadeUp, adamw, batch as made_up_batch, muon};
use super::{Failures, card, error, families, lora, run, shake, values};

/// A context of its own, where there is a card.
fn context() -> Option<Context> {
    card().map(|_| Context::open(0).unwrap())
}

/// Blocks of every format that files have, and what other programs make of them.
fn fixture() -> HashMap<String, Tensor> {
    let path = Fixture::folder("../quantized").join("blocks.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

const OF_FILES: [(&str, BlockFormat); 13] = [
    ("F16", BlockFormat::F16),
    ("BF16", BlockFormat::Bf16),
    ("Q4_0", BlockFormat::Q4_0),
    ("Q4_1", BlockFormat::Q4_1),
    ("Q5_0", BlockFormat::Q5_0),
    ("Q5_1", BlockFormat::Q5_1),
    ("Q8_0", BlockFormat::Q8_0),
    ("IQ4_NL", BlockFormat::Iq4Nl),
    ("Q2_K", BlockFormat::Q2K),
    ("Q3_K", BlockFormat::Q3K),
    ("Q4_K", BlockFormat::Q4K),
    ("Q5_K", BlockFormat::Q5K),
    ("Q6_K", BlockFormat::Q6K),
];

/// Numbers as f32 and as a card's type, with their bits.
trait Number: Element {
    fn of(x: f32) -> Self;
    fn bits(self) -> u32;
    fn wide(self) -> f64;
}

impl Number for f32 {
    fn of(x: f32) -> Self {
        x
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Number for bf16 {
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn bits(self) -> u32 {
        u32::from(self.to_bits())
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

/// All of a matrix, some columns of some rows, and rows by number have every bit that they have elsewhere.
fn dequantize<T: Number>(context: &Context, failures: &mut Failures) {
    let fixture = fixture();
    for (name, format) in OF_FILES {
        let right = &fixture[&format!("{name}.values")];
        let (rows, cols) = right.dims2().unwrap();
        let right: Vec<f32> = right.flatten_all().unwrap().to_vec1().unwrap();
        let bytes: Vec<u8> = fixture[&format!("{name}.blocks")].flatten_all().unwrap().to_vec1().unwrap();
        let of = context.upload_blocks(format, (rows, cols), &bytes, None);
        let mut compare = |what: &str, (row, col): (usize, usize), some: &[usize], width: usize| {
            let mut y = context.buffer::<T>(some.len() * width);
            context.fill(&mut y, 0xff);
            match what {
                "rows by number" => {
                    let ids: Vec<u32> = some.iter().map(|&row| row as u32).collect();
                    context.lookup_blocks(&of, &context.upload(&ids), y.view_mut(width));
                }
                _ => context.dequantize(&of, (row, col), y.view_mut(width)),
            }
            let found = context.download(&y).unwrap();
            let all = some.iter().flat_map(|row| &right[row * cols + col..][..width]);
            let wrong = found.iter().zip(all).filter(|(found, right)| found.bits() != T::of(**right).bits()).count();
            failures.unless(wrong == 0, || format!("{name} {}, {what}: {wrong} of {} numbers", T::NAME, found.len()));
        };
        compare("all", (0, 0), &[0, 1, 2], cols);
        compare("some", (1, 40), &[1, 2], 24);
        compare("a few", (2, 13), &[2], 21);
        compare("rows by number", (0, 0), &[2, 0, 1, 2], cols);
    }
}

#[test]
fn every_format_has_the_bits_of_other_programs() {
    let Some(context) = context() else { return };
    let mut failures = Failures::default();
    dequantize::<f32>(&context, &mut failures);
    dequantize::<bf16>(&context, &mut failures);
}

/// A product with a weight of which a part is dequantized at a time is that with all of its numbers.
fn products<T: Number>(context: &Context, tolerance: f64, failures: &mut Failures) {
    let (rows, cols, m) = (192, 256, 37);
    let numbers = |seed: usize, len: usize| -> Vec<T> {
        (0..len).map(|i| T::of(((i * 7919 + seed * 31) % 251) as f32 / 125.0 - 1.0)).collect()
    };
    // Each block has one scale, and codes that are all different.
    let mut bytes = Vec::new();
    for block in 0..rows * cols / 32 {
        bytes.extend_from_slice(&half::f16::from_f32(0.01 + (block % 7) as f32 / 500.0).to_le_bytes());
        bytes.extend((0..32).map(|i| (block * 37 + i * 11) as u8));
    }
    let of = context.upload_blocks(BlockFormat::Q8_0, (rows, cols), &bytes, None);
    let (first, count) = (64, 100);
    let mut w = context.buffer::<T>(count * cols);
    context.dequantize(&of, (first, 0), w.view_mut(cols));
    for up in [true, false] {
        let (inner, results) = if up { (cols, count) } else { (count, cols) };
        let beside = context.upload(&numbers(1, m * inner));
        let other = context.upload(&numbers(2, m * results));
        for onto in 0..3 {
            let all = |of_blocks: Option<usize>| {
                let mut y = context.upload(&numbers(3, m * results));
                let onto = match onto {
                    0 => Onto::Nothing,
                    1 => Onto::Itself,
                    _ => Onto::Other(other.view(results)),
                };
                let (x, y_view) = (beside.view(inner), y.view_mut(results));
                match of_blocks {
                    Some(most) => {
                        let beside = if up { Beside::Up(x) } else { Beside::Down(x) };
                        context.multiply_blocks(beside, of.rows(first, count), most, 0.5, onto, y_view);
                    }
                    None => {
                        let w = w.view(cols);
                        let term = if up { Term::Up { x, w } } else { Term::Down { g: x, w } };
                        context.multiply(term, 0.5, None, onto, y_view);
                    }
                }
                context.download(&y).unwrap().into_iter().map(T::wide).collect::<Vec<f64>>()
            };
            let right = all(None);
            for most in [usize::MAX, 64 * inner, 1] {
                let error = error(&all(Some(most)), &right);
                let what = || format!("{} up {up}, onto {onto}, {most} at a time: off by {error:.1e}", T::NAME);
                failures.unless(error <= tolerance, what);
            }
        }
    }
}

#[test]
fn products_of_parts_are_those_of_the_whole() {
    let Some(context) = context() else { return };
    let mut failures = Failures::default();
    products::<f32>(&context, 2e-6, &mut failures);
    products::<bf16>(&context, 4e-3, &mut failures);
}

/// A model of these weights with adapters that are not where they begin.
fn model(spec: &ModelSpec, source: &dyn WeightSource, dtype: DType, lora: LoraOptions, device: &Compute) -> Decoder {
    let options = LoadOptions { dtype, device: device.clone(), train_weights: false, lora: Some(lora) };
    let model = Decoder::load(spec.clone(), source, &options).unwrap();
    shake(&model);
    model.changed();
    model
}

/// The base in blocks beside the same numbers, both on the card, of which every bit is the same; and beside the processor, from which
/// gradients may be off by `bounds` in f32 and bf16.
fn compare(what: &str, base: &Checkpoint, how: Quantization, batch: &Batch, bounds: [f64; 2], failures: &mut Failures) {
    let Some(card) = card() else { return };
    let spec = ModelSpec::from_json(base.config()).unwrap();
    for (dtype, of_loss, tolerance) in [(DType::F32, 2e-5, bounds[0]), (DType::BF16, 2e-2, bounds[1])] {
        let in_blocks = InBlocks::of(base, &spec, dtype, how).unwrap();
        let blocks = FrozenBase { checkpoint: base, in_blocks: &in_blocks };
        let plain = dequantized(base, &in_blocks);
        let model = |source: &dyn WeightSource, device: &Compute| model(&spec, source, dtype, lora(), device);
        let on_card = Compute::Card(Arc::clone(&card));
        let (ours, gradients) = run(&model(&blocks, &on_card), batch, false);
        let (same, same_gradients) = run(&model(&plain, &on_card), batch, true);
        let (right, right_gradients) = run(&model(&blocks, &Compute::Processor), batch, false);
        let mut worst = 0f64;
        failures.unless(ours.to_bits() == same.to_bits(), || format!("{what} {dtype:?}: loss {ours}, not {same}"));
        for (name, gradient) in gradients.iter() {
            let of = |gradients: &Gradients| values(&gradients.get(name).unwrap().to_tensor().unwrap());
            let (ours, same) = (values(&gradient.to_tensor().unwrap()), of(&same_gradients));
            failures.unless(ours == same, || {
                format!("{what} {dtype:?}: {name} off by {:.1e} from its numbers'", error(&ours, &same))
            });
            let error = error(&ours, &of(&right_gradients));
            worst = worst.max(error);
            failures.unless(error <= tolerance, || format!("{what} {dtype:?}: {name} off by {error:.1e}"));
        }
        let close = (ours - right).abs() <= of_loss * right;
        failures.unless(close, || format!("{what} {dtype:?}: loss {ours}, not {right}"));
        say!("{what} {dtype:?}: {}; loss {ours:.6} ({right:.6}), off by {worst:.1e} at most", in_blocks.describe());
    }
}

#[test]
fn normal_floats_have_the_bits_of_their_numbers() {
    if card().is_none() {
        return;
    }
    let mut failures = Failures::default();
    for family in families().into_iter().filter(|family| ["llama_tied", "mistral", "qwen3_moe"].contains(family)) {
        let base = Checkpoint::open(Fixture::folder(family)).unwrap();
        compare(family, &base, NF4, &Fixture::read(family).batch(), [2e-5, 5e-2], &mut failures);
    }
}

/// Of a file all matrices are in blocks: the embedding table, too, which is the output layer.
#[test]
fn a_gguf_file_has_the_bits_of_its_numbers() {
    if card().is_none() {
        return;
    }
    let (folder, mut failures) = (tempfile::tempdir().unwrap(), Failures::default());
    let path = folder.path().join("model.gguf");
    for dtype in [GgmlDType::F16, GgmlDType::Q4_0, GgmlDType::Q5_1, GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K] {
        write(&path, dtype);
        let base = Checkpoint::open(&path).unwrap();
        // The sums behind the gradients of queries and keys cancel: in bf16 nothing is left of them.
        compare(&format!("{dtype:?}"), &base, KEEP, &batch(), [5e-3, f64::INFINITY], &mut failures);
    }
}

/// Steps on the processor and on the card, side by side.
#[test]
fn the_same_training_on_blocks() {
    let Some(card) = card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |dtype| {
        let path = folder.path().join(format!("{dtype:?}.gguf"));
        write(&path, dtype);
        Checkpoint::open(&path).unwrap()
    };
    let family = || Checkpoint::open(Fixture::folder("llama_tied")).unwrap();
    let of_family = Fixture::read("llama_tied").batch();
    for (what, base, how, batch) in [
        ("NF4", family(), NF4, of_family.clone()),
        ("NF4 with DoRA", family(), NF4, of_family),
        ("Q4_0", file(GgmlDType::Q4_0), KEEP, batch()),
        ("Q4_K", file(GgmlDType::Q4K), KEEP, batch()),
        ("Q8_0", file(GgmlDType::Q8_0), KEEP, batch()),
    ] {
        let spec = ModelSpec::from_json(base.config()).unwrap();
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 3e-2)] {
            let in_blocks = InBlocks::of(&base, &spec, dtype, how).unwrap();
            let blocks = FrozenBase { checkpoint: &base, in_blocks: &in_blocks };
            let losses = [Compute::Processor, Compute::Card(Arc::clone(&card))].map(|device| {
                let model =
                    model(&spec, &blocks, dtype, LoraOptions { dora: what.ends_with("DoRA"), ..lora() }, &device);
                let mut optimizer = AdamW::new(3e-3, [0.9, 0.99], 1e-8, 0.01);
                let step = |step| {
                    let (loss, mut gradients) = run(&model, &batch, false);
                    gradients.apply(&model, &mut optimizer, 3e-3, 1.0, step).unwrap();
                    loss
                };
                (1..=8).map(step).collect::<Vec<f64>>()
            });
            let [here, there] = &losses;
            say!(
                "{what} {dtype:?}: processor {:.5} .. {:.5}, card {:.5} .. {:.5}",
                here[0],
                here[7],
                there[0],
                there[7]
            );
            assert!(here[7] < 0.9 * here[0], "{what}: nothing was learnt: {here:?}");
            assert!(error(there, here) < tolerance, "{what} {dtype:?}: {there:?} instead of {here:?}");
        }
    }
}

/// Sequences that grow, some by one token.
#[test]
fn sequences_on_blocks() {
    let Some(card) = card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, GgmlDType::Q4K);
    let base = Checkpoint::open(&path).unwrap();
    let spec = ModelSpec::from_json(base.config()).unwrap();
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 5e-2)] {
        let in_blocks = InBlocks::of(&base, &spec, dtype, KEEP).unwrap();
        let blocks = FrozenBase { checkpoint: &base, in_blocks: &in_blocks };
        let devices = [Compute::Processor, Compute::Card(Arc::clone(&card))];
        let models = devices.map(|device| model(&spec, &blocks, dtype, lora(), &device));
        let [mut here, mut there] =
            models.each_ref().map(|model| Sequences::new(model, &[20, 20], engine::Kernels::Fast).unwrap());
        let steps: [&[(usize, &[u32])]; 3] = [&[(0, &[1, 2, 0, 1]), (1, &[2])], &[(0, &[2]), (1, &[0])], &[(0, &[1])]];
        for new in steps {
            let [a, b] = [&mut there, &mut here].map(|sequences| sequences.extend(new).unwrap().concat());
            let [a, b] = [a, b].map(|logits| logits.into_iter().map(f64::from).collect::<Vec<_>>());
            assert!(error(&a, &b) < tolerance, "{dtype:?} {new:?}: off by {:.1e}", error(&a, &b));
        }
    }
}

/// The same blocks are on a card once, whoever reads them.
#[test]
fn blocks_are_on_a_card_once() {
    if card().is_none() {
        return;
    }
    let card = Card::open(0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, GgmlDType::Q8_0);
    let base = Checkpoint::open(&path).unwrap();
    let spec = ModelSpec::from_json(base.config()).unwrap();
    let in_blocks = InBlocks::of(&base, &spec, DType::F32, KEEP).unwrap();
    let blocks = FrozenBase { checkpoint: &base, in_blocks: &in_blocks };
    let device = Compute::Card(Arc::clone(&card));
    let before = card.usage().used;
    let first = model(&spec, &blocks, DType::F32, lora(), &device);
    let taken = card.usage().used - before;
    // Norms are numbers, and adapters; a buffer takes a multiple of 512 bytes.
    let adapters: u64 = first.trainable().iter().map(|p| 4 * p.var().elem_count() as u64).sum();
    let most = in_blocks.bytes() + adapters + 512 * 64;
    assert!((in_blocks.bytes()..most).contains(&taken), "{taken} bytes are not {} to {most}", in_blocks.bytes());
    let loss = engine::evaluate(&first, &batch()).unwrap();
    let between = card.usage().used;
    let other = engine::evaluate(&first.without_adapters().unwrap(), &batch()).unwrap();
    assert!(loss.is_finite() && other.is_finite() && loss != other, "{loss} and {other}");
    // Its norms are tensors of their own.
    let most = between + in_blocks.bytes() / 10;
    assert!(card.usage().used <= most, "{} bytes after {between}", card.usage().used);
}

/// A plan says what a card has in use at most, with a base in blocks and with one in numbers, with a mixture of experts, and where Muon
/// makes matrices orthogonal, some of which are large beside all that a step needs.
#[test]
fn what_is_planned_is_taken() {
    if card().is_none() {
        return;
    }
    let config = json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    let experts = json!({
        "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
        "norm_topk_prob": true,
    });
    let mut mixture = config.clone();
    mixture.as_object_mut().unwrap().extend(experts.as_object().unwrap().clone());
    let batch = made_up_batch((2, 40), 512);
    let adapters = || Some(LoraOptions { dropout: 0.0, ..lora() });
    for (what, config, lora, format, optimizer) in [
        ("numbers", &config, adapters(), None, adamw()),
        ("NF4", &config, adapters(), Some(Format::Nf4), adamw()),
        ("Q4_K", &config, adapters(), Some(Format::Q4K), adamw()),
        ("experts", &mixture, adapters(), None, adamw()),
        ("all weights by Muon", &config, None, None, muon()),
    ] {
        let card = Card::open(0).unwrap();
        let made = MadeUp { config: config.clone(), lora, format };
        let plan = made.plan_with(optimizer.clone(), &card, &batch);
        let model = made.model(&card);
        let mut optimizer = optimizer.build();
        for number in 1..=2 {
            let mut gradients = Gradients::default();
            let options = RunOptions { scale: 0.01, ..RunOptions::PLAIN };
            for _ in 0..2 {
                forward_backward(&model, &batch, options, &mut gradients).unwrap();
            }
            gradients.apply(&model, optimizer.as_mut(), 1e-3, 1.0, number).unwrap();
        }
        let taken = (card.usage().most - (tune_cuda::WORKSPACE + tune_cuda::AHEAD) as u64) as f64;
        let planned = (plan.peak() - plan.program - plan.gaps) as f64;
        say!("{what}: {:.0} KiB planned, {:.0} taken", planned / 1024.0, taken / 1024.0);
        assert!((planned / taken - 1.0).abs() < 0.03, "{what}: {planned} bytes planned, {taken} taken");
    }
}

//! A frozen base model in blocks trains adapters as the same numbers do: for what GGUF files have, and for NF4.

#![allow(clippy::unwrap_used)]

#[path = "common/blocks.rs"]
mod blocks;
#[path = "common/families.rs"]
mod families;

use std::collections::BTreeMap;
use std::path::Path;

use blocks::{KEEP, NF4, WIDTH, batch, dequantized, write};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use families::Fixture;
use tune_core::checkpoint::{Checkpoint, OpenOptions};
use tune_core::data::Batch;
use tune_core::device::Compute;
use tune_core::engine::{self, RunOptions, Sequences, forward_backward};
use tune_core::models::{
    Decoder, Format, FrozenBase, Half, InBlocks, LoadOptions, ModelSpec, Quantization, Quantized, Slot, Weight,
    WeightSource,
};
use tune_core::optim::{Gradient, Gradients};
use tune_core::peft::LoraOptions;

fn lora() -> LoraOptions {
    let modules = Slot::ALL.to_vec();
    LoraOptions { modules, rank: 3, alpha: 6.0, dropout: 0.1, seed: 5, ..Default::default() }
}

/// The model with adapters that are away from where they begin, at which `A` has no gradient.
fn model(spec: &ModelSpec, source: &dyn WeightSource, dtype: DType, lora: LoraOptions) -> Decoder {
    let options = LoadOptions { dtype, device: Compute::Processor, train_weights: false, lora: Some(lora) };
    let model = Decoder::load(spec.clone(), source, &options).unwrap();
    for parameter in model.trainable().iter().filter(|parameter| parameter.name().ends_with("lora_B.weight")) {
        let (name, var) = (parameter.name(), parameter.var());
        let key = name.bytes().fold(3u64, |key, byte| key.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let value = |i: u64| ((key + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 1000;
        let values: Vec<f64> = (0..var.elem_count() as u64).map(|i| value(i) as f64 / 5e3 - 0.1).collect();
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        var.set(&values.to_dtype(var.dtype()).unwrap()).unwrap();
    }
    model
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The mean loss of a batch, and all gradients.
fn run(model: &Decoder, batch: &Batch) -> (f64, BTreeMap<String, Vec<f64>>) {
    let mut gradients = Gradients::default();
    let trained = batch.trained_tokens() as f64;
    let options =
        RunOptions { scale: 1.0 / trained, activation_checkpointing: false, dropout: Some(11), ..RunOptions::PLAIN };
    let loss = forward_backward(model, batch, options, &mut gradients).unwrap() / trained;
    let numbers = |(name, gradient): (&str, &Gradient)| (name.to_owned(), numbers(&gradient.to_tensor().unwrap()));
    (loss, gradients.iter().map(numbers).collect())
}

/// The largest difference of a gradient from the right one, as a share of the largest element.
fn off(ours: &[f64], right: &[f64]) -> f64 {
    let largest = right.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    ours.iter().zip(right).fold(0f64, |worst, (a, b)| worst.max((a - b).abs())) / largest.max(1e-30)
}

/// Compares a model in blocks with the model of the same numbers: in f64, in f32 and, to what bf16 can tell, in bf16.
fn compare(what: &str, spec: &ModelSpec, blocks: &dyn WeightSource, plain: &dyn WeightSource, batch: &Batch) {
    for dora in [false, true] {
        compare_with(&format!("{what}, DoRA {dora}"), spec, blocks, plain, batch, LoraOptions { dora, ..lora() });
    }
}

fn compare_with(
    what: &str,
    spec: &ModelSpec,
    blocks: &dyn WeightSource,
    plain: &dyn WeightSource,
    batch: &Batch,
    all: LoraOptions,
) {
    let modules = all.modules.iter().copied().filter(|&slot| {
        // Nothing holds magnitudes for a mixture's MLPs.
        let held = !all.dora || !spec.has_experts() || slot.half() != Some(Half::Mlp);
        held && !spec.layers_of(slot).is_empty()
    });
    let lora = LoraOptions { modules: modules.collect(), ..all };
    let both = |dtype| [blocks, plain].map(|source| run(&model(spec, source, dtype, lora.clone()), batch));
    let [_, (exact, exact_gradients)] = both(DType::F64);
    // From the exact loss, from what the same numbers give in the same precision, and from the exact gradients.
    for (dtype, of_loss, of_same, of_exact) in
        [(DType::F64, 1e-12, 1e-9, 1e-9), (DType::F32, 1e-5, 1e-4, 2e-3), (DType::BF16, 2e-2, 5e-2, f64::INFINITY)]
    {
        let [(ours, gradients), (theirs, their_gradients)] = both(dtype);
        assert!((ours - exact).abs() <= of_loss * exact, "{what}, {dtype:?}: {ours} instead of {exact}");
        assert!((ours - theirs).abs() <= of_loss * exact / 10.0, "{what}, {dtype:?}: {ours} instead of {theirs}");
        for (name, gradient) in &gradients {
            let (same, exact) = (off(gradient, &their_gradients[name]), off(gradient, &exact_gradients[name]));
            assert!(same <= of_same && exact <= of_exact, "{what}, {dtype:?}, {name}: off by {same:e} and {exact:e}");
        }
    }
}

#[test]
fn normal_floats_train_as_their_numbers() {
    for family in ["llama_tied", "mistral", "gemma2", "phi3", "qwen2", "qwen3_moe"] {
        let fixture = Fixture::read(family);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families").join(family);
        let base = Checkpoint::open(folder).unwrap();
        let spec = ModelSpec::from_json(base.config()).unwrap();
        let in_blocks = InBlocks::of(&base, &spec, DType::F32, NF4).unwrap();
        assert_eq!(in_blocks.format("model.layers.1.mlp.experts.0.up_proj.weight").is_some(), family == "qwen3_moe");
        assert_eq!(in_blocks.format("model.layers.1.mlp.gate.weight"), None);
        assert_eq!(in_blocks.format("model.embed_tokens.weight"), None);
        let layers: u64 = (0..spec.blocks.len())
            .flat_map(|block| spec.layers(block))
            .filter(|layer| layer.site.slot != Slot::Router)
            .map(|layer| (layer.out * layer.inner) as u64)
            .sum();
        assert_eq!(in_blocks.elements(), layers);
        assert!(in_blocks.bytes() < layers * 9 / 16, "{} bytes for {layers} elements", in_blocks.bytes());
        let blocks = FrozenBase { checkpoint: &base, in_blocks: &in_blocks };
        let plain = dequantized(&base, &in_blocks);
        compare(family, &spec, &blocks, &plain, &fixture.batch());

        // What was quantized is near to what it was.
        let quantized = model(&spec, &blocks, DType::F32, no_adapters());
        let original = model(&spec, &fixture.weights, DType::F32, no_adapters());
        let [ours, theirs] = [quantized, original].map(|model| engine::evaluate(&model, &fixture.batch()).unwrap());
        assert!((ours - theirs).abs() < 0.05 * theirs && ours != theirs, "{family}: {ours} instead of {theirs}");
    }
}

/// Adapters that change nothing.
fn no_adapters() -> LoraOptions {
    LoraOptions { modules: vec![Slot::LmHead], rank: 1, alpha: 0.0, ..lora() }
}

#[test]
fn what_a_gguf_file_has_trains_as_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for (dtype, format) in [
        (GgmlDType::F16, Format::F16),
        (GgmlDType::BF16, Format::Bf16),
        (GgmlDType::Q4_0, Format::Q4_0),
        (GgmlDType::Q4_1, Format::Q4_1),
        (GgmlDType::Q5_0, Format::Q5_0),
        (GgmlDType::Q5_1, Format::Q5_1),
        (GgmlDType::Q8_0, Format::Q8_0),
        (GgmlDType::Q2K, Format::Q2K),
        (GgmlDType::Q3K, Format::Q3K),
        (GgmlDType::Q4K, Format::Q4K),
        (GgmlDType::Q5K, Format::Q5K),
        (GgmlDType::Q6K, Format::Q6K),
    ] {
        write(&path, dtype);
        let base = Checkpoint::open(&path).unwrap();
        let spec = ModelSpec::from_json(base.config()).unwrap();
        let in_blocks = InBlocks::of(&base, &spec, DType::F32, KEEP).unwrap();
        assert_eq!(in_blocks.describe(), format!("8 in {format}"));
        let (rows, cols) = (3, WIDTH);
        let table = base.quantized("model.embed_tokens.weight", format).unwrap();
        assert_eq!((table.dims(), table.format()), ((rows, cols), format));
        let blocks = FrozenBase { checkpoint: &base, in_blocks: &in_blocks };
        compare(&format.to_string(), &spec, &blocks, &base, &batch());
        // Sums of what was read are those of what was not.
        let read = base.fingerprint().unwrap();
        assert_eq!(read, Checkpoint::open(&path).unwrap().fingerprint().unwrap());

        // Numbers that a tensor can have are tensors.
        let of_bf16 = InBlocks::of(&base, &spec, DType::BF16, KEEP).unwrap();
        assert_eq!(of_bf16.is_empty(), format == Format::Bf16);
        // Who rounds weights, or wants them as numbers, has numbers.
        let options = OpenOptions { round_to: Some(DType::BF16), ..OpenOptions::default() };
        let rounded = Checkpoint::open_with(&path, &options).unwrap();
        assert!(InBlocks::of(&rounded, &spec, DType::F32, KEEP).unwrap().is_empty());
        let never = Quantization { keep: Some(false), ..KEEP };
        assert!(InBlocks::of(&base, &spec, DType::F32, never).unwrap().is_empty());
        // What is quantized stays so; what is not becomes NF4, but for the table.
        let both = InBlocks::of(&base, &spec, DType::F32, NF4).unwrap();
        let right = match format {
            Format::F16 | Format::Bf16 => format!("7 in NF4, 1 in {format}"),
            _ => format!("8 in {format}"),
        };
        assert_eq!(both.describe(), right);
        let blocks = FrozenBase { checkpoint: &base, in_blocks: &both };
        compare("both", &spec, &blocks, &dequantized(&base, &both), &batch());
    }
}

/// Generated tokens have, to the last bit, the log-probabilities that training has for them.
#[test]
fn generation_is_training() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, GgmlDType::Q4K);
    let base = Checkpoint::open(&path).unwrap();
    let spec = ModelSpec::from_json(base.config()).unwrap();
    let in_blocks = InBlocks::of(&base, &spec, DType::F32, KEEP).unwrap();
    let model = model(&spec, &FrozenBase { checkpoint: &base, in_blocks: &in_blocks }, DType::F32, lora());
    let batch = batch();
    let right = engine::log_probs(&model, &batch).unwrap();
    let mut sequences = Sequences::new(&model, &[21], engine::Kernels::OfTraining).unwrap();
    for (position, right) in right.into_iter().enumerate().take(21) {
        let logits = sequences.extend(&[(0, &batch.input_ids[position..=position])]).unwrap();
        assert_eq!(engine::log_prob(&logits[0], batch.targets[position]), right, "{position}");
    }
}

#[test]
fn weights_in_blocks_are_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, GgmlDType::Q8_0);
    let base = Checkpoint::open(&path).unwrap();
    let spec = ModelSpec::from_json(base.config()).unwrap();
    let in_blocks = InBlocks::of(&base, &spec, DType::F32, KEEP).unwrap();
    let model = model(&spec, &FrozenBase { checkpoint: &base, in_blocks: &in_blocks }, DType::F32, lora());
    let error = model.merged_weights().unwrap_err().to_string();
    assert!(error.contains("is kept quantized (Q8_0)") && error.contains("model.keep_quantized=false"), "{error}");
}

/// Layers whose elements are no whole blocks.
#[test]
fn what_cannot_be_quantized_is_named() {
    let base =
        Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families/mistral")).unwrap();
    let mut config = base.config().clone();
    config["intermediate_size"] = 191.into();
    config["hidden_size"] = 66.into();
    let spec = ModelSpec::from_json(&config).unwrap();
    let error = InBlocks::of(&base, &spec, DType::F32, NF4).unwrap_err().to_string();
    assert!(error.contains("model.layers.0.") && error.contains("set model.quantize_base=false"), "{error}");
}

/// A weight says what it is.
#[test]
fn a_weight_is_a_tensor_or_in_blocks() {
    let tensor = Weight::Tensor(Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap());
    let blocks = Weight::Quantized(Quantized::nf4(2, 64, &[0.5; 128]).into());
    assert_eq!(tensor.dims().unwrap(), blocks.dims().unwrap());
    assert!(tensor.quantized().is_none() && blocks.quantized().is_some());
    assert!(tensor.tensor("w").is_ok() && blocks.tensor("w").is_err());
}

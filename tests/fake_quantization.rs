//! Models that are computed as if they were quantized: against torch, where linear layers round as torchao and torchtune do
//! (`tests/python/make_fake_quant.py`), and against the GGUF file that is written of them.

#![allow(clippy::unwrap_used)]

#[path = "common/families.rs"]
mod families;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use families::Fixture;
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::gguf::{Export, FileKind};
use tune_core::checkpoint::merge::Merged;
use tune_core::data::Batch;
use tune_core::device::Compute;
use tune_core::engine::{self, Gradient, RunOptions, forward_backward};
use tune_core::methods::TokenLoss;
use tune_core::models::{Decoder, FakeQuantizer, GgufFormat, GgufLevels, Groups, LoadOptions, ModelSpec};
use tune_core::optim::Gradients;
use tune_core::peft::{LoraModule, LoraOptions};

use LoraModule::{DownProj, GateProj, KProj, LmHead, OProj, QProj, UpProj, VProj};

const FAMILY: &str = "llama3_1_rope_scaled";
/// The fixture has each so many-th element of a gradient.
const EVERY: usize = 29;
const GROUPS: Groups = Groups { groupsize: 32 };

fn quantizers() -> [(&'static str, FakeQuantizer); 2] {
    [
        ("int8_dyn_act_int4_weight", FakeQuantizer::Int8DynActInt4Weight(GROUPS)),
        ("int4_weight_only", FakeQuantizer::Int4WeightOnly(GROUPS)),
    ]
}

fn gguf(format: GgufFormat) -> FakeQuantizer {
    FakeQuantizer::Gguf(GgufLevels { format })
}

fn expected() -> HashMap<String, Tensor> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/fake_quant/model.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The fixture's model, of which all weights are trained, or the adapters of `expected`.
fn model(dtype: DType, lora: bool, expected: &HashMap<String, Tensor>) -> Decoder {
    let modules = vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj, LmHead];
    let lora = lora.then(|| LoraOptions { modules, rank: 3, alpha: 6.0, ..Default::default() });
    let is_lora = lora.is_some();
    let model = Fixture::read(FAMILY).model(dtype, lora);
    for parameter in model.trainable().iter().filter(|_| is_lora) {
        let adapter = &expected[&format!("adapter.{}", parameter.name())];
        parameter.var().set(&adapter.to_dtype(parameter.var().dtype()).unwrap()).unwrap();
    }
    model
}

/// The mean loss of the trained tokens, and its gradients.
fn run(model: &Decoder, batch: &Batch, activation_checkpointing: bool) -> (f64, BTreeMap<String, Vec<f64>>) {
    let mut gradients = Gradients::default();
    let trained = batch.trained_tokens() as f64;
    let loss = TokenLoss::CROSS_ENTROPY;
    let options = RunOptions {
        scale: 1.0 / trained,
        activation_checkpointing,
        dropout: None,
        noise: None,
        loss,
        temperature: 1.0,
    };
    let loss = forward_backward(model, batch, options, &mut gradients).unwrap() / trained;
    let of = |(name, gradient): (&str, &Gradient)| (name.to_owned(), numbers(&gradient.to_tensor().unwrap()));
    (loss, gradients.iter().map(of).collect())
}

/// The largest difference, as a share of the largest element.
fn off(ours: &[f64], right: &[f64]) -> f64 {
    assert_eq!(ours.len(), right.len());
    let largest = right.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    ours.iter().zip(right).fold(0f64, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// In f32 an element of a token may be rounded to the neighbour of the level that it has in torch, and little depends on it.
#[test]
fn losses_and_gradients_are_torch_s() {
    let expected = expected();
    let batch = Fixture::read(FAMILY).batch();
    for (name, quantizer) in quantizers() {
        for (lora, (dtype, called, of_loss, of_gradients)) in [false, true].into_iter().flat_map(|lora| {
            [(DType::F64, "f64", 1e-7, 1e-4), (DType::F32, "f32", 1e-5, 1e-2)].map(|precision| (lora, precision))
        }) {
            let case = format!("{name}.{}.{called}", if lora { "lora" } else { "full" });
            let right = numbers(&expected[&format!("{case}.loss")])[0];
            let mut model = model(dtype, lora, &expected);
            let (plain, _) = run(&model, &batch, false);
            model.fake_quantize(Some(quantizer)).unwrap();
            let (loss, gradients) = run(&model, &batch, false);
            assert!((loss - right).abs() <= of_loss * right, "{case}: {loss}, not {right}");
            assert!((loss - plain).abs() > 1e-4 * right, "{case}: {loss} is what it is without rounding");
            assert_eq!(gradients.len(), if lora { 30 } else { 21 }, "{case}");
            for (parameter, gradient) in &gradients {
                let right = numbers(&expected[&format!("{case}.gradient.{parameter}")]);
                let ours: Vec<f64> = gradient.iter().copied().step_by(EVERY).collect();
                let off = off(&ours, &right);
                assert!(off <= of_gradients, "{case}, {parameter}: off by {off:e}");
            }
            // Blocks that are run again give the same.
            assert_eq!(run(&model, &batch, true), (loss, gradients), "{case}");
            // The weights are what they were.
            model.fake_quantize(None).unwrap();
            assert_eq!(run(&model, &batch, false).0, plain, "{case}");
        }
    }
}

/// The loss of the file is the loss that training had, to the last bit.
#[test]
fn a_file_has_the_weights_that_training_computed_with() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny/model");
    let load = |checkpoint: &Checkpoint| {
        let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
        Decoder::load(ModelSpec::of(checkpoint).unwrap(), checkpoint, &options).unwrap()
    };
    let mut model = load(&Checkpoint::open(&tiny).unwrap());
    let batch = Fixture::read(FAMILY).batch();
    let plain = engine::evaluate(&model, &batch).unwrap();
    for (format, kind) in
        [(GgufFormat::Q4_0, FileKind::Q4_0), (GgufFormat::Q8_0, FileKind::Q8_0), (GgufFormat::Q4KM, FileKind::Q4KM)]
    {
        let file = folder.path().join(format!("{}.gguf", kind.name()));
        let merged = Merged::open(Checkpoint::open(&tiny).unwrap(), &[]).unwrap();
        Export::new(&merged, kind, "tiny").unwrap().write(&file).unwrap();
        let of_file = engine::evaluate(&load(&Checkpoint::open(&file).unwrap()), &batch).unwrap();
        model.fake_quantize(Some(gguf(format))).unwrap();
        let trained_with = engine::evaluate(&model, &batch).unwrap();
        assert_eq!(trained_with, of_file, "{format:?}");
        assert_ne!(trained_with, plain, "{format:?}");
        model.fake_quantize(None).unwrap();
    }
}

#[test]
fn what_cannot_be_done_is_told() {
    let refused = |family: &str, lora: Option<LoraOptions>, quantizer: FakeQuantizer| {
        let mut model = Fixture::read(family).model(DType::F32, lora);
        model.fake_quantize(Some(quantizer)).unwrap_err().to_string()
    };
    let said = refused(FAMILY, None, FakeQuantizer::Int4WeightOnly(Groups { groupsize: 256 }));
    assert!(said.contains("self_attn.q_proj") && said.contains("64 elements"), "{said}");
    assert!(said.contains("set quantizer.groupsize=64"), "{said}");
    let said = refused("qwen3_moe", None, FakeQuantizer::Int8DynActInt4Weight(GROUPS));
    assert!(said.contains("mixture of experts"), "{said}");
    let dora = LoraOptions { modules: vec![QProj], rank: 2, alpha: 4.0, dora: true, ..Default::default() };
    let said = refused(FAMILY, Some(dora), gguf(GgufFormat::Q8_0));
    assert!(said.contains("DoRA"), "{said}");
    // The weights of experts are rounded, and so are those of layers in one.
    for family in ["qwen3_moe", "phi3", "gemma2", "olmo2"] {
        let fixture = Fixture::read(family);
        let mut model = fixture.model(DType::F32, None);
        let plain = engine::evaluate(&model, &fixture.batch()).unwrap();
        model.fake_quantize(Some(FakeQuantizer::Int4WeightOnly(GROUPS))).unwrap();
        assert_ne!(engine::evaluate(&model, &fixture.batch()).unwrap(), plain, "{family}");
    }
}

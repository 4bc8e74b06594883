//! Models that are computed as if they were quantized, on a card and on the processor. Weights are rounded to the same bits (the
//! harness of kernels compares these), so that without rounded inputs all is as near as it is without rounding; an element of an input may
//! be rounded to the neighbour of the level that it has on the processor, and little depends on it.

use std::sync::Arc;

use candle_core::DType;
use tune_core::device::Compute;
use tune_core::models::{FakeQuantizer, GgufFormat, GgufLevels, Groups};
use tune_core::peft::LoraOptions;

use super::{Failures, card, error, fixture, lora, run, shake, values};

#[test]
fn as_if_quantized() {
    let Some(card) = card() else { return };
    let mut failures = Failures::default();
    let groups = Groups { groupsize: 16 };
    let gguf = |format| FakeQuantizer::Gguf(GgufLevels { format });
    for (family, quantizer, with_lora, types) in [
        (
            "llama3_1_rope_scaled",
            FakeQuantizer::Int8DynActInt4Weight(groups),
            false,
            &[(DType::F32, 1e-2), (DType::BF16, 0.15)][..],
        ),
        ("llama3_1_rope_scaled", FakeQuantizer::Int8DynActInt4Weight(groups), true, &[(DType::F32, 1e-2)]),
        ("llama_tied", FakeQuantizer::Int4WeightOnly(groups), false, &[(DType::F32, 2e-5), (DType::BF16, 5e-2)]),
        ("llama_tied", FakeQuantizer::Int4WeightOnly(groups), true, &[(DType::F32, 2e-5)]),
        // The embedding table, which is the output layer, too.
        ("llama_tied", gguf(GgufFormat::Q4_0), false, &[(DType::F32, 2e-5)]),
        ("llama_tied", gguf(GgufFormat::Q4KM), true, &[(DType::F32, 2e-5)]),
        // Layers whose results are parts, and experts.
        ("phi3", gguf(GgufFormat::Q8_0), false, &[(DType::F32, 2e-5)]),
        ("qwen3_moe", FakeQuantizer::Int4WeightOnly(groups), false, &[(DType::F32, 2e-5)]),
    ] {
        let fixture = fixture(family);
        let (batch, make) = (fixture.batch(), |dtype| {
            let model = fixture.model(dtype, with_lora.then(|| LoraOptions { dropout: 0.1, ..lora() }));
            shake(&model);
            model
        });
        let mut here = make(DType::F32);
        here.fake_quantize(Some(quantizer)).unwrap();
        let (right, right_gradients) = run(&here, &batch, false);
        for &(dtype, tolerance) in types {
            let what = format!("{family} {quantizer:?} {dtype:?}, adapters: {with_lora}");
            let mut there = make(dtype);
            there.compute_on(&Compute::Card(Arc::clone(&card))).unwrap();
            let (plain, _) = run(&there, &batch, false);
            there.fake_quantize(Some(quantizer)).unwrap();
            let (loss, gradients) = run(&there, &batch, false);
            let off = (loss - right).abs() / right;
            failures.unless(off <= tolerance / 2.0, || format!("{what}: loss {loss}, not {right}"));
            failures.unless((loss - plain).abs() > 1e-5 * plain, || format!("{what}: nothing is rounded"));
            // Blocks that are run again give the same bits.
            let (again, others) = run(&there, &batch, true);
            failures.unless(again.to_bits() == loss.to_bits(), || format!("{what}: another loss with checkpointing"));
            assert_eq!(gradients.iter().count(), right_gradients.iter().count(), "{what}");
            for (name, gradient) in gradients.iter() {
                let [found, other] = [gradient, others.get(name).unwrap()].map(|g| values(&g.to_tensor().unwrap()));
                let off = error(&found, &values(&right_gradients.get(name).unwrap().to_tensor().unwrap()));
                failures.unless(off <= tolerance, || format!("{what}: the gradient of {name} is off by {off:.1e}"));
                failures.unless(found == other, || format!("{what}: other bits of {name} with checkpointing"));
            }
            // The weights are what they were.
            there.fake_quantize(None).unwrap();
            failures
                .unless(run(&there, &batch, false).0.to_bits() == plain.to_bits(), || format!("{what}: other weights"));
        }
    }
}

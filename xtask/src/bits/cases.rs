//! What is computed: losses, gradients, steps of optimizers, logits.

use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use tune_core::data::Batch;
use tune_core::engine::{self, Kernels, RunOptions, Sequences, evaluate, forward_backward};
use tune_core::models::Decoder;
use tune_core::optim::{AdamW, Gradients, InBackward, Optimizer, Sgd};
use tune_core::peft::LoraModule::{self, DownProj, LmHead, OProj, QProj, VProj};
use tune_core::peft::LoraOptions;

use super::models::{self, Model};
use crate::Result;

/// The key of dropout.
const KEY: u64 = 11;

/// Takes a case, the name of one of its values, and that one's checksum.
type Found<'a> = dyn FnMut(&str, &str, u32) + 'a;

/// Computes everything with the kernels of this process, or nothing where the processor lacks them.
pub(super) fn compute(root: &Path, found: &mut Found<'_>) -> Result<()> {
    if !super::kernels_are_here() {
        return Ok(());
    }
    for model in models::all(root)? {
        // f64 runs in plain loops; the small ones are enough.
        let dtypes = [(DType::F32, "f32"), (DType::BF16, "bf16"), (DType::F64, "f64")];
        for (dtype, name) in dtypes.into_iter().filter(|(d, _)| *d != DType::F64 || model.name != "random") {
            for (kind, lora) in kinds() {
                let case = format!("{} {name} {kind}", model.name);
                training(&case, &model, dtype, lora, found)?;
            }
            inference(&format!("{} {name}", model.name), &model, dtype, found)?;
        }
    }
    Ok(())
}

/// What is trained, by name: all weights, or adapters on some layers.
fn kinds() -> Vec<(&'static str, Option<LoraOptions>)> {
    let lora = |modules: &[LoraModule], dropout| {
        Some(LoraOptions { modules: modules.to_vec(), rank: 5, alpha: 10.0, dropout, seed: 1, ..Default::default() })
    };
    vec![
        ("full", None),
        ("lora", lora(&LoraModule::ALL, 0.0)),
        ("lora_with_dropout", lora(&LoraModule::ALL, 0.1)),
        ("lora_q_v_down", lora(&[QProj, VProj, DownProj], 0.0)),
        ("lora_o", lora(&[OProj], 0.0)),
        ("lora_output", lora(&[LmHead], 0.1)),
    ]
}

fn training(case: &str, model: &Model, dtype: DType, lora: Option<LoraOptions>, found: &mut Found<'_>) -> Result<()> {
    let decoder = model.load(dtype, lora)?;
    shake(&decoder)?;
    for (name, batch) in &model.batches() {
        for (how, activation_checkpointing) in [("kept", false), ("checkpointed", true)] {
            let case = format!("{case} {name} {how}");
            let mut gradients = Gradients::default();
            let options = options(batch, activation_checkpointing);
            let loss = forward_backward(&decoder, batch, options, &mut gradients)?;
            found(&case, "loss", crc32c::crc32c(&loss.to_le_bytes()));
            for (name, gradient) in gradients.iter() {
                found(&case, name, of_tensor(&gradient.to_tensor()?)?);
            }
        }
    }
    steps(case, model, &decoder, found)
}

/// Two steps of each way to take them; the second one starts from what the first one left.
fn steps(case: &str, model: &Model, decoder: &Decoder, found: &mut Found<'_>) -> Result<()> {
    let batches = model.batches();
    let (mut adamw, mut sgd) = (AdamW::new(1e-3, [0.9, 0.99], 1e-8, 0.01), Sgd::new(1e-2, 0.9, 0.1));
    for step in 1..=2 {
        let mut gradients = Gradients::default();
        for (_, batch) in &batches {
            forward_backward(decoder, batch, options(batch, false), &mut gradients)?;
        }
        let case = format!("{case} step {step}");
        let norm = gradients.norm()?;
        found(&case, "norm", crc32c::crc32c(&norm.to_le_bytes()));
        gradients.apply(decoder, &mut adamw, 1e-3, 0.5, step)?;
        parameters(&format!("{case} adamw"), decoder, &adamw, found)?;

        let mut sink = InBackward::new(&mut sgd, 1e-2, step);
        for (_, batch) in &batches[..1] {
            forward_backward(decoder, batch, options(batch, true), &mut sink)?;
        }
        found(&case, "norm in backward", crc32c::crc32c(&sink.squared_norm()?.to_le_bytes()));
        parameters(&format!("{case} sgd in backward"), decoder, &sgd, found)?;
    }
    Ok(())
}

/// What is trained as it is now, and the optimizer's state.
fn parameters(case: &str, decoder: &Decoder, optimizer: &dyn Optimizer, found: &mut Found<'_>) -> Result<()> {
    for parameter in decoder.trainable() {
        found(case, parameter.name(), of_tensor(parameter.var())?);
    }
    for (name, state) in optimizer.state()? {
        found(case, &name, of_tensor(&state)?);
    }
    Ok(())
}

/// Losses without gradients, logits of whole rows, and logits with a cache.
fn inference(case: &str, model: &Model, dtype: DType, found: &mut Found<'_>) -> Result<()> {
    let decoder = model.load(dtype, None)?;
    for (name, batch) in &model.batches() {
        let loss = evaluate(&decoder, batch)?;
        found(&format!("{case} evaluate {name}"), "loss", crc32c::crc32c(&loss.to_le_bytes()));
        found(&format!("{case} evaluate {name}"), "logits", of_tensor(&engine::logits(&decoder, batch)?)?);
        let mut sequence = Sequences::new(&decoder, &[12], Kernels::OfTraining)?;
        for (i, ids) in [&batch.input_ids[..8], &batch.input_ids[8..9], &batch.input_ids[9..12]].iter().enumerate() {
            let logits = sequence.extend(&[(0, ids)])?.remove(0);
            let checksum = of_tensor(&Tensor::from_slice(&logits, logits.len(), &Device::Cpu)?)?;
            found(&format!("{case} generate {name}"), &format!("logits {i}"), checksum);
        }
    }
    Ok(())
}

fn options(batch: &Batch, activation_checkpointing: bool) -> RunOptions {
    let scale = 1.0 / batch.trained_tokens().max(1) as f64;
    RunOptions { scale, activation_checkpointing, dropout: Some(KEY), ..RunOptions::PLAIN }
}

/// Fresh adapters leave the model as it is, and `A` without a gradient: moves `B` away from zero.
fn shake(decoder: &Decoder) -> Result<()> {
    for parameter in decoder.trainable().iter().filter(|parameter| parameter.name().ends_with("lora_B.weight")) {
        let (name, var) = (parameter.name(), parameter.var());
        let start = crc32c::crc32c(name.as_bytes());
        let value = |i: u32| f64::from(start.wrapping_add(i.wrapping_mul(2_654_435_761)) >> 20) / 2e4 - 0.1;
        let values: Vec<f64> = (0..var.elem_count() as u32).map(value).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?)?;
    }
    Ok(())
}

/// The checksum of a tensor's bits.
fn of_tensor(tensor: &Tensor) -> Result<u32> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().ok_or("a tensor with gaps")?;
    let Storage::Cpu(storage) = &*storage else { return Err("a tensor on another device".into()) };
    let bytes: &[u8] = match storage {
        CpuStorage::F64(v) => bytemuck::cast_slice(&v[start..end]),
        CpuStorage::F32(v) => bytemuck::cast_slice(&v[start..end]),
        CpuStorage::BF16(v) => bytemuck::cast_slice(&v[start..end]),
        other => return Err(format!("no checksum of {other:?}").into()),
    };
    Ok(crc32c::crc32c(bytes))
}

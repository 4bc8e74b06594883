//! Parameters by the shape of a model, and the share of them that a process has: of each parameter its share of the rows.

use super::Setting;
use crate::Result;
use crate::models::{InBlocks, LayerSpec, LoraOptions, ModelSpec, Slot};

/// The largest share of `rows` rows that one of some processes has.
fn share(rows: usize, processes: usize) -> u64 {
    rows.div_ceil(processes) as u64
}

/// Elements of the model's own weights.
pub(super) fn of_model(model: &ModelSpec, processes: usize) -> u64 {
    model.weights().iter().map(|(_, shape)| of_shape(shape, processes)).sum()
}

fn of_shape(shape: &[usize], processes: usize) -> u64 {
    match shape.split_first() {
        Some((&rows, rest)) => share(rows, processes) * rest.iter().product::<usize>() as u64,
        None => 0,
    }
}

/// Elements of the weights in blocks, and their bytes.
pub(super) fn of_blocks(in_blocks: &InBlocks, processes: usize) -> (u64, u64) {
    in_blocks.share(processes)
}

/// Bytes of what is kept beside adapters: for each row of a weight a number, where they have magnitudes, and what they began with, where
/// their weights lack it.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn beside_adapters(model: &ModelSpec, lora: &LoraOptions) -> Result<u64> {
    let layers = lora.of_model(model)?;
    let named = model.named_layers();
    let of = |(name, layer): &(String, LayerSpec)| {
        let norms = if lora.dora { layer.out } else { 0 };
        let rank = layers.get(name)?.rank;
        let begun = if lora.start.takes_of_weight() { rank * (layer.out + layer.inner) } else { 0 };
        Some(4 * (norms + begun) as u64)
    };
    Ok(named.iter().filter_map(of).sum())
}

/// Elements of the adapters.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn of_adapters(model: &ModelSpec, lora: &LoraOptions, processes: usize) -> Result<u64> {
    let lora = lora.resolved(model)?;
    let of = |(name, layer): &(String, LayerSpec)| {
        let magnitudes = if lora.dora { layer.out as u64 } else { 0 };
        let rank = lora.of_layer(name)?.rank;
        let (a, b) = (share(rank, processes) * layer.inner as u64, share(layer.out, processes) * rank as u64);
        Some(a + b + magnitudes)
    };
    Ok(model.named_layers().iter().filter_map(of).sum())
}

/// Elements of the model's own weights that are trained beside adapters.
///
/// # Errors
/// As [`LoraOptions::resolved`].
pub(super) fn of_whole(model: &ModelSpec, lora: &LoraOptions, processes: usize) -> Result<u64> {
    let whole = lora.resolved(model)?.whole;
    let weights = model.weights().into_iter().filter(|(name, _)| whole.contains(name));
    Ok(weights.map(|(_, shape)| of_shape(&shape, processes)).sum())
}

/// Elements of the last large weight that is read.
pub(super) fn last(model: &ModelSpec) -> u64 {
    let slot = if model.tie_word_embeddings { Slot::DownProj } else { Slot::LmHead };
    model.layers_of(slot).last().map_or(0, LayerSpec::elements)
}

/// Bytes of what is whole in a process while a checkpoint is saved: the largest tensor that is written, or all adapters.
///
/// # Errors
/// As [`LoraOptions::of_model`].
pub(super) fn gathered_to_save(setting: &Setting) -> Result<u64> {
    match &setting.lora {
        Some(lora) => Ok(4 * (of_adapters(&setting.model, lora, 1)? + of_whole(&setting.model, lora, 1)?)),
        None => {
            let largest = setting.model.weights().iter().map(|(_, shape)| shape.iter().product::<usize>()).max();
            let size = if setting.optimizer.state_per_parameter() > 0 { 4 } else { setting.dtype.size_in_bytes() };
            Ok((largest.unwrap_or_default() * size) as u64)
        }
    }
}
